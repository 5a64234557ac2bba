"""Adapters that share a base: each computes what it computes alone."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import checkpoint, encoder, tokenizer
from torch import Tensor
from transformers import BioGptConfig, BioGptForCausalLM, OPTConfig, OPTForCausalLM

from raytag.errors import ModelError
from raytag.model.adapter import AdapterCard, load_adapter, output_names, save_adapter
from raytag.model.base import find_base, load_model
from raytag.model.heads import Batch, Encoded, Head
from raytag.model.lora import add_adapter
from raytag.model.packed import Adapter, PackedModel, RandomState, Share
from raytag.model.settings import HeadName, LoraSettings
from raytag.model.tagger import Tagger
from raytag.text.spans import Entity, Example

CPU = torch.device("cpu")
LABELS = (("PER",), ("LOC", "ORG", "PER"), ("LOC", "ORG"))
SHAPES = (
    LoraSettings(rank=4, alpha=8),
    LoraSettings(rank=2, dropout=0.1),
    LoraSettings(rank=8, dropout=0.3),
)
TEXTS = (
    ("Tim Cook gave a presentation.", "In Seoul."),
    ("Apple's CEO Tim Cook gave a presentation in Seoul on Monday.",),
    ("Apple opened a new office in New York.", "Paris", "The presentation in Tokyo."),
)
KINDS = (("llama", "tag"), ("bert", "tag"), ("llama", "generate"))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": checkpoint(folder / "llama", "sentencepiece"),
        "bert": encoder(folder / "bert"),
    }


def packed_with_three(base: Path, head: HeadName) -> tuple[PackedModel, list[Adapter], list[Head]]:
    """Three adapters, different in shape and labels, none of whose weights are zero."""
    packed = PackedModel(find_base(str(base)), head)
    adapters = []
    for seed, (labels, shape) in enumerate(zip(LABELS, SHAPES, strict=True)):
        adapter = packed.fresh(labels, shape, seed)
        noise = torch.Generator().manual_seed(seed)
        adapter.set_weights(
            {
                n: w + 0.1 * torch.randn(w.shape, generator=noise)
                for n, w in adapter.weights().items()
            }
        )
        adapters.append(adapter)
    return packed, adapters, [packed.make_head(labels) for labels in LABELS]


def rows_of(head: Head, texts: Sequence[str]) -> list[Encoded]:
    label = head.labels[0]
    return [head.encode(Example("x", text, (Entity(0, 3, label),))) for text in texts]


def shares_of(
    adapters: Sequence[Adapter], rows: Sequence[Sequence[Encoded]], seed: int | None = None
) -> list[Share]:
    """The adapters' shares of a batch; with a seed, as they are trained."""
    return [
        Share(
            adapter,
            len(own),
            max(len(row.input_ids) for row in own),
            None if seed is None else RandomState(seed + i, CPU),
        )
        for i, (adapter, own) in enumerate(zip(adapters, rows, strict=True))
    ]


def batch_of(heads: Sequence[Head], rows: Sequence[Sequence[Encoded]]) -> Batch:
    return heads[0].collate([row for own in rows for row in own])


def real(logits: Sequence[Tensor], rows: Sequence[Sequence[Encoded]], head: str) -> list[Tensor]:
    """Those at real tokens, row by row: what padding says does not count."""
    found = []
    for part, own in zip(logits, rows, strict=True):
        for row, encoded in zip(part, own, strict=True):
            n = len(encoded.input_ids)
            found.append(row[-n:] if head == "generate" else row[:n])
    return found


def card_for(packed: PackedModel, labels: tuple[str, ...]) -> AdapterCard:
    return AdapterCard(
        head=packed.head,
        labels=labels,
        base=packed.base.name,
        revision=None,
        base_fingerprint=packed.fingerprint,
        load_in="fp32",
        window=80,
    )


