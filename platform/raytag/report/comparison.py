"""Trials of several methods -> how the methods compare: the numbers, report.json and report.md.

A method stands for itself at the rates that were best on dev with the first seed; what it reaches
there is told over all seeds. Knows what trials left behind, not how they were run.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from raytag.text.bootstrap import Counts, interval


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """Dev F1 after a step."""

    step: int
    f1: float
    seconds: float
    """Since the first step began, evaluations included."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialRecord:
    """What one training left behind."""

    data: str
    examples: int
    """0 for all."""
    method: str
    seed: int
    point: Mapping[str, Any]
    """What it tried: its values of the grid."""
    state: Literal["finished", "stopped"]
    """Stopped: found hopeless before its end, so it has no test scores."""
    total_steps: int
    """If nothing stops it."""
    losses: Sequence[float]
    """By step."""
    evaluations: Sequence[Evaluation]
    seconds: float
    """From the loading of the base to the last score."""
    test: Sequence[Sequence[int]] = ()
    """By sentence: true positives, false positives, false negatives."""
    device: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def peak(self) -> Evaluation:
        """The best evaluation, the first of equals: its weights are what is kept and scored. Where
        nothing was ever found those are the last."""
        best = max(self.evaluations, key=lambda found: found.f1)
        return best if best.f1 else self.evaluations[-1]

    @property
    def training_seconds(self) -> float:
        return self.evaluations[-1].seconds

    @property
    def counts(self) -> Counts:
        return np.array(self.test, dtype=np.int64).reshape(-1, 3)

    @property
    def test_f1(self) -> float:
        tp, fp, fn = (int(column) for column in self.counts.sum(axis=0))
        return 2 * tp / (2 * tp + fp + fn) if tp else 0.0

    def to_json(self) -> str:
        """One compact line."""
        content = asdict(self)
        content["losses"] = [loss if math.isfinite(loss) else None for loss in self.losses]
        content["evaluations"] = [[e.step, e.f1, round(e.seconds, 2)] for e in self.evaluations]
        return json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n"

    @classmethod
    def from_json(cls, text: str) -> TrialRecord:
        """Raises ValueError, KeyError or TypeError for what is no record."""
        content = json.loads(text)
        content["losses"] = [math.nan if loss is None else loss for loss in content["losses"]]
        content["evaluations"] = [
            Evaluation(step=step, f1=f1, seconds=seconds)
            for step, f1, seconds in content["evaluations"]
        ]
        return cls(**content)


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure over seeds."""

    values: Sequence[float]

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Of the sample; unknown of one value."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None

    def in_words(self, digits: int = 3) -> str:
        deviation = self.deviation
        words = f"{self.mean:.{digits}f}"
        return words if deviation is None else f"{words} ± {deviation:.{digits}f}"

    def to_dict(self) -> dict[str, Any]:
        return {"mean": self.mean, "deviation": self.deviation, "values": list(self.values)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """In test F1 from the reference, of the seeds both have, with the paired bootstrap's 95 %."""

    f1: float
    low: float
    high: float

    def in_words(self) -> str:
        return f"{self.f1:+.3f} [{self.low:+.3f}, {self.high:+.3f}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """A method in one contest, at its best point."""

    method: str
    point: Mapping[str, Any]
    at_edge: Sequence[str]
    """Values of the point that are the least or greatest tried: better ones may lie beyond."""
    seeds: Sequence[int]
    dev: Spread
    test: Spread
    difference: Difference | None
    """None for the reference itself, and without it."""
    steps: Spread
    """To its own best evaluation."""
    steps_ratio: Spread | None
    """Steps to the reference's best dev F1, by those the reference took, of the seeds that came to
    it; None where none did."""
    reached: int
    """How many did."""
    compared: int
    """Of how many that the reference has too."""
    seconds: Spread
    """Of training, with its evaluations."""
    search_seconds: float
    """Of all its trials, whatever became of them."""
    tried: int
    stopped: int
    curve: Sequence[tuple[int, float]]
    """(step, mean dev F1) where all seeds were evaluated."""

    def to_dict(self) -> dict[str, Any]:
        spreads = {"dev": self.dev, "test": self.test, "steps": self.steps}
        spreads |= {"seconds": self.seconds}
        return {
            "method": self.method,
            "point": dict(self.point),
            "at_edge": list(self.at_edge),
            "seeds": list(self.seeds),
            **{name: spread.to_dict() for name, spread in spreads.items()},
            "difference": asdict(self.difference) if self.difference else None,
            "steps_ratio": self.steps_ratio.to_dict() if self.steps_ratio else None,
            "reached": self.reached,
            "compared": self.compared,
            "search_seconds": self.search_seconds,
            "tried": self.tried,
            "stopped": self.stopped,
            "curve": [list(point) for point in self.curve],
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All methods on one data set and number of examples."""

    data: str
    examples: int
    standings: Sequence[Standing]
    sentences: int
    """Of test."""
    without: Sequence[str] = ()
    """Methods of which no trial of the search finished."""

    @property
    def name(self) -> str:
        return f"{self.data}, {self.examples or 'all'} examples"

    @property
    def best(self) -> Standing:
        """By mean test F1."""
        return max(self.standings, key=lambda found: found.test.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Everything a sweep came to."""

    title: str
    reference: str
    contests: Sequence[Contest]
    machine: Mapping[str, Any] = field(default_factory=dict)
    """Where and with what it was measured."""

    @property
    def methods(self) -> list[str]:
        """As they first come."""
        return list(dict.fromkeys(s.method for c in self.contests for s in c.standings))

    def to_json(self) -> str:
        content = {
            "title": self.title,
            "reference": self.reference,
            "contests": [
                {
                    "data": contest.data,
                    "examples": contest.examples or "all",
                    "sentences": contest.sentences,
                    "methods": [standing.to_dict() for standing in contest.standings],
                    "without": list(contest.without),
                }
                for contest in self.contests
            ],
            "machine": dict(self.machine),
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def compare(
    title: str,
    records: Iterable[TrialRecord],
    *,
    reference: str,
    first_seed: int,
    asked: Iterable[str] = (),
    machine: Mapping[str, Any] | None = None,
) -> Comparison:
    """How the methods of the trials stand, contest by contest, in the order they come in.

    The best point of a method is chosen by dev F1 among finished trials of ``first_seed``. What is
    ``asked`` are methods that may have left no record at all. Raises ValueError where two records
    are of the same trial.
    """
    records = [*records]
    _check_once(records)
    cells: dict[tuple[str, int], dict[str, list[TrialRecord]]] = {}
    for record in records:
        contest = cells.setdefault((record.data, record.examples), {})
        contest.setdefault(record.method, []).append(record)
    contests = []
    for (data, examples), methods in cells.items():
        chosen = {
            method: runs
            for method, trials in methods.items()
            if (runs := _at_best(trials, first_seed))
        }
        against = {run.seed: run for run in chosen.get(reference, ())}
        standings = [
            _standing(runs, methods[method], against, is_reference=method == reference)
            for method, runs in chosen.items()
        ]
        if standings:
            contests.append(
                Contest(
                    data=data,
                    examples=examples,
                    standings=standings,
                    sentences=max(len(run.test) for runs in chosen.values() for run in runs),
                    without=[m for m in dict.fromkeys((*asked, *methods)) if m not in chosen],
                )
            )
    return Comparison(title=title, reference=reference, contests=contests, machine=machine or {})


def _check_once(records: Iterable[TrialRecord]) -> None:
    seen = set()
    for record in records:
        trial = record.data, record.examples, record.method, record.seed, *record.point.items()
        if str(trial) in seen:
            raise ValueError(f"two records are of {trial}: of other settings or data?")
        seen.add(str(trial))


def best_of(records: Iterable[TrialRecord]) -> TrialRecord | None:
    """The finished trial with the highest dev F1, the first of equals; None without any."""
    finished = [record for record in records if record.state == "finished"]
    return max(finished, key=lambda record: record.peak.f1, default=None)


def _at_best(trials: Sequence[TrialRecord], first_seed: int) -> list[TrialRecord]:
    """The finished trials at the best point, by seed, the first one's first."""
    best = best_of(trial for trial in trials if trial.seed == first_seed)
    if best is None:
        return []
    others = [t for t in trials if t.state == "finished" and t.seed != first_seed]
    same = [trial for trial in others if trial.point == best.point]
    return [best, *sorted(same, key=lambda trial: trial.seed)]


def _standing(
    runs: Sequence[TrialRecord],
    trials: Sequence[TrialRecord],
    against: Mapping[int, TrialRecord],
    *,
    is_reference: bool,
) -> Standing:
    pairs = [(run, against[run.seed]) for run in runs if run.seed in against]
    ratios = [ratio for pair in pairs if (ratio := _steps_ratio(*pair)) is not None]
    return Standing(
        method=runs[0].method,
        point=runs[0].point,
        at_edge=_at_edge(runs[0], trials),
        seeds=[run.seed for run in runs],
        dev=Spread(values=[run.peak.f1 for run in runs]),
        test=Spread(values=[run.test_f1 for run in runs]),
        difference=None if is_reference else _difference(runs, against),
        steps=Spread(values=[run.peak.step for run in runs]),
        steps_ratio=Spread(values=ratios) if ratios else None,
        reached=len(ratios),
        compared=len(pairs),
        seconds=Spread(values=[run.training_seconds for run in runs]),
        search_seconds=sum(trial.seconds for trial in trials),
        tried=len(trials),
        stopped=sum(trial.state == "stopped" for trial in trials),
        curve=_mean_curve(runs),
    )


def _steps_ratio(run: TrialRecord, reference: TrialRecord) -> float | None:
    """When the run came to the reference's best dev F1, with the reference's steps as 1; None
    where it did not, and where the reference found nothing."""
    peak = reference.peak
    reached = [found.step for found in run.evaluations if found.f1 >= peak.f1 > 0]
    return reached[0] / peak.step if reached else None


def _difference(
    runs: Sequence[TrialRecord], against: Mapping[int, TrialRecord]
) -> Difference | None:
    """Counts of a sentence are summed over seeds first: what is drawn are sentences."""
    pairs = [(run.counts, against[run.seed].counts) for run in runs if run.seed in against]
    if not pairs:
        return None
    mine, theirs = (np.sum(side, axis=0) for side in zip(*pairs, strict=True))
    f1, low, high = interval(mine, theirs)
    return Difference(f1=f1, low=low, high=high)


def _at_edge(best: TrialRecord, trials: Sequence[TrialRecord]) -> list[str]:
    """Numbers of the best point that are first or last of three or more that were tried."""
    found = []
    for key, value in best.point.items():
        tried = {trial.point[key] for trial in trials if _is_number(trial.point[key])}
        if _is_number(value) and len(tried) > 2 and value in (min(tried), max(tried)):
            found.append(key)
    return found


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _mean_curve(runs: Sequence[TrialRecord]) -> list[tuple[int, float]]:
    curves = [{found.step: found.f1 for found in run.evaluations} for run in runs]
    common = [step for step in curves[0] if all(step in curve for curve in curves)]
    return [(step, statistics.fmean(curve[step] for curve in curves)) for step in common]


def point_words(point: Mapping[str, Any]) -> list[str]:
    """The values of a grid's point, each as ``name=value``."""
    return [f"{key}={_short(value)}" for key, value in point.items()]


def _short(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(str, value)) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)
