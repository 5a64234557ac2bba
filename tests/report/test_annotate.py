"""The pieces of a marked text are the text, and every entity has its label."""

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from report_cases import ENTITIES

from raytag.report.annotate import Tag, pieces, shortened
from raytag.text.spans import Entity

TEXT = "Zoë 🇩🇪 שלום abc!?"


@given(ENTITIES, ENTITIES)
def test_pieces_are_the_text(gold: list[Entity], predicted: list[Entity]) -> None:
    text = (TEXT + " " * 20)[:17]
    parts = pieces(text, gold, predicted)
    assert "".join(part.text for part in parts) == text
    tags = Counter(tag for part in parts for tag in part.tags)
    right = set(gold) & set(predicted)
    for label in "AB":
        assert tags[Tag(label, "both")] == sum(e.label == label for e in right)
        assert tags[Tag(label, "gold")] == sum(e.label == label for e in set(gold) - right)
        assert tags[Tag(label, "predicted")] == sum(
            e.label == label for e in set(predicted) - right
        )


def test_combining_mark_is_known() -> None:
    parts = pieces("Cafe\u0301 X", [], [Entity(0, 4, "A")])
    assert [part.leans for part in parts] == [False, True]


@given(st.integers(0, 600), st.integers(0, 600), st.integers(0, 600))
def test_shortened_says_how_much_it_left_out(before: int, between: int, after: int) -> None:
    text = "a" * before + "NAME" + "b" * between + "NAME" + "c" * after
    second = before + 4 + between
    gold = [Entity(before, before + 4, "A"), Entity(second, second + 4, "A")]
    parts = shortened(pieces(text, gold, []))
    assert sum(len(part.text) + part.left_out for part in parts) == len(text)
    assert sum(len(part.tags) for part in parts) == 2
    assert all(part.marked or len(part.text) < 360 for part in parts)
    middle = "".join(part.text for part in parts)
    assert middle.strip("ac").startswith("NAME")
