"""Examples -> train, dev and test; a few of them, or those that show every type k times.

What goes where depends on a seed and on the names of groups and examples only: not on their
order, the machine or Python's hashing.
"""

from collections import Counter
from collections.abc import Sequence
from hashlib import blake2b
from typing import NamedTuple

from raytag.errors import DataError, SettingsError
from raytag.text.spans import Example


class Splits(NamedTuple):
    """Three parts, each in the order the examples came in."""

    train: list[Example]
    dev: list[Example]
    test: list[Example]


def split_by_seed(
    examples: Sequence[Example],
    shares: tuple[float, float, float] = (0.8, 0.1, 0.1),
    seed: int = 0,
) -> Splits:
    """Parts of about these shares of the examples; the examples of a group stay together.

    A share of 0 gives an empty part; every other part gets at least one group.
    """
    if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
        raise SettingsError(f"shares {shares} must be three numbers from 0 that add up to 1")
    sizes = Counter(example.group for example in examples)
    wanted = [part for part in range(3) if shares[part] > 0]
    if len(sizes) < len(wanted):
        raise DataError(
            f"{len(sizes)} documents cannot be parted in {len(wanted)}, a document stays whole; "
            "give dev and test data of their own"
        )
    order = sorted(sizes, key=lambda group: (_draw(seed, group), group))
    part_of: dict[str, int] = {}
    passed, last = 0, -1
    for rank, group in enumerate(order):
        middle = (passed + sizes[group] / 2) / len(examples)
        passed += sizes[group]
        by_share = sum(1 for part in wanted[1:] if middle > sum(shares[:part]))
        left = len(order) - rank - 1
        # No part may stay empty: enough groups for those to come, and none passed over.
        last = min(max(by_share, len(wanted) - 1 - left), last + 1)
        part_of[group] = wanted[last]
    parts = Splits([], [], [])
    for example in examples:
        parts[part_of[example.group]].append(example)
    return parts


def k_shot(examples: Sequence[Example], k: int, seed: int = 0) -> list[Example]:
    """A few examples that hold at least ``k`` entities of every type, as far as there are any.

    Types are filled from the rarest on, then examples that turned out not to be needed are left
    out again. The order is drawn by the seed too.
    """
    if k < 1:
        raise SettingsError(f"k must be at least 1, got {k}")
    order = sorted(examples, key=lambda e: (_draw(seed, e.id, e.text), e.id, e.text))
    counts = [Counter(entity.label for entity in example.entities) for example in order]
    total = sum(counts, Counter[str]())
    need = {label: min(k, count) for label, count in total.items()}
    chosen: list[int] = []
    have: Counter[str] = Counter()
    for label in sorted(need, key=lambda label: (total[label], label)):
        for i, held in enumerate(counts):
            if have[label] >= need[label]:
                break
            if held[label] and i not in chosen:
                chosen.append(i)
                have += held
    for i in list(chosen):
        if all(have[label] - count >= need[label] for label, count in counts[i].items()):
            chosen.remove(i)
            have -= counts[i]
    return [order[i] for i in sorted(chosen)]


def few(examples: Sequence[Example], count: int, seed: int = 0) -> list[Example]:
    """So many of the examples, in the order they came in; of one seed, fewer are among more.

    Raises DataError where there are not so many.
    """
    if count > len(examples):
        raise DataError(f"{count} examples are asked for, and there are {len(examples)}")
    draws = [(_draw(seed, e.id, e.text), i) for i, e in enumerate(examples)]
    return [examples[i] for i in sorted(i for _, i in sorted(draws)[:count])]


def _draw(seed: int, *names: str) -> bytes:
    """A fixed random draw for these names."""
    text = "\0".join((str(seed), *names))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()
