"""The tables and plots of evidence.md, from the records of benchmarks/evidence.py.

    python docs/evidence.py            # prints the tables
    python docs/evidence.py --plots    # writes evidence.svg

A contest counts once every method has all its seeds; those that have not are named.
"""

import re
import statistics
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from html import escape
from pathlib import Path

from raytag.report.charts import Chart, chart
from raytag.report.comparison import Comparison, Contest, Standing, TrialRecord, compare

DOCS = Path(__file__).resolve().parent
RESULTS = DOCS.parent / "benchmarks" / "results" / "evidence"
ADAPTED = ("LoRA", "LoRA+ 4", "LoRA+ 16", "full")
PARTS = {
    "minilm-200": (*ADAPTED, "spaCy"),
    "minilm-500": (*ADAPTED, "spaCy"),
    "sample-tag": (*ADAPTED, "spaCy"),
    "sample-generate": ADAPTED,
    "fixed-200": ("LoRA+ 16 3e-4", "LoRA+ 4 8e-4", "LoRA 2e-3", "LoRA 1e-3", "full 2e-4"),
    "why": (
        *("LoRA", "A at 2", "A at 1/4", "A at 1/16", "A at 1/64", "A at rest", "LoRA at 1e-4"),
        *("LoRA+ 16 at 1e-4", "1/16, no warm-up", "1/16, constant", "1/16, decay 0.1"),
        *("1/16, alpha 128", "1/16, A larger", "1/16, from B", "1/16, PiSSA"),
        *("1/4, A larger", "1/4, PiSSA", "LoRA, PiSSA", "LoRA, 6 epochs", "A at 1/4, 6 epochs"),
        *("A at 1/16, 6 epochs", "LoRA+ 4 at 1.6e-3", "LoRA+ 4 at 1.6e-3, 6 epochs"),
    ),
}
"""Methods by part, the reference first."""
SEARCHED = ("minilm-200", "minilm-500", "sample-tag", "sample-generate")
SEEDS = 3
COLOURS = ("#4477aa", "#228833", "#ccbb44", "#aa3377", "#888888")
WIDE, HIGH, GAP = 300, 200, 60
"""Of a plot, and between two, in pixels."""


@cache
def comparison(part: str) -> Comparison:
    """All that is on file of a part, in the order its trials come in."""
    places = (RESULTS / part / "trials").glob("*.json")
    records = [TrialRecord.from_json(place.read_text(encoding="utf-8")) for place in places]
    order = PARTS[part]
    records.sort(
        key=lambda one: (
            *(one.data, one.examples, order.index(one.method), one.seed),
            sorted(one.point.items()),
        )
    )
    return compare(part, records, reference=order[0], first_seed=0)


def complete(part: str) -> list[Contest]:
    """The contests in which every method has been searched and repeated."""
    methods = set(PARTS[part])
    return [
        contest
        for contest in comparison(part).contests
        if {one.method for one in contest.standings if len(one.seeds) == SEEDS} == methods
    ]


def tables() -> Iterator[str]:
    for part in SEARCHED:
        if contests := complete(part):
            yield from _searched(part, contests)
    if contests := complete("fixed-200"):
        yield from _fixed(contests)
    for contest in complete("why"):
        yield from _table(
            ("crossner-politics, 200: B at 2e-3", "dev F1", "test F1", "steps to LoRA's best"),
            (
                (one.method, one.dev.in_words(), one.test.in_words(), _steps(one))
                for one in contest.standings
            ),
        )


def _searched(part: str, contests: Sequence[Contest]) -> Iterator[str]:
    methods = PARTS[part]
    points = [(contest.name, *(_point(one) for one in contest.standings)) for contest in contests]
    yield from _table((f"{part}: test F1", *methods), map(_scores, contests))
    head = ("dev F1, its own", "and LoRA's", "steps to LoRA's best", "test F1, difference")
    against = (row for contest in contests for row in _against(contest))
    yield from _table((f"{part}: LoRA+ against LoRA", *head), against)
    yield from _table((f"{part}: best point", *methods), points)


def _fixed(contests: Sequence[Contest]) -> Iterator[str]:
    means = [
        statistics.fmean(contest.standings[i].test.mean for contest in contests)
        for i in range(len(PARTS["fixed-200"]))
    ]
    yield from _table(
        ("one setting for all: test F1", *PARTS["fixed-200"]),
        [*map(_scores, contests), ("mean", *(f"{mean:.3f}" for mean in means))],
    )


