"""API keys: made, listed and revoked in a folder, and checked by whoever holds a copy of it.

    ROOT/ID.json      whose key it is, what it may do, the SHA-256 of its secret
    ROOT/ID.revoked   the key is revoked, for good

Both are created only if absent and never changed, so that a folder is read by its listing and
the records not seen before. A secret is 32 random bytes, which nobody can try out: its hash needs
no salt and no slow function. Knows who asks and with which role; what a role may do is for the
routes to say. Times are UTC, ``now`` is in seconds since the epoch.
"""

import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, Literal, get_args

from raytag import storage
from raytag.errors import RaytagError, SettingsError, StorageError
from raytag.registry.names import check_name

FORMAT = 1
ANY = "*"
"""Stands for the tenant in the keys of operators."""
AT_ONCE = 16
"""Records read at a time."""

Role = Literal["extract", "release", "operator"]
"""``extract`` asks for entities and lists models, ``release`` moves aliases too; an ``operator``
reads metrics and opens no tenant's route."""

_ID = re.compile(r"[0-9a-f]{16}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NAME = re.compile(r"([0-9a-f]{16})\.(json|revoked)", re.ASCII)
_TEXT = re.compile(r"rt~([a-z0-9._-]{1,63}|\*)~([0-9a-f]{16})~([A-Za-z0-9_-]{43})", re.ASCII)


class Unauthorized(RaytagError):  # noqa: N818 - what HTTP calls it
    """No key, or none that is valid; the message says what to do and holds nothing of the key."""


class KeysUnread(Unauthorized):
    """No key can be judged: the folder was not read for too long. Not the caller's mistake."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose request it is: what a valid key says."""

    tenant: str
    role: Role
    key_id: str


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key as its record has it."""

    id: str
    tenant: str
    role: Role
    sha256: str = field(repr=False)
    """Of the secret's ASCII bytes, in hex."""
    created_at: str
    note: str = ""
    expires_at: str | None = None

    def __post_init__(self) -> None:
        """Raises SettingsError for what cannot be."""
        if self.role not in get_args(Role):
            raise SettingsError(f"a role is one of {', '.join(get_args(Role))}")
        if self.role == "operator":
            if self.tenant != ANY:
                raise SettingsError("a key of an operator is of no tenant; name none")
        else:
            check_name("tenant", self.tenant)

    def expired(self, now: float) -> bool:
        if self.expires_at is None:
            return False
        return now >= datetime.fromisoformat(self.expires_at).timestamp()


@dataclass(frozen=True, kw_only=True)
class NewKey:
    """A key and its text, which is to be had only here."""

    key: Key
    text: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class Folder:
    """What stands in a folder of keys."""

    keys: Mapping[str, Key]
    """By id, revoked and expired ones too, the oldest first."""
    revoked: frozenset[str]
    problems: Mapping[str, str]
    """What is no key and is never taken for one: name of the file -> why."""

    def state(self, key: Key, now: float) -> Literal["valid", "revoked", "expired"]:
        if key.id in self.revoked:
            return "revoked"
        return "expired" if key.expired(now) else "valid"


class Keys:
    """The keys below ``root``, a local folder or ``s3://bucket/prefix``, for who administers them.

    Methods raise RaytagError: SettingsError for what is refused, StorageError for a store that
    cannot do it.
    """

    def __init__(self, root: str) -> None:
        self._root = _checked(root)

    def create(
        self, tenant: str, role: Role, *, note: str = "", expires_at: datetime | None = None
    ) -> NewKey:
        """A new key of a tenant, or of :data:`ANY` for an operator; valid at the next refresh."""
        if expires_at is not None and expires_at <= datetime.now(expires_at.tzinfo):
            raise SettingsError("a key must not expire before it is made")
        secret = secrets.token_urlsafe(32)
        key = Key(
            id=secrets.token_hex(8),
            tenant=tenant,
            role=role,
            sha256=_digest(secret).hex(),
            created_at=_utc(datetime.now(UTC)),
            note=note,
            expires_at=None if expires_at is None else _utc(expires_at),
        )
        uri = storage.join(self._root, f"{key.id}.json")
        if not storage.create(uri, _to_json(asdict(key))):
            raise StorageError(f"{uri} stands there already; try again")
        return NewKey(key=key, text=f"rt~{tenant}~{key.id}~{secret}")

    def list(self) -> Folder:
        """All keys."""
        return _read(self._root, {})

    def revoke(self, id: str) -> bool:
        """Refuses a key from the next refresh on, for good; whether it was not revoked before."""
        # What is asked for may be a whole key: it is not repeated.
        if not _ID.fullmatch(id):
            raise SettingsError(
                "this is no key's id; it is the part between the second and the third ~ of a key, "
                "and `raytag keys list` shows it"
            )
        if not storage.exists(storage.join(self._root, f"{id}.json")):
            raise SettingsError(
                f"{self._root} holds no key {id}; `raytag keys list` shows which there are"
            )
        return storage.create(
            storage.join(self._root, f"{id}.revoked"),
            _to_json({"id": id, "revoked_at": _utc(datetime.now(UTC))}),
        )


class KeyRing:
    """A copy of the keys below ``root``, to check requests against.

    One thread may refresh it while others check. A refresh that fails leaves the last copy in
    use until ``stale_after`` seconds have passed since one succeeded; then every key is refused.
    """

    def __init__(self, root: str, *, stale_after: float = 60.0) -> None:
        self._root = _checked(root)
        self._stale_after = stale_after
        self._turn = threading.Lock()
        self._copy = _Copy(Folder(keys={}, revoked=frozenset(), problems={}), None)

    @property
    def problems(self) -> Mapping[str, str]:
        """Files that are no key's, at the last refresh: name -> why."""
        return MappingProxyType(self._copy.folder.problems)

    def refresh(self, now: float) -> None:
        """Reads the folder: its listing and the records that are new.

        Raises StorageError where it cannot be listed, or is empty and held keys before: records
        are never removed, so it is rather a disk that is not mounted. A record that alone cannot
        be read is among ``problems`` and tried again the next time.
        """
        # One at a time: an older listing must not take the place of a newer one.
        with self._turn:
            before = self._copy.folder
            folder = _read(self._root, before.keys)
            if before.keys and not (folder.keys or folder.problems):
                raise StorageError(f"{self._root}: the keys that were there are gone; is it there?")
            self._copy = _Copy(folder, now)

    def check(self, authorization_header: str | None, now: float) -> Identity:
        """Whose key a header ``Bearer KEY`` holds. Raises Unauthorized.

        Whether a key is revoked or expired is told only to who has its secret, and an id that
        does not exist takes as long as one that does.
        """
        copy = self._copy
        tenant, id, secret = _parse(authorization_header)
        if copy.at is None or now - copy.at > self._stale_after:
            raise KeysUnread(
                f"the keys were not read in the last {self._stale_after:g} seconds, and until "
                "they are every key is refused; try again later"
            )
        key = copy.folder.keys.get(id, _NOBODYS)
        same = hmac.compare_digest(_digest(secret), bytes.fromhex(key.sha256))
        if not same or key.tenant != tenant or key is _NOBODYS:
            raise Unauthorized("this key is not known; check that it was copied whole")
        state = copy.folder.state(key, now)
        if state != "valid":
            raise Unauthorized(f"key {id} is {state}; use another key of {tenant}")
        return Identity(tenant, key.role, id)


@dataclass(frozen=True, slots=True)
class _Copy:
    folder: Folder
    at: float | None
    """When it was read; None before the first time."""


_NOBODYS = Key(id="", tenant=ANY, role="operator", sha256="0" * 64, created_at="")
"""Takes the place of a key that does not exist."""


def _parse(header: str | None) -> tuple[str, str, str]:
    """(tenant, id, secret)."""
    if not header:
        raise Unauthorized("no key; send the header `Authorization: Bearer KEY`")
    scheme, _, text = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized("not a bearer key; send the header `Authorization: Bearer KEY`")
    found = _TEXT.fullmatch(text.strip(" "))
    if not found:
        raise Unauthorized("this is no key; one looks like rt~TENANT~ID~SECRET")
    return found[1], found[2], found[3]


def _read(root: str, known: Mapping[str, Key]) -> Folder:
    """What stands there now; records that are known are not read again."""
    found: list[str] = []
    revoked: set[str] = set()
    problems: dict[str, str] = {}
    for name in storage.names(root):
        match = _NAME.fullmatch(name)
        if not match:
            problems[name] = "not the name of a key's file; remove it"
        elif match[2] == "json":
            found.append(match[1])
        else:
            revoked.add(match[1])
    new = [id for id in found if id not in known]
    read = dict(known)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        for id, key in zip(new, pool.map(lambda id: _record(root, id), new), strict=True):
            if isinstance(key, Key):
                read[id] = key
            else:
                problems[f"{id}.json"] = key
    keys = sorted((read[id] for id in found if id in read), key=lambda k: (k.created_at, k.id))
    return Folder(keys={key.id: key for key in keys}, revoked=frozenset(revoked), problems=problems)


def _record(root: str, id: str) -> Key | str:
    """The key of this id, or why there is none."""
    uri = storage.join(root, f"{id}.json")
    try:
        return _from_json(storage.read_bytes(uri), id)
    except StorageError as exc:
        return str(exc)


def _from_json(data: bytes, id: str) -> Key:
    """Raises StorageError for what is no record of this key."""
    try:
        content = json.loads(data)
        if content.pop("format") != FORMAT:
            raise StorageError("of another format than this version of Raytag reads")
        key = Key(**content)
        if key.id != id or not _SHA256.fullmatch(key.sha256) or not isinstance(key.note, str):
            raise ValueError
        for at in (key.created_at, key.expires_at):
            if at is not None and _utc(datetime.fromisoformat(at)) != at:
                raise ValueError
        return key
    except (
        *(ValueError, KeyError, TypeError, AttributeError),
        *(OverflowError, RecursionError, SettingsError),
    ) as exc:
        raise StorageError("no record of a key; revoke its id and make another") from exc


def _to_json(content: dict[str, Any]) -> bytes:
    return json.dumps({"format": FORMAT, **content}, indent=1).encode()


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("ascii")).digest()


def _utc(at: datetime) -> str:
    """To the second."""
    return at.astimezone(UTC).isoformat(timespec="seconds")


def _checked(root: str) -> str:
    root = root.removeprefix("file://").rstrip("/")
    if not root:
        raise SettingsError(
            "an empty name is no folder of keys; give a folder or s3://bucket/prefix"
        )
    return root
