"""What stays loaded: a cache bounded in bytes, the least recently used go first.

Knows keys, sizes and who uses what at the moment; not what is loaded, nor from where. Lives in one
event loop; loading is done in threads.
"""

import asyncio
import time
import traceback
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Hashable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

from raytag.errors import ModelError

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


@dataclass(frozen=True)
class ResidentStats:
    """What is there now, and counts since the start."""

    resident: int
    bytes: int
    """Of all that is kept, and of what was dropped but is still used."""
    hits: int
    misses: int
    """Asked for and not there yet, or refused for a failure just before."""
    evictions: int
    failures: int
    """Loads that failed."""


@dataclass(frozen=True)
class _Failure:
    error: Exception
    traceback: TracebackType | None
    until: float


class _Entry(Generic[Value]):
    """One load and what it gave. ``pins`` counts its users, those who wait for it included."""

    def __init__(self) -> None:
        self.task: asyncio.Task[None] | None = None
        self.begun = False
        self.pins = 0
        self.value: Value | None = None
        self.size = 0
        self.failure: _Failure | None = None


class Residents(Generic[Key, Value]):
    """Values by key, loaded when first asked for, at most ``capacity_bytes`` of them.

    ``load`` is called in a thread, once per key at a time, for ``loads_at_once`` keys at a time;
    ``size`` says how many bytes a value holds. Keys of one ``group`` are loaded one after the
    other, and groups take turns, so that one that asks for many keys holds up no other. What
    nobody waits for any more when its turn comes is not loaded. A size is known only after the
    load, so up to ``loads_at_once`` values stand beside the bound while they wait for room. A key
    whose load failed is not tried again for ``retry_seconds``. Who uses one value and asks for
    another waits for ever where both together are larger than the capacity.
    """

    def __init__(
        self,
        load: Callable[[Key], Value],
        size: Callable[[Value], int],
        capacity_bytes: int,
        *,
        group: Callable[[Key], Hashable],
        loads_at_once: int = 2,
        retry_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._load = load
        self._size = size
        self._capacity = capacity_bytes
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._group = group
        self._turns: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._slots = asyncio.Semaphore(loads_at_once)
        self._entries: OrderedDict[Key, _Entry[Value]] = OrderedDict()
        self._failures: dict[Key, _Failure] = {}
        self._bytes = 0
        self._making_room = asyncio.Lock()
        self._freed = asyncio.Event()
        self._hits = self._misses = self._evictions = self._failed = 0

    @property
    def stats(self) -> ResidentStats:
        return ResidentStats(
            resident=sum(entry.task is None for entry in self._entries.values()),
            bytes=self._bytes,
            hits=self._hits,
            misses=self._misses,
            evictions=self._evictions,
            failures=self._failed,
        )

    async def get(self, key: Key) -> Value:
        """The value, loaded if it is missing; it may be evicted right afterwards. Raises what
        loading raised, ModelError for a value larger than the capacity."""
        async with self.use(key) as value:
            return value

    @asynccontextmanager
    async def use(self, key: Key, until: float | None = None) -> AsyncIterator[Value]:
        """As :meth:`get`, but the value stays until the block ends. Raises TimeoutError where it
        is not loaded at ``until``, a time of the clock."""
        entry = self._entries.get(key)
        if entry is not None and entry.task is None:
            self._hits += 1
        else:
            self._misses += 1
        async with self._pinned(key, until) as value:
            yield value

    async def preload(self, key: Key) -> None:
        """As :meth:`get`, for one who foresees a use: neither a hit nor a miss."""
        async with self._pinned(key, None):
            pass

    def drop(self, key: Key) -> None:
        """Forget a value, or that it failed: who asks next loads it anew. Those who use it keep
        it."""
        self._failures.pop(key, None)
        entry = self._entries.pop(key, None)
        if entry is not None and entry.task is None and not entry.pins:
            self._free(entry)

    @asynccontextmanager
    async def _pinned(self, key: Key, until: float | None) -> AsyncIterator[Value]:
        entry = self._entry(key)
        entry.pins += 1
        try:
            if entry.task is not None:
                left = None if until is None else max(0.0, until - self._clock())
                done, _ = await asyncio.wait([entry.task], timeout=left)
                if not done:
                    raise TimeoutError(f"{key} was not loaded within the time given")
            if entry.failure is not None:
                raise entry.failure.error.with_traceback(entry.failure.traceback)
            yield entry.value  # type: ignore[misc]  # a load that did not fail gave one
        finally:
            entry.pins -= 1
            self._released(key, entry)

    def _entry(self, key: Key) -> _Entry[Value]:
        """The entry of a key; its load is begun where there is none. Raises the failure of a load
        just before."""
        entry = self._entries.get(key)
        if entry is not None:
            return entry
        failure = self._failures.get(key)
        if failure is not None and self._clock() < failure.until:
            raise failure.error.with_traceback(failure.traceback)
        entry = self._entries[key] = _Entry()
        entry.task = asyncio.get_running_loop().create_task(self._fill(key, entry))
        return entry

    async def _fill(self, key: Key, entry: _Entry[Value]) -> None:
        """Load a value and keep it once there is room."""
        turn = self._turns.setdefault(self._group(key), asyncio.Lock())
        try:
            # Slots go to who came first: of each group, only the one whose turn it is stands there.
            async with turn, self._slots:
                entry.begun = True
                value = await asyncio.to_thread(self._load, key)
                size = self._size(value)
                if size > self._capacity:
                    raise ModelError(
                        f"{key} takes {size / 2**20:.1f} MB, more than the cache of "
                        f"{self._capacity / 2**20:.1f} MB holds; raise --cache-megabytes"
                    )
                await self._make_room(size)
                entry.value, entry.size = value, size
        except Exception as exc:
            self._fail(key, entry, exc)
        entry.task = None
        if not entry.pins:
            self._released(key, entry)

    def _fail(self, key: Key, entry: _Entry[Value], error: Exception) -> None:
        now = self._clock()
        _clear(error)
        entry.failure = _Failure(error, error.__traceback__, now + self._retry_seconds)
        self._failed += 1
        if self._entries.get(key) is entry:
            del self._entries[key]
            self._failures = {k: f for k, f in self._failures.items() if now < f.until}
            self._failures[key] = entry.failure

    async def _make_room(self, size: int) -> None:
        """Evict until a value fits, and account for it; where all is in use, wait. First come,
        first served, so a large value is not passed over for ever."""
        async with self._making_room:
            while self._bytes + size > self._capacity:
                idle = (k for k, e in self._entries.items() if e.task is None and not e.pins)
                key = next(idle, None)
                if key is None:
                    self._freed.clear()
                    await self._freed.wait()
                else:
                    self._free(self._entries.pop(key))
                    self._evictions += 1
            self._bytes += size

    def _released(self, key: Key, entry: _Entry[Value]) -> None:
        """One user less: the value was used just now, and may go if it was the last. A load that
        has not begun goes too: were it kept, what waits would grow without bound."""
        if not entry.pins and entry.task is not None and not entry.begun:
            entry.task.cancel()
            if self._entries.get(key) is entry:
                del self._entries[key]
        elif self._entries.get(key) is entry:
            self._entries.move_to_end(key)
            self._freed.set()
        elif not entry.pins and entry.task is None:
            self._free(entry)

    def _free(self, entry: _Entry[Value]) -> None:
        self._bytes -= entry.size
        entry.size = 0
        self._freed.set()


def _clear(error: BaseException | None) -> None:
    """Let go of what the functions that failed had read: an error is kept for a while."""
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__cause__ or error.__context__
