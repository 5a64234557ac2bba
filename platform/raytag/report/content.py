"""What a report says: the numbers, notes and mistakes of one run, and report.json.

report.json and report.html are two views of one `Report`; the page, the terminal and the model
card read it and add nothing to it. Keys that users and scripts rely on: ``test.f1``,
``test.per_type.ORG.f1``, the same under ``dev``, ``test_documents.f1``, ``ceiling.test``,
``baseline``, ``curve``. Where a number is unknown it is null, never missing.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raytag.report.mistakes import ErrorCase
from raytag.text.score import Confusion, Score, Scores


@dataclass(frozen=True, slots=True, kw_only=True)
class CurvePoint:
    """One optimizer step of the training."""

    step: int
    """Counted from 1."""
    epoch: float
    """Passes over the training examples, with the fraction of the one under way."""
    loss: float
    """Mean over the labelled tokens of the step's batch; not finite where training diverged."""
    seconds: float
    """Since the first step began."""
    dev_f1: float | None = None
    """Where this step was followed by an evaluation."""

    def to_dict(self) -> dict[str, Any]:
        return {
            "step": self.step,
            "epoch": self.epoch,
            "loss": _finite(self.loss),
            "seconds": self.seconds,
            "dev_f1": self.dev_f1,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> CurvePoint:
        return cls(**{**data, "loss": _number(data["loss"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class DataNotes:
    """What the run was given, and what the data check had to say about it."""

    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By split, then by what was counted: examples, entities, documents…"""
    notes: Sequence[str] = ()
    """Lines for a reader, the gravest first."""
    check: Mapping[str, Any] = field(default_factory=dict)
    """The same findings for a program."""
    fingerprint: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "counts": {split: dict(counts) for split, counts in self.counts.items()},
            "notes": list(self.notes),
            "check": _plain(self.check),
            "fingerprint": self.fingerprint,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> DataNotes:
        return cls(**{**data, "notes": tuple(data["notes"])})


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What the run took."""

    seconds: Mapping[str, float] = field(default_factory=dict)
    """Wall-clock time by phase, in the order the phases ran."""
    examples_per_second: float | None = None
    """Of training, over all workers."""
    peak_memory_bytes: int | None = None
    """Of the worker that took most: of its accelerator, or of the process where it has none."""
    workers: int = 1
    zero_stage: int | None = None
    device: str = ""

    def to_dict(self) -> dict[str, Any]:
        return {
            "seconds": dict(self.seconds),
            "examples_per_second": self.examples_per_second,
            "peak_memory_bytes": self.peak_memory_bytes,
            "workers": self.workers,
            "zero_stage": self.zero_stage,
            "device": self.device,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Resources:
        return cls(**data)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """Everything there is to say about one fine-tuning or evaluation run."""

    title: str
    """What was trained or tried, as its users call it: ``acme/biomedical``."""
    summary: str = ""
    """One line under the title: base, head, date, whatever the caller finds worth saying."""
    test: Scores | None = None
    dev: Scores | None = None
    """Of the weights that were kept, not of the last step."""
    test_documents: Scores | None = None
    """The test sentences joined to the documents they were taken from."""
    ceiling: Mapping[str, float] = field(default_factory=dict)
    """By split, the share of gold entities that the head has a way to express."""
    baseline: float | None = None
    """Test F1 of the base before training."""
    curve: Sequence[CurvePoint] = ()
    learning_rates: Mapping[str, Sequence[tuple[int, float]]] = field(default_factory=dict)
    """By parameter group: (step, rate) in the order of the steps."""
    confusions: Confusion = field(default_factory=Confusion)
    """Of the split that `headline` names."""
    errors: Sequence[ErrorCase] = ()
    data: DataNotes = field(default_factory=DataNotes)
    settings: Mapping[str, Any] = field(default_factory=dict)
    resources: Resources = field(default_factory=Resources)
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def headline(self) -> tuple[str, Scores] | None:
        """The split a reader should go by, and its scores: test, or dev where test was none."""
        if self.test is not None:
            return "test", self.test
        return ("dev", self.dev) if self.dev is not None else None

    def to_dict(self) -> dict[str, Any]:
        """Values of JSON only; `from_dict` gives the same report back."""
        return {
            "title": self.title,
            "summary": self.summary,
            "test": _scores_to_dict(self.test),
            "dev": _scores_to_dict(self.dev),
            "test_documents": _scores_to_dict(self.test_documents),
            "ceiling": dict(self.ceiling),
            "baseline": self.baseline,
            "curve": [point.to_dict() for point in self.curve],
            "learning_rates": {
                group: [[step, _finite(rate)] for step, rate in pairs]
                for group, pairs in self.learning_rates.items()
            },
            "confusions": self.confusions.to_dict(),
            "errors": [case.to_dict() for case in self.errors],
            "data": self.data.to_dict(),
            "settings": _plain(self.settings),
            "resources": self.resources.to_dict(),
            "versions": dict(self.versions),
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Report:
        rates = {
            group: tuple((step, _number(rate)) for step, rate in pairs)
            for group, pairs in data["learning_rates"].items()
        }
        read = {
            "test": _scores_from_dict(data["test"]),
            "dev": _scores_from_dict(data["dev"]),
            "test_documents": _scores_from_dict(data["test_documents"]),
            "curve": tuple(CurvePoint.from_dict(item) for item in data["curve"]),
            "learning_rates": rates,
            "confusions": Confusion(**data["confusions"]),
            "errors": tuple(ErrorCase.from_dict(item) for item in data["errors"]),
            "data": DataNotes.from_dict(data["data"]),
            "resources": Resources.from_dict(data["resources"]),
        }
        return cls(**{**data, **read})


def to_json(report: Report) -> str:
    """The text of report.json: indented, letters of every script legible, valid UTF-8."""
    text = json.dumps(report.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    # Half a surrogate pair can stand in a text read from JSON, but not in a UTF-8 file.
    return re.sub("[\ud800-\udfff]", lambda found: f"\\u{ord(found[0]):04x}", text) + "\n"


def from_json(text: str) -> Report:
    return Report.from_dict(json.loads(text))


def flattened(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, value in words) of nested settings or findings, in their order."""
    rows = []
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            rows += flattened(value, f"{prefix}{key}.")
        else:
            rows.append((f"{prefix}{key}", _words(value)))
    return rows


def _words(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_words(item)}" for key, item in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(map(_words, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None or value == "" else str(value)


def _plain(value: Any) -> Any:
    """The value as JSON can hold it: no run shall lose its report to a path or an infinity."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return _finite(value)
    return value if value is None or isinstance(value, str | int) else str(value)


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _number(value: float | None) -> float:
    """Back from `_finite`."""
    return math.nan if value is None else value


def _scores_to_dict(scores: Scores | None) -> dict[str, Any] | None:
    """The micro average at the top, since ``test.f1`` is what people look for."""
    if scores is None:
        return None
    parts = scores.to_dict()
    return {**parts["micro"], "macro": parts["macro"], "per_type": parts["per_type"]}


def _scores_from_dict(data: Mapping[str, Any] | None) -> Scores | None:
    if data is None:
        return None
    return Scores(_score(data), {label: _score(row) for label, row in data["per_type"].items()})


def _score(data: Mapping[str, Any]) -> Score:
    return Score(data["tp"], data["fp"], data["fn"])
