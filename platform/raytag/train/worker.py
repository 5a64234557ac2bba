"""What one training worker does: load, train, evaluate, and score at the end.

The same code on every worker of a group. Knows the order of things; examples come from the driver,
steps are the loop's, state is the engine's. Does not know Ray, nor where checkpoints lie: who runs
it keeps them. torch.distributed must be set up, if only with one process.
"""

import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from peft import PeftModel
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from raytag import storage
from raytag.model.adapter import (
    AdapterCard,
    Parent,
    begin_from,
    context,
    make_head,
    output_names,
    save_adapter,
    token_limit,
)
from raytag.model.base import Base, find_base, load_model, load_tokenizer, resolve_load_in
from raytag.model.heads import Head
from raytag.model.lora import ParameterGroup, add_adapter, parameter_groups
from raytag.model.tagger import Tagger
from raytag.text.prompt import ceiling
from raytag.text.score import join_examples, score
from raytag.text.spans import Entity, Example
from raytag.train.checkpoint import Checkpoint, Progress
from raytag.train.data import TrainingData
from raytag.train.loop import Loop
from raytag.train.plan import Plan
from raytag.train.settings import FinetuneSettings

JOINED = 4
"""Sentences per document where the data does not say which belong together."""


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Everything a worker needs, sent by the driver."""

    settings: FinetuneSettings
    base: Base
    """As the driver found it, perhaps without its weights."""
    zero: int
    """The stage, decided."""
    data: TrainingData
    run: str
    """Fingerprint of base, data and settings: whose checkpoints these are."""
    base_fingerprint: str
    parent: Parent | None = None
    """What the adapter begins from, if not from nothing."""

    @property
    def checkpoints(self) -> str:
        return storage.join(self.settings.output, "checkpoints", self.run[:16])


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What training came to, from the first worker to the driver."""

    adapter: Mapping[str, bytes]
    """The adapter's files by name, without card and README."""
    card: AdapterCard
    predictions: Mapping[str, Sequence[Sequence[Entity]]]
    """By split: dev, test, test_documents, and untrained where it was asked for."""
    lost: Mapping[str, int]
    """Gold entities the head cannot express, by split."""
    progress: Progress
    seconds: Mapping[str, float]
    peak_memory_bytes: int
    device: str
    workers: int
    zero: int


