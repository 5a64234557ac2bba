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
MEASURED = 100e6
"""Weights up to which bases were tried: one of 22 million, and the sample's of 3."""
TABLE = (
    Advice(
        weights=MEASURED,
        examples=math.inf,
        picks={"lr": 8e-4, "ratio": 4.0, "head_lr": 1e-2, "batch_size": 16, "epochs": 10},
    ),
    # Nothing larger was measured here: the recipe's, which are the defaults.
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
    row = next(row for row in TABLE if weights <= row.weights and examples <= row.examples)
    picks = {
        name: value
        for name, value in row.picks.items()
        if getattr(settings, name) == _DEFAULTS[name]
        and (name != "head_lr" or settings.head == "tag")
    }
    said = ", ".join(f"{name} {value:g}" for name, value in picks.items()) or "nothing is left"
    print(f"auto: {said} (for {examples:,} examples and {weights / 1e6:.0f} million weights)")
    return replace(settings, **picks)  # type: ignore[arg-type]
