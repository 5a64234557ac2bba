"""Charts hold their points, and odd numbers do not break them."""

import math

import pytest

from raytag.report.charts import chart, number, round_ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (0.4, 0.93), (0, 0.0016), (-3, 7), (5, 5), (0, 0), (1e-9, 2e-9)]
)
def test_ticks_hold_the_range(low: float, high: float) -> None:
    ticks = round_ticks(low, high, 4)
    assert ticks[0] <= low <= high <= ticks[-1]
    assert 2 <= len(ticks) <= 8
    assert len({number(tick) for tick in ticks}) == len(ticks)


def test_points_stand_in_the_box() -> None:
    drawn = chart([("loss", [(1, 2.0), (10, 0.5)])], x_range=(0, 10), y_range=(0, 0))
    assert drawn
    assert drawn.lines[0].path == "M10.00 0.00L100.00 75.00h0"
    assert [tick.label for tick in drawn.y_ticks] == ["0", "0.5", "1", "1.5", "2"]
    assert [tick.label for tick in drawn.x_ticks] == ["0", "2", "4", "6", "8", "10"]


def test_no_finite_point_no_chart() -> None:
    assert chart([("loss", [(1, math.nan)]), ("b", [])], x_range=(0, 1)) is None
    one = chart([("loss", [(1, math.inf), (2, 1.0)])], x_range=(0, 2))
    assert one
    assert "inf" not in one.lines[0].path


def test_rates_of_next_to_nothing_are_drawn() -> None:
    drawn = chart([("B", [(1, 0.0), (2, 1.6e-29)])], x_range=(1, 2), y_range=(0, 0))
    assert drawn is not None
    assert drawn.y_ticks[0].at < drawn.y_ticks[-1].at


def test_number() -> None:
    assert number(0.0005) == "0.0005"
    assert number(0.00002) == "2e-5"
    assert number(12000) == "12\N{NARROW NO-BREAK SPACE}000"
