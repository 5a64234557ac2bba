"""What can be chosen about a model: its head, its precision, its adapter, its rates.

Imports no torch, so that a mistake in a setting is said at once.
"""

from dataclasses import dataclass
from typing import Literal

from raytag.errors import SettingsError

HeadName = Literal["tag", "generate"]
LoadIn = Literal["auto", "fp32", "bf16", "8bit", "4bit"]
MergedDtype = Literal["fp32", "bf16"]


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Shape of the adapter."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.05
    targets: tuple[str, ...] = ()
    """Module names to adapt; none given means every linear layer of attention and MLP."""

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise SettingsError(f"rank must be at least 1, not {self.rank}")
        if self.alpha <= 0:
            raise SettingsError(f"alpha must be above 0, not {self.alpha}")
        if not 0 <= self.dropout < 1:
            raise SettingsError(f"dropout must be in [0, 1), not {self.dropout}")


@dataclass(frozen=True, kw_only=True)
class LoraPlusSettings:
    """Learning rates and decay. ``ratio=1`` is plain LoRA."""

    lr: float = 1e-4
    """Rate of A."""
    ratio: float = 16.0
    """B's rate divided by A's (LoRA+ section 4.2; the LLM-NER recipe takes 16)."""
    embedding_lr: float = 1e-6
    """Rate of both factors of an adapted embedding (the LoRA+ authors' code)."""
    head_lr: float = 1e-3
    """Rate of the tagging head's own layer."""
    weight_decay: float = 0.0
    """Decoupled decay of matrices; vectors never decay."""

    def __post_init__(self) -> None:
        for name in ("lr", "ratio", "embedding_lr", "head_lr"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"{name} must be above 0, not {getattr(self, name)}")
        if self.weight_decay < 0:
            raise SettingsError(f"weight_decay must not be negative, got {self.weight_decay}")


@dataclass(frozen=True, kw_only=True)
class MergeSettings:
    """Make one model of an adapter and its base, in full precision, on this machine."""

    adapter: str
    """The adapter: a folder, local or s3://, or tenant/domain@version."""
    output: str
    """Folder for the merged model, local or s3://; it must be empty."""
    registry: str = "registry"
    """The registry that versions are in, a folder or s3:// prefix."""
    base: str | None = None
    """Where the base model is, if elsewhere than the adapter's card says."""
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the merged weights; auto is that of the base's own files."""
    data: str | None = None
    """Annotated text, such as the dev set, on which both are scored and must agree."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """Where the model is checked, in fp32; auto takes a GPU if there is one."""

    def __post_init__(self) -> None:
        for name in ("adapter", "output"):
            if not getattr(self, name):
                raise SettingsError(f"{name} is empty; name a folder, local or s3://")
