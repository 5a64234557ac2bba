"""What one training worker does: load, train, evaluate, checkpoint, and score at the end.

Runs inside a Ray Train worker group, once per attempt, the same code on every worker. Knows the
order of things; examples come from the driver, steps are the loop's, state is the engine's. A
new attempt goes on from the newest complete checkpoint in storage, whatever was reported.
"""

import resource
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from peft import PeftModel
from ray.actor import ActorHandle
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from raytag import storage
from raytag.errors import RaytagError, StorageError
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
from raytag.model.lora import add_adapter
from raytag.model.tagger import Tagger
from raytag.text.prompt import ceiling
from raytag.text.score import join_examples, score
from raytag.text.spans import Entity, Example
from raytag.train.checkpoint import (
    Checkpoint,
    Progress,
    complete,
    load_checkpoint,
    save_checkpoint,
)
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
    labels: tuple[str, ...]
    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    window: int
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


def train_worker(config: Mapping[str, Any]) -> None:
    """Ray Train's entry: ``config`` holds a reference to the job, and the mailbox.

    A mistake of the user's is sent, so that the driver can say it. Where all workers meet it
    alike it is not raised as well: Ray would try again what cannot work.
    """
    job: TrainJob = ray.get(config["job"])
    mailbox: ActorHandle[Any] = config["mailbox"]
    started: float = config["started"]
    try:
        Worker(job, mailbox if dist.get_rank() == 0 else None, started).run()
    except RaytagError as exc:
        ray.get(mailbox.put.remote("refusal", exc))
        if isinstance(exc, StorageError):
            # One worker's alone: the others wait for it, and another attempt may go well.
            raise


