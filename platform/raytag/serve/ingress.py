"""The deployment that answers HTTP.

Knows what Ray Serve wants of a deployment, its handles, and which of their failures another try
mends; what is done with a request is the front's.
"""

import asyncio
import contextlib
import logging
import sys
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from math import ceil
from typing import Any

from ray import serve
from ray.exceptions import (
    NodeDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RayActorError,
    RayTaskError,
)
from ray.serve.exceptions import DeploymentUnavailableError, ReplicaUnavailableError
from ray.serve.handle import DeploymentBroadcastResponse, DeploymentHandle

from raytag.errors import StorageError
from raytag.registry.names import Ref
from raytag.serve.api import build_api
from raytag.serve.canary import Canary
from raytag.serve.front import Away, Front, Refusal, Spans
from raytag.serve.gate import Gate
from raytag.serve.http import HttpServer
from raytag.serve.keys import KeyRing
from raytag.serve.leases import Grant, Renewal
from raytag.serve.metrics import IngressMetrics
from raytag.serve.settings import ServeSettings
from raytag.spare import Spare

KEYS_READ = 2.0
"""Seconds between two looks at the keys."""
BODY_PER_CHARACTER = 12
"""Bytes that a character can take in a body: JSON may write it as two escapes."""
BODY_BESIDES = 1 << 20
"""Bytes of a body that are no text: ids, brackets."""
ONE_TENANT = 0.5
"""Of the requests that an ingress works on: what one tenant may have of them, so that there is
room for others whatever it does."""
HOLD = 0.5
"""Of the time that requests may wait for a model: what a tenant is turned away for afterwards."""
TAKEN = 1.0
"""Seconds in which a model says that it takes a request; else its host is silent, or busy beyond
use. Each further try of a request waits twice as long: it may be that there is none just now, and
Serve goes on looking for one for each that gave up."""
SILENT = 2.0
"""Seconds without a word from a model that took a request, until another may be asked too: its host
may have gone, or it is long at work on this one alone."""
ASKED_TWICE, ASKED_TWICE_AT_ONCE = 0.1, 50
"""Of all requests, those that another model may be asked for as well, and how many in a row: what a
host that is gone may have held, and little for models that are all slow."""
SETTLES = 10.0
"""Seconds that the trial of a candidate waits for moves of its alias that are under way."""
SCRAPE = 5.0
"""Seconds that the figures of a deployment are waited for."""
GONE = (
    RayActorError,
    NodeDiedError,
    OutOfMemoryError,  # of its host, where Ray ends a process to save the others
    ObjectLostError,
    DeploymentUnavailableError,
    ReplicaUnavailableError,
)
"""What Ray raises where a replica dies with a request or its answer, or there is none."""
logger = logging.getLogger("raytag.serve")


class Ingress:
    """One process that answers HTTP."""

    def __init__(
        self,
        settings: ServeSettings,
        engines: DeploymentHandle[Any],
        switchboard: DeploymentHandle[Any],
    ) -> None:
        log_lines()
        self._engines = engines
        self._metrics = IngressMetrics()
        self._keys = KeyRing(settings.keys)
        self._switchboard = switchboard
        place = partial(place_at, engines.extract)
        self._front = Front(
            id=uuid.uuid4().hex,
            settings=settings,
            engines=Models(place, settings.queue_seconds * HOLD),
            switchboard=SwitchboardCalls(switchboard, settings.timeout),
            metrics=self._metrics,
            snapshots=self._snapshots,
        )
        gate = Gate(
            build_api(self._front),
            lambda header: self._keys.check(header, time.time()),
            self._metrics,
            settings.max_characters * BODY_PER_CHARACTER + BODY_BESIDES,
            ceil(settings.max_requests * ONE_TENANT),
        )
        self._http = HttpServer(gate, settings.host, settings.port, drain=settings.timeout)
        self._serving = asyncio.get_running_loop().create_task(self._serve())

    async def check_health(self) -> None:
        """For Serve, which lets nobody count on this process before. Raises why it cannot serve."""
        while not self._http.started:
            await asyncio.wait([self._serving], timeout=0.05)
            if self._serving.done():
                break
        if self._serving.done():
            self._serving.result()
            raise RuntimeError("the HTTP server has ended")

    async def __del__(self) -> None:
        """For Serve, before it ends the process: what is under way is answered."""
        self._http.should_exit = True
        await asyncio.wait([self._serving])

    async def _serve(self) -> None:
        await asyncio.to_thread(self._keys.refresh, time.time())
        loop = asyncio.get_running_loop()
        tasks = [loop.create_task(self._front.keep_leases()), loop.create_task(self._keep_keys())]
        try:
            await self._http.run_until_told()
        finally:
            for task in tasks:
                task.cancel()
            await self._front.leave()

    async def snapshot(self) -> tuple[str, bytes]:
        """(this process's name, its metrics)."""
        return f"ingress-{self._front.id[:8]}", await asyncio.to_thread(self._metrics.snapshot)

    async def _keep_keys(self) -> None:
        while True:
            await asyncio.sleep(KEYS_READ)
            try:
                await asyncio.to_thread(self._keys.refresh, time.time())
            except StorageError as exc:  # the ring refuses all keys where this goes on for long
                logger.warning("the keys could not be read: %s", exc)

    async def _snapshots(self) -> Mapping[str, bytes]:
        context = serve.get_replica_context()
        own = serve.get_deployment_handle(context.deployment, context.app_name)
        asked = [h.broadcast("snapshot") for h in (own, self._engines, self._switchboard)]
        found = await asyncio.gather(*map(living, asked))
        return {name: snapshot for several in found for name, snapshot in several}