class Worker:
    """One worker's part of a job, in the order of its methods; all workers call them together.

    ``clock`` is told the phases of what it does.
    """

    def __init__(self, job: TrainJob, device: torch.device, clock: "Phases") -> None:
        self._job = job
        self._data = job.data
        self._settings = job.settings
        self._device = device
        self._clock = clock
        self._rank, self._workers = dist.get_rank(), dist.get_world_size()
        self._untrained: list[list[Entity]] | None = None

    def load(self, base: Base) -> None:
        """Load the base, as it lies on this host, and put the adapter and the head on it."""
        settings = self._settings
        self._base = base
        torch.manual_seed(settings.seed)
        model = load_model(
            self._base,
            settings.head,
            output_names(settings.head, self._data.labels),
            settings.load_in,
            # ZeRO-3 parts the base among the workers, none of which need hold it whole.
            torch.device("cpu") if self._job.zero == 3 else self._device,
        )
        self._limit = token_limit(model)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        self._model = self.adapted(model)
        if settings.dropout == 0:
            # "No dropout" means none, the base's own included.
            for module in self._model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        self._tokenizer = load_tokenizer(self._base.path)
        self._head: Head = make_head(
            settings.head,
            self._tokenizer,
            self._data.labels,
            settings.instruction,
            context(model),
        )
        self._asked: nn.Module = self._model

    def adapted(self, model: PreTrainedModel) -> nn.Module:
        """The model with what is trained of it: a fresh adapter, or its parent's."""
        adapted = add_adapter(model, self._settings.head, self._settings.lora)
        if self._job.parent is not None:
            begin_from(adapted, self._job.parent, self._data.labels)
        return adapted

    def groups(self) -> list[ParameterGroup]:
        """What is trained, by the rates it is trained at."""
        return parameter_groups(self._model, self._settings.lora_plus)

    def prepare(self, saved: Checkpoint | None = None) -> None:
        """Encode the examples, and put the loop around the model, where ``saved`` left off."""
        if self._settings.score_untrained:
            self._clock.phase("score untrained")
            # An adapter without a parent begins as nothing: this is the base itself.
            self._untrained = self.predict(self._data.test)
        self._clock.phase("prepare")
        self._progress = saved.progress if saved else Progress()
        self._loop = Loop(
            self._model,
            self._head,
            self._data.train,
            self._settings,
            groups=self.groups(),
            zero=self._job.zero,
            limit=self._limit,
            first=self._progress.step,
            state=saved.state if saved else None,
        )
        self._engine = self._loop.engine
        self._asked = self._engine.model
        self._best: Mapping[str, Tensor] = saved.best if saved else {}

    def train(self) -> Iterator[dict[str, Any]]:
        """Take the steps that are left, yielding the record of each.

        It holds ``dev_f1`` where dev was asked, and says whether it is the ``last``.
        """
        self._clock.phase("train")
        settings, plan, progress = self._settings, self._loop.plan, self._progress
        before = progress.seconds
        begun = time.monotonic()
        last = progress.stopped_early or progress.step == plan.total_steps
        while not last:
            since = time.monotonic()
            record = self._loop.take(progress.step)
            progress.stepping += time.monotonic() - since
            progress.step += 1
            progress.seconds = record["seconds"] = before + time.monotonic() - begun
            if judged(self._data.dev) and due(progress.step, settings.eval_every, plan):
                record["dev_f1"] = self._evaluate()
            progress.history.append(record)
            last = progress.stopped_early or progress.step == plan.total_steps
            yield {**record, "total_steps": plan.total_steps, "last": last}

    def checkpoint(self) -> Checkpoint | None:
        """What another worker goes on from; None where it is not time for one."""
        if not due(self._progress.step, self._settings.checkpoint_every, self._loop.plan):
            return None
        state = self._engine.state()
        return Checkpoint(progress=self._progress, state=state, best=self._best or state.weights)

    def _evaluate(self) -> float:
        """Dev F1 now; remembers the weights if they are the best so far."""
        gold = [example.entities for example in self._data.dev]
        found = score(gold, self.predict(self._data.dev))
        scored = torch.tensor(found.f1, dtype=torch.float64, device=self._device)
        # What follows is done by all workers or none, so all must go by one number.
        dist.broadcast(scored, 0)
        f1 = float(scored)
        if self._progress.judge(f1, self._settings.patience):
            self._best = self._engine.weights()
        return f1

    def predict(self, examples: Sequence[Example]) -> list[list[Entity]]:
        """Entities of all examples, the same on every worker.

        Workers share the work, but under ZeRO-3, where the model can only be called by all of
        them at once, each does all of it.
        """
        tagger = tagger_for(self._job, self._asked, self._head, self._limit)
        texts = [example.text for example in examples]
        if self._workers == 1 or self._job.zero == 3:
            return tagger.tag(texts)
        mine = tagger.tag(texts[self._rank :: self._workers])
        shares: list[list[list[Entity]] | None] = [None] * self._workers
        dist.all_gather_object(shares, mine)
        merged: list[list[Entity]] = [[] for _ in texts]
        for rank, share in enumerate(shares):
            merged[rank :: self._workers] = share or []
        return merged

    def keep_best(self) -> Mapping[str, Tensor]:
        """Go back to the best weights, or the last where dev judged none; what they are."""
        self._clock.phase("score")
        weights = self._best or self._engine.weights()
        self._engine.set_weights(weights)
        return weights

    def outcome(self) -> Outcome | None:
        """What training came to, with the best weights; on the first worker alone."""
        weights = self.keep_best()
        job = self._job
        predictions = predictions_of(job, self.predict, self._untrained)
        peak = torch.tensor(peak_memory(self._device), dtype=torch.float64, device=self._device)
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        self._clock.phase("save")
        if self._rank:
            return None
        card = card_for(job)
        model = self._model
        assert isinstance(model, PeftModel)
        return Outcome(
            adapter=adapter_files(model, weights, self._base, self._tokenizer, card),
            card=card,
            predictions=predictions,
            lost={
                name: count_lost(self._head, examples) for name, examples in job.data.splits.items()
            },
            progress=self._progress,
            seconds=self._clock.seconds(),
            peak_memory_bytes=int(peak),
            device=device_name(self._device),
            workers=self._workers,
            zero=job.zero,
        )

    def close(self) -> None:
        """Let go of the engine, for another worker of this process."""
        self._engine.close()


