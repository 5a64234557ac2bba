"""What an ingress does about models that refuse or die, and a switchboard that is away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from in_a_loop import in_a_loop
from ray.exceptions import ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from raytag.errors import SettingsError
from raytag.registry.names import Ref
from raytag.serve.front import Away, Refusal, Spans
from raytag.serve.ingress import Models, Place, SwitchboardCalls, living
from raytag.spare import Spare

FULL = Refusal(503, "too many texts are waiting here", 0.5, overload=True)


class Service:
    """Answers what is next in its script; notes what it was asked."""

    def __init__(self, *script: list[Spans] | Refusal | Exception) -> None:
        self.script = list(script)
        self.asked: list[str] = []
        self.now = 100.0

    @asynccontextmanager
    async def place(self, taken: float) -> AsyncIterator[Place]:
        yield Place("engine-1", self.extract)

    async def extract(
        self, version: str, texts: list[str], seconds: float
    ) -> list[Spans] | Refusal:
        self.asked.append(version)
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def asked(models: Models, version: str) -> list[Spans] | Refusal:
    return asyncio.run(models.extract(version, ["a"], 5.0))


def test_a_tenant_turned_away_is_for_a_moment_turned_away_without_asking_again() -> None:
    service = Service(FULL, [[]], [[]])
    models = Models(service.place, 0.1, clock=lambda: service.now)
    assert asked(models, "acme/news@1") == FULL
    service.now += 0.09
    assert asked(models, "acme/other@2") == FULL
    assert asked(models, "globex/news@1") == [[]]
    service.now += 0.02
    assert asked(models, "acme/news@1") == [[]]
    assert service.asked == ["acme/news@1", "globex/news@1", "acme/news@1"]


def test_other_refusals_hold_nobody() -> None:
    away = Refusal(503, "the registry cannot be read", 1.0)
    service = Service(away, [[]])
    models = Models(service.place, 0.1, clock=lambda: service.now)
    assert asked(models, "acme/news@1") == away
    assert asked(models, "acme/news@1") == [[]]


GONE = [
    RayActorError(),
    OutOfMemoryError("the host was short of memory"),
    ObjectLostError("00" * 28, None, ""),
    DeploymentUnavailableError(DeploymentID(name="Switchboard", app_name="raytag")),
]


@pytest.mark.parametrize("died", [*GONE, TimeoutError()], ids=lambda exc: type(exc).__name__)
def test_a_model_that_dies_with_a_request_or_is_silent_is_followed_by_another(
    died: Exception,
) -> None:
    service = Service(died, [[(0, 1, "ORG", 0.5)]])
    models = Models(service.place, 0.1)
    assert asked(models, "acme/news@1") == [[(0, 1, "ORG", 0.5)]]
    assert len(service.asked) == 2


FOUND: list[Spans] = [[(0, 1, "ORG", 0.5)]]


class Replicas:
    """Models that answer once they are told to; calls get places as ``places`` says."""

    def __init__(self, *places: str) -> None:
        """``none`` is no place, in the time there was."""
        self.places = list(places)
        self.calls: dict[str, asyncio.Future[list[Spans] | Refusal]] = {}
        self.ended: list[str] = []
        self.waits: list[float] = []
        self.leaves = asyncio.Event()
        self.leaves.set()

    @asynccontextmanager
    async def place(self, taken: float) -> AsyncIterator[Place]:
        self.waits.append(taken)
        name = self.places.pop(0)

        async def call(*_: Any) -> list[Spans] | Refusal:
            assert name not in self.calls, f"{name} is asked twice"
            self.calls[name] = asyncio.get_running_loop().create_future()
            try:
                return await self.calls[name]
            finally:
                self.ended.append(name)

        if name == "none":
            raise TimeoutError
        yield Place(name, call)
        await self.leaves.wait()

    async def asked(self, *names: str) -> None:
        """Wait until these are."""
        while self.calls.keys() != set(names):
            await asyncio.sleep(0)


Answer = asyncio.Task[list[Spans] | Refusal]


def asking(replicas: Replicas, silent: float = 0.02, spare: Spare | None = None) -> Answer:
    models = Models(replicas.place, 0.1, silent, spare)
    return asyncio.create_task(models.extract("acme/news@1", ["a"], 60.0))


async def asked_twice() -> tuple[Replicas, Answer]:
    """A request after the model that took it has fallen silent."""
    replicas = Replicas("engine-1", "engine-2")
    answer = asking(replicas)
    await replicas.asked("engine-1", "engine-2")
    return replicas, answer


@in_a_loop
async def test_where_a_model_falls_silent_another_is_asked_and_the_first_answer_counts() -> None:
    replicas, answer = await asked_twice()
    replicas.calls["engine-2"].set_result(FOUND)
    assert await answer == FOUND
    while replicas.ended != ["engine-2", "engine-1"]:  # nobody waits for the silent one any more
        await asyncio.sleep(0)


@in_a_loop
async def test_of_a_model_that_was_silent_for_a_while_the_answer_counts_too() -> None:
    replicas, answer = await asked_twice()
    replicas.calls["engine-1"].set_result(FOUND)
    assert await answer == FOUND


@in_a_loop
async def test_a_model_that_is_slow_but_gives_signs_of_life_is_asked_once() -> None:
    replicas = Replicas(*["engine-1"] * 100)
    answer = asking(replicas)
    while len(replicas.places) > 95:  # it has taken a call four times more
        await asyncio.sleep(0)
    replicas.calls["engine-1"].set_result(FOUND)
    assert await answer == FOUND
    assert replicas.ended == ["engine-1"]


BUG = RayTaskError("extract", "a traceback", RayActorError()).as_instanceof_cause()


@in_a_loop
async def test_what_the_second_refuses_or_breaks_at_ends_no_request() -> None:
    for fails in (FULL, BUG):
        replicas, answer = await asked_twice()
        second = replicas.calls["engine-2"]
        if isinstance(fails, Exception):
            second.set_exception(fails)
        else:
            second.set_result(fails)
        while replicas.ended != ["engine-2"]:
            await asyncio.sleep(0)
        replicas.calls["engine-1"].set_result(FOUND)
        assert await answer == FOUND


@in_a_loop
async def test_a_refusal_counts_once_no_other_is_left_and_then_holds_the_tenant() -> None:
    replicas = Replicas("engine-1", "engine-2")
    models = Models(replicas.place, 60.0, silent=0.02)
    answer = asyncio.create_task(models.extract("acme/news@1", ["a"], 60.0))
    await replicas.asked("engine-1", "engine-2")
    replicas.calls["engine-2"].set_result(FULL)
    while replicas.ended != ["engine-2"]:
        await asyncio.sleep(0)
    replicas.calls["engine-1"].set_exception(RayActorError())
    assert await answer == FULL
    assert await models.extract("acme/news@1", ["a"], 60.0) == FULL
    assert replicas.waits == [1.0, 2.0]


@in_a_loop
async def test_no_more_requests_than_are_spare_are_asked_of_a_second_model() -> None:
    replicas = Replicas("engine-1", "engine-2")
    spare = Spare(0.0, 1)
    first = asking(replicas, spare=spare)
    await replicas.asked("engine-1", "engine-2")
    others = Replicas("engine-1", "engine-2")
    second = asking(others, spare=spare)
    await others.asked("engine-1")
    done, _ = await asyncio.wait([second], timeout=0.2)  # ten times as long as one is silent
    assert not done
    assert others.places == ["engine-2"]
    for one in (replicas, others):
        one.calls["engine-1"].set_result(FOUND)
    assert [await first, await second] == [FOUND, FOUND]


@in_a_loop
async def test_a_place_that_cannot_be_given_back_keeps_nobody_from_asking_a_third() -> None:
    replicas = Replicas("engine-1", "engine-1", "engine-2")
    replicas.leaves.clear()
    answer = asking(replicas)
    await replicas.asked("engine-1", "engine-2")
    replicas.leaves.set()
    replicas.calls["engine-2"].set_result(FOUND)
    assert await answer == FOUND


@in_a_loop
async def test_where_no_place_is_had_each_try_waits_twice_as_long() -> None:
    replicas = Replicas("none", "none", "engine-1")
    answer = asking(replicas, silent=60.0)
    await replicas.asked("engine-1")
    replicas.calls["engine-1"].set_result(FOUND)
    assert await answer == FOUND
    assert replicas.waits == [1.0, 2.0, 4.0]


@in_a_loop
async def test_a_bug_in_a_model_is_raised_and_not_asked_for_again() -> None:
    replicas = Replicas("engine-1")
    answer = asking(replicas, silent=60.0)
    await replicas.asked("engine-1")
    replicas.calls["engine-1"].set_exception(BUG)
    with pytest.raises(RayTaskError):
        await answer


ALIAS = Ref("acme", "news", "production")


def switchboard(does: Any, timeout: float = 5.0) -> SwitchboardCalls:
    """All of whose methods do the same."""

    async def dispatch(chosen: Any, *arguments: Any) -> Any:
        return await does()

    method = SimpleNamespace(
        choose_replica=lambda: nullcontext(SimpleNamespace(replica_id="a")), dispatch=dispatch
    )
    names = ("renew", "leave", "models", "status", "promote", "rollback")
    names += ("start_canary", "stop_canary")
    return SwitchboardCalls(SimpleNamespace(**dict.fromkeys(names, method)), timeout)  # type: ignore[arg-type]


@pytest.mark.parametrize("died", GONE, ids=lambda exc: type(exc).__name__)
def test_a_switchboard_that_dies_with_a_call_is_away(died: Exception) -> None:
    async def dies() -> None:
        raise died

    calls = switchboard(dies)
    for call in (
        calls.promote(ALIAS, 2, 1.0),
        calls.rollback(ALIAS, 1.0),
        calls.models("acme"),
        calls.leave("a"),
    ):
        with pytest.raises(Away, match="look where the alias stands, then try again"):
            asyncio.run(call)


def test_a_switchboard_that_hangs_is_away_once_the_time_is_over() -> None:
    async def hangs() -> None:
        await asyncio.Event().wait()

    calls = switchboard(hangs, timeout=0.01)
    for call in (calls.promote(ALIAS, 2, 0.01), calls.status(ALIAS), calls.stop_canary(ALIAS)):
        with pytest.raises(Away):
            asyncio.run(asyncio.wait_for(call, 30))


def test_what_a_switchboard_refuses_is_raised_as_it_was_and_its_bugs_are_bugs() -> None:
    async def refuses() -> Exception:
        return SettingsError("there is no version 9")

    async def breaks() -> None:
        raise RayTaskError("promote", "a traceback", RayActorError()).as_instanceof_cause()

    with pytest.raises(SettingsError, match="there is no version 9"):
        asyncio.run(switchboard(refuses).promote(ALIAS, 9, 1.0))
    with pytest.raises(RayTaskError):
        asyncio.run(switchboard(breaks).promote(ALIAS, 9, 1.0))


@pytest.mark.parametrize("died", GONE, ids=lambda exc: type(exc).__name__)
def test_figures_are_of_those_that_live(died: Exception) -> None:
    class Broadcast:
        """One replica answers, one has died; or there is none."""

        def __init__(self, there_is_one: bool) -> None:
            self.there_is_one = there_is_one

        async def results_async(self, *, timeout_s: float, return_exceptions: bool) -> list[Any]:
            if not self.there_is_one or not return_exceptions:
                raise died
            return [("engine-1", b"figures"), died]

    assert asyncio.run(living(Broadcast(True))) == [("engine-1", b"figures")]  # type: ignore[arg-type]
    assert asyncio.run(living(Broadcast(False))) == []  # type: ignore[arg-type]
