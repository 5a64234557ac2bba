"""A promotion on merit: what is better goes, what is worse stays, what was seen is not held out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter import make
from tiny import CORPUS, checkpoint

from raytag.errors import SettingsError
from raytag.model.adapter import WEIGHTS, load_adapter
from raytag.model.tagger import Tagger
from raytag.registry.registry import Registry
from raytag.text.formats import write_jsonl
from raytag.text.spans import Example

TEXTS = [f"{text} No {number}." for number in range(8) for text in CORPUS]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("merit")
    return make(folder / "good", checkpoint(folder / "base"), "tag").folder


@pytest.fixture(scope="module")
def bad(good: Path) -> Path:
    """The same with its head turned round."""
    folder = good.parent / "bad"
    folder.mkdir()
    for file in good.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tensors = load_file(folder / WEIGHTS)
    turned = {n: -t if "score" in n or "classifier" in n else t for n, t in tensors.items()}
    assert any(not torch.equal(turned[name], tensors[name]) for name in tensors)
    save_file(turned, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def held_out(good: Path) -> Path:
    """Gold is what the good one finds."""
    found = Tagger.of(load_adapter(good)).tag(TEXTS)
    assert sum(map(len, found)) > len(TEXTS)
    examples = [
        Example(str(i), text, tuple(entities))
        for i, (text, entities) in enumerate(zip(TEXTS, found, strict=True))
    ]
    file = good.parent / "held_out.jsonl"
    write_jsonl(str(file), examples)
    return file


def test_what_is_better_goes_and_what_is_worse_stays(
    root: str, good: Path, bad: Path, held_out: Path
) -> None:
    registry = Registry(root)
    for folder in (bad, good, bad, good):
        registry.publish(str(folder), "acme", "news", training_texts=["Seen in training."])
    gold = str(held_out)
    first = registry.promote("acme/news@1", "production", if_better=gold)
    assert first.merit
    assert first.merit["incumbent"] is None
    better = registry.promote("acme/news@2", "production", if_better=gold)
    assert better.merit
    assert better.merit["incumbent"] == "acme/news@1"
    assert better.merit["f1"] == 1.0
    assert better.merit["incumbent_f1"] < 0.5
    assert 0 < better.merit["low"] <= better.merit["difference"] <= better.merit["high"]
    assert better.merit["sentences"] == len(TEXTS)
    with pytest.raises(SettingsError, match=r"acme/news@3 is not shown to be as good as .*@2: F1"):
        registry.promote("acme/news@3", "production", if_better=gold)
    assert registry.history("acme/news@production") == [better, first]
    same = registry.promote("acme/news@4", "production", if_better=gold)
    assert same.merit
    assert (same.merit["difference"], same.merit["low"], same.merit["high"]) == (0, 0, 0)


def test_what_was_trained_on_is_not_held_out(tmp_path: Path, good: Path, held_out: Path) -> None:
    registry = Registry(str(tmp_path / "registry"))
    spaced = "  ".join(TEXTS[3].split(" ")) + "\n"
    registry.publish(str(good), "acme", "news", training_texts=["Other.", spaced])
    registry.publish(str(good), "acme", "news", training_texts=["Other."])
    registry.publish(str(good), "acme", "news")
    seen = "1 of the 48 held-out texts stand in the training data of acme/news@1"
    with pytest.raises(SettingsError, match=seen):
        registry.promote("acme/news@1", "production", if_better=str(held_out))
    with pytest.raises(SettingsError, match="acme/news@3 was published without its training"):
        registry.promote("acme/news@3", "production", if_better=str(held_out))
    registry.promote("acme/news@1", "production")
    with pytest.raises(SettingsError, match=seen):
        registry.promote("acme/news@2", "production", if_better=str(held_out))
    assert len(registry.history("acme/news@production")) == 1
