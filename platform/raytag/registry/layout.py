"""Where things lie in a registry, all that is a tenant's below ``ROOT/TENANT/``.

    ROOT/TENANT/DOMAIN/uploads/UID/...           an adapter's files, under a name no other has
                      /versions/99999996.json    the record of version 3, created only if absent:
                                                 now its upload counts
                      /aliases/ALIAS/99999998.json   first move of an alias, created likewise
                      /deleted/99999996.json     version 3 is deleted
                      /tags/99999996.WORD        version 3 is tagged
                      /marks/UID                 the sweep is about to remove this upload
    ROOT/TENANT/.probe-UID/...                   for a moment, see probe.py

Numbers count down in names: the first name of a listing is then the latest number, whatever
there is before it. Credentials for one tenant's prefix suffice for all that is done with it.
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

from raytag import storage
from raytag.errors import SettingsError, StorageError
from raytag.registry.names import check_name, check_word
from raytag.registry.records import Move, Tombstone, Version

AT_ONCE = 16
"""Records read at a time."""
_TOP = 99_999_999
_RECORD = re.compile(r"([0-9]{8})\.json", re.ASCII)


def within(root: str, *parts: str) -> str:
    """The URI below the root. Raises StorageError where a symbolic link stands on the way."""
    uri = storage.join(root, *parts)
    if "://" not in root and os.path.realpath(uri) != os.path.join(os.path.realpath(root), *parts):
        raise StorageError(
            f"{uri}: a symbolic link stands in this path, and a registry follows none below its "
            "root; put the folder itself there"
        )
    return uri


def key(number: int) -> str:
    """The name of a number, which sorts before those of lower ones."""
    return f"{_TOP - number:08}"


def number_of(name: str) -> int:
    """The number that :func:`key` made this name of."""
    return _TOP - int(name)


@dataclass(frozen=True)
class Domain:
    """The folder of one domain, and the records in it. Raises SettingsError for no names."""

    root: str
    tenant: str
    name: str

    def __post_init__(self) -> None:
        check_name("tenant", self.tenant)
        check_name("domain", self.name)

    def __str__(self) -> str:
        return f"{self.tenant}/{self.name}"

    def uri(self, *parts: str) -> str:
        return within(self.root, self.tenant, self.name, *parts)

    def numbers(self, *folder: str, page: int = 1000) -> Iterator[int]:
        """Of the records in a folder, the latest first, asking for ``page`` names at a time."""
        for name in storage.names(self.uri(*folder), page):
            if found := _RECORD.fullmatch(name):
                yield number_of(found[1])

    def latest(self, *folder: str) -> int:
        """The highest number in a folder; 0 where there is none."""
        return next(self.numbers(*folder, page=1), 0)

    def version(self, number: int) -> Version | None:
        """The record of a version, deleted or not."""
        # Looked for first: to whoever may list one prefix only S3 says of an absent file that it
        # must not be read.
        return self.record(number) if storage.exists(self._record_uri(number)) else None

    def record(self, number: int) -> Version:
        """The record of a version that is known to be there."""
        uri = self._record_uri(number)
        data = storage.read_bytes(uri)
        version = Version.from_json(data, uri, self.uri("uploads"), number)
        if (version.tenant, version.domain) != (self.tenant, self.name):
            raise StorageError(f"{uri} is the record of another domain; who put it there?")
        return version

    def create(self, version: Version) -> bool:
        """Whether its number was free: now its upload counts."""
        return storage.create(self._record_uri(version.number), version.to_json())

    def versions(self, limit: int | None = None) -> list[Version]:
        """The latest records, or all, the latest first."""
        numbers = self.numbers("versions", page=min(limit or 1000, 1000))
        with ThreadPoolExecutor(AT_ONCE) as pool:
            return list(pool.map(self.record, islice(numbers, limit)))

    def move(self, alias: str, number: int | None) -> Move | None:
        """A record of an alias."""
        if not number:
            return None
        uri = self.uri("aliases", check_word("alias", alias), f"{key(number)}.json")
        return Move.from_json(storage.read_bytes(uri), uri)

    def last_move(self, alias: str) -> Move | None:
        """The record that counts."""
        return self.move(alias, self.latest("aliases", check_word("alias", alias)))

    def aliases(self) -> dict[str, int]:
        """The version each alias points to, by alias."""
        names = [n[:-1] for n in storage.names(self.uri("aliases")) if n.endswith("/")]
        with ThreadPoolExecutor(AT_ONCE) as pool:
            moves = list(pool.map(self.last_move, names))
        return {n: m.version for n, m in zip(names, moves, strict=True) if m and m.version}

    def pointing_to(self, number: int) -> list[str]:
        """The aliases that do."""
        return [alias for alias, version in self.aliases().items() if version == number]

    def is_deleted(self, number: int) -> bool:
        return storage.exists(self._tombstone_uri(number))

    def tombstone(self, number: int) -> Tombstone | None:
        if not self.is_deleted(number):
            return None
        uri = self._tombstone_uri(number)
        return Tombstone.from_json(storage.read_bytes(uri), uri)

    def bury(self, number: int, tombstone: Tombstone) -> bool:
        """Whether it was not deleted before."""
        return storage.create(self._tombstone_uri(number), tombstone.to_json())

    def unbury(self, number: int) -> None:
        storage.remove(self._tombstone_uri(number))

    def tags(self) -> dict[int, list[str]]:
        """Words by version."""
        found: dict[int, list[str]] = {}
        for name in storage.names(self.uri("tags")):
            number, _, word = name.partition(".")
            if number.isdigit() and word:
                found.setdefault(number_of(number), []).append(word)
        return found

    def _record_uri(self, number: int) -> str:
        return self.uri("versions", f"{key(number)}.json")

    def _tombstone_uri(self, number: int) -> str:
        return self.uri("deleted", f"{key(number)}.json")


def domains(root: str, tenant: str) -> list[Domain]:
    """Those of a tenant, by name; what is no domain's name is passed over."""
    found = []
    for name in storage.names(within(root, check_name("tenant", tenant))):
        if name.endswith("/") and not name.startswith("."):
            try:
                found.append(Domain(root, tenant, name[:-1]))
            except SettingsError:
                continue
    return found
