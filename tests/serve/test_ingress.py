"""What an ingress does about models that refuse or die."""

import asyncio

import pytest
from ray.exceptions import RayActorError

from raytag.serve.front import Refusal, Spans
from raytag.serve.ingress import Models

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


@pytest.mark.parametrize("gone", [RayActorError(), TimeoutError()], ids=["dead", "silent"])
def test_a_model_that_is_gone_is_followed_by_another(gone: Exception) -> None:
    service = Service(gone, [[(0, 1, "ORG", 0.5)]])
    models = Models(service.extract, 0.1)
    assert asked(models, "acme/news@1") == [[(0, 1, "ORG", 0.5)]]
    assert len(service.asked) == 2
