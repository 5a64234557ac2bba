"""Scores, highlighted sentences and the progress of a training, on a terminal or in a log.

Everything stays readable without colour, since a Ray job streams its output through a pipe and
many people set NO_COLOR. What a text holds is shown, never obeyed: a control character of the
text reaches the terminal as its picture.
"""

from __future__ import annotations

import time
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Final, Self

from rich import box
from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table
from rich.text import Text

from raytag.report.content import Report
from raytag.text.score import Scores
from raytag.text.spans import Entity, without_overlaps

# Legible on dark and on light backgrounds; neighbours in the list differ in lightness too.
_COLORS: Final = ("cyan", "magenta", "green", "yellow", "blue", "red", "bright_cyan", "bright_red")


def print_report(report: Report, console: Console | None = None, *, sentences: int = 3) -> None:
    """The scores of a run and a few of its worst sentences, gold above predicted."""
    console = console or Console(highlight=False)
    if report.headline:
        split, scores = report.headline
        console.print(scores_table(scores, title=f"{report.title}: {split}"))
    for fact in _context(report):
        console.print(Text(fact, style="dim"), soft_wrap=True)
    for case in report.errors[:sentences]:
        console.print()
        colors = label_colors((*case.gold, *case.predicted))
        for name, entities in (("gold", case.gold), ("predicted", case.predicted)):
            sentence = highlighted(case.text, entities, colors=colors, plain=is_plain(console))
            console.print(Text.assemble((f"{name:>9}  ", "dim"), sentence), soft_wrap=True)


def scores_table(scores: Scores, *, title: str = "") -> Table:
    """F1, precision, recall and support of each type, the micro average last."""
    table = Table(
        title=Text(visible(title)), title_justify="left", box=box.SIMPLE, show_footer=True
    )
    table.add_column("type", footer="all types")
    for name, value in (("F1", scores.f1), ("P", scores.precision), ("R", scores.recall)):
        table.add_column(name, justify="right", footer=f"{value:.3f}")
    table.add_column("gold", justify="right", footer=str(scores.micro.support))
    for label, row in scores.per_type.items():
        values = (f"{value:.3f}" for value in (row.f1, row.precision, row.recall))
        table.add_row(Text(visible(label)), *values, str(row.support))
    return table


def print_entities(text: str, entities: Sequence[Entity], console: Console | None = None) -> None:
    """One text with its entities highlighted."""
    console = console or Console(highlight=False)
    console.print(highlighted(text, entities, plain=is_plain(console)), soft_wrap=True)


def print_tagged(
    texts: Sequence[str],
    found: Sequence[Sequence[Entity]],
    console: Console | None = None,
    *,
    sentences: int = 4,
) -> None:
    """A few of many texts with their entities, those with the most different labels first."""
    rows = sorted(
        zip(texts, found, strict=True), key=lambda row: -len({entity.label for entity in row[1]})
    )
    for text, entities in rows[:sentences]:
        print_entities(text, entities, console)


def highlighted(
    text: str,
    entities: Sequence[Entity],
    *,
    plain: bool,
    colors: dict[str, str] | None = None,
) -> Text:
    """The text on one line, each entity followed by its label.

    ``plain`` brackets the entities, ``[Tim Cook]PER``, for places without colour. Of entities
    that overlap the shorter ones are listed after the text instead.
    """
    colors = colors or label_colors(entities)
    kept, nested = without_overlaps(entities)
    shown, line, done = visible(text), Text(), 0
    for entity in kept:
        line.append(shown[done : entity.start])
        _append_entity(line, shown, entity, colors[entity.label], plain)
        done = entity.end
        if unicodedata.category(shown[done : done + 1] or " ").startswith("M"):
            # Else the mark would be written onto the label's last letter.
            line.append("\N{DOTTED CIRCLE}", style="dim")
    line.append(shown[done:])
    for entity in nested:
        line.append(" also ", style="dim")
        _append_entity(line, shown, entity, colors[entity.label], plain)
    return line


