"""A promotion on merit: what is better goes, what is worse stays, what was seen is not held out."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_adapter import make
from tiny import CORPUS, checkpoint

from raytag.errors import SettingsError
from raytag.model.adapter import WEIGHTS, load_adapter
from raytag.model.tagger import Tagger
from raytag.registry.merit import interval
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


def rows(chance: random.Random, count: int, right: float) -> Iterator[tuple[int, int, int]]:
    for _ in range(count):
        tp = sum(chance.random() < right for _ in range(3))
        yield tp, chance.randint(0, 1), 3 - tp


def f1(sums: list[int]) -> float:
    return 2 * sums[0] / (2 * sums[0] + sums[1] + sums[2])


def test_the_interval_is_that_of_resampling_one_by_one() -> None:
    chance = random.Random(1)
    a, b = list(rows(chance, 300, 0.8)), list(rows(chance, 300, 0.7))
    difference, low, high = interval(np.array(a), np.array(b))
    found = []
    for _ in range(2000):
        drawn = chance.choices(range(300), k=300)
        sums = [[sum(rows[i][k] for i in drawn) for k in range(3)] for rows in (a, b)]
        found.append(f1(sums[0]) - f1(sums[1]))
    found.sort()
    assert difference == pytest.approx(
        f1([sum(r[k] for r in a) for k in range(3)]) - f1([sum(r[k] for r in b) for k in range(3)])
    )
    assert low == pytest.approx(found[50], abs=0.006)
    assert high == pytest.approx(found[1950], abs=0.006)
    assert low < difference < high
    assert interval(np.array(a), np.array(a)) == (0, 0, 0)
    assert interval(np.array(a), np.array(b)) == (difference, low, high)


def test_pairs_are_drawn_together() -> None:
    """Sentences differ a lot, the two of a pair hardly: drawn apart the interval were wide."""
    chance = random.Random(2)
    a = [(n, 0, 30 - n) for n in (chance.randint(0, 30) for _ in range(200))]
    b = [
        (max(0, tp - (i % 10 == 0)), 0, min(30, fn + (i % 10 == 0)))
        for i, (tp, _, fn) in enumerate(a)
    ]
    _, low, high = interval(np.array(a), np.array(b))
    assert high - low < 0.005


def test_no_entities_at_all_make_no_difference() -> None:
    nothing = np.zeros((5, 3), dtype=np.int64)
    assert interval(nothing, nothing) == (0, 0, 0)
