"""A registry of adapters for many tenants: what can be done with it.

An object store or a local directory is all the state there is (``layout.py`` says what lies
where); any number of processes may use it at once, and one that is killed leaves the old state
or the new. Knows versions and aliases, not what an adapter can do: that is for ``merit.py``.
"""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from raytag import __version__, storage
from raytag.errors import SettingsError, StorageError
from raytag.registry.aliases import point, roll_back
from raytag.registry.folder import TRAINING_TEXTS, read_adapter, training_texts_json
from raytag.registry.layout import Domain, domains, key
from raytag.registry.names import LAST_NUMBER, Ref, check_name, check_word
from raytag.registry.probe import check_store, remove_leftovers
from raytag.registry.records import FileRecord, Move, Tombstone, Version, new_uid, now
from raytag.registry.sweep import LEASE, Swept, sweep

if TYPE_CHECKING:
    from raytag.model.adapter import AdapterCard


@dataclass(frozen=True, kw_only=True)
class Listed:
    """A version in a listing, with what points to it and is said of it."""

    version: Version
    aliases: tuple[str, ...]
    tags: tuple[str, ...]
    deleted: bool


@dataclass(frozen=True, kw_only=True)
class ListedDomain:
    """A domain in a listing. ``latest`` is the highest number given, deleted or not."""

    domain: str
    latest: int
    aliases: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two versions side by side: F1 per type, "all types" last, and settings that differ.

    None where one of them has no such score or setting.
    """

    first: Version
    second: Version
    f1: Mapping[str, tuple[float | None, float | None]]
    settings: Mapping[str, tuple[Any, Any]]


class Registry:
    """The registry below ``root``, a local directory or ``s3://bucket/prefix``.

    References are :class:`Ref` or text such as ``acme/news@3`` and ``acme/news@production``.
    Methods raise RaytagError: SettingsError for a name that is none, before any access to
    storage, and for what is refused; StorageError for a store that cannot do it and for a race
    that was lost; ModelError for a folder that is no adapter.
    """

    def __init__(self, root: str) -> None:
        self._root = root.removeprefix("file://").rstrip("/")
        if not self._root:
            raise SettingsError(f"{root!r} is no registry; name a folder or s3://bucket/prefix")

    def publish(
        self,
        folder: str,
        tenant: str,
        domain: str,
        *,
        note: str = "",
        parent: "str | Ref | None" = None,
        run: str | None = None,
        training_texts: Iterable[str] | None = None,
    ) -> Version:
        """Make an adapter's folder, local or s3://, the next version of a domain.

        ``parent`` is the version it was trained from. Of one ``run``, a fingerprint, there is one
        version: where it stands already, that is given. Of ``training_texts`` only short hashes
        are kept, by which a promotion on merit tells that held-out text was held out.
        """
        into = Domain(self._root, tenant, domain)
        seen = into.latest("versions")
        before = self.of_run(tenant, domain, run) if run else None
        if before is not None:
            return before
        pinned = str(self.resolve(parent)) if parent is not None else None
        with storage.on_disk(folder) as local:
            card, names = read_adapter(local)
            check_store(self._root, tenant)
            uid = new_uid()
            files = _upload(into, uid, local, names, training_texts)
        return self._record(into, uid, files, card, note, pinned, run, seen)

    def of_run(self, tenant: str, domain: str, run: str) -> Version | None:
        """The version that a training run was published as, deleted or not."""
        versions = Domain(self._root, tenant, domain).versions()
        return next((version for version in versions if version.run == run), None)

    def resolve(self, ref: "str | Ref") -> Version:
        """The version that is meant; its ``uri`` is the folder to load it from."""
        ref = Ref.parse(ref)
        domain = Domain(self._root, ref.tenant, ref.domain)
        if isinstance(ref.version, int):
            number = ref.version
            if domain.is_deleted(number):
                raise SettingsError(f"{ref} is deleted; name another version")
        else:
            move = domain.last_move(ref.version)
            if move is None or move.version is None:
                there = ", ".join(domain.aliases()) or "no aliases"
                raise SettingsError(f"{ref} points nowhere; {domain} has {there}")
            number = move.version
        version = domain.version(number)
        if version is None:
            raise SettingsError(
                f"there is no {domain}@{number}; the latest version is {domain.latest('versions')}"
            )
        return version

    def domains(self, tenant: str) -> list[ListedDomain]:
        """Those of a tenant, by name."""
        return [
            ListedDomain(domain=d.name, latest=d.latest("versions"), aliases=d.aliases())
            for d in domains(self._root, tenant)
        ]

    def versions(self, tenant: str, domain: str, limit: int | None = None) -> list[Listed]:
        """The latest versions of a domain, or all, the latest first; deleted ones too."""
        place = Domain(self._root, tenant, domain)
        tags, aliases = place.tags(), place.aliases()
        deleted = set(place.numbers("deleted"))
        return [
            Listed(
                version=version,
                aliases=tuple(a for a, number in aliases.items() if number == version.number),
                tags=tuple(tags.get(version.number, ())),
                deleted=version.number in deleted,
            )
            for version in place.versions(limit)
        ]

    def compare(self, first: "str | Ref", second: "str | Ref") -> Comparison:
        """Two versions, of any domains."""
        a, b = self.resolve(first), self.resolve(second)
        ours, theirs = a.f1_per_type, b.f1_per_type
        f1 = {label: (ours.get(label), theirs.get(label)) for label in sorted({*ours, *theirs})}
        return Comparison(
            first=a,
            second=b,
            f1={**f1, "all types": (a.f1, b.f1)},
            settings={
                name: (a.settings.get(name), b.settings.get(name))
                for name in sorted({*a.settings, *b.settings})
                if a.settings.get(name) != b.settings.get(name)
            },
        )

    def promote(
        self,
        ref: "str | Ref",
        alias: str,
        *,
        replaces: int | None = None,
        if_better: str | None = None,
        base: str | None = None,
    ) -> Move:
        """Point an alias to a version.

        With ``replaces`` only if it points to that version now, with 0 only if to none. With
        ``if_better``, a file of held-out examples, only if the version is no worse on it than
        the one it replaces (``merit.py``); ``base`` says where the base model is, if elsewhere
        than the cards say. Whoever moves the alias meanwhile is never overruled.
        """
        check_word("alias", alias)
        version = self.resolve(ref)
        domain = Domain(self._root, version.tenant, version.domain)
        check_store(self._root, version.tenant)
        last = domain.last_move(alias)
        current = last.version if last else None
        if replaces is not None and replaces != (current or 0):
            raise StorageError(
                f"{domain}@{alias} points to {current or 'no version'}, not to "
                f"{replaces or 'none'}; nothing was changed; look at its history"
            )
        if last and current == version.number:
            return last
        merit = None
        if if_better is not None:
            from raytag.registry.merit import judge

            incumbent = domain.version(current) if current else None
            merit = judge(version, incumbent, if_better, base=base)
        return point(domain, alias, last, version.number, merit)

    def rollback(self, ref: "str | Ref") -> Move:
        """Point an alias, ``tenant/domain@alias``, back to what its last promotion replaced."""
        domain, alias = self._alias(ref)
        check_store(self._root, domain.tenant)
        return roll_back(domain, alias)

    def history(self, ref: "str | Ref") -> list[Move]:
        """All moves of an alias, the latest first."""
        domain, alias = self._alias(ref)
        moves = (domain.move(alias, number) for number in domain.numbers("aliases", alias))
        return [move for move in moves if move]

    def last_move(self, ref: "str | Ref") -> Move | None:
        """The move of an alias that counts."""
        domain, alias = self._alias(ref)
        return domain.last_move(alias)

    def pointed_to(self, ref: "str | Ref") -> list[int]:
        """What an alias points to, then what it did before, the latest first, each version once;
        deleted ones are left out. Empty where it points nowhere."""
        moves = self.history(ref)
        if not moves or moves[0].version is None:
            return []
        domain, _ = self._alias(ref)
        deleted = set(domain.numbers("deleted"))
        found = dict.fromkeys(move.version for move in moves)
        return [v for v in found if v is not None and v not in deleted]

    def tag(self, ref: "str | Ref", word: str) -> Version:
        """Attach a word to a version, for whoever lists it."""
        check_word("tag", word)
        version = self.resolve(ref)
        domain = Domain(self._root, version.tenant, version.domain)
        storage.write_bytes(domain.uri("tags", f"{key(version.number)}.{word}"), b"")
        return version

    def delete(self, ref: "str | Ref") -> Version:
        """Delete a version, named by its number: the sweep removes its files a lease later.

        Refused while an alias points to it.
        """
        ref = Ref.parse(ref)
        if not isinstance(ref.version, int):
            raise SettingsError(f"{ref} is an alias; name the version to delete by its number")
        version = self.resolve(ref)
        domain = Domain(self._root, ref.tenant, ref.domain)
        _check_unused(domain, version)
        check_store(self._root, ref.tenant)
        if not domain.bury(version.number, Tombstone(at=now())):
            raise SettingsError(f"{version} is being deleted by another already")
        try:
            _check_unused(domain, version)
        except SettingsError:
            domain.unbury(version.number)
            raise
        return version

    def verify(self, ref: "str | Ref") -> Version:
        """Read every file of a version. Raises StorageError where one is not what was published."""
        version = self.resolve(ref)
        for name, file in version.files.items():
            uri = storage.join(version.uri, name)
            digest = hashlib.sha256()
            with storage.open_read(uri) as stream:
                while part := stream.read(1 << 20):
                    digest.update(part)
            if digest.hexdigest() != file.sha256:
                raise StorageError(f"{uri} is not what was published; publish {version} again")
        known = {storage.join(version.uri, name) for name in version.files}
        added = [uri for uri in storage.list_files(version.uri) if uri not in known]
        if added:
            raise StorageError(f"{added[0]} was not published with {version}; remove it")
        return version

    def gc(self, tenant: str, domain: str | None = None, *, lease: float = LEASE) -> list[Swept]:
        """Remove uploads that nobody finished within ``lease`` seconds, and the files of versions
        deleted longer ago than that; of one domain or of all of a tenant's."""
        if domain is not None:
            return sweep(Domain(self._root, tenant, domain), lease)
        remove_leftovers(self._root, check_name("tenant", tenant), lease)
        return [swept for one in domains(self._root, tenant) for swept in sweep(one, lease)]

    def _alias(self, ref: "str | Ref") -> tuple[Domain, str]:
        ref = Ref.parse(ref)
        if isinstance(ref.version, int):
            raise SettingsError(f"{ref} is a version; name an alias: {ref.tenant}/{ref.domain}@…")
        return Domain(self._root, ref.tenant, ref.domain), ref.version

    def _record(
        self,
        domain: Domain,
        uid: str,
        files: Mapping[str, FileRecord],
        card: "AdapterCard",
        note: str,
        parent: str | None,
        run: str | None,
        seen: int,
    ) -> Version:
        """Give an upload the next number that nobody else takes, unless another has published the
        same run meanwhile: numbers up to ``seen`` are known not to have."""
        number, created = seen if run else domain.latest("versions"), False
        while not created:
            number += 1
            if number > LAST_NUMBER:
                raise StorageError(f"{domain} has no number left; publish to another domain")
            version = Version(
                tenant=domain.tenant,
                domain=domain.name,
                number=number,
                uid=uid,
                uri=domain.uri("uploads", uid),
                created_at=now(),
                files=files,
                head=card.head,
                labels=card.labels,
                base=card.base,
                revision=card.revision,
                base_fingerprint=card.base_fingerprint,
                data=card.data,
                settings=card.settings,
                scores=card.scores,
                code_version=__version__,
                parent=parent,
                note=note,
                run=run,
            )
            created = domain.create(version)
            other = None if created or run is None else domain.version(number)
            if other is not None and other.run == run:
                return other
        # The sweep marks before it looks for a record, and removes its mark after the files.
        marked = storage.exists(domain.uri("marks", uid))
        there = storage.list_files(version.uri)
        if marked or {storage.join(version.uri, name) for name in files} - {*there}:
            domain.bury(number, Tombstone(at=now()))
            raise StorageError(
                f"{domain}@{number} took longer to upload than the sweep waits, and its files are "
                "gone; publish it again"
            )
        return version