def label_colors(entities: Iterable[Entity]) -> dict[str, str]:
    """A colour for each label, by its rank among the labels given."""
    labels = sorted({entity.label for entity in entities})
    return {label: _COLORS[rank % len(_COLORS)] for rank, label in enumerate(labels)}


def visible(text: str) -> str:
    """The text with as many characters, none of which can move the cursor or turn the line.

    White space becomes a space, other controls their picture or U+FFFD.
    """
    return "".join(map(_visible, text))


def is_plain(console: Console) -> bool:
    """Whether colour will not arrive: no terminal, a dumb one, or NO_COLOR."""
    return console.no_color or not console.color_system


class _ProgressLine:
    """How far something is: a live line on a terminal, a line now and then in a log.

    Used as a context manager. In a log a line is printed for what is marked as worth it, for
    the last, and otherwise at most once in ``every`` seconds.
    """

    unit = ""

    def __init__(
        self,
        console: Console | None = None,
        *,
        every: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(highlight=False)
        self._every = every
        self._clock = clock
        self._printed_at: float | None = None
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            done = TextColumn(f"{self.unit} {{task.completed:.0f}}/{{task.total:.0f}}")
            facts = TextColumn("{task.fields[facts]}", markup=False)
            self._bar = Progress(done, BarColumn(), facts, console=self._console)
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def _show(self, done: int, total: int, facts: Sequence[str], *, worth: bool = False) -> None:
        said = "  ".join(facts)
        if self._bar:
            self._move(done, total, said)
        elif worth or done >= total or self._is_due():
            self._printed_at = self._clock()
            bar = _plain_bar(done, total, self._console.encoding)
            line = f"{self.unit} {done:>{len(str(total))}}/{total} {bar} {said}"
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
            self._console.file.flush()

    def _move(self, done: int, total: int, facts: str) -> None:
        assert self._bar
        if self._task is None:
            self._task = self._bar.add_task("", completed=done, total=total, facts=facts)
        self._bar.update(self._task, completed=done, total=total, facts=facts)

    def _is_due(self) -> bool:
        return self._printed_at is None or self._clock() - self._printed_at >= self._every


class TrainingProgress(_ProgressLine):
    """How far a training is; `update` may be called at every step, and every evaluation shows."""

    unit = "step"
    _dev_f1: float | None = None

    def update(
        self,
        step: int,
        total_steps: int,
        loss: float,
        dev_f1: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Say that ``step`` is done. ``dev_f1`` is given where an evaluation has just ended."""
        if dev_f1 is not None:
            self._dev_f1 = dev_f1
        facts = [f"loss {loss:.3f}"]
        if self._dev_f1 is not None:
            facts.append(f"dev F1 {self._dev_f1:.3f}")
        if seconds_left is not None:
            facts.append(f"{duration(seconds_left)} left")
        self._show(step, total_steps, facts, worth=dev_f1 is not None)


class TaggingProgress(_ProgressLine):
    """How far a corpus is tagged."""

    unit = "documents"

    def update(
        self,
        documents: int,
        total: int,
        entities: int,
        tokens_per_second: float | None = None,
        seconds_left: float | None = None,
    ) -> None:
        """Say that so many documents are done, with so many entities in them."""
        facts = [f"{entities:,} entities"]
        if tokens_per_second is not None:
            facts.append(f"{tokens_per_second:,.0f} tokens/s")
        if seconds_left is not None:
            facts.append(f"{duration(seconds_left)} left")
        self._show(documents, total, facts)


@dataclass
class _FleetRow:
    state: str = "waiting"
    step: str = ""
    f1: float | None = None
    said: str = ""


class FleetTable:
    """Many trainings at once: a live table on a terminal, a line for each change in a log.

    Used as a context manager; at its end the whole table is printed. ``kind`` is what is trained;
    ``total`` says how many there will be, where not all have a name yet.
    """

    def __init__(
        self,
        names: Sequence[str],
        console: Console | None = None,
        *,
        kind: str = "adapter",
        total: int = 0,
    ) -> None:
        self._console = console or Console(highlight=False)
        self._kind = kind
        self._total = total
        self._rows = {name: _FleetRow() for name in names}
        self._live = Live(console=self._console, transient=True, auto_refresh=False)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        self._console.print(self._table(self._rows))

    def step(self, name: str, step: int, total_steps: int, dev_f1: float | None) -> None:
        """Say that a training has come this far."""
        row = self._rows[name]
        row.step = f"{step}/{total_steps}"
        if dev_f1 is not None:
            row.f1 = dev_f1
        self._refresh()

    def show(self, name: str, state: str, *, f1: float | None = None, said: str = "") -> None:
        """Say what became of one: ``f1`` its score, ``said`` its version or why it failed."""
        row = self._rows.setdefault(name, _FleetRow())
        row.state, row.said = state, said
        row.f1 = f1 if f1 is not None else row.f1
        if not self._console.is_terminal:
            scored = "" if f1 is None else f"F1 {f1:.3f}  "
            done = f"{self._done():{len(self._count)}}/{self._count}"
            line = f"{done} {visible(name)} {state}  {scored}{said}"
            self._console.print(line.rstrip(), markup=False, soft_wrap=True)
            self._console.file.flush()
        self._refresh()

    @property
    def _count(self) -> str:
        return str(max(len(self._rows), self._total))

    def _done(self) -> int:
        return sum(row.state not in ("waiting", "training") for row in self._rows.values())

    def _refresh(self) -> None:
        if self._live.is_started:
            going = {name: row for name, row in self._rows.items() if row.state == "training"}
            self._live.update(self._table(going), refresh=True)

    def _table(self, rows: Mapping[str, _FleetRow]) -> Table:
        title = Text(f"{self._done()} of {self._count} done")
        table = Table(title=title, title_justify="left", box=box.SIMPLE)
        table.add_column(self._kind, overflow="fold")
        table.add_column("state", no_wrap=True)
        for name in ("step", "F1"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        for name, row in rows.items():
            f1 = "" if row.f1 is None else f"{row.f1:.3f}"
            table.add_row(Text(visible(name)), row.state, row.step, f1, Text(visible(row.said)))
        return table


def duration(seconds: float) -> str:
    """``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 07 min``."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left:02} min" if hours else f"{minutes} min {rest:02} s"


def _context(report: Report) -> Iterable[str]:
    """The numbers that put the F1 into its place."""
    if report.test_documents:
        yield f"F1 over whole documents {report.test_documents.f1:.3f}"
    if report.baseline is not None:
        yield f"F1 of the base before training {report.baseline:.3f}"
    if report.headline and (share := report.ceiling.get(report.headline[0])) is not None:
        yield f"share of gold the head can express {share:.3f}"


def _append_entity(line: Text, shown: str, entity: Entity, color: str, plain: bool) -> None:
    surface, label = shown[entity.start : entity.end], visible(entity.label)
    if plain:
        line.append(f"[{surface}]{label}")
    else:
        line.append(surface, style=f"bold underline {color}")
        line.append(f" {label}", style=f"italic {color}")


def _visible(character: str) -> str:
    if character.isspace():
        return " "
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    # The joiners of emoji and of Indic and Arabic words are formats too, and have to stay.
    if unicodedata.category(character) in {"Cc", "Cs"} or _turns_direction(code):
        return "\N{REPLACEMENT CHARACTER}"
    return character


def _turns_direction(code: int) -> bool:
    return 0x202A <= code <= 0x202E or 0x2066 <= code <= 0x2069


def _plain_bar(step: int, total_steps: int, encoding: str, width: int = 20) -> str:
    done = min(width, width * step // max(1, total_steps))
    full, empty = ("█", "░") if encoding.lower().startswith("utf") else ("#", ".")
    return f"[{full * done}{empty * (width - done)}]"
