"""Files by path or ``s3://`` URI: the same few functions for a local disk and an object store.

Knows bytes and names, nothing of what they mean. Endpoint and credentials of S3 come from the
usual AWS variables (AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID, ...). Whatever goes wrong is a
StorageError of one line that says what to do.
"""

import difflib
import functools
import io
import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from raytag.errors import StorageError

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer
    from mypy_boto3_s3 import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

Uri = str | os.PathLike[str]

_ABSENT = {"NoSuchKey", "404", "NotFound"}
_BAD_CREDENTIALS = {
    "AuthFailure",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidClientTokenId",
    "InvalidToken",
    "SignatureDoesNotMatch",
}
_REFUSED = {"403", "AccessDenied", "AllAccessDisabled", "AccountProblem"}
_ELSEWHERE = {"301", "AuthorizationHeaderMalformed", "PermanentRedirect"}

_BUFFER = 4 << 20
"""Bytes that a stream reads ahead, and so the size of its requests."""
_TRIES = 3
"""How often a range is asked for whose answer breaks off."""


class Entry(NamedTuple):
    """A file as the store lists it."""

    uri: str
    size: int
    """In bytes."""
    version: str
    """Changes when the content does: size and time of the last change, on S3 size and ETag."""


class _Place(NamedTuple):
    """Where a URI points: a bucket and key, or with an empty bucket a local path."""

    bucket: str
    key: str


def join(uri: Uri, *parts: str) -> str:
    """The URI of something below a folder."""
    joined = os.fspath(uri)
    for part in parts:
        separator = "" if not joined or joined.endswith("/") else "/"
        joined = f"{joined}{separator}{part.strip('/')}"
    return joined


def read_bytes(uri: Uri) -> bytes:
    """The whole content of a file."""
    place = _place(uri)
    with _translated(uri, "read"):
        if place.bucket:
            return _object(place)
        return Path(place.key).read_bytes()


def write_bytes(uri: Uri, data: bytes) -> None:
    """Writes a file whole, replacing what stood there; a reader sees the old or the new one."""
    place = _place(uri)
    with _translated(uri, "write"):
        if place.bucket:
            _s3().put_object(Bucket=place.bucket, Key=place.key, Body=data)
            return
        with _beside(Path(place.key), data) as temporary:
            os.replace(temporary, place.key)


def create(uri: Uri, data: bytes) -> bool:
    """Writes a file only if it is absent; of many writers exactly one is told True."""
    place = _place(uri)
    with _translated(uri, "write"):
        if place.bucket:
            return _create_object(place, data)
        with _beside(Path(place.key), data) as temporary:
            try:
                os.link(temporary, place.key)
            except FileExistsError:
                return False
    return True


def exists(uri: Uri) -> bool:
    """Whether there is a file of this name; a folder is none."""
    place = _place(uri)
    with _translated(uri, "look for"):
        if place.bucket:
            return any(found["Key"] == place.key for found in _first(place.bucket, place.key))
        return Path(place.key).is_file()


def is_folder(uri: Uri) -> bool:
    """Whether there is a folder of this name: on S3, whether any key lies below it."""
    place = _place(uri)
    with _translated(uri, "look for"):
        if place.bucket:
            return bool(_first(place.bucket, _as_prefix(place.key)))
        return Path(place.key).is_dir()


def names(folder: Uri, page: int = 1000) -> Iterator[str]:
    """The names of what is directly in a folder, in order, those of folders with a ``/``.

    On S3 at most ``page`` names are asked for at a time, and no more than are taken; none where
    the folder is absent.
    """
    place = _place(folder)
    with _translated(folder, "list"):
        if place.bucket:
            yield from _keys_in(place.bucket, _as_prefix(place.key), page)
        elif Path(place.key).is_dir():
            with os.scandir(place.key) as found:
                files = [f"{e.name}/" if e.is_dir() else e.name for e in found]
            yield from sorted(name for name in files if not _temporary(Path(name)))


