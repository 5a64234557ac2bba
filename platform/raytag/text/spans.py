"""Entities and examples: character offsets and what always holds for them.

Knows nothing of tokens, models or files. Offsets count Python characters (Unicode code
points) of the text exactly as it came in; ``end`` is excluded.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, order=True)
class Entity:
    """A labelled stretch of a text: ``text[start:end]`` is what it names.

    ``score`` is a probability, absent for gold.
    """

    start: int
    end: int
    label: str
    score: float | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError(f"an entity needs 0 <= start < end, got {self.start}, {self.end}")
        if not self.label:
            raise ValueError("an entity needs a label")

    def shifted(self, by: int) -> "Entity":
        """The same entity ``by`` characters further on."""
        return Entity(self.start + by, self.end + by, self.label, self.score)

    def overlaps(self, other: "Entity") -> bool:
        return self.start < other.end and other.start < self.end


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its gold entities, sorted by offset and inside the text.

    ``group`` names the document the text was taken from, so that splits keep documents whole;
    it is the example's own id where nothing else is known.
    """

    id: str
    text: str
    entities: tuple[Entity, ...] = ()
    group: str = ""

    def __post_init__(self) -> None:
        entities = tuple(sorted(self.entities))
        for entity in entities:
            if entity.end > len(self.text):
                raise ValueError(
                    f"entity {entity.start}:{entity.end} lies outside its text of "
                    f"{len(self.text)} characters"
                )
        object.__setattr__(self, "entities", entities)
        if not self.group:
            object.__setattr__(self, "group", self.id)


def without_overlaps(entities: Sequence[Entity]) -> tuple[list[Entity], list[Entity]]:
    """(kept, dropped): a flat subset, the longer of two overlapping entities kept.

    Of two equally long ones the earlier stays, then the one whose label sorts first.
    """
    kept: list[Entity] = []
    dropped: list[Entity] = []
    for entity in sorted(entities, key=lambda e: (e.start - e.end, e.start, e.label)):
        clash = any(entity.overlaps(other) for other in kept)
        (dropped if clash else kept).append(entity)
    return sorted(kept), sorted(dropped)
