"""Corpora of every kind: each row that is counted is given, once, as it stands in its file."""

import bz2
import csv
import gzip
import io
import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raytag import storage
from raytag.bulk import corpus
from raytag.bulk.corpus import (
    Columns,
    CorpusFile,
    FileScan,
    Kind,
    Row,
    Stretch,
    choose_columns,
    cut,
    find_files,
    read_rows,
    scan,
)
from raytag.errors import DataError, RaytagError, SettingsError, StorageError

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PACK: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".zst": lambda data: pa.compress(data, codec="zstd", asbytes=True),
}


@pytest.fixture(params=["local", "s3"])
def top(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """An empty folder on either kind of storage."""
    if request.param == "local":
        return str(tmp_path / "top")
    client: S3Client = request.getfixturevalue("s3")
    client.create_bucket(Bucket="corpora")
    return f"s3://corpora/{tmp_path.name}"


def read(
    uri: str | Path,
    kind: Any = "auto",
    *,
    text: str | None = None,
    id_: str | None = None,
    encoding: str = "utf-8",
) -> list[Row]:
    """All rows of a corpus, which are as many as were counted."""
    files = find_files(str(uri), kind)
    scans = [scan(file, encoding=encoding) for file in files]
    columns = choose_columns(scans, text, id_)
    rows: list[Row] = []
    for index, found in enumerate(scans):
        rows += read_rows(files, columns, Stretch(index, 0, found.rows), encoding)
    assert len(rows) == sum(found.rows for found in scans)
    for row in rows:
        if not row.trouble:
            kept = {**row.carried, **({"id": row.id} if columns.id else {})}
            pa.Table.from_pylist([kept], columns.schema)
    return rows


def lines(*records: Any) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def parquet(table: pa.Table, **settings: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **settings)
    return buffer.getvalue()


def texts(rows: Sequence[Row]) -> list[str]:
    return [row.text for row in rows]


# Kinds


@pytest.mark.parametrize("packing", PACK)
@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("a.txt", "Ünï\r\nxx\n", "auto"),
        ("a.log", "Ünï\r\nxx\n", "lines"),
        ("a.jsonl", '{"text": "Ünï"}\r\n\n{"text": "xx"}\n', "auto"),
        ("a.csv", 'text,n\r\nÜnï,1\r\n"xx",2', "auto"),
        ("a.tsv", "text\tn\nÜnï\t1\nxx\t2\n", "auto"),
    ],
)
def test_every_kind_is_read_through_every_compression(
    name: str, content: str, kind: str, packing: str, tmp_path: Path
) -> None:
    (tmp_path / (name + packing)).write_bytes(PACK[packing](content.encode()))
    rows = read(tmp_path, kind)
    assert texts(rows) == ([content] if name == "a.txt" else ["Ünï", "xx"])
    assert [row.file for row in rows] == [name + packing] * len(rows)
    made = f"{name}{packing}"
    assert [row.id for row in rows] == (
        [made] if name == "a.txt" else [f"{made}:{i}" for i in (0, 1)]
    )


def test_a_corpus_is_read_from_either_storage(top: str) -> None:
    records = [{"id": i, "text": f"text {i}", "n": i / 2} for i in range(5000)]
    table = pa.Table.from_pylist(records)
    for name, data in {
        "a.jsonl": lines(*records),
        "b.jsonl.gz": gzip.compress(lines(*records)),
        "c.parquet": parquet(table, row_group_size=700),
    }.items():
        storage.write_bytes(storage.join(top, name), data)
        files = find_files(storage.join(top, name))
        scans = [scan(file) for file in files]
        columns = Columns.from_dict(
            json.loads(json.dumps(choose_columns(scans, None, None).to_dict()))
        )
        shards = cut(scans, 900, 10**9)
        assert [sum(s.rows for s in shard) for shard in shards][:-1] == pytest.approx(
            [900] * (len(shards) - 1), rel=0.3
        )
        rows = [row for shard in shards for s in shard for row in read_rows(files, columns, s)]
        found = [{"id": row.id, "text": row.text, **row.carried} for row in rows]
        assert found == records, name
        assert [row.number for row in rows] == list(range(5000))


