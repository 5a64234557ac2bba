"""Trials on Ray Tune, from the driver's side: which is next, which is hopeless, what each left.

A grid's trials of the first seed come first; once all of a cell have ended, the best of them is
repeated with the other seeds, before other cells go on. Tune places trials and keeps their actors
from one trial to the next; ASHA (Li et al. 2018, arXiv 1810.05934) judges those of a cell by dev F1
after the same share of their steps. Knows nothing of how a trial is run, nor of the report.
"""

import os
import sys
import tempfile
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from raytag import storage
from raytag.placement import Seat
from raytag.report.comparison import TrialRecord, best_of
from raytag.report.terminal import FleetTable
from raytag.train.sweep_settings import Cell, SweepSettings, Trial
from raytag.train.trial import Assignment, Slot

_ENVIRONMENT = {
    # Records are the sweep's own; Tune's event files and tables say nothing else.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Tune would end quietly on Ctrl-C, as if all trials were done.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    # The newer output says what it is about to do however quiet it is told to be.
    "RAY_AIR_NEW_OUTPUT": "0",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a trial left no record."""

    reason: str
    is_bug: bool


class Agenda:
    """Which trial is next. ``trials`` and ``records`` go by fingerprints; the former hold a cell's
    points for every seed, ``first_seed`` among them."""

    def __init__(
        self, trials: Mapping[str, Trial], first_seed: int, records: Mapping[str, TrialRecord]
    ) -> None:
        self.records = dict(records)
        self._trials = trials
        self._first_seed = first_seed
        self._search: dict[Cell, list[str]] = {}
        for run, trial in trials.items():
            if trial.seed == first_seed:
                self._search.setdefault(trial.cell, []).append(run)
        self._open = {
            cell: {run for run in runs if run not in self.records}
            for cell, runs in self._search.items()
        }
        self._waiting: deque[str] = deque()
        for cell, runs in self._search.items():
            self._waiting.extend(run for run in runs if run in self._open[cell])
            if not self._open[cell]:
                self._waiting.extend(self._repetitions(cell))

    @property
    def left(self) -> int:
        """Trials to come, repetitions of what is not known yet included."""
        seeds = len({trial.seed for trial in self._trials.values()})
        return len(self._waiting) + (seeds - 1) * sum(map(bool, self._open.values()))

    def next(self) -> str | None:
        """The next trial's fingerprint; None while none waits."""
        return self._waiting.popleft() if self._waiting else None

    def settle(self, run: str) -> None:
        """Say that a trial has ended; its record, if it left one, is in ``records`` by now."""
        cell = self._trials[run].cell
        if run in self._open[cell]:
            self._open[cell].remove(run)
            if not self._open[cell]:
                self._waiting.extendleft(reversed(self._repetitions(cell)))

    def searched(self, cell: Cell) -> dict[str, TrialRecord]:
        """What is known of the cell's trials of the first seed."""
        return {run: self.records[run] for run in self._search[cell] if run in self.records}

    def _repetitions(self, cell: Cell) -> list[str]:
        """The trials at the cell's best point with other seeds that have not finished yet."""
        searched = self.searched(cell)
        best = best_of(searched.values())
        if best is None:
            return []
        point = next(self._trials[run].point for run in searched if searched[run] is best)
        return [
            run
            for run, trial in self._trials.items()
            if trial.cell == cell
            and trial.point == point
            and trial.seed != self._first_seed
            # One that was stopped may be so when its seed was the first.
            and (run not in self.records or self.records[run].state == "stopped")
        ]


def run_trials(
    settings: SweepSettings, seat: Seat, assignments: Mapping[str, Assignment], agenda: Agenda
) -> dict[str, Failure]:
    """Run what the agenda holds, to its end; why trials failed, by their fingerprints.

    Each record is written below the output as soon as its trial ends.
    """
    os.environ.update(_ENVIRONMENT)
    trials = {run: assigned.trial for run, assigned in assignments.items()}
    taken = {**seat.resources, **({"GPU": 1 / settings.trials_per_gpu} if seat.gpu else {})}
    with (
        tempfile.TemporaryDirectory() as scratch,
        FleetTable((), kind="trial", total=agenda.left) as table,
    ):
        follower = _Follower(settings.output, trials, agenda, table)
        tune.run(
            tune.with_parameters(Slot, assignments=dict(assignments)),
            name="raytag",
            storage_path=scratch,
            search_alg=_Search(agenda),
            scheduler=_HalvingByCell(settings, trials, agenda) if settings.grace else None,
            callbacks=[follower],
            num_samples=-1,
            max_concurrent_trials=settings.slots or None,
            resources_per_trial=tune.PlacementGroupFactory([taken]),
            reuse_actors=True,
            max_failures=settings.max_failures,
            raise_on_failed_trial=False,
            verbose=0,
        )
    return follower.failed


class _Search(Searcher):
    """The agenda, as Tune asks for it."""

    def __init__(self, agenda: Agenda) -> None:
        super().__init__()
        self._agenda = agenda
        self._going: dict[str, str] = {}

    def suggest(self, trial_id: str) -> Any:
        run = self._agenda.next()
        if run is None:
            return None if self._going else Searcher.FINISHED
        self._going[trial_id] = run
        return {"run": run}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        self._agenda.settle(self._going.pop(trial_id))

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the records are the state."""


class _HalvingByCell(FIFOScheduler):
    """ASHA among the trials of a grid, those of earlier runs of the sweep included; repetitions of
    the best are stopped by nothing."""

    def __init__(
        self, settings: SweepSettings, trials: Mapping[str, Trial], agenda: Agenda
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._settings = settings
        self._trials = trials
        self._agenda = agenda
        self._cells: dict[Cell, ASHAScheduler] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        if (judge := self._judge(trial)) is not None:
            judge.on_trial_add(tune_controller, trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        judge = self._judge(trial)
        if judge is None or result["done"]:
            return TrialScheduler.CONTINUE
        decision: str = judge.on_trial_result(tune_controller, trial, result)
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        if (judge := self._judge(trial)) is not None:
            judge.on_trial_complete(tune_controller, trial, result)

    def _judge(self, trial: Any) -> ASHAScheduler | None:
        known = self._trials[trial.config["run"]]
        if known.seed != self._settings.seeds[0]:
            return None
        if known.cell not in self._cells:
            self._cells[known.cell] = self._new_judge(known.cell)
        return self._cells[known.cell]

    def _new_judge(self, cell: Cell) -> ASHAScheduler:
        judge = ASHAScheduler(
            time_attr="share",
            metric="dev_f1",
            mode="max",
            grace_period=self._settings.grace,  # type: ignore[arg-type]  # any number will do
            reduction_factor=self._settings.keep_one_in,
            max_t=1,
        )
        for run, record in self._agenda.searched(cell).items():
            ended: Any = SimpleNamespace(trial_id=run)
            judge.on_trial_add(None, ended)  # type: ignore[arg-type]
            for found in record.evaluations:
                result = {"share": found.step / record.total_steps, "dev_f1": found.f1}
                judge.on_trial_result(None, ended, result)  # type: ignore[arg-type]
        return judge


class _Follower(tune.Callback):
    """Writes records as trials end, and shows how far each is."""

    def __init__(
        self, output: str, trials: Mapping[str, Trial], agenda: Agenda, table: FleetTable
    ) -> None:
        self.failed: dict[str, Failure] = {}
        self._output = output
        self._trials = trials
        self._agenda = agenda
        self._table = table

    def on_trial_start(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        self._table.show(self._name(trial), "training")

    def on_trial_result(
        self, iteration: int, trials: Sequence[Any], trial: Any, result: dict[str, Any], **_: Any
    ) -> None:
        run, name = trial.config["run"], self._name(trial)
        if "failure" in result:
            print(result.get("trace", ""), file=sys.stderr, end="", flush=True)
            self._fail(trial, Failure(result["failure"], is_bug="trace" in result))
            return
        text = result.pop("record")
        self._table.step(name, result["step"], result["total_steps"], result["dev_f1"])
        if result["done"]:
            record = TrialRecord.from_json(text)
            storage.write_bytes(record_place(self._output, run), text.encode())
            self._agenda.records[run] = record
            self._table.show(name, record.state, f1=record.peak.f1)

    def on_trial_error(self, iteration: int, trials: Sequence[Any], trial: Any, **_: Any) -> None:
        print(trial.get_error() or "", file=sys.stderr, flush=True)
        self._fail(trial, Failure("its process died; is memory short?", is_bug=False))

    def _fail(self, trial: Any, failure: Failure) -> None:
        self.failed[trial.config["run"]] = failure
        self._table.show(self._name(trial), "failed", said=failure.reason)

    def _name(self, trial: Any) -> str:
        return self._trials[trial.config["run"]].name


def record_place(output: str, run: str) -> str:
    """Where a trial's record lies."""
    return storage.join(output, "trials", f"{run}.json")
