"""Several adapters trained in one process on one resident base, a step of all at a time.

Each member keeps what its own job would have: examples, plan, rates, optimizer, random states,
clipping, evaluations, and its own end. They share the base and its forward and backward passes.
Step k of a member is its own plan's batch k, in the micro-batches it would have alone; one pass
takes at most one of each member. Knows no Ray and no other workers. For adapters that are small
and data that are few: nothing is checkpointed.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from raytag.errors import ModelError, RaytagError, SettingsError
from raytag.model.adapter import Parent
from raytag.model.base import resolve_load_in
from raytag.model.heads import IGNORED, Batch, Encoded
from raytag.model.lora import make_optimizer, parameter_groups
from raytag.model.packed import PackedModel, RandomState, Share
from raytag.text.score import score
from raytag.text.spans import Entity, Example
from raytag.train.checkpoint import Progress
from raytag.train.data import TrainingData
from raytag.train.loop import encoded
from raytag.train.plan import Plan, rate_at
from raytag.train.settings import FinetuneSettings
from raytag.train.worker import (
    Outcome,
    Phases,
    TrainJob,
    adapter_files,
    card_for,
    count_lost,
    device_name,
    due,
    judged,
    peak_memory,
    predictions_of,
    tagger_for,
)

PASS_PRICE = 64
"""What a pass costs before its first token, in tokens: Python and small kernels, on a CPU."""

OnStep = Callable[[int, Mapping[str, Any]], None]


@dataclass(frozen=True, kw_only=True)
class Member:
    """An adapter to train: what a job of its own is told, and its examples."""

    settings: FinetuneSettings
    data: TrainingData
    parent: Parent | None = None
    """What the adapter begins from, if not from nothing."""


def train_pack(
    packed: PackedModel,
    members: Sequence[Member],
    *,
    on_step: OnStep | None = None,
    pass_tokens: int = 4096,
) -> list[Outcome | RaytagError]:
    """Train all members to their ends; what became of each, in their order.

    What keeps one member from being trained is its result, and no other's. ``on_step`` is given
    a member's index and the record of its step. ``pass_tokens`` bounds one forward pass over
    several members, padding included; one member's micro-batch always goes in one.
    """
    results: dict[int, Outcome | RaytagError] = {}
    running: list[_Trainee] = []
    for index, member in enumerate(members):
        try:
            running.append(_Trainee(index, packed, member))
        except RaytagError as exc:
            results[index] = exc
    while running:
        _step(packed, running, pass_tokens)
        for trainee in list(running):
            try:
                record = trainee.finish_step()
                if on_step is not None:
                    on_step(trainee.index, record)
                if trainee.done:
                    results[trainee.index] = trainee.outcome()
            except RaytagError as exc:
                results[trainee.index] = exc
            if trainee.index in results:
                running.remove(trainee)
    return [results[index] for index in range(len(members))]


class _Trainee:
    """A member in training."""

    def __init__(self, index: int, packed: PackedModel, member: Member) -> None:
        self.index = index
        self._packed, self._settings, self._data = packed, member.settings, member.data
        self._clock = Phases(time.time(), "prepare")
        _check(packed, member.settings)
        settings, data = member.settings, member.data
        self._job = TrainJob(
            settings=settings,
            data=data,
            base=packed.base,
            zero=0,
            run="",
            base_fingerprint=packed.fingerprint,
            parent=member.parent,
        )
        self.head = packed.make_head(data.labels, settings.instruction)
        self._rows = [row for e in data.train for row in encoded(self.head, e, packed.limit)]
        self._plan = Plan(
            lengths=[len(row.input_ids) for row in self._rows],
            batch_size=settings.batch_size,
            epochs=settings.epochs,
            seed=settings.seed,
        )
        self._adapter = packed.fresh(data.labels, settings.lora, settings.seed, member.parent)
        groups = parameter_groups(self._adapter, settings.lora_plus)
        self._rates = {group.name: group.lr for group in groups}
        self._optimizer = make_optimizer(groups)
        self._progress = Progress()
        self._best: dict[str, Tensor] = {}
        self._untrained: list[list[Entity]] | None = None
        if settings.score_untrained:
            self._clock.phase("score untrained")
            self._untrained = self._predict(data.test)
        self._clock.phase("train")
        self._begun = time.monotonic()

    @property
    def done(self) -> bool:
        progress = self._progress
        return progress.stopped_early or progress.step == self._plan.total_steps

    def begin_step(self) -> list["_Micro"]:
        """Its micro-batches of the step, in the order in which they are to be taken."""
        step, plan, settings = self._progress.step, self._plan, self._settings
        self._optimizer.zero_grad()
        self._loss, self.seconds = 0.0, 0.0
        # As Loop seeds its first worker.
        seed = hash((settings.seed, step, 0)) % 2**63
        random = RandomState(seed, self._packed.device)
        count = max(1, sum(self._rows[i].labelled for i in plan.batch(step)))
        (micros,) = plan.shares(step, 1, settings.batch_tokens)
        return [_Micro(self, [self._rows[i] for i in micro], count, random) for micro in micros]

    def share(self, micro: "_Micro") -> Share:
        return Share(self._adapter, len(micro.rows), micro.width, micro.random)

    def add_loss(self, loss: float) -> None:
        self._loss += loss

    def finish_step(self) -> dict[str, Any]:
        """Clip, step, evaluate where it is time; the step's record, as Loop and Worker make it."""
        settings, plan, progress = self._settings, self._plan, self._progress
        since = time.monotonic()
        if not math.isfinite(self._loss):
            raise ModelError(
                f"the loss was not a number at step {progress.step + 1}; lower the rates, or look "
                "at the data"
            )
        scale = rate_at(progress.step, plan.total_steps, settings.warmup, settings.schedule)
        for group in self._optimizer.param_groups:
            group["lr"] = self._rates[group["name"]] * scale
        norm = nn.utils.clip_grad_norm_(self._adapter.parameters(), settings.clip or math.inf)
        self._optimizer.step()
        examples = len(plan.batch(progress.step))
        progress.step += 1
        progress.stepping += self.seconds + time.monotonic() - since
        progress.seconds = time.monotonic() - self._begun
        record: dict[str, Any] = {
            "step": progress.step,
            "epoch": progress.step / plan.steps_per_epoch,
            "loss": self._loss,
            "gradient_norm": float(norm),
            "examples": examples,
            "rates": {name: rate * scale for name, rate in self._rates.items()},
            "seconds": progress.seconds,
        }
        if judged(self._data.dev) and due(progress.step, settings.eval_every, plan):
            found = self._predict(self._data.dev)
            f1 = score([example.entities for example in self._data.dev], found).f1
            if progress.judge(f1, settings.patience):
                self._best = self._adapter.weights()
            record["dev_f1"] = f1
        progress.history.append(record)
        return {**record, "total_steps": plan.total_steps}

    def outcome(self) -> Outcome:
        """What training came to, with the best weights."""
        self._clock.phase("score")
        weights = self._best or self._adapter.weights()
        self._adapter.set_weights(weights)
        job, packed = self._job, self._packed
        predictions = predictions_of(job, self._predict, self._untrained)
        self._clock.phase("save")
        card = card_for(job)
        outline = self._adapter.outline[0]
        return Outcome(
            adapter=adapter_files(outline, weights, packed.base, packed.tokenizer, card),
            card=card,
            predictions=predictions,
            lost={
                name: count_lost(self.head, examples) for name, examples in job.data.splits.items()
            },
            progress=self._progress,
            seconds=self._clock.seconds(),
            peak_memory_bytes=peak_memory(packed.device),
            device=device_name(packed.device),
            workers=1,
            zero=0,
        )

    def _predict(self, examples: Sequence[Example]) -> list[list[Entity]]:
        model = self._packed.asking(self._adapter).eval()
        tagger = tagger_for(self._job, model, self.head, self._packed.limit)
        return tagger.tag([example.text for example in examples])


