"""Tests that are coroutines."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """The test, run in an event loop of its own."""

    def run() -> None:
        asyncio.run(test())

    run.__name__ = test.__name__
    return run
