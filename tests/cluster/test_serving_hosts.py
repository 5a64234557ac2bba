"""Serving as it is documented, on two hosts, one of which is lost: clients get their answers."""

import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hosts import Relay
from ray_hosts import ROOT, RayHosts, finished
from test_adapter import make
from tiny import encoder

from asking import Asking
from raytag import storage
from raytag.registry.registry import Registry
from raytag.serve.keys import Keys
from waiting import until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]
WHOLE = {"Engine": 2, "Ingress": 2, "Switchboard": 1}
"""How many replicas there are to be."""
BEFORE, AFTER = 1000, 1000
"""Requests that are answered before a host is lost, and after that was noticed."""


@dataclass(frozen=True, kw_only=True)
class Deployed:
    """The application of deploy/serve.yaml, with a base, a registry and keys on S3."""

    hosts: RayHosts
    port: int
    key: str
    adapter: Path
    """Version 1 of acme/news, which is production."""

    def application(self) -> dict[str, Any]:
        found: dict[str, Any] = self.hosts.ask("/api/serve/applications/")["applications"]
        return found["raytag"]

    def places(self) -> dict[str, set[str]]:
        """Addresses of the hosts that run a replica, by deployment."""
        return {
            name: {one["node_ip"] for one in deployment["replicas"] if one["state"] == "RUNNING"}
            for name, deployment in self.application()["deployments"].items()
        }

    def whole(self) -> bool:
        """Whether all replicas run, none of them on a host that is gone."""
        there = self.hosts.alive()
        found = {name: len(places & there) for name, places in self.places().items()}
        return found == WHOLE


@pytest.fixture(scope="module")
def deployed(
    hosts: RayHosts, s3: "S3Client", tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Deployed]:
    folder = tmp_path_factory.mktemp("serving")
    s3.create_bucket(Bucket="serving")
    adapter = make(folder / "adapter", encoder(folder / "base"), "tag").folder
    storage.upload_folder(folder / "base", "s3://serving/base")
    registry = Registry("s3://serving/registry")
    registry.promote(str(registry.publish(str(adapter), "acme", "news")), "production")
    key = Keys("s3://serving/keys").create("acme", "extract").text

    config = yaml.safe_load((ROOT / "deploy" / "serve.yaml").read_text(encoding="utf-8"))
    arguments = config["applications"][0]["args"]
    del arguments["limits"]
    arguments |= {name: f"s3://serving/{name}" for name in ("base", "registry", "keys")}
    arguments |= {"replicas": "2", "device": "cpu"}
    (folder / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    # As on a cluster whose groups begin at nothing: the machines come when they are asked for.
    hosts.have_workers(0)
    finished(hosts.on_client("serve", "deploy", str(folder / "serve.yaml")))
    made = Deployed(hosts=hosts, port=arguments["port"], key=key, adapter=adapter)
    assert made.application()["status"] == "DEPLOYING"
    yield made
    finished(hosts.on_client("serve", "shutdown", "--yes"))


@pytest.mark.parametrize("how", ["killed", "cut off"])
def test_requests_succeed_though_one_of_two_hosts_is_lost(deployed: Deployed, how: str) -> None:
    hosts = deployed.hosts
    hosts.have_workers(2)
    until(deployed.whole, 120, f"replicas run: {WHOLE}")
    # As a load balancer that ends connections itself, and passes over what takes none.
    targets = [(host.address, deployed.port) for host in (hosts.head, *hosts.workers)]
    listener = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    with (
        Relay(listener, targets, hosts.client),
        Asking(url, deployed.key, {1: deployed.adapter}) as asking,
    ):
        seen = asking.seen
        until(lambda: seen.answered >= BEFORE, 120, "requests answered")
        places = deployed.places()
        lost = next(host for host in hosts.workers if host.address in places["Ingress"])
        assert lost.address in places["Engine"]
        assert seen.under_way >= 2
        if how == "cut off":
            lost.cut()
        else:
            lost.kill()
        try:
            alive = hosts.alive
            missed = until(lambda: lost.address not in alive(), 90, f"{lost.name} is missed")
            enough = seen.answered + AFTER
            until(lambda: seen.answered >= enough, 120, "requests answered")
        finally:
            hosts.kill(lost)
    print(f"{how}, missed after {missed:.0f} s: {seen}", *seen.failed, sep="\n")
    seen.check()
