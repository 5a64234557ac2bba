"""A pytest plugin: a real S3 server on loopback (moto), which asks for credentials.

``pytest_plugins = ["s3"]`` in tests/conftest.py turns it on.
"""

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

_UNCHECKED = 3  # how many calls moto lets through first: they make the user and its rights


@pytest.fixture(scope="session")
def s3_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server's log is, and the copies of models that come from it."""
    return tmp_path_factory.mktemp("s3")


@pytest.fixture
def given(s3: "S3Client", s3_folder: Path) -> Callable[[str], int]:
    """How often the server has given away an object, of this s3:// URI, whole or a part of it."""

    def count(uri: str) -> int:
        line = f"GET /{uri.removeprefix('s3://')} HTTP"
        return (s3_folder / "log").read_text(encoding="utf-8").count(line)

    return count


@pytest.fixture(scope="session")
def s3(s3_folder: Path) -> "Iterator[S3Client]":
    """A client of a server that the AWS variables of this session name; no buckets in it yet."""
    import boto3

    with serving(s3_folder) as variables, pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("AWS_")]:
            patch.delenv(name)
        for name, value in variables.items():
            patch.setenv(name, value)
        yield boto3.client("s3")


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """A server, and the AWS variables that name it; ``log`` in the folder has its requests."""
    port = free_port()
    endpoint = f"http://127.0.0.1:{port}"
    server = _start(port, folder)
    try:
        _wait(server, port, folder / "log")
        user, secret = _make_user(endpoint)
        yield {
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ACCESS_KEY_ID": user,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_DEFAULT_REGION": "us-east-1",
            "RAYTAG_MODELS": str(folder / "models"),
        }
    finally:
        server.terminate()
        server.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _start(port: int, folder: Path) -> "subprocess.Popen[bytes]":
    environ = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            [sys.executable, __file__, str(port)],
            env=environ | {"INITIAL_NO_AUTH_ACTION_COUNT": str(_UNCHECKED), "MOTO_PORT": str(port)},
            stdout=log,
            stderr=log,
        )


def _wait(server: "subprocess.Popen[bytes]", port: int, log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and server.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise RuntimeError(f"moto did not start:\n{log.read_text()}")


def _make_user(endpoint: str) -> tuple[str, str]:
    """The key and secret of a user who may do anything on S3."""
    import boto3

    iam = boto3.client(
        "iam",
        endpoint_url=endpoint,
        region_name="us-east-1",
        aws_access_key_id="anyone",
        aws_secret_access_key="anything",
    )
    anything = {"Effect": "Allow", "Action": "s3:*", "Resource": "*"}
    policy = json.dumps({"Version": "2012-10-17", "Statement": [anything]})
    iam.create_user(UserName="raytag")
    iam.put_user_policy(UserName="raytag", PolicyName="s3", PolicyDocument=policy)
    key = iam.create_access_key(UserName="raytag")["AccessKey"]
    return key["AccessKeyId"], key["SecretAccessKey"]


def _serve(port: int) -> None:
    """What ``moto_server`` does, with requests answered one after the other.

    moto checks If-None-Match and stores the object in two steps; S3 does both in one.
    """
    from moto.moto_server.werkzeug_app import (
        DomainDispatcherApplication,
        MotoRequestHandler,
        create_backend_app,
    )
    from werkzeug.serving import run_simple

    answer = DomainDispatcherApplication(create_backend_app)
    turn = threading.Lock()

    def application(environ: Any, start_response: Any) -> Any:
        with turn:
            return answer(environ, start_response)

    run_simple("127.0.0.1", port, application, threaded=True, request_handler=MotoRequestHandler)


if __name__ == "__main__":
    _serve(int(sys.argv[1]))