def list_files(folder: Uri) -> list[str]:
    """The URIs of all files below a folder, at any depth, sorted; none where it is absent."""
    return [entry.uri for entry in list_entries(folder)]


def list_entries(folder: Uri) -> list[Entry]:
    """All files below a folder, at any depth, sorted by URI; none where it is absent."""
    place = _place(folder)
    with _translated(folder, "list"):
        if place.bucket:
            objects = _objects(place.bucket, _as_prefix(place.key))
            return sorted(_entry_of_object(place.bucket, found) for found in objects)
        root = Path(place.key)
        entries = []
        for path in root.rglob("*"):
            if path.is_file() and not _temporary(path):
                uri = join(os.fspath(folder), path.relative_to(root).as_posix())
                with suppress(FileNotFoundError):  # removed just now: not there, then
                    entries.append(_entry_of_path(uri, path))
        return sorted(entries)


def entry(uri: Uri) -> Entry:
    """What the store says of one file."""
    place = _place(uri)
    with _translated(uri, "look for"):
        if not place.bucket:
            if Path(place.key).is_dir():
                raise IsADirectoryError
            return _entry_of_path(os.fspath(uri), Path(place.key))
        for found in _first(place.bucket, place.key):
            if found["Key"] == place.key:
                return _entry_of_object(place.bucket, found)
        raise StorageError(f"{os.fspath(uri)}: {_said_by_code('NoSuchKey', '', place, 'read')}")


@contextmanager
def open_read(uri: Uri, offset: int = 0) -> Iterator[BinaryIO]:
    """A file's bytes as a buffered stream that can seek, at first at this offset.

    Whatever goes wrong while it is read is a StorageError too.
    """
    place = _place(uri)
    with _translated(uri, "read"):
        raw = _Object(entry(uri)) if place.bucket else _File(place.key)
    with io.BufferedReader(raw, _BUFFER) as stream:
        stream.seek(offset)
        yield stream


def upload_folder(local: Uri, uri: Uri) -> list[str]:
    """Copies all files below a local folder to a URI; gives their names below it, sorted."""
    root = Path(local)
    if not root.is_dir():
        raise StorageError(f"{root}: there is no such folder to upload; give a local folder")
    names = sorted(Path(path).relative_to(root).as_posix() for path in list_files(root))
    for name in names:
        target = join(uri, name)
        place = _place(target)
        with _translated(target, "write"):
            if place.bucket:
                _s3().upload_file(str(root / name), place.bucket, place.key)
            else:
                _copy(root / name, Path(place.key))
    return names


def download_folder(uri: Uri, local: Uri) -> list[str]:
    """Copies all files below a URI to a local folder; gives their names below it, sorted."""
    sources = list_files(uri)
    if not sources:
        raise StorageError(f"{os.fspath(uri)}: there are no files below it; check the name")
    top = join(uri, "x")[:-1]
    root = Path(local).resolve()
    names = []
    for source in sources:
        name = source.removeprefix(top)
        target = root / name
        if not target.resolve().is_relative_to(root):
            raise StorageError(f"{source}: this name leads out of its folder; rename it")
        download_file(source, target)
        names.append(name)
    return names


def download_file(uri: Uri, local: Path) -> None:
    """Copies one file to this machine's disk."""
    place = _place(uri)
    with _translated(uri, "read"):
        local.parent.mkdir(parents=True, exist_ok=True)
        if place.bucket:
            _s3().download_file(place.bucket, place.key, str(local))
        else:
            _copy(Path(place.key), local)


def local_path(uri: Uri) -> Path | None:
    """Where a file or folder lies on this machine's disk; None for one on an object store."""
    place = _place(uri)
    return None if place.bucket else Path(place.key)


@contextmanager
def on_disk(folder: str) -> Iterator[Path]:
    """A folder on this machine's disk: itself where it is local, else a copy for the time."""
    path = local_path(folder)
    if path is not None:
        yield path
        return
    with tempfile.TemporaryDirectory() as copy:
        download_folder(folder, copy)
        yield Path(copy)


