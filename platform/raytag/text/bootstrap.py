"""Whether one tagger is better than another on the same sentences: the paired bootstrap.

Sentences are drawn with replacement 10,000 times and the difference in strict micro F1 is taken
each time; its percentiles bound what chance in the choice of sentences could have made of it
(Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). Says nothing of the
chance that lies in training.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from raytag.text.score import score
from raytag.text.spans import Entity

RESAMPLES = 10_000
CONFIDENCE = 0.95
SEED = 0
_DRAWN_AT_ONCE = 4_000_000
"""Sentences, to bound memory."""

Counts = NDArray[np.int64]
"""Sentences by 3: true positives, false positives, false negatives."""


def counts(gold: Sequence[Sequence[Entity]], predicted: Sequence[Sequence[Entity]]) -> Counts:
    """What was found right, found wrong and missed, sentence by sentence."""
    scores = [score([g], [p]).micro for g, p in zip(gold, predicted, strict=True)]
    return np.array([(s.tp, s.fp, s.fn) for s in scores], dtype=np.int64).reshape(-1, 3)


def interval(candidate: Counts, incumbent: Counts) -> tuple[float, float, float]:
    """(difference in micro F1, lower, upper end of its percentile interval)."""
    both = np.hstack([candidate, incumbent])
    random = np.random.default_rng(SEED)
    count = len(both)
    part = max(1, _DRAWN_AT_ONCE // count)
    sums = []
    for start in range(0, RESAMPLES, part):
        drawn = random.integers(0, count, (min(part, RESAMPLES - start), count))
        sums.append(np.stack([column[drawn].sum(axis=1) for column in both.T], axis=1))
    drawn_sums = np.concatenate(sums)
    differences = _micro_f1(drawn_sums[:, :3]) - _micro_f1(drawn_sums[:, 3:])
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return f1(candidate) - f1(incumbent), float(low), float(high)


def f1(found: Counts) -> float:
    """Micro F1 over all sentences."""
    return float(_micro_f1(found.sum(axis=0, keepdims=True))[0])


def _micro_f1(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of rows of true positives, false positives, false negatives; 0 where there is none."""
    tp, fp, fn = sums.T
    found: NDArray[np.float64] = 2 * tp / np.maximum(1, 2 * tp + fp + fn)
    return found
