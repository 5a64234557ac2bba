"""Corpora as they come: which files, how many rows, of which columns, and their rows in order.

Knows what a document is in each kind of file; nothing of entities, models or Ray. A corpus is read
twice: ``scan`` counts every file once and finds its columns, then ``read_rows`` gives any stretch
of rows, on any machine and however often the same. Every row that was counted is given, those
that cannot be tagged with their trouble.

A text is what stands in the file: no normalisation, no line ends changed. A line ends with LF or
CRLF, which are no part of it. A UTF-8 byte order mark at the start of a file of rows is no part of
its first row; in a file that is one text it stays, as U+FEFF.
"""

import base64
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from itertools import islice
from typing import Any, Literal, NamedTuple

import pyarrow as pa

from raytag import storage
from raytag.bulk.raw import (
    BadRowError,
    Kind,
    Unreadable,
    csv_header,
    csv_record,
    decoded,
    excerpt,
    json_object,
    open_parquet,
    parquet_rows,
    raw_rows,
    row_encoding,
    suffixes,
    unpacked,
)
from raytag.errors import DataError, SettingsError

TEXT_NAMES = ("text", "content", "body", "document", "sentence")
ID_NAMES = ("id", "doc_id", "document_id", "uid")
TAKEN = frozenset({"id", "text", "entities", "file", "row"})
"""Columns of the output: a column carried along under such a name becomes input_NAME."""