def _scores(contest: Contest) -> Sequence[str]:
    words = (
        f"**{one.test.in_words()}**" if one is contest.best else one.test.in_words()
        for one in contest.standings
    )
    return contest.name, *words


def _against(contest: Contest) -> Iterator[Sequence[str]]:
    lora, *others = contest.standings
    for one in others:
        if one.method.startswith("LoRA+"):
            assert one.difference is not None
            dev, difference = one.dev.in_words(), one.difference.in_words()
            yield f"{contest.name}, {one.method}", dev, lora.dev.in_words(), _steps(one), difference


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Iterator[str]:
    yield ""
    for cells in (head, ["---"] * len(head), *rows):
        yield f"| {' | '.join(cells)} |"


def _steps(one: Standing) -> str:
    if one.difference is None:
        return "1"
    if one.steps_ratio is None:
        return f"0 of {one.compared} reached it"
    return f"{one.steps_ratio.in_words(2)} ({one.reached} of {one.compared})"


def _point(one: Standing) -> str:
    """A star marks the least or greatest of three or more that were tried."""
    return ", ".join(
        f"{value:g}\\*" if name in one.at_edge else f"{value:g}"
        for name, value in one.point.items()
    )


def plots(contests: Sequence[Contest], columns: int = 3) -> str:
    """Dev F1 by step, a plot for each contest, as one SVG that does on light and dark pages."""
    columns = min(columns, len(contests))
    rows = -(-len(contests) // columns)
    size = columns * (WIDE + GAP) + GAP, rows * (HIGH + 2 * GAP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size[0]} {size[1]}" '
        f'font-family="sans-serif" font-size="12" fill="#777">'
    ]
    names = [one.method for one in contests[0].standings if one.method != "spaCy"]
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        x = GAP + 110 * i
        parts.append(f'<path d="M{x} 22h24" stroke="{colour}" stroke-width="2"/>')
        parts.append(f'<text x="{x + 30}" y="26">{escape(name)}</text>')
    for i, contest in enumerate(contests):
        x, y = GAP + i % columns * (WIDE + GAP), GAP + 20 + i // columns * (HIGH + 2 * GAP)
        lines = [
            (one.method, [(float(step), f1) for step, f1 in one.curve])
            for one in contest.standings
            if one.method in names
        ]
        last = max(points[-1][0] for _, points in lines)
        drawn = chart(lines, x_range=(0.0, last))
        assert drawn is not None
        parts.append(f'<g transform="translate({x} {y})">')
        parts += _plot(drawn, contest.name)
        parts.append("</g>")
    return "\n".join([*parts, "</svg>", ""])


def _plot(drawn: Chart, title: str) -> Iterator[str]:
    yield f'<text y="-14" font-size="14">{escape(title)}</text>'
    for tick in drawn.y_ticks:
        y = HIGH * (1 - tick.at / 100)
        yield f'<path d="M0 {y:.1f}h{WIDE}" stroke="#777" stroke-opacity="0.3"/>'
        yield f'<text x="-6" y="{y + 4:.1f}" text-anchor="end">{tick.label}</text>'
    for tick in drawn.x_ticks:
        x = WIDE * tick.at / 100
        yield f'<text x="{x:.1f}" y="{HIGH + 18}" text-anchor="middle">{tick.label}</text>'
    for line, colour in zip(drawn.lines, COLOURS, strict=False):
        path = re.sub(r"([\d.]+) ([\d.]+)", _in_pixels, line.path)
        yield f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="2"/>'


def _in_pixels(percent: re.Match[str]) -> str:
    return f"{float(percent[1]) * WIDE / 100:.1f} {float(percent[2]) * HIGH / 100:.1f}"


def main() -> None:
    if sys.argv[1:] == ["--plots"]:
        contests = [contest for part in ("minilm-200", "minilm-500") for contest in complete(part)]
        (DOCS / "evidence.svg").write_text(plots(contests), encoding="utf-8")
        return
    for line in tables():
        print(line)
    for part in PARTS:
        done = {(one.data, one.examples) for one in complete(part)}
        left = [c.name for c in comparison(part).contests if (c.data, c.examples) not in done]
        if left:
            print(f"{part}: not complete: {', '.join(left)}", file=sys.stderr)


if __name__ == "__main__":
    main()
