"""What an ingress may use, and until when: its side of the switch, and what the two exchange.

An alias stands for a version only under a lease, which runs from the moment its renewal was sent.
What a grant no longer names may finish what is in flight, for a while and never beyond the lease
it was used under; then the ingress confirms. So whatever the switch stopped granting is over a
lease later at the latest, heard of or not. Pure: ``now`` is passed in, in seconds of any clock of
this process that only goes forward; no two hosts' clocks are ever compared. For one event loop,
not for several threads.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from raytag.errors import RaytagError, SettingsError
from raytag.registry.names import Ref
from raytag.serve.canary import Canary, Observed

BRIEFLY = 5.0
"""Seconds for which an alias is wanted that stands for no version."""


NOWHERE = 8
"""Aliases of one tenant that are followed although they stand for no version, or it is not known
yet: anybody can make up any number of them."""


class LeaseEnded(RaytagError):  # noqa: N818 - a state, not a fault
    """The switch was not heard of for a lease: what the alias points to is not known now."""


class PointsNowhere(SettingsError):  # noqa: N818 - a state, not a fault
    """The alias stands for no version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """What an alias stands for. ``reason`` says why it is None."""

    move: int
    """Every change of an entry has a number of its own, higher than those before."""
    version: int | None
    canary: Canary | None = None
    reason: str | None = None

    @property
    def versions(self) -> frozenset[int]:
        """Those that may answer: a shadow never does."""
        beside = self.canary.version if self.canary and not self.canary.shadow else None
        return frozenset(v for v in (self.version, beside) if v is not None)


@dataclass(frozen=True, kw_only=True, slots=True)
class Renewal:
    """What an ingress says of itself."""

    number: int
    """Counts up from 1."""
    switch: str | None
    """Whose moves ``uses`` are."""
    uses: Mapping[Ref, int]
    """The moves in use, with nothing in flight, that may still answer, by what was before."""
    keeps: frozenset[Ref]
    """The aliases it wants to hear of."""
    seen: Mapping[str, Observed]
    """All it saw of each canary so far, by id: the latest replaces the ones before."""
    demands: Mapping[str, float] = field(default_factory=dict)
    """What tenants ask of it, as parts of their limits (``limits.py``)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Grant:
    """The answer to a renewal. Aliases that are not in the table keep the lease they have."""

    number: int
    """The renewal's."""
    switch: str
    table: Mapping[Ref, Entry]
    lease: float
    """Seconds from when the renewal was sent."""
    ingresses: int
    """How many are live."""
    shares: Mapping[str, float] = field(default_factory=dict)
    """The part of their limits that it may give to tenants; to others an equal one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """What an alias stood for when a request came."""

    alias: Ref
    version: int
    canary: Canary | None = None
    versions: frozenset[int]
    """Those that may be asked for the answer: the canary's too, unless it is a shadow."""


@dataclass(slots=True)
class _Held:
    switch: str
    entry: Entry
    ends: float
    draining: dict[int, float]
    """Versions of the entries before that may still answer, and until when."""


