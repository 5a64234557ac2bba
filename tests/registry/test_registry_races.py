"""Many at once: no number is given twice, no move is lost, nobody sees half a version."""

import itertools
import threading
from contextlib import suppress

import pytest
from registry_cases import at_once

from raytag.errors import RaytagError, SettingsError, StorageError
from raytag.registry.layout import Domain
from raytag.registry.records import Move, Version
from raytag.registry.registry import Registry

WRITERS = 16
ROUNDS = [
    pytest.param(10, id="10 rounds"),
    pytest.param(100, id="100 rounds", marks=[pytest.mark.slow, pytest.mark.timeout(900)]),
]


@pytest.mark.parametrize("rounds", ROUNDS)
def test_of_sixteen_publishers_each_gets_a_number_of_its_own(
    root: str, adapter: str, rounds: int
) -> None:
    registry, done = Registry(root), threading.Event()
    seen: list[int] = []

    def read() -> None:
        """What a reader finds is whole, at any moment."""
        while not done.is_set():
            latest = [one.version for one in registry.versions("acme", "news", limit=1)]
            for version in latest:
                registry.verify(str(version))
                seen.append(version.number)

    def write() -> list[Version]:
        return [registry.publish(adapter, "acme", "news") for _ in range(rounds)]

    def write_all() -> list[Version]:
        try:
            return list(itertools.chain(*at_once(*[write] * WRITERS)))
        finally:
            done.set()

    published, nothing = at_once(write_all, read)
    assert nothing is None
    assert sorted(v.number for v in published) == list(range(1, rounds * WRITERS + 1))
    assert len({v.uid for v in published}) == rounds * WRITERS
    listed = [one.version for one in registry.versions("acme", "news")]
    assert {v.number: v.uid for v in listed} == {v.number: v.uid for v in published}
    assert seen == sorted(seen)
    assert seen


def test_of_sixteen_who_publish_one_run_all_get_its_version(root: str, adapter: str) -> None:
    registry = Registry(root)
    registry.publish(adapter, "acme", "news", run="another")
    versions = at_once(
        *[lambda: registry.publish(adapter, "acme", "news", run="this")] * WRITERS,
        *[lambda: registry.publish(adapter, "acme", "news")] * 2,
    )
    assert len({str(version) for version in versions[:WRITERS]}) == 1
    assert len(registry.versions("acme", "news")) == 4
    assert registry.of_run("acme", "news", "this") == versions[0]
    assert registry.publish(adapter, "acme", "news", run="this") == versions[0]
    assert registry.of_run("acme", "news", "none such") is None


@pytest.mark.parametrize("rounds", ROUNDS)
def test_of_sixteen_who_move_an_alias_one_does(root: str, adapter: str, rounds: int) -> None:
    registry = Registry(root)
    for _ in range(WRITERS + 1):
        registry.publish(adapter, "acme", "news")
    current, won = 0, []
    for _ in range(rounds):
        others = [number for number in range(1, WRITERS + 2) if number != current][:WRITERS]
        moves = at_once(
            *(
                lambda number=number, current=current: registry.promote(
                    f"acme/news@{number}", "production", replaces=current
                )
                for number in others
            )
        )
        (winner,) = [move for move in moves if isinstance(move, Move)]
        losers = [str(move) for move in moves if isinstance(move, StorageError)]
        assert len(losers) == WRITERS - 1
        assert all("nothing was changed" in line for line in losers)
        current = winner.version or 0
        assert registry.resolve("acme/news@production").number == current
        won.append(winner)
    history = registry.history("acme/news@production")
    assert list(reversed(history)) == won
    assert [move.number for move in won] == list(range(1, rounds + 1))
    assert all(b.replaced == a.version for a, b in itertools.pairwise(won))


def test_of_a_promotion_and_a_deletion_at_once_at_most_one_is_done(root: str, adapter: str) -> None:
    registry = Registry(root)
    outcomes = set()
    for number in range(2, 22, 2):
        registry.publish(adapter, "acme", "news")
        registry.publish(adapter, "acme", "news")
        registry.promote(f"acme/news@{number - 1}", "production")
        ref = f"acme/news@{number}"
        promoted, deleted = at_once(
            lambda ref=ref: registry.promote(ref, "production"),
            lambda ref=ref: registry.delete(ref),
        )
        was_promoted, was_deleted = isinstance(promoted, Move), isinstance(deleted, Version)
        assert not (was_promoted and was_deleted)
        now = registry.resolve("acme/news@production")
        assert now.number == (number if was_promoted else number - 1)
        assert Domain(root, "acme", "news").is_deleted(number) == was_deleted
        for refused in (promoted, deleted):
            assert isinstance(refused, Move | Version | SettingsError)
        outcomes.add((was_promoted, was_deleted))
    assert outcomes


def test_a_sweep_beside_publishers_takes_nothing_of_theirs(root: str, adapter: str) -> None:
    """With no lease at all it may take what is being written, but not what was published."""
    registry, done = Registry(root), threading.Event()

    def sweep() -> None:
        while not done.is_set():
            with suppress(StorageError):  # a file was written into the folder just removed
                registry.gc("acme", lease=-1)

    def write() -> list[Version | RaytagError]:
        outcomes: list[Version | RaytagError] = []
        for _ in range(8):
            try:
                outcomes.append(registry.publish(adapter, "acme", "news"))
            except RaytagError as exc:
                outcomes.append(exc)
        done.set()
        return outcomes

    outcomes, nothing = at_once(write, sweep)
    assert nothing is None, nothing
    done_well = [outcome for outcome in outcomes if isinstance(outcome, Version)]
    assert [registry.verify(str(version)) for version in done_well] == done_well
    listed = [one.version for one in registry.versions("acme", "news") if not one.deleted]
    assert listed == list(reversed(done_well))
