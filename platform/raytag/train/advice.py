"""Rates, batch and epochs by the number of examples and the size of the base: what ``auto`` picks.

Knows the table of docs/guidance.md, where the figures behind each row stand; a test keeps the two
in step. Not what a job is, nor how it runs.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from raytag.model.base import Base
from raytag.train.memory import laid_out
from raytag.train.settings import FinetuneSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class Advice:
    """Settings for bases and numbers of examples up to these."""

    weights: float
    """Of the base, all of them."""
    examples: float
    """To train on."""
    picks: Mapping[str, float]


_DEFAULTS = {item.name: item.default for item in fields(FinetuneSettings)}
PICKED = ("lr", "ratio", "head_lr", "batch_size", "epochs")
"""What ``auto`` decides, where it was left at its default."""
SMALL = 100e6
"""Weights of a base up to which the rates are taken that one of 22 million learnt best with; the
sample's, of 3 million, learns well with them too."""
TABLE = (
    # Measured with the tag head.
    Advice(
        weights=SMALL,
        examples=math.inf,
        picks={"lr": 8e-4, "ratio": 4.0, "head_lr": 1e-2, "batch_size": 16, "epochs": 10},
    ),
    # Nothing larger was measured, nor the generate head: the recipe's, which are the defaults.
    Advice(
        weights=math.inf,
        examples=math.inf,
        picks={name: _DEFAULTS[name] for name in PICKED},  # type: ignore[misc]
    ),
)


def advised(settings: FinetuneSettings, examples: int, base: Base) -> FinetuneSettings:
    """The settings with what the table says for so many examples and this base, in place of what
    was left at its default; as they are without ``auto``. Says what it picked."""
    if not settings.auto:
        return settings
    weights = laid_out(base.config).num_parameters()
    rows = TABLE if settings.head == "tag" else TABLE[-1:]
    row = next(row for row in rows if weights <= row.weights and examples <= row.examples)
    picks = {
        name: value
        for name, value in row.picks.items()
        if getattr(settings, name) == _DEFAULTS[name]
    }
    said = ", ".join(f"{name} {value:g}" for name, value in picks.items()) or "nothing is left"
    print(
        f"auto: {said} (for {examples:,} examples, {weights / 1e6:.0f} million weights and the "
        f"{settings.head} head)"
    )
    return replace(settings, **picks)  # type: ignore[arg-type]
