"""A model's files: which they are, what tells them from others, and where they lie on this host.

Knows names, hashes, the hub's client and this host's copies of what lies on an object store. Does
not know what is in the files, and imports no torch.

The hub's client keeps a cache of its own. What lies on an object store is downloaded once a host,
whatever the number of processes that want it:

    ~/.cache/raytag/models/   or the folder that RAYTAG_MODELS names
        lock                  held by the process that downloads or throws away
        REVISION/             a model, whole: it gets this name last of all
            in-use            held by every process that uses the model; its time is the last use's
        unfinished/           being downloaded or thrown away; where nobody holds the lock, rubbish

A revision is a hash of what the store says of the content, so files that are put in the place of
others are another model. The locks are the kernel's and end with their process: a model is in use
until the last process that asked for it has ended. To make room for another, those that are not in
use are thrown away, the one first whose last use is longest ago, until KEPT_FREE of the disk and
at least LEAST_FREE would be left. One that leaves less than LEAST_FREE is not downloaded.
"""

import fcntl
import hashlib
import os
import shutil
import socket
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO, NamedTuple

from raytag import storage
from raytag.errors import ModelError, ResourceError, StorageError
from raytag.storage import Entry

CACHE = "RAYTAG_MODELS"
"""The variable that names the folder of the copies."""
USUALLY = "~/.cache/raytag/models"
"""Where they are without it."""
KEPT_FREE = 0.15
"""Of the disk: below it Kubernetes begins to evict pods, and at a twentieth Ray stops spilling."""
LEAST_FREE = 1 << 30
"""Bytes."""

_WEIGHTS = "*.safetensors"
_SMALL = ("*.json", "*.txt", "*.model", "*.jinja")
_FINGERPRINTED = frozenset({".safetensors", ".json", ".model"})
_UNFINISHED = "unfinished"
_IN_USE = "in-use"
_GIB = 1 << 30

_used: dict[Path, BinaryIO] = {}
"""The copies that this process uses, and the locks that say so."""


class Found(NamedTuple):
    """A model's folder on this host."""

    path: Path
    revision: str | None
    """On the hub the commit, on an object store the hash of its listing; None for a folder."""


def find_model(name: str, revision: str | None = None, *, weights: bool = True) -> Found:
    """The model in a folder, on an object store or on the hub, on this host's disk.

    What is not here yet is downloaded; without ``weights`` only config and tokenizer. Of a folder
    ``revision`` is its fingerprint. Raises ModelError where there is no model of that name and
    revision, ResourceError where the disk has no room for it.
    """
    path = storage.local_path(name)
    if path is None:
        return _on_this_host(name, revision, weights)
    path = path.expanduser()
    if not path.is_dir():
        if "://" in name or path.is_absolute() or name.startswith(".") or name.count("/") > 1:
            raise ModelError(
                f"no base model at {name}: not a directory on {socket.gethostname()}, nor a hub "
                "name (owner/name); every host that works with it needs it, or give an s3:// prefix"
            )
        return _from_hub(name, revision, weights)
    _check_names(name, [file.name for file in path.iterdir()])
    if revision is not None and revision != fingerprint(path):
        raise ModelError(_replaced(name))
    return Found(path.resolve(), None)


