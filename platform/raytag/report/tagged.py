"""Tagged documents → a terminal, or a page to look at them in; and what a tagging job found.

Knows texts and their entities, nothing of where they are kept. The page is one file that needs
nothing else: it filters by label without a script, and its own policy forbids one. Every word
that comes from data is escaped by the template engine.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raytag.report.annotate import CONTEXT, Piece, pieces, shortened
from raytag.report.page import render
from raytag.report.terminal import highlighted, is_plain, label_colors, visible
from raytag.text.spans import Entity

NAMES: Final = 5
"""Most frequent names shown of each label."""
COLORS: Final = 8
"""Colours of the page; with more labels than these, some share one."""

_LONGEST_NAME: Final = 40
_ELLIPSIS: Final = "…"


@dataclass(frozen=True, slots=True)
class TaggedDocument:
    """A text with the entities found in it; ``source`` is where it came from, ``file:row``."""

    id: str
    text: str
    entities: Sequence[Entity]
    source: str = ""


@dataclass(frozen=True, slots=True)
class LabelSummary:
    """What the shown documents hold of one label."""

    name: str
    entities: int
    documents: int
    names: Sequence[tuple[str, int]]


@dataclass(frozen=True, slots=True)
class HeldPiece:
    """A piece with the entities that hold in it, longest first, and those that end with it."""

    piece: Piece
    held: Sequence[Entity]
    ends: Sequence[Entity]


@dataclass(frozen=True, slots=True)
class ShownDocument:
    """A document, cut into pieces that can be marked."""

    document: TaggedDocument
    labels: Sequence[str]
    pieces: Sequence[HeldPiece]


def render_tagged(
    documents: Iterable[TaggedDocument], *, title: str, total: int, whole: bool = False
) -> str:
    """The text of a page that shows these of ``total`` documents.

    The counts on it are of the documents shown. Of long documents what is far from any entity
    is left out, unless they are asked for ``whole``.
    """
    shown = [_shown(document, whole) for document in documents]
    labels = _label_summaries([one.document for one in shown])
    return render(
        "tagged.html.j2",
        title=title,
        total=total,
        documents=shown,
        labels=labels,
        ranks={label.name: rank for rank, label in enumerate(labels)},
        colors=COLORS,
        entities=sum(label.entities for label in labels),
    )


def print_documents(
    documents: Iterable[TaggedDocument], *, whole: bool, console: Console | None = None
) -> None:
    """Each document with its entities highlighted: the lines that have any, or all of them."""
    console = console or Console(highlight=False)
    shown = list(documents)
    colors = label_colors(entity for document in shown for entity in document.entities)
    for i, document in enumerate(shown):
        place = (f"  {visible(document.source)}" if document.source else "", "dim")
        head = Text.assemble("\n" if i else "", (visible(document.id), "bold"), place)
        console.print(head, soft_wrap=True)
        lines = _lines(document.text, document.entities) if whole else _excerpts(document)
        for line, entities in lines:
            marked = highlighted(line, entities, plain=is_plain(console), colors=colors)
            console.print(marked, soft_wrap=True)


def print_summary(
    labels: Mapping[str, int],
    names: Mapping[str, Sequence[tuple[str, int]]],
    console: Console | None = None,
) -> None:
    """A table of the labels, the most frequent first, with their most frequent names.

    ``labels`` counts entities; ``names`` holds (name, count) of each label, the highest first.
    """
    console = console or Console(highlight=False)
    if not labels:
        console.print("no entities were found")
        return
    colors = label_colors(Entity(0, 1, label) for label in labels)
    table = Table(box=box.SIMPLE, show_footer=True)
    table.add_column("label", footer="all labels", overflow="fold")
    table.add_column("entities", footer=f"{sum(labels.values()):,}", justify="right")
    table.add_column("most frequent names", overflow="fold")
    for label, count in sorted(labels.items(), key=lambda item: (-item[1], item[0])):
        most = [f"{_name(name)} ({times:,})" for name, times in names.get(label, ())[:NAMES]]
        table.add_row(Text(visible(label), colors[label]), f"{count:,}", Text(", ".join(most)))
    console.print(table)


def _label_summaries(documents: Sequence[TaggedDocument]) -> list[LabelSummary]:
    """The label with most entities first."""
    names: dict[str, Counter[str]] = {}
    holding: Counter[str] = Counter()
    for document in documents:
        entities = set(document.entities)
        for entity in entities:
            name = " ".join(document.text[entity.start : entity.end].split())
            names.setdefault(entity.label, Counter())[name] += 1
        holding.update({entity.label for entity in entities})
    summaries = [
        LabelSummary(
            label,
            counter.total(),
            holding[label],
            sorted(counter.items(), key=lambda item: (-item[1], item[0]))[:NAMES],
        )
        for label, counter in names.items()
    ]
    return sorted(summaries, key=lambda label: (-label.entities, label.name))


def _shown(document: TaggedDocument, whole: bool) -> ShownDocument:
    entities = sorted(set(document.entities))
    parts = pieces(document.text, (), entities) if whole else _excerpt(document.text, entities)
    held_pieces, at = [], 0
    for part in parts:
        end = at + len(part.text) + part.left_out
        held = [e for e in entities if e.start <= at and end <= e.end] if part.marked else []
        held.sort(key=lambda entity: entity.start - entity.end)
        held_pieces.append(HeldPiece(part, held, [e for e in held if e.end == end]))
        at = end
    return ShownDocument(document, sorted({e.label for e in entities}), held_pieces)


def _excerpts(document: TaggedDocument) -> Iterator[tuple[str, list[Entity]]]:
    """The lines with entities, long ones shortened, and an ellipsis for those left out."""
    if not document.entities:
        yield _shortened_line(document.text, [])
        return
    skipped = False
    for line, entities in _lines(document.text, document.entities):
        if entities:
            if skipped:
                yield _ELLIPSIS, []
            yield _shortened_line(line, entities)
        skipped = not entities and (skipped or bool(line.strip()))
    if skipped:
        yield _ELLIPSIS, []


def _lines(text: str, entities: Iterable[Entity]) -> Iterator[tuple[str, list[Entity]]]:
    """Each line with its entities, whose offsets count from its start.

    Lines that an entity runs across stay together.
    """
    waiting = sorted(entities, reverse=True)
    held: list[Entity] = []
    start = end = reach = 0
    for line in text.splitlines(keepends=True):
        end += len(line)
        while waiting and waiting[-1].start < end:
            held.append(waiting.pop())
            reach = max(reach, held[-1].end)
        if reach <= end:
            yield text[start:end].rstrip("\r\n"), [entity.shifted(-start) for entity in held]
            start, held = end, []


def _shortened_line(line: str, entities: list[Entity]) -> tuple[str, list[Entity]]:
    """The line without what is far from its entities, and the entities where they now stand."""
    said, at = "", 0
    moved: dict[int, int] = {}
    for part in _excerpt(line, entities):
        moved[at] = len(said) - at
        said += _ELLIPSIS if part.left_out else part.text
        at += len(part.text) + part.left_out
    return said, [entity.shifted(moved[entity.start]) for entity in entities]


def _excerpt(text: str, entities: Sequence[Entity]) -> list[Piece]:
    """What is near the entities; where there are none, how the text begins."""
    if entities:
        return shortened(pieces(text, (), entities))
    beginning = Piece(text[:CONTEXT])
    left_out = len(text) - len(beginning.text)
    return [beginning, Piece("", left_out=left_out)] if left_out else [beginning]


def _name(name: str) -> str:
    """A name among others on a line: not too long, and its direction kept to itself."""
    shown = visible(name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + _ELLIPSIS)
    if any(unicodedata.bidirectional(character) in {"R", "AL"} for character in shown):
        return f"\N{FIRST STRONG ISOLATE}{shown}\N{POP DIRECTIONAL ISOLATE}"
    return shown
