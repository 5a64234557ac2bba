"""Removing what nothing refers to any more: uploads left half, and files of deleted versions.

Nothing that is younger than a lease is touched. What is to go is marked first, then the records
are looked at again, and only then is it removed: a publisher looks for the mark after writing
its record, so that one of the two sees the other.
"""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from raytag import storage
from raytag.registry.layout import AT_ONCE, Domain
from raytag.registry.records import is_uid, seconds_since

LEASE = 24 * 3600.0
"""Seconds that a publisher has for its upload, and that a deleted version's files are kept."""


@dataclass(frozen=True, kw_only=True)
class Swept:
    """An upload that was removed."""

    uri: str
    reason: Literal["never finished", "deleted"]
    files: int
    bytes: int


def sweep(domain: Domain, lease: float) -> list[Swept]:
    """Remove from one domain what is older than ``lease`` seconds; safe beside any other use."""
    known = _uploads(domain, above=0)
    _finish_deletions(domain, lease)
    doomed = list(_doomed(domain, known, lease))
    for uid, _ in doomed:
        storage.write_bytes(domain.uri("marks", uid), b"")
    known |= _uploads(domain, above=max(known.values(), default=0))
    still = dict(_doomed(domain, known, lease))
    swept = []
    for uid, reason in doomed:
        if still.get(uid) == reason:
            swept.append(_removed(domain, uid, reason))
        storage.remove(domain.uri("marks", uid))
    return swept


def _uploads(domain: Domain, above: int) -> dict[str, int]:
    """Version by upload, of the versions with higher numbers than this."""
    numbers = []
    for number in domain.numbers("versions"):
        if number <= above:
            break
        numbers.append(number)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return {version.uid: version.number for version in pool.map(domain.record, numbers)}


def _doomed(
    domain: Domain, known: dict[str, int], lease: float
) -> Iterator[tuple[str, Literal["never finished", "deleted"]]]:
    used = set(domain.aliases().values())
    for name in storage.names(domain.uri("uploads")):
        uid = name.rstrip("/")
        if not is_uid(uid):
            continue
        if uid not in known:
            if seconds_since(uid) > lease:
                yield uid, "never finished"
        elif known[uid] not in used and _deleted_for(domain, known[uid], lease):
            yield uid, "deleted"


def _deleted_for(domain: Domain, number: int, lease: float) -> bool:
    tombstone = domain.tombstone(number)
    return tombstone is not None and tombstone.seconds_old > lease


def _finish_deletions(domain: Domain, lease: float) -> None:
    """Take back what a killed process could not: tombstones of versions that are pointed to."""
    for number in set(domain.aliases().values()):
        if _deleted_for(domain, number, lease):
            domain.unbury(number)


def _removed(domain: Domain, uid: str, reason: Literal["never finished", "deleted"]) -> Swept:
    uri = domain.uri("uploads", uid)
    entries = storage.list_entries(uri)
    storage.remove_folder(uri)
    return Swept(uri=uri, reason=reason, files=len(entries), bytes=sum(e.size for e in entries))
