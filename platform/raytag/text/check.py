"""What is odd about training data, before anything is trained on it: counted, never mended."""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from raytag.text.spans import Entity, Example
from raytag.text.words import words

_QUANTILES = (0.5, 0.9, 0.99, 1.0)


@dataclass(frozen=True, slots=True)
class SplitCheck:
    """Counts of one part of the data.

    ``cut_words`` counts entities that begin or end inside a word, which no head can answer;
    ``padded`` those with spaces at their ends; ``repeated`` examples whose text came before;
    ``lengths`` are quantiles of the texts' characters, by name.
    """

    sentences: int
    documents: int
    entities: int
    per_type: Mapping[str, int]
    without_entities: int
    cut_words: int
    padded: int
    overlapping: int
    repeated: int
    lengths: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class DataCheck:
    """Counts of train, dev and test, and of what lies between them.

    ``leaked`` counts the examples of dev and test whose text stands in train too;
    ``contradictory`` the texts that occur with different entities; ``ambiguous`` the surfaces
    that occur under several labels, of ``surfaces`` in all; ``unseen_labels`` are those of dev
    and test that train lacks.
    """

    splits: Mapping[str, SplitCheck]
    leaked: Mapping[str, int]
    contradictory: int
    surfaces: int
    ambiguous: int
    unseen_labels: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        """For people: a line per part, then one for each thing that is odd."""
        return [
            *(_summary(name, part) for name, part in self.splits.items()),
            *(line for name, part in self.splits.items() for line in _oddities(name, part)),
            *(f"{name}: {n} texts stand in train too" for name, n in self.leaked.items() if n),
            *_said(self.contradictory, "texts occur with different entities"),
            *_said(self.ambiguous, f"of {self.surfaces} surfaces occur under several labels"),
            *(f"label {label} never occurs in train" for label in self.unseen_labels),
        ]


def check_data(
    train: Sequence[Example], dev: Sequence[Example] = (), test: Sequence[Example] = ()
) -> DataCheck:
    """Counts what is in the data and what is odd about it."""
    parts = {"train": train, "dev": dev, "test": test}
    examples = [example for part in parts.values() for example in part]
    readings: defaultdict[str, set[tuple[Entity, ...]]] = defaultdict(set)
    labels_of: defaultdict[str, set[str]] = defaultdict(set)
    for example in examples:
        readings[example.text].add(example.entities)
        for entity in example.entities:
            labels_of[example.text[entity.start : entity.end]].add(entity.label)
    known = {example.text for example in train}
    return DataCheck(
        splits={name: _check(part) for name, part in parts.items()},
        leaked={
            name: sum(example.text in known for example in parts[name]) for name in ("dev", "test")
        },
        contradictory=sum(len(found) > 1 for found in readings.values()),
        surfaces=len(labels_of),
        ambiguous=sum(len(labels) > 1 for labels in labels_of.values()),
        unseen_labels=tuple(sorted(_labels([*dev, *test]) - _labels(train))),
    )


def _check(examples: Sequence[Example]) -> SplitCheck:
    per_type = Counter(entity.label for example in examples for entity in example.entities)
    faults: Counter[str] = Counter()
    for example in examples:
        faults.update(_faults(example))
    lengths = sorted(len(example.text) for example in examples)
    return SplitCheck(
        sentences=len(examples),
        documents=len({example.group for example in examples}),
        entities=per_type.total(),
        per_type=dict(sorted(per_type.items())),
        without_entities=sum(not example.entities for example in examples),
        cut_words=faults["cut"],
        padded=faults["padded"],
        overlapping=faults["overlapping"],
        repeated=len(examples) - len({example.text for example in examples}),
        lengths={_quantile_name(q): _quantile(lengths, q) for q in _QUANTILES if lengths},
    )


def _faults(example: Example) -> Iterator[str]:
    """A name for each thing that is wrong with an entity of the example."""
    if not example.entities:
        return
    inside = {at for start, end in words(example.text) for at in range(start + 1, end)}
    reached = 0
    for entity in example.entities:
        surface = example.text[entity.start : entity.end]
        if entity.start in inside or entity.end in inside:
            yield "cut"
        if surface != surface.strip():
            yield "padded"
        if entity.start < reached:
            yield "overlapping"
        reached = max(reached, entity.end)


def _labels(examples: Iterable[Example]) -> set[str]:
    return {entity.label for example in examples for entity in example.entities}


def _quantile(values: Sequence[int], share: float) -> int:
    """The smallest value that this share of the sorted values does not exceed."""
    return values[max(0, math.ceil(share * len(values)) - 1)]


def _quantile_name(share: float) -> str:
    return "max" if share == 1 else f"p{round(share * 100)}"


def _summary(name: str, part: SplitCheck) -> str:
    types = ", ".join(f"{label} {count}" for label, count in part.per_type.items())
    lengths = ", ".join(f"{quantile} {length}" for quantile, length in part.lengths.items())
    return (
        f"{name}: {part.sentences} sentences in {part.documents} documents, {part.entities} "
        f"entities ({types or 'none'}), characters {lengths or 'none'}"
    )


def _oddities(name: str, part: SplitCheck) -> Iterator[str]:
    counts = {
        "sentences have no entity": part.without_entities,
        "entities cut a word": part.cut_words,
        "entities have spaces at an end": part.padded,
        "entities overlap another": part.overlapping,
        "texts repeat an earlier one": part.repeated,
    }
    return (f"{name}: {count} {what}" for what, count in counts.items() if count)


def _said(count: int, what: str) -> list[str]:
    return [f"{count} {what}"] if count else []
