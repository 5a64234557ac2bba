"""The batcher, with models that run when told to, or in a time of their own."""

import asyncio
import itertools
import math
import pickle
import queue
import random
from collections import Counter
from collections.abc import Awaitable, Container, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from in_a_loop import in_a_loop

from raytag.serve.batching import (
    Batcher,
    BatchStats,
    DeadlineExceeded,
    Draining,
    NoTime,
    Overloaded,
)


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Held:
    """A model that answers each piece with itself, or fails it, and runs a batch when told to."""

    def __init__(self, loop: asyncio.AbstractEventLoop, fails: Container[Any] = ()) -> None:
        self._fails = fails
        self.batches: list[list[Any]] = []
        self._loop = loop
        self._begun: asyncio.Queue[list[Any]] = asyncio.Queue()
        self._go: queue.SimpleQueue[BaseException | None] = queue.SimpleQueue()

    def run(self, pieces: Sequence[Any]) -> list[Any]:
        self.batches.append(list(pieces))
        self._loop.call_soon_threadsafe(self._begun.put_nowait, list(pieces))
        failure = self._go.get(timeout=60)
        if failure is not None:
            raise failure
        return [KeyError(piece) if piece in self._fails else piece for piece in pieces]

    async def begun(self) -> list[Any]:
        return await asyncio.wait_for(self._begun.get(), 60)

    def go(self, batches: int = 1, failure: Exception | None = None) -> None:
        for _ in range(batches):
            self._go.put(failure)


@dataclass
class Ask:
    """What is asked at a time, and how it went."""

    at: float
    tenant: str
    tokens: list[int]
    deadline: float | None = None
    ended: float = math.nan
    error: Exception | None = None