def test_a_text_is_what_stands_in_its_file(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\rtwo \n")
    (tmp_path / "b.txt").write_bytes(b"")
    assert texts(read(tmp_path)) == ["\ufeffone\r\n\rtwo \n", ""]
    (tmp_path / "b.txt").write_bytes("Ü".encode("utf-16"))
    assert texts(read(tmp_path / "b.txt", encoding="utf-16")) == ["Ü"]


def test_every_line_is_a_row_of_lines_and_only_lf_ends_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffone\r\n\r\na\rb\x85c\u2028d\n end".encode())
    assert texts(read(tmp_path, "lines")) == ["one", "", "a\rb\x85c\u2028d", " end"]


def test_quoted_fields_of_csv_are_kept_to_the_letter(tmp_path: Path) -> None:
    wanted = ["a\r\nb", 'say "x", y', "\r", "", " s ", "ü\x85"]
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["id", "text"], *([i, text] for i, text in enumerate(wanted))])
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf" + buffer.getvalue().encode())
    rows = read(tmp_path)
    assert texts(rows) == wanted
    assert [row.id for row in rows] == list("012345")


def test_other_encodings_are_read_and_those_without_rows_refused(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes("text,n\nÄpfel,Öl\n".encode("latin-1"))
    rows = read(tmp_path, encoding="latin-1")
    assert (rows[0].text, rows[0].carried) == ("Äpfel", {"n": "Öl"})
    (tmp_path / "a.csv").write_bytes("text,n\n表,ソ\n".encode("shift_jis"))
    assert texts(read(tmp_path, encoding="shift_jis")) == ["表"]
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbftext\n\xef\xbb\xbfx\n")
    assert texts(read(tmp_path, encoding="utf-8-sig")) == ["\ufeffx"]
    with pytest.raises(SettingsError, match=r"csv in utf-16 cannot be cut into rows; convert it"):
        read(tmp_path, encoding="utf-16")


def test_a_document_of_a_megabyte_is_whole_and_a_shard_of_its_own(tmp_path: Path) -> None:
    large = "wörd " * 200_000
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["text"], ["a"], [large], ["b"]])
    (tmp_path / "a.csv").write_text(buffer.getvalue(), newline="")
    (tmp_path / "b.jsonl").write_bytes(lines({"text": "a"}, {"text": large}, {"text": "b"}))
    (tmp_path / "c.parquet").write_bytes(parquet(pa.table({"text": ["a", large, "b"]})))
    for name in ("a.csv", "b.jsonl", "c.parquet"):
        assert texts(read(tmp_path / name)) == ["a", large, "b"]
    for name in ("a.csv", "b.jsonl"):
        shards = cut([scan(find_files(str(tmp_path / name))[0])], 100, 500_000)
        assert [[s.rows for s in shard] for shard in shards] == [[1], [1], [1]]


# Any cut


def given_bytes(*pieces: bytes) -> st.SearchStrategy[bytes]:
    return st.lists(st.sampled_from(pieces), max_size=25).map(b"".join)


CONTENTS = {
    "lines": given_bytes(
        b"\n", b"\r\n", b"\r", b"a", "ü".encode(), b"\xff", b"\xef\xbb\xbf", b"\0"
    ),
    "csv": given_bytes(b"\n", b"\r\n", b"\r", b'"', b'""', b",", b"a", "ü\x85".encode(), b"\xff"),
    "jsonl": given_bytes(
        b"\n",
        b"\r\n",
        b" ",
        b"\xff",
        b'{"text": "a"}',
        b'{"text": "\xc3\xbc\\ud83d\\ude00", "n": 1}\n',
        b'{"text": "\\ud800", "n": 1}\n',
        b'{"text": 5, "n": 1.5}\n',
        b'{"n": [1, {"b": null}], "text": "x"}\n',
        b'{"id": true, "text": "x\\u0000"}\n',
        b"7\n",
        b'{"text',
    ),
}


