"""One file of a corpus as raw rows: compression, line ends, quoting, encoding, Parquet.

Knows how rows stand in a file, and what is wrong with one; not which column is what. Rows come in
order, as a stream, from any byte where one begins: bytes for text, lines and JSON lines, fields in
Latin-1 for CSV, Python's values for Parquet.
"""

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from bz2 import BZ2File
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import Any, BinaryIO, Literal, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raytag import storage
from raytag.errors import DataError, SettingsError

Kind = Literal["text", "lines", "jsonl", "csv", "parquet"]

EXCERPT = 200
"""Characters shown of a row that cannot be tagged."""

_UNPACKERS: dict[str, Callable[[BinaryIO], Any]] = {
    ".gz": lambda stream: gzip.GzipFile(fileobj=stream),
    ".bz2": BZ2File,
    ".zst": lambda stream: pa.CompressedInputStream(pa.PythonFile(stream, mode="r"), "zstd"),
}
_BLOCK = 1 << 20
_BATCH_BYTES = 8 << 20
"""About how much of a Parquet file is decoded at a time."""
_ASCII = b'\n\r\t",:{}[]\\/ ~{!!~}+AGE-\x1b$B!!\x1b(B'
"""Reads the same in every encoding whose bytes below 128 only ever stand for themselves."""
_HALF_PAIR = re.compile(r"\\u[dD][89a-fA-F]")


class BadRowError(Exception):
    """Why a row cannot be tagged, in a clause. Never leaves ``bulk``: it becomes a trouble."""


class Unreadable(NamedTuple):
    """Stands for a value of Parquet that cannot be read."""

    reason: str
    shown: str


def suffixes(name: str) -> tuple[str, str]:
    """The suffix that says the kind, and that of the compression around it, if any."""
    path = PurePosixPath(name.lower())
    if path.suffix in _UNPACKERS:
        return PurePosixPath(path.stem).suffix, path.suffix
    return path.suffix, ""


@contextmanager
def unpacked(uri: str, offset: int = 0) -> Iterator[BinaryIO]:
    """The content of a file without its compression, from this byte of it on.

    Raises DataError for a broken compression, also while the stream is read.
    """
    packing = suffixes(uri)[1]
    with storage.open_read(uri, 0 if packing else offset) as stream:
        if not packing:
            yield stream
            return
        try:
            with io.BufferedReader(_UNPACKERS[packing](stream), _BLOCK) as content:
                while offset and (passed := len(content.read(min(offset, _BLOCK)))):
                    offset -= passed
                yield content
        except (EOFError, OSError, zlib.error) as exc:
            said = " ".join(str(exc).split())
            raise DataError(f"{uri}: broken {packing} compression ({said}); make it anew") from exc


def row_encoding(uri: str, kind: Kind, encoding: str) -> str:
    """The encoding of each row by itself; SettingsError for one that a file of rows cannot have."""
    if kind in ("text", "parquet"):
        return encoding
    if _ASCII.decode(encoding, "replace") != _ASCII.decode():
        raise SettingsError(
            f"{uri}: {kind} in {encoding} cannot be cut into rows; convert it with "
            f"iconv -f {encoding} -t utf-8"
        )
    return "utf-8" if codecs.lookup(encoding).name == "utf-8-sig" else encoding


def raw_rows(uri: str, kind: Kind, offset: int) -> Iterator[tuple[int, Any]]:
    """(where the row ends in the unpacked file, the row as it stands there); not for Parquet.

    In JSON lines and CSV a blank line is no row.
    """
    with unpacked(uri, offset) as stream:
        if kind == "text":
            yield 0, stream.read()
            return
        if kind == "csv":
            yield from _csv_rows(uri, stream, offset)
            return
        end = offset
        for line in stream:
            row = line if end else line.removeprefix(codecs.BOM_UTF8)
            end += len(line)
            if kind == "lines":
                yield end, row[:-1].removesuffix(b"\r") if row.endswith(b"\n") else row
            elif row := row.strip(b" \t\r\n"):
                yield end, row


def excerpt(raw: Any, encoding: str) -> str:
    """What can be shown of a raw row."""
    if isinstance(raw, bytes):
        shown = raw[: 8 * EXCERPT].decode(encoding, "replace")
    elif isinstance(raw, list):
        shown = ",".join(raw)[: 8 * EXCERPT].encode("latin-1").decode(encoding, "replace")
    else:
        shown = raw[0].shown if isinstance(raw[0], Unreadable) else raw[0] or ""
    return shown[:EXCERPT].encode("utf-8", "replace").decode()


def decoded(data: bytes, encoding: str) -> str:
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as exc:
        raise BadRowError(_undecodable(exc, encoding)) from exc


