"""A Ray cluster on this machine, for as long as a command runs.

Starts one head node in token mode with ports, folder and token of its own, so that it disturbs
no other cluster and leaves nothing behind; ends it by its process id. Knows Ray's command line
only, and imports no Ray.
"""

import argparse
import contextlib
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

from raytag.errors import ResourceError

_START_SECONDS = 90.0
_STOP_SECONDS = 30.0


class LocalCluster:
    """``with LocalCluster() as cluster: subprocess.run(…, env=cluster.environment)``."""

    def __init__(self, cpus: int | None = None) -> None:
        self._cpus = cpus
        # Short: Ray puts Unix sockets below it, whose paths may not exceed 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="raytag-", dir="/tmp"))
        self._gcs, self._dashboard, self._agent, self._client = _free_ports(4)
        self._process: subprocess.Popen[bytes] | None = None
        self._token = secrets.token_hex(32)

    @property
    def address(self) -> str:
        """Of the head node, for ``ray.init``."""
        return f"{_own_address()}:{self._gcs}"

    @property
    def environment(self) -> Mapping[str, str]:
        """This process's environment, with what a client of the cluster needs."""
        programs = str(Path(sys.executable).parent)
        return {
            **os.environ,
            # A submitted job says `python`, and means the one its cluster runs on.
            "PATH": os.pathsep.join((programs, os.environ.get("PATH", os.defpath))),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self._token,
            "RAY_ADDRESS": self.address,
            "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self._dashboard}",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def __enter__(self) -> "LocalCluster":
        environment = {**self.environment}
        del environment["RAY_ADDRESS"]
        command = [
            str(Path(sys.executable).with_name("ray")),
            "start",
            "--head",
            "--block",
            f"--port={self._gcs}",
            "--dashboard-host=127.0.0.1",
            f"--dashboard-port={self._dashboard}",
            # Ray's own choice is one for all clusters; the second one's agent would take no jobs.
            f"--dashboard-agent-listen-port={self._agent}",
            f"--ray-client-server-port={self._client}",
            f"--temp-dir={self._folder}",
            "--disable-usage-stats",
        ]
        if self._cpus is not None:
            command.append(f"--num-cpus={self._cpus}")
        self._log = self._folder / "start.log"
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the head and all it started, then remove its folder."""
        process = self._process
        if process is not None:
            _end(process)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _wait(self) -> None:
        """Until jobs can be submitted: the dashboard takes them, and its agent runs them."""
        until = time.monotonic() + _START_SECONDS
        pages = [
            f"http://127.0.0.1:{self._dashboard}/api/version",
            f"http://{_own_address()}:{self._agent}/api/healthz",
        ]
        while time.monotonic() < until:
            if self._process is None or self._process.poll() is not None:
                break
            if all(map(self._answers, pages)):
                return
            time.sleep(0.2)
        said = self._log.read_text(errors="replace").strip().splitlines()[-5:]
        raise ResourceError(f"the local Ray cluster did not start: {' | '.join(said)}")

    def _answers(self, page: str) -> bool:
        request = urllib.request.Request(page, headers={"Authorization": f"Bearer {self._token}"})
        try:
            with urllib.request.urlopen(request, timeout=5):
                return True
        except OSError:
            return False


def _end(process: "subprocess.Popen[bytes]") -> None:
    """All of Ray's processes are of the session that was made for them, workers die with their
    raylet. SIGTERM lets them close; ``ray start`` itself may ignore it, so SIGKILL follows."""
    for sign, seconds in ((signal.SIGTERM, 3.0), (signal.SIGKILL, 5.0)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
    process.wait()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]
    finally:
        for one in sockets:
            one.close()


def _own_address() -> str:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # sends nothing: it only picks the interface
            return str(probe.getsockname()[0])
        except OSError:
            return "127.0.0.1"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command beside a local cluster; the command's exit status is this one's."""
    parser = argparse.ArgumentParser(prog="python -m raytag.local", description=main.__doc__)
    parser.add_argument("--cpus", type=int, default=None, help="CPUs the cluster claims to have")
    parser.add_argument("command", nargs=argparse.REMAINDER, help="-- followed by the command")
    options = parser.parse_args(arguments)
    command = options.command[1:] if options.command[:1] == ["--"] else options.command
    if not command:
        parser.error("no command given")
    for sign in (signal.SIGTERM, signal.SIGHUP):
        # As Ctrl-C does: the cluster must not outlive its command.
        signal.signal(sign, lambda number, _: sys.exit(128 + number))
    started = time.monotonic()
    with LocalCluster(options.cpus) as cluster:
        print(f"a local Ray cluster is up ({time.monotonic() - started:.0f} s)", flush=True)
        return _ran(command, cluster.environment)


def _ran(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """The command's exit status; what it has to finish when it is stopped it may finish."""
    process = subprocess.Popen(command, env=environment)
    try:
        try:
            return process.wait()
        except KeyboardInterrupt:  # which a terminal sends to the command too
            return process.wait(_STOP_SECONDS)
        except SystemExit:
            process.terminate()
            process.wait(_STOP_SECONDS)
            raise
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        return 130
    finally:
        process.kill()


if __name__ == "__main__":
    sys.exit(main())
