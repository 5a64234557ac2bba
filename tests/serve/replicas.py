"""The processes behind a serving application, found among those of the machine."""

import re

import psutil

from raytag.local import LocalCluster

_TITLE = re.compile(r"ray::ServeReplica:raytag:(\w+)")


def replicas(cluster: LocalCluster) -> dict[int, str]:
    """The deployment of each replica, by process id; of this cluster alone."""
    found = {}
    for process in psutil.process_iter(["cmdline"]):
        match = _TITLE.match(" ".join(process.info["cmdline"] or ()))
        if match and _of(process, cluster):
            found[process.pid] = match[1]
    return found


def _of(process: psutil.Process, cluster: LocalCluster) -> bool:
    try:
        raylet = process.parent()
        return raylet is not None and any(cluster.address in part for part in raylet.cmdline())
    except psutil.Error:  # it ended meanwhile
        return False