def remove(uri: Uri) -> None:
    """Removes one file; nothing where there is none."""
    place = _place(uri)
    with _translated(uri, "remove"):
        if place.bucket:
            _s3().delete_object(Bucket=place.bucket, Key=place.key)
        else:
            Path(place.key).unlink(missing_ok=True)


def remove_folder(uri: Uri) -> None:
    """Removes all files below a URI; nothing where there are none. A bucket's root is refused."""
    place = _place(uri)
    if not place.key.strip("/"):
        raise StorageError(f"{os.fspath(uri)}: will not remove everything there; name a folder")
    with _translated(uri, "remove"):
        if place.bucket:
            for found in list(_objects(place.bucket, _as_prefix(place.key))):
                _s3().delete_object(Bucket=place.bucket, Key=found["Key"])
        elif Path(place.key).is_dir():
            shutil.rmtree(place.key)


def _place(uri: Uri) -> _Place:
    text = os.fspath(uri)
    scheme, found, rest = text.partition("://")
    if not found:
        if not text:
            raise StorageError("an empty name is no file; give a path or s3://bucket/key")
        return _Place("", text)
    if scheme == "file":
        return _Place("", rest)
    bucket, _, key = rest.partition("/")
    if scheme != "s3" or not bucket:
        raise StorageError(f"{text}: not a place known here; give a path or s3://bucket/key")
    return _Place(bucket, key)


def _as_prefix(key: str) -> str:
    return f"{key.rstrip('/')}/" if key else ""


# Local disk


