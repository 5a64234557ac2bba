"""Gold and predicted entities of one text → the mistakes between them, each with its kind.

Scores count; this explains, mistake by mistake, what `text.score.confusion` counts: the pairs
are made by the same rule, so the numbers agree. Knows nothing of pages or terminals.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, get_args

from raytag.text.spans import Entity, Example

Kind = Literal["type", "boundary", "missed", "spurious"]
KINDS: Final[tuple[Kind, ...]] = get_args(Kind)


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong: a gold entity, a predicted one, or a pair that should agree."""

    kind: Kind
    gold: Entity | None = None
    predicted: Entity | None = None

    @property
    def start(self) -> int:
        return min(entity.start for entity in (self.gold, self.predicted) if entity)

    @property
    def confidence(self) -> float:
        """The score of the wrong prediction; 0 where nothing was predicted or scored."""
        return (self.predicted.score or 0.0) if self.predicted else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorCase:
    """A text the model got wrong, with everything needed to see how."""

    id: str
    text: str
    gold: tuple[Entity, ...]
    predicted: tuple[Entity, ...]
    mistakes: tuple[Mistake, ...]

    @property
    def confidence(self) -> float:
        return max((mistake.confidence for mistake in self.mistakes), default=0.0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "text": self.text,
            "gold": [entity_to_dict(entity) for entity in self.gold],
            "predicted": [entity_to_dict(entity) for entity in self.predicted],
            "mistakes": [
                {
                    "kind": mistake.kind,
                    "gold": mistake.gold and entity_to_dict(mistake.gold),
                    "predicted": mistake.predicted and entity_to_dict(mistake.predicted),
                }
                for mistake in self.mistakes
            ],
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ErrorCase:
        mistakes = tuple(
            Mistake(
                item["kind"],
                item["gold"] and entity_from_dict(item["gold"]),
                item["predicted"] and entity_from_dict(item["predicted"]),
            )
            for item in data["mistakes"]
        )
        return cls(
            id=data["id"],
            text=data["text"],
            gold=tuple(entity_from_dict(item) for item in data["gold"]),
            predicted=tuple(entity_from_dict(item) for item in data["predicted"]),
            mistakes=mistakes,
        )


def entity_to_dict(entity: Entity) -> dict[str, Any]:
    data = {"start": entity.start, "end": entity.end, "label": entity.label}
    return data if entity.score is None else data | {"score": entity.score}


def entity_from_dict(data: Mapping[str, Any]) -> Entity:
    return Entity(data["start"], data["end"], data["label"], data.get("score"))


def mistakes_between(gold: Iterable[Entity], predicted: Iterable[Entity]) -> tuple[Mistake, ...]:
    """Every mistake, in the order of the text; empty when the two agree.

    An entity stands in one mistake only: with the first of the same offsets under another label,
    else with the first that overlaps it under the same label, else alone.
    """
    wanted, found = set(gold), set(predicted)
    missed, spurious = sorted(wanted - found), sorted(found - wanted)
    mistakes = [Mistake("type", *pair) for pair in _taken(missed, spurious, _same_offsets)]
    mistakes += [Mistake("boundary", *pair) for pair in _taken(missed, spurious, _same_label)]
    mistakes += [Mistake("missed", gold=entity) for entity in missed]
    mistakes += [Mistake("spurious", predicted=entity) for entity in spurious]
    return tuple(sorted(mistakes, key=lambda mistake: (mistake.start, KINDS.index(mistake.kind))))


def worst_errors(
    examples: Sequence[Example], predicted: Sequence[Sequence[Entity]], limit: int
) -> tuple[ErrorCase, ...]:
    """Up to ``limit`` of the examples that went wrong, the one with most mistakes first.

    Of two with equally many, the one with the more confident wrong prediction comes first,
    then the one that stands earlier in ``examples``. ``predicted`` holds one sequence for each
    example, in the same order.
    """
    cases = []
    for example, entities in zip(examples, predicted, strict=True):
        if mistakes := mistakes_between(example.entities, entities):
            ordered = tuple(sorted(entities))
            cases.append(
                ErrorCase(
                    id=example.id,
                    text=example.text,
                    gold=example.entities,
                    predicted=ordered,
                    mistakes=mistakes,
                )
            )
    cases.sort(key=lambda case: (-len(case.mistakes), -case.confidence))
    return tuple(cases[:limit])


def _taken(
    gold: list[Entity], predicted: list[Entity], fit: Callable[[Entity, Entity], bool]
) -> Iterator[tuple[Entity, Entity]]:
    """Takes the pairs that fit out of both lists, first come first served."""
    for wanted in list(gold):
        partner = next((found for found in predicted if fit(wanted, found)), None)
        if partner:
            gold.remove(wanted)
            predicted.remove(partner)
            yield wanted, partner


def _same_offsets(gold: Entity, predicted: Entity) -> bool:
    return (gold.start, gold.end) == (predicted.start, predicted.end)


def _same_label(gold: Entity, predicted: Entity) -> bool:
    return gold.label == predicted.label and gold.overlaps(predicted)
