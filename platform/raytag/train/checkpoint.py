"""Checkpoints of a training run in storage: whole, and free of the number of workers.

    OUTPUT/checkpoints/000040-1f2e3d4c/state.safetensors    weights and moments, whole tensors
                                      /best.safetensors     weights of the best evaluation
                                      /manifest.json        last: its existence means complete

Knows storage and the layout, not how state is taken from an engine. Readers go by manifests:
a folder without one is what a dying worker left behind.
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
    stopped_early: bool = False


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    progress: Progress
    state: TrainedState
    best: Mapping[str, Tensor]


def save_checkpoint(folder: str, run: str, checkpoint: Checkpoint) -> str:
    """Write a checkpoint under a name of its own, manifest last; then drop older ones.

    ``run`` is the fingerprint of the run it belongs to. Returns where it lies.
    """
    step = checkpoint.progress.step
    place = storage.join(folder, f"{step:06d}-{uuid.uuid4().hex[:8]}")
    storage.write_bytes(
        storage.join(place, "state.safetensors"), save(dict(checkpoint.state.tensors))
    )
    storage.write_bytes(storage.join(place, "best.safetensors"), save(dict(checkpoint.best)))
    manifest = {
        "run": run,
        "adam_step": checkpoint.state.adam_step,
        "progress": asdict(checkpoint.progress),
    }
    storage.write_bytes(storage.join(place, "manifest.json"), json.dumps(manifest).encode())
    for old in _complete(folder)[:-KEPT]:
        storage.remove_folder(old)
    return place


def newest_checkpoint(folder: str, run: str) -> Checkpoint | None:
    """The complete checkpoint of this run with the most steps; None where there is none."""
    for place in reversed(_complete(folder)):
        manifest = json.loads(storage.read_bytes(storage.join(place, "manifest.json")))
        if manifest["run"] != run:
            continue
        return Checkpoint(
            progress=Progress(**manifest["progress"]),
            state=TrainedState(
                load(storage.read_bytes(storage.join(place, "state.safetensors"))),
                manifest["adam_step"],
            ),
            best=load(storage.read_bytes(storage.join(place, "best.safetensors"))),
        )
    return None


def _complete(folder: str) -> list[str]:
    """Folders of complete checkpoints, fewest steps first."""
    return sorted(
        file.removesuffix("/manifest.json")
        for file in storage.list_files(folder)
        if file.endswith("/manifest.json")
    )
