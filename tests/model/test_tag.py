"""The tagging head: what it may say whatever the weights, and what it learns from gold."""

import itertools
import random
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import assert_legal, checkpoint, encoder, tokenizer, wordpiece
from torch import nn

from raytag.errors import DataError, ModelError
from raytag.model.base import find_base, load_model, load_tokenizer
from raytag.model.heads import IGNORED, Encoded
from raytag.model.heads.tag import OUTSIDE, TagHead, _units, best_tags, tag_names
from raytag.text.spans import Entity, Example
from raytag.text.words import words

Kind = Literal["qwen2", "llama", "bert"]
KINDS: tuple[Kind, ...] = ("qwen2", "llama", "bert")

LABELS = ("PER", "LOC", "ORG", "A: [B]")
PIECES = [
    *("Tim Cook", "in Seoul", "Zoë", "met", "the", "aa a", "x-y", "1,2.5", "don't", "New York"),
    *(
        "e\u0301te\u0301",
        "n\u0303\u0323",
        "\u0301",
        "👩\u200d👩\u200d👧",
        "👩🏽\u200d🔬",
        "🙂",
        "🇰🇷",
    ),
    *(
        "שלום",
        "\u202bمرحبا\u202c",
        "東京タワー",
        "ไทย",
        "▁",
        "ﬁ",
        "İ",
        "\u00a0",
        "\u200b",
        "\u00ad",
    ),
    *("[", "]", "[PER: Tim]", "a: b", "::", "\\", "\t", "\n", "\r\n", "<s>", "[SEP]", "[PAD]"),
    *("<|endoftext|>", "\x00", "\ufeff", "\ufffd", "a\u200bb"),
]


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(rng.choice(PIECES) + rng.choice(["", " ", " "]) for _ in range(rng.randint(0, 9)))
        for _ in range(count)
    ]