@contextmanager
def _beside(target: Path, data: bytes | None = None) -> Iterator[Path]:
    """A temporary file in the target's folder, holding the data on disk; gone afterwards."""
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        if data is not None:
            with temporary.open("xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        yield temporary
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


class _File(io.FileIO):
    """A local file whose errors, while it is read, are StorageErrors."""

    def readinto(self, buffer: "WriteableBuffer") -> int | None:
        with _translated(os.fspath(self.name), "read"):
            return super().readinto(buffer)


def _entry_of_path(uri: str, path: Path) -> Entry:
    status = path.stat()
    return Entry(uri, status.st_size, f"{status.st_size}:{status.st_mtime_ns}")


def _temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _copy(source: Path, target: Path) -> None:
    with _beside(target) as temporary:
        shutil.copyfile(source, temporary)
        os.replace(temporary, target)


# S3


def _s3() -> "S3Client":
    """The client for the endpoint and credentials that the environment names now."""
    settings = sorted((k, v) for k, v in os.environ.items() if k.startswith("AWS_"))
    return _client(os.getpid(), tuple(settings))


@functools.lru_cache(maxsize=4)
def _client(pid: int, settings: tuple[tuple[str, str], ...]) -> "S3Client":
    """One client per process and set of AWS variables: it is costly to make and thread-safe."""
    import boto3
    from botocore.config import Config

    other = any(name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3") for name, _ in settings)
    config = Config(
        connect_timeout=10,
        read_timeout=60,
        retries={
            "mode": "standard",
            "total_max_attempts": int(dict(settings).get("AWS_MAX_ATTEMPTS", 4)),
        },
        max_pool_connections=32,
        # Stores other than AWS answer on one host name, and not all know the newer checksums.
        s3={"addressing_style": "path" if other else "auto"},
        request_checksum_calculation="when_required" if other else "when_supported",
        response_checksum_validation="when_required" if other else "when_supported",
    )
    return boto3.session.Session().client("s3", config=config)


def _first(bucket: str, prefix: str) -> "list[ObjectTypeDef]":
    """The first object with a prefix, if any: that of the prefix itself where it is a key."""
    answer = _s3().list_objects_v2(Bucket=bucket, Prefix=prefix, MaxKeys=1)
    return answer.get("Contents", [])


def _objects(bucket: str, prefix: str) -> "Iterator[ObjectTypeDef]":
    """All objects below a prefix, without the empty ones some tools make to stand for folders."""
    for page in _s3().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for found in page.get("Contents", []):
            if not found["Key"].endswith("/"):
                yield found


def _keys_in(bucket: str, prefix: str, page: int) -> Iterator[str]:
    """What comes after a prefix, up to the next slash, each once."""
    pages = (
        _s3()
        .get_paginator("list_objects_v2")
        .paginate(Bucket=bucket, Prefix=prefix, Delimiter="/", PaginationConfig={"PageSize": page})
    )
    for found in pages:
        keys = [one["Key"] for one in found.get("Contents", [])]
        keys += [one["Prefix"] for one in found.get("CommonPrefixes", [])]
        yield from sorted(key.removeprefix(prefix) for key in keys if key != prefix)


def _entry_of_object(bucket: str, found: "ObjectTypeDef") -> Entry:
    etag = found["ETag"].strip('"')
    return Entry(f"s3://{bucket}/{found['Key']}", found["Size"], f"{found['Size']}:{etag}")


class _Object(io.RawIOBase):
    """An object read range by range, each a request of its own, all of one version of it."""

    def __init__(self, entry: Entry) -> None:
        self._entry = entry
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        starts = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._entry.size}
        self._at = starts[whence] + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def readinto(self, buffer: "WriteableBuffer") -> int:
        view = memoryview(buffer)
        size = min(len(view), self._entry.size - self._at)
        if size <= 0:
            return 0
        with _translated(self._entry.uri, "read"):
            view[:size] = _range(self._entry, self._at, size)
        self._at += size
        return size


def _range(entry: Entry, first: int, size: int) -> bytes:
    """These bytes of an object, asked for again where the connection breaks on the way."""
    from botocore.exceptions import HTTPClientError, IncompleteReadError

    place = _place(entry.uri)
    asked = f"bytes={first}-{first + size - 1}"
    for left in reversed(range(_TRIES)):
        answer = _s3().get_object(Bucket=place.bucket, Key=place.key, Range=asked)
        etag = answer["ETag"].strip('"')
        if entry.version != f"{entry.size}:{etag}":
            raise StorageError(f"{entry.uri}: it was changed while it was read; start again")
        try:
            return answer["Body"].read()
        except (HTTPClientError, IncompleteReadError):
            if not left:
                raise
    raise AssertionError("unreachable")


def _create_object(place: _Place, data: bytes) -> bool:
    from botocore.exceptions import ClientError

    for attempt in range(4):
        try:
            _s3().put_object(Bucket=place.bucket, Key=place.key, Body=data, IfNoneMatch="*")
            return True
        except ClientError as exc:
            code = exc.response["Error"]["Code"]
            if code in ("PreconditionFailed", "412"):
                # After a retry the object may be our own: the answer was lost, not the request.
                again = attempt or exc.response["ResponseMetadata"].get("RetryAttempts", 0)
                return bool(again) and _object(place) == data
            if code not in ("ConditionalRequestConflict", "409") or attempt == 3:
                raise
    raise AssertionError("unreachable")


def _object(place: _Place) -> bytes:
    return _s3().get_object(Bucket=place.bucket, Key=place.key)["Body"].read()


# Errors


@contextmanager
def _translated(uri: Uri, doing: str) -> Iterator[None]:
    """Turns the errors of the system and of botocore into a StorageError about this URI."""
    name = os.fspath(uri)
    try:
        yield
    except OSError as exc:
        raise StorageError(f"{name}: {_said_by_system(exc, name, doing)}") from exc
    except Exception as exc:
        said = _said_by_s3(exc, _place(uri), doing) if _place(uri).bucket else None
        if said is None:
            raise
        raise StorageError(f"{name}: {said}") from exc


def _said_by_system(exc: OSError, name: str, doing: str) -> str:
    if isinstance(exc, FileNotFoundError):
        return f"there is no such file{_meant(_siblings(Path(name)), Path(name).name)}"
    if isinstance(exc, PermissionError):
        return f"not allowed to {doing} it; check its owner and mode"
    if isinstance(exc, IsADirectoryError):
        return "this is a folder; name a file in it"
    if isinstance(exc, NotADirectoryError | FileExistsError):
        return "a file stands where a folder is needed; check the path"
    return f"cannot {doing} it: {exc.strerror or exc}; check the disk"


def _siblings(path: Path) -> list[str]:
    with suppress(OSError):
        return [sibling.name for sibling in path.parent.iterdir()]
    return []


def _meant(names: list[str], wrong: str) -> str:
    """What to do about a wrong name: the nearest right ones, if any come near."""
    near = difflib.get_close_matches(wrong, sorted(names), n=2, cutoff=0.6)
    return f"; did you mean {' or '.join(near)}?" if near else "; check the name"


def _said_by_s3(exc: Exception, place: _Place, doing: str) -> str | None:
    """One line about what S3 or the way to it refused; None for what is no error of theirs."""
    from boto3.exceptions import Boto3Error
    from botocore import exceptions as known

    if isinstance(exc, Boto3Error) and isinstance(exc.__context__, Exception):
        exc = exc.__context__  # a transfer says in words what its cause says in codes
    if isinstance(exc, known.ClientError):
        error = exc.response["Error"]
        return _said_by_code(error.get("Code", "?"), error.get("Message", ""), place, doing)
    if isinstance(exc, known.NoCredentialsError | known.PartialCredentialsError):
        return "no S3 credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if isinstance(exc, known.ProfileNotFound):
        return f"{_line(exc)}; mend or unset AWS_PROFILE"
    if isinstance(exc, known.NoRegionError):
        return "no S3 region; set AWS_DEFAULT_REGION"
    if isinstance(exc, known.ParamValidationError):
        return f"{place.bucket!r} is not a bucket name or {place.key!r} not a key; mend the name"
    if isinstance(exc, known.HTTPClientError | known.ConnectionError | known.IncompleteReadError):
        return f"{_endpoint()} does not answer; check AWS_ENDPOINT_URL and that the store is up"
    if isinstance(exc, ValueError) and "endpoint" in str(exc).lower():
        return f"{_line(exc)}; mend AWS_ENDPOINT_URL, it looks like https://host:port"
    if isinstance(exc, known.BotoCoreError | Boto3Error):
        return f"cannot {doing} it: {_line(exc)}; check the AWS variables"
    return None


def _said_by_code(code: str, message: str, place: _Place, doing: str) -> str:
    if code == "NoSuchBucket":
        return f"{_endpoint()} has no bucket {place.bucket!r}{_meant(_buckets(), place.bucket)}"
    if code in _ABSENT:
        folder, _, wrong = place.key.rpartition("/")
        return f"there is no such file{_meant(_names(place.bucket, folder), wrong)}"
    if code in _BAD_CREDENTIALS:
        return (
            f"{_endpoint()} does not accept the credentials ({code}); check AWS_ACCESS_KEY_ID, "
            "AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN"
        )
    if code in _REFUSED:
        return f"the credentials may not {doing} it ({code}); ask for that right on the bucket"
    if code == "InvalidRange":
        return "it was changed while it was read; start again"
    if code in _ELSEWHERE:
        return f"the bucket is in another region ({code}); set AWS_DEFAULT_REGION to it"
    words = " ".join(message.split()).rstrip(".")
    return f"cannot {doing} it: {code}, {words}; try again or check the store"


def _buckets() -> list[str]:
    with suppress(Exception):  # a hint only: many may not list buckets
        return [bucket["Name"] for bucket in _s3().list_buckets()["Buckets"]]
    return []


def _names(bucket: str, folder: str) -> list[str]:
    """Up to 1000 names in a folder."""
    prefix = _as_prefix(folder)
    with suppress(Exception):  # a hint only
        answer = _s3().list_objects_v2(Bucket=bucket, Prefix=prefix, Delimiter="/")
        return [found["Key"].removeprefix(prefix) for found in answer.get("Contents", [])]
    return []


def _endpoint() -> str:
    variables = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL")
    return next((os.environ[name] for name in variables if os.environ.get(name)), "S3")


def _line(exc: Exception) -> str:
    return " ".join(str(exc).split()).rstrip(".")
