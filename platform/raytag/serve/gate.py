"""What every request passes before a route sees it: its id, its key, its size, its log line.

Closed by default: what is not listed as open needs a key, whatever routes there are. Knows HTTP
as ASGI has it; nothing of entities.
"""

import contextlib
import json
import logging
import re
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from raytag.serve.keys import Identity, KeysUnread, Unauthorized
from raytag.serve.limits import CONCURRENT_RETRY
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
BODIES = 4
"""Bodies of the largest size that a tenant may have under way at one ingress."""
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


@dataclass(slots=True)
class _UnderWay:
    """What a tenant has here, from a request's headers until its answer is out."""

    requests: int = 0
    bytes: int = 0
    """Of bodies, as far as they have come."""


class Gate:
    """ASGI middleware around the API. ``check`` gives the identity behind an Authorization header
    or raises Unauthorized; ``most_bytes`` bounds a body, ``most_requests`` those that a tenant has
    under way, which are counted before a body is read."""

    def __init__(
        self,
        app: ASGIApp,
        check: Callable[[str | None], Identity],
        metrics: IngressMetrics,
        most_bytes: int,
        most_requests: int,
    ) -> None:
        self._app = app
        self._check = check
        self._metrics = metrics
        self._most_bytes = most_bytes
        self._most_requests = most_requests
        self._under_way: dict[str, _UnderWay] = {}

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
            with self._counted(visit.identity) as under_way:
                limited = _Limited(receive, headers, self._most_bytes, under_way)
                try:
                    await self._app(scope, limited, answer)
                finally:
                    under_way.bytes -= limited.taken
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

    @contextlib.contextmanager
    def _counted(self, identity: Identity | None) -> Iterator[_UnderWay]:
        """With a request more. Raises Problem where the tenant has too many."""
        if identity is None:
            yield _UnderWay()
            return
        found = self._under_way.setdefault(identity.tenant, _UnderWay())
        if found.requests >= self._most_requests:
            raise Problem(
                429,
                f"{identity.tenant} has {found.requests} requests under way here, the most that "
                "there may be; wait for an answer, then ask again",
                CONCURRENT_RETRY,
            )
        found.requests += 1
        try:
            yield found
        finally:
            found.requests -= 1
            if not found.requests:
                del self._under_way[identity.tenant]

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
    """Receives a body up to a size, as long as the tenant has not too many of them under way.
    Raises Problem past it."""

    def __init__(self, receive: Receive, headers: Headers, most: int, under_way: _UnderWay) -> None:
        self._receive = receive
        self._under_way = under_way
        self.taken = 0
        """Bytes so far."""
        stated = headers.get("content-length", "0")
        self._too_much = stated.isdecimal() and int(stated[:20]) > most
        self._most = most

    async def __call__(self) -> Message:
        message = await self._receive()
        size = len(message.get("body", b""))
        self.taken += size
        self._under_way.bytes += size
        if self._too_much or self.taken > self._most:
            raise Problem(413, f"the body is larger than {self._most:,} bytes; send less at a time")
        if self._under_way.bytes > BODIES * self._most:
            raise Problem(
                429,
                f"the bodies of requests under way here are larger than {BODIES * self._most:,} "
                "bytes together; wait for an answer, then ask again",
                CONCURRENT_RETRY,
            )
        return message
