"""Nodes beside the head of a local cluster, whose GPUs are only declared; and where actors ran.

Ray places by what a node says it has. Torch finds no GPU there, and computes on the CPU.
"""

import json
import os
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from raytag.local import LocalCluster
from waiting import until

START_SECONDS = 60.0


@contextmanager
def gpu_node(cluster: LocalCluster, kind: str, gpus: int = 1, cpus: int = 2) -> Iterator[str]:
    """A node that is up as long as this is entered; gives its id."""
    before = alive(cluster)
    process = subprocess.Popen(
        [
            *(str(Path(sys.executable).with_name("ray")), "start", "--block"),
            *(f"--address={cluster.address}", f"--num-cpus={cpus}", f"--num-gpus={gpus}"),
            *("--resources", json.dumps({f"accelerator_type:{kind}": 1})),
            *("--object-store-memory=100000000", "--disable-usage-stats"),
        ],
        env={k: v for k, v in cluster.environment.items() if k != "RAY_ADDRESS"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        until(lambda: len(alive(cluster)) > len(before), START_SECONDS, f"a node with {kind} is up")
        (made,) = alive(cluster) - before
        yield made
    finally:
        # All of the node's processes are of the session that was made for it.
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def alive(cluster: LocalCluster) -> set[str]:
    """Ids of the nodes that are up, the head's included."""
    return {node["node_id"] for node in _listed(cluster, "nodes") if node["state"] == "ALIVE"}


def places(cluster: LocalCluster, name: str) -> set[str]:
    """Ids of the nodes where actors are, or were, in whose class's name this stands."""
    return {
        actor["node_id"]
        for actor in _listed(cluster, "actors")
        if name in actor["class_name"] and actor["node_id"]
    }


def _listed(cluster: LocalCluster, kind: str) -> list[dict[str, Any]]:
    environment = cluster.environment
    request = urllib.request.Request(
        f"{environment['RAY_API_SERVER_ADDRESS']}/api/v0/{kind}?limit=1000",
        headers={"Authorization": f"Bearer {environment['RAY_AUTH_TOKEN']}"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        found: list[dict[str, Any]] = json.load(answer)["data"]["result"]["result"]
    return found
