"""Sudden deaths: whatever a process was about to do, what is found is the old or the new."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from deaths import killed_at
from raytag import storage
from raytag.registry.layout import Domain
from raytag.registry.probe import check_store
from raytag.registry.registry import Registry


def test_killed_at_every_step_a_version_is_published_or_it_is_not(root: str, adapter: str) -> None:
    registry, seen = Registry(root), set()
    check_store(root, "acme")
    registry.publish(adapter, "acme", "news")
    for step in range(100):
        before = len(registry.versions("acme", "news"))
        killed = killed_at(
            step, root, lambda: registry.publish(adapter, "acme", "news", training_texts=["One."])
        )
        listed = registry.versions("acme", "news")
        assert [one.version.number for one in listed] == list(range(len(listed), 0, -1))
        registry.verify(f"acme/news@{len(listed)}")
        seen.add(len(listed) - before)
        if not killed:
            break
    assert not killed
    assert step > 5
    assert seen == {0, 1}
    registry.gc("acme", lease=-1)
    place = Domain(root, "acme", "news")
    kept = {name.rstrip("/") for name in storage.names(place.uri("uploads"))}
    assert kept == {one.version.uid for one in listed}
    if "://" not in root:
        # What a killed process was writing, not yet under its name, is nothing to a reader.
        assert all(path.name.endswith(".tmp") for path in hidden(Path(root)))


def hidden(folder: Path) -> Iterator[Path]:
    return (path for path in folder.rglob(".*") if path.is_file())


@pytest.mark.parametrize(
    "verb",
    [
        "promote",
        pytest.param("rollback", marks=pytest.mark.slow),
        pytest.param("delete", marks=pytest.mark.slow),
    ],
)
def test_killed_at_every_step_an_alias_points_to_the_old_or_the_new(
    root: str, adapter: str, verb: str
) -> None:
    registry, seen = Registry(root), set()
    check_store(root, "acme")
    for number in (1, 2, 3):
        registry.publish(adapter, "acme", "news")
        if number < 3:
            registry.promote(f"acme/news@{number}", "production")
    place = Domain(root, "acme", "news")

    def do() -> None:
        if verb == "promote":
            registry.promote("acme/news@3", "production")
        elif verb == "rollback":
            registry.rollback("acme/news@production")
        else:
            registry.delete("acme/news@3")

    for step in range(100):
        killed = killed_at(step, root, do)
        points_to = registry.resolve("acme/news@production").number
        history = registry.history("acme/news@production")
        assert history[0].version == points_to
        assert [move.number for move in history] == list(range(len(history), 0, -1))
        if verb == "delete":
            assert points_to == 2
            seen.add(place.is_deleted(3))
            place.unbury(3)
        else:
            seen.add(points_to)
            if points_to != 2:
                registry.promote("acme/news@2", "production", replaces=points_to)
        if not killed:
            break
    assert not killed
    assert step > 3
    assert seen == {"promote": {2, 3}, "rollback": {1, 2}, "delete": {False, True}}[verb]
