"""Scores: strict, over offsets, and equal to seqeval's on every public file."""

import random
import warnings
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import IOB1, IOB2

from raytag.text.labels import decode, detect_scheme
from raytag.text.score import Scores, confusion, join_examples, score
from raytag.text.spans import Entity, Example

FILES = [
    "bc5cdr/devel.tsv",
    "bc5cdr/test.tsv",
    "bc5cdr/train.tsv",
    *(f"btc/{section}.conll" for section in "abefgh"),
    *(
        f"crossner-{domain}/{part}.txt"
        for domain in ("politics", "science")
        for part in ("train", "dev", "test")
    ),
    "ncbi-disease/devel.tsv",
    "ncbi-disease/test.tsv",
    "ncbi-disease/train.tsv",
    "wikigold/wikigold.conll.txt",
    "wnut17/emerging.dev.conll",
    "wnut17/emerging.test.annotated",
    "wnut17/wnut17train.conll",
]
SENTENCES = 150

some = st.lists(
    st.builds(
        lambda start, length, label: Entity(start, start + length, label),
        st.integers(0, 9),
        st.integers(1, 3),
        st.sampled_from("AB"),
    ),
    max_size=6,
)


def e(start: int, end: int, label: str = "A") -> Entity:
    return Entity(start, end, label)


def test_only_start_end_and_label_together_count() -> None:
    gold = [[e(0, 3), e(5, 8, "B"), e(10, 12)], []]
    predicted = [[e(0, 3), e(5, 8), e(10, 13)], [e(0, 1, "C")]]
    scores = score(gold, predicted)
    assert (scores.micro.tp, scores.micro.fp, scores.micro.fn) == (1, 3, 2)
    assert scores.precision == 0.25
    assert scores.recall == pytest.approx(1 / 3)
    assert scores.f1 == pytest.approx(2 / 7)
    assert {label: found.support for label, found in scores.per_type.items()} == {
        "A": 2,
        "B": 1,
        "C": 0,
    }
    assert scores.macro.f1 == pytest.approx(scores.per_type["A"].f1 / 3)
    assert scores.to_dict()["micro"]["support"] == 3


def test_what_is_said_twice_counts_once() -> None:
    assert score([[e(0, 3)]], [[e(0, 3), Entity(0, 3, "A", 0.1)]]).micro.fp == 0
    assert score([[e(0, 3)]], [[e(4, 5), e(4, 5)]]).micro.fp == 1


def test_nothing_scores_zero_and_divides_nothing() -> None:
    empty = score([[]], [[]])
    assert (empty.f1, empty.macro.f1, empty.per_type) == (0.0, 0.0, {})


def test_texts_must_be_the_same_number() -> None:
    with pytest.raises(ValueError, match="2 texts of gold but 1 of predictions"):
        score([[], []], [[]])


@given(st.lists(st.tuples(some, some), max_size=4))
def test_each_entity_is_counted_once_by_scores_and_by_confusion(
    texts: list[tuple[list[Entity], list[Entity]]],
) -> None:
    gold, predicted = [g for g, _ in texts], [p for _, p in texts]
    scores, seen = score(gold, predicted), confusion(gold, predicted)
    same = {(g, p): n for g, row in seen.labels.items() for p, n in row.items()}
    touched = sum(same.values()) + sum(seen.boundary.values())
    assert touched + sum(seen.missed.values()) == scores.micro.support
    assert touched + sum(seen.spurious.values()) == scores.micro.tp + scores.micro.fp
    for label, found in scores.per_type.items():
        assert same.get((label, label), 0) == found.tp


def test_confusion_names_each_kind_of_error() -> None:
    gold = [[e(0, 3), e(5, 8), e(10, 14), e(20, 22)]]
    predicted = [[e(0, 3), e(5, 8, "B"), e(11, 14), e(30, 32, "B")]]
    assert confusion(gold, predicted).to_dict() == {
        "labels": {"A": {"A": 1, "B": 1}},
        "boundary": {"A": 1},
        "missed": {"A": 1},
        "spurious": {"B": 1},
    }