Loaded = dict[Kind, tuple[TagHead, nn.Module]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases")
    paths = {
        "qwen2": checkpoint(folder / "qwen2"),
        "llama": checkpoint(folder / "llama", "sentencepiece"),
        "bert": encoder(folder / "bert"),
    }
    heads: Loaded = {}
    for kind in KINDS:
        torch.manual_seed(0)
        model = load_model(find_base(str(paths[kind])), "tag", tag_names(LABELS), "fp32")
        # So that every label is said, and not one of them everywhere.
        output = model.get_submodule("classifier" if kind == "bert" else "score")
        nn.init.normal_(output.weight, std=2.0)  # type: ignore[arg-type]
        heads[kind] = TagHead(load_tokenizer(paths[kind]), LABELS), model
    return heads


@pytest.mark.parametrize("kind", KINDS)
def test_no_entity_outside_the_text_and_no_foreign_label_whatever_the_weights(
    kind: Kind, loaded: Loaded
) -> None:
    head, model = loaded[kind]
    asked = texts(500, seed=KINDS.index(kind))
    found: list[Entity] = []
    for start in range(0, len(asked), 50):
        batch = asked[start : start + 50]
        for text, entities in zip(batch, head.extract(model, head.ask(batch)), strict=True):
            assert_legal(entities, text, LABELS)
            found += entities
    assert len(found) >= 500, "a test of entities needs entities"
    assert {entity.label for entity in found} == set(LABELS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_says_what_its_texts_say_alone(kind: Kind, loaded: Loaded) -> None:
    head, model = loaded[kind]
    asked = texts(60, seed=7)
    together = head.extract(model, head.ask(asked))
    alone = [head.extract(model, head.ask([text]))[0] for text in asked]
    assert together == alone
    assert sum(map(len, alone)) > 30
    scores = [[e.score for entities in run for e in entities] for run in (together, alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


HEADS = {
    "qwen2": TagHead(tokenizer("byte-level"), LABELS),
    "llama": TagHead(tokenizer("sentencepiece"), LABELS),
    "bert": TagHead(wordpiece(), LABELS),
}


def read_back(head: TagHead, text: str, row: Encoded) -> list[Entity]:
    """The entities that targets mean, by way of the head's own decoding of sure predictions."""
    log_p = np.full((len(row.input_ids), len(tag_names(LABELS))), -50.0, dtype=np.float32)
    for i, target in enumerate(row.targets):
        if target != IGNORED:
            log_p[i, target] = 0.0
    units = _units(*head.ask([text]))
    return head._decode(units, log_p)


@st.composite
def gold(draw: st.DrawFn) -> Example:
    text = "".join(draw(st.lists(st.sampled_from([*PIECES, " ", " ", ", "]), max_size=12)))
    places = sorted({place for span in words(text) for place in span})
    # Mostly from word to word, now and then anywhere.
    place = st.integers(0, len(text))
    if places:
        place = st.sampled_from(places) | st.sampled_from(places) | place
    spans = draw(st.lists(st.tuples(place, place, st.sampled_from(LABELS)), max_size=5))
    return Example("x", text, tuple(Entity(a, b, label) for a, b, label in spans if a < b))


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=150, deadline=None, derandomize=True)
@given(example=gold())
def test_what_is_encoded_is_read_back_but_for_what_is_counted(kind: Kind, example: Example) -> None:
    head = HEADS[kind]
    row = head.encode(example)
    back = read_back(head, example.text, row)
    # Each entity said otherwise than it stood, or not at all, is counted once.
    missing = list(example.entities)
    for entity in back:
        if entity in missing:
            missing.remove(entity)
    assert len(missing) == row.lost
    assert len(back) <= len(example.entities)
    assert row.labelled <= len(words(example.text))
    assert len(row.input_ids) == len(row.targets) == head.ask([example.text])[0].tokens


@pytest.mark.parametrize("kind", KINDS)
def test_plain_gold_loses_nothing(kind: Kind) -> None:
    text = "Tim Cook met Zoë Müller in New York (東京), not in Paris."
    spans = [("Tim Cook", "PER"), ("Zoë Müller", "PER"), ("New York", "LOC"), ("Paris", "LOC")]
    entities = [Entity(text.index(s), text.index(s) + len(s), label) for s, label in spans]
    row = HEADS[kind].encode(Example("x", text, tuple(entities)))
    assert row.lost == 0
    assert read_back(HEADS[kind], text, row) == entities


def test_a_foreign_label_is_refused() -> None:
    with pytest.raises(DataError, match="PLANET"):
        HEADS["bert"].encode(Example("x", "Mars", (Entity(0, 4, "PLANET"),)))


def test_gold_that_overlaps_or_cuts_a_word_is_counted() -> None:
    text = "Tim Cook in Seoul"
    entities = (Entity(0, 8, "PER"), Entity(4, 8, "ORG"), Entity(12, 15, "LOC"))
    row = HEADS["qwen2"].encode(Example("x", text, entities))
    assert row.lost == 2
    widened = [Entity(0, 8, "PER"), Entity(12, 17, "LOC")]
    assert read_back(HEADS["qwen2"], text, row) == widened


def test_words_that_share_a_token_are_one_unit() -> None:
    tok = tokenizer("byte-level")
    tok.backend_tokenizer.pre_tokenizer = None  # type: ignore[assignment]
    tok.add_tokens(["k-S"])
    head = TagHead(tok, LABELS)
    text = "Cook-Seoul in"
    (asked,) = head.ask([text])
    ids, units = asked.input_ids, _units(asked)
    assert [text[u.start : u.end] for u in units] == ["Cook-Seoul", "in"]
    assert all(u.token is not None for u in units)
    row = head.encode(Example("x", text, (Entity(5, 10, "LOC"),)))
    assert row.lost == 1
    assert len(ids) == len(row.targets)
    assert row.labelled == 2


def test_what_looks_like_a_special_token_is_text() -> None:
    for kind, mark in [("qwen2", "<|endoftext|>"), ("llama", "</s>"), ("bert", "[SEP]")]:
        head = HEADS[kind]
        inside = head.encode(Example("x", f"a {mark} b")).input_ids
        special = head.tokenizer.convert_tokens_to_ids(mark)
        assert inside.count(special) == head.encode(Example("x", "a b")).input_ids.count(special)


@pytest.mark.parametrize("labels", [1, 2])
def test_the_best_tags_are_the_best_of_all_valid_ones(labels: int) -> None:
    rng = np.random.default_rng(0)
    tags = 1 + 2 * labels

    def valid(path: tuple[int, ...]) -> bool:
        pairs = zip((OUTSIDE, *path), path, strict=False)
        return all(tag == 0 or tag % 2 == 1 or before in (tag, tag - 1) for before, tag in pairs)

    for length in (1, 2, 3, 4, 5):
        paths = [p for p in itertools.product(range(tags), repeat=length) if valid(p)]
        for _ in range(40):
            log_p = np.log(rng.dirichlet(np.full(tags, 0.5), size=length)).astype(np.float32)
            totals = {p: sum(float(log_p[i, tag]) for i, tag in enumerate(p)) for p in paths}
            found = tuple(best_tags(log_p))
            assert valid(found)
            assert totals[found] == pytest.approx(max(totals.values()), abs=1e-4)


def test_a_score_is_the_product_of_the_words_probabilities() -> None:
    head = HEADS["qwen2"]
    row = head.encode(Example("x", "Tim Cook", (Entity(0, 8, "PER"),)))
    log_p = np.log(np.full((len(row.input_ids), len(tag_names(LABELS))), 0.01, dtype=np.float32))
    for i, target in enumerate(row.targets):
        if target != IGNORED:
            log_p[i, target] = np.log(0.9 if target == 1 else 0.8)
    units = _units(*head.ask(["Tim Cook"]))
    (entity,) = head._decode(units, log_p)
    assert entity == Entity(0, 8, "PER")
    assert entity.score == pytest.approx(0.72)


def test_texts_without_words_have_no_entities(loaded: Loaded) -> None:
    for head, model in loaded.values():
        assert head.extract(model, head.ask([" ", "\t\n", "Tim"]))[:2] == [[], []]


def test_half_a_character_is_refused(loaded: Loaded) -> None:
    for head, model in loaded.values():
        with pytest.raises(DataError, match="lone surrogate"):
            head.extract(model, head.ask(["Tim", "Co\ud800ok"]))
        with pytest.raises(DataError, match="lone surrogate"):
            head.ask(["\udfff"])


def test_logits_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    base = find_base(str(encoder(tmp_path)))
    model = load_model(base, "tag", tag_names(LABELS))
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    head = TagHead(load_tokenizer(tmp_path), LABELS)
    with pytest.raises(ModelError, match="not numbers"):
        head.extract(model, head.ask(["Tim"]))


def test_a_row_of_nothing_costs_nothing_and_can_be_differentiated(loaded: Loaded) -> None:
    for head, model in loaded.values():
        rows = [head.encode(Example("0", "")), head.encode(Example("1", "Tim"))]
        for batch in (rows[:1], rows):
            loss = head.loss(model, head.collate(batch))
            loss.backward()
            assert torch.isfinite(loss)
            gradients = [p.grad for p in model.parameters() if p.grad is not None]
            assert all(torch.isfinite(gradient).all() for gradient in gradients)
        model.zero_grad()


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_is_the_sum_over_the_rows_however_they_are_padded(
    kind: Kind, loaded: Loaded
) -> None:
    head, model = loaded[kind]
    rows = [
        head.encode(Example("1", "Tim Cook met Zoë in Paris.", (Entity(0, 8, "PER"),))),
        head.encode(Example("2", "Seoul", (Entity(0, 5, "LOC"),))),
        head.encode(Example("3", "nothing to see")),
    ]
    with torch.inference_mode():
        alone = [float(head.loss(model, head.collate([row]))) for row in rows]
        assert float(head.loss(model, head.collate(rows))) == pytest.approx(sum(alone), rel=1e-5)
