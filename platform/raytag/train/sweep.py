"""Many trainings as one job: each method's rates are searched with one seed, the best repeated.

A trial's record is a file whose name is the fingerprint of everything that shapes it, written
whole when it ends; what has one is not run again. So a sweep goes on after any death, and one with
a larger grid in the same place runs only what is new.

    OUTPUT/trials/FINGERPRINT.json    what a trial left behind
          /data/rejected.jsonl        rows that were set aside
          /report.html, report.md, report.json
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray

from raytag import storage
from raytag.cluster import check_output, check_reach, connect, nodes
from raytag.errors import DataError, ResourceError, SettingsError
from raytag.model.base import Base, find_base, head_config
from raytag.placement import Seat, find_seat
from raytag.report.comparison import Comparison, TrialRecord, compare
from raytag.report.comparison_page import render_comparison, to_markdown
from raytag.text.formats import Rejected, write_rejected
from raytag.train.data import TrainingData, gather, settings_fingerprint
from raytag.train.lineage import begun_from, read_parent
from raytag.train.memory import GIB
from raytag.train.preflight import base_fingerprint, preflight
from raytag.train.publish import versions
from raytag.train.settings import FinetuneSettings
from raytag.train.sweep_settings import OF_DATA, SweepSettings, Trial, read_trials
from raytag.train.trial import Assignment, Trainer, train_adapter
from raytag.train.tuning import Agenda, Failure, run_trials
from raytag.train.worker import judged

_READ = (*OF_DATA, "examples", "k_shot", "seed")
"""Settings that say what is read and drawn."""
_HELD = (
    *("base", "revision", "head", "load_in", "zero", "offload", "rank", "targets"),
    *("batch_tokens", "gradient_checkpointing"),
)
"""Settings that say what memory is needed, and what for."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """What a sweep came to."""

    comparison: Comparison
    trials: int
    """That were asked for, in this run or before."""
    failed: Mapping[str, Failure]
    """By the trial's name."""


def sweep(settings: SweepSettings, trainers: Mapping[str, Trainer] | None = None) -> Swept | None:
    """Run the job on the Ray cluster at hand; None for a dry run.

    ``trainers`` are other ways of training than with an adapter, by the methods they stand for.
    Raises RaytagError for settings or data that cannot work; a trial that fails stops no other.
    """
    trainers = trainers or {}
    trials = read_trials(settings)
    check_output(settings.output)
    connect("sweep.py")
    check_reach(settings.output)
    seat = find_seat(settings, 1, "trial", dry=settings.dry_run).of_one_kind()
    assignments = _Assigner(settings, seat, trainers).assign(trials)
    by_run = {run: assigned.trial for run, assigned in assignments.items()}
    records = {
        run: record
        for run, record in read_records(settings.output, by_run).items()
        if record.state == "finished" or _would_be_stopped(record, settings.grace)
    }
    agenda = Agenda(by_run, settings.seeds[0], records)
    print(f"{agenda.left} trials to run, {len(records)} done already", flush=True)
    if settings.dry_run:
        return None
    failed = run_trials(settings, seat, assignments, agenda) if agenda.left else {}
    kept = [
        # A record is one training's; what it is called here follows from this sweep's settings.
        replace(
            agenda.records[run],
            data=trial.data,
            examples=trial.examples,
            method=trial.method,
            point=trial.point,
        )
        for run, trial in by_run.items()
        if run in agenda.records
    ]
    comparison = compare(
        settings.output.rstrip("/").rsplit("/", 1)[-1],
        kept,
        reference=settings.compared_with,
        first_seed=settings.seeds[0],
        asked=settings.methods,
        machine={"devices": sorted({record.device for record in kept}), "versions": versions()},
    )
    write_report(settings.output, comparison)
    return Swept(
        comparison=comparison,
        trials=len(kept) + len(failed),
        failed={by_run[run].name: failure for run, failure in failed.items()},
    )


def _would_be_stopped(record: TrialRecord, grace: float) -> bool:
    """Whether a trial that was stopped had the time that one has now."""
    return bool(grace) and record.evaluations[-1].step >= grace * record.total_steps


def read_records(output: str, runs: Collection[str]) -> dict[str, TrialRecord]:
    """The records of these runs that are there, by fingerprint, as they were written.

    Raises DataError for a file that is none.
    """
    found = {}
    for place in storage.list_files(storage.join(output, "trials")):
        run = place.rsplit("/", 1)[-1].removesuffix(".json")
        if run not in runs:
            continue
        try:
            found[run] = TrialRecord.from_json(storage.read_bytes(place).decode())
        except (ValueError, KeyError, TypeError) as exc:
            raise DataError(f"{place} is no record of a trial ({exc}); remove it") from exc
    return found


