"""One place in the cluster where trials of a sweep run, one after another, in one process.

A trial takes the steps that a job of its own would take, by the same code, and leaves scores only.
Knows Ray Tune's side of an actor that stays; which trials there are is the sweep's to say. A base
is loaded anew for each: from memory, where the machine's file cache holds it.
"""

import gc
import os
import time
import traceback
from collections.abc import Callable, Generator, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import torch
import torch.distributed as dist
from ray import tune

from raytag.errors import RaytagError
from raytag.model.adapter import Parent
from raytag.model.base import Base
from raytag.placement import hide_gpus_not_given
from raytag.report.comparison import Evaluation, TrialRecord
from raytag.text.bootstrap import counts
from raytag.text.spans import Entity
from raytag.train.data import TrainingData
from raytag.train.sweep_settings import Trial
from raytag.train.worker import Phases, TrainJob, Worker, base_here, device_name

Steps = Generator[Mapping[str, Any], None, list[list[Entity]]]
"""Records of steps as a worker yields them, at last the entities found in test."""
Trainer = Callable[[TrainJob, torch.device], Steps]
"""A way of training, given a job whose base is on this host; that of a job of its own is
:func:`train_adapter`."""


@dataclass(frozen=True, kw_only=True)
class Assignment:
    """What a slot needs to run a trial."""

    trial: Trial
    data: "ray.ObjectRef[TrainingData]"
    base: Base
    weights: str
    """The base's fingerprint."""
    zero: int
    run: str
    """The trial's own fingerprint."""
    parent: Parent | None
    trainer: Trainer


def train_adapter(job: TrainJob, device: torch.device) -> Steps:
    """As a job of its own, with one worker."""
    return train_with(Worker(job, device, Phases(time.time())), job)


def train_with(worker: Worker, job: TrainJob) -> Steps:
    """The steps of this worker, and what its best weights find in test."""
    worker.load(job.base)
    worker.prepare()
    try:
        yield from worker.train()
        worker.keep_best()
        return worker.predict(job.data.test)
    finally:
        worker.close()


class Slot(tune.Trainable):
    """Tune's actor: runs a trial from one evaluation on dev to the next, then another trial.

    What it reports of a trial's end holds its record, or why there is none.
    """

    _steps: Steps | None = None

    def setup(  # type: ignore[override]  # what tune.with_parameters holds comes with it
        self, config: dict[str, Any], assignments: Mapping[str, Assignment]
    ) -> None:
        self._assignments = assignments
        self._looked_at: set[str] = set()
        hide_gpus_not_given()
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self._device.type == "cuda":
            torch.cuda.set_device(0)
        backend = "nccl" if self._device.type == "cuda" else "gloo"
        store = dist.HashStore()  # type: ignore[attr-defined]
        os.environ["LOCAL_RANK"] = "0"
        dist.init_process_group(backend, store=store, rank=0, world_size=1)
        self.reset_config(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        self.cleanup()
        self._assigned = self._assignments[new_config["run"]]
        return True

    def cleanup(self) -> None:
        """End the trial at hand, if it is in the middle."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None

    def step(self) -> dict[str, Any]:
        """Train up to the next evaluation; after the last one, to the end."""
        try:
            if self._steps is None:
                self._begin()
            return self._advance()
        except RaytagError as exc:
            return {"done": True, "failure": " ".join(str(exc).split())}
        except Exception as exc:
            # What one trial's settings bring out stops no other.
            return {"done": True, "failure": f"a bug: {exc!r}", "trace": traceback.format_exc()}

    def _begin(self) -> None:
        # The last trial's engine and model hold each other, and Python looks for such circles ever
        # more seldom: without this a process grows by its model's size with every trial.
        gc.collect()
        assigned = self._assigned
        settings, data = assigned.trial.settings, ray.get(assigned.data)
        torch.set_num_threads(settings.cpus)
        job = TrainJob(
            settings=settings,
            data=data,
            base=assigned.base,
            zero=assigned.zero,
            run=assigned.run,
            base_fingerprint=assigned.weights,
            parent=assigned.parent,
        )
        # That a folder holds this base is looked up once: it takes reading all of its weights.
        looks = job.base_fingerprint not in self._looked_at
        job = replace(job, base=base_here(job, looks=looks))
        self._looked_at.add(job.base_fingerprint)
        self._gold = [example.entities for example in data.test]
        self._losses: list[float] = []
        self._evaluations: list[Evaluation] = []
        self._since = time.monotonic()
        self._steps = assigned.trainer(job, self._device)

    def _advance(self) -> dict[str, Any]:
        assert self._steps is not None
        while True:
            try:
                record = next(self._steps)
            except StopIteration as end:
                self._steps = None
                return self._result(end.value)
            self._losses.append(record["loss"])
            if "dev_f1" in record:
                self._evaluations.append(
                    Evaluation(step=record["step"], f1=record["dev_f1"], seconds=record["seconds"])
                )
                self._total = record["total_steps"]
                if not record["last"]:
                    return self._result(None)

    def _result(self, test: list[list[Entity]] | None) -> dict[str, Any]:
        trial = self._assigned.trial
        last = self._evaluations[-1]
        record = TrialRecord(
            data=trial.data,
            examples=trial.examples,
            method=trial.method,
            seed=trial.seed,
            point=trial.point,
            state="stopped" if test is None else "finished",
            total_steps=self._total,
            losses=self._losses,
            evaluations=self._evaluations,
            seconds=time.monotonic() - self._since,
            test=() if test is None else counts(self._gold, test).tolist(),
            device=device_name(self._device),
            settings=asdict(trial.settings),
        )
        return {
            "dev_f1": last.f1,
            "step": last.step,
            "total_steps": self._total,
            "share": last.step / self._total,
            "record": record.to_json(),
            "done": test is not None,
        }
