"""Texts of many adapters in one batch: each gets what its adapter alone gives it."""

import json
import random
import shutil
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import assert_legal, checkpoint, encoder
from torch import Tensor

from raytag.errors import DataError, ModelError
from raytag.model.adapter import WEIGHTS, AdapterCard, load_adapter, save_adapter
from raytag.model.base import find_base
from raytag.model.frozen import CONFIG
from raytag.model.heads import IGNORED, Batch, Encoded
from raytag.model.heads.generate import GenerateHead
from raytag.model.mixed import MixedAdapter, MixedTagger
from raytag.model.packed import PackedModel, Share
from raytag.model.settings import LoraSettings
from raytag.model.tagger import Answer, Piece, Tagger
from raytag.text.spans import Entity

COUNT = 16
TYPES = ("LOC", "MISC", "ORG", "PER")
WORDS = (
    *("Tim", "Cook", "met", "Zoë", "Müller", "in", "New York", "and", "Paris", "where", "Apple"),
    *("opened", "🙂", "東京", "e\u0301te\u0301", "office", "Monday"),
)
KINDS = ("bert-tag", "llama-tag", "llama-generate")


@dataclass(frozen=True)
class Served:
    """Adapters in their folders, read beside each other, and each alone."""

    folders: list[Path]
    tagger: MixedTagger
    adapters: list[MixedAdapter]
    alone: list[Tagger]


_made: dict[str, Served] = {}


@pytest.fixture(params=KINDS)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Served:
    kind: str = request.param
    if kind not in _made:
        _made[kind] = make(kind, tmp_path_factory.mktemp(kind))
    return _made[kind]


def make(kind: str, folder: Path) -> Served:
    torch.set_num_threads(1)
    name, head = kind.split("-")
    place = folder / "base"
    base = find_base(str(encoder(place) if name == "bert" else checkpoint(place, "sentencepiece")))
    packed = PackedModel(base, "tag" if head == "tag" else "generate")
    folders = [folder / str(seed) for seed in range(COUNT)]
    for seed, place in enumerate(folders):
        save(place, packed, seed)
    tagger = MixedTagger(packed)
    return Served(
        folders,
        tagger,
        [tagger.read(place) for place in folders],
        [Tagger.of(load_adapter(place)) for place in folders],
    )


def save(folder: Path, packed: PackedModel, seed: int) -> None:
    """An adapter of its own labels, rank, window and threshold, none of whose weights are zero."""
    labels = TYPES[: 1 + seed % 4]
    adapter = packed.fresh(labels, LoraSettings(rank=(2, 4, 8)[seed % 3], alpha=4 + seed), seed)
    noise = torch.Generator().manual_seed(seed)
    weights = {
        name: tensor + 0.1 * torch.randn(tensor.shape, generator=noise)
        for name, tensor in adapter.weights().items()
    }
    card = AdapterCard(
        head=packed.head,
        labels=labels,
        base=packed.base.name,
        revision=None,
        base_fingerprint=packed.fingerprint,
        load_in="fp32",
        window=40 + 10 * seed,
        settings={"threshold": seed * (0.02 if packed.head == "tag" else 1e-5)},
    )
    save_adapter(folder, adapter.outline[0], weights, packed.base, packed.tokenizer, card)


def batch_of(served: Served, rows: Sequence[list[int]]) -> Batch:
    encoded = [Encoded(ids, [IGNORED] * len(ids)) for ids in rows]
    return served.adapters[0].head.collate(encoded)


def texts_of(seed: int) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, 16))) + "." for _ in range(1 + seed % 3)]


def tagged(
    served: Served, asks: Sequence[tuple[int, Sequence[str]]], shuffle: int | None = None
) -> list[list[list[Entity]]]:
    """Each ask's texts' entities, all asked in one batch."""
    prepared = [served.adapters[owner].prepare(texts) for owner, texts in asks]
    pieces = [(i, j) for i, one in enumerate(prepared) for j in range(len(one.pieces))]
    if shuffle is not None:
        random.Random(shuffle).shuffle(pieces)
    answers = served.tagger.run([prepared[i].pieces[j] for i, j in pieces])
    told = dict(zip(pieces, map(sound, answers), strict=True))
    return [
        one.entities([told[i, j] for j in range(len(one.pieces))]) for i, one in enumerate(prepared)
    ]


