"""Checkpoints: complete or not there, the newest by its number of steps."""

from pathlib import Path

import pytest
import torch

from raytag import storage
from raytag.errors import StorageError
from raytag.train.checkpoint import (
    KEPT,
    Checkpoint,
    Progress,
    complete,
    load_checkpoint,
    save_checkpoint,
)
from raytag.train.engine import TrainedState


def _checkpoint(step: int) -> Checkpoint:
    tensors = {f"{kind}/a.b": torch.full((2, 3), step / 7) for kind in ("weight", "exp_avg")}
    return Checkpoint(
        progress=Progress(step=step, history=[{"step": step, "loss": 0.5}], best_f1=0.25),
        state=TrainedState(tensors, step),
        best={"a.b": torch.full((2, 3), 2.0)},
    )


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    saved = _checkpoint(40)
    loaded = load_checkpoint(save_checkpoint(str(tmp_path), saved))
    assert loaded.progress == saved.progress
    assert loaded.state.adam_step == 40
    for name, value in saved.state.tensors.items():
        assert torch.equal(loaded.state.tensors[name], value)
    assert torch.equal(loaded.best["a.b"], saved.best["a.b"])
    assert loaded.state.weights.keys() == {"a.b"}


def test_the_newest_is_the_one_with_most_steps(tmp_path: Path) -> None:
    for step in (9, 999_999, 1_000_000):
        save_checkpoint(str(tmp_path), _checkpoint(step))
    places = complete(str(tmp_path))
    assert [load_checkpoint(place).progress.step for place in places] == [999_999, 1_000_000]
    assert len(places) == KEPT


def test_one_without_a_manifest_does_not_count(tmp_path: Path) -> None:
    older = save_checkpoint(str(tmp_path), _checkpoint(10))
    torn = save_checkpoint(str(tmp_path), _checkpoint(20))
    storage.remove(storage.join(torn, "manifest.json"))
    assert complete(str(tmp_path)) == [older]
    with pytest.raises(StorageError):
        load_checkpoint(torn)


def test_training_stops_after_so_many_evaluations_that_were_no_better() -> None:
    progress = Progress()
    better = []
    for step, f1 in enumerate((0.0, 0.0, 0.0, 0.5, 0.4, 0.6, 0.6, 0.3), 1):
        assert not progress.stopped_early
        progress.step = step
        better.append(progress.judge(f1, patience=2))
    assert better == [True, True, True, True, False, True, False, False]
    assert progress.stopped_early
    assert (progress.best_f1, progress.best_step) == (0.6, 6)


def test_without_patience_it_never_stops() -> None:
    progress = Progress(best_f1=0.9)
    assert not any(progress.judge(0.1, patience=0) for _ in range(50))
    assert not progress.stopped_early


def test_none_where_there_are_none(tmp_path: Path) -> None:
    assert complete(str(tmp_path / "nowhere")) == []
