"""Numbers → lines in a box: the charts of the page, as data for its template.

A chart is an SVG of 100 by 100 that the page stretches to its own width, with strokes that keep
their thickness; the words around it are ordinary text of the page. So it stays legible on a
phone, takes the page's colours in both themes and needs neither script nor picture. Knows
nothing of what the numbers mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Tick:
    """A label of an axis; ``at`` is its place in percent from the left or from the bottom."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a chart, as SVG path data: the line itself, and a dot at each of its points."""

    name: str
    path: str
    dots: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Everything the template needs to draw one chart."""

    lines: tuple[Line, ...]
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]


def chart(
    series: Sequence[tuple[str, Sequence[Point]]],
    *,
    x_range: Point,
    y_range: Point | None = None,
    ticks: int = 4,
) -> Chart | None:
    """The chart of the named series, or None where no series has a finite point.

    ``x`` counts something, steps for instance: its ticks are whole numbers.
    ``y_range`` is the least range to show; it grows to round numbers that hold every point.
    """
    finite = [
        (name, [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)])
        for name, points in series
    ]
    finite = [(name, points) for name, points in finite if points]
    if not finite:
        return None
    values = [y for _, points in finite for _, y in points]
    low, high = y_range or (min(values), max(values))
    marks = round_ticks(min(low, *values), max(high, *values), ticks)
    box = (*_widened(*x_range), marks[0], marks[-1])
    inside = [x for x in round_ticks(*box[:2], 5) if box[0] <= x <= box[1] and x == int(x)]
    return Chart(
        tuple(_line(name, points, box) for name, points in finite),
        tuple(Tick(_percent(x, box[0], box[1]), number(x)) for x in inside),
        tuple(Tick(_percent(y, marks[0], marks[-1]), number(y)) for y in marks),
    )


def round_ticks(low: float, high: float, wanted: int) -> list[float]:
    """About ``wanted`` steps of 1, 2 or 5 times a power of ten that hold ``low`` and ``high``."""
    low, high = _widened(low, high)
    rough = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    digits = 2 - math.floor(math.log10(step))
    return [round(i * step, digits) for i in range(first, last + 1)]


def number(value: float) -> str:
    """A tick's label: no more digits than it needs, thousands apart."""
    if value and abs(value) < 1e-4:
        mantissa, exponent = f"{value:.3e}".split("e")
        return f"{float(mantissa):g}e{int(exponent)}"
    return f"{value:,.10g}".replace(",", "\N{NARROW NO-BREAK SPACE}")


def _line(name: str, points: Sequence[Point], box: tuple[float, float, float, float]) -> Line:
    places = [(_percent(x, box[0], box[1]), _percent(y, box[2], box[3])) for x, y in points]
    corners = [f"{x:.2f} {100 - y:.2f}" for x, y in places]
    # A path of length zero with a round cap is the one dot that survives being stretched.
    dots = "".join(f"M{corner}h0" for corner in corners)
    return Line(name, "M" + "L".join(corners) + "h0", dots)


def _percent(value: float, low: float, high: float) -> float:
    return round(100 * (value - low) / (high - low), 2)


def _widened(low: float, high: float) -> Point:
    """The range itself, or one around its only value: a chart of no width cannot be drawn."""
    if high > low:
        return low, high
    return (low - abs(low) / 2, low + abs(low) / 2) if low else (0.0, 1.0)
