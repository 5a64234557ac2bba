"""What stands before every ingress: how Serve's HTTP proxy takes requests, and its own errors.

The proxy is steered by headers that it takes from anybody, and fails where it cannot decode them;
of an ingress that died with a request it says nothing at all, and its server makes a bare 500 of
that. Serve calls :func:`middlewares` in its proxies, where their environment has
RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=raytag.serve.proxy.middlewares. Knows ASGI and those
habits; not the API.
"""

import re
import uuid

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytag.serve.problems import Problem

_STEERING = frozenset(
    {
        *(b"x-request-timeout-seconds", b"x-request-disconnect-disabled"),
        *(b"serve-multiplexed-model-id", b"x-session-id"),
    }
)
_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


def middlewares() -> list[Middleware]:
    """For Serve."""
    return [Middleware(Doorway)]


class Doorway:
    """ASGI middleware around Serve's proxy: lets no steering header in, and no error out that is
    no problem detail."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "").encode("latin-1")
        id_ = given if _ID.fullmatch(given) else uuid.uuid4().hex.encode()
        scope["headers"] = [
            *((name, value) for name, value in scope["headers"] if not _steers(name)),
            (b"x-request-id", id_),
        ]
        started = replaced = False

        async def refuse(status: int) -> None:
            if status < 500:
                problem = Problem(status, "there is no such path; see /docs")
            else:
                problem = Problem(503, "a process of the service ended; try again", 1.0)
            response = problem.response(id_.decode())
            response.headers["X-Request-Id"] = id_.decode()
            await response(scope, receive, send)

        async def answer(message: Message) -> None:
            nonlocal started, replaced
            if message["type"] == "http.response.start":
                started = True
                kind = Headers(raw=message["headers"]).get("content-type")
                replaced = message["status"] >= 400 and kind != "application/problem+json"
                if replaced:
                    await refuse(message["status"])
            if not replaced:
                await send(message)

        await self._app(scope, receive, answer)
        if not started:
            await refuse(503)


def _steers(name: bytes) -> bool:
    return name == b"x-request-id" or name.replace(b"_", b"-") in _STEERING
