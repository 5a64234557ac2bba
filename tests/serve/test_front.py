"""What an ingress does about a candidate that is slow, fails or refuses, and a switchboard that is
away."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest

from raytag.registry.names import Ref
from raytag.serve.canary import Canary, Observed, Rule, decide
from raytag.serve.front import TRIALS, Answered, Away, Front, Refusal, Spans
from raytag.serve.gate import Visit
from raytag.serve.leases import Grant, Renewal
from raytag.serve.metrics import IngressMetrics
from raytag.serve.problems import Problem
from raytag.serve.settings import ServeSettings
from raytag.serve.switch import CanaryStatus, Switch

ALIAS = Ref("acme", "news", "production")
FOUND: Spans = [(0, 4, "PER", 0.9)]
LONG_AGO = -1000.0
SECONDS = 0.5
"""What a request may take."""


class Engines:
    """Models of versions that do as they are told."""

    def __init__(self, does: dict[int, Callable[[], Awaitable[list[Spans] | Refusal]]]) -> None:
        self.does = does
        self.under_way: list[int] = []

    async def extract(
        self, version: str, texts: list[str], seconds: float
    ) -> list[Spans] | Refusal:
        number = int(version.rpartition("@")[2])
        self.under_way.append(number)
        try:
            return await self.does[number]()
        finally:
            self.under_way.remove(number)


class Switchboard:
    """A switch in this process; of its other methods those that a test gives it."""

    def __init__(self, shadow: bool) -> None:
        self.switch = Switch(10.0, LONG_AGO)
        self.switch.wants(ALIAS, 0.0)
        self.switch.observe(ALIAS, [1], 0.0)
        self.switch.loaded(Ref("acme", "news", 1), 0.0)
        rule = Rule(min_requests=1, max_error_rate=0.0)
        canary = Canary(id="c", version=2, share=1.0, shadow=shadow, rule=rule)
        self.switch.start_canary(ALIAS, canary, 0.0)
        self.switch.loaded(Ref("acme", "news", 2), 0.0)

    async def renew(self, ingress: str, renewal: Renewal) -> Grant:
        return self.switch.renew(ingress, renewal, 0.0)

    async def leave(self, ingress: str) -> None:
        raise Away("it ended first")

    async def promote(self, alias: Ref, version: int, wait: float) -> dict[str, Any]:
        raise Away("it ended meanwhile")

    @property
    def trial(self) -> CanaryStatus:
        status = self.switch.status(ALIAS, 0.0).canary
        assert status
        return status


class Service:
    """One ingress that tries version 2 beside version 1 with every request."""

    def __init__(self, *, shadow: bool = False, seconds: float = SECONDS, **does: Any) -> None:
        self.switchboard = Switchboard(shadow)
        self.engines = Engines({1: does["incumbent"], 2: does["candidate"]})
        self.front = Front(
            id="a",
            settings=ServeSettings(base="base", timeout=seconds),
            engines=self.engines,
            switchboard=self.switchboard,  # type: ignore[arg-type]
            metrics=IngressMetrics(),
            snapshots=dict,  # type: ignore[arg-type]
        )

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator["Service"]:
        leases = asyncio.create_task(self.front.keep_leases())
        try:
            yield self
        finally:
            leases.cancel()

    async def asked(self) -> Answered:
        visit = Visit(id="request", began=0.0)
        return await self.front.extract(visit, "acme", "news", "production", ["Ada met Bo"], None)

    async def seen(self) -> Observed:
        """What the switch was told of the trial, once all that was begun is done."""
        await asyncio.gather(*self.front._trials)
        await self.front._renew()
        return self.switchboard.trial.observed


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, 30))


async def finds() -> list[Spans]:
    return [FOUND]


async def hangs() -> list[Spans]:
    await asyncio.Event().wait()
    raise AssertionError


async def breaks() -> list[Spans]:
    raise RuntimeError("a bug of this adapter")


def refuses(status: int) -> Callable[[], Awaitable[Refusal]]:
    async def refuse() -> Refusal:
        return Refusal(status, "no")

    return refuse


@pytest.mark.parametrize("shadow", [False, True])
@pytest.mark.parametrize("candidate", [hangs, breaks, refuses(409), refuses(404), refuses(504)])
def test_a_candidate_that_fails_or_hangs_costs_no_answer_and_goes_back(
    candidate: Callable[[], Awaitable[Any]], shadow: bool
) -> None:
    async def work() -> None:
        service = Service(shadow=shadow, incumbent=finds, candidate=candidate)
        async with service.at_work():
            answered = await service.asked()
            assert (answered.entities, answered.version) == ([FOUND], 1)
            # It went out before the candidate's time was over.
            assert service.engines.under_way == ([2] if candidate is hangs else [])
            assert await service.seen() == Observed(requests=1, candidate_errors=1)
            decision = decide(service.switchboard.trial.canary.rule, await service.seen())
            assert decision.verdict == "back"

    run(work())


def test_a_candidate_that_answers_does_so_unless_it_is_a_shadow() -> None:
    async def work(shadow: bool) -> None:
        service = Service(shadow=shadow, incumbent=finds, candidate=finds)
        async with service.at_work():
            assert (await service.asked()).version == (1 if shadow else 2)
            seen = await service.seen()
            assert (seen.compared, seen.both, seen.candidate_errors) == (1, 1, 0)

    run(work(False))
    run(work(True))


def test_a_candidate_answers_where_the_version_in_use_does_not() -> None:
    async def work() -> None:
        service = Service(incumbent=refuses(409), candidate=finds)
        async with service.at_work():
            assert (await service.asked()).version == 2
            assert await service.seen() == Observed(requests=1, incumbent_errors=1)

    run(work())


@pytest.mark.parametrize("status", [422, 503])
def test_what_a_candidate_refuses_for_the_moment_or_the_request_says_nothing(status: int) -> None:
    async def work() -> None:
        service = Service(incumbent=finds, candidate=refuses(status))
        async with service.at_work():
            assert (await service.asked()).version == 1
            assert await service.seen() == Observed()

    run(work())


def test_of_more_requests_than_can_be_tried_at_a_time_only_the_version_in_use_is_asked() -> None:
    async def work() -> None:
        service = Service(shadow=True, seconds=60.0, incumbent=finds, candidate=hangs)
        async with service.at_work():
            for _ in range(TRIALS + 5):
                assert (await service.asked()).version == 1
            assert service.engines.under_way == [2] * TRIALS

    run(work())


def test_a_switchboard_that_is_away_is_told_with_a_time_to_try_again() -> None:
    async def work() -> None:
        service = Service(incumbent=finds, candidate=finds)
        with pytest.raises(Problem, match="ended meanwhile") as caught:
            await service.front.promote("acme", "news", "production", 2, 1.0)
        assert caught.value.status == 503
        assert caught.value.retry_after
        await service.front.leave()

    run(work())
