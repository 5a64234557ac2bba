"""The cache of what is resident, with loads that end when told to."""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytag.errors import ModelError, StorageError
from raytag.serve.residents import Residents


class Shelf:
    """What is loaded: bytes named by number, as many as the number; some only when let go."""

    def __init__(self) -> None:
        self.loads: Counter[int] = Counter()
        self.now = 0.0
        self.broken: set[int] = set()
        self.gates: dict[int, threading.Event] = {}
        self.most_at_once = 0
        self._at_once = 0
        self._lock = threading.Lock()

    def load(self, key: int) -> bytes:
        with self._lock:
            self.loads[key] += 1
            self._at_once += 1
            self.most_at_once = max(self.most_at_once, self._at_once)
        try:
            if key in self.gates:
                assert self.gates[key].wait(60)
            if key in self.broken:
                raise StorageError(f"cannot read {key}")
            return bytes(key)
        finally:
            with self._lock:
                self._at_once -= 1

    def residents(self, capacity: int = 100, **options: Any) -> Residents[int, bytes]:
        options = {"group": lambda key: key, **options}
        return Residents(self.load, len, capacity, clock=lambda: self.now, **options)

    def hold(self, *keys: int) -> None:
        self.gates.update({key: threading.Event() for key in keys})

    def let_go(self, *keys: int) -> None:
        for key in keys:
            self.gates[key].set()


def in_a_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def run() -> None:
        asyncio.run(asyncio.wait_for(test(), 60))

    run.__name__ = test.__name__
    return run


async def begun(wait: Awaitable[Any]) -> asyncio.Task[Any]:
    async def waits() -> Any:
        return await wait

    task = asyncio.get_running_loop().create_task(waits())
    for _ in range(5):
        await asyncio.sleep(0)
    return task


@in_a_loop
async def test_a_value_is_loaded_once_and_stays() -> None:
    shelf = Shelf()
    residents = shelf.residents()
    assert await residents.get(5) == bytes(5)
    assert await residents.get(5) is await residents.get(5)
    assert shelf.loads == {5: 1}
    stats = residents.stats
    assert (stats.resident, stats.bytes, stats.hits, stats.misses) == (1, 5, 2, 1)


@in_a_loop
async def test_many_who_want_one_value_wait_for_one_load() -> None:
    shelf = Shelf()
    shelf.hold(5)
    residents = shelf.residents()
    tasks = [await begun(residents.get(5)) for _ in range(20)]
    tasks[0].cancel()
    shelf.let_go(5)
    found = await asyncio.gather(*tasks[1:])
    assert tasks[0].cancelled()
    assert all(one is found[0] for one in found)
    assert shelf.loads == {5: 1}


@in_a_loop
async def test_so_many_keys_load_at_once_and_no_more() -> None:
    shelf = Shelf()
    shelf.hold(*range(1, 9))
    residents = shelf.residents(loads_at_once=3)
    tasks = [await begun(residents.get(key)) for key in range(1, 9)]
    shelf.let_go(*range(1, 9))
    await asyncio.gather(*tasks)
    assert shelf.most_at_once <= 3
    assert residents.stats.resident == 8


@in_a_loop
async def test_a_slow_load_holds_up_no_other_key() -> None:
    shelf = Shelf()
    shelf.hold(5)
    residents = shelf.residents()
    slow = await begun(residents.get(5))
    assert await residents.get(6) == bytes(6)
    assert not slow.done()
    shelf.let_go(5)
    await slow


@in_a_loop
async def test_the_least_recently_used_goes_first() -> None:
    shelf = Shelf()
    residents = shelf.residents(100)
    for key in (30, 31, 32):
        await residents.get(key)
    await residents.get(30)
    await residents.get(33)
    assert residents.stats.evictions == 1
    await residents.get(30)
    assert shelf.loads[30] == 1
    await residents.get(31)
    assert shelf.loads[31] == 2


@in_a_loop
async def test_what_is_used_stays_and_counts_as_used_until_the_end() -> None:
    shelf = Shelf()
    residents = shelf.residents(100)
    async with residents.use(60) as value:
        for key in (30, 31, 32, 33):
            await residents.get(key)
            assert residents.stats.bytes <= 100
        assert value == bytes(60)
    await residents.get(39)
    async with residents.use(60):
        assert shelf.loads[60] == 1


