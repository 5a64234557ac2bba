"""Joining the Ray cluster that a job was submitted to, and what can be asked of it first.

Knows Ray's client and the cluster's hosts; nothing of what a job does there.
"""

import logging
import os
from pathlib import Path

import ray

from raytag.errors import ResourceError, SettingsError


def connect(program: str) -> None:
    """Join the cluster this process was submitted to, or the one the environment names.

    ``program`` is named where there is none: ResourceError.
    """
    if ray.is_initialized():
        return
    source = str(Path(__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH"))))
    try:
        # Workers must find this very package, wherever the working directory was unpacked.
        ray.init(
            address="auto",
            runtime_env={
                "env_vars": {
                    "PYTHONPATH": path,
                    # A thread that waits for another must not keep it from running: on a busy
                    # machine OpenMP's spinning makes two threads slower than one.
                    "OMP_WAIT_POLICY": "PASSIVE",
                    # Its tokens are made by the threads that an actor was given.
                    "TOKENIZERS_PARALLELISM": "false",
                    # Serve's replicas: a request changes threads no more often than it must.
                    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
                    "RAY_SERVE_RUN_ROUTER_IN_SEPARATE_LOOP": "0",
                    # A user is told of a wrong address soon; hours of work wait for a store to
                    # come back, half a minute or more.
                    "AWS_MAX_ATTEMPTS": os.environ.get("AWS_MAX_ATTEMPTS", "12"),
                }
            },
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except ConnectionError as exc:
        raise ResourceError(
            "no Ray cluster to run on: submit this job with `ray job submit`, or run it with "
            f"`python -m raytag.local -- python jobs/{program} …`"
        ) from exc


def nodes() -> list[dict[str, float]]:
    """The resources of each live node."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def check_output(output: str) -> None:
    """Refuse a place that goes away with the cluster."""
    if "working_dir_files" in os.path.abspath(output) and "://" not in output:
        raise SettingsError(
            f"output {output} would lie in Ray's copy of the working directory and be lost; give "
            "an absolute path or an s3:// prefix"
        )


def check_reach(output: str) -> None:
    """Refuse a local output on a cluster of several hosts, each of which would see its own."""
    hosts = {node["NodeManagerHostname"] for node in ray.nodes() if node["Alive"]}
    if len(hosts) > 1 and "://" not in output:
        raise SettingsError(
            f"output {output} is local and the cluster has {len(hosts)} hosts; give an s3:// "
            "prefix, or file:// with a path that all of them share"
        )