HEADS = {"lines": b"", "csv": b"text,n\n", "jsonl": b'{"text": ""}\n'}


@pytest.mark.parametrize("kind", CONTENTS)
@pytest.mark.parametrize("packing", ["", ".gz"])
@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_rows_are_the_same_however_they_are_cut(kind: Kind, packing: str, data: Any) -> None:
    contents = data.draw(st.lists(CONTENTS[kind], min_size=1, max_size=3))
    documents, size = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 40))
    part = data.draw(st.sampled_from([1, 8, 64]))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpus, "_PART_BYTES", part)
        for i, content in enumerate(contents):
            Path(folder, f"{i}.x{packing}").write_bytes(PACK[packing](HEADS[kind] + content))
        files = find_files(folder, kind)
        scans = [scan(file) for file in files]
        columns = choose_columns(scans)
        whole = [
            row
            for i, found in enumerate(scans)
            for row in read_rows(files, columns, Stretch(i, 0, found.rows))
        ]
        places = [(found.file.name, i) for found in scans for i in range(found.rows)]
        assert [(row.file, row.number) for row in whole] == places
        shards = cut(scans, documents, size)
        assert all(sum(s.rows for s in shard) <= documents for shard in shards)
        stretches = [stretch for shard in shards for stretch in shard]
        apart = [replace(stretch, offset=0, skip=0) for stretch in stretches]
        for some in (stretches, apart):
            assert [row for s in some for row in read_rows(files, columns, s)] == whole


@settings(deadline=None, max_examples=30, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_parquet_is_the_same_however_it_is_cut(data: Any) -> None:
    wanted = data.draw(st.lists(st.none() | st.text(max_size=5), max_size=40))
    table = pa.table({"text": pa.array(wanted, pa.string())})
    group, documents = data.draw(st.integers(1, 20)), data.draw(st.integers(1, 9))
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "a.parquet").write_bytes(parquet(table, row_group_size=group))
        files = find_files(folder)
        found = scan(files[0])
        assert found.rows == len(wanted)
        stretches = [s for shard in cut([found], documents, 50) for s in shard]
        rows = [row for s in stretches for row in read_rows(files, choose_columns([found]), s)]
        assert [row.number for row in rows] == list(range(len(wanted)))
        good = [text if text is not None and "\0" not in text else None for text in wanted]
        assert [None if row.trouble else row.text for row in rows] == good


def test_a_scan_stops_at_its_limit(tmp_path: Path) -> None:
    rows = [{"text": "a" * 30_000}] * 9
    (tmp_path / "a.jsonl").write_bytes(lines(*rows, {"text": 1}))
    (tmp_path / "b.parquet").write_bytes(parquet(pa.table({"text": ["a"] * 9}), row_group_size=2))
    for name in ("a.jsonl", "b.parquet"):
        file = find_files(str(tmp_path / name))[0]
        found = scan(file, limit=5)
        assert found.rows == sum(part.rows for part in found.parts) == 5
        assert dict(found.columns) == {"text": pa.string()}
        assert scan(file, limit=100).rows in (9, 10)


def test_small_files_share_a_shard_and_large_ones_are_cut() -> None:
    def made(name: str, *parts: tuple[int, int, int]) -> FileScan:
        file = CorpusFile(name, name, "lines", 0, "")
        return FileScan(file, sum(p[0] for p in parts), {}, [corpus.Part(*p) for p in parts])

    scans = [
        made("a", (3, 30, 0)),
        made("b", (4, 40, 0), (5, 50, 40), (1, 500, 90), (2, 20, 590)),
        made("c"),
        made("d", (30, 60, 0)),
    ]
    assert cut(scans, 12, 100) == [
        [Stretch(0, 0, 3), Stretch(1, 0, 4)],
        [Stretch(1, 4, 5, 40)],
        [Stretch(1, 9, 1, 90)],
        [Stretch(1, 10, 2, 590), Stretch(3, 0, 10)],
        [Stretch(3, 10, 10)],
        [Stretch(3, 20, 10)],
    ]
    assert cut([], 1, 1) == []


