"""report.json holds the keys people rely on, and gives the same report back."""

import json
import math
from pathlib import PurePosixPath
from typing import Any

import pytest

from raytag.report.content import CurvePoint, Report, flattened, from_json, to_json
from raytag.report.page import render_page


def test_keys(report: Report) -> None:
    data = json.loads(to_json(report))
    assert report.test
    assert data["test"]["f1"] == report.test.f1
    assert set(data["test"]) >= {"f1", "precision", "recall", "support", "per_type"}
    for split in ("test", "dev", "test_documents"):
        for row in data[split]["per_type"].values():
            assert set(row) >= {"precision", "recall", "f1", "support"}
    assert data["ceiling"]["test"] == 0.991
    assert data["baseline"] == 0.113
    assert set(data["curve"][0]) == {"step", "epoch", "loss", "seconds", "dev_f1"}
    assert data["curve"][0]["dev_f1"] is None
    assert data["resources"]["zero_stage"] == 2
    assert data["data"]["fingerprint"]
    assert data["errors"][0]["mistakes"][0]["kind"] == "type"


def test_round_trip(report: Report) -> None:
    again = from_json(to_json(report))
    assert to_json(again) == to_json(report)
    assert again.test == report.test
    assert again.curve == report.curve
    assert list(again.errors) == list(report.errors)


def test_hostile_text_is_valid_utf8_and_json(hostile: Report) -> None:
    text = to_json(hostile).encode("utf-8").decode("utf-8")
    assert from_json(text).errors[0].text == hostile.errors[0].text


def test_diverged_loss_is_null() -> None:
    point = CurvePoint(step=1, epoch=1, loss=math.nan, seconds=1)
    assert point.to_dict()["loss"] is None
    assert math.isnan(CurvePoint.from_dict(point.to_dict()).loss)


def test_odd_settings_do_not_cost_the_report() -> None:
    odd: dict[Any, Any] = {"path": PurePosixPath("/a"), "clip": math.inf, "sizes": (1, 2), 3: None}
    report = Report(title="t", settings=odd, learning_rates={"A": [(1, math.nan)]})
    data = json.loads(to_json(report))
    assert data["settings"] == {"path": "/a", "clip": None, "sizes": [1, 2], "3": None}
    assert data["learning_rates"] == {"A": [[1, None]]}
    assert "Settings" in render_page(from_json(to_json(report)))


def test_empty_report() -> None:
    empty = Report(title="t")
    assert empty.headline is None
    assert from_json(to_json(empty)) == empty


def test_headline_falls_back_to_dev(report: Report) -> None:
    assert report.headline
    assert report.headline[0] == "test"
    only_dev = Report(title="t", dev=report.dev)
    assert only_dev.headline
    assert only_dev.headline[0] == "dev"


@pytest.mark.parametrize(
    ("value", "words"),
    [(True, "yes"), (None, "none"), ([], "none"), (["a", 1], "a, 1"), ({}, "none")],
)
def test_flattened(value: object, words: str) -> None:
    assert flattened({"a": {"b": value}}) == [("a.b", words)]
