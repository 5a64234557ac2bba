"""The load on a service, in a process of its own, and what it heard.

``python serve_load.py`` reads a plan from standard input and writes what it heard: closed loops on
keep-alive connections, or Poisson arrivals whose latency counts from the moment they were planned
for. Any status that was not expected ends it. Knows HTTP/1.1 and /proc; nothing of any service.
"""

import asyncio
import base64
import json
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

MOST_CONNECTIONS = 1000
DRAWN = 20
"""Of so many answers one is kept to be compared."""
CPU_TICK = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Requests of one kind: a closed loop on ``connections``, or ``rate`` arrivals a second."""

    requests: Sequence[bytes]
    connections: int = 0
    rate: float = 0.0
    expected: tuple[int, ...] = (200,)
    """Statuses."""


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What came back on one stream within the time that counts."""

    rate: float
    """Answers per second, of any status."""
    latencies: dict[int, list[float]]
    """Seconds, by status."""
    samples: list[tuple[int, str]]
    """Some answers of 200: the number of the request, and the body."""
    lag: float
    """Seconds that open arrivals were sent late, in the median."""
    ended: int
    """Answers in all, what came before and after that time too."""

    def goodput(self) -> float:
        """Answers of 200 per second."""
        return self.rate * len(self.latencies.get(200, ())) / max(1, self.count)

    @property
    def count(self) -> int:
        return sum(map(len, self.latencies.values()))

    def told(self, status: int = 200) -> dict[str, float]:
        seconds = sorted(self.latencies.get(status, ()))
        if not seconds:
            return {"count": 0}
        return {
            "count": len(seconds),
            "p50_ms": round(1000 * statistics.median(seconds), 2),
            "p99_ms": round(1000 * seconds[min(len(seconds) - 1, int(0.99 * len(seconds)))], 2),
        }


def post(path: str, content: object, key: str | None = None) -> bytes:
    """A request as it goes over the wire."""
    body = json.dumps(content, ensure_ascii=False).encode()
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    if key:
        head.append(f"Authorization: Bearer {key}")
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


class Connection(asyncio.Protocol):
    """One keep-alive connection, one request at a time."""

    _LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)\r\n", re.IGNORECASE)

    def __init__(self, answered: "Callable[[Connection, int, bytes], None]") -> None:
        self._answered = answered
        self._buffer = bytearray()
        self._head = 0
        self._is_busy = False
        self.note: Any = None
        """Whatever the sender wants to know when the answer is there."""

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def send(self, request: bytes, note: Any) -> None:
        self.note = note
        self._is_busy = True
        self.transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        body = self._body()
        if body is None:
            return
        status = int(self._buffer[9:12])
        self._buffer.clear()  # nothing follows an answer before the next request
        self._head = 0
        self._is_busy = False
        self._answered(self, status, body)

    def _body(self) -> bytes | None:
        """Of the answer, once it is all there."""
        if not self._head:
            self._head = self._buffer.find(b"\r\n\r\n") + 4
            if self._head < 4:
                self._head = 0
                return None
        length = self._LENGTH.search(self._buffer, 0, self._head)
        if length is not None:
            whole = len(self._buffer) >= self._head + int(length[1])
            return bytes(self._buffer[self._head :]) if whole else None
        if not self._buffer.endswith(b"\r\n0\r\n\r\n"):
            return None
        parts, at = [], self._head  # chunks, each after its size
        while True:
            end = self._buffer.index(b"\r\n", at)
            size = int(self._buffer[at:end], 16)
            if not size:
                return b"".join(parts)
            parts.append(bytes(self._buffer[end + 2 : end + 2 + size]))
            at = end + 2 + size + 2

    def connection_lost(self, exc: Exception | None) -> None:
        if self._is_busy:
            print(f"a connection was lost with a request: {exc!r}", file=sys.stderr)
            os._exit(1)


