"""Threads that ask a serving application all the time, and what they met with."""

import random
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

from raytag.client import Client, ServiceError
from raytag.model.adapter import load_adapter
from raytag.model.tagger import Tagger

THREADS = 8
WORDS = "Zoë Müller met Tim Cook in Seoul 🙂 , and Apple opened an office in 東京 .".split()


@dataclass
class Seen:
    """What a load of requests met with."""

    answered: int = 0
    wrong: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    under_way: int = 0
    slowest: float = 0.0
    """Seconds, of those answered."""

    def __str__(self) -> str:
        asked = self.answered + len(self.failed)
        return f"{len(self.failed)} of {asked} failed, the slowest answer took {self.slowest:.1f} s"

    def check(self) -> None:
        """No answer was wrong, and a thousandth at most were not given."""
        assert not self.wrong, self.wrong[:3]
        assert self.answered >= 2000, f"only {self.answered} requests: the load is too low to tell"
        assert len(self.failed) <= 0.001 * (self.answered + len(self.failed)), (
            f"{len(self.failed)} failed, {self.answered} answered: {self.failed[:8]}"
        )


class Asking:
    """While this is entered, eight threads share a client and ask for acme/news, one text at a
    time: what ``production`` points to, which is version 1, or a version by its number.

    ``versions`` are the adapters by number, whose tagger each answer must equal.
    """

    def __init__(self, url: str, key: str, versions: Mapping[int, Path]) -> None:
        chance = random.Random(1)
        self._texts = [" ".join(chance.choices(WORDS, k=chance.randint(1, 60))) for _ in range(20)]
        self._expected = {
            version: [
                [(e.start, e.end, e.label) for e in entities]
                for entities in Tagger.of(load_adapter(folder)).tag(self._texts)
            ]
            for version, folder in versions.items()
        }
        assert all(map(any, self._expected.values())), "nothing is found that could be wrong"
        self._client = Client(url, key, domain="news")
        self._stop, self._lock = threading.Event(), threading.Lock()
        self._pool = ThreadPoolExecutor(THREADS)
        self.seen = Seen()

    def __enter__(self) -> Self:
        self._client.extract(self._texts)
        self._threads = [self._pool.submit(self._ask, random.Random(i)) for i in range(THREADS)]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._pool.shutdown()
        self._client.close()
        if error is None:
            for thread in self._threads:
                thread.result()

    def _ask(self, chance: random.Random) -> None:
        while not self._stop.is_set():
            i, version = chance.randrange(len(self._texts)), chance.choice((None, *self._expected))
            with self._lock:
                self.seen.under_way += 1
            began = time.monotonic()
            try:
                (found,) = self._client.extract([self._texts[i]], version=version)
            except ServiceError as exc:
                said = f"after {time.monotonic() - began:.1f} s: {exc}"
                with self._lock:
                    self.seen.under_way -= 1
                    self.seen.failed.append(said)
                continue
            took = time.monotonic() - began
            right = [(e.start, e.end, e.label) for e in found] == self._expected[version or 1][i]
            with self._lock:
                self.seen.under_way -= 1
                self.seen.answered += 1
                self.seen.slowest = max(self.seen.slowest, took)
                if not right:
                    self.seen.wrong.append(f"{self._texts[i]!r} by {version}: {found}")
