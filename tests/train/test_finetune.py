"""Fine-tuning as its users run it: jobs on a real Ray cluster, files local and on S3."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from tiny import checkpoint

from raytag.local import LocalCluster
from raytag.report.content import Report, from_json
from raytag.text.formats import read_examples

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).resolve().parents[2]
JOB = ROOT / "jobs" / "finetune.py"
TRAIN = ROOT / "sample" / "news" / "train.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def rows() -> list[str]:
    return TRAIN.read_text(encoding="utf-8").splitlines()[:60]


def _conll(rows: list[str]) -> str:
    """The rows as CoNLL in IOB2, a word a line."""
    from raytag.text.words import words

    blocks = []
    for row in rows:
        example = json.loads(row)
        lines = []
        for start, end in words(example["text"]):
            tag = "O"
            for entity in example["entities"]:
                if entity["start"] <= start < entity["end"]:
                    prefix = "B" if start == entity["start"] else "I"
                    tag = f"{prefix}-{entity['label']}"
            lines.append(f"{example['text'][start:end]}\t{tag}")
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks) + "\n"


def _run(cluster: LocalCluster, *command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env=dict(cluster.environment),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


def _job(cluster: LocalCluster, *flags: str) -> "subprocess.CompletedProcess[str]":
    return _run(cluster, sys.executable, str(JOB), *flags)


def _submit(cluster: LocalCluster, *arguments: str) -> "subprocess.CompletedProcess[str]":
    ray = Path(sys.executable).with_name("ray")
    return _run(cluster, str(ray), "job", "submit", *arguments)


def _report(output: Path) -> Report:
    return from_json((output / "report" / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_gpu_users_line_on_a_tiny_base(
    cluster: LocalCluster, s3: "S3Client", base: Path, rows: list[str], tmp_path: Path
) -> None:
    s3.create_bucket(Bucket="news")
    s3.put_object(Bucket="news", Key="train.conll", Body=_conll(rows[:40]).encode())
    s3.put_object(Bucket="news", Key="dev.conll", Body=_conll(rows[40:50]).encode())
    s3.put_object(Bucket="news", Key="test.conll", Body=_conll(rows[50:]).encode())
    done = _submit(
        cluster,
        *("--working-dir", ".", "--"),
        *("python", "jobs/finetune.py", "--base", str(base), "--load-in", "8bit"),
        *("--train", "s3://news/train.conll", "--dev", "s3://news/dev.conll"),
        *("--test", "s3://news/test.conll", "--zero", "2", "--workers", "2"),
        *("--head", "generate", "--epochs", "2", "--output", "s3://news/run"),
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "s3://news/run/adapter" in done.stdout
    body = s3.get_object(Bucket="news", Key="run/report/report.json")["Body"].read()
    report = from_json(body.decode())
    assert report.resources.workers == 2
    assert report.resources.zero_stage == 2
    assert report.settings["load_in"] == "8bit"
    assert len(report.curve) == 2 * 3
    assert report.data.counts["train"]["examples"] == 40

    from raytag import storage
    from raytag.model.adapter import load_adapter

    storage.download_folder("s3://news/run/adapter", tmp_path / "adapter")
    loaded = load_adapter(tmp_path / "adapter")
    texts = [example.text for example in read_examples("s3://news/test.conll").examples]
    found = loaded.head.extract(loaded.model, loaded.head.ask(texts))
    kept = read_examples("s3://news/run/predictions/test.jsonl").examples
    assert [e.text for e in kept] == texts
    assert len(found) == len(texts)

    # The model card is the s3:// adapter's: its snippet is for a copy beside the program.
    card = (tmp_path / "adapter" / "README.md").read_text(encoding="utf-8")
    code = card.partition("```python\n")[2].partition("```")[0]
    assert "aws s3 cp --recursive s3://news/run/adapter adapter" in code
    shown = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert shown.stdout.startswith("tensor("), shown.stderr

    scored = _job_evaluate(cluster, "s3://news/run", tmp_path)
    assert scored.test == report.test
    assert scored.test_documents == report.test_documents


@pytest.mark.slow
def test_a_worker_killed_and_every_step_taken_once(
    cluster: LocalCluster, base: Path, rows: list[str], tmp_path: Path
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    output = tmp_path / "run"
    flags = ["--base", str(base), "--train", str(data), "--output", str(output)]
    flags += ["--workers", "2", "--zero", "2", "--batch-size", "2", "--epochs", "6"]
    flags += ["--checkpoint-every", "10", "--patience", "0", "--eval-every", "100"]
    tracking = (tmp_path / "mlflow").as_uri()
    process = subprocess.Popen(
        [sys.executable, str(JOB), *flags, "--mlflow", tracking],
        env={**cluster.environment, "MLFLOW_ALLOW_FILE_STORE": "true"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    saved = _until_saved(output, process)
    victims = _train_workers()
    assert len(victims) == 2
    os.kill(victims[1], signal.SIGKILL)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said[-3000:]
    report = _report(output)
    train = report.data.counts["train"]["examples"]
    steps = 6 * -(-train // 2)
    assert [point.step for point in report.curve] == list(range(1, steps + 1))
    # At most an interval was lost: it went on from a checkpoint at least as new as the one seen.
    resumed = [int(step) for step in re.findall(r"going on from step (\d+)", said)]
    assert len(resumed) == 1
    assert resumed[0] >= saved >= 10
    assert resumed[0] % 10 == 0
    assert all(a.seconds < b.seconds for a, b in zip(report.curve, report.curve[1:], strict=False))
    assert not (output / "checkpoints").exists()
    assert list((output / "tensorboard").glob("events.*"))
    assert list((tmp_path / "mlflow").glob("*/*/metrics/train/loss"))

    again = _job(cluster, *flags)
    assert again.returncode == 0
    assert "is finished already" in again.stdout
    other = _job(cluster, *flags, "--lr", "0.5")
    assert other.returncode == 2
    assert "holds another run (lr: 0.0001 there, 0.5 here)" in other.stderr


def _until_saved(output: Path, process: "subprocess.Popen[str]") -> int:
    """Wait for a complete checkpoint; the steps of the newest."""
    until = time.monotonic() + 120
    while not (saved := list(output.glob("checkpoints/*/*/manifest.json"))):
        assert process.poll() is None, process.communicate()[0][-3000:]
        assert time.monotonic() < until, "no checkpoint in two minutes"
        time.sleep(0.05)
    return max(int(path.parent.name.partition("-")[0]) for path in saved)


def _train_workers() -> list[int]:
    found: list[Any] = []
    for process in psutil.process_iter(["pid", "cmdline", "environ"]):
        title = " ".join(process.info["cmdline"] or [])
        if "RayTrainWorker" in title:
            found.append(process.info["pid"])
    return sorted(found)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--lrr", "3"], "unrecognized arguments: --lrr 3"),
        (["--lr", "fast"], "Parser key \"lr\": Expected a <class 'float'>"),
        (["--load-in", "8bit", "--zero", "3"], "--load-in 8bit does not work with --zero 3"),
        (["--train", "sample/nws/train.jsonl"], "sample/nws/train.jsonl: there is no such file"),
        (["--base", "sample/bse/x"], "no base model at sample/bse/x"),
        (["--workers", "many"], "workers must be a number or a range such as 2:8"),
        (["--workers", "64"], "no room for 64 workers of 1 CPU(s): the cluster has it for 2"),
        (["--batch-tokens", "100000000"], "each worker needs about"),
    ],
)
def test_a_mistake_is_one_line_and_status_2(
    cluster: LocalCluster, tmp_path: Path, flags: list[str], said: str
) -> None:
    sample = ["--config", "jobs/sample.yaml", "--output", str(tmp_path / "run")]
    done = _job(cluster, *sample, *flags)
    assert done.returncode == 2, done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert said in done.stderr
    assert not (tmp_path / "run" / "adapter").exists()


@pytest.mark.slow
def test_without_dev_the_last_weights_are_kept(
    cluster: LocalCluster, base: Path, rows: list[str], tmp_path: Path
) -> None:
    data, output = tmp_path / "train.jsonl", tmp_path / "run"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    flags = ["--base", str(base), "--train", str(data), "--output", str(output)]
    done = _job(cluster, *flags, "--dev-share", "0", "--epochs", "7", "--score-untrained", "true")
    assert done.returncode == 0, done.stderr[-3000:]
    report = _report(output)
    assert report.dev is None
    assert report.baseline is not None
    assert report.curve[-1].step == 7 * -(-report.data.counts["train"]["examples"] // 16)
    assert all(point.dev_f1 is None for point in report.curve)


def test_overwriting_never_touches_what_is_not_its_own(
    cluster: LocalCluster, base: Path, rows: list[str], tmp_path: Path
) -> None:
    corpus = tmp_path / "run" / "data" / "mine.jsonl"
    corpus.parent.mkdir(parents=True)
    corpus.write_text("\n".join(rows) + "\n", encoding="utf-8")
    flags = ["--base", str(base), "--train", str(corpus), "--output", str(tmp_path / "run")]
    done = _job(cluster, *flags, "--overwrite", "true")
    assert done.returncode == 2
    assert "holds files of something else" in done.stderr
    assert corpus.exists()


def test_mlflow_that_is_not_there_is_said_before_training(
    cluster: LocalCluster, base: Path, tmp_path: Path
) -> None:
    flags = ["--base", str(base), "--train", str(TRAIN), "--output", str(tmp_path / "run")]
    done = _job(cluster, *flags, "--mlflow", "nosuch://x")
    assert done.returncode == 2
    assert "MLflow at nosuch://x cannot be used" in done.stderr
    assert not list((tmp_path / "run").glob("checkpoints/*"))


def test_a_dry_run_says_what_it_needs_and_leaves_nothing(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    flags = [f"--{part}=sample/news/{part}.jsonl" for part in ("train", "dev", "test")]
    flags += ["--base", "sample/base", "--output", str(tmp_path / "run"), "--dry-run", "true"]
    done = _job(cluster, *flags, "--auto", "true")
    assert done.returncode == 0, done.stderr
    assert "auto: " in done.stdout
    assert "(for 300 examples, 3 million weights and the tag head)" in done.stdout
    assert "GiB  in all, for each worker" in done.stdout
    assert not (tmp_path / "run").exists()


def test_without_a_cluster_the_user_is_told(tmp_path: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    done = subprocess.run(
        [sys.executable, str(JOB), "--config", "jobs/sample.yaml", "--output", str(tmp_path)],
        env={**environment, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "none"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert "no Ray cluster to run on" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_stopped_with_two_workers_it_goes_on_with_one(
    cluster: LocalCluster, rows: list[str], tmp_path: Path
) -> None:
    data, output = tmp_path / "train.jsonl", tmp_path / "run"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    flags = ["--base", "sample/base", "--train", str(data), "--output", str(output)]
    flags += ["--lr", "0.001", "--batch-size", "4", "--epochs", "5", "--patience", "2"]
    flags += ["--checkpoint-every", "5"]
    process = subprocess.Popen(
        [sys.executable, str(JOB), *flags, "--workers", "2"],
        env=dict(cluster.environment),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    _until_saved(output, process)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=100)
    assert process.returncode == 130, said[-3000:]
    assert "the same command goes on from the last checkpoint" in said
    again = _job(cluster, *flags)
    assert again.returncode == 0, again.stderr[-3000:]
    found = re.search(r"going on from step (\d+)", again.stdout)
    assert found
    assert int(found[1]) >= 5
    report = _report(output)
    assert report.resources.workers == 1
    steps = [point.step for point in report.curve]
    assert steps == list(range(1, len(steps) + 1))
    # What is kept and scored is the best that dev saw, not the last.
    assert report.dev is not None
    assert report.dev.f1 == max(point.dev_f1 or 0.0 for point in report.curve) > 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "flags",
    [
        "--load-in bf16 --zero 3 --workers 2 --offload true --gradient-checkpointing true "
        "--head generate",
        "--load-in bf16 --zero 1 --workers 2 --head tag",
        "--load-in 4bit --zero 2 --workers 2 --head tag",
    ],
)
def test_what_is_said_to_work_together_does(
    cluster: LocalCluster, base: Path, rows: list[str], tmp_path: Path, flags: str
) -> None:
    data = tmp_path / "train.jsonl"
    data.write_text("\n".join(rows) + "\n", encoding="utf-8")
    output = tmp_path / "run"
    given = ["--base", str(base), "--train", str(data), "--output", str(output), "--epochs", "3"]
    done = _job(cluster, *given, "--lr", "0.01", *flags.split())
    assert done.returncode == 0, done.stderr[-3000:]
    report = _report(output)
    losses = [point.loss for point in report.curve]
    assert losses[-1] < losses[0]
    scored = _job_evaluate(cluster, output, tmp_path)
    assert scored.test is not None
    assert scored.test.micro.support > 0
    assert scored.test == report.test


def _job_evaluate(cluster: LocalCluster, output: Path | str, tmp_path: Path) -> Report:
    job = [sys.executable, str(ROOT / "jobs" / "evaluate.py"), "--adapter", f"{output}/adapter"]
    job += ["--data", f"{output}/data/test.jsonl", "--output", f"{tmp_path}/evaluation"]
    done = _run(cluster, *job)
    assert done.returncode == 0, done.stderr[-3000:]
    return from_json((tmp_path / "evaluation" / "report.json").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_literal_submission_trains_the_sample(cluster: LocalCluster) -> None:
    done = _submit(cluster, "jobs/finetune.py")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    report = _report(ROOT / "runs" / "sample")
    assert report.test is not None
    assert report.test.f1 > 0.9