def _undecodable(exc: UnicodeDecodeError, encoding: str) -> str:
    """Which byte it is; columns count bytes from 1, as lines do."""
    data, at = exc.object, exc.start
    line, begin = data.count(b"\n", 0, at), data.rfind(b"\n", 0, at)
    where = f"line {line + 1}, column {at - begin}" if line else f"column {at + 1}"
    return f"byte {data[at]:#04x} at {where} is not {encoding}"


def json_object(line: str) -> dict[str, Any]:
    """What stands in a line, if every string in it is one that can be written again."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as exc:
        raise BadRowError(f"not JSON ({exc})") from exc
    if not isinstance(record, dict):
        raise BadRowError("not a JSON object")
    if _HALF_PAIR.search(line):
        for item in record.items():
            try:
                json.dumps(item, ensure_ascii=False).encode()
            except UnicodeEncodeError as exc:
                raise BadRowError(f"half a surrogate pair in {item[0]!a}") from exc
    return record


def csv_header(uri: str, encoding: str) -> tuple[list[str], int]:
    """(the columns that the first row names, where the rows after it begin)."""
    with unpacked(uri) as stream:
        end, row = next(_csv_rows(uri, stream, 0), (0, []))
    try:
        return [decoded(name.encode("latin-1"), encoding) for name in row], end
    except BadRowError as bad:
        raise DataError(f"{uri}: the names of its columns: {bad}; see --encoding") from bad


def csv_record(names: Sequence[str], fields: Sequence[str], encoding: str) -> dict[str, str]:
    """The fields of a raw row by name."""
    if len(fields) != len(names):
        raise BadRowError(f"{len(fields)} fields where the header has {len(names)}")
    record = {}
    for name, value in zip(names, fields, strict=True):
        try:
            plain = value.isascii()
            record[name] = value if plain else decoded(value.encode("latin-1"), encoding)
        except BadRowError as bad:
            raise BadRowError(f"{name!r}: {bad}") from bad
    return record


def _csv_rows(uri: str, stream: BinaryIO, offset: int) -> Iterator[tuple[int, list[str]]]:
    """As raw_rows. Latin-1 keeps every byte as a character: a bad one troubles its own row only."""
    end = offset

    def lines() -> Iterator[str]:
        nonlocal end
        for line in io.TextIOWrapper(stream, "latin-1", newline=""):
            begin, end = end, end + len(line)
            yield line if begin else line.removeprefix(codecs.BOM_UTF8.decode("latin-1"))

    csv.field_size_limit(sys.maxsize)
    for row in csv.reader(lines(), delimiter="\t" if suffixes(uri)[0] == ".tsv" else ","):
        if row:
            yield end, row


@contextmanager
def open_parquet(uri: str) -> Iterator[pq.ParquetFile]:
    """The file, whose rows are read as they are asked for; DataError where that cannot be done."""
    with storage.open_read(uri) as stream:
        try:
            yield pq.ParquetFile(stream, buffer_size=4 * _BLOCK)
        except (pa.ArrowException, OSError) as exc:
            said = " ".join(str(exc).split())
            raise DataError(f"{uri}: not readable Parquet ({said}); write it anew") from exc


def parquet_rows(
    uri: str, wanted: Sequence[tuple[str, pa.DataType]], first: int, rows: int
) -> Iterator[tuple[Any, ...]]:
    """These columns of some rows, as values that the types can hold; None where there is none."""
    with open_parquet(uri) as parquet:
        for group in range(parquet.num_row_groups):
            about = parquet.metadata.row_group(group)
            if first >= about.num_rows:
                first -= about.num_rows
                continue
            size = about.num_rows * _BATCH_BYTES // max(1, about.total_byte_size)
            batches = parquet.iter_batches(
                max(1, min(1024, size)), row_groups=[group], use_threads=False
            )
            for batch in batches:
                skip = min(first, batch.num_rows)
                first -= skip
                part = batch.slice(skip, rows)
                rows -= part.num_rows
                yield from zip(*(_values(part, *column) for column in wanted), strict=True)
                if not rows:
                    return


def _values(batch: pa.RecordBatch, name: str, type_: pa.DataType) -> list[Any]:
    if name not in batch.schema.names:
        return [None] * batch.num_rows
    column = batch[name]
    try:
        return list(column.cast(type_).to_pylist())
    except (pa.ArrowException, ValueError, OverflowError):
        return [_value(scalar, name, type_) for scalar in column]


def _value(scalar: pa.Scalar, name: str, type_: pa.DataType) -> Any:
    try:
        return scalar.cast(type_).as_py()
    except UnicodeDecodeError as exc:
        shown = exc.object[: 8 * EXCERPT].decode(errors="replace")
        return Unreadable(f"{name!r}: {_undecodable(exc, 'utf-8')}", shown)
    except (pa.ArrowException, ValueError, OverflowError) as exc:
        return Unreadable(f"{name!r}: {' '.join(str(exc).split())}", "")
