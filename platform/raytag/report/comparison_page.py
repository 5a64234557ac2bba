"""A comparison of methods → report.html, report.md and a terminal: three views of one `Comparison`.

The page is one file that needs nothing else, as the report of a run is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from raytag.report.charts import chart
from raytag.report.comparison import Comparison, Contest, Standing, point_words
from raytag.report.content import flattened
from raytag.report.page import Figure, render
from raytag.report.terminal import duration, visible

COLUMNS = (
    *("Method", "Best point", "Seeds", "Dev F1", "Test F1", "Difference", "Steps"),
    *("Steps to peak", "Time", "Search"),
)
HOW_TO_READ = (
    "A method stands at the point of its grid that was best on dev with the first seed; figures "
    "are means over seeds ± their standard deviation. “Difference” is in test F1, with the paired "
    "bootstrap's 95 % interval over sentences, counts summed over seeds; it says nothing of the "
    "chance in training, which the deviations show. “Steps” lead to a method's own best dev F1; "
    "“steps to peak” to the reference's, with the reference's own as 1. “Time” is that of one "
    "training with its evaluations, “search” that of all trials of the method, stopped ones "
    "included."
)
EDGE = "at the edge of its grid: better values may lie beyond"


@dataclass(frozen=True, slots=True)
class ShownContest:
    """A contest with its rows in words and its chart."""

    contest: Contest
    rows: Sequence[tuple[bool, Sequence[str]]]
    """(whether it is the best by test F1, cells as COLUMNS has them)."""
    figure: Figure | None
    without: str
    """What is to be said of methods that have no row."""


def render_comparison(comparison: Comparison) -> str:
    """The text of report.html."""
    return render(
        "comparison.html.j2",
        comparison=comparison,
        overview=_overview(comparison),
        columns=COLUMNS,
        contests=[_shown(comparison, contest) for contest in comparison.contests],
        how_to_read=HOW_TO_READ,
        edge=EDGE if _any_edge(comparison) else "",
        machine=flattened(comparison.machine),
    )


def to_markdown(comparison: Comparison) -> str:
    """The text of report.md."""
    header = ["Test F1", *comparison.methods]
    overview = [[name, *(cell for _, cell in cells)] for name, cells in _overview(comparison)]
    parts = [f"# {_escaped(comparison.title)}", HOW_TO_READ, _markdown_table(header, overview)]
    for contest in comparison.contests:
        parts.append(f"## {_escaped(contest.name)}, {contest.sentences} test sentences")
        rows = [_row(comparison, standing) for standing in contest.standings]
        parts.append(_markdown_table(COLUMNS, rows))
        if without := _without(contest):
            parts.append(_escaped(without))
    if _any_edge(comparison):
        parts.append(f"\\* {EDGE}")
    facts = [
        f"- {_escaped(key)}: {_escaped(value)}" for key, value in flattened(comparison.machine)
    ]
    if facts:
        parts.append("\n".join(facts))
    return "\n\n".join(parts) + "\n"


def print_comparison(comparison: Comparison, console: Console | None = None) -> None:
    """Mean test F1 of every method in every contest."""
    console = console or Console(highlight=False)
    table = Table(title=Text("test F1"), title_justify="left", box=box.SIMPLE)
    table.add_column("", overflow="fold")
    for method in comparison.methods:
        table.add_column(Text(visible(method)), justify="right")
    for name, cells in _overview(comparison):
        shown = (Text(cell, style="bold" if best else "") for best, cell in cells)
        table.add_row(Text(visible(name)), *shown)
    console.print(table)


def _overview(comparison: Comparison) -> list[tuple[str, list[tuple[bool, str]]]]:
    """Per contest its name, and per method whether it is the best, and its test F1."""
    rows = []
    for contest in comparison.contests:
        most = max(len(standing.seeds) for standing in contest.standings)
        known = {
            standing.method: standing.test.in_words()
            + (f", {len(standing.seeds)} of {most} seeds" if len(standing.seeds) < most else "")
            for standing in contest.standings
        }
        best = contest.best.method
        cells = [(method == best, known.get(method, "–")) for method in comparison.methods]
        rows.append((contest.name, cells))
    return rows


def _shown(comparison: Comparison, contest: Contest) -> ShownContest:
    best = contest.best
    rows = [(standing is best, _row(comparison, standing)) for standing in contest.standings]
    return ShownContest(contest, rows, _figure(contest), _without(contest))


def _figure(contest: Contest) -> Figure | None:
    # Seeds that were never evaluated after the same step have no mean to draw.
    lines = [
        (standing.method, [(float(step), f1) for step, f1 in standing.curve])
        for standing in contest.standings
        if standing.curve
    ]
    last = max((points[-1][0] for _, points in lines), default=0.0)
    drawn = chart(lines, x_range=(0.0, last))
    words = ", ".join(f"{name} up to {max(y for _, y in points):.3f}" for name, points in lines)
    return Figure(drawn, "Dev F1", words) if drawn else None


def _row(comparison: Comparison, standing: Standing) -> list[str]:
    marked = {key: "*" if key in standing.at_edge else "" for key in standing.point}
    words = zip(point_words(standing.point), marked.values(), strict=True)
    difference = standing.difference
    reference = standing.method == comparison.reference
    return [
        standing.method,
        ", ".join(word + mark for word, mark in words) or "–",
        str(len(standing.seeds)),
        standing.dev.in_words(),
        standing.test.in_words(),
        difference.in_words() if difference else "–",
        f"{standing.steps.mean:.0f}",
        "1" if reference else _steps_to_peak(standing),
        duration(standing.seconds.mean),
        f"{duration(standing.search_seconds)}, {standing.tried} trials"
        + (f", {standing.stopped} stopped" if standing.stopped else ""),
    ]


def _steps_to_peak(standing: Standing) -> str:
    if not standing.compared:
        return "–"
    if standing.steps_ratio is None:
        return "never"
    words, of = standing.steps_ratio.in_words(2), standing.compared
    return words if standing.reached == of else f"{words} ({standing.reached} of {of})"


def _without(contest: Contest) -> str:
    names = ", ".join(contest.without)
    return f"No trial of the search finished: {names}" if names else ""


def _any_edge(comparison: Comparison) -> bool:
    return any(s.at_edge for contest in comparison.contests for s in contest.standings)


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(map(_escaped, line))} |" for line in lines)


def _escaped(text: str) -> str:
    """Text that Markdown takes as it stands."""
    return "".join(f"\\{c}" if c in "\\|*`" else "&lt;" if c == "<" else c for c in text)
