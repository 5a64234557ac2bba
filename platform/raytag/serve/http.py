"""The HTTP server of one ingress process, on a port that all ingresses of a host share.

Requests come to an ingress straight from their connections. By way of Ray Serve's proxy they
would take longer than all that an ingress does with them, be steered by headers that anybody may
send, and get a bare 500 where an ingress dies; here their connection ends, and the next one is
another ingress's. Knows sockets and uvicorn; not the API.
"""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from raytag.errors import ResourceError

IDLE_SECONDS = 75
"""A connection may be idle for so long: longer than load balancers keep theirs."""


class HttpServer(uvicorn.Server):
    """``serve()`` answers until ``should_exit`` is set, and then what is under way.

    ``drain`` is how many seconds that may take. Raises ResourceError for an address that cannot
    be listened on.
    """

    def __init__(self, app: ASGIApp, host: str, port: int, drain: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_keep_alive=IDLE_SECONDS,
                timeout_graceful_shutdown=int(drain),
            )
        )
        self._listening = _bound(host, port, shared=True)

    async def run_until_told(self) -> None:
        await self.serve([self._listening])

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """None: it is for Ray to end its processes."""
        yield


def check_port(host: str, port: int) -> None:
    """Refuse a port that somebody else on this host listens on: requests would be shared with
    them. Raises ResourceError."""
    _bound(host, port, shared=False).close()


def _bound(host: str, port: int, shared: bool) -> socket.socket:
    try:
        family, kind, number, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, number)
        # Connections that ended a moment ago hold no port.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listening.bind(address)
    except OSError as exc:
        raise ResourceError(
            f"cannot listen on {host}:{port} ({exc.strerror}); give another --host or --port"
        ) from exc
    return listening
