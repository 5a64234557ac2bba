"""Joining the Ray cluster that a job was submitted to, and what can be asked of it first.

Knows Ray's client and the cluster's hosts; nothing of what a job does there.
"""

import logging
import os
from pathlib import Path

import grpc
import ray
from ray.exceptions import AuthenticationError

from raytag.errors import ResourceError, SettingsError

ALLOW_OPEN = "RAYTAG_ALLOW_OPEN_CLUSTER"
"""Environment variable: 1 takes a cluster that asks nobody for a token."""
_ANSWER_SECONDS = 30.0


def connect(program: str) -> None:
    """Join the cluster this process was submitted to, or the one the environment names.

    ``program`` is named where there is none: ResourceError. An open cluster is refused, see
    :func:`check_closed`.
    """
    if not ray.is_initialized():
        _join(program)
    check_closed()


def check_closed() -> None:
    """Refuse a cluster that serves whoever shows no token: ResourceError.

    Ray does not say it, and a driver with a token joins an open cluster in silence; so it is asked
    without one.
    """
    if os.environ.get(ALLOW_OPEN) == "1":
        return
    address = ray.get_runtime_context().gcs_address
    with grpc.insecure_channel(address, [("grpc.enable_http_proxy", 0)]) as channel:
        ask = channel.unary_unary("/ray.rpc.NodeInfoGcsService/CheckAlive")
        try:
            ask(b"", timeout=_ANSWER_SECONDS)
            found = "is open: whoever reaches it can run programs on it"
        except grpc.RpcError as exc:
            if exc.code() is grpc.StatusCode.UNAUTHENTICATED:
                return
            found = f"does not say whether it is open ({exc.code().name})"
    raise ResourceError(
        f"the Ray cluster at {address} {found}; start every node of it with RAY_AUTH_MODE=token "
        f"(docs/operations.md), or set {ALLOW_OPEN}=1 in the job's environment to run there all "
        "the same"
    )


def _join(program: str) -> None:
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
                    # What a model said of its queue longer ago says nothing: its host may be
                    # silent since.
                    "RAY_SERVE_QUEUE_LENGTH_CACHE_TIMEOUT_S": "1",
                    # A user is told of a wrong address soon; hours of work wait for a store to
                    # come back, half a minute or more.
                    "AWS_MAX_ATTEMPTS": os.environ.get("AWS_MAX_ATTEMPTS", "12"),
                }
            },
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, AuthenticationError) as exc:
        if named := os.environ.get("RAY_ADDRESS"):
            raise ResourceError(
                f"the Ray cluster at {named} lets nobody in from here: it is not up, or "
                "RAY_AUTH_MODE=token and its token (RAY_AUTH_TOKEN or ~/.ray/auth_token) are not "
                "set here"
            ) from exc
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
