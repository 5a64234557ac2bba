"""What an ingress does for a request: limits, from alias to version, the engines, the answer.

Knows leases, limits and canaries, not HTTP (``api.py``) and not Ray: engines and the switchboard
are whatever is called as these protocols say.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from raytag.errors import RaytagError
from raytag.registry.names import Ref
from raytag.serve.canary import Canary, Observed, Rule, chosen
from raytag.serve.gate import Visit
from raytag.serve.leases import Grant, LeaseEnded, Leases, PointsNowhere, Renewal, Route
from raytag.serve.limits import Limiter, OverLimit
from raytag.serve.metrics import IngressMetrics, merged
from raytag.serve.problems import Problem
from raytag.serve.settings import ServeSettings
from raytag.text.spans import Entity

KEEP = 600.0
"""Seconds an alias is kept at hand after it was last asked for."""
AT_REST = 0.5
"""Seconds between two renewals where nothing is urgent."""
TRIALS = 64
"""Most requests at a time that a candidate is asked too; of more only the version in use is."""
PATIENCE = 1.0
"""Most seconds that an answer waits for a candidate after the version in use has answered."""
MOMENTARY = (422, 503)
"""Statuses of refusals that are for the request or the moment, and say nothing of a version."""
logger = logging.getLogger("raytag.serve")

Spans = list[tuple[int, int, str, float]]
"""A text's entities as (start, end, label, score)."""


class Away(RaytagError):  # noqa: N818 - a state, not a fault
    """A part of the service does not answer at the moment; what was asked may be done or not."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """What an engine says where it has no entities."""

    status: int
    detail: str
    retry_after: float | None = None
    overload: bool = False
    """Whether too much was waiting for the model."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The entities of each text, and the version that gave them."""

    entities: list[Spans]
    version: int
    alias: str | None


class Engines(Protocol):
    """The models."""

    async def extract(
        self, version: str, texts: list[str], seconds: float
    ) -> list[Spans] | Refusal: ...


class Switchboard(Protocol):
    """Who says what aliases point to. Methods raise RaytagError for what a caller can mend, Away
    where it does not answer in time."""

    async def renew(self, ingress: str, renewal: Renewal) -> Grant: ...
    async def leave(self, ingress: str) -> None: ...
    async def models(self, tenant: str) -> dict[str, Any]: ...
    async def status(self, alias: Ref) -> dict[str, Any]: ...
    async def promote(self, alias: Ref, version: int, wait: float) -> dict[str, Any]: ...
    async def rollback(self, alias: Ref, wait: float) -> dict[str, Any]: ...
    async def start_canary(self, alias: Ref, canary: Canary) -> dict[str, Any]: ...
    async def stop_canary(self, alias: Ref) -> dict[str, Any]: ...


