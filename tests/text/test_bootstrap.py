"""The paired bootstrap: its interval, and what it resamples."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from raytag.text.bootstrap import counts, f1, interval
from raytag.text.score import score
from raytag.text.spans import Entity


def rows(chance: random.Random, count: int, right: float) -> Iterator[tuple[int, int, int]]:
    for _ in range(count):
        tp = sum(chance.random() < right for _ in range(3))
        yield tp, chance.randint(0, 1), 3 - tp


def micro_f1(sums: list[int]) -> float:
    return 2 * sums[0] / (2 * sums[0] + sums[1] + sums[2])


def test_the_interval_is_that_of_resampling_one_by_one() -> None:
    chance = random.Random(1)
    a, b = list(rows(chance, 300, 0.8)), list(rows(chance, 300, 0.7))
    difference, low, high = interval(np.array(a), np.array(b))
    found = []
    for _ in range(2000):
        drawn = chance.choices(range(300), k=300)
        sums = [[sum(rows[i][k] for i in drawn) for k in range(3)] for rows in (a, b)]
        found.append(micro_f1(sums[0]) - micro_f1(sums[1]))
    found.sort()
    assert difference == pytest.approx(
        micro_f1([sum(r[k] for r in a) for k in range(3)])
        - micro_f1([sum(r[k] for r in b) for k in range(3)])
    )
    assert low == pytest.approx(found[50], abs=0.006)
    assert high == pytest.approx(found[1950], abs=0.006)
    assert low < difference < high
    assert interval(np.array(a), np.array(a)) == (0, 0, 0)
    assert interval(np.array(a), np.array(b)) == (difference, low, high)


def test_pairs_are_drawn_together() -> None:
    """Sentences differ a lot, the two of a pair hardly: drawn apart the interval were wide."""
    chance = random.Random(2)
    a = [(n, 0, 30 - n) for n in (chance.randint(0, 30) for _ in range(200))]
    b = [
        (max(0, tp - (i % 10 == 0)), 0, min(30, fn + (i % 10 == 0)))
        for i, (tp, _, fn) in enumerate(a)
    ]
    _, low, high = interval(np.array(a), np.array(b))
    assert high - low < 0.005


def test_no_entities_at_all_make_no_difference() -> None:
    nothing = np.zeros((5, 3), dtype=np.int64)
    assert interval(nothing, nothing) == (0, 0, 0)


def test_counts_are_those_of_each_sentence() -> None:
    gold = [[Entity(0, 3, "PER"), Entity(4, 7, "ORG")], [], [Entity(0, 2, "LOC")]]
    found = [[Entity(0, 3, "PER"), Entity(4, 7, "PER")], [Entity(1, 2, "LOC")], []]
    assert counts(gold, found).tolist() == [[1, 1, 1], [0, 1, 0], [0, 0, 1]]
    assert f1(counts(gold, found)) == score(gold, found).f1
    assert counts([], []).shape == (0, 3)
