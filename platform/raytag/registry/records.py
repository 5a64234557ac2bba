"""What stands in a registry's JSON files: versions, moves of aliases, tombstones.

Knows their fields and how to tell a record from something else; a record may have been written
by anyone who may write there, so that its names are judged before they become part of a path.
"""

import json
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal, TypeVar

from raytag.errors import StorageError
from raytag.registry.names import LAST_NUMBER

FORMAT = 1
_UID = re.compile(r"[0-9]{8}T[0-9]{6}Z-[0-9a-f]{12}", re.ASCII)
_UID_TIME = "%Y%m%dT%H%M%SZ"
_UNPRINTED = re.compile(r"[\x00-\x1f\x7f\\]")

Record = TypeVar("Record")
Action = Literal["promote", "rollback", "undo"]


@dataclass(frozen=True, kw_only=True)
class FileRecord:
    """A file of a version."""

    size: int
    """In bytes."""
    sha256: str


@dataclass(frozen=True, kw_only=True)
class Version:
    """A published adapter: what it is, what it came from, which files it has."""

    tenant: str
    domain: str
    number: int
    uid: str
    """Of the upload that holds its files."""
    uri: str
    """Of the folder with its files: not stored, it follows from where the record was read."""
    created_at: str
    files: Mapping[str, FileRecord]
    head: str
    labels: tuple[str, ...]
    base: str
    revision: str | None
    base_fingerprint: str
    data: Mapping[str, Any]
    """Fingerprint and counts of the training data."""
    settings: Mapping[str, Any]
    scores: Mapping[str, Any]
    """By split, as text.score gives them."""
    code_version: str
    parent: str | None = None
    """The version it was trained from, if any."""
    note: str = ""
    run: str | None = None
    """Fingerprint of the training run; no two versions of a domain are of one run."""

    def __str__(self) -> str:
        return f"{self.tenant}/{self.domain}@{self.number}"

    @property
    def scored_on(self) -> str | None:
        """The split its scores are told from: test, else dev."""
        return next((split for split in ("test", "dev") if split in self.scores), None)

    @property
    def f1(self) -> float | None:
        """Micro F1 on that split."""
        if self.scored_on is None:
            return None
        return float(self.scores[self.scored_on]["micro"]["f1"])

    @property
    def f1_per_type(self) -> dict[str, float]:
        """F1 by label on that split."""
        if self.scored_on is None:
            return {}
        types = self.scores[self.scored_on]["per_type"]
        return {label: float(score["f1"]) for label, score in types.items()}

    def to_json(self) -> bytes:
        content = asdict(self)
        del content["uri"]
        return _to_json(content)

    @classmethod
    def from_json(cls, data: bytes, uri: str, uploads: str, number: int) -> "Version":
        """Raises StorageError where ``uri`` holds no record of this number."""

        def read(content: dict[str, Any]) -> Version:
            if content["number"] != number or not is_uid(content["uid"]):
                raise ValueError("not of this number")
            content["files"] = {n: FileRecord(**file) for n, file in content["files"].items()}
            if not all(is_file_name(name) for name in content["files"]):
                raise ValueError("not names of files")
            content["labels"] = tuple(content["labels"])
            version = cls(**content, uri=f"{uploads}/{content['uid']}")
            _ = version.f1, version.f1_per_type  # raise where the scores are none
            return version

        return _from_json(data, uri, "version", read)


@dataclass(frozen=True, kw_only=True)
class Move:
    """A record in the log of an alias: where it points from then on."""

    number: int
    """Counts from 1 for each alias."""
    action: Action
    version: int | None
    """None where a first promotion was taken back."""
    replaced: int | None
    """The version it pointed to before."""
    below: int | None
    """The number of the move that a rollback goes back to."""
    at: str
    merit: Mapping[str, Any] | None = None
    """The rule and figures by which it was found to be no worse, if it was asked for."""
    id: str = field(default_factory=lambda: uuid.uuid4().hex)
    """No two moves are the same, so that a writer can tell its own."""

    def to_json(self) -> bytes:
        return _to_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> "Move":
        return _from_json(data, uri, "move of an alias", lambda content: cls(**content))

    def __post_init__(self) -> None:
        if self.version is None:
            return
        if type(self.version) is not int or not 1 <= self.version <= LAST_NUMBER:
            raise ValueError(f"{self.version} is no version number")


@dataclass(frozen=True, kw_only=True)
class Tombstone:
    """Says that a version is deleted, and since when."""

    at: str

    def to_json(self) -> bytes:
        return _to_json(asdict(self))

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> "Tombstone":
        return _from_json(data, uri, "tombstone", lambda content: cls(**content))

    @property
    def seconds_old(self) -> float:
        return (datetime.now(UTC) - datetime.fromisoformat(self.at)).total_seconds()


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def new_uid() -> str:
    """A name for an upload that no other has, and that says when it began."""
    return f"{datetime.now(UTC):{_UID_TIME}}-{uuid.uuid4().hex[:12]}"


def is_uid(text: str) -> bool:
    return _UID.fullmatch(text) is not None


def seconds_since(uid: str) -> float:
    """Since this upload began."""
    began = datetime.strptime(uid.partition("-")[0], _UID_TIME).replace(tzinfo=UTC)
    return (datetime.now(UTC) - began).total_seconds()


def is_file_name(name: str) -> bool:
    """Whether this is a relative path that stays below its folder."""
    return not _UNPRINTED.search(name) and all(p not in ("", ".", "..") for p in name.split("/"))


def _to_json(content: dict[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT, **content}, ensure_ascii=False, indent=1).encode()


def _from_json(
    data: bytes, uri: str, kind: str, read: Callable[[dict[str, Any]], Record]
) -> Record:
    try:
        content = json.loads(data)
        if content.pop("format") != FORMAT:
            raise StorageError(f"{uri} has another format than this version of Raytag reads")
        return read(content)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StorageError(f"{uri} is no {kind} of a registry; who wrote it?") from exc
