"""The client against hosts that vanish: nothing comes back from them, not even a refusal."""

import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from hosts import Host, Network

pytestmark = pytest.mark.cluster

PATH = str(Path(__file__).parents[2] / "platform")
PORT = 8000
BUDGET = 15.0
SERVE = f"""
import http.server, json, os, sys, threading
NAME = os.uname().nodename
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_POST(self):
        (text,) = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["texts"]
        print(text, flush=True)
        if text == "wait at " + NAME:
            self.rfile.read(1)
        entity = {{"start": 0, "end": len(text), "label": NAME, "text": text, "score": 1}}
        body = json.dumps({{"documents": [{{"entities": [entity]}}]}}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): ...
server = http.server.ThreadingHTTPServer(("", {PORT}), Handler)
print("ready", flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
os._exit(0)
"""
ASK = f"""
import asyncio, sys, time, raytag
kind, name, tries, timeout = sys.argv[1:]
client = getattr(raytag, kind)(
    f"http://{{name}}:{PORT}", "rt~acme~k1~c2VjcmV0LXNlY3JldA",
    domain="news", tries=int(tries), timeout=float(timeout), insecure=True,
)
async def ask():
    print("ready", flush=True)
    for line in sys.stdin:
        began = time.monotonic()
        try:
            found = client.extract([line.strip()])
            ((entity,),) = found if kind == "Client" else await found
            said = entity.label
        except raytag.client.ServiceError as exc:
            said = exc
        print(f"{{time.monotonic() - began:.1f}} {{said}}", flush=True)
asyncio.run(ask())
"""


class Program:
    """Some Python on a host, with which lines are exchanged."""

    def __init__(self, host: Host, *command: str) -> None:
        self.process = host.start(
            [sys.executable, "-c", *command],
            {"PYTHONPATH": PATH},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self.hear() == "ready"

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.communicate(timeout=30)

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


class World:
    """Two hosts that answer to the name ``service``, and one that asks it."""

    def __init__(self, network: Network) -> None:
        self.hosts = {name: network.add(name) for name in ("first", "second")}
        self.programs: dict[str, Program] = {}
        self.asker = network.add("asker")
        with (self.asker.own / "hosts").open("a") as file:
            file.writelines(f"{host.address} service\n" for host in self.hosts.values())
        (self.asker.own / "resolv.conf").write_text("nameserver 127.0.0.1\n")

    def ask(
        self, kind: str, name: str = "service", tries: int = 3, timeout: float = BUDGET
    ) -> Program:
        return Program(self.asker, ASK, kind, name, str(tries), str(timeout))


@pytest.fixture(scope="module")
def hosts_of_service(network: Network) -> World:
    return World(network)


@pytest.fixture
def world(hosts_of_service: World) -> Iterator[World]:
    with ExitStack() as stack:
        for name, host in hosts_of_service.hosts.items():
            hosts_of_service.programs[name] = stack.enter_context(Program(host, SERVE))
            stack.callback(host.restore)
        yield hosts_of_service


@pytest.fixture(params=["Client", "AsyncClient"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def heard(client: Program) -> tuple[float, str]:
    """(seconds a call took, who answered or what went wrong)."""
    seconds, _, said = client.hear().partition(" ")
    return float(seconds), said


def test_a_name_whose_first_address_is_dead_is_found_at_the_other(world: World, kind: str) -> None:
    with world.ask(kind) as client:
        client.say("a text")
        _, first = heard(client)
    world.hosts[first].cut()
    with world.ask(kind, tries=1) as client:
        client.say("a text")
        assert heard(client)[1] in world.hosts.keys() - {first}


def test_a_request_whose_host_vanishes_is_asked_of_another(world: World, kind: str) -> None:
    with world.ask(kind) as client:
        client.say("a text")
        _, first = heard(client)
        assert world.programs[first].hear() == "a text"
        client.say(f"wait at {first}")
        assert world.programs[first].hear() == f"wait at {first}"
        world.hosts[first].cut()
        assert heard(client)[1] in world.hosts.keys() - {first}


def test_a_connection_whose_host_vanished_is_given_up(world: World, kind: str) -> None:
    with world.ask(kind) as client:
        client.say("a text")
        _, first = heard(client)
        world.hosts[first].cut()
        client.say("a text")
        assert heard(client)[1] in world.hosts.keys() - {first}


def test_a_call_ends_by_its_time_though_all_hosts_vanish(world: World, kind: str) -> None:
    with world.ask(kind, timeout=4) as client:
        client.say("a text")
        _, first = heard(client)
        client.say(f"wait at {first}")
        assert [world.programs[first].hear() for _ in range(2)][1] == f"wait at {first}"
        for host in world.hosts.values():
            host.cut()
        seconds, said = heard(client)
        assert "no answer" in said
        assert seconds < 5


def test_a_call_ends_by_its_time_though_no_name_server_answers(world: World, kind: str) -> None:
    with world.asker.network():
        mute = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        mute.bind(("127.0.0.1", 53))
    with mute, world.ask(kind, name="elsewhere", timeout=1) as client:
        client.say("a text")
        seconds, said = heard(client)
        assert "no connection within 0.2 s" in said
        assert seconds < 2