# Columns


def columns_of(*records: Any, **chosen: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        for i, part in enumerate(records):
            Path(folder, f"{i}.jsonl").write_bytes(lines(*part))
        found = [scan(file) for file in find_files(folder)]
    columns = choose_columns(found, chosen.get("text"), chosen.get("id"))
    types = {field.name: str(field.type) for field in columns.schema}
    return {"text": columns.text, **types}


def test_types_are_found_over_all_rows_of_all_files(tmp_path: Path) -> None:
    one = [
        {"text": "x", "a": 1, "b": True, "c": None, "d": "s", "e": {"k": 1}},
        {"text": "y", "a": 2.5, "b": None, "d": 1, "f": 2**70},
    ]
    two = [{"text": "z", "b": 0, "c": None, "d": [1], "g": 3}, {"text": "", "e": "plain"}]
    (tmp_path / "1.jsonl").write_bytes(lines(*one))
    (tmp_path / "2.jsonl").write_bytes(lines(*two))
    assert columns_of(one, two) == {
        "text": "text",
        "a": "double",
        "b": "string",
        "c": "string",
        "d": "string",
        "e": "string",
        "f": "string",
        "g": "int64",
    }
    empty = dict.fromkeys("abcdefg")
    assert [row.carried for row in read(tmp_path)] == [
        {**empty, "a": 1.0, "b": "true", "d": "s", "e": '{"k": 1}'},
        {**empty, "a": 2.5, "d": "1", "f": str(2**70)},
        {**empty, "b": "0", "d": "[1]", "g": 3},
        {**empty, "e": "plain"},
    ]


def test_text_and_id_are_found_by_name_or_named() -> None:
    row = {"body": "x", "text": "y", "uid": 3, "doc_id": "d", "file": 1, "input_file": 2, "n": 0}
    assert columns_of([row]) == {
        "text": "text",
        "id": "string",
        "body": "string",
        "uid": "int64",
        "input_input_file": "int64",
        "input_file": "int64",
        "n": "int64",
    }
    chosen = columns_of([row], text="body", id="uid")
    assert (chosen["text"], chosen["id"], chosen["input_text"]) == ("body", "int64", "string")
    assert columns_of([{"id": "a", "review": "x", "n": 1}])["text"] == "review"
    with pytest.raises(SettingsError, match="cannot tell which .* the input has a, b; name --text"):
        columns_of([{"a": "x", "b": "y"}])
    with pytest.raises(SettingsError, match="no column 'txt' for --text-column; the input has a"):
        columns_of([{"a": "x"}], text="txt")
    with pytest.raises(SettingsError, match="no column 'key' for --id-column"):
        columns_of([{"a": "x"}], id="key")
    with pytest.raises(SettingsError, match="column 'text' holds int64, not text"):
        columns_of([{"text": 5, "other": "x"}])


def test_text_files_have_no_columns_to_choose(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x")
    for kind in ("auto", "lines"):
        with pytest.raises(SettingsError, match="has no columns; leave out --text-column"):
            read(tmp_path, kind, text="text")


def test_ids_stay_as_they_are_doubles_and_all(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(
        lines({"id": 7, "text": "a"}, {"id": 7, "text": "b"}, {"text": "c"}, {"id": 1, "text": 2})
    )
    (tmp_path / "b.jsonl").write_bytes(lines({"id": 7, "text": "a"}, {"text": 5}))
    assert [row.id for row in read(tmp_path)] == [7, 7, None, 1, 7, "b.jsonl:1"]


def test_columns_of_parquet_come_along_as_they_are(tmp_path: Path) -> None:
    table = pa.table(
        {
            "id": pa.array([1, 2], pa.int16()),
            "text": pa.array(["a", "b"]).dictionary_encode(),
            "when": pa.array([datetime(2026, 1, 2, 3, 4, 5, 6), None], pa.timestamp("ns", "UTC")),
            "day": pa.array([date(2026, 1, 2), None]),
            "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
            "tags": pa.array([["x", None], []], pa.list_(pa.large_string())),
            "at": pa.array([{"x": 1, "y": b"\xff"}, None]),
            "map": pa.array([[("k", 1)], None], pa.map_(pa.string(), pa.int64())),
            "kind": pa.array(["x", None]).dictionary_encode(),
            "row": pa.array([0.5, 1.5], pa.float32()),
        }
    )
    (tmp_path / "a.parquet").write_bytes(parquet(table))
    rows = read(tmp_path)
    columns = choose_columns([scan(find_files(str(tmp_path))[0])])
    back = pa.Table.from_pylist([{"id": r.id, **r.carried} for r in rows], columns.schema)
    wanted = table.drop(["text"]).rename_columns({"row": "input_row"})
    kind = wanted.schema.get_field_index("kind")
    assert back == wanted.set_column(kind, "kind", wanted["kind"].cast(pa.string()))


def test_types_of_parquet_files_are_joined_or_refused(tmp_path: Path) -> None:
    for name, table in {
        "a": pa.table({"text": ["x"], "n": pa.array([1], pa.int32()), "only": [True]}),
        "b": pa.table({"n": [2.5], "text": pa.array(["y"], pa.large_string())}),
    }.items():
        (tmp_path / f"{name}.parquet").write_bytes(parquet(table))
    rows = read(tmp_path)
    assert texts(rows) == ["x", "y"]
    assert [row.carried for row in rows] == [{"n": 1.0, "only": True}, {"n": 2.5, "only": None}]
    (tmp_path / "c.parquet").write_bytes(parquet(pa.table({"text": ["x"], "n": ["one"]})))
    with pytest.raises(
        DataError, match=r"column 'n' is double in a.parquet but string in c.parquet; write it as"
    ):
        read(tmp_path)


# Troubles


@pytest.mark.parametrize(
    ("line", "trouble", "shown"),
    [
        (b'{"text": "\xff"}', "byte 0xff at column 11 is not utf-8", '{"text": "\ufffd"}'),
        (b'{"text": "x"', "not JSON (Expecting ',' delimiter: line 1 column 13", '{"text": "x"'),
        (b"7", "not a JSON object", "7"),
        (b'{"id": 1}', "no 'text'", '{"id": 1}'),
        (b'{"text": null}', "no 'text'", '{"text": null}'),
        (b'{"text": ["x"]}', "'text' is no string", '{"text": ["x"]}'),
        (b'{"text": "a\\ud83d"}', "half a surrogate pair in 'text'", '{"text": "a\\ud83d"}'),
        (b'{"text": "", "t": ["\\udc00"]}', "half a surrogate pair in 't'", '{"text": "", "t'),
        (b'{"text": "x\\u0000"}', "a NUL at character 2", '{"text": "x\\u0000"}'),
        (b'{"text": ' + b"[" * 9999, "not JSON (maximum recursion depth", '{"text": [['),
        (b'{"text": ' + b"9" * 9999 + b"}", "not JSON (Exceeds the limit", '{"text": 999'),
    ],
)
def test_a_line_that_cannot_be_tagged_says_why(
    line: bytes, trouble: str, shown: str, tmp_path: Path
) -> None:
    good = b'{"text": "fine"}'
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, line, good]))
    first, bad, last = read(tmp_path)
    assert (first.text, last.text, last.number) == ("fine", "fine", 2)
    assert bad.trouble.startswith(trouble)
    assert bad.text.startswith(shown)
    assert len(bad.text) <= 200
    assert bad.carried == {}


