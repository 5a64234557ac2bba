"""Machines die while a corpus is tagged: nothing is lost, nothing is there twice."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest
from test_tag_job import ROOT, SENTENCES, spans

from raytag import storage
from raytag.bulk.results import finished, read_results
from raytag.bulk.store import read_manifest
from raytag.local import LocalCluster

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
DOCUMENTS = 2000


def actors() -> list[psutil.Process]:
    """The processes that tag."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if "ShardTagger" in " ".join(process.info["cmdline"] or []):
            found.append(process)
    return found


def started(
    cluster: LocalCluster, corpus: str, output: str, model: Path
) -> "subprocess.Popen[str]":
    job = [sys.executable, str(ROOT / "jobs" / "tag.py"), "--input", corpus, "--output", output]
    job += ["--model", str(model), "--shard-documents", "20"]
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
    cluster: LocalCluster, s3: "S3Client", adapter: Path, tmp_path: Path
) -> None:
    chance = random.Random(7)
    corpus = tmp_path / "corpus.jsonl"
    ids = [f"d{i}" if i % 9 else f"d{i - i % 90}" for i in range(DOCUMENTS)]
    texts = [" ".join(chance.choices(SENTENCES, k=12)) for _ in ids]
    lines = (json.dumps({"id": i, "text": t}) for i, t in zip(ids, texts, strict=True))
    corpus.write_text("\n".join(lines), encoding="utf-8")
    assert len(set(ids)) < DOCUMENTS
    s3.create_bucket(Bucket="crashes")
    calm = started(cluster, str(corpus), "s3://crashes/calm", adapter)
    said, _ = calm.communicate(timeout=300)
    assert calm.returncode == 0, said[-3000:]

    output = "s3://crashes/wild"
    killed = {"drivers": 0, "actors": 0}
    for _ in range(5):
        driver = started(cluster, str(corpus), output, adapter)
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
    last = started(cluster, str(corpus), output, adapter)
    said, _ = last.communicate(timeout=300)
    assert last.returncode == 0, said[-3000:]
    assert killed == {"drivers": 5, "actors": 10}

    rows, calm_rows = (list(read_results(o, finished(o))) for o in (output, "s3://crashes/calm"))
    assert sorted(row["id"] for row in rows) == sorted(ids)
    assert found(rows) == found(calm_rows)
    assert sum(map(len, found(rows).values())) > DOCUMENTS
    listed = storage.list_files(storage.join(output, "data"))
    assert len(listed) == len(finished(output).shards) >= DOCUMENTS // 20


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
