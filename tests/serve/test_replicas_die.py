"""Replicas that are killed while they serve, and keys that are revoked meanwhile."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from replicas import replicas
from serve_cases import Served, write_adapter
from tiny import encoder

from asking import Asking
from raytag.local import LocalCluster
from raytag.registry.registry import Registry
from raytag.serve.keys import Keys
from s3 import free_port

ROOT = Path(__file__).parents[2]
WHOLE = {"Engine": 2, "Ingress": 2, "Switchboard": 1}
"""How many replicas there are to be."""
KILLS = 12
BETWEEN = 10.0
SOON = 5.0
"""Seconds after which all ingresses have read the keys again."""


@dataclass(frozen=True, kw_only=True)
class Doubled:
    """An application with two of each of what there can be two of."""

    cluster: LocalCluster
    url: str
    key: str
    versions: dict[int, Path]
    """Adapters by the versions of acme/news they are; production is 1."""


@pytest.fixture
def doubled(s3: object, tmp_path: Path) -> Iterator[Doubled]:
    base = encoder(tmp_path / "base")
    registry = Registry(str(tmp_path / "registry"))
    versions = {1: tmp_path / "first", 2: tmp_path / "second"}
    for seed, (number, folder) in zip((0, 2), versions.items(), strict=True):
        write_adapter(folder, base, seed)
        assert registry.publish(str(folder), "acme", "news").number == number
    registry.promote("acme/news@1", "production")
    key = Keys(str(tmp_path / "keys")).create("acme", "extract").text
    port = free_port()
    with LocalCluster(cpus=4) as cluster:
        command = [sys.executable, "jobs/serve.py", "--replicas=2", "--ingresses=2"]
        command += [f"--{name}={tmp_path / name}" for name in ("base", "registry", "keys")]
        process = subprocess.Popen(
            [*command, f"--port={port}"],
            cwd=ROOT,
            env={**cluster.environment, "OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stdout is not None
        try:
            assert any("serving on" in line for line in process.stdout), "it did not start"
            url = f"http://127.0.0.1:{port}"
            yield Doubled(cluster=cluster, url=url, key=key, versions=versions)
        finally:
            process.terminate()
            process.wait(60)


def kill_one(cluster: LocalCluster, killed: list[str], rng: random.Random) -> str:
    """Kill a replica of the deployment whose turn it is; it waits for its turn until all of its
    replicas are there again, as a busy machine may take longer than the time between two kills.
    Gives its name."""
    there = replicas(cluster)
    whole = [kind for kind, count in WHOLE.items() if list(there.values()).count(kind) >= count]
    assert whole, f"nothing is whole, after {killed}: {there}"
    kind = min(
        whole, key=lambda kind: max((i for i, k in enumerate(killed) if k == kind), default=-1)
    )
    os.kill(rng.choice(sorted(pid for pid, k in there.items() if k == kind)), signal.SIGKILL)
    return kind


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_requests_succeed_though_a_replica_is_killed_every_ten_seconds(doubled: Doubled) -> None:
    rng = random.Random(1)
    at_once: list[int] = []
    killed: list[str] = []
    with Asking(doubled.url, doubled.key, doubled.versions) as asking:
        for _ in range(KILLS):
            time.sleep(BETWEEN)
            at_once.append(asking.seen.under_way)
            killed.append(kill_one(doubled.cluster, killed, rng))
        time.sleep(BETWEEN)
    assert min(at_once) >= 2, f"too few requests were under way at a kill: {at_once}"
    assert set(killed) == set(WHOLE)
    asking.seen.check()


def test_a_revoked_key_is_refused_within_seconds(served: Served) -> None:
    new = served.key_store.create("acme", "extract")

    def status() -> int:
        return httpx.get(
            f"{served.url}/v1/acme/models",
            headers={"Authorization": f"Bearer {new.text}"},
            timeout=30,
        ).status_code

    def await_status(wanted: int) -> None:
        began = time.monotonic()
        while status() != wanted:
            assert time.monotonic() < began + SOON, f"not {wanted} after {SOON} seconds"

    await_status(200)
    assert served.key_store.revoke(new.key.id)
    await_status(401)


def test_while_the_switchboard_is_dead_the_others_figures_are_told_and_no_move_is_a_fault(
    served: Served, cluster: LocalCluster
) -> None:
    operator = {"Authorization": f"Bearer {served.keys['operator']}"}
    release = {"Authorization": f"Bearer {served.keys['release']}"}
    alias = f"{served.url}/v1/acme/other/aliases/production"
    assert httpx.get(alias, headers=release, timeout=30).status_code == 200
    for pid, kind in replicas(cluster).items():
        if kind == "Switchboard":
            os.kill(pid, signal.SIGKILL)
    figures = httpx.get(f"{served.url}/metrics", headers=operator, timeout=30)
    assert figures.status_code == 200
    assert "raytag_model_seconds" in figures.text
    assert "raytag_requests_in_flight" in figures.text
    # It may get there before the end was noticed, or wait for the next switchboard.
    moved = httpx.post(alias, json={"version": 1, "wait_seconds": 30}, headers=release, timeout=60)
    assert moved.status_code in (200, 503), moved.text
    assert moved.status_code == 200 or moved.headers["Retry-After"]
    began = time.monotonic()
    while httpx.get(alias, headers=release, timeout=30).json().get("state") != "live":
        assert time.monotonic() < began + 60, "no switchboard came back"
