"""Dropout at the price of what it drops.

torch's own draws a random number for every element, which on a CPU is a fifth of the time of a
LoRA training step: seven adapted layers a block each have a dropout of their own. Here the gaps
between dropped elements are drawn, which are geometric when every element is dropped
independently (Batagelj and Brandes 2005, doi 10.1103/PhysRevE.71.036113, section II): the same
distribution from p draws per element, and the elements that stay need no mask.
"""

from math import sqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

MOST_SPARSE = 0.2
"""Above this share a draw per element is cheaper."""


class SparseDropout(nn.Dropout):
    """``nn.Dropout`` to the word, except for which elements a seed drops on a CPU."""

    def forward(self, input: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return input
        if input.device.type != "cpu" or self.p > MOST_SPARSE:
            return super().forward(input)
        dropped: Tensor = _Drop.apply(input, self.p)  # type: ignore[no-untyped-call]
        return dropped


def use_sparse_dropout(model: nn.Module) -> None:
    """Put it in the place of every ``nn.Dropout`` of the model, peft's included."""
    found = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) is nn.Dropout and not child.inplace
    ]
    for parent, name, child in found:
        parent.add_module(name, SparseDropout(child.p).train(child.training))


class _Drop(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, input: Tensor, p: float) -> Tensor:
        dropped = dropped_places(input.numel(), p)
        ctx.save_for_backward(dropped)
        ctx.scale = 1 / (1 - p)
        return _without(input, dropped, ctx.scale)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (dropped,) = ctx.saved_tensors
        return _without(gradient, dropped, ctx.scale), None


def _without(values: Tensor, dropped: Tensor, scale: float) -> Tensor:
    # Places count in the order of a contiguous tensor, whatever the layout of this one.
    kept = values.contiguous() * scale
    kept.view(-1).index_fill_(0, dropped, 0.0)
    return kept


def dropped_places(count: int, p: float) -> Tensor:
    """Which of ``count`` elements are dropped, ascending, int64, each with probability ``p``."""
    # Six standard deviations more than the mean: a second draw is all but never needed.
    draws = int(count * p + 6 * sqrt(count * p)) + 8
    places = _gaps(draws, p).cumsum_(0).sub_(1)
    while int(places[-1]) < count:
        places = torch.cat((places, places[-1] + _gaps(draws, p).cumsum_(0)))
    return places[: int(torch.searchsorted(places, count))]


def _gaps(count: int, p: float) -> Tensor:
    return torch.empty(count, dtype=torch.int64).geometric_(p)
