"""What every request passes before a route sees it: its id, its key, its size, its log line.

Closed by default: what is not listed as open needs a key, whatever routes there are. Knows HTTP
as ASGI has it; nothing of entities.
"""

import json
import logging
import re
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytag.serve.keys import Identity, KeysUnread, Unauthorized
from raytag.serve.metrics import IngressMetrics
from raytag.serve.problems import Problem

DOCS_FILES = "/docs/files"
OPEN = frozenset(
    {
        *("/", "/docs", "/openapi.json", "/healthz", "/-/healthz", "/readyz"),
        *(f"{DOCS_FILES}/{name}" for name in ("swagger-ui-bundle.js", "swagger-ui.css")),
        f"{DOCS_FILES}/favicon.png",
    }
)
"""Paths that need no key."""
FOR_OPERATORS = frozenset({"/metrics"})
_ID = re.compile(r"[A-Za-z0-9._-]{1,128}", re.ASCII)
logger = logging.getLogger("raytag.serve.requests")


@dataclass(slots=True)
class Visit:
    """One request, as the gate and the routes see it."""

    id: str
    began: float
    identity: Identity | None = None
    said: dict[str, Any] = field(default_factory=dict)
    """What the routes have to say for its log line."""


class Gate:
    """ASGI middleware around the API. ``check`` gives the identity behind an Authorization header
    or raises Unauthorized; ``most_bytes`` bounds a body."""

    def __init__(
        self,
        app: ASGIApp,
        check: Callable[[str | None], Identity],
        metrics: IngressMetrics,
        most_bytes: int,
    ) -> None:
        self._app = app
        self._check = check
        self._metrics = metrics
        self._most_bytes = most_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        path = scope["path"]
        given = headers.get("x-request-id", "")
        visit = Visit(given if _ID.fullmatch(given) else uuid.uuid4().hex, time.monotonic())
        scope.setdefault("state", {})["visit"] = visit
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message.get("headers", ()),
                    (b"x-request-id", visit.id.encode()),
                ]
            await send(message)

        try:
            visit.identity = self._admit(path, headers)
            limited = _Limited(receive, headers, self._most_bytes)
            await self._app(scope, limited, answer)
        except Problem as problem:
            if status:
                raise
            await problem.response(visit.id)(scope, receive, answer)
        except Exception:
            logger.exception("request %s failed", visit.id)
            if status:
                raise
            fault = Problem(500, f"a fault of the service; its log names request {visit.id}")
            await fault.response(visit.id)(scope, receive, answer)
        finally:
            self._note(scope["method"], path, visit, status)

    def _admit(self, path: str, headers: Headers) -> Identity | None:
        """Who asks; None for what is open to all. Raises Problem."""
        if path in OPEN:
            return None
        try:
            identity = self._check(headers.get("authorization"))
        except KeysUnread as exc:
            raise Problem(503, str(exc), retry_after=5.0) from exc
        except Unauthorized as exc:
            raise Problem(401, str(exc)) from exc
        # A route's pattern ends in $, which matches before a last newline as well.
        if not path.isprintable():
            raise Problem(404, "no path has such characters in it")
        if path in FOR_OPERATORS or identity.role == "operator":
            if path not in FOR_OPERATORS or identity.role != "operator":
                raise Problem(403, "this takes a key of the operators, who have no other routes")
            return identity
        _, version, tenant, *_ = [*path.split("/"), "", ""]
        if version == "v1" and tenant != identity.tenant:
            raise Problem(
                403, f"this key is of {identity.tenant}; it opens no other tenant's paths"
            )
        return identity

    def _note(self, method: str, path: str, visit: Visit, status: int) -> None:
        tenant = visit.identity.tenant if visit.identity else ""
        seconds = time.monotonic() - visit.began
        self._metrics.requested(
            tenant, visit.said.get("domain", ""), visit.said.get("version", ""), status, seconds
        )
        if path in OPEN:
            return
        line = {
            "request_id": visit.id,
            "method": method,
            "status": status,
            "seconds": round(seconds, 4),
            "tenant": tenant,
            "key": visit.identity.key_id if visit.identity else None,
            **visit.said,
        }
        logger.info(json.dumps(line, ensure_ascii=True))


class _Limited:
    """Receives a body up to a size. Raises Problem past it."""

    def __init__(self, receive: Receive, headers: Headers, most: int) -> None:
        self._receive = receive
        self._left = most
        stated = headers.get("content-length", "0")
        self._too_much = stated.isdecimal() and int(stated[:20]) > most
        self._most = most

    async def __call__(self) -> Message:
        message = await self._receive()
        self._left -= len(message.get("body", b""))
        if self._too_much or self._left < 0:
            raise Problem(413, f"the body is larger than {self._most:,} bytes; send less at a time")
        return message
