"""A pytest plugin: a real S3 server on loopback that keeps its data on disk (Ceph's gateway).

Where Debian's packages for it are not installed, what asks for it is skipped. Unlike moto, the
gateway can be killed and started again with all that it was given.
"""

import os
import shutil
import socket
import subprocess
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from s3 import free_port

_PROGRAMS = ("ceph", "ceph-mon", "ceph-osd", "radosgw", "radosgw-admin")
_KEY, _SECRET = "raytag", "on-loopback-only"
_CONFIGURATION = """\
[global]
fsid = {fsid}
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
# The gateway would speak with the monitor encrypted, for which there are no keys.
ms mon client mode = crc

mon data = {folder}/mon
osd data = {folder}/osd
rgw data = {folder}/rgw
crash dir = {folder}
admin socket =
pid file =
log file =
log to stderr = true
mon cluster log to file = false

# A second each by default, and making the pools takes many.
paxos propose interval = 0.05
mon allow pool size one = true
osd pool default size = 1
osd pool default pg num = 8
bluestore block size = 4294967296
rgw frontends = beast endpoint=127.0.0.1:{gateway}

[mon.a]
mon addr = v2:127.0.0.1:{monitor}
"""


class Ceph:
    """A monitor, an OSD and the gateway, each a child of this process."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        configuration = folder / "ceph.conf"
        configuration.write_text(
            _CONFIGURATION.format(
                fsid=uuid.uuid4(), folder=folder, monitor=free_port(), gateway=self._port
            )
        )
        self._environment = {"PATH": os.environ["PATH"], "CEPH_CONF": str(configuration)}

    @property
    def variables(self) -> Mapping[str, str]:
        """The AWS variables of a user who may do anything there."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self._port}",
            "AWS_ACCESS_KEY_ID": _KEY,
            "AWS_SECRET_ACCESS_KEY": _SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
        }

    def start(self) -> None:
        """Make the store, with no buckets in it, and start it. Takes about 10 s."""
        for name in ("mon", "osd", "rgw"):
            (self._folder / name).mkdir()
        identity = str(uuid.uuid4())
        self._run("ceph-mon", "--id=a", "--mkfs")
        self._start("ceph-mon", "--id=a")
        self._run("ceph", "osd", "new", identity)
        self._run("ceph-osd", "--id=0", "--mkfs", f"--osd-uuid={identity}")
        self._start("ceph-osd", "--id=0")
        user = ("--uid=raytag", "--display-name=raytag")
        keys = (f"--access-key={_KEY}", f"--secret-key={_SECRET}")
        self._run("radosgw-admin", "user", "create", *user, *keys)
        self.start_gateway()

    def start_gateway(self) -> None:
        """Return when it answers."""
        gateway = self._start("radosgw")
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and gateway.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._port), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        said = (self._folder / "radosgw.out").read_text(errors="replace")
        raise RuntimeError(f"radosgw did not start:\n{said[-3000:]}")

    def kill_gateway(self) -> None:
        """End it with SIGKILL, whatever it is doing."""
        self._kill("radosgw")

    def close(self) -> None:
        """End all of it; its data go with its folder."""
        for name in reversed([*self._daemons]):
            self._kill(name)

    def _run(self, *command: str) -> None:
        done = subprocess.run(
            command,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=90,
        )
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout[-3000:]}")

    def _start(self, name: str, *arguments: str) -> "subprocess.Popen[bytes]":
        with (self._folder / f"{name}.out").open("ab") as out:
            self._daemons[name] = subprocess.Popen(
                [name, *arguments, "--foreground"],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        return self._daemons[name]

    def _kill(self, name: str) -> None:
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()


@pytest.fixture(scope="session")
def ceph(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ceph]:
    """A store that runs; what is to reach it needs its AWS variables."""
    missing = [name for name in _PROGRAMS if shutil.which(name) is None]
    if missing:
        pytest.skip(
            f"no {', '.join(missing)}; on Debian or Ubuntu: apt-get install "
            "--no-install-recommends radosgw ceph-mon ceph-osd"
        )
    store = Ceph(tmp_path_factory.mktemp("ceph"))
    try:
        store.start()
        yield store
    finally:
        store.close()