@dataclass(kw_only=True)
class Front:
    """One ingress at work. ``id`` is its own and was never used before."""

    id: str
    settings: ServeSettings
    engines: Engines
    switchboard: Switchboard
    metrics: IngressMetrics
    snapshots: Callable[[], Coroutine[Any, Any, Mapping[str, bytes]]]
    """Gives the metrics of all processes."""
    leases: Leases = field(init=False)
    limiter: Limiter = field(init=False)

    def __post_init__(self) -> None:
        self.leases = Leases(drain=self.settings.lease, keep=KEEP)
        self.limiter = Limiter(self.settings.limits, self.settings.tenants)
        self._due = asyncio.Event()
        self._renewed = asyncio.Condition()
        self._under_way = 0
        self._trials: set[asyncio.Task[None]] = set()

    async def extract(
        self,
        visit: Visit,
        tenant: str,
        domain: str,
        version: int | str,
        texts: list[str],
        timeout: float | None,
    ) -> Answered:
        """Entities by a version, or by what an alias points to now. Raises Problem."""
        characters = sum(map(len, texts))
        visit.said |= {"domain": domain, "texts": len(texts), "characters": characters}
        if self.settings.log_texts:
            visit.said["content"] = texts
        most = self.settings.max_characters
        if characters > most:
            raise Problem(413, f"{characters:,} characters; send at most {most:,} at a time")
        ref = Ref(tenant, domain, version)
        until = time.monotonic() + min(timeout or self.settings.timeout, self.settings.timeout)
        with self._admitted(tenant, characters):
            if isinstance(version, int):
                answered = Answered(await self._asked(ref, texts, until), version, None)
            else:
                answered = await self._by_alias(visit, ref, texts, until)
        visit.said |= {"version": answered.version, "alias": answered.alias}
        found = sum(map(len, answered.entities))
        self.metrics.extracted(tenant, domain, answered.version, characters, found)
        return answered

    async def models(self, visit: Visit, tenant: str) -> dict[str, Any]:
        """A tenant's domains, their aliases and newest versions."""
        with self._admitted(tenant, 0), _told():
            return await self.switchboard.models(tenant)

    async def status(self, tenant: str, domain: str, alias: str) -> dict[str, Any]:
        """What an alias points to, and how far a move is."""
        with self._admitted(tenant, 0), _told():
            return await self.switchboard.status(Ref(tenant, domain, alias))

    async def promote(
        self, tenant: str, domain: str, alias: str, version: int, wait: float
    ) -> dict[str, Any]:
        """Point an alias to a version, and wait until all of the service has done so."""
        with self._admitted(tenant, 0), _told():
            return await self.switchboard.promote(Ref(tenant, domain, alias), version, wait)

    async def rollback(self, tenant: str, domain: str, alias: str) -> dict[str, Any]:
        """Point an alias back to what its last promotion replaced."""
        with self._admitted(tenant, 0), _told():
            return await self.switchboard.rollback(Ref(tenant, domain, alias), 30.0)

    async def start_canary(
        self,
        tenant: str,
        domain: str,
        alias: str,
        version: int,
        share: float,
        shadow: bool,
        rule: Rule,
    ) -> dict[str, Any]:
        """Try a version beside what an alias points to."""
        with self._admitted(tenant, 0), _told():
            canary = Canary(
                id=f"{self.id}-{time.monotonic_ns()}",
                version=version,
                share=share,
                shadow=shadow,
                rule=rule,
            )
            return await self.switchboard.start_canary(Ref(tenant, domain, alias), canary)

    async def stop_canary(self, tenant: str, domain: str, alias: str) -> dict[str, Any]:
        """End it; its share goes back to what the alias points to."""
        with self._admitted(tenant, 0), _told():
            return await self.switchboard.stop_canary(Ref(tenant, domain, alias))

    async def check_ready(self) -> None:
        """Raises Problem where requests cannot be answered now."""
        if not self.leases.alive(time.monotonic()):
            raise Problem(503, "the switchboard was not heard of for a lease; try again", 1.0)

    async def exposition(self) -> bytes:
        """The metrics of all processes, for Prometheus."""
        return await asyncio.to_thread(merged, await self.snapshots())

    async def keep_leases(self) -> None:
        """Renew as long as this runs: soon where something is urgent, else now and then."""
        while True:
            try:
                await self._renew()
            except Exception as exc:  # whatever it was, the lease runs on meanwhile
                logger.warning("leases could not be renewed: %s", str(exc).splitlines()[:1])
                await asyncio.sleep(AT_REST / 2)
            async with self._renewed:
                self._renewed.notify_all()
            now = time.monotonic()
            if self.leases.urgent(now) or not self.leases.alive(now):
                await asyncio.sleep(0.01)  # what is drained by now may be confirmed with the rest
                continue
            self._due.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._due.wait(), AT_REST)

    async def leave(self) -> None:
        """Say that this ingress answers nothing any more."""
        with contextlib.suppress(TimeoutError, Away):
            await asyncio.wait_for(self.switchboard.leave(self.id), 1.0)

    async def _renew(self) -> None:
        # A call that hangs must leave time for others before the lease ends.
        now = time.monotonic()
        renewal = replace(self.leases.renewal(now), demands=self.limiter.demands(now))
        grant = await asyncio.wait_for(
            self.switchboard.renew(self.id, renewal), self.settings.lease / 3
        )
        now = time.monotonic()
        self.leases.granted(grant, now)
        self.limiter.set_share(1 / max(1, grant.ingresses), grant.shares, now)

    async def _by_alias(self, visit: Visit, alias: Ref, texts: list[str], until: float) -> Answered:
        """By what it points to when the answer goes out; asked again where it moved meanwhile."""
        name = str(alias.version)
        while True:
            route = await self._resolved(alias, until)
            with self.leases.use(route):
                canary = route.canary
                if canary is not None and chosen(canary, visit.id):
                    entities, version = await self._tried(route, canary, texts, until)
                else:
                    entities, version = await self._routed(route, texts, until), route.version
                if self.leases.may_answer(route, time.monotonic(), version):
                    return Answered(entities, version, name)

    async def _resolved(self, alias: Ref, until: float) -> Route:
        while True:
            now = time.monotonic()
            try:
                route = self.leases.resolve(alias, now)
            except LeaseEnded as exc:
                raise Problem(503, str(exc), retry_after=2.0) from exc
            except PointsNowhere as exc:
                raise Problem(404, str(exc)) from exc
            if route is not None:
                return route
            self._due.set()
            async with self._renewed:
                try:
                    await asyncio.wait_for(self._renewed.wait(), max(0.0, until - now))
                except TimeoutError as exc:
                    said = f"{alias} was not looked up within the time given; give more"
                    raise Problem(504, said) from exc

    async def _tried(
        self, route: Route, canary: Canary, texts: list[str], until: float
    ) -> tuple[list[Spans], int]:
        """The canary's answer where it has one soon enough and is no shadow, else the
        incumbent's: whatever the canary does costs a request PATIENCE at most."""
        incumbent = asyncio.create_task(self._timed(route, route.version, texts, until))
        if len(self._trials) >= TRIALS:
            return _entities((await incumbent)[0]), route.version
        # Its time is not the request's: what somebody gave little time for is not its fault.
        whole = time.monotonic() + self.settings.timeout
        candidate = asyncio.create_task(self._candidate(route, canary.version, texts, whole))
        trial = asyncio.create_task(self._compare(canary, candidate, incumbent))
        self._trials.add(trial)
        trial.add_done_callback(self._trials.discard)
        theirs, _ = await incumbent
        if not canary.shadow:
            left = until - time.monotonic()
            if not isinstance(theirs, Refusal):
                left = min(PATIENCE, left / 2)
            await asyncio.wait([candidate], timeout=max(0.0, left))
            if candidate.done() and not candidate.cancelled():
                ours, _ = candidate.result()
                if not isinstance(ours, Refusal):
                    return ours, canary.version
        return _entities(theirs), route.version

    async def _compare(
        self,
        canary: Canary,
        candidate: "asyncio.Task[tuple[list[Spans] | Refusal, float]]",
        incumbent: "asyncio.Task[tuple[list[Spans] | Refusal, float]]",
    ) -> None:
        """Add a request to what was seen, unless it says nothing about the candidate. One that
        is not done in all the time there is has failed."""
        tried, used = await asyncio.gather(candidate, incumbent, return_exceptions=True)
        if isinstance(tried, BaseException) or isinstance(used, BaseException):
            return
        (ours, our_seconds), (theirs, their_seconds) = tried, used
        if any(isinstance(a, Refusal) and a.status in MOMENTARY for a in (ours, theirs)):
            return
        self.leases.saw(
            canary.id,
            Observed.of(
                candidate=_comparable(ours),
                candidate_seconds=our_seconds,
                incumbent=_comparable(theirs),
                incumbent_seconds=their_seconds,
            ),
        )

    async def _candidate(
        self, route: Route, version: int, texts: list[str], until: float
    ) -> tuple[list[Spans] | Refusal, float]:
        """As :meth:`_timed`; what it raises is an error of the candidate, not of the request."""
        try:
            return await self._timed(route, version, texts, until)
        except Exception as exc:
            logger.warning("canary of %s, version %d, failed", route.alias, version, exc_info=exc)
            return Refusal(500, "it failed"), 0.0

    async def _timed(
        self, route: Route, version: int, texts: list[str], until: float
    ) -> tuple[list[Spans] | Refusal, float]:
        began = time.monotonic()
        ref = Ref(route.alias.tenant, route.alias.domain, version)
        return await self._answer(ref, texts, until), time.monotonic() - began

    async def _routed(self, route: Route, texts: list[str], until: float) -> list[Spans]:
        return await self._asked(
            Ref(route.alias.tenant, route.alias.domain, route.version), texts, until
        )

    async def _asked(self, version: Ref, texts: list[str], until: float) -> list[Spans]:
        return _entities(await self._answer(version, texts, until))

    async def _answer(self, version: Ref, texts: list[str], until: float) -> list[Spans] | Refusal:
        left = until - time.monotonic()
        if left <= 0:
            return Refusal(504, "the time given has passed; give more, or send less at a time")
        try:
            return await asyncio.wait_for(self.engines.extract(str(version), texts, left), left)
        except TimeoutError:
            return Refusal(504, "not done within the time given; give more, or send less at a time")

    @contextlib.contextmanager
    def _admitted(self, tenant: str, characters: int) -> Iterator[None]:
        if self._under_way >= self.settings.max_requests:
            raise Problem(503, "more requests than can be carried now; try again", 1.0)
        try:
            lease = self.limiter.admit(tenant, characters, time.monotonic())
        except OverLimit as exc:
            status = 413 if exc.retry_after is None else 429
            raise Problem(status, str(exc), exc.retry_after) from exc
        self._under_way += 1
        try:
            with lease, self.metrics.in_flight.track_inprogress():
                yield
        finally:
            self._under_way -= 1


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What the switchboard refuses, as a problem."""
    try:
        yield
    except Away as exc:
        raise Problem(503, str(exc), retry_after=2.0) from exc
    except RaytagError as exc:
        raise Problem(409, str(exc)) from exc


def _entities(answer: list[Spans] | Refusal) -> list[Spans]:
    if isinstance(answer, Refusal):
        raise Problem(answer.status, answer.detail, answer.retry_after)
    return answer


def _comparable(answer: list[Spans] | Refusal) -> list[list[Entity]] | None:
    if isinstance(answer, Refusal):
        return None
    return [[Entity(start, end, label) for start, end, label, _ in spans] for spans in answer]