@in_a_loop
async def test_where_all_is_used_a_load_waits_for_room() -> None:
    shelf = Shelf()
    residents = shelf.residents(100)
    async with residents.use(60):
        waiting = await begun(residents.get(70))
        small = await begun(residents.get(10))
        with suppress(asyncio.TimeoutError):
            await asyncio.wait_for(asyncio.shield(waiting), 0.05)
        assert not waiting.done()
        assert residents.stats.bytes == 60
    assert await waiting == bytes(70)
    assert await small == bytes(10)
    assert residents.stats.bytes == 80


@in_a_loop
async def test_a_value_larger_than_the_cache_says_what_to_raise() -> None:
    residents = Shelf().residents(100)
    await residents.get(50)
    with pytest.raises(ModelError, match="101 takes .* raise --cache-megabytes"):
        await residents.get(101)
    assert residents.stats.bytes == 50
    assert residents.stats.evictions == 0


@in_a_loop
async def test_a_failure_reaches_all_who_wait_and_is_not_tried_again_for_a_while() -> None:
    shelf = Shelf()
    shelf.broken.add(5)
    shelf.hold(5)
    residents = shelf.residents(retry_seconds=30)
    tasks = [await begun(residents.get(5)) for _ in range(3)]
    shelf.let_go(5)
    errors = await asyncio.gather(*tasks, return_exceptions=True)
    assert [str(error) for error in errors] == ["cannot read 5"] * 3
    for now in (0.0, 29.9):
        shelf.now = now
        with pytest.raises(StorageError, match="cannot read 5") as caught:
            await residents.get(5)
        assert len(caught.traceback) < 15
    assert shelf.loads == {5: 1}
    assert residents.stats.failures == 1
    assert residents.stats.resident == 0
    shelf.now = 30.0
    shelf.broken.clear()
    assert await residents.get(5) == bytes(5)


@in_a_loop
async def test_failures_are_forgotten_so_unknown_keys_take_no_memory() -> None:
    shelf = Shelf()
    shelf.broken.update(range(100))
    residents = shelf.residents(retry_seconds=3)
    for key in range(100):
        shelf.now = key
        with suppress(StorageError):
            await residents.get(key)
    assert len(residents._failures) <= 4


@in_a_loop
async def test_an_error_keeps_nothing_of_what_was_read() -> None:
    class Large(bytearray):
        left = 0

        def __init__(self) -> None:
            super().__init__()
            Large.left += 1

        def __del__(self) -> None:
            Large.left -= 1

    def load(key: int) -> bytes:
        read = Large()
        try:
            raise KeyError(len(read))
        except KeyError as exc:
            raise StorageError("no such key") from exc

    residents: Residents[int, bytes] = Residents(load, len, 100, group=lambda key: key)
    for _ in range(3):
        with suppress(StorageError):
            await residents.get(5)
    assert Large.left == 0


@in_a_loop
async def test_what_is_dropped_is_loaded_anew_and_counts_while_it_is_used() -> None:
    shelf = Shelf()
    residents = shelf.residents(100)
    async with residents.use(40):
        residents.drop(40)
        assert residents.stats.bytes == 40
        await residents.get(40)
        assert residents.stats.bytes == 80
    assert residents.stats.bytes == 40
    residents.drop(40)
    assert residents.stats.bytes == 0
    assert shelf.loads == {40: 2}


@in_a_loop
async def test_dropping_forgets_a_failure_and_a_load_under_way() -> None:
    shelf = Shelf()
    shelf.broken.add(5)
    residents = shelf.residents()
    with pytest.raises(StorageError):
        await residents.get(5)
    shelf.broken.clear()
    residents.drop(5)
    assert await residents.get(5) == bytes(5)
    shelf.hold(6)
    under_way = await begun(residents.preload(6))
    residents.drop(6)
    shelf.let_go(6)
    await under_way
    assert residents.stats.bytes == 5


@in_a_loop
async def test_who_foresees_a_use_counts_as_none() -> None:
    shelf = Shelf()
    residents = shelf.residents()
    await residents.preload(5)
    await residents.preload(5)
    await residents.get(5)
    stats = residents.stats
    assert (stats.hits, stats.misses, shelf.loads[5]) == (1, 0, 1)


