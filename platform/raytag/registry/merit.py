"""Whether a version is no worse than the one it is to replace, on text that neither has seen.

The rule: both tag the same held-out sentences; the version is no worse if the lower end of the
paired bootstrap's interval of the difference in strict micro F1 is above -0.01.
"""

import json
from collections.abc import Sequence
from typing import Any

from raytag import storage
from raytag.errors import SettingsError
from raytag.registry.folder import TRAINING_TEXTS, hashes
from raytag.registry.records import Version
from raytag.text.bootstrap import CONFIDENCE, RESAMPLES, SEED, Counts, counts, f1, interval
from raytag.text.formats import read_examples
from raytag.text.spans import Example

MARGIN = 0.01
"""Most F1 that the version may lose, at the interval's lower end."""


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
            f"{candidate} is not shown to be as good as {incumbent}: F1 {f1(found[0]):.4f} and "
            f"{f1(found[1]):.4f} on {len(texts)} sentences, a difference between {low:+.4f} and "
            f"{high:+.4f}, whose lower end must be above {-MARGIN}; nothing was changed"
        )
    return {
        **judged,
        "incumbent": str(incumbent),
        "sentences": len(texts),
        "f1": f1(found[0]),
        "incumbent_f1": f1(found[1]),
        "difference": difference,
        "low": low,
        "high": high,
        "resamples": RESAMPLES,
        "seed": SEED,
    }


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
    return counts([example.entities for example in examples], found)