class Load:
    """One stream under way."""

    def __init__(self, port: int, stream: Stream, warm: float, seconds: float) -> None:
        self._port = port
        self._stream = stream
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._begun = time.perf_counter()
        self._since = self._begun + warm
        self._until = self._since + seconds
        self._sent = self._ended = 0
        self._idle: list[Connection] = []
        self._open = 0
        self._lags: list[float] = []
        self._done = asyncio.Event()
        self.latencies: dict[int, list[float]] = {}
        self.samples: list[tuple[int, str]] = []

    async def run(self) -> Heard:
        if self._stream.connections:
            for _ in range(self._stream.connections):
                self._next(await self._connection())
            await self._done.wait()
        else:
            await self._arrivals()
        count = sum(map(len, self.latencies.values()))
        lag = statistics.median(self._lags) if self._lags else 0.0
        return Heard(
            rate=count / self._seconds,
            latencies=self.latencies,
            samples=self.samples,
            lag=lag,
            ended=self._ended,
        )

    async def _connection(self) -> Connection:
        self._open += 1
        _, made = await self._loop.create_connection(
            lambda: Connection(self._answered), "127.0.0.1", self._port
        )
        return made

    def _next(self, connection: Connection) -> None:
        """The closed loop's next request, if there is to be one."""
        now = time.perf_counter()
        if now >= self._until:
            connection.transport.close()
            self._open -= 1
            if not self._open:
                self._done.set()
            return
        self._send(connection, now)

    def _send(self, connection: Connection, planned: float) -> None:
        number = self._sent % len(self._stream.requests)
        self._sent += 1
        connection.send(self._stream.requests[number], (number, planned))

    async def _arrivals(self) -> None:
        """Poisson. A connection is opened where none is idle; what waits for one is not sent
        later than planned without its being counted."""
        chance = random.Random(0)
        planned = self._begun
        opening: set[asyncio.Task[None]] = set()
        while planned < self._until:
            planned += chance.expovariate(self._stream.rate)
            pause = planned - time.perf_counter()
            if pause > 0:
                await asyncio.sleep(pause)
            if self._idle:
                self._sent_at(self._idle.pop(), planned)
                continue
            if self._open >= MOST_CONNECTIONS:
                raise RuntimeError(f"{MOST_CONNECTIONS} requests are under way: no open loop")
            task = asyncio.create_task(self._sent_anew(planned))
            opening.add(task)
            task.add_done_callback(opening.discard)
        await asyncio.gather(*opening)
        while self._ended < self._sent:
            await asyncio.sleep(0.01)

    async def _sent_anew(self, planned: float) -> None:
        self._sent_at(await self._connection(), planned)

    def _sent_at(self, connection: Connection, planned: float) -> None:
        self._lags.append(time.perf_counter() - planned)
        self._send(connection, planned)

    def _answered(self, connection: Connection, status: int, body: bytes) -> None:
        now = time.perf_counter()
        number, began = connection.note
        self._ended += 1
        if status not in self._stream.expected:
            print(f"request {number}: status {status}: {body[:500]!r}", file=sys.stderr)
            os._exit(1)
        is_open = not self._stream.connections
        counted = began if is_open else now  # the arrivals of the time, or its answers
        if self._since <= counted < self._until:
            self.latencies.setdefault(status, []).append(now - began)
            if status == 200 and self._ended % DRAWN == 0:
                self.samples.append((number, body.decode()))
        if is_open:
            self._idle.append(connection)
        else:
            self._next(connection)


def main() -> None:
    """The load's process: a plan from standard input, what was heard to standard output."""
    import uvloop

    plan = json.load(sys.stdin)
    streams = [
        Stream(**{**one, "requests": [base64.b64decode(r) for r in one["requests"]]})
        for one in plan["streams"]
    ]
    given = (plan["warm"], plan["seconds"])

    async def run() -> list[Heard]:
        loads = [Load(plan["port"], stream, *given) for stream in streams]
        return list(await asyncio.gather(*(one.run() for one in loads)))

    began = time.monotonic()
    heard = uvloop.run(run())
    used = resource.getrusage(resource.RUSAGE_SELF)
    share = (used.ru_utime + used.ru_stime) / (time.monotonic() - began)
    json.dump({"heard": [asdict(one) for one in heard], "core_share": share}, sys.stdout)