def located(named: str, registry: str) -> tuple[str, str]:
    """(what to call it, the folder it lies in) of an adapter or model that is named as a version,
    ``tenant/domain@3`` or ``@alias``, or as a folder."""
    if "@" not in named or "://" in named or storage.is_folder(named):
        return named, named
    version = Registry(registry).resolve(named)
    return str(version), version.uri


def _upload(
    domain: Domain,
    uid: str,
    folder: Path,
    names: list[str],
    training_texts: Iterable[str] | None,
) -> dict[str, FileRecord]:
    """Write the files, in this order, the texts before the last; says what was written."""
    files = {}

    def write(name: str, data: bytes) -> None:
        storage.write_bytes(domain.uri("uploads", uid, *name.split("/")), data)
        files[name] = FileRecord(size=len(data), sha256=hashlib.sha256(data).hexdigest())

    *others, last = names
    for name in others:
        if training_texts is None or name != TRAINING_TEXTS:
            write(name, (folder / name).read_bytes())
    if training_texts is not None:
        write(TRAINING_TEXTS, training_texts_json(training_texts))
    write(last, (folder / last).read_bytes())
    return files


def _check_unused(domain: Domain, version: Version) -> None:
    pointing = domain.pointing_to(version.number)
    if pointing:
        raise SettingsError(
            f"{version} stays: {', '.join(pointing)} points to it; promote another version first"
        )
