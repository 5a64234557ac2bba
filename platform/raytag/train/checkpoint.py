"""Checkpoints of a training run in storage: whole, and free of the number of workers.

    FOLDER/40-1f2e3d4c/state.safetensors    weights and moments, whole tensors
                      /best.safetensors     weights of the best evaluation
                      /manifest.json        last: its existence means complete

Knows storage and the layout, not how state is taken from an engine. A folder holds one run's
checkpoints. Readers go by manifests: what has none is what a dying worker left behind.
"""

import json
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from safetensors.torch import load, save
from torch import Tensor

from raytag import storage
from raytag.train.engine import TrainedState

KEPT = 2
"""Complete checkpoints that are kept; more than one, lest a reader loses the one it reads."""


@dataclass(kw_only=True)
class Progress:
    """Where a run stands: what happened in each step, and the best evaluation so far."""

    step: int = 0
    """Steps done; also the number of the next one, counted from 0."""
    history: list[dict[str, Any]] = field(default_factory=list)
    best_f1: float | None = None
    best_step: int = 0
    stale: int = 0
    """Evaluations since the best one."""
    seconds: float = 0.0
    """Spent training, over all attempts."""
    stepping: float = 0.0
    """Of those, in optimizer steps alone."""
    stopped_early: bool = False

    def judge(self, f1: float, patience: int) -> bool:
        """Take note of dev F1 at this step; True where it is the best so far.

        Stops early after ``patience`` evaluations that were not, but for 0. While nothing is
        found yet, later is better, and no reason to give up.
        """
        if not self.best_f1 or f1 > self.best_f1:
            self.best_f1, self.best_step, self.stale = f1, self.step, 0
            return True
        self.stale += 1
        self.stopped_early = 0 < patience <= self.stale
        return False


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    progress: Progress
    state: TrainedState
    best: Mapping[str, Tensor]


def save_checkpoint(folder: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint under a name of its own, manifest last; then drop older ones.

    Returns where it lies.
    """
    place = storage.join(folder, f"{checkpoint.progress.step}-{uuid.uuid4().hex[:8]}")
    storage.write_bytes(
        storage.join(place, "state.safetensors"), save(dict(checkpoint.state.tensors))
    )
    storage.write_bytes(storage.join(place, "best.safetensors"), save(dict(checkpoint.best)))
    manifest = {
        "adam_step": checkpoint.state.adam_step,
        "progress": asdict(checkpoint.progress),
    }
    storage.write_bytes(storage.join(place, "manifest.json"), json.dumps(manifest).encode())
    for old in complete(folder)[:-KEPT]:
        # First what makes it complete, so that nobody begins to read what is going away.
        storage.remove(storage.join(old, "manifest.json"))
        storage.remove_folder(old)
    return place


def load_checkpoint(place: str) -> Checkpoint:
    """The checkpoint that lies there. Raises StorageError where it is not whole."""
    manifest = json.loads(storage.read_bytes(storage.join(place, "manifest.json")))
    return Checkpoint(
        progress=Progress(**manifest["progress"]),
        state=TrainedState(
            load(storage.read_bytes(storage.join(place, "state.safetensors"))),
            manifest["adam_step"],
        ),
        best=load(storage.read_bytes(storage.join(place, "best.safetensors"))),
    )


def complete(folder: str) -> list[str]:
    """Where the complete checkpoints lie, fewest steps first."""
    found = [
        file.removesuffix("/manifest.json")
        for file in storage.list_files(folder)
        if file.endswith("/manifest.json")
    ]
    return sorted(found, key=lambda place: int(place.rsplit("/", 1)[-1].partition("-")[0]))