@dataclass(frozen=True)
class _Micro:
    """One member's micro-batch: rows that go through the model together, the longest first."""

    trainee: _Trainee
    rows: list[Encoded]
    count: int
    """Labelled positions of the whole step, by which the loss is divided."""
    random: RandomState
    """Of the step, so shared by its micro-batches, and drawn on in their order."""
    width: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "width", max(1, *(len(row.input_ids) for row in self.rows)))


def _check(packed: PackedModel, settings: FinetuneSettings) -> None:
    """Raises SettingsError for what cannot be trained in this pack."""
    load_in = resolve_load_in(settings.load_in)
    refused = [
        (settings.base != packed.base.name, f"base {settings.base}, not {packed.base.name}"),
        (settings.revision != packed.base.revision, f"revision {settings.revision} of the base"),
        (settings.head != packed.head, f"the {settings.head} head, not {packed.head}"),
        (load_in != "fp32", f"load_in {load_in}; a pack's base is in fp32"),
        (settings.zero not in ("auto", "0"), f"ZeRO-{settings.zero}; a pack has one worker"),
        (settings.offload, "offload"),
        (settings.gradient_checkpointing, "gradient_checkpointing"),
    ]
    for wrong, what in refused:
        if wrong:
            raise SettingsError(f"this pack cannot train with {what}; run it as a job of its own")


