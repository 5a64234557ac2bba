"""The steps of training on one worker: examples, plan and engine put together.

Knows how a step's batch becomes losses and what a step reports. Does not know Ray, evaluation
or checkpoints: whoever runs the steps decides when to stop, score and save. torch.distributed
must be set up, if only with one process.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytag.errors import ModelError
from raytag.model.base import resolve_load_in
from raytag.model.heads import Encoded, Head, TooLong
from raytag.model.lora import ParameterGroup
from raytag.text.spans import Example
from raytag.text.windows import split
from raytag.train.engine import Engine, EngineSettings, TrainedState
from raytag.train.plan import Plan, rate_at
from raytag.train.settings import FinetuneSettings


class Loop:
    """A job's steps, to be taken in order from ``first`` on.

    ``groups`` are what is trained of the model, and at which rates.
    ``limit`` is the most tokens the model takes: longer examples are trained on in windows.
    ``state`` is what another loop of the same job had before step ``first``.
    """

    def __init__(
        self,
        model: nn.Module,
        head: Head,
        examples: Sequence[Example],
        settings: FinetuneSettings,
        *,
        groups: Sequence[ParameterGroup],
        zero: int,
        limit: int | None = None,
        first: int = 0,
        state: TrainedState | None = None,
    ) -> None:
        self._head = head
        self._settings = settings
        self._rank, self._workers = dist.get_rank(), dist.get_world_size()
        self._rows = [row for example in examples for row in encoded(head, example, limit)]
        self._labelled = [row.labelled for row in self._rows]
        self.plan = Plan(
            lengths=[len(row.input_ids) for row in self._rows],
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=settings.seed,
        )
        self.engine = Engine(
            model,
            groups,
            EngineSettings(
                zero=zero,  # type: ignore[arg-type]
                offload=settings.offload,
                bf16=resolve_load_in(settings.load_in) != "fp32",
                clip=settings.clip,
            ),
            state.weights if state else None,
        )
        if state:
            self.engine.restore(state, self._losses(max(0, first - 1))[0])

    def take(self, step: int) -> dict[str, Any]:
        """Take the step (counted from 0), with all workers; the same record on each of them."""
        settings, plan = self._settings, self.plan
        # Dropout depends on seed, step and worker only, so there is no random state to save.
        torch.manual_seed(hash((settings.seed, step, self._rank)) % 2**63)
        self.engine.model.train()
        scale = rate_at(step, plan.total_steps, settings.warmup, settings.schedule)
        loss, norm = self.engine.step(self._losses(step), scale)
        summed = torch.tensor(loss, dtype=torch.float64, device=self.engine.device)
        dist.all_reduce(summed)
        return {
            "step": step + 1,
            "epoch": (step + 1) / plan.steps_per_epoch,
            "loss": float(summed),
            "gradient_norm": norm,
            "examples": len(plan.batch(step)),
            "rates": self.engine.rates(),
        }

    def _losses(self, step: int) -> list[Callable[[nn.Module], Tensor]]:
        """This worker's micro-batches of a step, as losses that share the step's count."""
        plan = self.plan
        count = sum(self._labelled[i] for i in plan.batch(step))
        shares = plan.shares(step, self._workers, self._settings.batch_tokens)[self._rank]
        return [self._loss_of(micro, max(1, count)) for micro in shares]

    def _loss_of(self, micro: Sequence[int], count: int) -> Callable[[nn.Module], Tensor]:
        rows = [self._rows[i] for i in micro]
        if not rows:
            # A worker without examples still calls the model, for ZeRO's sake, and adds nothing.
            idle = self._rows[0]
            rows = [Encoded(idle.input_ids[-2:], idle.targets[-2:])]
        weight = 1.0 / count if micro else 0.0
        batch = self._head.collate(rows).to(self.engine.device)
        return lambda model: self._head.loss(model, batch) * weight


def encoded(head: Head, example: Example, limit: int | None) -> list[Encoded]:
    """The example as rows of at most ``limit`` tokens: itself, or windows of it.

    A window's row has the entities that lie whole in the window's core.
    """
    size = len(example.text)
    while True:
        try:
            rows = [head.encode(piece) for piece in _pieces(example, size)]
        except TooLong:
            rows = None
        if rows is not None and (limit is None or all(len(r.input_ids) <= limit for r in rows)):
            return rows
        if size < 2:
            raise ModelError(f"example {example.id!r}: {limit} tokens hold not even one character")
        size //= 2


def _pieces(example: Example, size: int) -> list[Example]:
    if size >= len(example.text):
        return [example]
    return [
        Example(
            f"{example.id}:{window.core_start}",
            example.text[window.core_start : window.core_end],
            tuple(
                entity.shifted(-window.core_start)
                for entity in example.entities
                if window.core_start <= entity.start and entity.end <= window.core_end
            ),
        )
        for window in split(example.text, size)
    ]
