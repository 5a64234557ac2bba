"""Sudden deaths: a process killed at a chosen step of what it does to a store."""

import os
import signal
import sys
from collections.abc import Callable
from typing import Any

_ON_DISK = {"open", "os.rename", "os.link", "os.remove", "os.mkdir"}
_ON_S3 = {"http.client.send"}


def killed_at(step: int, place: str, do: Callable[[], Any]) -> bool:
    """Do it in a process that is killed before its ``step``-th file operation, or with an ``s3://``
    place its request; whether it was."""
    events = _ON_S3 if "://" in place else _ON_DISK
    child = os.fork()
    if child == 0:
        left = [step]

        def watch(event: str, _: tuple[Any, ...]) -> None:
            if event in events:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(watch)
        try:
            do()
        finally:
            os._exit(0)
    _, status = os.waitpid(child, 0)
    return os.WIFSIGNALED(status)