def test_nesting_of_any_depth_is_a_row(tmp_path: Path) -> None:
    deep = [b'{"text": "", "x": ' + b"[" * n + b"]" * n + b"}" for n in range(800, 1001)]
    (tmp_path / "a.jsonl").write_bytes(b"\n".join(deep))
    rows = read(tmp_path)
    assert not rows[0].trouble
    assert rows[-1].trouble


def test_a_row_of_csv_that_cannot_be_tagged_says_why(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(
        b'id,text\n1,ok\n2\n3,a,b\n4,"x\n\xff"\n\n5,a\0b\n\xfe,x\n6,\xc3\xbc\n'
    )
    rows = read(tmp_path)
    assert [(row.number, row.id, row.text, row.trouble) for row in rows] == [
        (0, "1", "ok", ""),
        (1, "a.csv:1", "2", "1 fields where the header has 2"),
        (2, "a.csv:2", "3,a,b", "3 fields where the header has 2"),
        (3, "a.csv:3", "4,x\n\ufffd", "'text': byte 0xff at line 2, column 1 is not utf-8"),
        (4, "5", "5,a\0b", "a NUL at character 2"),
        (5, "a.csv:5", "\ufffd,x", "'id': byte 0xfe at column 1 is not utf-8"),
        (6, "6", "ü", ""),
    ]


def test_a_value_of_parquet_that_cannot_be_read_troubles_its_row_only(tmp_path: Path) -> None:
    text = pa.array([b"a", b"b\xff", None, b"d", b"e"]).view(pa.string())
    when = pa.array([0, 0, 0, 2**62, 0], pa.timestamp("us"))
    note = pa.array([b"", b"", b"", b"", b"\xfe"]).view(pa.string())
    (tmp_path / "a.parquet").write_bytes(
        parquet(pa.table({"text": text, "when": when, "note": note}))
    )
    rows = read(tmp_path)
    assert [bool(row.trouble) for row in rows] == [False, True, True, True, True]
    assert rows[1].text == "b\ufffd"
    assert rows[1].trouble == "'text': byte 0xff at column 2 is not utf-8"
    assert rows[2].trouble == "no 'text'"
    assert rows[3].text == "d"
    assert rows[3].trouble.startswith("'when': ")
    assert rows[4].trouble == "'note': byte 0xfe at column 1 is not utf-8"


def test_a_text_file_that_cannot_be_read_is_one_row_with_its_trouble(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\ntwo \xff")
    (row,) = read(tmp_path)
    assert row.trouble == "byte 0xff at line 2, column 5 is not utf-8"
    assert (row.id, row.text) == ("a.txt", "one\ntwo \ufffd")


def test_a_row_read_again_in_another_encoding_must_fit_the_types_found(tmp_path: Path) -> None:
    odd = ['"x"', "1.5", "7", "[1]", str(2**70)]
    rows = [b'{"text": "\xfc", "n": %s}\n' % value.encode() for value in odd]
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "a", "n": 1}) + b"".join(rows))
    files = find_files(str(tmp_path))
    columns = choose_columns([scan(files[0])])
    again = list(read_rows(files, columns, Stretch(0, 0, 6), "latin-1"))
    assert [row.trouble for row in again] == [
        "",
        *["'n' is no int64"] * 2,
        "",
        *["'n' is no int64"] * 2,
    ]
    assert [row.carried for row in again if not row.trouble] == [{"n": 1}, {"n": 7}]


