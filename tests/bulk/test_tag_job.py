"""Tagging as its users run it: jobs on a real Ray cluster, corpora local and on S3."""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.parquet as pq
import pytest

from raytag import storage
from raytag.bulk.results import read_results
from raytag.bulk.settings import TagSettings
from raytag.bulk.store import read_rejects
from raytag.bulk.tag import tag
from raytag.errors import DataError, ResourceError, SettingsError, StorageError
from raytag.local import LocalCluster
from raytag.model.adapter import load_adapter
from raytag.model.merge import merge_adapter
from raytag.model.settings import MergeSettings
from raytag.model.tagger import Tagger

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).resolve().parents[2]
SENTENCES = [
    json.loads(line)["text"]
    for line in (ROOT / "sample" / "news" / "test.jsonl").read_text(encoding="utf-8").splitlines()
]


def spans(row: dict[str, Any]) -> list[tuple[int, int, str]]:
    return [(e["start"], e["end"], e["label"]) for e in row["entities"]]


def alone(adapter: Path, texts: list[str]) -> list[list[tuple[int, int, str]]]:
    """What the tagger says of each text in a call of its own."""
    tagger = Tagger.of(load_adapter(adapter))
    return [[(e.start, e.end, e.label) for e in tagger.tag([text])[0]] for text in texts]


@pytest.fixture
def odd_corpus(s3: "S3Client") -> tuple[str, list[bytes]]:
    """JSON lines with all that is odd, and the lines."""
    s3.create_bucket(Bucket="corpus")
    good = [{"id": f"d{i % 40}", "text": SENTENCES[i], "year": 1900 + i} for i in range(60)]
    good += [
        {"id": "empty", "text": ""},
        {"id": "one", "text": "a"},
        {"id": "blank", "text": " \n\t"},
    ]
    good += [{"id": "long", "text": " ".join(SENTENCES * 50)[:1_000_000]}]
    lines = [json.dumps(row, ensure_ascii=False).encode() for row in good]
    lines.insert(7, b'{"id": "bytes", "text": "caf\xe9 Vlutik"}')
    lines.insert(9, b"not json at all")
    lines.insert(30, b'{"id": "half", "text": "a\\ud800b"}')
    lines.append(b'{"id": "none", "year": 3}')
    s3.put_object(Bucket="corpus", Key="a.jsonl", Body=b"\n".join(lines[:40]))
    s3.put_object(Bucket="corpus", Key="b.jsonl", Body=b"\n".join(lines[40:]) + b"\n")
    return "s3://corpus/", lines


def test_a_corpus_with_all_that_is_odd_is_accounted_for(
    driver: None, odd_corpus: tuple[str, list[bytes]], adapter: Path, tmp_path: Path
) -> None:
    corpus, lines = odd_corpus
    settings = TagSettings(
        input=corpus,
        output="s3://corpus-tags/run",
        model=str(adapter),
        shard_documents=16,
        max_rejected=0.2,
    )
    with pytest.raises(Exception, match="has no bucket 'corpus-tags'"):
        tag(settings)
    settings = replace(settings, output="s3://corpus/_tags")
    manifest = tag(settings)
    assert manifest.documents_in == len(lines) == 68
    assert manifest.documents_out == 64
    assert manifest.documents_rejected == 4
    rows = list(read_results(settings.output, manifest))
    rejects = list(read_rejects(settings.output, manifest))
    keys = Counter((r["file"], r["row"]) for r in (*rows, *rejects))
    assert keys == Counter(
        [("a.jsonl", i) for i in range(40)] + [("b.jsonl", i) for i in range(len(lines) - 40)]
    )
    reasons = {(r["file"], r["row"]): r["reason"] for r in rejects}
    assert len(reasons) == 4
    assert "is not utf-8" in reasons["a.jsonl", 7]
    by_key = {(r["file"], r["row"]): r for r in rows}
    for i, line in enumerate(lines):
        place = ("a.jsonl", i) if i < 40 else ("b.jsonl", i - 40)
        if place in by_key:
            given, row = json.loads(line), by_key[place]
            assert row["id"] == given["id"]
            assert row["text"] == given["text"]
            assert row["year"] == given.get("year")
            for entity in row["entities"]:
                assert row["text"][entity["start"] : entity["end"]] == entity["text"]
    assert sum(len(spans(row)) for row in rows) == sum(manifest.labels.values()) > 100
    sample = [row for row in rows if len(row["text"]) < 300]
    assert [spans(row) for row in sample] == alone(adapter, [row["text"] for row in sample])

    assert tag(settings) == manifest
    with pytest.raises(SettingsError, match="threshold: None there, 0.5 here"):
        tag(replace(settings, threshold=0.5))
    again = tag(replace(settings, replay=True, encoding="latin-1"))
    assert (again.documents_in, again.documents_out, again.documents_rejected) == (68, 65, 3)
    cafe = next(row for row in read_results(settings.output, again) if row["id"] == "bytes")
    assert cafe["text"] == "café Vlutik"
    assert len(list(read_results(settings.output, again))) == 65


