"""Hosts die while a corpus is tagged: nothing is lost, nothing is there twice."""

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ray_hosts import ROOT, RayHosts, finished
from test_adapter import make
from tiny import checkpoint

from raytag import storage
from raytag.bulk.results import finished as tagged
from raytag.bulk.results import read_results
from raytag.model.merge import merge_adapter
from raytag.model.settings import MergeSettings
from waiting import until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
DOCUMENTS, SHARD = 1500, 10


@pytest.fixture
def job(s3: "S3Client", tmp_path: Path) -> list[str]:
    """A corpus, a merged model, both on S3, and the flags that name them."""
    s3.create_bucket(Bucket="tagging")
    test = (ROOT / "sample" / "news" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    chance = random.Random(5)
    sentences = [json.loads(line)["text"] for line in test]
    rows = [
        {"id": f"d{i if i % 9 else i - i % 90}", "text": " ".join(chance.choices(sentences, k=8))}
        for i in range(DOCUMENTS)
    ]
    storage.write_bytes("s3://tagging/corpus.jsonl", "\n".join(map(json.dumps, rows)).encode())
    adapter = make(tmp_path / "adapter", checkpoint(tmp_path / "base"), "tag").folder
    merge_adapter(MergeSettings(adapter=str(adapter), output="s3://tagging/model", dtype="fp32"))
    flags = ["--input", "s3://tagging/corpus.jsonl", "--model", "s3://tagging/model"]
    return [*flags, "--shard-documents", str(SHARD)]


def done(output: str) -> int:
    """Shards that count as tagged."""
    return len(storage.list_files(f"{output}/_shards"))


def entities(output: str) -> dict[int, tuple[str, list[Any]]]:
    """By row; and each row is there once."""
    rows = list(read_results(output, tagged(output)))
    assert sorted(row["row"] for row in rows) == list(range(DOCUMENTS))
    files = storage.list_files(f"{output}/data")
    assert len(files) == len(tagged(output).shards) >= DOCUMENTS // SHARD
    return {row["row"]: (row["id"], row["entities"]) for row in rows}


def test_two_of_three_hosts_killed_on_the_way(hosts: RayHosts, job: list[str]) -> None:
    hosts.have_workers(3)
    finished(hosts.job("tag.py", "--output", "s3://tagging/calm", *job))

    wild = "s3://tagging/wild"
    running = hosts.job("tag.py", "--output", wild, *job)
    for share in (0.15, 0.4):
        until(lambda share=share: done(wild) > share * DOCUMENTS / SHARD, 120)  # type: ignore[misc]
        assert running.poll() is None
        hosts.kill(hosts.workers[0])
    assert done(wild) < 0.8 * DOCUMENTS / SHARD
    finished(running)

    found, calm = entities(wild), entities("s3://tagging/calm")
    assert sorted(id for id, _ in found.values()) == sorted(id for id, _ in calm.values())
    assert found == calm
    assert sum(len(said) for _, said in found.values()) > DOCUMENTS
