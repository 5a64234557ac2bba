"""Entities and examples: their invariants, whatever comes in."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytag.text.spans import Entity, Example, without_overlaps
from raytag.text.words import words

entities = st.builds(
    lambda start, length, label: Entity(start, start + length, label),
    st.integers(0, 30),
    st.integers(1, 10),
    st.sampled_from(["A", "B"]),
)


@pytest.mark.parametrize(
    ("start", "end", "label"), [(-1, 2, "A"), (2, 2, "A"), (3, 2, "A"), (0, 1, "")]
)
def test_an_entity_is_a_labelled_stretch(start: int, end: int, label: str) -> None:
    with pytest.raises(ValueError, match="an entity needs"):
        Entity(start, end, label)


def test_a_score_is_no_part_of_equality() -> None:
    assert Entity(0, 1, "A", 0.5) == Entity(0, 1, "A")


@given(st.lists(entities, max_size=8))
def test_an_example_sorts_its_entities_and_is_its_own_group(found: list[Entity]) -> None:
    example = Example("id", "x" * 40, tuple(found))
    assert list(example.entities) == sorted(found)
    assert example.group == "id"
    with pytest.raises(ValueError, match="outside its text of 40 characters"):
        Example("id", "x" * 40, (*found, Entity(39, 41, "A")))


@given(st.lists(entities, max_size=8))
def test_without_overlaps_keeps_a_flat_and_full_subset(found: list[Entity]) -> None:
    kept, dropped = without_overlaps(found)
    assert sorted(kept + dropped) == sorted(found)
    assert all(a.end <= b.start for a, b in pairwise(kept))
    for lost in dropped:
        rivals = [other for other in kept if other.overlaps(lost)]
        assert max(rival.end - rival.start for rival in rivals) >= lost.end - lost.start


@given(st.lists(entities, max_size=6), st.randoms(use_true_random=False))
def test_without_overlaps_does_not_depend_on_order(found: list[Entity], random: object) -> None:
    shuffled = list(found)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert without_overlaps(shuffled) == without_overlaps(found)


@given(st.text())
def test_words_are_disjoint_in_order_and_cover_all_but_spaces(text: str) -> None:
    found = words(text)
    assert all(a[1] <= b[0] for a, b in pairwise(found))
    covered = {at for start, end in found for at in range(start, end)}
    assert all(at in covered or char.isspace() for at, char in enumerate(text))