def write_report(output: str, comparison: Comparison) -> None:
    for name, text in (
        ("report.html", render_comparison(comparison)),
        ("report.md", to_markdown(comparison)),
        ("report.json", comparison.to_json()),
    ):
        storage.write_bytes(storage.join(output, name), text.encode())


@dataclass(frozen=True, kw_only=True)
class _Gathered:
    data: "ray.ObjectRef[TrainingData]"
    fingerprint: str
    window: int


class _Assigner:
    """Makes of each trial what a slot needs, reading each file and base once."""

    def __init__(
        self, settings: SweepSettings, seat: Seat, trainers: Mapping[str, Trainer]
    ) -> None:
        self._settings = settings
        self._seat = seat
        self._trainers = trainers
        self._bases: dict[tuple[str, str | None], tuple[Base, str]] = {}
        self._gathered: dict[tuple[Any, ...], _Gathered] = {}
        self._plans: dict[tuple[Any, ...], int] = {}
        self._said: set[str] = set()
        self._rejected: dict[Rejected, None] = {}

    def assign(self, trials: Sequence[Trial]) -> dict[str, Assignment]:
        """Assignments by fingerprint."""
        assignments: dict[str, Assignment] = {}
        for trial in trials:
            assigned = self._assignment(trial)
            if assigned.run in assignments:
                same = assignments[assigned.run].trial.name
                raise SettingsError(f"{trial.name} is the same as {same}; leave one of them out")
            assignments[assigned.run] = assigned
        if self._rejected and not self._settings.dry_run:
            write_rejected(
                storage.join(self._settings.output, "data", "rejected.jsonl"), self._rejected
            )
        return assignments

    def _assignment(self, trial: Trial) -> Assignment:
        told = trial.settings
        base, weights = self._base(told)
        parent = read_parent(told)
        data = self._data(trial)
        start = begun_from(told, weights, parent)
        run = settings_fingerprint(asdict(told), data.fingerprint, start)
        trainer = self._trainers.get(trial.method, train_adapter)
        if trainer is not train_adapter:
            named = f"{trainer.__qualname__} {run}"
            run = hashlib.sha256(named.encode()).hexdigest()
        return Assignment(
            trial=trial,
            data=data.data,
            base=base,
            weights=weights,
            zero=self._zero(told, base, data),
            run=run,
            parent=parent,
            trainer=trainer,
        )

    def _base(self, told: FinetuneSettings) -> tuple[Base, str]:
        key = told.base, told.revision
        if key not in self._bases:
            base = find_base(*key, weights=False)
            self._bases[key] = base, base_fingerprint(base, self._seat)
        head_config(self._bases[key][0], told.head, ())
        return self._bases[key]

    def _data(self, trial: Trial) -> _Gathered:
        key = tuple(getattr(trial.settings, name) for name in _READ)
        if key not in self._gathered:
            data = gather(trial.settings)
            for part, examples in (("dev", data.dev), ("test", data.test)):
                if not judged(examples):
                    raise DataError(f"data {trial.data}: {part} holds no entities to judge by")
            for note in data.notes:
                self._say(f"data {trial.data}: {note}")
            self._rejected |= dict.fromkeys(data.rejected)
            self._gathered[key] = _Gathered(
                data=ray.put(data), fingerprint=data.fingerprint(), window=data.window
            )
        return self._gathered[key]

    def _say(self, line: str) -> None:
        """Once, whatever the numbers of examples and the seeds."""
        if line not in self._said:
            self._said.add(line)
            print(line, flush=True)

    def _zero(self, told: FinetuneSettings, base: Base, data: _Gathered) -> int:
        """The ZeRO stage that a job of its own would have."""
        key = (*(getattr(told, name) for name in _HELD), data.window)
        if key not in self._plans:
            zero, need, there = preflight(told, self._seat, base, ray.get(data.data))
            share, place, lower = self._sharing()
            if there is not None and need.total * share > there:
                raise ResourceError(
                    f"{share} trials need {need.total * share / GIB:.1f} GiB of a {place}'s "
                    f"{there / GIB:.1f} GiB; lower {lower}"
                )
            self._plans[key] = zero
        return self._plans[key]

    def _sharing(self) -> tuple[int, str, str]:
        """How many trials share a memory, whose that is, and which setting says so."""
        settings = self._settings
        if self._seat.gpu:
            return settings.trials_per_gpu, "GPU", "--trials-per-gpu"
        most = max(map(self._seat.fits, nodes()))
        return min(most, settings.slots or most), "node", "--slots"