def test_too_many_rejects_stop_the_job(driver: None, adapter: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.jsonl"
    lines = [json.dumps({"text": text}) for text in SENTENCES[:30]]
    corpus.write_text("\n".join([*lines, *["broken"] * 5]), encoding="utf-8")
    settings = TagSettings(
        input=str(corpus), output=str(tmp_path / "tags"), model=str(adapter), format="jsonl"
    )
    with pytest.raises(DataError, match="5 of 35 documents had to be set aside"):
        tag(settings)
    assert not (tmp_path / "tags" / "_manifest.json").exists()
    manifest = tag(replace(settings, max_rejected=0.2))
    assert (manifest.documents_out, manifest.documents_rejected) == (30, 5)
    found = [spans(row) for row in list(read_results(settings.output, manifest))]
    assert found == alone(adapter, SENTENCES[:30])


def test_merged_or_not_and_however_many_actors(
    driver: None,
    s3: "S3Client",
    given: Callable[[str], int],
    adapter: Path,
    tmp_path: Path,
) -> None:
    s3.create_bucket(Bucket="models")
    model, base = "s3://models/merged", "s3://models/base"
    storage.upload_folder(adapter.parent / "base", base)
    merge_adapter(MergeSettings(adapter=str(adapter), output=model, base=base, dtype="fp32"))
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(40):
        (corpus / f"{i:02}.txt").write_text(" ".join(SENTENCES[i : i + 8]), encoding="utf-8")
    found = []
    for actors, name in (("1", str(adapter)), ("2", model)):
        output = str(tmp_path / f"tags-{actors}")
        settings = TagSettings(
            input=str(corpus),
            output=output,
            model=name,
            base=base,
            actors=actors,
            shard_documents=5,
        )
        manifest = tag(settings)
        assert manifest.documents_out == 40
        found.append({row["id"]: spans(row) for row in read_results(output, manifest)})
    assert found[0] == found[1]
    # For merging and tagging, and for two actors.
    assert [given(f"{uri}/model.safetensors") for uri in (base, model)] == [1, 1]
    texts = [(corpus / f"{i:02}.txt").read_text(encoding="utf-8") for i in range(40)]
    assert [found[0][f"{i:02}.txt"] for i in range(40)] == alone(adapter, texts)
    assert sum(map(len, found[0].values())) > 200


def test_wrong_credentials_are_said(
    driver: None,
    s3: "S3Client",
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    s3.create_bucket(Bucket="private")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "guessed")
    settings = TagSettings(
        input="s3://private/x", output=str(tmp_path / "tags"), model=str(adapter)
    )
    with pytest.raises(StorageError, match=r"does not accept the credentials .* check AWS_"):
        tag(settings)
    assert not (tmp_path / "tags").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": "nowhere/model"}, "nowhere/model is no model or adapter of ours"),
        ({"input": "s3://no-such-bucket/x"}, "has no bucket 'no-such-bucket'"),
        (
            {"actors": "64"},
            "no room for 64 actors of 1 CPU\\(s\\): the cluster has it for 2",
        ),
        ({"text_column": "body"}, "body"),
    ],
)
def test_a_mistake_is_said_before_anything_is_written(
    driver: None, s3: "S3Client", adapter: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    corpus = tmp_path / "corpus.jsonl"
    corpus.write_text(json.dumps({"text": "Ann"}) + "\n", encoding="utf-8")
    settings = TagSettings(input=str(corpus), output=str(tmp_path / "tags"), model=str(adapter))
    with pytest.raises(Exception, match=said) as met:
        tag(replace(settings, **change))
    assert type(met.value).__module__ == "raytag.errors"
    assert "\n" not in str(met.value)
    assert not (tmp_path / "tags" / "data").exists()
    if change.keys() == {"actors"}:
        assert isinstance(met.value, ResourceError)


def test_the_job_as_it_is_typed(cluster: LocalCluster, adapter: Path, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.csv"
    corpus.write_text('id,text,note\n7,"Ann met\nBo",x\n', encoding="utf-8")
    job = [sys.executable, str(ROOT / "jobs" / "tag.py"), "--input", str(corpus)]
    job += ["--output", str(tmp_path / "tags"), "--model", str(adapter)]

    def run(*flags: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [*job, *flags],
            env=dict(cluster.environment),
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=200,
            check=False,
        )

    inside = run("--input", str(tmp_path))
    assert inside.returncode == 2
    assert "lies in the input, and would be tagged the next time" in inside.stderr
    wrong = run("--shard-documents", "0")
    assert wrong.returncode == 2
    assert wrong.stderr == "error: shard_documents must be at least 1, not 0\n"
    done = run()
    assert done.returncode == 0, done.stderr[-3000:]
    assert "1 of 1 documents tagged, 0 set aside" in done.stdout
    table = pq.read_table(tmp_path / "tags" / "data")
    assert table.to_pylist()[0]["note"] == "x"
    assert table.schema.names == ["id", "text", "entities", "file", "row", "note"]