# Finding files


def test_folders_and_globs_are_searched_in_order_without_hidden_names(top: str) -> None:
    names = ["b.txt", "a.txt", "2024-01/c.txt", "2024-02/x/d.txt", "_tmp/e.txt", "_f.txt", ".g.txt"]
    for name in names:
        storage.write_bytes(storage.join(top, name), b"")

    def found(pattern: str) -> list[str]:
        return [file.name for file in find_files(storage.join(top, pattern))]

    assert found("") == ["2024-01/c.txt", "2024-02/x/d.txt", "a.txt", "b.txt"]
    assert [f.name for f in find_files(f"{top}/")] == found("")
    assert found("*.txt") == ["a.txt", "b.txt"]
    assert found("?.txt") == found("[ab].txt") == ["a.txt", "b.txt"]
    assert found("2024-*/*.txt") == ["2024-01/c.txt"]
    assert found("**/*.txt") == found("**") == found("")
    assert found("2024-*/**") == ["2024-01/c.txt", "2024-02/x/d.txt"]
    assert found("2024-01/*") == ["c.txt"]
    assert found("_*/*") == ["_tmp/e.txt"]
    assert found("_f.txt") == ["_f.txt"]
    assert find_files(storage.join(top, "2024-01/c.txt"))[0].uri.endswith("2024-01/c.txt")
    with pytest.raises(DataError, match="there are no files to tag; a glob must match files"):
        found("*.csv")
    with pytest.raises(StorageError, match=r"no such file; did you mean a.txt"):
        found("aa.txt")