def sound(answer: Answer | ModelError) -> Answer:
    assert isinstance(answer, list), answer
    return answer


def assert_same(found: list[list[Entity]], expected: list[list[Entity]]) -> None:
    assert found == expected
    for some, others in zip(found, expected, strict=True):
        assert [e.score for e in some] == pytest.approx([e.score for e in others], abs=1e-5)


def test_mixed_rows_have_the_logits_of_each_adapter_alone(served: Served) -> None:
    packed = served.tagger.packed
    asked = [a.prepare(texts_of(seed)).pieces for seed, a in enumerate(served.adapters)]
    rows = [[piece.asked.input_ids for piece in own] for own in asked]
    batch = batch_of(served, [row for own in rows for row in own])
    shares = [
        Share(adapter.weights, len(own), batch.input_ids.shape[1])
        for adapter, own in zip(served.adapters, rows, strict=True)
    ]
    mixed = packed.logits(batch, shares)
    for part, own, alone in zip(mixed, rows, served.alone, strict=True):
        batch = batch_of(served, own)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        if packed.head == "generate":
            inputs["position_ids"] = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)
        with torch.inference_mode():
            expected = alone.model(**inputs).logits
        assert part.shape[-1] == expected.shape[-1]
        for row, other, told in zip(part, expected, own, strict=True):
            real = slice(-len(told), None) if packed.head == "generate" else slice(len(told))
            assert torch.allclose(row[real], other[real], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_in_bf16_the_logits_are_those_of_fp32_to_its_precision(kind: str, tmp_path: Path) -> None:
    whole = make(kind, tmp_path)
    packed = PackedModel(whole.tagger.packed.base, whole.tagger.packed.head, load_in="bf16")
    half = MixedTagger(packed)
    adapters = [half.read(folder) for folder in whole.folders]
    assert adapters[0].nbytes * 2 == whole.adapters[0].nbytes
    rows = [[p.asked.input_ids for p in a.prepare(texts_of(1)).pieces] for a in whole.adapters]
    batch = batch_of(whole, [row for own in rows for row in own])

    def logits(tagger: MixedTagger, adapters: Sequence[MixedAdapter]) -> list[torch.Tensor]:
        width = batch.input_ids.shape[1]
        shares = [Share(a.weights, len(own), width) for a, own in zip(adapters, rows, strict=True)]
        return tagger.packed.logits(batch, shares)

    real = batch.attention_mask.bool().split([len(own) for own in rows])
    for part, exact, there in zip(
        logits(half, adapters), logits(whole.tagger, whole.adapters), real, strict=True
    ):
        assert part.dtype == torch.bfloat16
        near = (part.float() - exact)[there].norm() / exact[there].norm()
        assert 0 < near < 0.05


def test_a_mixed_batch_of_sixteen_finds_what_sixteen_taggers_find(served: Served) -> None:
    asks = [(seed, texts_of(seed)) for seed in range(COUNT)]
    found = tagged(served, asks)
    for (seed, texts), entities in zip(asks, found, strict=True):
        assert_same(entities, served.alone[seed].tag(texts))
        for text, own in zip(texts, entities, strict=True):
            assert_legal(own, text, served.adapters[seed].card.labels)
    assert sum(any(entities) for entities in found) > COUNT / 2
    assert any(len(served.adapters[seed].prepare(t).pieces) > len(t) for seed, t in asks)


def test_the_order_of_asks_does_not_matter(served: Served) -> None:
    asks = [(seed, texts_of(seed + 1)) for seed in range(COUNT)]
    found = tagged(served, asks)
    for shuffle in range(3):
        for some, others in zip(tagged(served, asks, shuffle), found, strict=True):
            assert_same(some, others)
    for some, others in zip(tagged(served, asks[::-1]), found[::-1], strict=True):
        assert_same(some, others)


def test_odd_texts_are_tagged_or_refused_where_they_come(served: Served) -> None:
    long = " ".join(text for seed in range(60) for text in texts_of(seed))
    wide = replace(served.adapters[3], window=1 << 20)
    (piece, *_) = pieces = wide.prepare([long]).pieces
    assert max(p.tokens for p in pieces) <= served.tagger.packed.limit
    if served.tagger.packed.limit < 100:
        assert len(pieces) > 1
    found = tagged(served, [(0, ["", " \n\t", "Paris"]), (1, []), (2, ["\u200b", "\x00"])])
    assert found[0][:2] == [[], []]
    assert found[1] == []
    assert_same(found[0], served.alone[0].tag(["", " \n\t", "Paris"]))
    assert_same(found[2], served.alone[2].tag(["\u200b", "\x00"]))
    assert_same(tagged(served, [(0, ["Tim"]), (5, [long])])[1], served.alone[5].tag([long]))
    with pytest.raises(DataError, match="lone surrogate"):
        served.adapters[0].prepare(["Tim", "Co\ud800ok"])
    assert served.tagger.run([]) == []
    assert piece.asker is wide


def test_an_answer_that_outgrows_the_model_is_given_in_parts(tmp_path: Path) -> None:
    served = _made.get("llama-generate") or make("llama-generate", tmp_path)
    asks = [(seed, texts_of(seed + 4)) for seed in range(COUNT)]
    found = tagged(served, asks)
    owner = max(range(COUNT), key=lambda seed: len(found[seed][0]))
    plain = served.adapters[owner].head
    assert isinstance(plain, GenerateHead)
    room = max(row.tokens for row in plain.ask(asks[owner][1])) + 6
    head = GenerateHead(
        plain.vocabulary.tokenizer, plain.labels, context=room, vocabulary=plain.vocabulary
    )
    tight = replace(served.adapters[owner], head=head, max_tokens=room)
    alone = replace(served.alone[owner], head=head, max_tokens=room)
    adapters = [tight if a is served.adapters[owner] else a for a in served.adapters]
    again = tagged(replace(served, adapters=adapters), asks)
    for seed, (some, others) in enumerate(zip(again, found, strict=True)):
        assert_same(some, alone.tag(asks[owner][1]) if seed == owner else others)
    assert again[owner] != found[owner]


def test_an_adapter_that_fails_takes_no_other_with_it(served: Served, tmp_path: Path) -> None:
    shutil.copytree(served.folders[3], tmp_path / "broken")
    rewrite(tmp_path / "broken", lambda tensors: {n: t * 1e30 for n, t in tensors.items()})
    broken = served.tagger.read(tmp_path / "broken")
    others = [served.adapters[i].prepare(texts_of(i)) for i in range(3)]
    asked = broken.prepare(texts_of(3))
    pieces: list[Piece] = [*others[0].pieces, *asked.pieces, *others[1].pieces, *others[2].pieces]
    answers = dict(zip(map(id, pieces), served.tagger.run(pieces), strict=True))
    for piece in asked.pieces:
        error = answers[id(piece)]
        assert isinstance(error, ModelError)
        assert "not numbers" in str(error)
    for i, prepared in enumerate(others):
        own = [sound(answers[id(piece)]) for piece in prepared.pieces]
        assert_same(prepared.entities(own), served.alone[i].tag(texts_of(i)))


def test_adapters_are_read_and_texts_prepared_while_the_model_is_asked(served: Served) -> None:
    asks = [(seed, texts_of(seed)) for seed in range(4)]
    expected = tagged(served, asks)
    errors: list[BaseException] = []

    def read() -> None:
        try:
            for folder in served.folders:
                again = served.tagger.read(folder)
                for seed in range(8):
                    again.prepare(texts_of(seed))
        except BaseException as exc:
            errors.append(exc)

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    rounds = 0
    while any(thread.is_alive() for thread in threads) or not rounds:
        for some, others in zip(tagged(served, asks), expected, strict=True):
            assert_same(some, others)
        rounds += 1
    assert not errors


def test_an_adapter_says_how_much_memory_it_holds(served: Served) -> None:
    for folder, adapter in zip(served.folders, served.adapters, strict=True):
        assert adapter.nbytes == sum(t.nbytes for t in load_file(folder / WEIGHTS).values())


def rewrite(folder: Path, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    changed = change(load_file(folder / WEIGHTS))
    save_file({name: t.contiguous() for name, t in changed.items()}, folder / WEIGHTS)


def configured(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / CONFIG, settings)


def carded(**settings: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "card.json", settings)


def edit(path: Path, settings: dict[str, Any]) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **settings}))


