"""What one tenant may have under way at an ingress, counted before a body is read; and bodies that
are refused at the first of their faults."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import httpx
import pytest
from pydantic import BaseModel, ValidationError
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from raytag.serve.api import Ask, CanaryAsk, Promotion
from raytag.serve.gate import BODIES, Gate
from raytag.serve.keys import Identity
from raytag.serve.metrics import IngressMetrics
from raytag.serve.problems import Problem

MOST_BYTES = 1000
MANY = 100_000


class Held:
    """Reads a body, and answers when it is let."""

    def __init__(self) -> None:
        self.read = asyncio.Semaphore(0)
        self.let = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await Request(scope, receive).body()
        self.read.release()
        await self.let.wait()
        await PlainTextResponse("answered")(scope, receive, send)


def whose(header: str | None) -> Identity:
    return Identity(header or "", "extract", "0" * 16)


def ask(gate: Gate, tenant: str, size: int = 0) -> "asyncio.Task[httpx.Response]":
    async def answered() -> httpx.Response:
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(gate), base_url="http://gate"
        ) as client:
            content = b"x" * size
            return await client.post("/held", content=content, headers={"Authorization": tenant})

    return asyncio.create_task(answered())


async def refused(gate: Gate, tenant: str, size: int = 0) -> str:
    """Why a request is told to come again."""
    answer = await ask(gate, tenant, size)
    assert answer.status_code == 429, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert int(answer.headers["retry-after"]) >= 1
    detail: str = answer.json()["detail"]
    return detail


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    run.__name__ = test.__name__
    return run


@in_a_loop
async def test_a_tenant_with_too_many_requests_under_way_is_turned_away_and_no_other() -> None:
    app = Held()
    gate = Gate(app, whose, IngressMetrics(), MOST_BYTES, 3)
    under_way = [ask(gate, "acme") for _ in range(3)]
    for _ in under_way:
        await app.read.acquire()
    assert "acme has 3 requests under way" in await refused(gate, "acme")
    other = ask(gate, "globex")
    await app.read.acquire()
    app.let.set()
    for answer in (*under_way, other, ask(gate, "acme")):
        assert (await answer).text == "answered"


@in_a_loop
async def test_the_bodies_of_a_tenant_are_bounded_together_until_they_are_answered() -> None:
    app = Held()
    gate = Gate(app, whose, IngressMetrics(), MOST_BYTES, 100)
    under_way = [ask(gate, "acme", MOST_BYTES) for _ in range(BODIES)]
    for _ in under_way:
        await app.read.acquire()
    assert f"larger than {BODIES * MOST_BYTES:,} bytes together" in await refused(gate, "acme", 1)
    others = [ask(gate, "globex", MOST_BYTES), ask(gate, "acme")]
    for _ in others:
        await app.read.acquire()
    app.let.set()
    for answer in (*under_way, *others, ask(gate, "acme", MOST_BYTES)):
        assert (await answer).text == "answered"


@pytest.mark.parametrize(
    ("body", "content", "most"),
    [
        (Ask, {"texts": [1] * MANY}, 1),
        (Ask, {"texts": ["x", *[None] * MANY]}, 1),
        (Ask, {"documents": [1] * MANY}, 1),
        (Ask, {"documents": [{}] * MANY}, 2),
        (Ask, {"documents": [dict.fromkeys(map(str, range(MANY)))]}, 1),
        *(
            (model, dict.fromkeys(map(str, range(MANY))), 1)
            for model in (Ask, Promotion, CanaryAsk)
        ),
    ],
    ids=range(8),
)
def test_a_body_with_very_many_faults_is_refused_at_the_first(
    body: type[BaseModel], content: object, most: int
) -> None:
    with pytest.raises(ValidationError) as refused:
        body.model_validate(content)
    assert refused.value.error_count() <= most


def test_a_rule_that_cannot_hold_is_the_askers_mistake() -> None:
    asked = CanaryAsk.model_construct(version=1, share=0.5, min_agreement=7.0)
    with pytest.raises(Problem, match="min_agreement") as refused:
        asked.rule()
    assert refused.value.status == 422
