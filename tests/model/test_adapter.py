"""Adapters on disk: there and back, by our code and by what the model card tells people to run."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from tiny import checkpoint, encoder
from torch import Tensor, nn
from transformers import AutoModelForTokenClassification

from raytag.errors import ModelError
from raytag.model.adapter import (
    CARD,
    WEIGHTS,
    AdapterCard,
    card_json,
    context,
    load_adapter,
    output_names,
    save_adapter,
    snippet,
)
from raytag.model.base import Base, find_base, load_model, load_tokenizer
from raytag.model.lora import add_adapter
from raytag.model.settings import HeadName, LoraSettings

LABELS = ("PER", "LOC")
CASES = ("qwen2-generate", "llama-generate", "qwen2-tag", "bert-tag")


@dataclass(frozen=True)
class Made:
    """An adapter with random weights, saved, and the model it was saved from."""

    folder: Path
    base: Base
    card: AdapterCard
    model: PeftModel


def trained(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


def make(folder: Path, base_folder: Path, head: HeadName) -> Made:
    base = find_base(str(base_folder))
    torch.manual_seed(0)
    model = load_model(base, head, output_names(head, LABELS), "fp32")
    model = add_adapter(model, head, LoraSettings(rank=4))
    for parameter in trained(model).values():
        nn.init.normal_(parameter, std=0.2)  # B is zero as it comes, and would show nothing
    card = AdapterCard(
        head=head,
        labels=LABELS,
        base=base.name,
        revision=None,
        base_fingerprint=base.fingerprint(),
        load_in="fp32",
        window=200,
        instruction='Find 🙂 the "names" ({labels}).\nSentence: {text}\nAnswer:',
        settings={"lora": {"rank": 4}},
        scores={"f1": 0.5},
    )
    save_adapter(folder, model, trained(model), base, load_tokenizer(base.path), card)
    return Made(folder, base, card, model.eval())


def make_all(
    folder: Path, cases: Iterable[str], make: Callable[[Path, Path, HeadName], Made]
) -> dict[str, Made]:
    """An adapter for each case, "base-head", on a checkpoint of that base."""
    torch.set_num_threads(1)
    bases = {
        "qwen2": checkpoint(folder / "base" / "qwen2"),
        "llama": checkpoint(folder / "base" / "llama", "sentencepiece"),
        "bert": encoder(folder / "base" / "bert"),
    }
    parted = {case: case.split("-") for case in cases}
    return {
        case: make(folder / case, bases[base], head)  # type: ignore[arg-type]
        for case, (base, head) in parted.items()
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Made]:
    return make_all(tmp_path_factory.mktemp("adapters"), CASES, make)


@pytest.fixture
def own(tmp_path: Path) -> Made:
    """An adapter whose files a test may change."""
    return make(tmp_path / "adapter", checkpoint(tmp_path / "base"), "tag")


def logits(model: nn.Module, ids: Tensor) -> Tensor:
    with torch.inference_mode():
        found: Tensor = model(input_ids=ids).logits
    return found


IDS = torch.tensor([[5, 6, 7, 8, 9]])


@pytest.mark.parametrize("case", CASES)
def test_what_is_saved_is_loaded(case: str, made: dict[str, Made]) -> None:
    adapter = made[case]
    loaded = load_adapter(adapter.folder)
    assert loaded.card == adapter.card
    assert loaded.head.name == adapter.card.head
    assert loaded.head.labels == LABELS
    assert not loaded.model.training
    assert not any(p.requires_grad for p in loaded.model.parameters())
    parameters = dict(loaded.model.named_parameters())
    for name, tensor in trained(adapter.model).items():
        assert torch.equal(parameters[name], tensor)
    assert torch.equal(logits(loaded.model, IDS), logits(adapter.model, IDS))
    text = "Tim Cook met Zoë in Seoul."
    assert loaded.head.extract(loaded.model, loaded.head.ask([text])) is not None


@pytest.mark.parametrize("case", CASES)
def test_the_cards_own_snippet_gives_our_logits(
    case: str, made: dict[str, Made], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = made[case]
    space: dict[str, Any] = {}
    exec(snippet(adapter.card, str(adapter.folder)), space)
    theirs = space["logits"]
    assert "tensor(" in capsys.readouterr().out
    ids = space["tokenizer"](space["text"], return_tensors="pt")["input_ids"]
    assert ids.shape[1] > 10
    if adapter.card.head == "generate":
        assert 'names" (PER, LOC)' in space["text"]
    assert torch.allclose(theirs, logits(load_adapter(adapter.folder).model, ids), atol=1e-6)


def test_the_snippet_runs_on_its_own(made: dict[str, Made]) -> None:
    adapter = made["qwen2-tag"]
    code = snippet(adapter.card, str(adapter.folder)) + "print(logits.double().sum().item())\n"
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=200, check=True
    )
    text = "Apple's CEO Tim Cook gave a presentation in Seoul."
    ids = torch.tensor([load_tokenizer(adapter.folder)(text)["input_ids"]])
    expected = logits(load_adapter(adapter.folder).model, ids).double().sum().item()
    assert float(ran.stdout.splitlines()[-1]) == pytest.approx(expected, rel=1e-5)


def test_without_the_adapters_config_a_decoder_would_read_one_way(made: dict[str, Made]) -> None:
    adapter = made["qwen2-tag"]
    plain = AutoModelForTokenClassification.from_pretrained(
        adapter.base.path, num_labels=len(output_names("tag", LABELS)), dtype=torch.float32
    )
    causal = PeftModel.from_pretrained(plain, adapter.folder).eval()
    ours = load_adapter(adapter.folder).model
    assert not torch.allclose(logits(causal, IDS)[0, 0], logits(ours, IDS)[0, 0], atol=1e-2)
    # The last token sees everything either way in one layer, the first only what we let it.
    other = IDS.clone()
    other[0, -1] += 1
    assert torch.equal(logits(causal, IDS)[0, 0], logits(causal, other)[0, 0])
    assert not torch.equal(logits(ours, IDS)[0, 0], logits(ours, other)[0, 0])


def test_the_folder_holds_what_its_readers_need_and_nothing_pickled(
    made: dict[str, Made],
) -> None:
    for adapter in made.values():
        names = {file.name for file in adapter.folder.iterdir()}
        needed = {"adapter_config.json", WEIGHTS, "config.json", "tokenizer.json", CARD}
        assert needed <= names
        assert all(Path(name).suffix in {".json", ".safetensors", ".jinja"} for name in names)
        written = json.loads((adapter.folder / "adapter_config.json").read_text())
        assert written["base_model_name_or_path"] == adapter.base.name
        assert written["inference_mode"] is True


def test_another_base_is_refused(made: dict[str, Made], tmp_path: Path) -> None:
    adapter = made["qwen2-tag"]
    other = checkpoint(tmp_path / "other", seed=1)
    with pytest.raises(ModelError, match="not the base .* was trained on") as refused:
        load_adapter(adapter.folder, base=str(other))
    assert "--base" in str(refused.value)
    same = checkpoint(tmp_path / "moved")
    moved = load_adapter(adapter.folder, base=str(same))
    assert torch.equal(logits(moved.model, IDS), logits(adapter.model, IDS))


def change(card: Path, **values: object) -> None:
    card.write_text(json.dumps({**json.loads(card.read_text()), **values}))


def test_a_card_that_is_none_is_refused_with_its_reason(own: Made) -> None:
    card = own.folder / CARD
    good = card.read_text()
    assert AdapterCard.read(own.folder) == own.card
    for text, reason in [
        ("{", r"card\.json cannot be read"),
        ("[]", "no JSON object"),
        ("{}", "has format None; this version reads 1"),
        (good.replace('"format": 1', '"format": 2'), "has format 2"),
        ('{"format": 1}', "has no 'labels'"),
        ('{"format": 1, "labels": ["PER"]}', "missing .* required"),
    ]:
        card.write_text(text)
        with pytest.raises(ModelError, match=reason) as refused:
            load_adapter(own.folder)
        assert "\n" not in str(refused.value)
    for wrong, reason in [
        ({"head": "classify"}, "head must be one of tag, generate"),
        ({"labels": "PER"}, "labels must be names"),
        ({"labels": []}, "labels must be names"),
        ({"labels": ["PER", 1]}, "labels must be names"),
        ({"load_in": "2bit"}, "load_in must be one of"),
        ({"window": 0}, "window must be"),
        ({"colour": "red"}, "colour"),
    ]:
        card.write_text(good)
        change(card, **wrong)
        with pytest.raises(ModelError, match=reason):
            load_adapter(own.folder)
    card.unlink()
    with pytest.raises(ModelError, match=r"is no adapter: it holds no card\.json"):
        load_adapter(own.folder)


def test_a_card_survives_json_whatever_its_labels(tmp_path: Path) -> None:
    card = AdapterCard(
        head="tag",
        labels=("Ort 🙂", "A: [B]"),
        base="b",
        revision="main",
        base_fingerprint="f",
        load_in="auto",
        window=1,
    )
    (tmp_path / CARD).write_text(card_json(card), encoding="utf-8")
    assert AdapterCard.read(tmp_path) == card
    assert "revision='main'" in snippet(card, "x")
    assert "revision" not in snippet(replace(card, revision=None), "x")


def test_weights_that_are_not_whole_are_refused(own: Made) -> None:
    file = own.folder / WEIGHTS
    whole = load_file(file)
    for name in ("lora_A", "score"):
        missing = next(key for key in whole if name in key)
        save_file({key: tensor for key, tensor in whole.items() if key != missing}, file)
        with pytest.raises(ModelError, match="lacks .* not written whole"):
            load_adapter(own.folder)
    save_file({key: tensor[..., :1].contiguous() for key, tensor in whole.items()}, file)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_adapter(own.folder)
    file.write_bytes(b"no safetensors")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_adapter(own.folder)
    file.unlink()
    torch.save(whole, own.folder / "adapter_model.bin")
    with pytest.raises(ModelError, match="no other weights are loaded"):
        load_adapter(own.folder)


def test_the_longest_input_is_the_configs(made: dict[str, Made]) -> None:
    assert context(made["qwen2-generate"].model) == 1024
    assert context(made["bert-tag"].model) == 96