def save(folder: Path, packed: PackedModel, adapter: Adapter, labels: tuple[str, ...]) -> None:
    outline = adapter.outline[0]
    card = card_for(packed, labels)
    save_adapter(folder, outline, adapter.weights(), packed.base, packed.tokenizer, card)


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_an_adapter_begins_as_a_job_of_its_own_makes_it(
    bases: dict[str, Path], kind: str, head: HeadName
) -> None:
    packed = PackedModel(find_base(str(bases[kind])), head)
    for seed, (labels, shape) in enumerate(zip(LABELS, SHAPES, strict=True)):
        torch.manual_seed(seed)
        model = load_model(packed.base, head, output_names(head, labels), "fp32")
        alone = add_adapter(model, head, shape)
        expected = {n: p for n, p in alone.named_parameters() if p.requires_grad}
        begun = packed.fresh(labels, shape, seed).weights()
        assert begun.keys() == expected.keys()
        assert all(torch.equal(begun[name], expected[name]) for name in begun)


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_mixed_rows_get_what_each_adapter_gives_from_its_folder(
    bases: dict[str, Path], kind: str, head: HeadName, tmp_path: Path
) -> None:
    packed, adapters, heads = packed_with_three(bases[kind], head)
    for i, adapter in enumerate(adapters):
        save(tmp_path / str(i), packed, adapter, LABELS[i])
    read = [packed.read(tmp_path / str(i))[0] for i in range(3)]
    rows = [rows_of(h, texts) for h, texts in zip(heads, TEXTS, strict=True)]
    with torch.inference_mode():
        mixed = real(packed.logits(batch_of(heads, rows), shares_of(read, rows)), rows, head)
    at = 0
    for i, own in enumerate(rows):
        loaded = load_adapter(tmp_path / str(i))
        batch = heads[i].collate(own)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if head == "generate":
            inputs["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            alone = real([loaded.model(**inputs).logits], [own], head)
        for expected in alone:
            assert mixed[at].shape == expected.shape
            assert torch.allclose(mixed[at], expected, atol=1e-5)
            at += 1
    assert at == sum(len(texts) for texts in TEXTS)


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_what_is_dropped_does_not_depend_on_neighbours(
    bases: dict[str, Path], kind: str, head: HeadName
) -> None:
    packed, adapters, heads = packed_with_three(bases[kind], head)
    rows = [rows_of(h, texts) for h, texts in zip(heads, TEXTS, strict=True)]
    before = torch.get_rng_state()
    together = packed.logits(batch_of(heads, rows), shares_of(adapters, rows, seed=5))
    for i, own in enumerate(rows):
        share = Share(
            adapters[i], len(own), max(len(r.input_ids) for r in own), RandomState(5 + i, CPU)
        )
        alone = packed.logits(heads[i].collate(own), [share])
        other = packed.logits(heads[i].collate(own), [replace(share, random=RandomState(99, CPU))])
        (expected, changed), found = (real(x, [own], head) for x in (alone, other)), together[i]
        for row, logits in zip(real([found], [own], head), expected, strict=True):
            assert torch.allclose(row, logits, atol=1e-5)
        assert not torch.allclose(changed[0], expected[0], atol=1e-3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_no_row_touches_the_gradient_of_another_adapter(
    bases: dict[str, Path], kind: str, head: HeadName
) -> None:
    packed, adapters, heads = packed_with_three(bases[kind], head)
    rows = [rows_of(h, texts) for h, texts in zip(heads, TEXTS, strict=True)]
    logits = packed.logits(batch_of(heads[:2], rows[:2]), shares_of(adapters[:2], rows[:2], seed=5))
    # The other adapter's logits are so large that any leak would show.
    (logits[0].square().sum() + 0.0 * logits[1].sum() * 1e30).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in adapters[0].parameters())
    assert all(p.grad is None or not p.grad.any() for p in adapters[1].parameters())
    assert all(p.grad is None for p in adapters[2].parameters())
    assert all(p.grad is None for p in packed.model.parameters())


@pytest.mark.parametrize(("kind", "head"), KINDS)
def test_a_tagger_finds_through_the_pack_what_it_finds_alone(
    bases: dict[str, Path], kind: str, head: HeadName, tmp_path: Path
) -> None:
    packed, adapters, heads = packed_with_three(bases[kind], head)
    save(tmp_path / "one", packed, adapters[1], LABELS[1])
    alone = Tagger.of(load_adapter(tmp_path / "one"))
    through = replace(alone, model=packed.asking(adapters[1]), head=heads[1])
    texts = [text for own in TEXTS for text in own]
    expected, found = alone.tag(texts), through.tag(texts)
    assert any(expected)
    for some, others in zip(found, expected, strict=True):
        assert [(e.start, e.end, e.label) for e in some] == [
            (e.start, e.end, e.label) for e in others
        ]
        assert [e.score for e in some] == pytest.approx([e.score for e in others], abs=1e-5)


def test_adapters_of_another_base_or_layers_are_refused(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    packed, adapters, _ = packed_with_three(bases["llama"], "tag")
    save(tmp_path / "one", packed, adapters[0], LABELS[0])
    other = PackedModel(find_base(str(checkpoint(tmp_path / "other", seed=7))), "tag")
    with pytest.raises(ModelError, match="was not trained on"):
        other.read(tmp_path / "one")
    with pytest.raises(ModelError, match="only adapters of"):
        packed.fresh(("PER",), LoraSettings(targets=("q_proj",)), 0)


def test_a_base_that_drops_by_itself_is_refused_in_training(tmp_path: Path) -> None:
    tok = tokenizer("byte-level")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = BioGptConfig(vocab_size=len(tok), intermediate_size=16, **size)
    BioGptForCausalLM(config).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    packed = PackedModel(find_base(str(tmp_path)), "generate")
    adapter, head = packed.fresh(("PER",), SHAPES[0], 0), packed.make_head(("PER",))
    rows = [rows_of(head, TEXTS[0])]
    packed.logits(batch_of([head], rows), shares_of([adapter], rows))
    with pytest.raises(ModelError, match="train them one at a time"):
        packed.logits(batch_of([head], rows), shares_of([adapter], rows, seed=1))


def test_a_base_that_lays_rows_end_to_end_is_refused(tmp_path: Path) -> None:
    tok = tokenizer("byte-level")
    size = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = OPTConfig(vocab_size=len(tok), ffn_dim=16, word_embed_proj_dim=16, **size)
    OPTForCausalLM(config).save_pretrained(tmp_path)
    tok.save_pretrained(tmp_path)
    packed = PackedModel(find_base(str(tmp_path)), "generate")
    adapter, head = packed.fresh(("PER",), SHAPES[0], 0), packed.make_head(("PER",))
    rows = [rows_of(head, TEXTS[0])]
    with pytest.raises(ModelError, match="cannot be told apart by adapter"):
        packed.logits(batch_of([head], rows), shares_of([adapter], rows))
