"""What follows a run may fail without taking the run with it."""

from pathlib import Path
from typing import Any

import pytest

from raytag.train.follow import Follower
from raytag.train.settings import FinetuneSettings


def test_a_picture_that_cannot_be_kept_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    blocked = tmp_path / "out"
    blocked.write_text("a file where the folder should be", encoding="utf-8")
    settings = FinetuneSettings(base="none", train="none", output=str(blocked))
    mailbox: Any = None
    follower = Follower(mailbox, settings, "run")
    record = {"step": 1, "loss": 0.5, "gradient_norm": None, "rates": {"A": 1e-4}, "dev_f1": 0.1}
    follower.tell(lambda sink: sink.step(record))
    assert "warning: TensorBoard is left out" in capsys.readouterr().out
    follower.tell(lambda sink: sink.step(record))
    assert capsys.readouterr().out == ""