def predictions_of(
    job: TrainJob,
    predict: Callable[[Sequence[Example]], list[list[Entity]]],
    untrained: list[list[Entity]] | None,
) -> dict[str, list[list[Entity]]]:
    """As an Outcome has them, with the weights that ``predict`` uses now."""
    predictions = {"dev": predict(job.data.dev), "test": predict(job.data.test)}
    predictions["test_documents"] = predict(join_examples(job.data.test, JOINED))
    if untrained is not None:
        predictions["untrained"] = untrained
    return predictions


def base_here(job: TrainJob, *, looks: bool) -> Base:
    """The job's base, on this host; whether a folder holds the driver's very base is only known to
    who ``looks``. Raises as :func:`~raytag.model.base.find_base`."""
    base = job.base
    if base.revision is not None:
        return find_base(base.name, base.revision)
    name = str(base.path) if base.path.is_dir() else base.name
    return find_base(name, job.base_fingerprint if looks else None)


def due(step: int, every: int, plan: Plan) -> bool:
    """Whether after ``step`` steps it is time for what is done every so many, 0 for an epoch."""
    return step % (every or plan.steps_per_epoch) == 0 or step == plan.total_steps


def judged(dev: Sequence[Example]) -> bool:
    """Whether dev can tell one set of weights from another."""
    return any(example.entities for example in dev)


def tagger_for(job: TrainJob, model: nn.Module, head: Head, limit: int) -> Tagger:
    """What a job's model is scored by; ``limit`` is the most tokens it takes."""
    return Tagger(
        model=model,
        head=head,
        window=job.data.window,
        max_tokens=limit,
        batch_tokens=job.settings.batch_tokens,
        threshold=job.settings.threshold,
    )


def count_lost(head: Head, examples: Sequence[Example]) -> int:
    """Gold entities that the head cannot express, those of labels it never saw included."""
    known = [
        Example(e.id, e.text, tuple(x for x in e.entities if x.label in head.labels))
        for e in examples
    ]
    foreign = sum(len(e.entities) for e in examples) - sum(len(e.entities) for e in known)
    if head.name == "generate":
        return foreign + sum(ceiling(known).lost.values())
    return foreign + sum(head.encode(example).lost for example in known)


def card_for(job: TrainJob) -> AdapterCard:
    settings = job.settings
    return AdapterCard(
        head=settings.head,
        labels=job.data.labels,
        base=settings.base,
        revision=settings.revision,
        base_fingerprint=job.base_fingerprint,
        load_in=resolve_load_in(settings.load_in),
        window=job.data.window,
        instruction=settings.instruction,
        parent=job.parent.lineage if job.parent else None,
    )


def adapter_files(
    model: PeftModel,
    weights: Mapping[str, Tensor],
    base: Base,
    tokenizer: PreTrainedTokenizerBase,
    card: AdapterCard,
) -> dict[str, bytes]:
    """What ``save_adapter`` writes, by file name."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder)
        save_adapter(path, model, weights, base, tokenizer, card)
        return {file.name: file.read_bytes() for file in path.iterdir()}


class Phases:
    """Wall-clock seconds by phase; the first one began when the driver said."""

    def __init__(self, started: float, first: str = "schedule workers") -> None:
        self._seconds: dict[str, float] = {}
        self._name = first
        self._since = started

    def phase(self, name: str) -> None:
        now = time.time()
        self._seconds[self._name] = self._seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now

    def seconds(self) -> dict[str, float]:
        self.phase(self._name)
        return dict(self._seconds)


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