@in_a_loop
async def test_a_load_that_nobody_waits_for_any_more_is_not_begun() -> None:
    shelf = Shelf()
    shelf.hold(1)
    residents = shelf.residents(loads_at_once=1)
    under_way = await begun(residents.get(1))
    gone = [await begun(residents.get(key)) for key in range(2, 40)]
    stays = await begun(residents.get(2))
    for task in gone:
        task.cancel()
    await asyncio.wait(gone)
    assert set(residents._entries) == {1, 2}
    again = await begun(residents.get(3))
    shelf.let_go(1)
    await asyncio.gather(under_way, stays, again)
    assert shelf.loads == {1: 1, 2: 1, 3: 1}


@in_a_loop
async def test_a_use_is_waited_for_until_its_time_is_over() -> None:
    shelf = Shelf()
    shelf.hold(1)
    residents = shelf.residents(loads_at_once=1)
    under_way = await begun(residents.get(1))
    for key in (1, 2):
        with pytest.raises(TimeoutError, match=f"{key} was not loaded within the time given"):
            async with residents.use(key, 0.01):
                pass
    shelf.let_go(1)
    await under_way
    async with residents.use(1, 0.0) as value:  # it is there: nothing is waited for
        assert value == bytes(1)
    assert shelf.loads == {1: 1}


@in_a_loop
async def test_a_group_that_asks_for_a_thousand_keys_holds_up_no_other() -> None:
    shelf = Shelf()
    shelf.hold(*range(1, 5000))
    residents = shelf.residents(10**9, group=lambda key: key // 1000)
    tasks = [await begun(residents.get(key)) for key in (*range(1000, 2000), *range(2000, 3000))]
    while len(shelf.loads) < 2:
        await asyncio.sleep(0)
    late = [await begun(residents.get(key)) for key in (3000, 3001, 4000)]
    began = set(shelf.loads)
    assert began == {1000, 2000}
    shelf.let_go(1000)
    await tasks[0]
    shelf.let_go(3000)
    assert await late[0] == bytes(3000)
    assert set(shelf.loads) <= {*began, 3000, 4000}
    shelf.let_go(*range(1, 5000))
    await asyncio.gather(*tasks, *late)
    assert shelf.most_at_once == 2
    assert set(shelf.loads.values()) == {1}


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["get", "until", "use", "use", "release", "drop", "cancel", "wait"]),
            st.integers(1, 40),
        ),
        max_size=60,
    )
)
@settings(max_examples=150, deadline=None)
def test_the_bound_holds_and_values_in_use_stay(deeds: list[tuple[str, int]]) -> None:
    async def do() -> None:
        shelf = Shelf()
        shelf.broken.update({7, 17})
        residents = shelf.residents(100, retry_seconds=0, group=lambda key: key % 3)
        ends: list[tuple[asyncio.Task[None], asyncio.Event]] = []
        tasks: list[asyncio.Task[Any]] = []
        used: Counter[int] = Counter()
        index = residents._entries

        async def use(key: int, end: asyncio.Event) -> None:
            with suppress(StorageError):
                async with residents.use(key) as value:
                    entry = next((e for e in index.values() if e.value is value), None)
                    used[key] += 1
                    await end.wait()
                    used[key] -= 1
                    if entry is not None:
                        assert entry.size == key  # never given up meanwhile

        async def briefly(key: int) -> None:
            with suppress(StorageError, TimeoutError):
                async with residents.use(key, 0.001):
                    pass

        def check() -> None:
            kept = sum(entry.size for entry in index.values())
            assert kept <= residents.stats.bytes <= 100

        for deed, key in deeds:
            if deed == "get":
                tasks.append(await begun(residents.get(key)))
            elif deed == "until":
                tasks.append(await begun(briefly(key)))
            elif deed == "use":
                end = asyncio.Event()
                ends.append((await begun(use(key, end)), end))
            elif deed == "release" and ends:
                ends[key % len(ends)][1].set()
            elif deed == "cancel" and tasks:
                tasks[key % len(tasks)].cancel()
            elif deed == "drop":
                residents.drop(key)
            await (asyncio.to_thread(int) if deed == "wait" else asyncio.sleep(0))
            check()
        for task, end in ends:
            end.set()
            tasks.append(task)
        outcomes = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
        for outcome in outcomes:
            assert not isinstance(outcome, AssertionError)
        check()
        assert not +used
        for key in list(index):
            residents.drop(key)
        await residents.get(100)
        residents.drop(100)
        assert residents.stats.bytes == 0

    asyncio.run(do())
