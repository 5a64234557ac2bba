"""Limits of tenants: never more than is allowed, a Retry-After that holds, each for itself."""

import contextlib
from collections.abc import Iterator
from itertools import accumulate, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raytag.errors import SettingsError
from raytag.serve.limits import (
    CONCURRENT_RETRY,
    SPARE,
    Lease,
    Limiter,
    Limits,
    OverLimit,
    Shares,
)

rates = st.floats(0.01, 1e6)
bursts = st.floats(0.01, 100)
shares = st.floats(0.001, 1)
begins = st.sampled_from([0.0, 1e5, 1.8e9])
gaps = st.floats(0, 20) | st.just(0.0) | st.floats(0, 0.01)
SLACK = 1e-4
"""Of a second: what clocks near 1.8e9 and sums of floats may be off by in a long run."""


def limiter(limits: Limits, share: float = 1.0) -> Limiter:
    return Limiter(limits, {}, share)


def over(limiter: Limiter, characters: int, now: float, tenant: str = "acme") -> OverLimit | None:
    """Why a request is refused; one that is not is answered at once."""
    try:
        limiter.admit(tenant, characters, now).release()
    except OverLimit as exc:
        return exc
    return None


@st.composite
def requests(draw: st.DrawFn, largest: float = 1e6) -> list[tuple[float, int]]:
    """(when, characters), in order."""
    begin = draw(begins)
    characters = st.integers(0, int(largest))
    drawn = draw(st.lists(st.tuples(gaps, characters), min_size=1, max_size=40))
    times = accumulate((gap for gap, _ in drawn), initial=begin)
    return list(zip(list(times)[1:], (count for _, count in drawn), strict=True))


def windows(admitted: list[tuple[float, int]]) -> Iterator[tuple[float, list[int]]]:
    """(seconds, costs) of every stretch that begins and ends with an admitted request."""
    for i, j in product(range(len(admitted)), repeat=2):
        if i <= j:
            yield admitted[j][0] - admitted[i][0], [cost for _, cost in admitted[i : j + 1]]


@settings(deadline=None)
@given(st.data(), rates, rates, bursts, shares | st.just(1.0))
def test_no_window_holds_more_than_its_rate_and_one_burst(
    data: st.DataObject, per_second: float, characters: float, burst: float, share: float
) -> None:
    limits = Limits(
        requests_per_second=per_second, characters_per_second=characters, burst_seconds=burst
    )
    door = limiter(limits, share)
    asked = data.draw(requests(1.5 * limits.largest_request))
    admitted = [(at, count) for at, count in asked if over(door, count, at) is None]
    for seconds, counts in windows(admitted):
        time = seconds * share + SLACK
        assert sum(counts) <= characters * (time + burst) * (1 + 1e-9)
        assert len(counts) <= per_second * time + max(1, per_second * burst) * (1 + 1e-9)


@settings(deadline=None)
@given(st.data(), rates, bursts, st.lists(shares, min_size=1))
def test_a_share_that_changes_adds_one_burst_at_most(
    data: st.DataObject, rate: float, burst: float, changes: list[float]
) -> None:
    limits = Limits(characters_per_second=rate, burst_seconds=burst)
    door = limiter(limits)
    share, given, admitted = 1.0, 0.0, []
    asked = data.draw(requests(limits.largest_request))
    before = asked[0][0]
    for at, count in asked:
        given += share * (at - before)
        before = at
        if over(door, count, at) is None:
            admitted.append((given, count))
        share = data.draw(st.sampled_from([share, *changes]))
        door.set_share(share, {}, at)
    for seconds, counts in windows(admitted):
        assert sum(counts) <= rate * (seconds + SLACK + 2 * burst) * (1 + 1e-9)


@settings(deadline=None)
@given(st.data(), st.none() | rates, st.none() | rates, bursts, shares | st.just(1.0))
def test_a_refused_request_passes_after_retry_after_and_not_before(
    data: st.DataObject,
    per_second: float | None,
    characters: float | None,
    burst: float,
    share: float,
) -> None:
    limits = Limits(
        requests_per_second=per_second, characters_per_second=characters, burst_seconds=burst
    )
    door = limiter(limits, share)
    shift = 0.0
    for at, count in data.draw(requests(min(1e7, limits.largest_request))):
        refused = over(door, count, at + shift)
        if refused is not None:
            wait = refused.retry_after
            assert wait is not None
            assert wait > 0
            if wait > 1e-3:
                assert over(door, count, at + shift + wait * 0.99 - 1e-5) is not None
            shift += wait
            assert over(door, count, at + shift) is None