def test_sentences_of_a_document_join_with_their_entities() -> None:
    parts = [
        Example("1", "Tim Cook", (e(0, 8),), "d"),
        Example("2", "", (), "d"),
        Example("3", "In Seoul", (e(3, 8, "L"),), "d"),
        Example("4", "Alone", (e(0, 5),)),
    ]
    first, alone = join_examples(parts)
    assert (first.id, first.group, first.text) == ("d", "d", "Tim Cook\n\nIn Seoul")
    assert [first.text[x.start : x.end] for x in first.entities] == ["Tim Cook", "Seoul"]
    assert alone == parts[3]


@pytest.mark.parametrize(("every", "sizes"), [(1, [1] * 5), (2, [2, 2, 1]), (9, [5])])
def test_sentences_of_no_document_join_by_number(every: int, sizes: list[int]) -> None:
    parts = [Example(str(i), f"{i}x", (e(1, 2),)) for i in range(5)]
    joined = join_examples(parts, every, separator=" ")
    assert [len(document.entities) for document in joined] == sizes
    assert all(
        document.text[x.start : x.end] == "x" for document in joined for x in document.entities
    )
    assert " ".join(document.text for document in joined) == "0x 1x 2x 3x 4x"


@pytest.mark.parametrize("name", FILES)
def test_strict_f1_is_seqevals_on_corrupted_public_data(data_folder: Path, name: str) -> None:
    gold = _sentences(data_folder / "ner" / name)
    scheme = detect_scheme(gold)
    assert scheme == ("IOB1" if name.startswith("wikigold") else "IOB2")
    rng = random.Random(f"corrupt {name}")
    gold = rng.sample(gold, min(SENTENCES, len(gold)))
    labels = sorted({tag[2:] for tags in gold for tag in tags if tag != "O"})
    predicted = [_corrupted(tags, labels, rng) for tags in gold]
    orphans = sum(a == "O" and b[0] == "I" for tags in predicted for a, b in pairwise(tags))
    assert orphans > 0
    ours = score([_entities(t, scheme) for t in gold], [_entities(t, scheme) for t in predicted])
    _assert_seqeval_agrees(ours, gold, predicted, IOB1 if scheme == "IOB1" else IOB2)
    assert 0.1 < ours.f1 < 0.95


def _assert_seqeval_agrees(
    ours: Scores, gold: list[list[str]], predicted: list[list[str]], scheme: type
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = classification_report(
            gold, predicted, mode="strict", scheme=scheme, output_dict=True, zero_division=0
        )
    averages = ("micro avg", "macro avg", "weighted avg")
    assert sorted(ours.per_type) == sorted(set(theirs) - set(averages))
    for name, found in [("micro avg", ours.micro), *ours.per_type.items()]:
        assert found.precision == pytest.approx(theirs[name]["precision"], abs=1e-12)
        assert found.recall == pytest.approx(theirs[name]["recall"], abs=1e-12)
        assert found.f1 == pytest.approx(theirs[name]["f1-score"], abs=1e-12)
        assert found.support == theirs[name]["support"]
    assert ours.macro.f1 == pytest.approx(theirs["macro avg"]["f1-score"], abs=1e-12)


def _sentences(path: Path) -> list[list[str]]:
    """The tags of a file, read as plainly as can be."""
    blocks: list[list[str]] = [[]]
    for line in path.read_text(encoding="utf-8").split("\n"):
        if line.strip():
            blocks[-1].append(line.rsplit(maxsplit=1)[-1])
        elif blocks[-1]:
            blocks.append([])
    return [tags for tags in blocks if tags]


def _corrupted(tags: list[str], labels: list[str], rng: random.Random) -> list[str]:
    """The tags with errors of every kind: orphans, other labels, lost and invented ones."""
    found = list(tags)
    for i, tag in enumerate(tags):
        if rng.random() < 0.12:
            label = rng.choice(labels)
            others = ["O", f"I-{label}", f"B-{label}"]
            found[i] = rng.choice([*others, f"I{tag[1:]}", f"B{tag[1:]}"] if tag != "O" else others)
    return found


def _entities(tags: list[str], scheme: str) -> list[Entity]:
    return [Entity(start, end, label) for start, end, label in decode(tags, scheme)]
