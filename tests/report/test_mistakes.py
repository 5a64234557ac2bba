"""Each mistake is named once, and the names add up to what the confusion counts."""

from collections import Counter

from hypothesis import given
from report_cases import ENTITIES, EXAMPLES, predictions

from raytag.report.mistakes import ErrorCase, mistakes_between, worst_errors
from raytag.text.score import confusion
from raytag.text.spans import Entity, Example


def kinds(gold: list[Entity], predicted: list[Entity]) -> list[str]:
    return [mistake.kind for mistake in mistakes_between(gold, predicted)]


def test_kinds() -> None:
    gold = [Entity(0, 5, "A")]
    assert kinds(gold, [Entity(0, 5, "A", 0.3)]) == []
    assert kinds(gold, [Entity(0, 5, "B")]) == ["type"]
    assert kinds(gold, [Entity(0, 4, "A")]) == ["boundary"]
    assert kinds(gold, [Entity(0, 4, "B")]) == ["missed", "spurious"]
    assert kinds(gold, []) == ["missed"]
    assert kinds([], gold) == ["spurious"]


@given(ENTITIES, ENTITIES)
def test_agrees_with_confusion(gold: list[Entity], predicted: list[Entity]) -> None:
    counted = Counter(kinds(gold, predicted))
    found = confusion([gold], [predicted])
    off_diagonal = sum(
        count for a, row in found.labels.items() for b, count in row.items() if a != b
    )
    assert counted["type"] == off_diagonal
    assert counted["boundary"] == sum(found.boundary.values())
    assert counted["missed"] == sum(found.missed.values())
    assert counted["spurious"] == sum(found.spurious.values())


def test_worst_first() -> None:
    """Most mistakes first, then the surest wrong one, then the order given."""
    examples = [Example(str(i), "word", (Entity(0, 4, "A"),)) for i in range(5)]
    predicted = [
        [Entity(0, 4, "B", 0.5)],
        [Entity(0, 4, "A", 0.9)],
        [Entity(0, 4, "B", 0.9)],
        [Entity(0, 1, "B", 0.1), Entity(1, 2, "B", 0.1)],
        [Entity(0, 4, "B", 0.5)],
    ]
    assert [case.id for case in worst_errors(examples, predicted, 9)] == ["3", "2", "0", "4"]
    assert [case.id for case in worst_errors(examples, predicted, 2)] == ["3", "2"]


def test_case_survives_json() -> None:
    for case in worst_errors(EXAMPLES, predictions(), 10):
        again = ErrorCase.from_dict(case.to_dict())
        assert again == case
        assert [entity.score for entity in again.predicted] == [e.score for e in case.predicted]