@settings(deadline=None)
@given(st.data(), rates, bursts)
def test_refused_requests_cost_nothing(data: st.DataObject, rate: float, burst: float) -> None:
    limits = Limits(requests_per_second=rate, characters_per_second=rate, burst_seconds=burst)
    asked = data.draw(requests(1.5 * limits.largest_request))
    door = limiter(limits)
    for at, count in asked:
        refused = over(door, count, at)
        if refused is not None:
            again = [over(door, count, at) for _ in range(5)]
            assert {one and one.retry_after for one in again} == {refused.retry_after}


@settings(deadline=None)
@given(st.data(), rates, bursts)
def test_no_tenant_is_served_otherwise_because_of_another(
    data: st.DataObject, rate: float, burst: float
) -> None:
    limits = Limits(
        requests_per_second=rate,
        characters_per_second=rate,
        concurrent_requests=2,
        burst_seconds=burst,
    )
    both, alone = limiter(limits), limiter(limits)
    for at, count in data.draw(requests(1.5 * limits.largest_request)):
        for _ in range(data.draw(st.integers(0, 5))):
            held = over(both, count, at, data.draw(st.sampled_from(["noisy", "other"])))
            assert held is None or "acme" not in str(held)
        said, expected = over(both, count, at), over(alone, count, at)
        assert str(said) == str(expected)
        assert said is None or expected is None or said.retry_after == expected.retry_after


def test_without_limits_everything_passes_and_nothing_is_kept() -> None:
    door = limiter(Limits())
    assert all(over(door, 10**12, 0.0, f"tenant{number}") is None for number in range(1000))
    assert len(door) <= 2


def test_a_limit_is_named_with_the_time_to_wait() -> None:
    door = Limiter(
        Limits(requests_per_second=2, burst_seconds=1), {"big": Limits(characters_per_second=5)}
    )
    assert [over(door, 1, 0.0) for _ in range(2)] == [None, None]
    refused = over(door, 1, 0.0)
    assert refused is not None
    assert (refused.limit, refused.retry_after) == ("requests_per_second", 0.5)
    assert str(refused) == "acme is over its limit of 2 requests a second; try again in 0.5 seconds"
    assert over(door, 50, 0.0, "big") is None
    refused = over(door, 50, 4.0, "big")
    assert refused is not None
    assert (refused.limit, refused.retry_after) == ("characters_per_second", 6.0)


def test_the_longest_wait_is_told() -> None:
    door = limiter(Limits(requests_per_second=1, characters_per_second=10, burst_seconds=1))
    assert over(door, 10, 0.0) is None
    refused = over(door, 5, 0.0)
    assert refused is not None
    assert (refused.limit, refused.retry_after) == ("requests_per_second", 1.0)


def test_a_request_that_never_fits_is_told_to_be_split() -> None:
    door = limiter(Limits(characters_per_second=100, burst_seconds=10))
    refused = over(door, 1001, 0.0)
    assert refused is not None
    assert (refused.limit, refused.retry_after) == ("characters_per_second", None)
    assert str(refused) == "acme may send at most 1,000 characters at a time, not 1,001; " + (
        "split the request"
    )
    assert over(door, 1000, 0.0) is None


def test_the_largest_request_is_the_same_at_any_share() -> None:
    door = limiter(Limits(characters_per_second=100, burst_seconds=10), share=0.1)
    assert over(door, 1000, 0.0) is None
    refused = over(door, 1000, 0.0)
    assert refused is not None
    assert refused.retry_after == pytest.approx(100)  # 1000 characters at 10 a second


def test_less_than_one_request_a_second_can_be_allowed() -> None:
    door = limiter(Limits(requests_per_second=0.1, burst_seconds=1))
    admitted = [at for at in range(100) if over(door, 1, float(at)) is None]
    assert admitted == list(range(0, 100, 10))


def test_requests_under_way_are_counted_until_they_are_released() -> None:
    door = limiter(Limits(concurrent_requests=2))
    first = door.admit("acme", 1, 0.0)
    with door.admit("acme", 1, 0.0):
        refused = over(door, 1, 0.0)
        assert refused is not None
        assert (refused.limit, refused.retry_after) == ("concurrent_requests", CONCURRENT_RETRY)
        assert over(door, 1, 0.0, "other") is None
    assert over(door, 1, 0.0) is None
    first.release()
    first.release()
    leases = [door.admit("acme", 1, 0.0), door.admit("acme", 1, 0.0)]
    assert over(door, 1, 0.0) is not None
    with pytest.raises(ZeroDivisionError), leases[0]:
        _ = 1 / 0
    assert over(door, 1, 0.0) is None


