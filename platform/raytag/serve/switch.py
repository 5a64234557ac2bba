"""The switch: the one authority on which version an alias stands for, while an application serves.

It is told what the registry says, what loaded and what did not, and grants leases to the
ingresses (``leases.py``, where their side of the promise stands). A move is acknowledged, its
state is ``live``, once every live ingress has confirmed it, or a lease after the last grant of
anything else: from then on nothing else answers under the alias. All of it is in memory. One made
anew may not know what its predecessor granted, and acknowledges nothing for its first lease; a
predecessor must have ended before. Pure: ``now`` is passed in, in seconds of any clock of this
process that only goes forward, and clocks of two hosts need only run at about the same rate.
"""

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from raytag.errors import SettingsError
from raytag.registry.names import Ref
from raytag.serve.canary import Canary, Decision, Observed, decide
from raytag.serve.leases import NOWHERE, Entry, Grant, Renewal
from raytag.serve.limits import Shares

DRIFT = 1.001
"""The switch counts a lease this much longer: two clocks may differ in rate, though not by more."""
FORGOTTEN = 3
"""After how many leases an alias is forgotten that nobody wants."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CanaryStatus:
    """A canary, or the alias's last one, with what was seen of it and what follows from that."""

    canary: Canary
    state: Literal["loading", "running", "forward", "back"]
    reason: str
    observed: Observed


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """Where an alias stands.

    ``loading``: what is wanted is not loaded yet. ``switching``: an older version may still
    answer somewhere. ``live``: only what is wanted answers (and its canary); for an alias that
    points nowhere, nothing does. ``refused``: what is wanted did not load, for the reason; the
    newest version before it that loads stays in use.
    """

    version: int | None
    wanted: int | None
    state: Literal["loading", "switching", "live", "refused"]
    reason: str | None = None
    canary: CanaryStatus | None = None


@dataclass(slots=True)
class _Trial:
    canary: Canary
    beside: int
    """The version in use that it is compared with."""
    loaded: bool = False
    ended: Decision | None = None
    seen: dict[str, tuple[int, Observed]] = field(default_factory=dict)
    """Number of the renewal, and the totals in it, by ingress."""

    @property
    def observed(self) -> Observed:
        return sum((seen for _, seen in self.seen.values()), Observed())

    def status(self) -> CanaryStatus:
        decision = self.ended or decide(self.canary.rule, self.observed)
        state: Literal["loading", "running", "forward", "back"] = "running"
        if self.ended:
            state = "forward" if self.ended.verdict == "forward" else "back"
        elif not self.loaded:
            state = "loading"
        return CanaryStatus(
            canary=self.canary, state=state, reason=decision.reason, observed=self.observed
        )


@dataclass(slots=True)
class _Alias:
    wanted_at: float
    log: tuple[int, ...] | None = None
    """None until the registry was looked at."""
    refused: dict[int, str] = field(default_factory=dict)
    entry: Entry | None = None
    moved_at: float = 0.0
    acknowledged: bool = False
    trial: _Trial | None = None

    @property
    def target(self) -> int | None:
        """The newest version of the log that was not refused: what should be used."""
        return next((v for v in self.log or () if v not in self.refused), None)

    @property
    def running(self) -> _Trial | None:
        return self.trial if self.trial and not self.trial.ended else None


@dataclass(slots=True)
class _Ingress:
    ends: float
    number: int
    uses: dict[Ref, int]