@dataclass(frozen=True, slots=True)
class Place:
    """A place for one call that a replica holds free."""

    replica: str
    call: Callable[..., Awaitable[Any]]


@contextlib.asynccontextmanager
async def place_at(method: DeploymentHandle[Any], taken: float | None) -> AsyncIterator[Place]:
    """A place at some replica. Raises TimeoutError where none has one within ``taken`` seconds.

    Not by ``method.remote``: its answer is a stream, at whose end the replica stands still with
    all that others asked of it until the caller has taken note, which for one whose host has
    vanished took 20 seconds.
    """
    async with contextlib.AsyncExitStack() as held:
        async with asyncio.timeout(taken):
            chosen = await held.enter_async_context(method.choose_replica())

        async def call(*arguments: Any) -> Any:
            return await method.dispatch(chosen, *arguments)

        yield Place(chosen.replica_id, call)


_Try = asyncio.Task[list[Spans] | Refusal | None]


class Models:
    """The models, through Serve. ``place`` finds one that takes a call within so many seconds.

    A replica that dies is no reason for a request to fail, nor is one whose host has fallen
    silent, which Ray notices after 5 to 30 seconds: once nothing was heard from it for ``silent``
    seconds another is asked too, if ``spare`` has it, and the first answer counts; what one of them
    refuses or breaks at counts when no other is left. A tenant that a model turned away for too
    much waiting is turned away here for the next ``hold`` seconds: a model that has to refuse
    request after request has less time for those it took.
    """

    def __init__(
        self,
        place: Callable[[float], AbstractAsyncContextManager[Place]],
        hold: float,
        silent: float = SILENT,
        spare: Spare | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.place = place
        self.silent = silent
        self.spare = spare or Spare(ASKED_TWICE, ASKED_TWICE_AT_ONCE)
        self.clock = clock
        self.heard: dict[str, float] = {}
        """When there was a last word of each replica."""
        self._hold = hold
        self._held: dict[str, tuple[float, Refusal]] = {}

    async def extract(
        self, version: str, texts: list[str], seconds: float
    ) -> list[Spans] | Refusal:
        tenant = version.partition("/")[0]
        now = self.clock()
        until, refusal = self._held.get(tenant, (now, None))
        if refusal is not None:
            if now < until:
                return refusal
            del self._held[tenant]
        answer = await _Tries(self, version, texts, now + seconds).answer()
        if isinstance(answer, Refusal) and answer.overload:
            self._held[tenant] = self.clock() + self._hold, answer
        return answer


class _Tries:
    """What is done for one request: tries, each at a replica of its own."""

    def __init__(self, models: Models, version: str, texts: list[str], until: float) -> None:
        self._models = models
        self._asked = version, texts
        self._until = until
        self._under_way: set[_Try] = set()
        self._at: dict[_Try | None, str] = {}
        """The replica of each that has its place."""
        self._taken = TAKEN
        """Seconds that the next one waits for a place."""
        self._alone_until = 0.0

    async def answer(self) -> list[Spans] | Refusal:
        self._models.spare.asked()
        failed: _Try | None = None
        try:
            while self._under_way or failed is None:
                if not self._under_way or (self._are_silent() and self._models.spare.take()):
                    self._begin()
                done, self._under_way = await asyncio.wait(
                    self._under_way,
                    timeout=self._models.silent / 4,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for one in done:
                    self._at.pop(one, None)
                    if one.exception() is not None or isinstance(one.result(), Refusal):
                        failed = one
                    elif (answer := one.result()) is not None:
                        return answer
            refusal = failed.result()
            assert refusal is not None
            return refusal
        finally:
            for one in self._under_way:
                one.cancel()

    def _begin(self) -> None:
        for replica in map(self._at.get, self._under_way):
            logger.warning("nothing is heard from %s: another is asked too", replica)
        self._under_way.add(asyncio.create_task(self._try(self._taken)))
        self._taken *= 2
        self._alone_until = self._models.clock() + self._models.silent

    def _are_silent(self) -> bool:
        """Whether all have a place and none of those was heard from lately."""
        now = self._models.clock()
        return self._alone_until <= now and all(
            one in self._at and self._models.heard[self._at[one]] + self._models.silent <= now
            for one in self._under_way
        )

    async def _try(self, taken: float) -> list[Spans] | Refusal | None:
        """The answer of a model that no other try is at; None where there is none, or it dies."""
        this, clock, heard = asyncio.current_task(), self._models.clock, self._models.heard
        try:
            async with self._models.place(taken) as place:
                is_asked = place.replica in self._at.values()
                self._at[this] = place.replica
                heard[place.replica] = clock()
                if is_asked:  # it has just said that it lives
                    return None
                answer: list[Spans] | Refusal
                answer = await place.call(*self._asked, self._until - clock())
                heard[place.replica] = clock()
                return answer
        except RayTaskError:
            raise
        except (*GONE, TimeoutError) as exc:
            logger.warning("an engine is gone: %s", str(exc).splitlines()[:1])
            self._at.pop(this, None)
            await asyncio.sleep(min(0.05, max(0.0, self._until - clock())))
            return None


class SwitchboardCalls:
    """The switchboard, through Serve; its own errors as they were raised.

    Where it does not answer within ``timeout`` seconds, those that it was told to wait not
    counted, or dies meanwhile, that is Away: a call that waited on would hold a place for ever.
    """

    def __init__(self, handle: DeploymentHandle[Any], timeout: float) -> None:
        self._handle = handle
        self._timeout = timeout

    async def renew(self, ingress: str, renewal: Renewal) -> Grant:
        grant: Grant = await self._call("renew", ingress, renewal)
        return grant

    async def leave(self, ingress: str) -> None:
        await self._call("leave", ingress)

    async def models(self, tenant: str) -> dict[str, Any]:
        return await self._answer("models", tenant)

    async def status(self, alias: Ref) -> dict[str, Any]:
        return await self._answer("status", alias)

    async def promote(self, alias: Ref, version: int, wait: float) -> dict[str, Any]:
        return await self._answer("promote", alias, version, wait, wait=wait)

    async def rollback(self, alias: Ref, wait: float) -> dict[str, Any]:
        return await self._answer("rollback", alias, wait, wait=wait)

    async def start_canary(self, alias: Ref, canary: Canary) -> dict[str, Any]:
        return await self._answer("start_canary", alias, canary, SETTLES, wait=SETTLES)

    async def stop_canary(self, alias: Ref) -> dict[str, Any]:
        return await self._answer("stop_canary", alias)

    async def _answer(self, method: str, *arguments: Any, wait: float = 0.0) -> dict[str, Any]:
        answer: dict[str, Any] | Exception = await self._call(method, *arguments, wait=wait)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def _call(self, method: str, *arguments: Any, wait: float = 0.0) -> Any:
        try:
            async with asyncio.timeout(self._timeout + wait):
                async with place_at(getattr(self._handle, method), None) as place:
                    return await place.call(*arguments)
        except RayTaskError:
            raise
        except (*GONE, TimeoutError) as exc:
            raise Away(
                "the switchboard did not answer, and may have done what was asked or not; look "
                "where the alias stands, then try again"
            ) from exc


async def living(asked: DeploymentBroadcastResponse) -> list[Any]:
    """What the replicas say that answer, within SCRAPE seconds in all."""
    try:
        found = await asked.results_async(timeout_s=SCRAPE, return_exceptions=True)
    except (*GONE, TimeoutError) as exc:
        found = [exc]
    for one in found:
        if isinstance(one, BaseException):
            logger.warning("figures are left out: %s", (str(one) or repr(one)).splitlines()[0])
    return [one for one in found if not isinstance(one, BaseException)]


def log_lines() -> None:
    """What the service has to say, a line each, to where Ray keeps what a process writes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    for name in ("raytag.serve",):
        one = logging.getLogger(name)
        one.handlers[:] = [handler]
        one.setLevel(logging.INFO)
        one.propagate = False
