"""Windows: they tile, they fit, and a change of the text moves only those near it."""

import random
from pathlib import Path

import pytest
import regex
from hypothesis import example, given
from hypothesis import strategies as st

from raytag.text.spans import Entity, without_overlaps
from raytag.text.windows import Window, merge, split
from raytag.text.words import words

alphabet = st.sampled_from([*"ab.!, \n\t", "。", "字", "é", "e\u0301", "👩\u200d👧", "🇩🇪", "\r\n"])
texts = st.one_of(
    st.lists(alphabet, max_size=8), st.lists(alphabet, min_size=100, max_size=400)
).map("".join)
sizes = st.integers(1, 60)
WORDS = ["the", "a", "of", "Anna", "Berlin", "said", "walked", "on", "12", ","]


@given(texts, sizes)
@example("a" * 100, 10)
@example(" " * 100, 10)
@example("ab " * 100, 16)
def test_cores_tile_the_text_and_windows_fit(text: str, size: int) -> None:
    windows = split(text, size)
    assert "".join(text[w.core_start : w.core_end] for w in windows) == text
    assert all(w.end - w.start <= size and w.end <= len(text) for w in windows)
    assert [w.core_start for w in windows[1:]] == [w.core_end for w in windows[:-1]]


@given(texts, st.integers(400, 2000))
def test_a_text_that_fits_is_one_window(text: str, size: int) -> None:
    text = text[:400]
    assert split(text, size) == ([Window(0, len(text), 0, len(text))] if text else [])


@given(texts, st.integers(12, 60))
def test_no_word_is_cut_that_fits(text: str, size: int) -> None:
    cuts = {at for w in split(text, size) for at in (w.start, w.end, w.core_start)}
    for start, end in words(text):
        if end - start <= size:
            assert not cuts & set(range(start + 1, end))


@given(texts, st.integers(40, 80))
def test_no_grapheme_is_cut(text: str, size: int) -> None:
    cuts = {at for w in split(text, size) for at in (w.start, w.end, w.core_start)} - {len(text)}
    if longest_run(text, r"\p{GCB=Regional_Indicator}+") < size:
        assert cuts <= {match.start() for match in regex.finditer(r"\X", text)} | spaces(text)


def longest_run(text: str, pattern: str) -> int:
    return max((len(match[0]) for match in regex.finditer(pattern, text)), default=0)


def spaces(text: str) -> set[int]:
    """The places inside runs of spaces: \\r\\n counts as one grapheme there."""
    return {at for at in range(1, len(text)) if text[at - 1 : at + 1].isspace()}


@given(texts, texts, st.integers(8, 40))
@example("ab " * 200, "ab " * 50, 24)
def test_what_follows_changes_only_windows_near_the_join(a: str, b: str, size: int) -> None:
    border = len(a) - 4 * size
    alone = [w for w in split(a, size) if w.end <= border]
    joined = [w for w in split(a + b, size) if w.end <= border]
    assert alone == joined


def test_what_stands_before_changes_only_windows_near_it(data_folder: Path) -> None:
    path = data_folder / "text" / "1342_pride_and_prejudice.txt"
    text = path.read_text(encoding="utf-8")[20_000:120_000]
    assert_local(text, random.Random(1))


def test_a_made_text_has_local_windows_too() -> None:
    rng = random.Random(2)
    made = (rng.choice(WORDS) + rng.choice("    \n.") for _ in range(9000))
    assert_local("".join(made), rng)


def assert_local(text: str, rng: random.Random) -> None:
    """An insertion somewhere leaves the windows far from it as they were."""
    size = 300
    before = split(text, size)
    for _ in range(5):
        at = rng.randrange(5000, len(text) - 5000)
        after = split(f"{text[:at]} Something new. {text[at:]}", size)
        grown = len(" Something new. ")
        near = 8 * size
        assert [w for w in after if w.end <= at - near] == [w for w in before if w.end <= at - near]
        moved = [
            Window(w.start + grown, w.end + grown, w.core_start + grown, w.core_end + grown)
            for w in before
            if w.start >= at + near
        ]
        assert [w for w in after if w.start >= at + near + grown] == moved


