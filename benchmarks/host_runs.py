"""Hosts of network namespaces for the benchmarks: Ray over them, an S3 server that they reach, what
passes through each host's network, and when a training took its steps.

The hosts are those of tests/cluster: one machine's processor, memory and disk, but an address and
a network device each, whose counters the kernel keeps. Needs root.
"""

import json
import os
import statistics
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from machine import machine
from raytag import storage

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "tests" / "cluster"), str(ROOT / "tests")]

from hosts import Host, Network, Relay, missing  # noqa: E402
from ray_hosts import RayHosts  # noqa: E402

from s3 import serving  # noqa: E402

_STORE_PORT = 9000
_EVERY = 0.1
"""Seconds between two readings of the counters."""


@dataclass(frozen=True, kw_only=True)
class Site:
    """A running cluster without workers, and the host through which all reach the S3 server."""

    ray: RayHosts
    store: Host
    folder: Path
    """That all hosts see, as a disk they share."""
    requests: Path
    """The server's log, a line for each request."""


@contextmanager
def site() -> Iterator[Site]:
    """All of it is gone afterwards. This process reaches the server past the hosts' network."""
    if lack := missing():
        raise SystemExit(f"no hosts here: {lack}")
    before = dict(os.environ)
    os.chdir(ROOT)  # jobs are submitted with the folder that this process is in
    # One job waits for another's processes where both spin for two cores.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    with tempfile.TemporaryDirectory() as name, serving(Path(name)) as variables:
        os.environ.update(variables)
        try:
            with Network() as network:
                store = network.add("store")
                port = int(variables["AWS_ENDPOINT_URL"].rpartition(":")[2])
                theirs = {**variables, "AWS_ENDPOINT_URL": f"http://{store.address}:{_STORE_PORT}"}
                with Relay(store.listen(_STORE_PORT), [("127.0.0.1", port)]):
                    ray = RayHosts(network, theirs)
                    ray.start_head()
                    folder = Path(name)
                    yield Site(ray=ray, store=store, folder=folder, requests=folder / "log")
                    ray.close()
        finally:
            os.environ.clear()
            os.environ.update(before)


@dataclass(frozen=True)
class Passed:
    """Bytes through a host's network device, headers and all."""

    received: float
    sent: float


class Traffic(threading.Thread):
    """What passes through hosts while this is entered."""

    def __init__(self, hosts: Sequence[Host]) -> None:
        super().__init__(daemon=True)
        self._hosts = list(hosts)
        self._times: list[float] = []
        self._read: list[Mapping[str, Passed]] = []
        self._over = threading.Event()

    def __enter__(self) -> Self:
        self._take()
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()
        self._take()

    def run(self) -> None:
        while not self._over.wait(_EVERY):
            self._take()

    def _take(self) -> None:
        self._read.append({host.name: _counted(host) for host in self._hosts})
        self._times.append(time.time())

    def of(self, host: Host, begin: float = 0.0, end: float = float("inf")) -> Passed:
        """Between two times of the clock; in all if not given."""
        first, last = self._at(host, begin), self._at(host, end)
        return Passed(last.received - first.received, last.sent - first.sent)

    def _at(self, host: Host, when: float) -> Passed:
        """At any time, on the line between two readings."""
        after = bisect_left(self._times, when)
        if after in (0, len(self._times)):
            return self._read[min(after, len(self._times) - 1)][host.name]
        begin, end = self._times[after - 1 : after + 1]
        share = (when - begin) / (end - begin)
        low, high = (self._read[i][host.name] for i in (after - 1, after))
        return Passed(
            low.received + share * (high.received - low.received),
            low.sent + share * (high.sent - low.sent),
        )


def _counted(host: Host) -> Passed:
    for line in Path(f"/proc/{host.pid}/net/dev").read_text().splitlines():
        name, _, counts = line.partition(":")
        if name.strip() == "eth0":
            fields = counts.split()
            return Passed(int(fields[0]), int(fields[8]))
    raise RuntimeError(f"{host.name} has no eth0")


def dated_steps(output: str) -> list[tuple[int, float]]:
    """(step, time of the clock) of a training's steps as its driver heard of them, some tenths of
    a second late; a step that was taken again is there again.

    From the event files in the output, which are put there at every evaluation.
    """
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in storage.list_files(f"{output}/tensorboard"):
        content, at = storage.read_bytes(file), 0
        while at < len(content):
            # A record: its length in 8 bytes, a checksum of 4, the event, a checksum of 4.
            length = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + length])
            at += 16 + length
            if any(value.tag == "train/loss" for value in event.summary.value):
                found.append((event.step, event.wall_time))
    return found


class Kept:
    """Runs of a benchmark in a file, a list of them by name, written as they come.

    ``settings`` are what makes runs comparable: SystemExit where the file has others.
    """

    def __init__(self, file: Path | None, settings: Mapping[str, Any]) -> None:
        self._file = file
        self.content: dict[str, Any] = {"settings": dict(settings), "runs": {}}
        if file is not None and file.is_file():
            there = json.loads(file.read_text(encoding="utf-8"))
            if there["settings"] != json.loads(json.dumps(settings)):
                raise SystemExit(f"{file} has runs with other settings; move it away")
            self.content = there

    def count(self, name: str) -> int:
        return len(self.content["runs"].get(name, []))

    def add(self, name: str, run: Mapping[str, Any]) -> None:
        runs = self.content["runs"].setdefault(name, [])
        runs.append(dict(run))
        self.content["median"] = {
            name: medians(runs) for name, runs in sorted(self.content["runs"].items())
        }
        self.content["machine"] = machine()
        print(f"{name}: {json.dumps(run)}", flush=True)
        if self._file is not None:
            self._file.write_text(json.dumps(self.content, indent=1) + "\n", encoding="utf-8")


def medians(runs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Of every number that all runs have, and within what they hold by name."""
    found: dict[str, Any] = {}
    for name, value in runs[0].items():
        values = [run[name] for run in runs if name in run]
        if len(values) < len(runs):
            continue
        if isinstance(value, Mapping):
            found[name] = medians(values)
        elif isinstance(value, int | float):
            found[name] = statistics.median(values)
    return found