class Simulation:
    """A model that takes ``fixed + per_token * padded`` seconds of a clock that only it moves;
    what is asked meanwhile comes in while it runs."""

    def __init__(
        self, asks: Sequence[Ask], fixed: float = 0.005, per_token: float = 5e-5, **options: Any
    ) -> None:
        self.clock = Clock()
        self.asks = sorted(asks, key=lambda ask: ask.at)
        self.batches: list[list[tuple[Ask, int]]] = []
        self.stats: list[BatchStats] = []
        self._coming = list(reversed(self.asks))
        self._fixed, self._per_token = fixed, per_token
        given = {"batch_tokens": 4096, "batch_seconds": 0.05, "queue_seconds": 0.5, **options}
        self.batcher: Batcher[tuple[Ask, int], int] = Batcher(
            self._run, clock=self.clock, on_batch=self.stats.append, **given
        )
        asyncio.run(self._simulate())

    async def _simulate(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        while self._coming:
            await self._begin(self._coming.pop())
            while pending := {task for task in self._tasks if not task.done()}:
                await asyncio.wait(pending, timeout=60)
        for task in self._tasks:
            task.result()
        assert self.batcher.waiting_tokens == 0
        await self.batcher.drain()

    async def _begin(self, ask: Ask) -> None:
        self.clock.now = max(self.clock.now, ask.at)
        self._tasks.add(self._loop.create_task(self._ask(ask)))
        await asyncio.sleep(0)

    async def _ask(self, ask: Ask) -> None:
        pieces = [(ask, index) for index in range(len(ask.tokens))]
        try:
            answers = await self.batcher.ask(pieces, ask.tokens, ask.tenant, ask.deadline)
            assert answers == list(range(len(pieces)))
        except (Overloaded, DeadlineExceeded) as exc:
            ask.error = exc
        ask.ended = self.clock.now

    def _run(self, pieces: Sequence[tuple[Ask, int]]) -> list[int]:
        self.batches.append(list(pieces))
        padded = len(pieces) * max(ask.tokens[index] for ask, index in pieces)
        end = self.clock.now + self._fixed + self._per_token * padded
        while self._coming and self._coming[-1].at <= end:
            asyncio.run_coroutine_threadsafe(self._begin(self._coming.pop()), self._loop).result(60)
        self.clock.now = end
        return [index for _, index in pieces]


def held(fails: Container[Any] = (), **options: Any) -> tuple[Held, Batcher[Any, Any]]:
    model = Held(asyncio.get_running_loop(), fails)
    given = {"batch_tokens": 1000, "batch_seconds": 60, "queue_seconds": 1e9, **options}
    return model, Batcher(model.run, **given)


async def asked(ask: Awaitable[Any]) -> asyncio.Task[Any]:
    """A task for it that has got as far as it gets."""

    async def wait() -> Any:
        return await ask

    task = asyncio.get_running_loop().create_task(wait())
    await asyncio.sleep(0)
    return task


@in_a_loop
async def test_an_idle_model_starts_at_once_and_pieces_gather_while_it_runs() -> None:
    model, batcher = held()
    first = await asked(batcher.ask(["a"], [10], "acme"))
    assert await model.begun() == ["a"]
    others = [await asked(batcher.ask([i, -i], [10, 10], f"t{i}")) for i in range(1, 4)]
    assert batcher.waiting_tokens == 60
    model.go(2)
    assert sorted(await model.begun()) == [-3, -2, -1, 1, 2, 3]
    assert batcher.waiting_tokens == 0
    assert await first == ["a"]
    assert await asyncio.gather(*others) == [[1, -1], [2, -2], [3, -3]]
    await batcher.drain()


@in_a_loop
async def test_asks_of_one_turn_of_the_loop_share_a_batch() -> None:
    model, batcher = held()
    model.go()
    answers = await asyncio.gather(*(batcher.ask([i], [10], "acme") for i in range(9)))
    assert answers == [[i] for i in range(9)]
    assert len(model.batches) == 1


@in_a_loop
async def test_nothing_asked_is_answered_with_nothing() -> None:
    _, batcher = held()
    assert await batcher.ask([], [], "acme") == []
    with pytest.raises(ValueError, match="number of tokens"):
        await batcher.ask(["a"], [], "acme")
    with pytest.raises(ValueError, match="at least 1"):
        await batcher.ask(["a"], [0], "acme")


@in_a_loop
async def test_ten_thousand_windows_delay_anothers_single_one_by_a_batch() -> None:
    model, batcher = held()
    many = await asked(batcher.ask([("many", i) for i in range(10_000)], [100] * 10_000, "many"))
    await model.begun()
    single = await asked(batcher.ask(["single"], [90], "single"))
    model.go(2)
    assert "single" in await model.begun()
    assert await single == ["single"]
    assert len(await model.begun()) == 10
    many.cancel()
    model.go()
    await asyncio.wait([many])
    await batcher.drain()
    assert len(model.batches) == 3


@given(
    st.lists(st.integers(1, 500), min_size=1, max_size=5),
    st.lists(st.integers(1, 500), min_size=1, max_size=5),
    st.integers(0, 9),
)
@settings(max_examples=12, deadline=None)
def test_tenants_with_much_waiting_get_the_same_whatever_their_lengths(
    ones: list[int], others: list[int], seed: int
) -> None:
    """They differ by what may be taken ahead at most: three batches and a piece."""
    rng = random.Random(seed)
    asks = [
        Ask(0, name, [rng.choice(lengths) for _ in range(20_000 // max(lengths))])
        for name, lengths in [("one", ones), ("other", others)]
    ]
    simulation = Simulation(
        [Ask(0, "first", [1]), *asks], batch_tokens=1000, batch_seconds=9, queue_seconds=1e9
    )
    given: Counter[str] = Counter()
    left = {ask.tenant: sum(ask.tokens) for ask in asks}
    for batch in simulation.batches[1:]:
        for ask, index in batch:
            given[ask.tenant] += ask.tokens[index]
        if any(given[tenant] == count for tenant, count in left.items()):
            return
        assert abs(given["one"] - given["other"]) <= 3 * 1000 + 2 * 500


def test_a_tenant_that_idles_saves_nothing_up() -> None:
    """It is not owed what it did not ask for: after its return both get the same."""
    asks = [Ask(0, "busy", [100] * 4000), *(Ask(at, "back", [100] * 80) for at in (0, 10))]
    simulation = Simulation(asks, batch_tokens=1000, queue_seconds=1e9)
    later = [b for b in simulation.batches if any(a is simulation.asks[-1] for a, _ in b)]
    assert len(later) >= 15


def test_pieces_of_like_length_go_together() -> None:
    asks = [Ask(0, "acme", [1]), *(Ask(0, "acme", [n]) for _ in range(30) for n in (20, 100, 300))]
    simulation = Simulation(asks, per_token=1e-4, batch_seconds=9, batch_tokens=1500)
    lengths = [{ask.tokens[i] for ask, i in batch} for batch in simulation.batches]
    assert sum(len(found) == 1 for found in lengths) > len(lengths) / 2
    padded = sum(stats.padded for stats in simulation.stats)
    assert padded <= 1.15 * sum(stats.tokens for stats in simulation.stats)


def test_where_a_batch_itself_is_dear_unlike_lengths_share_one() -> None:
    asks = [Ask(at, "acme", [n]) for at in range(9) for n in (20, 400, 20, 400)]
    simulation = Simulation(asks, fixed=0.5, per_token=1e-5, batch_seconds=9, queue_seconds=9)
    assert any({a.tokens[0] for a, _ in batch} == {20, 400} for batch in simulation.batches)


def test_requests_of_a_tenant_go_by_arrival() -> None:
    asks = [Ask(0, "acme", [100] * 3) for _ in range(50)]
    simulation = Simulation(asks, batch_tokens=600, queue_seconds=1e9)
    ended = [ask.ended for ask in simulation.asks]
    assert ended == sorted(ended)
    assert len(set(ended)) > 20


@in_a_loop
async def test_a_huge_request_lets_later_small_ones_of_its_tenant_pass() -> None:
    model, batcher = held()
    huge = await asked(batcher.ask([("huge", i) for i in range(1000)], [100] * 1000, "acme"))
    await model.begun()
    small = [await asked(batcher.ask([f"small {i}"], [100], "acme")) for i in range(5)]
    model.go(4)
    for _ in range(3):
        await model.begun()
    assert [await task for task in small] == [[f"small {i}"] for i in range(5)]
    model.go(1000)
    assert await huge == [("huge", i) for i in range(1000)]
    await batcher.drain()


def test_a_huge_request_comes_through_beside_many_small_ones_of_its_tenant() -> None:
    small = [Ask(at / 100, "acme", [100]) for at in range(2000)]
    huge = Ask(0.1, "acme", [100] * 100)
    simulation = Simulation(
        [*small, huge], fixed=0, per_token=1.1e-4, batch_tokens=1000, queue_seconds=1e9
    )
    assert huge.ended < 15
    assert max(ask.ended - ask.at for ask in small if ask.at < 10) < 8
    assert simulation.batches


CAPACITY = 18_000
"""Tokens/s of the simulated model in batches of 50 ms, of which 5 are fixed."""


def overload(times: float, seconds: float, **options: Any) -> Simulation:
    """Poisson arrivals of one tenant at so many times what the model can carry."""
    rng = random.Random(5)
    at, asks = 0.0, []
    while at < seconds:
        tokens = [rng.randint(20, 120) for _ in range(rng.choice([1, 1, 1, 2, 4]))]
        asks.append(Ask(at, "noisy", tokens))
        at += rng.expovariate(times * CAPACITY / sum(tokens))
    return Simulation(asks, **options)


def waits(asks: Sequence[Ask]) -> list[float]:
    return sorted(ask.ended - ask.at for ask in asks if ask.error is None)


def test_at_three_times_the_load_accepted_ones_wait_no_longer_and_the_model_stays_busy() -> None:
    simulation = overload(3, 8)
    refused = [ask for ask in simulation.asks if ask.error is not None]
    assert len(refused) > len(simulation.asks) / 2
    for ask in refused:
        assert type(ask.error) is Overloaded  # and no request's own want of time
        assert 0 < ask.error.retry_after < 1
        assert ask.ended == ask.at  # at once
    assert waits(simulation.asks)[-1] < 2 * 0.5
    busy = sum(stats.seconds for stats in simulation.stats)
    assert busy >= 0.99 * simulation.clock.now
    tokens = sum(sum(ask.tokens) for ask in simulation.asks if ask.error is None)
    assert tokens / simulation.clock.now >= 0.8 * CAPACITY  # the rest is padding


def test_below_what_it_can_carry_nothing_is_refused() -> None:
    assert not [ask for ask in overload(0.7, 8).asks if ask.error is not None]


def test_without_a_bound_the_simulation_sees_the_waits_grow() -> None:
    """Guards the guard."""
    assert waits(overload(3, 4, queue_seconds=1e9).asks)[-1] > 2


def test_an_overload_of_one_tenant_neither_refuses_nor_slows_another() -> None:
    rng = random.Random(7)
    noisy = [Ask(at / 500, "noisy", [100] * 4) for at in range(5000)]
    quiet = [Ask(at, "quiet", [rng.randint(20, 300)]) for at in range(10)]
    simulation = Simulation([*noisy, *quiet])
    assert sum(ask.error is not None for ask in noisy) > 2000
    assert all(ask.error is None for ask in quiet)
    assert waits(quiet)[-1] <= 0.13
    assert simulation.batches


def test_batches_keep_to_their_tokens_and_once_the_speed_is_known_to_their_seconds() -> None:
    rng = random.Random(3)
    asks = [
        Ask(at / 50, f"tenant {at % 7}", [rng.randint(1, 900) for _ in range(rng.randint(1, 20))])
        for at in range(800)
    ]
    options = {"batch_tokens": 2000, "batch_seconds": 0.08, "per_token": 1e-4}
    simulation = Simulation(asks, **options)
    assert all(one.padded <= 2000 or one.rows == 1 for one in simulation.stats)
    several = [one.seconds for one in simulation.stats[20:] if one.rows > 1]
    assert max(several) <= 0.08 * 1.02
    assert sum(several) / len(several) >= 0.04


def test_batches_become_small_for_a_slow_model_and_large_again_for_a_fast_one() -> None:
    asks = [Ask(at / 10, "acme", [50] * 20) for at in range(40)]
    slow = Simulation(asks, per_token=1e-3, queue_seconds=1e9, fixed=0)
    assert max(one.rows for one in slow.stats[20:]) == 1
    asks = [Ask(at / 10, "acme", [50] * 20) for at in range(40)]
    fast = Simulation(asks, per_token=1e-5, queue_seconds=1e9, fixed=0)
    assert max(one.rows for one in fast.stats) == 20


def test_one_slow_batch_is_forgotten() -> None:
    """The first batch of a cold model may take a hundred times as long."""

    class Cold(Simulation):
        def _run(self, pieces: Sequence[tuple[Ask, int]]) -> list[int]:
            if not self.batches:
                self.clock.now += 2
            return super()._run(pieces)

    asks = [Ask(at / 10 + i / 1000, "acme", [100]) for at in range(100) for i in range(3)]
    simulation = Cold(asks)
    assert all(ask.error is None for ask in asks if ask.at > 4)
    assert simulation.batches


@in_a_loop
async def test_the_tenant_with_the_most_waiting_gives_way_when_all_is_full() -> None:
    model, batcher = held(most_tokens=1000)
    running = await asked(batcher.ask(["running"], [1], "many"))
    await model.begun()
    many = [await asked(batcher.ask([i], [300], "many")) for i in range(3)]
    with pytest.raises(Overloaded):
        await batcher.ask([3], [300], "many")
    other = await asked(batcher.ask(["other"], [250], "other"))
    assert batcher.waiting_tokens == 850
    with pytest.raises(Overloaded):
        await many[2]
    with pytest.raises(Overloaded):
        await batcher.ask(["other"], [800], "other")
    assert batcher.waiting_tokens == 850
    model.go(9)
    assert await asyncio.gather(running, *many[:2], other) == [["running"], [0], [1], ["other"]]
    await batcher.drain()


@in_a_loop
async def test_a_deadline_that_passed_drops_what_waits() -> None:
    clock = Clock()
    model, batcher = held(clock=clock)
    first = await asked(batcher.ask(["first"], [10], "acme", 5.0))
    await model.begun()
    late = await asked(batcher.ask(["late", "too"], [10, 10], "acme", 5.0))
    in_time = await asked(batcher.ask(["in time"], [10], "acme", 7.0))
    clock.now = 6.0
    model.go(2)
    assert await first == ["first"]  # it was in a batch already
    with pytest.raises(DeadlineExceeded):
        await late
    assert await in_time == ["in time"]
    assert model.batches == [["first"], ["in time"]]
    with pytest.raises(DeadlineExceeded):
        await batcher.ask(["late"], [10], "acme", 6.0)
    await batcher.drain()


def test_a_deadline_that_cannot_be_kept_is_refused_at_once_unless_nothing_waits() -> None:
    asks = [Ask(0, "acme", [100] * n) for n in (1, 20, 40)]  # learn: 5 ms and 0.05 ms a token
    asks += [Ask(9, "acme", [100] * 40, 9.01), Ask(9.001, "acme", [100] * 8, 9.002)]
    simulation = Simulation(asks, batch_seconds=9)
    first, second = simulation.asks[-2:]
    assert first.error is None
    assert isinstance(second.error, DeadlineExceeded)  # taken, for nothing waited
    asks = [Ask(0, "acme", [100] * n) for n in (1, 20, 40)]
    asks += [Ask(9 + i / 1000, "acme", [100] * 8, 10.0) for i in range(9)]
    asks += [Ask(9.01, "acme", [100] * 8, 9.02)]
    simulation = Simulation(asks, batch_seconds=9)
    *others, hopeless = simulation.asks[3:]
    assert isinstance(hopeless.error, NoTime)  # not the service's fault: more time would do
    assert hopeless.error.retry_after > 0
    assert hopeless.ended == hopeless.at
    assert all(ask.error is None for ask in others)


@in_a_loop
async def test_a_cancelled_ask_takes_out_what_waits_of_it() -> None:
    model, batcher = held()
    first = await asked(batcher.ask(["first", "waits"], [600, 600], "acme"))
    assert await model.begun() == ["first"]
    second = await asked(batcher.ask(["second"], [10], "acme"))
    first.cancel()
    await asyncio.wait([first])
    assert first.cancelled()
    assert batcher.waiting_tokens == 10
    model.go(2)
    assert await second == ["second"]
    await batcher.drain()
    assert model.batches == [["first"], ["second"]]


@in_a_loop
async def test_a_failing_piece_fails_its_own_request_only() -> None:
    def run(pieces: Sequence[int]) -> list[int | Exception]:
        return [KeyError(piece) if piece < 0 else piece for piece in pieces]

    batcher: Batcher[int, int] = Batcher(run, batch_tokens=100, batch_seconds=9, queue_seconds=9)
    outcomes = await asyncio.gather(
        batcher.ask([1, 2], [9, 9], "acme"),
        batcher.ask([3, -4, *[5] * 100], [9] * 102, "acme"),
        batcher.ask([6], [9], "other"),
        return_exceptions=True,
    )
    assert outcomes[0] == [1, 2]
    assert repr(outcomes[1]) == "KeyError(-4)"
    assert outcomes[2] == [6]
    assert batcher.waiting_tokens == 0
    await batcher.drain()


@pytest.mark.parametrize("failure", ["raises", "stops", "answers too few"])
def test_a_batch_that_fails_is_run_again_request_by_request(failure: str) -> None:
    ran: list[list[int]] = []

    def run(pieces: Sequence[int]) -> list[int]:
        ran.append(list(pieces))
        if min(pieces) >= 0:
            return list(pieces)
        if failure == "answers too few":
            return []
        raise (ZeroDivisionError if failure == "raises" else StopIteration)

    async def ask_all() -> None:
        batcher: Batcher[int, int] = Batcher(
            run, batch_tokens=100, batch_seconds=9, queue_seconds=9
        )
        outcomes = await asyncio.gather(
            batcher.ask([1, 2], [9, 9], "acme"),
            batcher.ask([-3, 4], [9, 9], "acme"),
            batcher.ask([5], [9], "other"),
            return_exceptions=True,
        )
        assert outcomes[0] == [1, 2]
        assert isinstance(outcomes[1], ZeroDivisionError | RuntimeError | ValueError)
        assert outcomes[2] == [5]
        await batcher.drain()

    asyncio.run(ask_all())
    assert sorted(map(len, ran)) == [1, 2, 2, 5]


@in_a_loop
async def test_draining_finishes_what_is_there_and_takes_nothing_new() -> None:
    model, batcher = held()
    first = await asked(batcher.ask(["first"], [10], "acme"))
    await model.begun()
    second = await asked(batcher.ask(["second"], [10], "acme"))
    drain = await asked(batcher.drain())
    with pytest.raises(Draining, match="about to end"):
        await batcher.ask(["third"], [10], "acme")
    assert not drain.done()
    model.go(2)
    await drain
    assert await first == ["first"]
    assert await second == ["second"]
    await batcher.drain()


@in_a_loop
async def test_each_batch_is_reported_and_a_reporter_that_fails_harms_nothing() -> None:
    clock, seen = Clock(), list[BatchStats]()
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: complaints.append(about))

    def report(stats: BatchStats) -> None:
        seen.append(stats)
        raise ZeroDivisionError

    model, batcher = held(clock=clock, on_batch=report)
    first = await asked(batcher.ask(["first"], [10], "acme"))
    await model.begun()
    second = await asked(batcher.ask(["second", "too"], [10, 8], "acme"))
    clock.now = 3.0
    model.go()
    await model.begun()
    clock.now = 5.0
    model.go()
    assert [await first, await second] == [["first"], ["second", "too"]]
    await batcher.drain()
    await asyncio.sleep(0)
    assert seen == [BatchStats(1, 10, 10, 3.0, (0.0,)), BatchStats(2, 18, 20, 2.0, (3.0,))]
    assert len(complaints) == 2


def test_refusals_travel_between_processes() -> None:
    for refusal in (Overloaded(2.5), Draining(), DeadlineExceeded("too late")):
        copy = pickle.loads(pickle.dumps(refusal))
        assert type(copy) is type(refusal)
        assert str(copy) == str(refusal)
    assert pickle.loads(pickle.dumps(Overloaded(2.5))).retry_after == 2.5


deeds = st.lists(
    st.one_of(
        st.tuples(
            st.just("ask"),
            st.sampled_from("abc"),
            st.lists(st.tuples(st.integers(1, 300), st.booleans()), max_size=12),
            st.one_of(st.none(), st.integers(0, 9)),
        ),
        st.tuples(st.just("cancel"), st.integers(0, 30)),
        st.tuples(st.just("run"), st.booleans()),
        st.tuples(st.just("later"), st.integers(1, 3)),
    ),
    max_size=40,
)


@given(deeds)
@settings(max_examples=100, deadline=None)
def test_every_ask_ends_once_with_answers_in_order(deeds: list[tuple[Any, ...]]) -> None:
    async def do() -> None:
        clock, numbers, failing = Clock(), itertools.count(), set[int]()
        options = {"batch_seconds": 2, "queue_seconds": 9, "most_tokens": 3000}
        model, batcher = held(failing, clock=clock, batch_tokens=500, **options)
        asks: list[tuple[list[int], asyncio.Task[Any]]] = []
        for deed, *about in deeds:
            if deed == "ask":
                tenant, found, seconds = about
                pieces = [next(numbers) for _ in found]
                failing.update(i for i, (_, f) in zip(pieces, found, strict=True) if f)
                deadline = None if seconds is None else clock.now + seconds
                ask = batcher.ask(pieces, [tokens for tokens, _ in found], tenant, deadline)
                asks.append((pieces, await asked(ask)))
            elif deed == "cancel" and asks:
                asks[about[0] % len(asks)][1].cancel()
            elif deed == "run":
                model.go(1, ZeroDivisionError() if about[0] else None)
                for _ in range(20):
                    await asyncio.sleep(0)
            elif deed == "later":
                clock.now += about[0]
        model.go(1000)
        await asyncio.wait_for(batcher.drain(), 60)
        for pieces, task in asks:
            await asyncio.wait_for(asyncio.wait([task]), 60)
            if task.cancelled():
                continue
            if task.exception() is None:
                assert task.result() == pieces
                assert not failing.intersection(pieces)
            else:
                known = KeyError | ZeroDivisionError | Overloaded | DeadlineExceeded
                assert isinstance(task.exception(), known)
        assert batcher.waiting_tokens == 0
        ran = Counter(piece for batch in model.batches for piece in batch)
        assert not ran or max(ran.values()) <= 2

    asyncio.run(do())
