"""What counts and when: a shard is there whole or not at all, wherever its writer dies."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa
import pytest

from deaths import killed_at
from raytag import storage
from raytag.bulk.corpus import Columns, CorpusFile, Stretch
from raytag.bulk.store import (
    Plan,
    Receipt,
    Tally,
    commit,
    finish,
    read_manifest,
    read_plan,
    read_receipt,
    read_receipts,
    read_rejects,
    settle_plan,
)
from raytag.errors import StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

DATA, REJECTS = b"rows of the shard", b'{"id": "x", "file": "a", "row": 3, "reason": "odd"}\n'


def plan(shards: int = 2, generation: int = 0) -> Plan:
    schema = pa.schema([("year", pa.int64())])
    columns = Columns(text="text", id=None, schema=schema, sources=("year",))
    return Plan(
        generation=generation,
        settings={"limit": 0},
        model="model",
        files=[CorpusFile(uri="/c/a", name="a", kind="jsonl", size=9, fingerprint="9:1")],
        columns=columns,
        shards=[[Stretch(0, 4 * i, 4)] for i in range(shards)],
    )


def receipt(shard: str, rejected: int = 1) -> Receipt:
    return Receipt(
        shard=shard,
        documents=4,
        tagged=4 - rejected,
        rejected=rejected,
        data=None,
        rejects=None,
        labels={"PER": 2},
        names={"PER": {"Ann": 1, "Bo": 1}},
    )


def work(output: str) -> None:
    """What the actor of shard 00000 does."""
    commit(output, receipt("00000"), "parquet", DATA, REJECTS)


def check_reader(output: str) -> bool:
    """Whether the shard is done; if it is, all it names is there and whole."""
    assert read_manifest(output) is None
    found = read_receipt(output, "00000")
    if found is None:
        return False
    for name, sum_ in ((found.data, found.data_sha256), (found.rejects, found.rejects_sha256)):
        assert name is not None
        content = storage.read_bytes(storage.join(output, name))
        assert hashlib.sha256(content).hexdigest() == sum_
    return True


def killed_at_every_step(folder: Callable[[int], str]) -> None:
    seen = set()
    for step in range(100):
        output = folder(step)
        was_killed = killed_at(step, output, lambda output=output: work(output))  # type: ignore[misc]
        seen.add(check_reader(output))
        work(output)
        assert check_reader(output)
        commit(output, receipt("00001"), "parquet", DATA, REJECTS)
        finish(output, plan(), read_receipts(output, plan()).values(), None)
        manifest = read_manifest(output)
        assert manifest is not None
        assert (manifest.documents_in, manifest.documents_out) == (8, 6)
        counted = {storage.join(output, r.data or "") for r in manifest.shards}
        assert set(storage.list_files(storage.join(output, "data"))) == counted
        if not was_killed:
            assert step > 5
            assert seen == {False, True}
            return
    pytest.fail("it never came to its end")


def test_killed_at_every_step_of_a_commit_on_a_disk(tmp_path: Path) -> None:
    killed_at_every_step(lambda step: str(tmp_path / str(step)))


def test_killed_at_every_request_of_a_commit_on_s3(s3: "S3Client") -> None:
    s3.create_bucket(Bucket="commits")
    killed_at_every_step(lambda step: f"s3://commits/{step}")


def test_of_two_that_tag_a_shard_the_first_counts(tmp_path: Path) -> None:
    output = str(tmp_path)
    first = commit(output, receipt("00000"), "parquet", b"first", None)
    second = commit(output, receipt("00000", rejected=0), "parquet", b"second", REJECTS)
    assert second == first
    assert [Path(uri).read_bytes() for uri in storage.list_files(tmp_path / "data")] == [b"first"]
    assert storage.list_files(tmp_path / "_rejected") == []


def test_of_two_drivers_the_first_plans(tmp_path: Path) -> None:
    assert settle_plan(str(tmp_path), plan(2)) == plan(2)
    assert settle_plan(str(tmp_path), plan(3)) == plan(2)
    assert read_plan(str(tmp_path)) == plan(2)
    assert read_plan(str(tmp_path), generation=1) is None
    (tmp_path / "_plan.json").write_text("{}")
    with pytest.raises(StorageError, match="is no plan of a tagging job"):
        read_plan(str(tmp_path))


@pytest.mark.parametrize("wrong", ["missing", "short"])
def test_documents_that_are_missing_are_never_a_result(tmp_path: Path, wrong: str) -> None:
    output = str(tmp_path)
    receipts = [commit(output, receipt("00000"), "parquet", DATA, REJECTS)]
    if wrong == "short":
        lost = Receipt(shard="00001", documents=4, tagged=3, rejected=0, data=None, rejects=None)
        receipts.append(commit(output, lost, "parquet", DATA, None))
    with pytest.raises(RuntimeError, match="00001"):
        finish(output, plan(), receipts, None)
    assert read_manifest(output) is None


def test_what_was_set_aside_is_tried_again_in_a_generation_of_its_own(tmp_path: Path) -> None:
    output = str(tmp_path)
    done = [commit(output, receipt(f"0000{i}"), "parquet", DATA, REJECTS) for i in range(2)]
    finish(output, plan(), done, None)
    before = read_manifest(output)
    assert before is not None
    assert [reject["row"] for reject in read_rejects(output, before)] == [3, 3]
    again = Plan(**{**vars(plan(1, 1)), "shards": [[Stretch(0, 3, 1), Stretch(0, 7, 1)]]})
    tried = Receipt(shard="1-00000", documents=2, tagged=1, rejected=1, data=None, rejects=None)
    finish(output, again, [commit(output, tried, "parquet", b"more", REJECTS)], before)
    after = read_manifest(output)
    assert after is not None
    assert (after.documents_in, after.documents_out, after.documents_rejected) == (8, 7, 1)
    assert after.labels == {"PER": 4}
    assert len(list(read_rejects(output, after))) == 1
    assert len(storage.list_files(storage.join(output, "_rejected"))) == 1
    assert len(storage.list_files(storage.join(output, "data"))) == 3


def test_sums_keep_the_most_frequent_names() -> None:
    tally = Tally()
    for i in range(300):
        names = {f"rare {i} {j}": 1 for j in range(150)} | {"Ann": 3}
        tally.add(Receipt(**{**vars(receipt("x")), "names": {"PER": names}}))
    assert tally.top(1) == {"PER": [("Ann", 900)]}
    assert len(tally.names["PER"]) < 25_000
    assert tally.labels == {"PER": 600}


def test_a_plan_says_what_it_is(tmp_path: Path) -> None:
    said = json.loads(plan().to_json())
    assert said["shards"] == [[[0, 0, 4, 0, 0]], [[0, 4, 4, 0, 0]]]
    assert plan().documents == 8
    assert plan(generation=2).shard_name(3) == "2-00003"