def test_a_glob_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a[1].jsonl").write_bytes(lines({"text": "x"}))
    monkeypatch.chdir(tmp_path)
    assert [file.name for file in find_files("*.jsonl")] == ["a[1].jsonl"]
    assert texts(read("a[1].jsonl")) == ["x"]


def test_a_folder_of_nothing_to_tag_is_refused(tmp_path: Path) -> None:
    (tmp_path / "_SUCCESS").write_bytes(b"")
    with pytest.raises(DataError, match="there are no files to tag; check its name"):
        find_files(str(tmp_path))


def test_mixed_and_unknown_files_are_refused_unless_the_kind_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(lines({"text": "x"}))
    (tmp_path / "notes.md").write_bytes(b"notes")
    with pytest.raises(DataError, match=r"a.jsonl is jsonl but notes.md is text; choose one kind"):
        find_files(str(tmp_path))
    (tmp_path / "notes.md").rename(tmp_path / "notes.log")
    with pytest.raises(DataError, match=r"notes.log: cannot tell what it is; name it with --kind"):
        find_files(str(tmp_path))
    assert texts(read(tmp_path, "lines")) == ['{"text": "x"}', "notes"]


def test_a_file_without_a_suffix_is_told_by_its_first_bytes(tmp_path: Path) -> None:
    (tmp_path / "part-0").write_bytes(parquet(pa.table({"text": ["x"]})))
    assert texts(read(tmp_path)) == ["x"]
    (tmp_path / "part-0").write_bytes(b'\n{"text": "y"}')
    assert texts(read(tmp_path)) == ["y"]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", b'[\n{"text": "x"}]', r"a JSON array; write one object per line"),
        ("a.json", b'\n{\n"text": "x"}', r"JSON over several lines; write one object per line"),
        ("a.csv", b"text,text\n", "two columns are named 'text'; rename one"),
        ("a.csv", b"te\xffxt\n", "the names of its columns: byte 0xff at column 3"),
        ("a.parquet", b"PAR1 no", "not readable Parquet"),
        ("a.parquet.gz", b"", "Parquet inside another compression; unpack it first"),
        ("a.txt.gz", gzip.compress(b"x" * 99)[:-9], r"broken .gz compression"),
        ("a.jsonl.gz", b"no gzip", r"broken .gz compression"),
        ("a.jsonl.bz2", bz2.compress(b"x" * 99)[:-9], r"broken .bz2 compression"),
        ("a.jsonl.zst", b"no zstd", r"broken .zst compression"),
    ],
)
def test_a_file_that_is_not_of_its_kind_is_named(
    name: str, content: bytes, said: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RaytagError, match=rf"{name}: {said}"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.ndjson.gz"])
def test_an_empty_file_has_no_rows(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    assert read(tmp_path) == []


def test_a_file_that_has_changed_since_it_was_counted_is_refused(top: str) -> None:
    uri = storage.join(top, "a.jsonl")
    storage.write_bytes(uri, lines({"text": "x"}))
    files = find_files(uri)
    columns = choose_columns([scan(files[0])])
    assert len(list(read_rows(files, columns, Stretch(0, 0, 1)))) == 1
    with pytest.raises(DataError, match="it has changed since it was counted"):
        list(read_rows(files, columns, Stretch(0, 0, 2)))
    storage.write_bytes(uri, lines({"text": "xy"}))
    with pytest.raises(DataError, match="it has changed since it was counted; start a new job"):
        list(read_rows(files, columns, Stretch(0, 0, 1)))