_KINDS: dict[str, Kind] = {
    ".txt": "text",
    ".text": "text",
    ".md": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
_PART_BYTES = 1 << 16
_JSON_TYPES = {
    type(None): pa.null(),
    bool: pa.bool_(),
    int: pa.int64(),
    float: pa.float64(),
}
"""Of values in JSON lines; all others are carried as strings."""


@dataclass(frozen=True, slots=True)
class CorpusFile:
    uri: str
    name: str
    """Below the folder or glob it was found by."""
    kind: Kind
    size: int
    """In bytes, as it is stored."""
    fingerprint: str
    """What the store says of its content: see storage.Entry.version."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is what, the same for all files of a corpus."""

    text: str
    """Its name in the input."""
    id: str | None
    """The field of ``schema`` that is the document's id, always the first; None if made up."""
    schema: pa.Schema
    """The id and the columns that are carried along, under their names in the output."""
    sources: tuple[str, ...]
    """The name in the input of each field of the schema."""

    def to_dict(self) -> dict[str, Any]:
        schema = base64.b64encode(self.schema.serialize().to_pybytes()).decode()
        return {"text": self.text, "id": self.id, "schema": schema, "sources": list(self.sources)}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> "Columns":
        schema = pa.ipc.read_schema(pa.py_buffer(base64.b64decode(content["schema"])))
        return cls(content["text"], content["id"], schema, tuple(content["sources"]))


class Part(NamedTuple):
    """Consecutive rows of a file, about 64 KiB of it or one larger row; in Parquet a row group."""

    rows: int
    bytes: int
    offset: int
    """Where they begin in the unpacked file; 0 in Parquet."""


@dataclass(frozen=True, slots=True)
class FileScan:
    """What a file holds."""

    file: CorpusFile
    rows: int
    columns: Mapping[str, pa.DataType]
    """The type of each, in order; none for text and lines."""
    parts: Sequence[Part]
    """All rows, in order."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive rows of one file."""

    file: int
    """Its place in the list of files."""
    first: int
    rows: int
    offset: int = 0
    """Where to begin reading, in bytes of the unpacked file; 0 is its first row."""
    skip: int = 0
    """Rows from there to ``first``, where offset is not 0."""


@dataclass(frozen=True, slots=True)
class Row:
    """A document; or with ``trouble`` what cannot be tagged, its text then an excerpt to show."""

    file: str
    """The file's name in the corpus."""
    number: int
    """Counts the rows of the file from 0."""
    id: Any
    """The user's own as it is; else file and number, or the file alone where that is the text."""
    text: str
    carried: Mapping[str, Any]
    """By name in the output, as ``Columns.schema`` can hold it; {} in trouble."""
    trouble: str = ""
    """Why it cannot be tagged, in a clause."""


# Files


def find_files(uri: str, kind: Kind | Literal["auto"] = "auto") -> list[CorpusFile]:
    """The files of a corpus, sorted by name: one file, a folder with all below it, or a glob.

    Names that begin with "_" or "." are passed over unless a glob says so. Raises DataError where
    nothing is found or a kind cannot be told, StorageError where the store cannot be read.
    """
    files: list[CorpusFile] = []
    for name, entry in _listed(uri):
        found = _kind(entry.uri) if kind == "auto" else kind
        if files and files[0].kind != found:
            raise DataError(
                f"{uri}: {files[0].name} is {files[0].kind} but {name} is {found}; choose one kind "
                "with a glob, such as folder/**/*.jsonl, or name it with --kind"
            )
        if found == "parquet" and suffixes(name)[1]:
            raise DataError(f"{entry.uri}: Parquet inside another compression; unpack it first")
        files.append(CorpusFile(entry.uri, name, found, entry.size, entry.version))
    return files


def _listed(uri: str) -> list[tuple[str, storage.Entry]]:
    """The files and their names below the folder or glob."""
    parts = uri.split("/")
    wild = next((i for i, part in enumerate(parts) if set(part) & set("*?[")), None)
    file = not uri.endswith("/") and storage.exists(uri)
    folder = not file and storage.is_folder(uri)
    if file or (not folder and wild is None):
        return [(parts[-1], storage.entry(uri))]
    if folder:
        root, patterns = uri, ["**"]
    else:
        root, patterns = "/".join(parts[:wild]) or ("/" if wild else "."), parts[wild:]
    top = storage.join(root, "x")[:-1]
    named = [(entry.uri.removeprefix(top), entry) for entry in storage.list_entries(root)]
    found = [(name, entry) for name, entry in named if _matches(name.split("/"), patterns)]
    if not found:
        advice = "check its name" if folder else "a glob must match files, as in 2024-*/*.jsonl"
        raise DataError(f"{uri}: there are no files to tag; {advice}")
    return found


def _matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    if not patterns:
        return not parts
    pattern, rest = patterns[0], patterns[1:]
    seen = bool(parts) and (parts[0][:1] not in ("_", ".") or parts[0][:1] == pattern[:1])
    if pattern == "**":
        return _matches(parts, rest) or (seen and _matches(parts[1:], patterns))
    return seen and fnmatchcase(parts[0], pattern) and _matches(parts[1:], rest)


def _kind(uri: str) -> Kind:
    """By the name; of an unknown one by the first bytes."""
    suffix = suffixes(uri)[0]
    if suffix in _KINDS:
        return _KINDS[suffix]
    with unpacked(uri) as stream:
        head = stream.read(4096)
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.lstrip().startswith(b"{"):
        return "jsonl"
    raise DataError(
        f"{uri}: cannot tell what it is; name it with --kind text, lines, jsonl, csv or parquet, "
        "or choose other files with a glob"
    )


# Counting


def scan(file: CorpusFile, *, encoding: str = "utf-8", limit: int | None = None) -> FileScan:
    """Count the rows of a file, up to the limit, and find their columns, without keeping them.

    Of Parquet only the metadata is read, of a text nothing. Raises DataError for what is not of
    its kind, SettingsError for an encoding that rows cannot have.
    """
    if file.kind == "text":
        return FileScan(file, 1, {}, [Part(1, file.size, 0)])
    types, parts = (
        _scanned_parquet(file, limit)
        if file.kind == "parquet"
        else _scanned_rows(file, encoding, limit)
    )
    return FileScan(file, sum(part.rows for part in parts), types, parts)


def _scanned_rows(
    file: CorpusFile, encoding: str, limit: int | None
) -> tuple[dict[str, pa.DataType], list[Part]]:
    encoding = row_encoding(file.uri, file.kind, encoding)
    names, begin = _header(file, encoding)
    seen: dict[str, set[type]] = {}
    parts: list[Part] = []
    rows, offset, before = 0, begin, begin
    for end, raw in islice(raw_rows(file.uri, file.kind, begin), limit):
        if rows and end - offset > _PART_BYTES:
            parts.append(Part(rows, before - offset, offset))
            rows, offset = 0, before
        if file.kind == "jsonl":
            if not before:
                _check_object_a_line(file, raw)
            _note_types(raw, encoding, seen)
        rows, before = rows + 1, end
    if rows:
        parts.append(Part(rows, before - offset, offset))
    types = dict.fromkeys(names, pa.string())
    for name, kinds in seen.items():
        types[name] = _joined_json([_JSON_TYPES.get(kind, pa.string()) for kind in kinds])
    return types, parts


def _scanned_parquet(
    file: CorpusFile, limit: int | None
) -> tuple[dict[str, pa.DataType], list[Part]]:
    left = sys.maxsize if limit is None else limit
    parts: list[Part] = []
    with open_parquet(file.uri) as parquet:
        schema = parquet.schema_arrow
        _check_names(file, schema.names)
        for index in range(parquet.num_row_groups):
            group = parquet.metadata.row_group(index)
            if rows := min(group.num_rows, left):
                parts.append(Part(rows, group.total_byte_size * rows // group.num_rows, 0))
            left -= rows
    return {field.name: _plain(field.type) for field in schema}, parts


def _header(file: CorpusFile, encoding: str) -> tuple[list[str], int]:
    """(the columns that a CSV names, where the rows begin)."""
    if file.kind != "csv":
        return [], 0
    names, begin = csv_header(file.uri, encoding)
    _check_names(file, names)
    return names, begin


def _note_types(line: bytes, encoding: str, seen: dict[str, set[type]]) -> None:
    try:
        record = json_object(decoded(line, encoding))
    except BadRowError:
        return
    for name, value in record.items():
        seen.setdefault(name, set()).add(_json_type(value))


def _json_type(value: Any) -> type:
    """As _JSON_TYPES has it. More than 64 bits are no int64, but like any odd value a string."""
    return object if isinstance(value, int) and value.bit_length() > 63 else type(value)


def _check_object_a_line(file: CorpusFile, line: bytes) -> None:
    """By the first line that is not blank."""
    if line.startswith(b"["):
        raise DataError(f"{file.uri}: a JSON array; write one object per line (jq -c '.[]')")
    if line == b"{":
        raise DataError(f"{file.uri}: JSON over several lines; write one object per line (jq -c .)")


def _check_names(file: CorpusFile, names: Sequence[str]) -> None:
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file.uri}: two columns are named {twice!r}; rename one")


# Columns


def choose_columns(
    scans: Sequence[FileScan], text_column: str | None = None, id_column: str | None = None
) -> Columns:
    """Which column is the text and which the id, found by name if not given, and all types.

    Raises SettingsError for a column that is not there or holds no text, or where the text cannot
    be told; DataError where a column is of two types that cannot be one.
    """
    types = _joined(scans)
    if not types:
        if scans and scans[0].file.kind in ("text", "lines") and (text_column or id_column):
            raise SettingsError("plain text has no columns; leave out --text-column, --id-column")
        return Columns(text_column or TEXT_NAMES[0], None, pa.schema([]), ())
    there = f"the input has {', '.join(types)}"
    for flag, name in (("--text-column", text_column), ("--id-column", id_column)):
        if name is not None and name not in types:
            raise SettingsError(f"there is no column {name!r} for {flag}; {there}")
    id_ = id_column or next((name for name in ID_NAMES if name in types), None)
    text = text_column or next((name for name in TEXT_NAMES if name in types), None)
    if text is None:
        strings = [name for name in types if name != id_ and _is_string(types[name])]
        if len(strings) != 1:
            raise SettingsError(
                f"cannot tell which column is the text: {there}; name --text-column"
            )
        text = strings[0]
    if not _is_string(types[text]) and not pa.types.is_null(types[text]):
        raise SettingsError(
            f"column {text!r} holds {types[text]}, not text; name another with --text-column: "
            f"{there}"
        )
    sources = [name for name in types if name not in (text, id_)]
    fields = [pa.field(_output_name(name, types), types[name]) for name in sources]
    if id_ is not None:
        sources, fields = [id_, *sources], [pa.field("id", types[id_]), *fields]
    return Columns(text, "id" if id_ is not None else None, pa.schema(fields), tuple(sources))


def _joined(scans: Sequence[FileScan]) -> dict[str, pa.DataType]:
    """The type of every column over all files."""
    types: dict[str, pa.DataType] = {}
    first: dict[str, str] = {}
    for found in scans:
        for name, type_ in found.columns.items():
            known = types.setdefault(name, type_)
            first.setdefault(name, found.file.name)
            if known == type_:
                continue
            if found.file.kind != "parquet":
                types[name] = _joined_json([known, type_])
                continue
            try:
                types[name] = _joined_arrow(known, type_)
            except pa.ArrowException as exc:
                raise DataError(
                    f"column {name!r} is {known} in {first[name]} but {type_} in "
                    f"{found.file.name}; write it as one type, or tag the files apart"
                ) from exc
    if scans and scans[0].file.kind == "jsonl":  # null throughout: it could be anything
        return {name: pa.string() if t == pa.null() else t for name, t in types.items()}
    return types


def _joined_json(types: Sequence[pa.DataType]) -> pa.DataType:
    """The one type that values of these types can have; strings can say them all."""
    some = {type_ for type_ in types if type_ != pa.null()}
    if some == {pa.int64(), pa.float64()}:
        return pa.float64()
    return some.pop() if len(some) == 1 else pa.string() if some else pa.null()


def _joined_arrow(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    schemas = [pa.schema([("x", type_)]) for type_ in (one, other)]
    return pa.unify_schemas(schemas, promote_options="permissive").field(0).type


def _plain(type_: pa.DataType) -> pa.DataType:
    """What the values are, however they are encoded in memory."""
    if pa.types.is_dictionary(type_):
        return _plain(type_.value_type)
    if isinstance(type_, pa.BaseExtensionType):
        return _plain(type_.storage_type)
    if pa.types.is_string_view(type_):
        return pa.string()
    return pa.binary() if pa.types.is_binary_view(type_) else type_


def _is_string(type_: pa.DataType) -> bool:
    return bool(pa.types.is_string(type_) or pa.types.is_large_string(type_))


def _output_name(name: str, names: Mapping[str, Any]) -> str:
    if name not in TAKEN:
        return name
    name = f"input_{name}"
    while name in names:
        name = f"input_{name}"
    return name


# Cutting


def cut(scans: Sequence[FileScan], documents: int, bytes_: int) -> list[list[Stretch]]:
    """Shards of at most so many documents and about so many bytes, in the order of the rows.

    Small files share a shard, large ones are cut; a document of more bytes is a shard of its own.
    """
    shards: list[list[Stretch]] = []
    rows = size = 0
    for index, found in enumerate(scans):
        for stretch, width in _pieces(index, found.parts, documents, bytes_):
            if not shards or rows + stretch.rows > documents or size + width > bytes_:
                shards.append([])
                rows = size = 0
            shard = shards[-1]
            if shard and shard[-1].file == index:
                shard[-1] = replace(shard[-1], rows=shard[-1].rows + stretch.rows)
            else:
                shard.append(stretch)
            rows, size = rows + stretch.rows, size + width
    return shards


def _pieces(
    index: int, parts: Sequence[Part], documents: int, bytes_: int
) -> Iterator[tuple[Stretch, int]]:
    """A file in stretches that fit a shard each, with about the bytes of each."""
    first = 0
    for part in parts:
        pieces = max(1, -(-part.rows // documents), -(-part.bytes // bytes_))
        step = max(1, part.rows // pieces)
        for skip in range(0, part.rows, step):
            rows = min(step, part.rows - skip)
            stretch = Stretch(index, first + skip, rows, part.offset, skip if part.offset else 0)
            yield stretch, part.bytes * rows // part.rows
        first += part.rows


# Reading


def read_rows(
    files: Sequence[CorpusFile], columns: Columns, stretch: Stretch, encoding: str = "utf-8"
) -> Iterator[Row]:
    """The rows of a stretch, in order: as many as it says, or DataError as the file has changed."""
    file = files[stretch.file]
    changed = DataError(f"{file.uri}: it has changed since it was counted; start a new job")
    if file.kind != "text" and storage.entry(file.uri).version != file.fingerprint:
        raise changed
    encoding = row_encoding(file.uri, file.kind, encoding)
    names, begin = _header(file, encoding)
    parse = _parser(file.kind, columns, names, encoding)
    number = stretch.first
    for raw in _raws(file, columns, stretch, begin):
        name = file.name if file.kind == "text" else f"{file.name}:{number}"
        try:
            text, cells = parse(raw)
            carried = dict(zip(columns.schema.names, cells, strict=True))
            id_ = carried.pop(columns.id) if columns.id else name
            name = name if id_ is None else id_
            yield Row(file.name, number, id_, _taggable(text, columns.text), carried)
        except BadRowError as bad:
            yield Row(file.name, number, name, excerpt(raw, encoding), {}, str(bad))
        number += 1
    if number != stretch.first + stretch.rows:
        raise changed


def _raws(file: CorpusFile, columns: Columns, stretch: Stretch, begin: int) -> Iterator[Any]:
    if file.kind == "parquet":
        fields = zip(columns.sources, columns.schema.types, strict=True)
        wanted = [(columns.text, pa.string()), *fields]
        return parquet_rows(file.uri, wanted, stretch.first, stretch.rows)
    skip = stretch.skip if stretch.offset else stretch.first
    rows = raw_rows(file.uri, file.kind, stretch.offset or begin)
    return (raw for _, raw in islice(rows, skip, skip + stretch.rows))


def _parser(
    kind: Kind, columns: Columns, names: Sequence[str], encoding: str
) -> Callable[[Any], tuple[Any, list[Any]]]:
    """What makes (text, a cell for each field of the schema) of a raw row."""
    fields = list(zip(columns.sources, columns.schema.types, strict=True))

    def parse(raw: Any) -> tuple[Any, list[Any]]:
        if kind == "parquet":
            bad = next((value for value in raw if isinstance(value, Unreadable)), None)
            if bad is not None:
                raise BadRowError(bad.reason)
            return raw[0], list(raw[1:])
        if kind == "jsonl":
            record = json_object(decoded(raw, encoding))
            return record.get(columns.text), [_cell(n, record.get(n), t) for n, t in fields]
        if kind == "csv":
            record = csv_record(names, raw, encoding)
            return record.get(columns.text), [record.get(name) for name in columns.sources]
        return decoded(raw, encoding), []

    return parse


def _cell(name: str, value: Any, type_: pa.DataType) -> Any:
    """A value of JSON as its column's type, to which the types of all its values were joined."""
    if value is None or (type_ == pa.string() and isinstance(value, str)):
        return value
    if type_ == pa.string():
        try:
            return json.dumps(value, ensure_ascii=False)
        except RecursionError as exc:
            raise BadRowError("nested too deeply") from exc
    if _joined_json([_JSON_TYPES.get(_json_type(value), pa.string()), type_]) != type_:
        raise BadRowError(f"{name!r} is no {type_}")  # it could not be read when types were found
    return float(value) if type_ == pa.float64() else value


def _taggable(text: Any, column: str) -> str:
    """The text, if it is one that a model can be asked about."""
    if text is None:
        raise BadRowError(f"no {column!r}")
    if not isinstance(text, str):
        raise BadRowError(f"{column!r} is no string")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise BadRowError(f"half a surrogate pair at character {exc.start + 1}") from exc
    if "\0" in text:
        raise BadRowError(f"a NUL at character {text.index(chr(0)) + 1}")
    return text