@pytest.mark.parametrize(
    ("most", "ingresses", "here"), [(8, 8, 1), (8, 3, 3), (1, 4, 1), (3, 3, 1)]
)
def test_requests_at_a_time_are_shared_too_and_never_none(
    most: int, ingresses: int, here: int
) -> None:
    door = limiter(Limits(concurrent_requests=most), 1 / ingresses)
    leases: list[Lease] = []
    for _ in range(here):
        leases.append(door.admit("acme", 1, 0.0))
    assert over(door, 1, 0.0) is not None


def test_a_share_that_changes_forgets_nothing() -> None:
    door = limiter(Limits(requests_per_second=10, burst_seconds=1, concurrent_requests=9))
    lease = door.admit("acme", 1, 0.0)
    assert [over(door, 1, 0.0) for _ in range(9)] == [None] * 9
    door.set_share(0.5, {}, 0.0)
    refused = over(door, 1, 0.0)
    assert refused is not None
    assert refused.retry_after == pytest.approx(0.2)
    door.set_share(1.0, {}, 0.1)
    refused = over(door, 1, 0.1)
    assert refused is not None
    assert refused.retry_after == pytest.approx(0.05)
    lease.release()
    assert len(door) == 1


@settings(deadline=None)
@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.integers(0, 4), st.sampled_from([0.0, 1.0]) | st.floats(0, 1))),
)
def test_ingresses_never_hold_more_than_all_of_a_limit_and_never_nothing(
    count: int, reports: list[tuple[int, float]]
) -> None:
    shares, ingresses = Shares(), [str(i) for i in range(count)]
    held = dict.fromkeys(ingresses, 1 / count)
    for number, part in reports:
        one = str(number % count)
        given = shares.give(one, {"acme": part} if part else {}, ingresses)
        held[one] = given.get("acme", 1 / count)
        assert sum(held.values()) <= 1 + 1e-5
        assert min(held.values()) >= SPARE / count - 1e-9


@pytest.mark.parametrize(
    ("asked", "shares"),
    [
        ([1.0, 0.0], [0.95, 0.05]),
        ([0.0, 1.0, 0.0, 0.0], [0.025, 0.925, 0.025, 0.025]),
        ([0.7, 0.3], [0.7, 0.3]),
        ([1.0, 0.2], [0.8, 0.2]),
        ([1.0, 1.0, 0.2], [0.4, 0.4, 0.2]),
        ([0.5, 0.1], [0.7, 0.3]),
    ],
)
def test_ingresses_share_a_limit_by_what_is_asked_of_each_and_equally_once_nothing_is(
    asked: list[float], shares: list[float]
) -> None:
    door, ingresses = Shares(), [str(i) for i in range(len(asked))]

    def given(asked: list[float]) -> list[dict[str, float]]:
        for _ in range(2):
            found = [
                door.give(one, {"acme": part} if part else {}, ingresses)
                for one, part in zip(ingresses, asked, strict=True)
            ]
        return found

    assert [one["acme"] for one in given(asked)] == pytest.approx(shares)
    assert given([0.0] * len(asked)) == [{}] * len(asked)


def test_what_an_ingress_held_that_has_ended_is_given_to_the_others() -> None:
    door = Shares()
    for _ in range(2):
        door.give("a", {"acme": 1.0}, ["a", "b"])
        door.give("b", {}, ["a", "b"])
    assert door.give("b", {"acme": 1.0}, ["b"]) == {"acme": 1.0}


def ask_evenly(
    doors: list[Limiter], rates: list[float], seconds: float, characters: int = 1
) -> list[int]:
    """How many of so many requests a second each ingress admits; they renew twice a second."""
    shares, names = Shares(), [str(i) for i in range(len(doors))]
    admitted = [0] * len(doors)
    for tick in range(int(seconds * 100)):
        now = tick / 100
        for i, (door, rate) in enumerate(zip(doors, rates, strict=True)):
            if int((tick + 1) * rate / 100) > int(tick * rate / 100):
                admitted[i] += over(door, characters, now) is None
            if tick % 50 == 10 * i:
                given = shares.give(names[i], door.demands(now), names)
                door.set_share(1 / len(doors), given, now)
    return admitted


def test_who_asks_one_ingress_alone_gets_nearly_all_of_its_limit() -> None:
    limits = Limits(requests_per_second=10, burst_seconds=1)
    doors = [limiter(limits, 0.25) for _ in range(4)]
    alone = ask_evenly(doors, [20, 0, 0, 0], 60)[0]
    assert 0.9 * 10 * 60 <= alone <= 10 * 60 + 10
    doors = [limiter(Limits(characters_per_second=1000, burst_seconds=1), 0.5) for _ in range(2)]
    alone, _ = ask_evenly(doors, [20, 0], 60, characters=100)
    assert 0.9 * 10 * 60 <= alone <= 10 * 60 + 10


