"""A cluster that asks nobody for a token is refused, unless the user says so."""

import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from raytag.local import LocalCluster

ROOT = Path(__file__).resolve().parents[1]


class OpenCluster(LocalCluster):
    """As Ray starts one where nothing is said; its clients have a token nevertheless."""

    @property
    def environment(self) -> Mapping[str, str]:
        return {**super().environment, "RAY_AUTH_MODE": "disabled"}


@pytest.fixture(scope="module")
def open_cluster() -> Iterator[LocalCluster]:
    with OpenCluster(cpus=1) as running:
        yield running


def ran(
    cluster: LocalCluster, *command: str, **variables: str
) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        cwd=ROOT,
        env={**cluster.environment, "PYTHONPATH": str(ROOT / "platform"), **variables},
        capture_output=True,
        text=True,
        timeout=200,
    )


def job(output: Path) -> list[str]:
    flags = ["--base", "sample/base", "--train", "sample/news/train.jsonl", "--dry-run", "true"]
    return ["python", "jobs/finetune.py", *flags, "--output", str(output)]


def test_a_job_is_refused_in_one_line(open_cluster: LocalCluster, tmp_path: Path) -> None:
    """With a token too, which Ray takes there without a look."""
    refused = ran(open_cluster, *job(tmp_path), RAY_AUTH_MODE="token")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    (line,) = refused.stderr.splitlines()
    assert line.startswith(f"error: the Ray cluster at {open_cluster.address} is open")
    assert "RAYTAG_ALLOW_OPEN_CLUSTER=1" in line
    assert "plan:" not in refused.stdout


def test_the_same_job_goes_on_where_its_user_says_so(
    open_cluster: LocalCluster, tmp_path: Path
) -> None:
    said = '{"env_vars": {"RAYTAG_ALLOW_OPEN_CLUSTER": "1"}}'
    ray = str(Path(sys.executable).with_name("ray"))
    submit = [ray, "job", "submit", "--working-dir", ".", "--runtime-env-json", said, "--"]
    done = ran(open_cluster, *submit, *job(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "plan: 1 CPU worker(s)" in done.stdout


@pytest.mark.slow
def test_what_serve_deploy_builds_is_refused_too(open_cluster: LocalCluster) -> None:
    build = "import ray; ray.init(); import raytag.serve.app as app; app.build({'base': 'any'})"
    refused = ran(open_cluster, "python", "-c", build)
    assert refused.returncode == 1
    assert "is open: whoever reaches it" in refused.stderr


@pytest.mark.slow
def test_a_closed_cluster_is_not_taken_for_none(cluster: LocalCluster, tmp_path: Path) -> None:
    refused = ran(cluster, *job(tmp_path), RAY_AUTH_MODE="disabled")
    assert refused.returncode == 2, refused.stdout + refused.stderr
    assert refused.stderr.splitlines()[-1].startswith(
        f"error: the Ray cluster at {cluster.address} lets nobody in from here"
    )