class Leases:
    """What one ingress may use.

    ``drain`` is how long, in seconds, requests may go on with a version that was replaced;
    ``keep`` how long an alias is wanted after it was last asked for. One renewal counts at a
    time: with each that is made, the answers to those before are void.
    """

    def __init__(self, *, drain: float, keep: float) -> None:
        for name, seconds in (("drain", drain), ("keep", keep)):
            if not 0 <= seconds < float("inf"):
                raise SettingsError(f"{name} must be at least 0 seconds, not {seconds}")
        self._drain = drain
        self._keep = keep
        self._held: dict[Ref, _Held] = {}
        self._asked: dict[Ref, float] = {}
        self._missing: set[Ref] = set()
        self._unconfirmed: set[Ref] = set()
        self._flying: Counter[tuple[Ref, int]] = Counter()
        self._seen: dict[str, Observed] = {}
        self._switch: str | None = None
        self._number = 0
        self._sent = 0.0
        self._pending: Renewal | None = None
        self._ends = float("-inf")

    def resolve(self, alias: Ref, now: float) -> Route | None:
        """What the alias stands for; None where it has yet to be heard of: renew, then ask again.

        Raises LeaseEnded, and PointsNowhere with its reason.
        """
        self._asked.pop(alias, None)
        self._asked[alias] = now  # the last one, as it is the newest
        held = self._held.get(alias)
        if held is None or held.ends <= now < self._ends:
            self._missing.add(alias)
            self._forget_some(alias.tenant)
            return None
        if held.ends <= now:
            raise LeaseEnded(
                f"what {alias} points to is not known at the moment; try again in a few seconds, "
                "or ask for a version by its number"
            )
        entry = held.entry
        if entry.version is None:
            raise PointsNowhere(f"{alias} stands for no version: {entry.reason}")
        return Route(
            alias=alias, version=entry.version, canary=entry.canary, versions=entry.versions
        )

    @contextlib.contextmanager
    def use(self, route: Route) -> Iterator[None]:
        """While a request may still be answered by the route; enter it right after resolving."""
        keys = [(route.alias, version) for version in route.versions]
        self._flying.update(keys)
        try:
            yield
        finally:
            for key in keys:
                self._flying[key] -= 1
                if not self._flying[key]:
                    del self._flying[key]

    def may_answer(self, route: Route, now: float, version: int | None = None) -> bool:
        """Whether an answer by the route's version, or its canary's, may go out now.

        Asked right before it does. Where not, resolve anew and ask again.
        """
        held = self._held.get(route.alias)
        if held is None or held.ends <= now:
            return False
        version = route.version if version is None else version
        return version in held.entry.versions or now < held.draining.get(version, now)

    def alive(self, now: float) -> bool:
        """Whether the switch was heard of within a lease."""
        return now < self._ends

    def saw(self, canary_id: str, observed: Observed) -> None:
        """Add what was seen of a canary."""
        self._seen[canary_id] = self._seen.get(canary_id, Observed()) + observed

    def urgent(self, now: float) -> bool:
        """Whether to renew right away: an alias is missing, or a move can be confirmed."""
        return bool(self._missing) or any(self._drained(alias, now) for alias in self._unconfirmed)

    def renewal(self, now: float) -> Renewal:
        """The next one, to be sent at once."""
        self._asked = {
            alias: asked
            for alias, asked in self._asked.items()
            if now < asked + self._wanted(alias)
        }
        self._missing.clear()
        self._number += 1
        self._sent = now
        self._pending = Renewal(
            number=self._number,
            switch=self._switch,
            uses={
                alias: held.entry.move
                for alias, held in self._held.items()
                if held.switch == self._switch and self._drained(alias, now)
            },
            keeps=frozenset(self._asked),
            seen=dict(self._seen),
        )
        return self._pending

    def granted(self, grant: Grant, now: float) -> None:
        """Take over the answer to the last renewal, once; any other answer is left alone."""
        if self._pending is None or grant.number != self._pending.number:
            return
        for alias in self._pending.uses:
            self._unconfirmed.discard(alias)
        self._pending = None
        self._switch, self._ends = grant.switch, self._sent + grant.lease
        for alias, entry in grant.table.items():
            held = self._held.get(alias)
            same = held and (held.switch, held.entry.move) == (grant.switch, entry.move)
            if held and same and now < held.ends:
                held.ends = self._ends
                continue
            self._unconfirmed.add(alias)
            draining = self._draining(held, entry, now)
            self._held[alias] = _Held(grant.switch, entry, self._ends, draining)
        for alias in [a for a, h in self._held.items() if a not in grant.table and h.ends <= now]:
            del self._held[alias]
        self._unconfirmed &= self._held.keys()
        running = {held.entry.canary.id for held in self._held.values() if held.entry.canary}
        self._seen = {id_: seen for id_, seen in self._seen.items() if id_ in running}

    def _forget_some(self, tenant: str) -> None:
        """Want no more of a tenant's aliases that stand for nothing than there may be."""
        nowhere = [a for a in self._asked if a.tenant == tenant and not self._stands(a)]
        for alias in nowhere[:-NOWHERE]:
            del self._asked[alias]
            self._missing.discard(alias)

    def _stands(self, alias: Ref) -> bool:
        held = self._held.get(alias)
        return held is not None and held.entry.version is not None

    def _draining(self, held: _Held | None, entry: Entry, now: float) -> dict[int, float]:
        """What may still answer, now that ``entry`` counts.

        Nothing once the lease was lost, even for a moment: the switch may not have waited. Nor
        beyond that lease, which is as long as the switch waits for who does not confirm.
        """
        if held is None or held.ends <= now:
            return {}
        until = min(now + self._drain, held.ends)
        before = {**held.draining, **dict.fromkeys(held.entry.versions, until)}
        return {version: at for version, at in before.items() if version not in entry.versions}

    def _drained(self, alias: Ref, now: float) -> bool:
        """Whether nothing of the entries before may answer any more; once so, for good."""
        held = self._held[alias]
        if held.draining:
            held.draining = {
                version: until
                for version, until in held.draining.items()
                if now < until and (alias, version) in self._flying
            }
        return not held.draining

    def _wanted(self, alias: Ref) -> float:
        """Names that stand for nothing, which anybody can make up, are not wanted for long."""
        return self._keep if self._stands(alias) else min(self._keep, BRIEFLY)