@dataclass(frozen=True, kw_only=True)
class Site:
    """A service that runs: its port, and the process all of its others come from."""

    port: int
    root: int


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What one run of the load heard, and what it took."""

    heard: list[Heard]
    load_core_share: float
    """Of one core, by the load itself."""
    cpu_seconds: dict[str, float]
    """Of each process of the service, while the load ran."""

    def cpu_ms(self) -> dict[str, float]:
        """Of each process, per answer; what takes next to nothing is left out."""
        answers = max(1, sum(one.ended for one in self.heard))
        per = {name: 1000 * used / answers for name, used in self.cpu_seconds.items()}
        return {name: round(ms, 3) for name, ms in sorted(per.items()) if ms >= 0.01}


def run_load(site: Site, streams: Sequence[Stream], seconds: float, warm: float = 3.0) -> Reading:
    """``warm`` seconds are let pass before it counts."""
    plan = {
        "port": site.port,
        "warm": warm,
        "seconds": seconds,
        "streams": [
            {**asdict(s), "requests": [base64.b64encode(r).decode() for r in s.requests]}
            for s in streams
        ],
    }
    before = cpu_seconds(site.root)
    done = subprocess.run(
        [sys.executable, __file__],
        input=json.dumps(plan),
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit("the load ended with an answer that was not expected; see above")
    after = cpu_seconds(site.root)
    found = json.loads(done.stdout)
    heard = [
        Heard(
            **{
                **one,
                "latencies": {int(k): v for k, v in one["latencies"].items()},
                "samples": [(number, body) for number, body in one["samples"]],
            }
        )
        for one in found["heard"]
    ]
    return Reading(
        heard=heard,
        load_core_share=round(found["core_share"], 3),
        cpu_seconds={name: used - before.get(name, 0.0) for name, used in after.items()},
    )


def processes(root: int) -> Iterator[tuple[int, str, float]]:
    """(id, what it is, processor seconds) of a process and all that came from it."""
    found: dict[int, tuple[int, str, float]] = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdecimal():
            continue
        try:
            stat = (folder / "stat").read_text()
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        after = stat[stat.rindex(")") + 2 :].split()
        seconds = (int(after[11]) + int(after[12])) / CPU_TICK
        found[int(folder.name)] = (int(after[1]), title, seconds)
    wanted = {root}
    grown = 0
    while grown != len(wanted):
        grown = len(wanted)
        wanted |= {pid for pid, (parent, _, _) in found.items() if parent in wanted}
    for pid in (wanted & found.keys()) - {os.getpid()}:
        _, title, seconds = found[pid]
        yield pid, _kind(title), seconds


def _kind(title: str) -> str:
    if named := re.match(r"ray::ServeReplica:[^:]*:(\w+)", title):
        return named[1].lower()
    if named := re.match(r"ray::(\w+)", title):
        return {"ServeController": "controller"}.get(named[1], "ray")
    words = {"raylet/raylet": "raylet", "gcs_server": "gcs", "serve_sites.py ": "server"}
    return next((kind for word, kind in words.items() if word in title), "ray")


def cpu_seconds(root: int) -> dict[str, float]:
    used: Counter[str] = Counter()
    for _, kind, seconds in processes(root):
        used[kind] += seconds
    return dict(used)


def resident_mib(root: int, kind: str) -> float:
    """Memory of the one process of that kind."""
    (pid,) = (pid for pid, name, _ in processes(root) if name == kind)
    status = Path(f"/proc/{pid}/status").read_text()
    return round(int(status.partition("VmRSS:")[2].split()[0]) / 1024, 1)


if __name__ == "__main__":
    main()
