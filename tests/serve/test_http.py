"""An ingress's own HTTP server: its port, and who may share it."""

import asyncio
import socket

import httpx
import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Receive, Scope, Send

from raytag.errors import ResourceError
from raytag.serve.http import HttpServer, check_port
from s3 import free_port


class Slow:
    """Answers when it is let."""

    def __init__(self) -> None:
        self.asked, self.let = asyncio.Event(), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.asked.set()
        await self.let.wait()
        await PlainTextResponse("answered")(scope, receive, send)


def test_a_port_that_somebody_listens_on_is_refused_in_a_line() -> None:
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as other:
        port = other.getsockname()[1]
        with pytest.raises(ResourceError, match=f"cannot listen on 127.0.0.1:{port} .*--port"):
            check_port("127.0.0.1", port)
    check_port("127.0.0.1", port)


def test_a_host_that_is_none_of_this_machine_is_refused_in_a_line() -> None:
    with pytest.raises(ResourceError, match="cannot listen on 192.0.2.77:8000 .*--host"):
        check_port("192.0.2.77", 8000)


def test_what_is_under_way_is_answered_and_another_takes_the_next() -> None:
    async def run() -> None:
        port = free_port()
        apps = Slow(), Slow()
        servers = [HttpServer(app, "127.0.0.1", port, drain=10) for app in apps]
        tasks = [asyncio.create_task(server.run_until_told()) for server in servers]
        while not all(server.started for server in servers):
            await asyncio.wait(tasks, timeout=0.01)
        async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
            first = asyncio.create_task(client.get("/"))
            waits = [asyncio.create_task(app.asked.wait()) for app in apps]
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            one = 0 if apps[0].asked.is_set() else 1
            servers[one].should_exit = True
            while any(listening.is_serving() for listening in servers[one].servers):
                await asyncio.wait([tasks[one]], timeout=0.01)
            apps[1 - one].let.set()
            assert (await client.get("/")).text == "answered"
            apps[one].let.set()
            assert (await first).text == "answered"
            servers[1 - one].should_exit = True
            await asyncio.gather(*tasks)
            await asyncio.gather(*waits)

    asyncio.run(asyncio.wait_for(run(), 30))