class Switch:
    """For leases of ``lease`` seconds. Aliases and versions are references, by name and number."""

    def __init__(self, lease: float, now: float) -> None:
        if not 0 < lease < float("inf"):
            raise SettingsError(f"lease must be above 0 seconds, not {lease}")
        self._lease = lease
        self._hold = lease * DRIFT
        self._alone_from = now + self._hold
        self._name = uuid.uuid4().hex
        self._moves = 0
        self._aliases: dict[Ref, _Alias] = {}
        self._ingresses: dict[str, _Ingress] = {}
        self._shares = Shares()

    def wants(self, alias: Ref, now: float) -> None:
        """Look after an alias: what an ingress does by its renewals. Of a tenant's that point
        nowhere only the last wanted are looked after."""
        if alias not in self._aliases:
            self._make_room(alias.tenant)
        self._aliases.setdefault(alias, _Alias(now)).wanted_at = now

    def tracked(self, now: float) -> list[Ref]:
        """The aliases to look up in the registry. Those that nobody wants any more are dropped."""
        since = now - FORGOTTEN * self._hold
        self._aliases = {
            ref: alias
            for ref, alias in self._aliases.items()
            if alias.wanted_at > since or alias.running
        }
        return list(self._aliases)

    def observe(self, alias: Ref, versions: Sequence[int], now: float) -> None:
        """What the registry's log says: the version pointed to now, then those before it.

        The newest first, deleted ones left out; empty where the alias points nowhere. Looks must
        arrive in the order in which they were begun. A move ends the alias's canary, and has its
        version tried even if it was refused before. What is not tracked is left alone.
        """
        found = self._aliases.get(alias)
        if found is None or found.log == (log := tuple(versions)):
            return
        before, found.log = found.log, log
        if before is not None and _moved(before, log):
            found.refused.pop(log[0] if log else 0, None)
            if trial := found.running:
                trial.ended = _ended(trial, log)
        found.refused = {v: reason for v, reason in found.refused.items() if v in log}
        self._settle(alias, now)

    def to_load(self) -> list[Ref]:
        """The versions to load before they can be used, until they are reported on."""
        return sorted(
            {
                Ref(ref.tenant, ref.domain, version)
                for ref, alias in self._aliases.items()
                for version in _loading(alias)
            },
            key=str,
        )

    def loaded(self, version: Ref, now: float) -> None:
        """A version of :meth:`to_load` can be used now."""
        for ref, alias in self._of(version):
            if (trial := alias.running) and trial.canary.version == version.version:
                trial.loaded = True
            self._settle(ref, now, alias.target if alias.target == version.version else None)

    def refused(self, version: Ref, reason: str, now: float) -> None:
        """A version of :meth:`to_load` cannot be used.

        Only for what is wrong with the version itself: the alias falls back to the one before. A
        version that is in use is never refused: what it replaced was promised not to answer.
        """
        for ref, alias in self._of(version):
            if (trial := alias.running) and trial.canary.version == version.version:
                trial.ended = Decision("back", f"did not load: {reason}")
            if alias.target is not None and alias.target == version.version:
                alias.refused[alias.target] = reason
            self._settle(ref, now)

    def retry(self, alias: Ref, now: float) -> None:
        """Try again what was refused."""
        if found := self._aliases.get(alias):
            found.refused.clear()
            self._settle(alias, now)

    def renew(self, ingress: str, renewal: Renewal, now: float) -> Grant:
        """Grant a lease to an ingress, named by an id that no other process ever has."""
        self._drop_ended(now)
        known = self._ingresses.setdefault(ingress, _Ingress(0.0, 0, {}))
        known.ends = now + self._hold
        if renewal.number > known.number:
            known.number = renewal.number
            known.uses = dict(renewal.uses) if renewal.switch == self._name else {}
        for alias in renewal.keeps:
            self.wants(alias, now)
        self._add_up(ingress, renewal)
        return Grant(
            number=renewal.number,
            switch=self._name,
            table={ref: a.entry for ref, a in self._aliases.items() if a.entry},
            lease=self._lease,
            ingresses=len(self._ingresses),
            shares=self._shares.give(ingress, renewal.demands, self._ingresses.keys()),
        )

    def leave(self, ingress: str) -> None:
        """An ingress has ended: it answers nothing any more."""
        self._ingresses.pop(ingress, None)

    def status(self, alias: Ref, now: float) -> Status:
        """Where an alias stands; one that was never looked up is ``loading``, and wants None."""
        found = self._aliases.get(alias)
        if found is None or found.log is None:
            return Status(version=None, wanted=None, state="loading")
        wanted = found.log[0] if found.log else None
        version = found.entry.version if found.entry else None
        state: Literal["loading", "switching", "live", "refused"] = "loading"
        if found.entry and version == wanted:
            state = "live" if self._acknowledged(alias, found, now) else "switching"
        elif wanted in found.refused:
            state = "refused"
        return Status(
            version=version,
            wanted=wanted,
            state=state,
            reason=found.refused.get(wanted) if wanted is not None else "it points nowhere",
            canary=found.trial.status() if found.trial else None,
        )

    def start_canary(self, alias: Ref, canary: Canary, now: float) -> None:
        """Have a candidate tried beside the version in use, once it has loaded.

        Raises SettingsError where the alias has a canary, uses no version, or uses this one.
        """
        found = self._aliases.get(alias)
        if found is None or found.entry is None or found.entry.version is None:
            raise SettingsError(f"{alias} uses no version that a canary could be compared with")
        if found.running:
            raise SettingsError(f"{alias} has a canary already; stop it first")
        if found.entry.version == canary.version:
            raise SettingsError(f"{alias} uses version {canary.version}; name another as canary")
        found.trial, found.wanted_at = _Trial(canary, found.entry.version), now

    def stop_canary(self, alias: Ref, now: float, reason: str = "it was stopped") -> None:
        """End an alias's canary, if it has one. The candidate answers nothing once it is live."""
        found = self._aliases.get(alias)
        if found and (trial := found.running):
            trial.ended = Decision("back", reason)
            self._settle(alias, now)

    def tries(self, alias: Ref, canary: Canary) -> bool:
        """Whether this canary of an alias has not ended."""
        found = self._aliases.get(alias)
        return bool(found and found.running and found.running.canary.id == canary.id)

    def decisions(self) -> list[tuple[Ref, Canary, Decision]]:
        """The canaries that should go forward or back, until the alias moves or they are stopped.

        Forward is carried out by a promotion in the registry. Shadows only report.
        """
        found = [
            (ref, trial.canary, decide(trial.canary.rule, trial.observed))
            for ref, alias in self._aliases.items()
            if (trial := alias.running) and trial.loaded and not trial.canary.shadow
        ]
        return [
            (ref, canary, decision) for ref, canary, decision in found if decision.verdict != "wait"
        ]

    def _make_room(self, tenant: str) -> None:
        """For one more alias of a tenant that may point nowhere."""
        nowhere = [
            (alias.wanted_at, ref)
            for ref, alias in self._aliases.items()
            if ref.tenant == tenant and not alias.log and not alias.running
        ]
        nowhere.sort(key=lambda one: one[0])
        for _, ref in nowhere[: max(0, len(nowhere) + 1 - NOWHERE)]:
            del self._aliases[ref]

    def _of(self, version: Ref) -> list[tuple[Ref, _Alias]]:
        """The aliases that wait for a version to load."""
        return [
            (ref, alias)
            for ref, alias in self._aliases.items()
            if (ref.tenant, ref.domain) == (version.tenant, version.domain)
            and version.version in _loading(alias)
        ]

    def _settle(self, ref: Ref, now: float, loaded: int | None = None) -> None:
        """Give an alias the entry it should have, as far as that has loaded."""
        alias = self._aliases[ref]
        if alias.log is None:
            return
        version = alias.entry.version if alias.entry else None
        reason = None
        if not alias.log:
            version, reason = None, "it points nowhere; promote a version"
        elif loaded is not None:
            version = loaded
        elif version is None:
            if alias.target is not None:
                return
            reason = f"version {alias.log[0]} did not load: {alias.refused[alias.log[0]]}"
        trial = alias.running
        if trial and trial.canary.version == version:
            trial.ended, trial = Decision("forward", "it is in use"), None
        elif trial and trial.beside != version:
            said = f"the alias was moved to version {version} meanwhile"
            trial.ended, trial = Decision("back", said), None
        canary = trial.canary if trial and trial.loaded and version is not None else None
        now_granted = alias.entry and (alias.entry.version, alias.entry.canary, alias.entry.reason)
        if now_granted != (version, canary, reason):
            self._moves += 1
            alias.entry = Entry(move=self._moves, version=version, canary=canary, reason=reason)
            alias.moved_at, alias.acknowledged = now, False

    def _acknowledged(self, ref: Ref, alias: _Alias, now: float) -> bool:
        self._drop_ended(now)
        assert alias.entry
        move = alias.entry.move
        alias.acknowledged = alias.acknowledged or (
            now >= self._alone_from
            and (
                now >= alias.moved_at + self._hold
                or all(ingress.uses.get(ref) == move for ingress in self._ingresses.values())
            )
        )
        return alias.acknowledged

    def _drop_ended(self, now: float) -> None:
        self._ingresses = {id_: i for id_, i in self._ingresses.items() if now < i.ends}

    def _add_up(self, ingress: str, renewal: Renewal) -> None:
        for alias in self._aliases.values() if renewal.seen else ():
            trial = alias.running
            if trial and (seen := renewal.seen.get(trial.canary.id)):
                number, _ = trial.seen.get(ingress, (0, Observed()))
                if renewal.number > number:
                    trial.seen[ingress] = (renewal.number, seen)


def _ended(trial: _Trial, log: tuple[int, ...]) -> Decision:
    """How a canary ends by a move of its alias."""
    if log[:1] == (trial.canary.version,):
        decision = decide(trial.canary.rule, trial.observed)
        by_rule = decision.verdict == "forward"
        return decision if by_rule else Decision("forward", "promoted by hand")
    to = f"to version {log[0]}" if log else "to none"
    return Decision("back", f"the alias was moved {to} meanwhile")


def _loading(alias: _Alias) -> list[int]:
    """The versions an alias waits for."""
    waited = []
    if alias.target is not None and (not alias.entry or alias.target != alias.entry.version):
        waited.append(alias.target)
    if (trial := alias.running) and not trial.loaded:
        waited.append(trial.canary.version)
    return waited


def _moved(before: tuple[int, ...], log: tuple[int, ...]) -> bool:
    """Whether a log changed by more than that versions of it were deleted."""
    older = iter(before)
    return not log or not all(version in older for version in log)