class Worker:
    """One attempt of one worker."""

    def __init__(self, job: TrainJob, mailbox: "ActorHandle[Any] | None", started: float) -> None:
        self._job = job
        self._settings = job.settings
        self._mailbox = mailbox
        self._clock = Phases(started)
        self._rank, self._workers = dist.get_rank(), dist.get_world_size()
        self._first = self._rank == 0

    def run(self) -> None:
        self._clock.phase("start workers")
        self._load_alike()
        self._clock.phase("score untrained")
        # An adapter without a parent begins as nothing: this is the base itself.
        untrained = self._predict(self._job.test) if self._settings.score_untrained else None
        self._clock.phase("prepare")
        self._build()
        self._clock.phase("train")
        self._train()
        self._clock.phase("score")
        self._finish(untrained)

    def _load_alike(self) -> None:
        """Load, or fail on all workers alike: one that waited for the others would wait long."""
        failure: RaytagError | None = None
        try:
            self._load()
        except RaytagError as exc:
            failure = exc
        failures: list[RaytagError | None] = [None] * self._workers
        dist.all_gather_object(failures, failure)
        for met in failures:
            if met is not None:
                raise met

    def _load(self) -> None:
        self._clock.phase("load base")
        settings = self._settings
        self._base = self._find_base()
        self._device = _device()
        torch.manual_seed(settings.seed)
        model = load_model(
            self._base,
            settings.head,
            output_names(settings.head, self._job.labels),
            settings.load_in,
            # ZeRO-3 parts the base among the workers, none of which need hold it whole.
            torch.device("cpu") if self._job.zero == 3 else self._device,
        )
        self._limit = token_limit(model)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
            model.enable_input_require_grads()
        self._model = add_adapter(model, settings.head, settings.lora)
        if self._job.parent is not None:
            begin_from(self._model, self._job.parent, self._job.labels)
        if settings.dropout == 0:
            # "No dropout" means none, the base's own included.
            for module in self._model.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0
        self._tokenizer = load_tokenizer(self._base.path)
        self._head: Head = make_head(
            settings.head,
            self._tokenizer,
            self._job.labels,
            settings.instruction,
            context(model),
        )
        self._asked: nn.Module = self._model

    def _find_base(self) -> Base:
        """The driver's very base, on this host."""
        base = self._job.base
        if base.revision is not None:
            return find_base(base.name, base.revision)
        # A folder of each host's own may hold another model; one of a host's workers looks.
        looks = ray.train.get_context().get_local_rank() == 0
        name = str(base.path) if base.path.is_dir() else base.name
        return find_base(name, self._job.base_fingerprint if looks else None)

    def _build(self) -> None:
        """Encode the examples, and put the loop around the model, where it left off."""
        saved = self._saved()
        self._progress = saved.progress if saved else Progress()
        self._loop = Loop(
            self._model,
            self._head,
            self._job.train,
            self._settings,
            zero=self._job.zero,
            limit=self._limit,
            first=self._progress.step,
            state=saved.state if saved else None,
        )
        self._engine = self._loop.engine
        self._asked = self._engine.model
        self._best: Mapping[str, Tensor] = saved.best if saved else {}

    def _saved(self) -> Checkpoint | None:
        """The newest complete checkpoint, the same one on every worker."""
        chosen: list[str | None] = [None]
        if self._first:
            chosen = [*complete(self._job.checkpoints)[-1:], None][:1]
        dist.broadcast_object_list(chosen)
        if chosen[0] is None:
            return None
        checkpoint = load_checkpoint(chosen[0])
        self._send("note", f"going on from step {checkpoint.progress.step}")
        return checkpoint

    def _train(self) -> None:
        settings, total, progress = self._settings, self._loop.plan.total_steps, self._progress
        before = progress.seconds
        begun = time.monotonic()
        while progress.step < total and not progress.stopped_early:
            since = time.monotonic()
            record = self._loop.take(progress.step)
            progress.stepping += time.monotonic() - since
            progress.step += 1
            progress.seconds = record["seconds"] = before + time.monotonic() - begun
            if judged(self._job.dev) and self._due(settings.eval_every):
                record["dev_f1"] = self._evaluate()
            progress.history.append(record)
            self._send("step", {**record, "total_steps": total})
            if self._due(settings.checkpoint_every):
                self._save()

    def _due(self, every: int) -> bool:
        return due(self._progress.step, every, self._loop.plan)

    def _evaluate(self) -> float:
        """Dev F1 now; remembers the weights if they are the best so far."""
        gold = [example.entities for example in self._job.dev]
        scored = torch.tensor(
            score(gold, self._predict(self._job.dev)).f1, dtype=torch.float64, device=self._device
        )
        # What follows is done by all workers or none, so all must go by one number.
        dist.broadcast(scored, 0)
        f1 = float(scored)
        if self._progress.judge(f1, self._settings.patience):
            self._best = self._engine.weights()
        return f1

    def _save(self) -> None:
        state = self._engine.state()
        if self._first:
            save_checkpoint(
                self._job.checkpoints,
                Checkpoint(progress=self._progress, state=state, best=self._best or state.weights),
            )
        dist.barrier()
        ray.train.report({"step": self._progress.step})

    def _predict(self, examples: Sequence[Example]) -> list[list[Entity]]:
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

    def _finish(self, untrained: list[list[Entity]] | None) -> None:
        weights = self._best or self._engine.weights()
        self._engine.set_weights(weights)
        job = self._job
        predictions = {"dev": self._predict(job.dev), "test": self._predict(job.test)}
        predictions["test_documents"] = self._predict(join_examples(job.test, JOINED))
        if untrained is not None:
            predictions["untrained"] = untrained
        peak = torch.tensor(peak_memory(self._device), dtype=torch.float64, device=self._device)
        dist.all_reduce(peak, dist.ReduceOp.MAX)
        self._clock.phase("save")
        if self._first:
            splits = {"train": job.train, "dev": job.dev, "test": job.test}
            card = card_for(job)
            self._send(
                "outcome",
                Outcome(
                    adapter=adapter_files(self._model, weights, self._base, self._tokenizer, card),
                    card=card,
                    predictions=predictions,
                    lost={
                        name: count_lost(self._head, examples) for name, examples in splits.items()
                    },
                    progress=self._progress,
                    seconds=self._clock.seconds(),
                    peak_memory_bytes=int(peak),
                    device=device_name(self._device),
                    workers=self._workers,
                    zero=job.zero,
                ),
            )

    def _send(self, kind: str, content: Any) -> None:
        if self._mailbox is not None:
            ray.get(self._mailbox.put.remote(kind, content))


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
        window=job.window,
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
        labels=job.labels,
        base=settings.base,
        revision=settings.revision,
        base_fingerprint=job.base_fingerprint,
        load_in=resolve_load_in(settings.load_in),
        window=job.window,
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


def _device() -> torch.device:
    device: torch.device = ray.train.torch.get_device()
    return device


def device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
