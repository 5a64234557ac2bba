"""Whether a store keeps conditional writes, found out by a race before anything relies on them.

Some servers ignore ``If-None-Match`` or keep it only for writes that come one after the other;
two writers of a registry would then both believe that a number is theirs.
"""

import functools
import threading
from concurrent.futures import ThreadPoolExecutor

from raytag import storage
from raytag.errors import StorageError
from raytag.registry.layout import within
from raytag.registry.records import is_uid, new_uid, seconds_since

WRITERS = 16
ROUNDS = 5
_FOLDER = ".probe-"


@functools.cache
def check_store(root: str, tenant: str) -> None:
    """Once for each root and tenant of a process. Raises StorageError for a store that fails."""
    folder = within(root, tenant, f"{_FOLDER}{new_uid()}")
    try:
        for number in range(ROUNDS):
            uri = storage.join(folder, str(number))
            winners = _race(uri)
            kept = len(winners) == 1 and storage.read_bytes(uri) == _content(winners[0])
            if not kept:
                raise StorageError(
                    f"{root}: of {WRITERS} writers that created one file {len(winners)} were told "
                    "they had, so versions could be lost there; take a store that keeps "
                    "If-None-Match, such as S3, Ceph RGW or a local disk"
                )
    finally:
        storage.remove_folder(folder)


def remove_leftovers(root: str, tenant: str, lease: float) -> None:
    """What processes left that were killed while they tried the store, ``lease`` seconds ago."""
    for name in storage.names(within(root, tenant)):
        uid = name.removeprefix(_FOLDER).rstrip("/")
        if name.startswith(_FOLDER) and is_uid(uid) and seconds_since(uid) > lease:
            storage.remove_folder(within(root, tenant, name.rstrip("/")))


def _race(uri: str) -> list[int]:
    """Those of the writers who were told that they created it."""
    barrier = threading.Barrier(WRITERS, timeout=60)

    def create(writer: int) -> bool:
        barrier.wait()
        return storage.create(uri, _content(writer))

    with ThreadPoolExecutor(WRITERS) as pool:
        won = list(pool.map(create, range(WRITERS)))
    return [writer for writer, was_told in enumerate(won) if was_told]


def _content(writer: int) -> bytes:
    return b"writer %d" % writer
