"""How long a registry takes as the versions of a domain grow, on a disk and over HTTP.

    python benchmarks/registry_speed.py

Fills a domain by writing records directly, then resolves by number and by alias, lists the
tenant and the latest versions, and publishes. Writes benchmarks/results/registry_speed.json:
seconds, the median of several, and how often those of the fewest versions the most take. The
server is moto on loopback, which answers one request at a time and looks through all of its
keys for a listing: its seconds are moto's more than the registry's, so requests are counted too.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from machine import machine
from raytag import storage
from raytag.model.adapter import CARD, WEIGHTS, AdapterCard, card_json
from raytag.registry.layout import Domain, key
from raytag.registry.records import Version
from raytag.registry.registry import Registry

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "registry_speed.json"
SIZES = (100, 1_000, 10_000)
WEIGHT_BYTES = 1_000_000
TYPES = 8


def write_adapter(folder: Path) -> str:
    """Of the size of a small one, with scores as training leaves them."""
    figures = {"precision": 0.9, "recall": 0.9, "f1": 0.9, "support": 9, "tp": 9, "fp": 1, "fn": 1}
    scores = {"micro": figures, "per_type": {f"TYPE{i}": figures for i in range(TYPES)}}
    card = AdapterCard(
        head="tag",
        labels=tuple(f"TYPE{i}" for i in range(TYPES)),
        base="some/base",
        revision=None,
        base_fingerprint="f" * 64,
        load_in="fp32",
        window=200,
        settings={f"setting{i}": i for i in range(40)},
        scores={"dev": scores, "test": scores},
    )
    folder.mkdir()
    save_file({"weight": np.zeros(WEIGHT_BYTES // 4, np.float32)}, folder / WEIGHTS)
    (folder / CARD).write_text(card_json(card))
    return str(folder)


def fill(domain: Domain, like: Version, first: int, last: int) -> None:
    """Records with these numbers, all of one upload."""

    def write(number: int) -> None:
        data = replace(like, number=number).to_json()
        uri = domain.uri("versions", f"{key(number)}.json")
        if "://" in uri:
            storage.write_bytes(uri, data)
        else:
            Path(uri).write_bytes(data)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write, range(first, last + 1)))


def median_seconds(do: Callable[[], object], times: int) -> float:
    found = []
    for _ in range(times):
        began = time.perf_counter()
        do()
        found.append(time.perf_counter() - began)
    return round(statistics.median(found), 5)


def requests_of(do: Callable[[], object]) -> int:
    """HTTP requests sent while it is done."""
    sent: list[bytes] = []
    LISTENING.append(sent)
    do()
    LISTENING.remove(sent)
    return sum(data.startswith((b"GET ", b"PUT ", b"HEAD ", b"DELETE ")) for data in sent)


LISTENING: list[list[bytes]] = []


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: what goes out over HTTP, a request's head and its body apart."""
    if event == "http.client.send":
        for sent in LISTENING:
            sent.append(bytes(arguments[1]) if isinstance(arguments[1], bytes) else b"")


def measure(root: str, adapter: str, sizes: tuple[int, ...], seconds: float) -> dict[str, Any]:
    """By number of versions, the seconds of each verb; sizes that would take longer to reach
    than ``seconds`` in all are left out."""
    registry, domain = Registry(root), Domain(root, "acme", "news")
    began = time.perf_counter()
    like = registry.publish(adapter, "acme", "news")
    first_publish = round(time.perf_counter() - began, 3)
    registry.promote("acme/news@1", "production")
    found: dict[str, Any] = {}
    there, filling = 1, 0.0
    for size in sizes:
        if filling * (size - there) > seconds:
            break
        start = time.perf_counter()
        fill(domain, like, there + 1, size)
        filling = (time.perf_counter() - start) / (size - there)
        middle = f"acme/news@{size // 2}"
        verbs: dict[str, Callable[[], object]] = {
            "resolve a number": lambda middle=middle: registry.resolve(middle),
            "resolve an alias": lambda: registry.resolve("acme/news@production"),
            "list the tenant": lambda: registry.domains("acme"),
            "list the latest 20": lambda: registry.versions("acme", "news", 20),
            "publish": lambda: registry.publish(adapter, "acme", "news"),
        }
        found[str(size)] = {name: median_seconds(do, 7) for name, do in verbs.items()}
        if "://" in root:
            found[str(size)]["requests"] = {name: requests_of(do) for name, do in verbs.items()}
        there = domain.latest("versions")
        print(root, size, found[str(size)], flush=True)
    fewest, most = next(iter(found)), list(found)[-1]
    growth = {
        name: round(found[most][name] / value, 1)
        for name, value in found[fewest].items()
        if name != "requests"
    }
    return {
        "first publish, with the race that tries the store": first_publish,
        "versions": found,
        f"growth from {fewest} to {most}": growth,
    }


@contextmanager
def moto() -> Iterator[str]:
    """A root on a server of its own."""
    import boto3

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "s3.py"), str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    try:
        for _ in range(300):
            with suppress(OSError):
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            time.sleep(0.1)
        boto3.client("s3").create_bucket(Bucket="registry")
        yield "s3://registry/root"
    finally:
        server.terminate()
        server.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=180, help="most to fill moto with")
    given = parser.parse_args()
    sys.addaudithook(hear)
    results: dict[str, Any] = {"machine": machine(), "adapter_bytes": WEIGHT_BYTES}
    with tempfile.TemporaryDirectory() as folder:
        adapter = write_adapter(Path(folder) / "adapter")
        results["disk"] = measure(f"{folder}/registry", adapter, SIZES, given.seconds)
        with moto() as root:
            results["moto"] = measure(root, adapter, SIZES, given.seconds)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
