"""LoRA on a base model, and the LoRA+ rates of its parameter groups.

Knows which layers get an adapter and which parameter moves at which rate. Builds no optimizer
state and runs no step.

LoRA: Hu et al. 2021 (arXiv 2106.09685). LoRA+: Hayou, Ghosh and Yu 2024 (arXiv 2402.12354),
section 4: B's rate is a multiple of A's. The tagging head is neither A nor B: it has a rate
of its own, so that LoRA and LoRA+ can be compared with the head held equal.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from raytag.errors import ModelError
from raytag.model.dropout import use_sparse_dropout
from raytag.model.settings import HeadName, LoraPlusSettings, LoraSettings


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share a rate and a decay. Never empty."""

    name: str
    lr: float
    weight_decay: float
    parameters: tuple[nn.Parameter, ...]

    def to_optimizer(self) -> dict[str, Any]:
        """The group as torch's optimizers and DeepSpeed take it."""
        return {
            "name": self.name,
            "params": list(self.parameters),
            "lr": self.lr,
            "weight_decay": self.weight_decay,
        }


def add_adapter(model: PreTrainedModel, head: HeadName, settings: LoraSettings) -> PeftModel:
    """The model with a fresh adapter; only the adapter (and a tagging head) can be trained.

    A's weights come from torch's default generator: seed it first. Raises ModelError where a
    named target is not in the model.
    """
    targets = settings.targets or linear_targets(model)
    config = LoraConfig(
        task_type=TaskType.TOKEN_CLS if head == "tag" else TaskType.CAUSAL_LM,
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # any number will do
        lora_dropout=settings.dropout,
        target_modules=list(targets),
    )
    try:
        adapted: PeftModel = get_peft_model(model, config)
    except ValueError as exc:
        raise ModelError(f"LoRA targets {', '.join(targets)}: {exc}") from exc
    use_sparse_dropout(adapted)
    return adapted


def linear_targets(model: PreTrainedModel) -> tuple[str, ...]:
    """Names (last path segments) of the linear layers inside the model's repeated blocks.

    peft's own ``all-linear`` raises for a tagging head on a decoder, and would adapt an
    encoder's pooler, which nothing here uses.
    """
    names = {
        path.rpartition(".")[2]
        for path, module in model.base_model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and any(p.isdigit() for p in path.split("."))
    }
    if not names:
        raise ModelError(f"{type(model).__name__} has no linear layers to adapt; name --targets")
    return tuple(sorted(names))


def parameter_groups(model: nn.Module, settings: LoraPlusSettings) -> list[ParameterGroup]:
    """Every trainable parameter in exactly one group, in the order the model names them.

    Raises ModelError for a trainable parameter that is of no known kind, rather than give it
    a rate by accident.
    """
    rates = {
        "A": settings.lr,
        "B": settings.lr * settings.ratio,
        "embedding": settings.embedding_lr,
        "head": settings.head_lr,
    }
    return grouped(model, parameter_kind, rates, settings.weight_decay)


def grouped(
    model: nn.Module, kind_of: Callable[[str], str], rates: Mapping[str, float], weight_decay: float
) -> list[ParameterGroup]:
    """The trainable parameters by the kinds that ``kind_of`` gives their names, each kind at its
    rate; only matrices decay."""
    members: dict[tuple[str, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # ZeRO-3 leaves an empty local tensor and keeps the true shape aside.
            decays = len(getattr(parameter, "ds_shape", parameter.shape)) > 1
            members.setdefault((kind_of(name), decays), []).append(parameter)
    return [
        ParameterGroup(
            name=kind if decays else f"{kind}, no decay",
            lr=rates[kind],
            weight_decay=weight_decay if decays else 0.0,
            parameters=tuple(parameters),
        )
        for (kind, decays), parameters in members.items()
    ]


def parameter_kind(name: str) -> str:
    """``A``, ``B``, ``embedding`` or ``head``, by peft's naming."""
    parts = name.split(".")
    if "lora_embedding_A" in parts or "lora_embedding_B" in parts:
        return "embedding"
    if "lora_A" in parts:
        return "A"
    if "lora_B" in parts:
        return "B"
    if "modules_to_save" in parts:
        return "head"
    raise ModelError(f"trainable parameter {name} is neither LoRA nor a tagging head")


def make_optimizer(groups: list[ParameterGroup]) -> torch.optim.AdamW:
    """AdamW over the groups, betas 0.9 and 0.999, as the recipe has it, one kernel a group."""
    return torch.optim.AdamW([group.to_optimizer() for group in groups], fused=True)
