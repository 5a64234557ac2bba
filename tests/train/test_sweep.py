"""Sweeps: what they are told, which trial is next, and trials that equal single runs."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from raytag.arguments import read_settings
from raytag.errors import SettingsError
from raytag.local import LocalCluster
from raytag.report.comparison import Evaluation, TrialRecord
from raytag.report.content import from_json
from raytag.train.sweep_settings import SweepSettings, Trial, read_trials
from raytag.train.tuning import Agenda

ROOT = Path(__file__).resolve().parents[2]
NEWS = {part: f"sample/news/{part}.jsonl" for part in ("train", "dev", "test")}
TOLD: dict[str, Any] = {
    "output": "out",
    "job": {"base": "sample/base", "batch_size": 8},
    "data": {"news": NEWS, "all of it": {**NEWS, "examples": ["all"], "epochs": 2}},
    "examples": [20, 60],
    "methods": {
        "lora": {"ratio": 1, "grid": {"lr": [1e-3, 2e-3], "head_lr": [1e-3, 5e-3]}},
        "lora+16": {"ratio": 16},
    },
    "grid": {"lr": [1e-4, 2e-4, 3e-4]},
    "seeds": [7, 8],
}


def _settings(folder: Path, **told: Any) -> SweepSettings:
    file = folder / "sweep.yaml"
    file.write_text(json.dumps({**TOLD, **told}), encoding="utf-8")  # which is YAML
    return read_settings(SweepSettings, ["--config", str(file)], "sweep.py")


def test_a_sweep_is_every_point_of_every_grid_with_every_seed(tmp_path: Path) -> None:
    trials = read_trials(_settings(tmp_path))
    assert len(trials) == 3 * (4 + 3) * 2
    assert len({trial.name for trial in trials}) == len(trials)
    assert len({trial.cell for trial in trials}) == 3 * 2
    first, last = trials[0], trials[-1]
    assert first.name == "news 20 lora lr=0.001 head_lr=0.001 seed 7"
    assert last.name == "all of it all lora+16 lr=0.0003 seed 8"
    assert (first.settings.ratio, first.settings.head_lr, first.settings.epochs) == (1, 1e-3, 10)
    assert (last.settings.ratio, last.settings.lr, last.settings.epochs) == (16, 3e-4, 2)
    assert (last.settings.examples, last.settings.seed) == (0, 8)
    assert all(trial.settings.batch_size == 8 for trial in trials)


def test_words_that_look_like_numbers_are_words(tmp_path: Path) -> None:
    methods = {"some": {"revision": "12", "grid": {"zero": ["1", "2"], "rank": [4, 8]}}}
    trials = read_trials(_settings(tmp_path, job={"base": "7"}, methods=methods))
    assert {trial.settings.base for trial in trials} == {"7"}
    assert {trial.settings.revision for trial in trials} == {"12"}
    found = {(trial.settings.zero, trial.settings.rank) for trial in trials}
    assert found == {("1", 4), ("1", 8), ("2", 4), ("2", 8)}


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"methods": {}}, "methods is empty"),
        ({"seeds": [1, 1]}, "one twice"),
        ({"reference": "dora"}, "no method; there are lora, lora+16"),
        ({"keep_one_in": 1}, "keep_one_in must be at least 2"),
        ({"grace": 1}, "grace must be in \\[0, 1\\), not 1"),
        ({"job": {"rang": 3}}, "job: finetune.py has no setting rang"),
        ({"job": {"base": "b", "output": "x"}}, "output is the sweep's to say"),
        ({"job": {"base": "b", "workers": "2"}}, "workers is not for a trial"),
        ({"data": {"news": {"train": "t", "dev": "d"}}}, "news: test is missing"),
        ({"data": {"news": {**NEWS, "examples": 20}}}, "must be a list of numbers or all"),
        ({"methods": {"m": {"test": "else.jsonl"}}}, "m: test is for data to say"),
        ({"methods": {"m": {"grid": {"dev": ["d", "e"]}}}}, "m: grid: dev is for data to say"),
        ({"grid": {"overlaps": ["flatten", "reject"]}}, "grid: overlaps is for data to say"),
        ({"methods": {"m": {"lr": 1e-3}}}, "lr is both set and swept"),
        ({"methods": {"m": {"grid": {"lr": 1e-3}}}}, "lr needs a list of values"),
        ({"grid": {"lr": []}}, "lr needs a list of values"),
        ({"grid": {"epochs": [0]}}, "data news, method lora+16: epochs must be at least 1"),
        ({"grid": {"epochs": ["many"]}}, "data news, method lora+16:"),
    ],
)
def test_a_mistake_is_said_before_anything_is_loaded(
    tmp_path: Path, told: dict[str, Any], said: str
) -> None:
    with pytest.raises(SettingsError, match=said.replace("+", "\\+")):
        read_trials(_settings(tmp_path, **told))


def _record(trial: Trial, f1: float, state: Any = "finished") -> TrialRecord:
    return TrialRecord(
        data=trial.data,
        examples=trial.examples,
        method=trial.method,
        seed=trial.seed,
        point=trial.point,
        state=state,
        total_steps=1,
        losses=(),
        evaluations=[Evaluation(step=1, f1=f1, seconds=1.0)],
        seconds=1.0,
    )


def _drained(agenda: Agenda, trials: dict[str, Trial], scores: dict[str, float]) -> list[str]:
    """What the agenda gives, one after another; ``scores`` are dev F1, none for a failure."""
    given = []
    while (run := agenda.next()) is not None:
        given.append(run)
        if run in scores:
            agenda.records[run] = _record(trials[run], scores[run])
        agenda.settle(run)
    return given


def test_the_best_of_a_grid_is_repeated_before_other_grids_go_on(tmp_path: Path) -> None:
    settings = _settings(tmp_path, examples=[20], data={"news": NEWS})
    trials = {trial.name: trial for trial in read_trials(settings)}
    search = [name for name, trial in trials.items() if trial.seed == 7]
    lora, plus = search[:4], search[4:]
    scores = {name: 0.1 * i for i, name in enumerate([*lora[1:], lora[0]])} | {
        name.replace("seed 7", "seed 8"): 0.9 for name in search
    }
    scores |= {plus[0]: 0.5, plus[2]: 0.5}  # two alike, and one between that fails
    repeated = [name.replace("seed 7", "seed 8") for name in (lora[0], plus[0])]

    agenda = Agenda(trials, 7, {})
    assert agenda.left == 7 + 2
    assert _drained(agenda, trials, scores) == [*lora, repeated[0], *plus, repeated[1]]
    assert agenda.left == 0

    # From what is on file it goes on; what was stopped is known, and never the best.
    known = {name: agenda.records[name] for name in lora[1:]}
    known[lora[1]] = replace(known[lora[1]], state="stopped")
    again = Agenda(trials, 7, known)
    assert again.left == 4 + 2
    assert _drained(again, trials, scores) == [lora[0], repeated[0], *plus, repeated[1]]
    kept = {name: record for name, record in agenda.records.items() if "lora+16" not in name}
    assert _drained(Agenda(trials, 7, kept), trials, scores) == [*plus, repeated[1]]
    # Stopped when its seed was the first of a search, which now is but a repetition.
    before = {**agenda.records, repeated[0]: replace(agenda.records[repeated[0]], state="stopped")}
    assert _drained(Agenda(trials, 7, before), trials, scores) == [repeated[0], plus[1]]
    nothing = Agenda({name: trials[name] for name in trials if name not in plus}, 7, {})
    assert _drained(nothing, trials, {}) == lora


def _command(job: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{job}.py"), *flags]


def _start(cluster: LocalCluster, command: Sequence[str]) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command,
        env={**cluster.environment, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def _ended(process: "subprocess.Popen[str]") -> str:
    said, _ = process.communicate(timeout=250)
    assert process.returncode == 0, said[-3000:]
    return said


def _single(told: dict[str, Any], output: Path, **point: Any) -> list[str]:
    """The job of its own that a trial of this sweep should equal."""
    given = {**told["job"], **told["data"]["news"], "examples": told["examples"][0], **point}
    return _command(
        "finetune", *(f"--{key}={value}" for key, value in given.items()), f"--output={output}"
    )


def _records(output: Path) -> dict[float, TrialRecord]:
    """By rate of A."""
    files = (output / "trials").iterdir()
    found = [TrialRecord.from_json(file.read_text(encoding="utf-8")) for file in files]
    return {record.point["lr"]: record for record in found}


def _assert_equal(record: TrialRecord, output: Path) -> None:
    report = from_json((output / "report" / "report.json").read_text(encoding="utf-8"))
    assert record.state == "finished"
    assert record.losses == [point.loss for point in report.curve]
    assert {e.step: e.f1 for e in record.evaluations} == {
        point.step: point.dev_f1 for point in report.curve if point.dev_f1 is not None
    }
    assert report.test is not None
    found = report.test.micro
    assert record.counts.sum(axis=0).tolist() == [found.tp, found.fp, found.fn]
    assert report.dev is not None
    assert record.peak.f1 == report.dev.f1
    assert record.settings == {**report.settings, "output": record.settings["output"]}


@pytest.fixture
def told(tmp_path: Path) -> dict[str, Any]:
    """A sweep of seconds: one method, one seed, one trial at a time."""
    news = {}
    for part, size in (("train", 80), ("dev", 40), ("test", 40)):
        rows = (ROOT / NEWS[part]).read_text(encoding="utf-8").splitlines()[:size]
        news[part] = str(tmp_path / f"{part}.jsonl")
        Path(news[part]).write_text("\n".join(rows) + "\n", encoding="utf-8")
    with Path(news["train"]).open("a", encoding="utf-8") as train:
        train.write("no row\n")
    return {
        "output": str(tmp_path / "sweep"),
        "job": {"base": "sample/base", "batch_size": 8, "epochs": 3, "on_bad": "set-aside"},
        "data": {"news": news},
        "examples": [64],
        "methods": {"lora+16": {"ratio": 16}},
        "grid": {"lr": [1e-5, 5e-4]},
        "seeds": [0],
        "slots": 1,
    }


def test_killed_and_gone_on_a_trial_equals_its_single_run_and_the_hopeless_is_stopped(
    cluster: LocalCluster, told: dict[str, Any], tmp_path: Path
) -> None:
    file, output = tmp_path / "sweep.yaml", tmp_path / "sweep"
    file.write_text(json.dumps(told), encoding="utf-8")
    single = _start(cluster, _single(told, tmp_path / "single", lr=5e-4))
    driver = _start(cluster, _command("sweep", "--config", str(file)))
    assert driver.stdout is not None
    for line in driver.stdout:
        if "lr=0.0005" in line and "training" in line:
            break
    os.killpg(driver.pid, signal.SIGKILL)
    driver.wait()
    (first,) = (output / "trials").iterdir()
    written = first.stat().st_mtime_ns

    # The same again, with a rate at which nothing is learnt.
    told = {**told, "grid": {"lr": [1e-5, 5e-4, 1e-12]}, "grace": 0.5}
    file.write_text(json.dumps(told), encoding="utf-8")
    said = _ended(_start(cluster, _command("sweep", "--config", str(file))))
    _ended(single)
    assert "2 trials to run, 1 done already" in said
    assert first.stat().st_mtime_ns == written
    records = _records(output)
    assert records.keys() == {1e-5, 5e-4, 1e-12}
    _assert_equal(records[5e-4], tmp_path / "single")
    assert records[5e-4].test_f1 > 0.1
    assert records[1e-12].state == "stopped"
    assert records[1e-12].evaluations[-1].step == 16
    (contest,) = json.loads((output / "report.json").read_text(encoding="utf-8"))["contests"]
    (standing,) = contest["methods"]
    assert standing["point"] == {"lr": 5e-4}
    assert (standing["tried"], standing["stopped"]) == (3, 1)
    assert standing["test"]["mean"] == records[5e-4].test_f1
    assert "lora+16" in (output / "report.html").read_text(encoding="utf-8")
    # What every job says of its data is said once, and what was set aside is kept.
    assert said.count("data news: train: 64 examples drawn by seed 0") == 1
    (row,) = (output / "data" / "rejected.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["raw"] == "no row"

    # What was stopped counts where one would be stopped again, and not where none is.
    file.write_text(json.dumps({**told, "grace": 0.0}), encoding="utf-8")
    again = _command("sweep", "--config", str(file), "--dry-run", "true")
    assert "1 trials to run, 2 done already" in _ended(_start(cluster, again))
    # A grid that names a setting more, at its default, has the same trials by longer names.
    told["grid"]["head_lr"] = [1e-3]
    file.write_text(json.dumps(told), encoding="utf-8")
    said = _ended(_start(cluster, _command("sweep", "--config", str(file))))
    assert "0 trials to run, 3 done already" in said
    (contest,) = json.loads((output / "report.json").read_text(encoding="utf-8"))["contests"]
    assert contest["methods"][0]["point"] == {"lr": 5e-4, "head_lr": 1e-3}


@pytest.mark.slow
@pytest.mark.parametrize("head", ["tag", "generate"])
def test_every_trial_of_a_grid_equals_its_single_run(
    cluster: LocalCluster, told: dict[str, Any], tmp_path: Path, head: str
) -> None:
    told["job"] |= {"head": head, "epochs": 2}
    told |= {"slots": 0}
    file = tmp_path / "sweep.yaml"
    file.write_text(json.dumps(told), encoding="utf-8")
    _ended(_start(cluster, _command("sweep", "--config", str(file))))
    records = _records(tmp_path / "sweep")
    assert records.keys() == {1e-5, 5e-4}
    for lr, record in records.items():
        output = tmp_path / f"{lr}"
        _ended(_start(cluster, _single(told, output, lr=lr)))
        _assert_equal(record, output)
