"""Serving on two hosts, one of which dies or is cut off, while clients go on asking."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml
from hosts import Host, Relay
from ray_hosts import ROOT, RayHosts, finished, until
from test_adapter import make
from tiny import encoder

from raytag.client import Client, ServiceError
from raytag.model.adapter import load_adapter
from raytag.model.tagger import Tagger
from raytag.registry.registry import Registry
from raytag.serve.keys import Keys

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
PORT = 8000
THREADS = 8
WORDS = "Zoë Müller met Tim Cook in Seoul 🙂 , and Apple opened an office in 東京 .".split()


@dataclass(frozen=True)
class Service:
    hosts: RayHosts
    key: str
    adapter: Path

    def where(self, deployment: str) -> list[str]:
        """Addresses of the hosts where its replicas run."""
        said = self.hosts.ask("/api/serve/applications/")["applications"]["raytag"]
        replicas = said["deployments"][deployment]["replicas"]
        return [one["node_ip"] for one in replicas if one["state"] == "RUNNING"]

    def whole(self) -> bool:
        """All replicas are up, and there is a model on each worker."""
        workers = sorted(worker.address for worker in self.hosts.workers)
        up = sorted(self.where("Engine")) == workers
        return up and len(self.where("Ingress")) == 2 and len(self.where("Switchboard")) == 1


@pytest.fixture(scope="module")
def service(
    hosts: RayHosts, s3: "S3Client", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Service]:
    """deploy/serve.yaml with a base, a registry and keys of the test's, deployed by the client."""
    folder = tmp_path_factory.mktemp("service")
    adapter = make(folder / "adapter", encoder(folder / "base"), "tag").folder
    s3.create_bucket(Bucket="serving")
    registry = Registry("s3://serving/registry")
    registry.publish(str(adapter), "acme", "news")
    registry.promote("acme/news@1", "production")
    key = Keys("s3://serving/keys").create("acme", "extract").text
    config = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    config["applications"][0]["args"] = {
        "base": str(folder / "base"),
        "registry": "s3://serving/registry",
        "keys": "s3://serving/keys",
        "replicas": "2",
        "ingresses": 2,
        "device": "cpu",
    }
    (folder / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    hosts.have_workers(2)
    finished(hosts.on_client("serve", "deploy", str(folder / "serve.yaml")))
    made = Service(hosts, key, adapter)
    until(lambda: _settled(made), 120, "the application is up")
    yield made
    finished(hosts.on_client("serve", "shutdown", "--yes"))


def _settled(service: Service) -> bool:
    applications = service.hosts.ask("/api/serve/applications/")["applications"]
    return applications.get("raytag", {}).get("status") == "RUNNING" and service.whole()


@pytest.fixture
def mended(service: Service) -> Service:
    """The service with two workers that are up."""
    service.hosts.have_workers(2)
    until(service.whole, 120, "a model on each worker")
    return service


@dataclass
class Seen:
    """What clients met with, by the second since they began."""

    answered: list[float] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    failed: list[tuple[float, str]] = field(default_factory=list)

    def __str__(self) -> str:
        every = len(self.answered) + len(self.failed)
        kinds = Counter(said.partition(" (")[0] for _, said in self.failed)
        whens = Counter(int(since) for since, _ in self.failed)
        return f"{len(self.failed)} of {every} failed: {dict(kinds)}, asked at {dict(whens)}"


def asked(service: Service, seconds: float, at: dict[float, Callable[[], object]]) -> Seen:
    """Ask from the client's host for so long, with what is to happen at these seconds.

    Requests go through a load balancer without health checks: connections go to the two workers
    in turn, and on to the other where one is not to be had within a second.
    """
    rng, seen, lock = random.Random(1), Seen(), threading.Lock()
    texts = [" ".join(rng.choices(WORDS, k=rng.randint(1, 40))) for _ in range(20)]
    tagger = Tagger.of(load_adapter(service.adapter))
    expected = [[(e.start, e.end, e.label) for e in said] for said in tagger.tag(texts)]
    client_host = service.hosts.client
    workers = [(worker.address, PORT) for worker in service.hosts.workers]
    began = time.monotonic()

    def ask(seed: int) -> None:
        mine = random.Random(seed)
        with (
            client_host.network(),
            Client(f"http://127.0.0.1:{PORT}", service.key, domain="news") as client,
        ):
            while time.monotonic() < began + seconds:
                i, since = mine.randrange(len(texts)), time.monotonic() - began
                try:
                    (found,) = client.extract([texts[i]])
                except ServiceError as exc:
                    with lock:
                        seen.failed.append((since, str(exc)))
                    continue
                right = [(e.start, e.end, e.label) for e in found] == expected[i]
                with lock:
                    seen.answered.append(since)
                    if not right:
                        seen.wrong.append(f"{texts[i]!r}: {found}")

    listener = client_host.listen(PORT, "127.0.0.1")
    with Relay(listener, workers, client_host), ThreadPoolExecutor(THREADS) as pool:
        load = [pool.submit(ask, seed) for seed in range(THREADS)]
        for when, do in at.items():
            time.sleep(max(0.0, began + when - time.monotonic()))
            do()
        for one in load:
            one.result()
    return seen


def _loaded(service: Service) -> Host:
    """The worker whose loss hurts most."""
    ingresses = service.where("Ingress")
    return max(service.hosts.workers, key=lambda worker: ingresses.count(worker.address))


def test_a_host_is_killed_and_requests_succeed(mended: Service) -> None:
    victim = _loaded(mended)
    seen = asked(mended, 60, {15.0: lambda: mended.hosts.kill(victim)})
    assert not seen.wrong, seen.wrong[:3]
    print(seen)
    every = len(seen.answered) + len(seen.failed)
    assert every >= 2000, f"only {every} requests: the load is too low to tell"
    assert len(seen.failed) <= 0.001 * every, str(seen)


def test_a_host_that_is_cut_off_is_missed_soon(mended: Service) -> None:
    victim = _loaded(mended)
    try:
        seen = asked(mended, 75, {15.0: victim.cut})
    finally:
        victim.restore()
        mended.hosts.kill(victim)
    assert not seen.wrong, seen.wrong[:3]
    last = max((since for since, _ in seen.failed), default=15.0)
    print(f"{seen}; the last {last - 15:.1f} s after the cut")
    assert last < 15 + 40, str(seen)
    assert sum(since > 15 + 40 for since in seen.answered) > 200
