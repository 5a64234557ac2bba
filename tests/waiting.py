"""Waiting for what others do."""

import time
from collections.abc import Callable


def until(true: Callable[[], bool], seconds: float, what: str = "") -> float:
    """Wait for a condition; how many seconds that took."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() < began + seconds, f"not after {seconds:g} s: {what or true}"
        time.sleep(0.1)
    return time.monotonic() - began
