"""Ray Train's entry: one worker's part in one attempt at a job.

Runs inside a Ray Train worker group, the same code on every worker. Knows what a group must do
together, where checkpoints lie and whom to tell; training itself is the worker's. A new attempt
goes on from the newest complete checkpoint in storage, whatever was reported.
"""

from collections.abc import Mapping
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch.distributed as dist
from ray.actor import ActorHandle

from raytag.errors import RaytagError, StorageError
from raytag.placement import hide_gpus_not_given
from raytag.train.checkpoint import Checkpoint, complete, load_checkpoint, save_checkpoint
from raytag.train.worker import Phases, TrainJob, Worker, base_here


def attempt(config: Mapping[str, Any]) -> None:
    """``config`` holds a reference to the job, the mailbox, and when the driver began.

    A mistake of the user's is sent, so that the driver can say it. Where all workers meet it
    alike it is not raised as well: Ray would try again what cannot work.
    """
    job: TrainJob = ray.get(config["job"])
    mailbox: ActorHandle[Any] = config["mailbox"]
    started: float = config["started"]
    hide_gpus_not_given()
    try:
        _Attempt(job, mailbox if dist.get_rank() == 0 else None, started).run()
    except RaytagError as exc:
        ray.get(mailbox.put.remote("refusal", exc))
        if isinstance(exc, StorageError):
            # One worker's alone: the others wait for it, and another attempt may go well.
            raise


class _Attempt:
    def __init__(self, job: TrainJob, mailbox: "ActorHandle[Any] | None", started: float) -> None:
        self._job = job
        self._mailbox = mailbox
        self._clock = Phases(started)
        self._clock.phase("start workers")
        self._worker = Worker(job, ray.train.torch.get_device(), self._clock)

    def run(self) -> None:
        worker = self._worker
        self._load_alike()
        worker.prepare(self._saved())
        for record in worker.train():
            self._send("step", record)
            checkpoint = worker.checkpoint()
            if checkpoint is not None:
                self._save(checkpoint)
        outcome = worker.outcome()
        if outcome is not None:
            self._send("outcome", outcome)

    def _load_alike(self) -> None:
        """Load, or fail on all workers alike: one that waited for the others would wait long."""
        self._clock.phase("load base")
        failure: RaytagError | None = None
        try:
            # A folder of each host's own may hold another model; one of a host's workers looks.
            looks = ray.train.get_context().get_local_rank() == 0
            self._worker.load(base_here(self._job, looks=looks))
        except RaytagError as exc:
            failure = exc
        failures: list[RaytagError | None] = [None] * dist.get_world_size()
        dist.all_gather_object(failures, failure)
        for met in failures:
            if met is not None:
                raise met

    def _saved(self) -> Checkpoint | None:
        """The newest complete checkpoint, the same one on every worker."""
        chosen: list[str | None] = [None]
        if dist.get_rank() == 0:
            chosen = [*complete(self._job.checkpoints)[-1:], None][:1]
        dist.broadcast_object_list(chosen)
        if chosen[0] is None:
            return None
        checkpoint = load_checkpoint(chosen[0])
        self._send("note", f"going on from step {checkpoint.progress.step}")
        return checkpoint

    def _save(self, checkpoint: Checkpoint) -> None:
        if dist.get_rank() == 0:
            save_checkpoint(self._job.checkpoints, checkpoint)
        dist.barrier()
        ray.train.report({"step": checkpoint.progress.step})

    def _send(self, kind: str, content: Any) -> None:
        if self._mailbox is not None:
            ray.get(self._mailbox.put.remote(kind, content))
