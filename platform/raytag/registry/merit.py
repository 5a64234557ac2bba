"""Whether a version is no worse than the one it is to replace, on text that neither has seen.

The rule: both tag the same held-out sentences; sentences are drawn with replacement 10,000 times
and the difference in strict micro F1 is taken each time (the paired bootstrap's percentile
interval: Efron & Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13). The version is
no worse if the interval's lower end is above -0.01.
"""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raytag import storage
from raytag.errors import SettingsError
from raytag.registry.folder import TRAINING_TEXTS, hashes
from raytag.registry.records import Version
from raytag.text.formats import read_examples
from raytag.text.score import score
from raytag.text.spans import Example

RESAMPLES = 10_000
CONFIDENCE = 0.95
MARGIN = 0.01
"""Most F1 that the version may lose, at the interval's lower end."""
SEED = 0
_DRAWN_AT_ONCE = 4_000_000
"""Sentences, to bound memory."""

Counts = NDArray[np.int64]


def judge(
    candidate: Version, incumbent: Version | None, held_out: str, *, base: str | None = None
) -> dict[str, Any]:
    """The rule and its figures, for the record of a promotion.

    Raises SettingsError where the candidate is worse, where held-out text stands in the training
    data of either, or where that is not known.
    """
    rule = (
        f"lower end of the {CONFIDENCE:.0%} interval of the difference in micro F1, paired "
        f"bootstrap over sentences, above {-MARGIN}"
    )
    judged = {"rule": rule, "held_out": held_out}
    examples = read_examples(held_out).examples
    texts = [example.text for example in examples]
    _check_unseen(candidate, texts)
    if incumbent is None:
        return {**judged, "incumbent": None}
    _check_unseen(incumbent, texts)
    found = [_counts(version, examples, base) for version in (candidate, incumbent)]
    difference, low, high = interval(*found)
    if low <= -MARGIN:
        raise SettingsError(
            f"{candidate} is not shown to be as good as {incumbent}: F1 {_f1(found[0]):.4f} and "
            f"{_f1(found[1]):.4f} on {len(texts)} sentences, a difference between {low:+.4f} and "
            f"{high:+.4f}, whose lower end must be above {-MARGIN}; nothing was changed"
        )
    return {
        **judged,
        "incumbent": str(incumbent),
        "sentences": len(texts),
        "f1": _f1(found[0]),
        "incumbent_f1": _f1(found[1]),
        "difference": difference,
        "low": low,
        "high": high,
        "resamples": RESAMPLES,
        "seed": SEED,
    }


def interval(candidate: Counts, incumbent: Counts) -> tuple[float, float, float]:
    """(difference in micro F1, lower, upper end of its percentile interval).

    Both arrays are sentences by 3: true positives, false positives, false negatives.
    """
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
    return _f1(candidate) - _f1(incumbent), float(low), float(high)


def _micro_f1(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of rows of true positives, false positives, false negatives; 0 where there is none."""
    tp, fp, fn = sums.T
    found: NDArray[np.float64] = 2 * tp / np.maximum(1, 2 * tp + fp + fn)
    return found


def _f1(counts: Counts) -> float:
    return float(_micro_f1(counts.sum(axis=0, keepdims=True))[0])


def _check_unseen(version: Version, texts: Sequence[str]) -> None:
    if TRAINING_TEXTS not in version.files:
        raise SettingsError(
            f"{version} was published without its training texts, so nothing can be known to be "
            "held out from it; publish it with --data RUN/data/train.jsonl"
        )
    known = set(json.loads(storage.read_bytes(storage.join(version.uri, TRAINING_TEXTS))))
    seen = [text for text in texts if hashes([text]) & known]
    if seen:
        raise SettingsError(
            f"{len(seen)} of the {len(texts)} held-out texts stand in the training data of "
            f"{version}, {seen[0][:60]!r} the first; hold out others"
        )


def _counts(version: Version, examples: Sequence[Example], base: str | None) -> Counts:
    """By sentence, true positives, false positives, false negatives of a version."""
    import torch

    from raytag.model.adapter import load_adapter
    from raytag.model.tagger import Tagger

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with storage.on_disk(version.uri) as folder:
        tagger = Tagger.of(load_adapter(folder, base=base, device=device))
    found = tagger.tag([example.text for example in examples])
    scores = [
        score([example.entities], [entities]).micro
        for example, entities in zip(examples, found, strict=True)
    ]
    return np.array([(s.tp, s.fp, s.fn) for s in scores], dtype=np.int64)
