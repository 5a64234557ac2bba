"""Splits and few shots: whole documents, right shares, the same everywhere."""

import random
from collections import Counter
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytag.errors import DataError, SettingsError
from raytag.text.spans import Entity, Example
from raytag.text.split import few, k_shot, split_by_seed


def made(groups: int, per_group: int = 3) -> list[Example]:
    return [
        Example(f"{g}-{i}", f"text {g} {i}", group=f"doc {g}")
        for g in range(groups)
        for i in range(per_group)
    ]


def test_documents_stay_whole_and_shares_are_met() -> None:
    examples = made(100)
    splits = split_by_seed(examples, (0.7, 0.2, 0.1), seed=3)
    assert [len(part) for part in splits] == [210, 60, 30]
    groups = [{example.group for example in part} for part in splits]
    assert not groups[0] & groups[1] | groups[0] & groups[2] | groups[1] & groups[2]
    assert sorted(chain(*splits), key=examples.index) == examples
    assert splits.train == sorted(splits.train, key=examples.index)


def test_the_order_of_the_examples_does_not_matter_but_the_seed_does() -> None:
    examples = made(30)
    shuffled = random.Random(1).sample(examples, len(examples))
    ids = [{x.id for x in part} for part in split_by_seed(examples, seed=1)]
    assert ids == [{x.id for x in part} for part in split_by_seed(shuffled, seed=1)]
    assert ids != [{x.id for x in part} for part in split_by_seed(examples, seed=2)]


def test_the_split_of_a_seed_never_changes() -> None:
    splits = split_by_seed(made(10, 1), (0.6, 0.2, 0.2), seed=0)
    assert ["".join(x.group[4:] for x in part) for part in splits] == ["013589", "26", "47"]


@given(st.lists(st.integers(1, 9), min_size=3, max_size=12), st.integers(0, 99))
def test_every_part_gets_something_of_any_documents(sizes: list[int], seed: int) -> None:
    examples = [
        Example(f"{g}-{i}", "", group=str(g)) for g, n in enumerate(sizes) for i in range(n)
    ]
    splits = split_by_seed(examples, seed=seed)
    assert all(splits)
    assert sum(map(len, splits)) == len(examples)


def test_a_share_of_nothing_is_an_empty_part() -> None:
    splits = split_by_seed(made(4), (0.5, 0, 0.5))
    assert [len(part) for part in splits] == [6, 0, 6]
    assert len(split_by_seed(made(1), (1, 0, 0)).train) == 3


def test_what_cannot_be_split_says_so() -> None:
    with pytest.raises(DataError, match="2 documents cannot be parted in 3"):
        split_by_seed(made(2))
    with pytest.raises(SettingsError, match="must be three numbers from 0 that add up to 1"):
        split_by_seed(made(9), (0.8, 0.1, 0.2))


def tagged(labels: list[list[str]]) -> list[Example]:
    return [
        Example(str(n), "x" * 9, tuple(Entity(i, i + 1, label) for i, label in enumerate(row)))
        for n, row in enumerate(labels)
    ]


@given(
    st.lists(st.lists(st.sampled_from("ABCD"), max_size=5), max_size=25),
    st.integers(1, 5),
    st.integers(0, 9),
)
def test_every_type_occurs_k_times_where_it_can(labels: list[list[str]], k: int, seed: int) -> None:
    examples = tagged(labels)
    chosen = k_shot(examples, k, seed)
    total = Counter(e.label for x in examples for e in x.entities)
    have = Counter(e.label for x in chosen for e in x.entities)
    assert all(have[label] >= min(k, count) for label, count in total.items())
    assert len({x.id for x in chosen}) == len(chosen)
    for x in chosen:  # and none of them is there for nothing
        rest = have - Counter(e.label for e in x.entities)
        assert any(rest[label] < min(k, total[label]) for label in total)
    assert k_shot(examples[::-1], k, seed) == chosen


def test_seeds_choose_differently() -> None:
    examples = tagged([["A"], ["B"]] * 20)
    picks = {tuple(x.id for x in k_shot(examples, 2, seed)) for seed in range(5)}
    assert len(picks) == 5
    assert all(len(pick) == 4 for pick in picks)
    with pytest.raises(SettingsError, match="k must be at least 1"):
        k_shot(examples, 0)


def test_a_few_are_drawn_by_seed_and_fewer_are_among_more() -> None:
    examples = tagged([["A"]] * 40)
    picks = {seed: [x.id for x in few(examples, 10, seed)] for seed in range(5)}
    assert len({tuple(pick) for pick in picks.values()}) == 5
    for seed, pick in picks.items():
        assert pick == sorted(pick, key=int)
        assert len(set(pick)) == 10
        assert set(pick) < {x.id for x in few(examples, 30, seed)}
        assert set(pick) == {x.id for x in few(examples[::-1], 10, seed)}
    assert few(examples, 40) == examples
    with pytest.raises(DataError, match="41 examples are asked for, and there are 40"):
        few(examples, 41)
