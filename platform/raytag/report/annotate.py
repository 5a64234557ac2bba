"""A text with its gold and predicted entities → the pieces a page can mark.

The pieces, joined, are the text to the character: marks and labels stand around them, never
inside. Entities may overlap and cross; every one of them gets its label.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Literal

from raytag.text.spans import Entity

CONTEXT: Final = 120
"""Characters of unmarked text kept on either side of a mark when a long document is shown."""

By = Literal["both", "gold", "predicted"]


@dataclass(frozen=True, slots=True)
class Tag:
    """The label of an entity that ends where its piece ends, and who says so."""

    label: str
    by: By


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch of the text in which the same entities hold.

    ``both`` counts where gold and prediction agree on an entity; ``gold`` and ``predicted`` are
    for the entities of one that the other does not have.
    """

    text: str
    both: bool = False
    gold: bool = False
    predicted: bool = False
    tags: tuple[Tag, ...] = ()
    leans: bool = False
    """Whether it begins with a combining mark, which is written onto what stands before."""
    left_out: int = 0
    """How many characters an empty piece stands for."""

    @property
    def marked(self) -> bool:
        return self.both or self.gold or self.predicted


def pieces(text: str, gold: Iterable[Entity], predicted: Iterable[Entity]) -> list[Piece]:
    """The text cut wherever an entity begins or ends."""
    wanted, found = set(gold), set(predicted)
    edges = {0, len(text)}
    edges.update(edge for entity in wanted | found for edge in (entity.start, entity.end))
    return [_piece(text, start, end, wanted, found) for start, end in pairwise(sorted(edges))]


def shortened(parts: list[Piece], context: int = CONTEXT) -> list[Piece]:
    """The same pieces, the middle of long unmarked stretches left out.

    The first and the last piece have a neighbour on one side only, and keep that side.
    """
    result: list[Piece] = []
    for i, part in enumerate(parts):
        head = part.text[: context if i else 0]
        tail = part.text[len(part.text) - (context if i < len(parts) - 1 else 0) :]
        left_out = len(part.text) - len(head) - len(tail)
        if part.marked or left_out < context:
            result.append(part)
        else:
            ends = (Piece(head, leans=part.leans), Piece("", left_out=left_out), Piece(tail))
            result += [piece for piece in ends if piece.text or piece.left_out]
    return result


def _piece(text: str, start: int, end: int, gold: set[Entity], predicted: set[Entity]) -> Piece:
    wanted = {entity for entity in gold if entity.start <= start and end <= entity.end}
    found = {entity for entity in predicted if entity.start <= start and end <= entity.end}
    both, in_gold, in_predicted = wanted & found, wanted - found, found - wanted
    groups: tuple[tuple[By, set[Entity]], ...] = (
        ("both", both),
        ("gold", in_gold),
        ("predicted", in_predicted),
    )
    tags = (
        Tag(entity.label, by)
        for by, entities in groups
        for entity in sorted(entities)
        if entity.end == end
    )
    return Piece(
        text[start:end],
        both=bool(both),
        gold=bool(in_gold),
        predicted=bool(in_predicted),
        tags=tuple(tags),
        leans=unicodedata.category(text[start]).startswith("M"),
    )
