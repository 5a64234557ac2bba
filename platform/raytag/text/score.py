"""Strict precision, recall and F1 of entities: start, end and label must all be right.

Knows entities only: what a model, a token or a tag is makes no difference here. Where tags are
scored, seqeval's strict mode gives the same numbers.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

from raytag.text.spans import Entity, Example

Span = tuple[int, int, str]


@dataclass(frozen=True, slots=True)
class Score:
    """Counts of one type or of all, and what follows from them; 0 where nothing is to divide."""

    tp: int = 0
    fp: int = 0
    fn: int = 0

    @property
    def precision(self) -> float:
        return self.tp / (self.tp + self.fp) if self.tp else 0.0

    @property
    def recall(self) -> float:
        return self.tp / (self.tp + self.fn) if self.tp else 0.0

    @property
    def f1(self) -> float:
        return 2 * self.tp / (2 * self.tp + self.fp + self.fn) if self.tp else 0.0

    @property
    def support(self) -> int:
        """How many gold entities there are."""
        return self.tp + self.fn

    def to_dict(self) -> dict[str, float | int]:
        return {
            "precision": self.precision,
            "recall": self.recall,
            "f1": self.f1,
            "support": self.support,
            "tp": self.tp,
            "fp": self.fp,
            "fn": self.fn,
        }


@dataclass(frozen=True, slots=True)
class Average:
    """The unweighted mean over types."""

    precision: float
    recall: float
    f1: float

    def to_dict(self) -> dict[str, float]:
        return {"precision": self.precision, "recall": self.recall, "f1": self.f1}


@dataclass(frozen=True, slots=True)
class Scores:
    """Scores over all entities and per type; types are those of gold and predictions together."""

    micro: Score
    per_type: Mapping[str, Score]

    @property
    def precision(self) -> float:
        return self.micro.precision

    @property
    def recall(self) -> float:
        return self.micro.recall

    @property
    def f1(self) -> float:
        """The number meant by "F1": micro-averaged."""
        return self.micro.f1

    @property
    def macro(self) -> Average:
        types = list(self.per_type.values())
        count = max(1, len(types))
        return Average(
            sum(score.precision for score in types) / count,
            sum(score.recall for score in types) / count,
            sum(score.f1 for score in types) / count,
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "micro": self.micro.to_dict(),
            "macro": self.macro.to_dict(),
            "per_type": {label: score.to_dict() for label, score in self.per_type.items()},
        }


@dataclass(frozen=True, slots=True)
class Confusion:
    """What became of each entity, for a report. Every gold and every predicted one counts once.

    ``labels[gold][predicted]`` counts spans with the same boundaries; ``boundary[label]`` pairs
    that overlap under the same label with other boundaries; ``missed`` and ``spurious`` hold, by
    label, what is left of gold and of predictions.
    """

    labels: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    boundary: Mapping[str, int] = field(default_factory=dict)
    missed: Mapping[str, int] = field(default_factory=dict)
    spurious: Mapping[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return {
            "labels": {gold: dict(row) for gold, row in self.labels.items()},
            "boundary": dict(self.boundary),
            "missed": dict(self.missed),
            "spurious": dict(self.spurious),
        }


def score(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> Scores:
    """Scores of predictions against gold, text by text in the same order.

    An entity given twice for one text counts once.
    """
    hits: Counter[str] = Counter()
    extra: Counter[str] = Counter()
    lost: Counter[str] = Counter()
    for wanted, found in _paired(gold, predicted):
        hits.update(label for _, _, label in wanted & found)
        extra.update(label for _, _, label in found - wanted)
        lost.update(label for _, _, label in wanted - found)
    per_type = {
        label: Score(hits[label], extra[label], lost[label])
        for label in sorted(set(hits) | set(extra) | set(lost))
    }
    return Scores(Score(hits.total(), extra.total(), lost.total()), per_type)


def confusion(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> Confusion:
    """What became of each entity, text by text in the same order."""
    labels: Counter[tuple[str, str]] = Counter()
    boundary: Counter[str] = Counter()
    missed: Counter[str] = Counter()
    spurious: Counter[str] = Counter()
    for wanted, found in _paired(gold, predicted):
        right = wanted & found
        labels.update((label, label) for _, _, label in right)
        left_gold, left_found = sorted(wanted - right), sorted(found - right)
        labels.update(_paired_off(left_gold, left_found, lambda g, p: g[:2] == p[:2]))
        boundary.update(label for label, _ in _paired_off(left_gold, left_found, _overlap_alike))
        missed.update(label for _, _, label in left_gold)
        spurious.update(label for _, _, label in left_found)
    table: dict[str, dict[str, int]] = {}
    for (gold_label, found_label), count in sorted(labels.items()):
        table.setdefault(gold_label, {})[found_label] = count
    tallies = [dict(sorted(tally.items())) for tally in (boundary, missed, spurious)]
    return Confusion(table, *tallies)


def join_examples(
    examples: Sequence[Example], every: int = 1, separator: str = "\n"
) -> list[Example]:
    """Sentences joined to documents, their entities shifted along.

    Neighbours of one ``group`` become one document, whose id is the group. Sentences that are a
    group of their own are taken ``every`` so many together; with 1 they stay as they are.
    """
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    documents: list[Example] = []
    for alone, run in groupby(examples, key=lambda example: example.group == example.id):
        members = list(run)
        if alone:
            parts = [members[i : i + every] for i in range(0, len(members), every)]
            documents += [_joined(part, part[0].id, separator) for part in parts]
        else:
            for group, same in groupby(members, key=lambda example: example.group):
                documents.append(_joined(list(same), group, separator))
    return documents


def _paired(
    gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]
) -> Iterator[tuple[set[Span], set[Span]]]:
    if len(gold) != len(predicted):
        raise ValueError(f"{len(gold)} texts of gold but {len(predicted)} of predictions")
    for wanted, found in zip(gold, predicted, strict=True):
        yield _spans(wanted), _spans(found)


def _spans(entities: Sequence[Entity]) -> set[Span]:
    return {(entity.start, entity.end, entity.label) for entity in entities}


def _paired_off(
    gold: list[Span], found: list[Span], fit: Callable[[Span, Span], bool]
) -> list[tuple[str, str]]:
    """Takes pairs that fit out of both lists, first come first served; gives their labels."""
    pairs: list[tuple[str, str]] = []
    for wanted in list(gold):
        partner = next((span for span in found if fit(wanted, span)), None)
        if partner is not None:
            gold.remove(wanted)
            found.remove(partner)
            pairs.append((wanted[2], partner[2]))
    return pairs


def _overlap_alike(gold: Span, found: Span) -> bool:
    return gold[2] == found[2] and gold[0] < found[1] and found[0] < gold[1]


def _joined(parts: Sequence[Example], document: str, separator: str) -> Example:
    entities: list[Entity] = []
    offset = 0
    for part in parts:
        entities += [entity.shifted(offset) for entity in part.entities]
        offset += len(part.text) + len(separator)
    return Example(document, separator.join(part.text for part in parts), tuple(entities), document)
