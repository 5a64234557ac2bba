"""Every route there is, with every kind of key: who is let in, and who is not."""

from collections.abc import Iterator
from typing import Any, cast

import httpx
import pytest
from serve_cases import Served
from starlette.routing import BaseRoute, Mount, Route

from raytag.serve.api import build_api
from raytag.serve.front import Front
from raytag.serve.metrics import IngressMetrics
from raytag.serve.settings import ServeSettings

KEYS = (None, "wrong", "globex", "acme", "release", "operator")
"""None at all; one that is not known; another tenant's; one of acme's that may only read; acme's
that may move aliases; an operator's."""
TEXTS = {"texts": ["Seoul"]}
ALIAS = "/v1/{tenant}/{domain}/aliases/{alias}"


def opened(*statuses: int) -> dict[str | None, int]:
    return dict(zip(KEYS, statuses, strict=True))


TO_ALL = opened(200, 200, 200, 200, 200, 200)
TO_KEYS = opened(401, 401, 200, 200, 200, 403)
TO_TENANT = opened(401, 401, 403, 200, 200, 403)
TO_RELEASE = opened(401, 401, 403, 403, 409, 403)
"""409 for who is let in: the alias stands for nothing that could be moved."""
TO_OPERATORS = opened(401, 401, 403, 403, 403, 200)
WHO: dict[tuple[str, str], dict[str | None, int]] = {
    ("GET", "/"): TO_ALL,
    ("GET", "/healthz"): TO_ALL,
    ("GET", "/-/healthz"): TO_ALL,
    ("GET", "/readyz"): TO_ALL,
    ("GET", "/docs"): TO_ALL,
    ("GET", "/openapi.json"): TO_ALL,
    ("HEAD", "/openapi.json"): TO_ALL,
    ("GET", "/docs/files"): TO_ALL,
    ("GET", "/docs/redirect"): TO_KEYS,
    ("GET", "/metrics"): TO_OPERATORS,
    ("GET", "/v1/{tenant}/models"): TO_TENANT,
    ("POST", "/v1/{tenant}/{domain}/entities"): TO_TENANT,
    ("GET", ALIAS): TO_TENANT,
    ("POST", ALIAS): TO_RELEASE,
    ("POST", f"{ALIAS}/rollback"): TO_RELEASE,
    ("POST", f"{ALIAS}/canary"): TO_RELEASE,
    ("DELETE", f"{ALIAS}/canary"): opened(401, 401, 403, 403, 200, 403),
}
BODIES: dict[tuple[str, str], dict[str, Any]] = {
    ("POST", "/v1/{tenant}/{domain}/entities"): TEXTS,
    ("POST", ALIAS): {"version": 1},
    ("POST", f"{ALIAS}/canary"): {"version": 1, "share": 0.1},
}


def routes() -> Iterator[tuple[str, str]]:
    """(method, path) of each route of the application; a mount is one of its own."""
    nothing = cast(Any, None)  # is asked only once a request comes
    front = Front(
        id="x",
        settings=ServeSettings(base="x"),
        engines=nothing,
        switchboard=nothing,
        metrics=IngressMetrics(),
        snapshots=nothing,
    )
    found: list[BaseRoute] = build_api(front).routes
    for route in found:
        if isinstance(route, Route):
            yield from ((method, route.path) for method in route.methods or ())
        else:
            assert isinstance(route, Mount), f"what is a {route!r}?"
            yield "GET", route.path


def test_every_route_has_its_line_in_the_table() -> None:
    assert sorted(WHO) == sorted(routes())


@pytest.mark.parametrize(("method", "path"), WHO)
def test_a_route_opens_to_those_it_is_for(served: Served, method: str, path: str) -> None:
    # A domain of nothing for what moves aliases: no other test sees it.
    moves = "{alias}" in path and method != "GET"
    url = path.format(tenant="acme", domain="nothing" if moves else "news", alias="production")
    if path == "/docs/files":
        url = "/docs/files/swagger-ui.css"
    found = {}
    for key in KEYS:
        headers = {"Authorization": f"Bearer {served.keys[key]}"} if key else {}
        content = BODIES.get((method, path))
        found[key] = httpx.request(
            method, served.url + url, headers=headers, json=content, timeout=30
        ).status_code
    assert found == WHO[method, path]
