"""An adapter for inference alone: its tensors as a forward pass reads them, from peft's files.

Knows what plain LoRA is and refuses what is more. Does not know a base: what is to be in a file,
and in which shapes, it is told.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from raytag.errors import ModelError

CONFIG = "adapter_config.json"
_OWN_SETTINGS = frozenset(
    {
        *("task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision"),
        *("inference_mode", "r", "lora_alpha", "lora_dropout", "target_modules"),
        *("modules_to_save", "fan_in_fan_out"),
    }
)
"""What plain LoRA's settings may say of an adapter; all others must be peft's defaults."""


@dataclass(frozen=True, eq=False, slots=True)
class FrozenAdapter:
    """One adapter's tensors for inference, by layer: what a forward pass reads and nothing else.

    ``a`` has shapes (rank, in_features), ``b`` (out_features, rank) and is scaled already.
    """

    a: Sequence[Tensor]
    b: Sequence[Tensor]
    output: tuple[Tensor, Tensor | None] | None = None
    """Weight and bias of its output layer; None where the base's own is used."""

    @property
    def rank(self) -> int:
        return self.a[0].shape[0]

    @property
    def nbytes(self) -> int:
        """Of all its tensors."""
        return sum(t.nbytes for t in (*self.a, *self.b, *(self.output or ())) if t is not None)

    def frozen(self) -> "FrozenAdapter":
        return self


@dataclass(frozen=True)
class PlainLora:
    """What an adapter's settings say that its tensors do not."""

    rank: int
    alpha: float
    targets: tuple[str, ...]


def read_config(path: Path) -> PlainLora:
    """From peft's file. Raises ModelError for LoRA with anything to it that is not packed."""
    try:
        said = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as exc:
        raise ModelError(f"{path} cannot be read: {exc}") from exc
    if not isinstance(said, dict) or said.get("peft_type") != "LORA":
        raise ModelError(f"{path} is not of a LoRA adapter")
    usual = _usual_settings()
    more = sorted(
        name
        for name, value in said.items()
        if name not in _OWN_SETTINGS and value != usual.get(name) and (value or name in usual)
    )
    if more:
        raise ModelError(
            f"{path} is of more than plain LoRA ({', '.join(more)}), which is all that is packed"
        )
    rank, alpha, targets = (said.get(name) for name in ("r", "lora_alpha", "target_modules"))
    if not (isinstance(rank, int) and rank > 0):
        raise ModelError(f"{path} is not whole: its rank is {rank!r}")
    if not (isinstance(alpha, int | float) and alpha > 0 and isfinite(alpha)):
        raise ModelError(f"{path} is not whole: its lora_alpha is {alpha!r}")
    if not (isinstance(targets, list) and all(isinstance(name, str) for name in targets)):
        raise ModelError(f"{path} names no target_modules one by one: {targets!r}")
    return PlainLora(rank, alpha, tuple(targets))


@lru_cache(maxsize=1)
def _usual_settings() -> Mapping[str, Any]:
    usual: dict[str, Any] = LoraConfig().to_dict()  # type: ignore[no-untyped-call]
    return usual


def read_tensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], device: torch.device, dtype: torch.dtype
) -> list[Tensor]:
    """The file's tensors in the order of ``shapes``, in one stretch of memory.

    Raises ModelError for a file that holds others than these, or numbers that are none.
    """
    try:
        stored = load_file(path)
    except (OSError, ValueError, SafetensorError) as exc:
        raise ModelError(f"{path} cannot be read: {exc}") from exc
    if odd := sorted(stored.keys() ^ shapes.keys()):
        raise ModelError(f"{path} is not whole, or no adapter of this base ({odd[0]})")
    for name, shape in shapes.items():
        tensor = stored[name]
        if tuple(tensor.shape) != shape or not tensor.is_floating_point():
            raise ModelError(
                f"{path}: {name} is {tensor.dtype} of shape {tuple(tensor.shape)}, not numbers of "
                f"shape {shape}"
            )
    whole = torch.cat([stored[name].flatten().float() for name in shapes])
    if not whole.isfinite().all():
        raise ModelError(f"{path} holds weights that are not numbers (NaN or infinite)")
    parts = whole.to(device, dtype).split_with_sizes([stored[name].numel() for name in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes.values(), strict=True)]
