"""Files of examples: CoNLL, JSON lines, Parquet and Hugging Face data sets, in and out.

``read_examples`` reads any of them, from a path or an s3:// URI, gzip or not, a file or a
folder of files. Every row leaves as an example or as a rejected row with its reason.
"""

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from raytag import storage
from raytag.errors import DataError, SettingsError
from raytag.text.formats import conll, dataset, jsonl, parquet
from raytag.text.formats.intake import Intake, OnBad, Overlaps, Rejected
from raytag.text.formats.jsonl import write_jsonl, write_rejected
from raytag.text.formats.lines import lines, unpacked
from raytag.text.spans import Example

__all__ = ["Format", "ReadResult", "Rejected", "read_examples", "write_jsonl", "write_rejected"]

Format = Literal["auto", "conll", "jsonl", "parquet", "dataset"]

_READERS = {"conll": conll.read, "jsonl": jsonl.read, "parquet": parquet.read}
_LOOKED_AT = 20


@dataclass(frozen=True, slots=True)
class ReadResult:
    """What a reading gave: examples in the order of the file, and what did not become one.

    ``scheme`` is that of the tags, None where entities came as offsets. ``counts`` says what was
    mended or passed over, by name, zeros left out.
    """

    examples: tuple[Example, ...]
    rejected: tuple[Rejected, ...]
    format: str
    scheme: str | None
    counts: Mapping[str, int]

    @property
    def notes(self) -> list[str]:
        """For people: what was found and what was mended, a line each."""
        scheme = [f"tags in {self.scheme}"] if self.scheme else []
        mended = [f"{count} {what}" for what, count in self.counts.items()]
        return [f"read as {self.format}", *scheme, *mended]


def read_examples(
    uri: str,
    format: Format = "auto",
    *,
    on_bad: OnBad = "raise",
    overlaps: Overlaps = "flatten",
) -> ReadResult:
    """Reads the examples of a file, a folder of files or a data set (``folder#split``).

    ``format`` is found by looking at the content unless named. A bad row raises DataError
    ("file:line: what is wrong; what to do"), or with ``on_bad="set-aside"`` is among the rejected
    rows. Where entities of a text overlap, ``overlaps="flatten"`` keeps the longer and counts the
    dropped, ``"reject"`` makes it a bad row.
    """
    _check_choice("format", format, get_args(Format))
    _check_choice("on_bad", on_bad, get_args(OnBad))
    _check_choice("overlaps", overlaps, get_args(Overlaps))
    intake = Intake(on_bad, overlaps)
    folder, split = _folder_and_split(uri)
    if folder and (format == "dataset" or (format == "auto" and dataset.looks_like(folder))):
        found = "dataset"
        dataset.read(folder, split, uri, _stem(uri), intake)
    elif format == "dataset":
        raise DataError(f"{uri}: a data set is a folder that save_to_disk made; name that folder")
    elif split:
        raise DataError(f"{uri}: no data set, so it has no split; leave #{split} out")
    else:
        found = _read_files(_files(uri) if folder else [uri], format, intake)
    scheme = intake.scheme()
    if not intake.examples and not intake.rejected:
        raise DataError(f"{uri}: holds no examples; check that it is the file you mean")
    names = Counter(example.id for example in intake.examples)
    intake.counts["ids that occur more than once"] += sum(n > 1 for n in names.values())
    counts = {what: count for what, count in intake.counts.items() if count}
    return ReadResult(tuple(intake.examples), tuple(intake.rejected), found, scheme, counts)


def _check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise SettingsError(f"{name}={value!r} is unknown; choose from {', '.join(allowed)}")


def _folder_and_split(uri: str) -> tuple[str, str]:
    """("", "") for what is no folder; a folder's own name may hold a #."""
    if storage.is_folder(uri):
        return uri, ""
    folder, hash_sign, split = uri.rpartition("#")
    return (folder, split) if hash_sign and storage.is_folder(folder) else ("", "")


def _files(folder: str) -> list[str]:
    """The files of a folder that are meant as data: not those whose names begin with . or _"""
    top = storage.join(folder, "x")[:-1]
    files = storage.list_files(folder)
    hidden = [any(part[:1] in "._" for part in f.removeprefix(top).split("/")) for f in files]
    return [file for file, hide in zip(files, hidden, strict=True) if not hide]


def _read_files(files: list[str], format: Format, intake: Intake) -> str:
    found: str = format
    for file in files:
        data = unpacked(storage.read_bytes(file), file)
        found = found if format != "auto" else _format_of(data, file)
        _READERS[found](data, file, _stem(file), intake)
    return found


def _stem(uri: str) -> str:
    """The last part of a name, from which the ids of its examples are made."""
    return uri.rstrip("/").rpartition("/")[2]


def _format_of(data: bytes, file: str) -> str:
    """The format of a file by its first lines."""
    if data.startswith(b"PAR1"):
        return "parquet"
    if data.startswith(b"ARROW1"):
        raise DataError(f"{file}: an Arrow file; name the folder of the data set it is part of")
    head = data[: 1 << 20]
    rows = [line.text for line in lines(head, file) if line.text.strip()][:_LOOKED_AT]
    if not rows:
        raise DataError(f"{file}: holds no examples; check that it is the file you mean")
    if any(conll.looks_like(row) for row in rows) and not _is_object(rows[0]):
        return "conll"
    if rows[0].lstrip().startswith("{"):
        return "jsonl"
    if rows[0].lstrip().startswith("["):
        raise DataError(f"{file}:1: a JSON array; write one object per line (jq -c '.[]')")
    raise DataError(
        f"{file}:1: cannot tell the format from {rows[0][:40]!r}; give CoNLL (token, tag), JSON "
        "lines, Parquet or a data set folder, or name the format"
    )


def _is_object(row: str) -> bool:
    try:
        return isinstance(json.loads(row), dict)
    except (ValueError, RecursionError):
        return False