def test_who_asks_several_ingresses_gets_its_limit_and_no_more() -> None:
    limits = Limits(requests_per_second=10, burst_seconds=1)
    for rates in ([20.0, 20.0, 20.0], [50.0, 5.0, 1.0], [9.0, 3.0, 0.0]):
        admitted = ask_evenly([limiter(limits, 1 / 3) for _ in range(3)], rates, 60)
        assert 0.9 * 10 * 60 <= sum(admitted) <= 10 * 60 + 10, (rates, admitted)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 8), st.sampled_from([0.0, 0.0, 3.0, 20.0, 100.0]), st.integers(0, 2)
        ),
        max_size=20,
    )
)
def test_who_changes_from_ingress_to_ingress_gets_no_more_than_its_limit(
    deeds: list[tuple[int, float, int]],
) -> None:
    """For so many seconds so many requests a second, at one ingress after another."""
    limits = Limits(requests_per_second=10, burst_seconds=2)
    doors, shares, admitted = [limiter(limits, 1 / 3) for _ in range(3)], Shares(), [0]
    now = 0
    for seconds, rate, at in deeds:
        for _ in range(seconds * 50):
            now += 1
            if int((now + 1) * rate / 50) > int(now * rate / 50):
                admitted.append(admitted[-1] + (over(doors[at], 1, now / 50) is None))
            else:
                admitted.append(admitted[-1])
            if now % 25 in (0, 7, 16):
                i = (0, 7, 16).index(now % 25)
                given = shares.give(str(i), doors[i].demands(now / 50), "012")
                doors[i].set_share(1 / 3, given, now / 50)
    # A window begins where the most is left over: where as little as possible was admitted yet.
    least = 0.0
    for tick, count in enumerate(admitted):
        least = min(least, count - 10 * tick / 50)
        assert count - 10 * tick / 50 - least <= 2 * 20 + 3


def test_below_its_limit_nobody_is_refused_whichever_ingress_is_asked() -> None:
    limits = Limits(requests_per_second=10, burst_seconds=2)
    admitted = ask_evenly([limiter(limits, 0.5) for _ in range(2)], [4.0, 4.0], 60)
    assert sum(admitted) == 480


def test_requests_at_a_time_are_shared_by_demand_too() -> None:
    doors = [limiter(Limits(concurrent_requests=8), 0.5) for _ in range(2)]
    shares, leases = Shares(), []
    for tick in range(20):
        with contextlib.suppress(OverLimit):
            while True:
                leases.append(doors[0].admit("acme", 1, tick / 2))
        for name, door in zip("ab", doors, strict=True):
            door.set_share(0.5, shares.give(name, door.demands(tick / 2), "ab"), tick / 2)
    assert len(leases) == 8
    assert over(doors[1], 1, 10.0) is None


def test_idle_tenants_are_forgotten_and_busy_ones_are_not() -> None:
    door = limiter(Limits(requests_per_second=1, burst_seconds=5, concurrent_requests=1))
    busy = door.admit("busy", 1, 0.0)
    for number in range(20_000):
        assert over(door, 1, number / 100, f"tenant{number}") is None
    # Each is full again after 1 second, in which 100 others come, and two are looked at each time.
    assert len(door) < 300
    assert over(door, 1, 200.0, "busy") is not None
    busy.release()
    for number in range(500):
        over(door, 1, 300.0 + number, "acme")
    assert len(door) <= 2


def test_a_clock_that_goes_back_gives_nothing_away() -> None:
    door = limiter(Limits(requests_per_second=1, burst_seconds=1))
    assert over(door, 1, 100.0) is None
    assert over(door, 1, 50.0) is not None
    assert over(door, 1, 100.5) is not None
    assert over(door, 1, 101.0) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"requests_per_second": 0},
        {"requests_per_second": float("nan")},
        {"characters_per_second": -1},
        {"characters_per_second": float("inf")},
        {"burst_seconds": 0},
        {"concurrent_requests": 0},
    ],
)
def test_limits_that_cannot_work_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(wrong))):
        Limits(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize("share", [0.0, -1.0, 1.1, float("nan")])
def test_a_share_is_a_part(share: float) -> None:
    with pytest.raises(ValueError, match="share"):
        limiter(Limits(), share)
    with pytest.raises(ValueError, match="share"):
        limiter(Limits()).set_share(share, {}, 0.0)