def test_windows_are_cut_where_a_text_has_seams(data_folder: Path) -> None:
    text = (data_folder / "text" / "345_dracula.txt").read_text(encoding="utf-8")[:200_000]
    windows = split(text, 2000)
    seams = sum(text[: w.core_start].rstrip(' "”').endswith("\n") for w in windows[1:])
    assert seams > 0.6 * len(windows)
    assert sum(w.end - w.start for w in windows) < 1.6 * len(text)


@st.composite
def tagged(draw: st.DrawFn) -> tuple[str, list[Entity], int]:
    """A text of words with entities of some words, no longer than a window's context, none of
    which goes on after its sentence."""
    size = draw(st.integers(64, 120))
    gaps = st.sampled_from([" ", " ", "  ", "\n", ". ", "\n\n"])
    word_and_gap = st.tuples(st.text("abcé", min_size=1, max_size=7), gaps)
    parts = draw(st.lists(word_and_gap, min_size=100, max_size=150))
    text = "".join(word + gap for word, gap in parts)
    bounds = words(text)
    entities: list[Entity] = []
    step = draw(st.integers(1, 5))
    for first in range(draw(st.integers(0, step)), len(bounds), step):
        after = first + draw(st.integers(1, 4))
        start, end = bounds[first][0], bounds[min(after, len(bounds)) - 1][1]
        if end - start <= size // 8 and not regex.search(
            r"(\p{L}{5}|\s)\.\s|\n\n", text[start:end]
        ):
            entities.append(Entity(start, end, "A", 0.5))
    return text, without_overlaps(entities)[0], size


@given(tagged())
def test_reading_each_window_gives_the_entities_of_the_text(
    made: tuple[str, list[Entity], int],
) -> None:
    text, entities, size = made
    windows = split(text, size)
    seen = [
        [x.shifted(-w.start) for x in entities if w.start <= x.start and x.end <= w.end]
        for w in windows
    ]
    merged = merge(windows, seen)
    assert merged == entities
    assert [x.score for x in merged] == [x.score for x in entities]


def test_windows_see_a_context_where_a_sentence_is_cut() -> None:
    text = "word " * 400
    inner = split(text, 160)[1:-1]
    assert all(15 <= w.core_start - w.start <= 20 for w in inner)
    assert all(15 <= w.end - w.core_end <= 20 for w in inner)


@pytest.mark.parametrize(
    ("end", "context"),
    [
        *((end, False) for end in ("ended. ", "ended .\n", "ended\n\n", "why? ", "了。")),
        *((end, True) for end in ("Mr. ", "J. ", "Corp. ", "ended, ", "ended\n")),
    ],
)
def test_a_sentence_that_ends_for_sure_needs_no_context(end: str, context: bool) -> None:
    text = "".join(f"No {i} walked on in Berlin {end}" for i in range(90))
    windows = split(text, 160)[1:-1]
    for window in windows:
        if text[: window.core_start].endswith(end):
            assert (window.start < window.core_start) == context
        if text[: window.core_end].endswith(end):
            assert (window.end > window.core_end) == context
    assert any(text[: window.core_start].endswith(end) for window in windows)


def test_an_entity_counts_in_the_window_whose_core_it_starts_in() -> None:
    windows = [Window(0, 12, 0, 10), Window(8, 20, 10, 20)]
    found = [
        [Entity(8, 12, "A"), Entity(10, 12, "B")],
        [Entity(0, 4, "A"), Entity(2, 4, "C"), Entity(5, 7, "D")],
    ]
    assert merge(windows, found) == [Entity(8, 12, "A"), Entity(13, 15, "D")]


def test_entities_of_one_window_pass_as_they_are() -> None:
    found = [Entity(0, 5, "A"), Entity(2, 3, "B", 0.5)]
    assert merge([Window(0, 9, 0, 9)], [found]) == found


def test_a_window_per_list_and_a_size_are_needed() -> None:
    with pytest.raises(ValueError, match="argument"):
        merge([Window(0, 9, 0, 9)], [])
    with pytest.raises(ValueError, match="at least one character"):
        split("a", 0)
