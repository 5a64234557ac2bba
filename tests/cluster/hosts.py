"""Hosts on this machine, as far as a network can tell: each a set of Linux namespaces.

A host has a network stack and an address of its own on a private switch, a name, a process tree
and a folder that no other host sees. Its processes can reach the other hosts and nothing else; its
death takes all of them. Knows iproute2 and namespaces (namespaces(7)), not Ray. Needs root.

Every host ends with the process that made it, however that ends: its first process waits for the
end of a pipe, and the kernel kills the rest with it. Nothing has to be cleaned up but a folder.
"""

import asyncio
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

SUBNET = "10.77.0"
_CONNECT_SECONDS = 1.0
_NEW_NETWORK = 0x40000000  # CLONE_NEWNET of sched.h
_SPACES = ("--net", "--uts", "--ipc", "--pid", "--mount")


def missing() -> str | None:
    """What keeps this machine from having hosts, if anything."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    for program in ("ip", "unshare", "nsenter"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    made = subprocess.run(
        ["unshare", *_SPACES, "--fork", "ip", "link", "add", "name", "switch", "type", "bridge"],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"no namespaces here: {made.stderr.strip()}" if made.returncode else None


class Network:
    """A switch, and the hosts on it: ``with Network() as network: network.add("head")``.

    ``here`` is a folder that every host has for itself, below the same path.
    """

    def __enter__(self) -> Self:
        # Short: Ray puts Unix sockets below it, whose paths may not exceed 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="hosts-", dir="/tmp"))
        self.here = self._folder / "here"
        self.here.mkdir()
        self.hosts: list[Host] = []
        self._addresses = 0
        self._switch = _Space("switch", self.here, self._folder / "switch")
        self._switch.call("ip", "link", "add", "name", "switch", "type", "bridge")
        self._switch.call("ip", "link", "set", "switch", "up")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for host in self.hosts:
            host.kill()
        self._switch.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def add(self, name: str, address: str | None = None) -> "Host":
        """A host that was not there before, or one again, with the address it had."""
        if address is None:
            self._addresses += 1
            address = f"{SUBNET}.{self._addresses}"
        own = self._folder / f"{name}-{len(self.hosts)}"
        host = Host(name, address, self._switch, self.here, own)
        self.hosts.append(host)
        return host


class _Space:
    """Namespaces, and their first process. What lies in ``here`` there lies in ``own`` here."""

    def __init__(
        self, name: str, here: Path, own: Path, files: Mapping[str, str] | None = None
    ) -> None:
        self.own = own
        own.mkdir()
        first = f"mount --bind {own} {here} && hostname {name} && ip link set lo up"
        for file, text in (files or {}).items():
            (own / Path(file).name).write_text(text)
            first += f" && mount --bind {own / Path(file).name} {file}"
        self._anchor = subprocess.Popen(
            # Bash as the first process buries the orphans of the others; it ends with the pipe.
            ["unshare", *_SPACES, "--fork", "--mount-proc", "bash", "-c", f"{first} && echo; read"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(own / "errors").open("w"),
        )
        assert self._anchor.stdout is not None
        assert self._anchor.stdout.read(1), (own / "errors").read_text()
        children = Path(f"/proc/{self._anchor.pid}/task/{self._anchor.pid}/children")
        self.pid = int(children.read_text())

    def enter(self, *command: str) -> list[str]:
        """The command line of what is to run there."""
        where = (f"--target={self.pid}", f"--wd={Path.cwd()}")
        return ["nsenter", *where, *_SPACES, "--", *command]

    def call(self, *command: str) -> None:
        subprocess.run(self.enter(*command), check=True)

    @contextmanager
    def network(self) -> Iterator[None]:
        """This thread's new sockets are those of that host."""
        with open("/proc/thread-self/ns/net") as own, open(f"/proc/{self.pid}/ns/net") as there:
            _enter_network(there.fileno())
            try:
                yield
            finally:
                _enter_network(own.fileno())

    def kill(self) -> None:
        """All processes at once, by SIGKILL."""
        if self._anchor.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self._anchor.wait(30)


def _enter_network(file: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(file, _NEW_NETWORK):
        raise OSError(ctypes.get_errno(), "setns")


class Host(_Space):
    """One machine. It can be reached at ``address`` by the other hosts of its network."""

    def __init__(self, name: str, address: str, switch: _Space, here: Path, own: Path) -> None:
        # As in a cloud: a host finds itself by name, and asks nobody who is not there.
        hosts = f"127.0.0.1 localhost\n{address} {name}\n"
        super().__init__(name, here, own, {"/etc/hosts": hosts, "/etc/resolv.conf": ""})
        self.name, self.address = name, address
        self._switch, self._port = switch, f"port{self.pid}"
        add = ["ip", "link", "add", "name", self._port, "netns", str(switch.pid), "type", "veth"]
        subprocess.run([*add, "peer", "name", "eth0", "netns", str(self.pid)], check=True)
        self.call("ip", "address", "add", f"{address}/24", "dev", "eth0")
        self.call("ip", "link", "set", "eth0", "up")
        switch.call("ip", "link", "set", self._port, "up")
        self.call("ip", "route", "add", "default", "dev", "eth0")
        self.restore()

    def cut(self) -> None:
        """Take it off the switch. The host's own link stays up: packets vanish in silence."""
        self._switch.call("ip", "link", "set", self._port, "nomaster")

    def restore(self) -> None:
        self._switch.call("ip", "link", "set", self._port, "master", "switch")

    def start(
        self, command: Sequence[str], environment: Mapping[str, str], **options: Any
    ) -> "subprocess.Popen[str]":
        """Run a command there; ``options`` are Popen's."""
        return subprocess.Popen(self.enter(*command), env=dict(environment), text=True, **options)

    def has(self, pid: int) -> bool:
        """Whether a process, by its number here, is one of that host's."""
        try:
            return os.readlink(f"/proc/{pid}/ns/pid") == os.readlink(f"/proc/{self.pid}/ns/pid")
        except OSError:  # it ended meanwhile, or nobody may look at it
            return False

    def listen(self, port: int, address: str | None = None) -> socket.socket:
        with self.network():
            return socket.create_server((address or self.address, port))


class Relay(threading.Thread):
    """Connections to ``listener`` go on to ``targets``, begun at in turn; from the network of
    ``source``, or this machine's. A target that does not answer within a second is passed over."""

    def __init__(
        self,
        listener: socket.socket,
        targets: Sequence[tuple[str, int]],
        source: Host | None = None,
    ) -> None:
        super().__init__(daemon=True)
        self._listener, self._targets, self._source = listener, deque(targets), source
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._task.cancel)
        self.join()

    def run(self) -> None:
        if self._source is None:
            self._serve()
        else:
            with self._source.network():
                self._serve()

    def _serve(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._task = self._loop.create_task(self._accept())
        with suppress(asyncio.CancelledError):
            self._loop.run_until_complete(self._task)
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _accept(self) -> None:
        server = await asyncio.start_server(self._carry, sock=self._listener)
        async with server:
            await server.serve_forever()

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._targets.rotate(-1)
        for target in tuple(self._targets):  # others turn it on while this one waits
            try:
                ours = asyncio.open_connection(*target)
                answers, asked = await asyncio.wait_for(ours, _CONNECT_SECONDS)
            except (OSError, TimeoutError):
                continue
            await asyncio.gather(_pump(reader, asked), _pump(answers, writer))
            return
        writer.close()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while part := await source.read(1 << 16):
            sink.write(part)
            await sink.drain()
    sink.close()
