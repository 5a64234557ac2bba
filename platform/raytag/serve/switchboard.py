"""The one process that says what aliases point to, while an application serves.

Carries out what ``switch.py`` decides: looks at the registry, has every engine load a version
before it is used, grants leases to the ingresses, moves aliases on and back. Knows Ray and the
registry; not requests.
"""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from ray.exceptions import RayTaskError
from ray.serve.handle import DeploymentHandle

from raytag.errors import ModelError, RaytagError, StorageError
from raytag.registry.names import Ref
from raytag.registry.records import Move
from raytag.registry.registry import Registry
from raytag.serve.canary import Canary
from raytag.serve.front import Away
from raytag.serve.ingress import GONE, log_lines
from raytag.serve.leases import Grant, Renewal
from raytag.serve.metrics import SwitchMetrics
from raytag.serve.settings import ServeSettings
from raytag.serve.switch import Status, Switch

POLL = 1.0
"""Seconds between two looks at the registry."""
LOOKUP = 0.25
"""Seconds a renewal waits for aliases that nobody asked for before."""
SHOWN = 20
"""Versions of a domain that are listed."""
logger = logging.getLogger("raytag.serve")
Got = TypeVar("Got")


class Switchboard:
    """What ingresses and operators ask. Errors a caller can mend are given, not raised: Ray would
    wrap them in its own."""

    def __init__(self, settings: ServeSettings, engines: DeploymentHandle[Any]) -> None:
        log_lines()
        self._engines = engines
        self._registry = Registry(settings.registry)
        self._switch = Switch(settings.lease, time.monotonic())
        self._metrics = SwitchMetrics()
        self._looks: dict[Ref, asyncio.Lock] = {}
        self._logs: dict[Ref, tuple[Move | None, list[int]]] = {}
        """An alias's last move, and the versions it has pointed to."""
        self._promotions: Counter[Ref] = Counter()
        """How many are under way that somebody asked for."""
        self._turns: WeakValueDictionary[Ref, asyncio.Lock] = WeakValueDictionary()
        """Held while an alias is moved or its trial ended: who comes next is told how it went."""
        self._loads: dict[Ref, asyncio.Task[None]] = {}
        self._last: dict[Ref, Status] = {}
        self._watching = asyncio.get_event_loop().create_task(self._watch())

    async def renew(self, ingress: str, renewal: Renewal) -> Grant:
        """A lease. What is asked for the first time is looked up, but not waited for long, as the
        lease of all the rest runs on."""
        self._switch.renew(ingress, renewal, time.monotonic())
        stands = {alias: self._status(alias) for alias in renewal.keeps}
        new = [a for a, s in stands.items() if s.state == "loading" and s.version is None]
        if new:
            await asyncio.wait({asyncio.create_task(self._bring_up(new))}, timeout=LOOKUP)
        return self._switch.renew(ingress, renewal, time.monotonic())

    async def leave(self, ingress: str) -> None:
        """An ingress has ended."""
        self._switch.leave(ingress)

    async def models(self, tenant: str) -> dict[str, Any] | RaytagError:
        """A tenant's domains, their aliases and newest versions."""
        return await self._told(lambda: asyncio.to_thread(self._models, tenant))

    async def status(self, alias: Ref) -> dict[str, Any] | RaytagError:
        """Where an alias stands."""
        return await self._told(lambda: self._settled(alias, LOOKUP))

    async def promote(self, alias: Ref, version: int, wait: float) -> dict[str, Any] | RaytagError:
        """Move an alias in the registry, if the version loads, and see it through, all within
        ``wait`` seconds. Who moves the alias while the version loads is not overruled."""

        async def move() -> dict[str, Any]:
            until = time.monotonic() + wait
            ref = Ref(alias.tenant, alias.domain, version)
            seen = await asyncio.to_thread(self._registry.last_move, alias)
            await asyncio.to_thread(self._registry.resolve, ref)
            reason = await self._load_everywhere(ref, wait)
            if reason is not None:
                raise ModelError(f"{ref} does not load, and {alias} stays where it is: {reason}")
            async with self._turn(alias):
                await asyncio.to_thread(self._point, alias, ref, seen)
            return await self._settled(alias, until - time.monotonic())

        self._promotions[alias] += 1
        try:
            return await self._told(move)
        finally:
            self._promotions[alias] -= 1
            self._promotions += Counter()  # keeps what is above 0

    async def rollback(self, alias: Ref, wait: float) -> dict[str, Any] | RaytagError:
        """Move an alias back in the registry, and see it through."""

        async def move() -> dict[str, Any]:
            await asyncio.to_thread(self._registry.rollback, alias)
            return await self._settled(alias, wait)

        return await self._told(move)

    async def start_canary(
        self, alias: Ref, canary: Canary, wait: float
    ) -> dict[str, Any] | RaytagError:
        """Try a candidate, once it has loaded. A move that is under way is waited for."""

        async def start() -> dict[str, Any]:
            candidate = Ref(alias.tenant, alias.domain, canary.version)
            await asyncio.to_thread(self._registry.resolve, candidate)
            await self._settled(alias, wait)
            self._switch.start_canary(alias, canary, time.monotonic())
            self._begin_loads()
            return _shown(alias, self._status(alias))

        return await self._told(start)

    async def stop_canary(self, alias: Ref) -> dict[str, Any] | RaytagError:
        """End the trial of a candidate."""

        async def stop() -> dict[str, Any]:
            async with self._turn(alias):
                self._switch.stop_canary(alias, time.monotonic())
            return _shown(alias, self._status(alias))

        return await self._told(stop)

    async def snapshot(self) -> tuple[str, bytes]:
        """(this process's name, its metrics)."""
        return "switchboard", self._metrics.snapshot()

    async def _watch(self) -> None:
        """Follow the registry and the canaries, as long as this lives."""
        while True:
            try:
                tracked = set(self._switch.tracked(time.monotonic()))
                self._looks = {ref: lock for ref, lock in self._looks.items() if ref in tracked}
                self._logs = {ref: log for ref, log in self._logs.items() if ref in tracked}
                self._last = {ref: last for ref, last in self._last.items() if ref in tracked}
                await self._look_at(tracked)
                self._begin_loads()
                for alias, canary, decision in self._switch.decisions():
                    try:
                        await self._carry_out(alias, canary, decision.verdict, decision.reason)
                    except RaytagError as exc:
                        logger.warning("canary of %s could not be ended: %s", alias, exc)
                self._note(tracked)
            except Exception as exc:  # a store that is away comes back; the leases run on
                logger.warning("the registry could not be followed: %s", exc)
            await asyncio.sleep(POLL)

    async def _carry_out(self, alias: Ref, canary: Canary, verdict: str, reason: str) -> None:
        """End a trial. Forward it goes only if nobody stopped it, moved the alias or is about to:
        a person's word goes before the rule's."""
        async with self._turn(alias):
            if verdict == "forward":
                await self._look(alias)
                if self._promotions[alias] or not self._switch.tries(alias, canary):
                    return
                candidate = Ref(alias.tenant, alias.domain, canary.version)
                seen, _ = self._logs[alias]
                await asyncio.to_thread(self._point, alias, candidate, seen)
                await self._look(alias)
            else:
                self._switch.stop_canary(alias, time.monotonic(), reason)
        logger.info("canary of %s, version %d: %s, %s", alias, canary.version, verdict, reason)

    def _turn(self, alias: Ref) -> asyncio.Lock:
        return self._turns.setdefault(alias, asyncio.Lock())

    def _point(self, alias: Ref, version: Ref, seen: Move | None) -> None:
        """Move an alias in the registry, if its last move is still the one that was seen, or has
        done it already. Raises StorageError where it is not: nothing has changed then."""
        last = self._registry.last_move(alias)
        there = last.version if last else None
        if last != seen and there != version.version:
            raise StorageError(
                f"{alias} was moved to version {there or 'none'} meanwhile and stays there; look "
                "at its history, then promote again"
            )
        self._registry.promote(version, str(alias.version), replaces=there or 0)

    async def _look_at(self, aliases: Collection[Ref]) -> None:
        """Each by itself: one tenant's broken records keep nobody else's from being followed."""
        looks = (self._look(alias) for alias in aliases)
        for alias, failed in zip(
            aliases, await asyncio.gather(*looks, return_exceptions=True), strict=True
        ):
            if isinstance(failed, Exception):
                logger.warning("%s could not be followed: %s", alias, failed)

    async def _look(self, alias: Ref) -> None:
        # In turn, so that an older look is never taken for a newer one.
        async with self._looks.setdefault(alias, asyncio.Lock()):
            move = await asyncio.to_thread(self._registry.last_move, alias)
            known = self._logs.get(alias)
            if known is None or known[0] != move:
                known = move, await asyncio.to_thread(self._registry.pointed_to, alias)
                self._logs[alias] = known
            self._switch.observe(alias, known[1], time.monotonic())

    async def _bring_up(self, aliases: list[Ref]) -> None:
        await self._look_at(aliases)
        await asyncio.gather(*self._begin_loads())

    async def _settled(self, alias: Ref, wait: float) -> dict[str, Any]:
        """Where an alias stands once it is live or refused, or ``wait`` seconds are over."""
        until = time.monotonic() + wait
        self._switch.wants(alias, time.monotonic())
        await self._look(alias)
        self._begin_loads()
        while self._status(alias).state not in ("live", "refused") and time.monotonic() < until:
            self._switch.wants(alias, time.monotonic())
            await asyncio.sleep(0.02)
        return _shown(alias, self._status(alias))

    def _status(self, alias: Ref) -> Status:
        return self._switch.status(alias, time.monotonic())

    def _begin_loads(self) -> list["asyncio.Task[None]"]:
        """Tasks that load what has to be, each version once at a time."""
        wanted = self._switch.to_load()
        for version in wanted:
            if version not in self._loads:
                task = asyncio.create_task(self._load(version))
                self._loads[version] = task
                task.add_done_callback(partial(self._loaded, version))
        return [self._loads[version] for version in wanted]

    def _loaded(self, version: Ref, _: "asyncio.Task[None]") -> None:
        del self._loads[version]

    async def _load(self, version: Ref) -> None:
        try:
            reason = await self._load_everywhere(version)
        except Exception as exc:  # of a replica or store that is away: tried again soon
            logger.warning("%s could not be loaded yet: %s", version, str(exc).splitlines()[:1])
            return
        if reason is None:
            self._switch.loaded(version, time.monotonic())
        else:
            logger.warning("%s is refused: %s", version, reason)
            self._metrics.refused(version.tenant, version.domain)
            self._switch.refused(version, reason, time.monotonic())

    async def _load_everywhere(self, version: Ref, seconds: float | None = None) -> str | None:
        """Why an engine cannot use a version; None where all of them can. Raises Away where they
        did not all say so, within ``seconds`` where those are given."""
        try:
            loads = self._engines.broadcast("load", str(version))
            reasons = await loads.results_async(timeout_s=seconds)
        except RayTaskError as exc:
            if not isinstance(exc.cause, StorageError):
                raise
            raise Away(f"{version} cannot be read at the moment; try again: {exc.cause}") from exc
        except GONE as exc:
            raise Away(f"a model ended while {version} was loaded; try again") from exc
        except TimeoutError as exc:
            raise Away(
                f"{version} is not loaded within {seconds:g} s, and nothing was moved; try again, "
                "or give more wait_seconds"
            ) from exc
        return next((reason for reason in reasons if reason is not None), None)

    def _note(self, tracked: Collection[Ref]) -> None:
        """Count what has ended since the last time."""
        for alias in tracked:
            before, now = self._last.get(alias), self._status(alias)
            self._last[alias] = now
            if before is None or not isinstance(alias.version, str):
                continue
            if now.state == "live" and now.version != before.version:
                logger.info("%s points to version %s", alias, now.version)
                self._metrics.moved(alias.tenant, alias.domain, alias.version)
            ended, was = now.canary, before.canary
            if not ended or not was or ended.state == was.state:
                continue
            if ended.state == "forward" or ended.state == "back":
                self._metrics.canary_ended(alias.tenant, alias.domain, ended.state)

    def _models(self, tenant: str) -> dict[str, Any]:
        domains = []
        for listed in self._registry.domains(tenant):
            versions = self._registry.versions(tenant, listed.domain, SHOWN)
            domains.append(
                {
                    "domain": listed.domain,
                    "aliases": [
                        {"alias": alias, "version": number}
                        for alias, number in sorted(listed.aliases.items())
                    ],
                    "versions": [
                        {
                            "version": one.version.number,
                            "labels": list(one.version.labels),
                            "f1": one.version.f1,
                            "created_at": one.version.created_at,
                            "note": one.version.note,
                        }
                        for one in versions
                        if not one.deleted
                    ],
                }
            )
        return {"tenant": tenant, "domains": domains}

    async def _told(self, do: Callable[[], Awaitable[Got]]) -> Got | RaytagError:
        try:
            return await do()
        except RaytagError as exc:
            return exc


def _shown(alias: Ref, status: Status) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "alias": alias.version,
        "version": status.version,
        "wanted": status.wanted,
        "state": status.state,
        "reason": status.reason,
        "canary": None,
    }
    if trial := status.canary:
        shown["canary"] = {
            "version": trial.canary.version,
            "share": trial.canary.share,
            "shadow": trial.canary.shadow,
            "state": trial.state,
            "reason": trial.reason,
            "seen": {**asdict(trial.observed), "agreement": trial.observed.agreement},
        }
    return shown
