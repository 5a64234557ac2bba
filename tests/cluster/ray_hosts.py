"""A Ray cluster over several hosts, started as the documentation says, and a client beside it.

Knows Ray's command line and the dashboard's API; what is submitted is the tests' own.
"""

import json
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hosts import Host, Network, Relay

from image import environment, stages
from waiting import until

ROOT = Path(__file__).resolve().parents[2]
GCS, DASHBOARD = 6379, 8265
START_SECONDS = 90.0
IMAGE = {
    name: value for name, value in environment(stages()["cpu"]).items() if name.startswith("RAY_")
}
"""What the image tells Ray: to ask for tokens, to miss a silent host soon."""
RAY = str(Path(sys.executable).with_name("ray"))


class RayHosts:
    """A head, workers with a CPU each, and a client that reaches the dashboard by a tunnel.

    The dashboard listens on the head's loopback alone; what ``ssh -L 8265:127.0.0.1:8265 head``
    does for a user, a relay does here. ``variables`` are what all hosts have in their environment.
    """

    def __init__(self, network: Network, variables: Mapping[str, str]) -> None:
        self.network = network
        self.token = secrets.token_hex(32)
        self.variables = {
            **{k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "RAY_"))},
            "PATH": os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"])),
            "HOME": str(network.here),
            "OMP_NUM_THREADS": "1",
            "RAY_AUTH_TOKEN": self.token,
            # As an image has it installed, for what no job brings with it.
            "PYTHONPATH": str(ROOT / "platform"),
            **IMAGE,
            **variables,
        }
        self.client = network.add("client")
        self.workers: list[Host] = []
        self._running: dict[str, subprocess.Popen[str]] = {}
        self._tunnel: Relay | None = None

    def start_head(self) -> None:
        """Where one was before, at the same address."""
        address = self.head.address if hasattr(self, "head") else None
        self.head = self.network.add("head", address)
        self._ray(
            self.head,
            *("--head", f"--port={GCS}", "--num-cpus=0"),
            *("--dashboard-host=127.0.0.1", f"--dashboard-port={DASHBOARD}"),
            f"--temp-dir={self.network.here}/ray",
        )
        self.close()
        listener = self.client.listen(DASHBOARD, "127.0.0.1")
        self._tunnel = Relay(listener, [("127.0.0.1", DASHBOARD)], self.head)
        self._tunnel.start()

    def add_worker(self) -> Host:
        """A new host, which joins within seconds."""
        worker = self.network.add(f"worker{len(self.network.hosts)}")
        self.workers.append(worker)
        self.join(worker)
        return worker

    def join(self, worker: Host) -> None:
        self._ray(worker, f"--address={self.head.address}:{GCS}", "--num-cpus=1")

    def ended(self, worker: Host) -> bool:
        """Whether its ``ray start --block`` is over."""
        return self._running[worker.address].poll() is not None

    def have_workers(self, count: int) -> list[Host]:
        """So many workers that are up, some of them new and some sent away if need be."""
        # A host that answers nobody for seconds, as on a busy machine, is taken for dead for ever.
        for worker in [worker for worker in self.workers if self.ended(worker)]:
            self.kill(worker)
        for worker in self.workers[count:]:
            self.kill(worker)
        while len(self.workers) < count:
            self.add_worker()
        wanted = {host.address for host in (self.head, *self.workers)}
        until(lambda: self.alive() == wanted, START_SECONDS, f"{wanted} are up")
        return self.workers

    def kill(self, worker: Host) -> None:
        """All its processes at once."""
        self.workers.remove(worker)
        worker.kill()

    def alive(self) -> set[str]:
        """Addresses of the hosts that the head holds to be alive; none while it does not answer."""
        try:
            return {node["node_ip"] for node in self._listed("nodes") if node["state"] == "ALIVE"}
        except OSError:
            return set()

    def training(self) -> set[str]:
        """Addresses of the hosts where a training worker is."""
        nodes = {node["node_id"]: node["node_ip"] for node in self._listed("nodes")}
        return {
            nodes[actor["node_id"]]
            for actor in self._listed("actors")
            if actor["class_name"] == "RayTrainWorker" and actor["state"] == "ALIVE"
        }

    def _listed(self, kind: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask(f"/api/v0/{kind}?limit=1000")["data"]["result"][
            "result"
        ]
        return found

    def ask(self, path: str) -> Any:
        """What the dashboard answers to a GET."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{DASHBOARD}{path}",
            headers={"Authorization": f"Bearer {self.token}"},
        )
        with self.head.network(), urllib.request.urlopen(request, timeout=10) as answer:
            return json.load(answer)

    def submit(self, *arguments: str, **variables: str) -> "subprocess.Popen[str]":
        """``ray job submit``, on the client."""
        return self.on_client("ray", "job", "submit", *arguments, **variables)

    def on_client(self, *command: str, **variables: str) -> "subprocess.Popen[str]":
        """A command of a user's, on the client, in the project's folder."""
        dashboard = f"http://127.0.0.1:{DASHBOARD}"
        return self.client.start(
            command,
            {
                **self.variables,
                "RAY_API_SERVER_ADDRESS": dashboard,  # where `ray job` asks
                "RAY_DASHBOARD_ADDRESS": dashboard,  # where `serve` does
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def job(self, script: str, *flags: str) -> "subprocess.Popen[str]":
        """A job of the project's, as its users submit it."""
        return self.submit("--working-dir", ".", "--", "python", f"jobs/{script}", *flags)

    def close(self) -> None:
        if self._tunnel is not None:
            self._tunnel.__exit__()

    def _ray(self, host: Host, *arguments: str) -> None:
        command = [RAY, "start", *arguments, "--object-store-memory=200000000", "--block"]
        with (host.own / "ray.log").open("a") as log:
            self._running[host.address] = host.start(
                command, self.variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )


def finished(job: "subprocess.Popen[str]", seconds: float = 280) -> str:
    """What a job said that went well."""
    said, _ = job.communicate(timeout=seconds)
    assert job.returncode == 0, said[-4000:]
    return said