def fingerprint(path: Path) -> str:
    """SHA-256 over config, tokenizer and weight files, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(path.iterdir()):
        if file.suffix in _FINGERPRINTED or file.name in ("vocab.txt", "merges.txt"):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def find_fingerprint(name: str, revision: str | None) -> str:
    """The fingerprint of the model that :func:`find_model` finds."""
    return fingerprint(find_model(name, revision).path)


def revision_of(folder: str) -> str:
    """What :func:`find_model` can be asked for to find this content of a folder, or none."""
    path = storage.local_path(folder)
    return fingerprint(path) if path is not None else _revision(_listed(folder))


def _check_names(model: str, names: Collection[str], weights: bool = True) -> None:
    if "config.json" not in names:
        raise ModelError(f"{model} is not a model directory: it holds no config.json")
    if weights and not any(fnmatchcase(name, _WEIGHTS) for name in names):
        raise ModelError(
            f"{model} has no .safetensors weights, and no other kind is loaded; "
            "convert it with transformers' save_pretrained first"
        )


def _replaced(name: str) -> str:
    return (
        f"{name} holds another model than was asked for: its files were replaced, or differ from "
        f"host to host ({socket.gethostname()} here); give the new one a name of its own"
    )


def _from_hub(name: str, revision: str | None, weights: bool) -> Found:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    patterns = [*_SMALL, _WEIGHTS] if weights else [*_SMALL]
    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as exc:
        said = " ".join(str(exc).split())[:300]
        raise ModelError(f"no directory {name} here, and the hub did not give it: {said}") from exc
    _check_names(name, [file.name for file in path.iterdir()], weights)
    return Found(path, path.name)  # its folder is named after the commit


# Copies of what lies on an object store


def _on_this_host(uri: str, revision: str | None, weights: bool) -> Found:
    entries = _listed(uri)
    _check_names(uri, [_name(entry) for entry in entries])
    found = _revision(entries)
    if revision not in (None, found):
        raise ModelError(_replaced(uri))
    name = found
    if not weights:
        entries = [entry for entry in entries if not fnmatchcase(_name(entry), _WEIGHTS)]
        name = f"{found}-small"
    folder = Path(os.environ.get(CACHE) or USUALLY).expanduser()
    try:
        while not _use(folder / name, entries):
            _download(uri, entries, folder / name)
    except OSError as exc:
        raise StorageError(
            f"{folder}: models cannot be kept there: {exc.strerror or exc}; let {CACHE} name a "
            "folder that can be written"
        ) from exc
    return Found(folder / name, found)


def _listed(uri: str) -> list[Entry]:
    """The files directly in a folder that belong to a model; what else lies there is no concern."""
    top = storage.join(uri, "x")[:-1]
    return [
        entry
        for entry in storage.list_entries(uri)
        if "/" not in (name := entry.uri.removeprefix(top))
        and any(fnmatchcase(name, pattern) for pattern in (_WEIGHTS, *_SMALL))
    ]


def _name(entry: Entry) -> str:
    return entry.uri.rpartition("/")[2]


def _revision(entries: Sequence[Entry]) -> str:
    said = "\n".join(f"{entry.version} {_name(entry)}" for entry in entries)
    return hashlib.sha256(said.encode()).hexdigest()


def _use(model: Path, entries: Sequence[Entry]) -> bool:
    """Have a copy kept for as long as this process lives. False where it is not there, whole."""
    with ExitStack() as unless_used:
        try:
            lock = unless_used.enter_context((model / _IN_USE).open("r+b"))
            fcntl.flock(lock, fcntl.LOCK_SH)
            # While this waited, it may have been thrown away.
            there = os.path.samestat(os.fstat(lock.fileno()), (model / _IN_USE).stat())
        except FileNotFoundError:
            return False
        if not there or not _whole(model, entries):
            return False
        os.utime(lock.fileno())
        unless_used.pop_all()
    before = _used.get(model)
    _used[model] = lock
    if before is not None:
        before.close()
    return True


def _whole(model: Path, entries: Sequence[Entry]) -> bool:
    """A host that lost its power may have kept a file's name and lost its end."""
    sizes = {file.name: file.stat().st_size for file in model.iterdir()} if model.is_dir() else {}
    return all(sizes.get(_name(entry)) == entry.size for entry in entries)


def _download(uri: str, entries: Sequence[Entry], model: Path) -> None:
    folder = model.parent
    folder.mkdir(parents=True, exist_ok=True)
    # One at a time, or two would both count on the room there is for one.
    with _locked(folder / "lock"):
        if _whole(model, entries):
            return
        unfinished = folder / _UNFINISHED
        shutil.rmtree(unfinished, ignore_errors=True)
        if model.exists():
            _throw_away(model)
        disk = shutil.disk_usage(folder)
        _make_room(uri, sum(entry.size for entry in entries), folder, disk.free, disk.total)
        try:
            unfinished.mkdir()
            for entry in entries:
                storage.download_file(entry.uri, unfinished / _name(entry))
            if not set(entries) <= set(_listed(uri)):
                raise StorageError(f"{uri}: it was changed while it was read; start again")
            (unfinished / _IN_USE).touch()
            unfinished.rename(model)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _make_room(uri: str, size: int, folder: Path, free: int, total: int) -> None:
    """Throw away what is not in use until so many bytes fit.

    Raises ResourceError, and throws nothing away, where that would not do.
    """
    left = free - size
    with ExitStack() as locks:
        unused: list[tuple[float, Path, int]] = []
        for file in folder.glob(f"*/{_IN_USE}"):
            try:
                locks.enter_context(_locked(file, fcntl.LOCK_NB))
            except BlockingIOError:
                continue
            bytes_there = sum(part.stat().st_size for part in file.parent.iterdir())
            unused.append((file.stat().st_mtime, file.parent, bytes_there))
        if left + sum(bytes_there for _, _, bytes_there in unused) < LEAST_FREE:
            raise ResourceError(
                f"{uri} takes {size / _GIB:.1f} GiB, and {folder} on {socket.gethostname()} has "
                f"{free / _GIB:.1f} GiB free and nothing more to throw away that would do; make "
                f"room there, or let {CACHE} name a folder on a larger disk"
            )
        for _, model, bytes_there in sorted(unused):
            if left >= max(LEAST_FREE, KEPT_FREE * total):
                break
            _throw_away(model)
            left += bytes_there


def _throw_away(model: Path) -> None:
    """By another name first: nobody shall find a part of it."""
    unfinished = model.parent / _UNFINISHED
    model.rename(unfinished)
    shutil.rmtree(unfinished)


@contextmanager
def _locked(file: Path, how: int = 0) -> Iterator[None]:
    """Alone in holding a file, among all processes of this host."""
    with file.open("ab") as held:
        fcntl.flock(held, fcntl.LOCK_EX | how)
        yield