def _step(packed: PackedModel, running: Sequence[_Trainee], pass_tokens: int) -> None:
    """Everyone's gradients of their next step."""
    micros = [trainee.begin_step() for trainee in running]
    for turn in range(max(map(len, micros))):
        due_now = [of_one[turn] for of_one in micros if turn < len(of_one)]
        for together in _passes(due_now, pass_tokens):
            _pass(packed, together)


def _passes(micros: Sequence[_Micro], pass_tokens: int) -> list[list[_Micro]]:
    """The micro-batches in forward passes of at most ``pass_tokens``, like beside like.

    Of all ways to cut them, sorted by width, into passes the one that costs least: what is
    computed on padding, and the price of a pass.
    """
    ordered = sorted(micros, key=lambda micro: micro.width)
    best: list[tuple[float, int]] = [(0.0, 0)]
    for end in range(1, len(ordered) + 1):
        width, rows, found = ordered[end - 1].width, 0, (math.inf, end)
        for start in range(end - 1, -1, -1):
            rows += len(ordered[start].rows)
            if rows * width > pass_tokens and start < end - 1:
                break
            found = min(found, (best[start][0] + rows * width + PASS_PRICE, start))
        best.append(found)
    passes = []
    end = len(ordered)
    while end:
        start = best[end][1]
        passes.append(sorted(ordered[start:end], key=lambda micro: len(micro.rows)))
        end = start
    return passes


def _pass(packed: PackedModel, micros: Sequence[_Micro]) -> None:
    """One forward and backward pass over micro-batches of different members."""
    since = time.monotonic()
    rows = [row for micro in micros for row in micro.rows]
    batch = micros[0].trainee.head.collate(rows).to(packed.device)
    shares = [micro.trainee.share(micro) for micro in micros]
    asked = packed.logits(batch, shares, _kept(batch))
    losses: list[Tensor] = []
    start = 0
    for micro, logits in zip(micros, asked, strict=True):
        own = slice(start, start := start + len(micro.rows))
        columns = slice(-micro.width, None) if packed.head == "generate" else slice(micro.width)
        part = Batch(
            *(t[own, columns] for t in (batch.input_ids, batch.attention_mask, batch.targets))
        )
        losses.append(micro.trainee.head.loss(_Said(logits), part) * (1.0 / micro.count))
    torch.autograd.backward(losses)
    elapsed, tokens = time.monotonic() - since, sum(len(row.input_ids) for row in rows)
    for micro, loss in zip(micros, torch.stack(losses).tolist(), strict=True):
        micro.trainee.add_loss(loss)
        micro.trainee.seconds += elapsed * sum(len(r.input_ids) for r in micro.rows) / tokens


def _kept(batch: Batch) -> int:
    """How many of the last columns hold all that is labelled."""
    columns = (batch.targets != IGNORED).any(dim=0).nonzero()
    return batch.targets.shape[1] - int(columns[0]) if len(columns) else 1


class _Said(nn.Module):
    """A model that has been asked already: for a head to make its loss of."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self._logits = logits

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=self._logits)
