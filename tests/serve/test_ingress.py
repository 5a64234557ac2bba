"""What an ingress does about models that refuse or die, and a switchboard that is away."""

import asyncio
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import ObjectLostError, RayActorError, RayTaskError
from ray.serve._private.common import DeploymentID
from ray.serve.exceptions import DeploymentUnavailableError

from raytag.errors import SettingsError
from raytag.registry.names import Ref
from raytag.serve.front import Away, Refusal, Spans
from raytag.serve.ingress import Models, SwitchboardCalls, living

FULL = Refusal(503, "too many texts are waiting here", 0.5, overload=True)


class Service:
    """Answers what is next in its script; notes what it was asked."""

    def __init__(self, *script: list[Spans] | Refusal | Exception) -> None:
        self.script = list(script)
        self.asked: list[str] = []
        self.now = 100.0

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
    models = Models(service.extract, 0.1, lambda: service.now)
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
    models = Models(service.extract, 0.1, lambda: service.now)
    assert asked(models, "acme/news@1") == away
    assert asked(models, "acme/news@1") == [[]]


GONE = [
    RayActorError(),
    ObjectLostError("00" * 28, None, ""),
    DeploymentUnavailableError(DeploymentID(name="Switchboard", app_name="raytag")),
]


@pytest.mark.parametrize("died", [*GONE, TimeoutError()], ids=lambda exc: type(exc).__name__)
def test_a_model_that_dies_with_a_request_or_is_silent_is_followed_by_another(
    died: Exception,
) -> None:
    service = Service(died, [[(0, 1, "ORG", 0.5)]])
    models = Models(service.extract, 0.1)
    assert asked(models, "acme/news@1") == [[(0, 1, "ORG", 0.5)]]
    assert len(service.asked) == 2


ALIAS = Ref("acme", "news", "production")


def switchboard(does: Any, timeout: float = 5.0) -> SwitchboardCalls:
    """All of whose methods do the same."""

    async def dispatch(chosen: None, *arguments: Any) -> Any:
        return await does()

    method = SimpleNamespace(choose_replica=nullcontext, dispatch=dispatch)
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
