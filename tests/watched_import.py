"""Import modules and tell what their own code did meanwhile: files, sockets, processes, threads,
the environment. A script: ``watched_import.py SOURCE MODULE…``; exits 1 if they did anything.

What other packages do while they are imported is not told; what they do because a module called
them is.
"""

import importlib
import os
import sys
import threading
from collections.abc import Callable
from typing import Any

TOLD = {
    "open",
    "os.exec",
    "os.fork",
    "os.mkdir",
    "os.posix_spawn",
    "os.putenv",
    "os.remove",
    "os.rename",
    "os.system",
    "socket.__new__",
    "socket.connect",
    "subprocess.Popen",
}
# pydantic's own switch, which it reads for every class that is derived from its models.
UNTOLD = "PYDANTIC_DISABLE_PLUGINS"
SOURCE, NAMES = sys.argv[1], sys.argv[2:]
deeds: list[str] = []


def by_our_own_code() -> bool:
    """Whether the call came from a file below SOURCE, and not by way of an import in it."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(SOURCE):
            return True
        if "importlib" in file:
            return False
        frame = frame.f_back  # type: ignore[assignment]
    return False


def hear(event: str, arguments: tuple[Any, ...]) -> None:
    if event in TOLD and by_our_own_code():
        deeds.append(f"{event} {str(arguments)[:100]}")


def told(method: Callable[..., Any], event: str) -> Callable[..., Any]:
    """The method, heard: Python 3.11 has no audit events for these."""

    def telling(*arguments: Any, **more: Any) -> Any:
        if UNTOLD not in arguments and by_our_own_code():
            deeds.append(f"{event} {str(arguments[1:])[:100]}")
        return method(*arguments, **more)

    return telling


for name in ("__getitem__", "__setitem__", "__delitem__", "__iter__"):
    setattr(os._Environ, name, told(getattr(os._Environ, name), "os.environ"))
threading.Thread.start = told(threading.Thread.start, "thread")  # type: ignore[method-assign]
sys.addaudithook(hear)
for name in NAMES:
    importlib.import_module(name)
print("\n".join(deeds), flush=True)
os._exit(1 if deeds else 0)  # at once: threads and exit handlers of others are no concern here