def first(change: Callable[[Tensor], Tensor], part: str = "lora_A") -> Callable[[Path], None]:
    """Change the first tensor of a part."""

    def changed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        name = min(name for name in tensors if part in name)
        return {**tensors, name: change(tensors[name].clone())}

    return lambda folder: rewrite(folder, changed)


def without_one(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensors[name] for name in sorted(tensors)[1:]}


WRONGS: dict[str, tuple[Callable[[Path], None], str]] = {
    "another base": (carded(base_fingerprint="0" * 64), "was not trained on"),
    "another head": (carded(head="generate"), "was not trained on"),
    "more labels": (carded(labels=["A", "B", "C", "D", "E"]), "of shape"),
    "a threshold in words": (carded(settings={"threshold": "high"}), "card"),
    "other targets": (configured(target_modules=["query"]), "only adapters of"),
    "all-linear": (configured(target_modules="all-linear"), "one by one"),
    "rank-stabilised": (configured(use_rslora=True), "use_rslora"),
    "DoRA": (configured(use_dora=True), "use_dora"),
    "patterns of rank": (configured(rank_pattern={"query": 3}), "rank_pattern"),
    "patterns of alpha": (configured(alpha_pattern={"query": 3}), "alpha_pattern"),
    "a base changed at first": (configured(init_lora_weights="pissa"), "init_lora_weights"),
    "what peft has yet to invent": (configured(use_sixlora=True), "use_sixlora"),
    "IA3": (configured(peft_type="IA3"), "not of a LoRA"),
    "no rank": (configured(r=None), "rank is None"),
    "another rank": (configured(r=5), "of shape"),
    "no alpha": (configured(lora_alpha=float("nan")), "lora_alpha is nan"),
    "no settings": (lambda folder: (folder / CONFIG).unlink(), "cannot be read"),
    "broken settings": (lambda folder: edit_text(folder / CONFIG), "cannot be read"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "cannot be read"),
    "broken weights": (lambda folder: edit_text(folder / WEIGHTS), "cannot be read"),
    "a tensor too few": (lambda folder: rewrite(folder, without_one), "not whole"),
    "a tensor too many": (
        lambda folder: rewrite(folder, lambda t: {**t, "more": torch.ones(1)}),
        "more",
    ),
    "a row too few": (first(lambda t: t[1:]), "of shape"),
    "whole numbers": (first(lambda t: t.long(), "classifier"), "int64"),
    "NaN": (first(lambda t: t.index_fill(0, torch.tensor([0]), float("nan"))), "not numbers"),
    "infinite": (first(lambda t: t.fill_(float("inf")), "lora_B"), "not numbers"),
}


@pytest.mark.parametrize("wrong", WRONGS)
def test_what_is_no_adapter_of_this_base_is_refused(
    wrong: str, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    kind = KINDS[0]
    if kind not in _made:
        _made[kind] = make(kind, tmp_path_factory.mktemp(kind))
    served = _made[kind]
    folder = tmp_path / "adapter"
    shutil.copytree(served.folders[1], folder)
    served.tagger.read(folder)
    change, reason = WRONGS[wrong]
    change(folder)
    with pytest.raises(ModelError, match=reason):
        served.tagger.read(folder)


def edit_text(path: Path) -> None:
    path.write_text("}")
