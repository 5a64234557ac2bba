"""Machines die while a corpus is tagged: nothing is lost, nothing is there twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from test_tag_job import ROOT, SENTENCES, spans

from ceph import Ceph
from raytag import storage
from raytag.bulk.results import finished, read_results
from raytag.bulk.store import read_manifest
from raytag.local import LocalCluster

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DOCUMENTS = 2000
SHARD = 20
"""Documents in each."""


@pytest.fixture
def beside_ceph(s3: object, ceph: Ceph, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    """A cluster whose workers reach Ceph's gateway instead of ``s3``, as this process does."""
    for name, value in ceph.variables.items():
        monkeypatch.setenv(name, value)
    with LocalCluster(cpus=2) as running:
        yield running


@pytest.fixture(params=["cluster", "beside_ceph"], ids=["moto", "ceph"])
def reaching_s3(request: pytest.FixtureRequest) -> LocalCluster:
    running: LocalCluster = request.getfixturevalue(request.param)
    return running


def write_corpus(file: Path, chance: random.Random) -> list[str]:
    """Documents of about twelve sentences; gives their ids, some of which are there twice."""
    ids = [f"d{i}" if i % 9 else f"d{i - i % 90}" for i in range(DOCUMENTS)]
    texts = [" ".join(chance.choices(SENTENCES, k=12)) for _ in ids]
    lines = (json.dumps({"id": i, "text": t}) for i, t in zip(ids, texts, strict=True))
    file.write_text("\n".join(lines), encoding="utf-8")
    assert len(set(ids)) < DOCUMENTS
    return ids


def actors() -> list[psutil.Process]:
    """The processes that tag, of the clusters started here."""
    ours = {process.pid for process in psutil.Process().children(recursive=True)}
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if process.pid in ours and "ShardTagger" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def started(
    cluster: LocalCluster, corpus: str, output: str, model: Path
) -> "subprocess.Popen[str]":
    job = [sys.executable, str(ROOT / "jobs" / "tag.py"), "--input", corpus, "--output", output]
    job += ["--model", str(model), "--shard-documents", str(SHARD)]
    return subprocess.Popen(
        job,
        env=dict(cluster.environment),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def done(output: str) -> int:
    return len(storage.list_files(storage.join(output, "_shards")))


def test_drivers_and_actors_killed_again_and_again(
    reaching_s3: LocalCluster, adapter: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)
    corpus = tmp_path / "corpus.jsonl"
    ids = write_corpus(corpus, chance)
    boto3.Session().client("s3").create_bucket(Bucket="crashes")
    calm = started(reaching_s3, str(corpus), "s3://crashes/calm", adapter)
    said, _ = calm.communicate(timeout=300)
    assert calm.returncode == 0, said[-3000:]

    output = "s3://crashes/wild"
    killed = {"drivers": 0, "actors": 0}
    for _ in range(5):
        driver = started(reaching_s3, str(corpus), output, adapter)
        for _ in range(2):
            before = done(output)
            # Once one has begun to tag, at some moment of its work.
            wait_for(lambda before=before: done(output) > before, driver)  # type: ignore[misc]
            time.sleep(chance.uniform(0, 0.3))
            chance.choice(actors()).kill()
            killed["actors"] += 1
        time.sleep(chance.uniform(0, 1))
        assert driver.poll() is None, driver.communicate()[0][-3000:]
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        killed["drivers"] += 1
        assert read_manifest(output) is None
    last = started(reaching_s3, str(corpus), output, adapter)
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said[-3000:]
    assert killed == {"drivers": 5, "actors": 10}

    rows, calm_rows = whole(output, ids), whole("s3://crashes/calm", ids)
    assert found(rows) == found(calm_rows)
    assert sum(map(len, found(rows).values())) > DOCUMENTS


def test_a_store_that_dies_is_waited_for_and_then_said_in_a_line(
    ceph: Ceph, beside_ceph: LocalCluster, adapter: Path, tmp_path: Path
) -> None:
    corpus, output = tmp_path / "corpus.jsonl", "s3://outage/tags"
    ids = write_corpus(corpus, random.Random(8))
    boto3.Session().client("s3").create_bucket(Bucket="outage")

    job = started(beside_ceph, str(corpus), output, adapter)
    wait_for(lambda: done(output), job)
    ceph.kill_gateway()
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 2, said[-3000:]
    assert "Traceback" not in said
    # Ray may add a line of its own about the actors that end with the job.
    errors = [line for line in said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, said[-3000:]
    assert errors[0].startswith("error: s3://outage/")
    ceph.start_gateway()
    assert read_manifest(output) is None

    before = done(output)
    assert 0 < before < DOCUMENTS // SHARD
    job = started(beside_ceph, str(corpus), output, adapter)
    wait_for(lambda: done(output) > before, job)
    ceph.kill_gateway()
    time.sleep(3)
    assert job.poll() is None
    ceph.start_gateway()
    said, _ = job.communicate(timeout=300)
    assert job.returncode == 0, said[-3000:]
    whole(output, ids)


def whole(output: str, ids: list[str]) -> list[dict[str, Any]]:
    """The rows of a finished job, of which every document is one; and nothing else lies there."""
    rows = list(read_results(output, finished(output)))
    assert sorted(row["id"] for row in rows) == sorted(ids)
    assert sorted(row["row"] for row in rows) == list(range(len(ids)))
    listed = storage.list_files(storage.join(output, "data"))
    assert len(listed) == len(finished(output).shards) >= DOCUMENTS // SHARD
    return rows


def found(rows: list[dict[str, Any]]) -> dict[int, list[tuple[int, int, str]]]:
    return {row["row"]: spans(row) for row in rows}


def wait_for(true: Any, driver: "subprocess.Popen[str]") -> None:
    until = time.monotonic() + 120
    while not true():
        assert driver.poll() is None, driver.communicate()[0][-3000:]
        assert time.monotonic() < until, "nothing happened in two minutes"
        time.sleep(0.05)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk")
def test_a_full_disk_is_said_in_a_line(
    cluster: LocalCluster, adapter: Path, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=True)
    try:
        corpus = tmp_path / "corpus.jsonl"
        rows = (json.dumps({"text": " ".join(SENTENCES), "n": i}) for i in range(30))
        corpus.write_text("\n".join(rows), encoding="utf-8")
        job = started(cluster, str(corpus), str(disk / "tags"), adapter)
        said, _ = job.communicate(timeout=200)
        assert job.returncode == 2, said[-3000:]
        assert "No space left on device" in said.strip().splitlines()[-1]
        assert read_manifest(str(disk / "tags")) is None
    finally:
        subprocess.run(["umount", str(disk)], check=True)
