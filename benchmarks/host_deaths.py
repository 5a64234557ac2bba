"""How long a host's death, or a cut link, goes unnoticed by the head of a Ray cluster.

    sudo .venv/bin/python benchmarks/host_deaths.py

On hosts made of network namespaces (tests/cluster/hosts.py), with Ray's own settings and with those
that docs/operations.md tells to set on every host. Writes benchmarks/results/host_deaths.json:
seconds until the head holds the host to be dead, of each of a few rounds.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

from machine import machine

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "tests" / "cluster"), str(ROOT / "platform")]

from hosts import Network, missing  # noqa: E402
from ray_hosts import SOONER, RayHosts, until  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "host_deaths.json"
AS_IT_COMES = {
    "RAY_health_check_period_ms": "3000",
    "RAY_health_check_timeout_ms": "10000",
    "RAY_health_check_failure_threshold": "5",
}
"""Ray 2.60's defaults."""


def measured(settings: dict[str, str], rounds: int) -> dict[str, list[float]]:
    seconds: dict[str, list[float]] = {"killed": [], "cut off": []}
    with Network() as network:
        hosts = RayHosts(network, settings)
        hosts.start_head()
        for _ in range(rounds):
            killed, cut = list(hosts.have_workers(2))
            hosts.kill(killed)
            address = killed.address
            gone = until(lambda address=address: address not in hosts.alive(), 200)
            seconds["killed"].append(round(gone, 1))
            cut.cut()
            address = cut.address
            gone = until(lambda address=address: address not in hosts.alive(), 200)
            seconds["cut off"].append(round(gone, 1))
            hosts.kill(cut)
        hosts.close()
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    if lack := missing():
        sys.exit(f"no hosts here: {lack}")
    found = {
        name: {"settings": settings, "seconds": measured(settings, options.rounds)}
        for name, settings in (("as it comes", AS_IT_COMES), ("as documented", SOONER))
    }
    for name, one in found.items():
        for what, seconds in one["seconds"].items():  # type: ignore[attr-defined]
            print(f"{name}, {what}: {statistics.median(seconds):.1f} s, of {seconds}")
    RESULTS.write_text(json.dumps({**machine(), "unnoticed": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
