"""A long text -> windows that overlap -> their entities, merged.

Counts characters, knows no tokenizer. Windows have cores, which tile the text, and context on
those of their sides where a sentence is cut; an entity belongs to the window whose core it starts
in. (Between sentences context costs a quarter of all tokens and finds nothing: measured, README.)
Where the text is
cut depends only on the text around the cut, so that a change of a document moves the windows
near it and no others: a place is a cut if it is the best one for some way in both directions.
(Text that only repeats itself has no best places; it is cut one length after the other.)
"""

import zlib
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import regex

from raytag.text.spans import Entity
from raytag.text.words import words

_SEEN = 12
"""How many characters on each side of a place decide between it and its like."""

_SENTENCE = 1
"""How bad it is to cut where a sentence ends for sure; between paragraphs it is less so, where one
may end and elsewhere more."""

# A short word before the full stop may be an abbreviation, and so the middle of a name.
_SURE = regex.compile(r"((\p{L}{5,}|\s)\.|[!?…])[\p{Pe}\p{Pf}\"']*\s+\Z|[。！？｡]\p{Pe}?\s*\Z")
_SENTENCE_END = regex.compile(r"([.!?…][\p{Pe}\p{Pf}\"']*\s|[。！？｡]\p{Pe}?)\s*\Z")
_PLAIN = regex.compile(r"(?<![\u200d\p{GCB=Prepend}])\p{GCB=Other}")
_FLAGS = regex.compile(r"\p{GCB=Regional_Indicator}{2}")
_GRAPHEME = regex.compile(r"\X")


@dataclass(frozen=True, slots=True)
class Window:
    """A stretch of a text: all of it is read, the entities that start in its core count."""

    start: int
    end: int
    core_start: int
    core_end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start <= self.core_start < self.core_end <= self.end:
            raise ValueError(f"a window's core must lie in it, got {self}")

    def shifted(self, by: int) -> "Window":
        return Window(self.start + by, self.end + by, self.core_start + by, self.core_end + by)


def split(text: str, size: int) -> list[Window]:
    """Windows of at most ``size`` characters, in order; none for an empty text.

    A text that fits is one window. Words are cut only where one is longer than ``size``.
    """
    if size < 1:
        raise ValueError(f"a window needs at least one character, got {size}")
    if len(text) <= size:
        return [Window(0, len(text), 0, len(text))] if text else []
    context = size // 8
    places = _Places(text)
    cuts = [0, *_cuts(places, 0, len(text), size - 2 * context, size), len(text)]
    return [
        _with_context(places, start, end, min(context, (size - (end - start)) // 2))
        for start, end in pairwise(cuts)
    ]


def merge(windows: Sequence[Window], entities: Sequence[Iterable[Entity]]) -> list[Entity]:
    """The entities of the whole text from those of its windows, sorted.

    ``entities`` are relative to the start of their window. Each counts if it starts in the core
    of its window; of two windows' entities that overlap the earlier stays. Labels and scores are
    kept.
    """
    merged: list[Entity] = []
    taken = 0
    for window, found in zip(windows, entities, strict=True):
        own = sorted(entity.shifted(window.start) for entity in found)
        free = max(taken, window.core_start)
        kept = [entity for entity in own if free <= entity.start < window.core_end]
        merged += kept
        taken = max([taken, *(entity.end for entity in kept)])
    return merged


class _Places:
    """The places where a text may be cut, each before a word, and how good each is.

    ``reach[i]`` is how far around place i no place is as good: in characters, not counting it.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.at: list[int] = []
        self.ends: list[int] = []  # of the words before
        self.keys: list[tuple[int, int]] = []
        before = 0
        for start, end in words(text):
            if start and (start > before or _parts_graphemes(text, start)):
                self.at.append(start)
                self.ends.append(before)
                self.keys.append((_class(text, before, start), _hash(text, start)))
            before = end
        self.reach = _reach(self.at, self.keys, len(text))

    def between(self, start: int, end: int) -> range:
        """The indices of the places from ``start`` to ``end``, both included."""
        return range(bisect_left(self.at, start), bisect_right(self.at, end))

    def parts_sentences(self, at: int) -> bool:
        """Whether a sentence or a paragraph ends where this place is, for sure."""
        found = self.between(at, at)
        return bool(found) and self.keys[found[0]][0] <= _SENTENCE


def _class(text: str, before: int, start: int) -> int:
    """How bad it is to cut between a word's end and the next one's start."""
    gap = text[before:start]
    if gap.count("\n") > 1:
        return 0
    if _SURE.search(text[max(0, before - 10) : start]) and not text[start].islower():
        return _SENTENCE
    if _SENTENCE_END.search(text[max(0, before - 4) : start]):
        return 2
    if "\n" in gap:
        return 3
    return 4 if gap else 5


def _hash(text: str, at: int) -> int:
    around = text[max(0, at - _SEEN) : at + _SEEN]
    return zlib.crc32(around.encode("utf-8", "surrogatepass"))


def _parts_graphemes(text: str, at: int) -> bool:
    """Whether no grapheme spans a place inside a text, by the few characters around it.

    Between two halves of flags that is never said: which belong together shows only from afar.
    """
    if _PLAIN.match(text, at):
        return True
    if _FLAGS.match(text, at - 1):
        return False
    first = at - 1
    while first > 0 and at - first < _SEEN and not text[first].isspace():
        first -= 1
    around = text[first : at + _SEEN]
    return any(first + match.end() == at for match in _GRAPHEME.finditer(around))


def _reach(at: list[int], keys: list[tuple[int, int]], length: int) -> list[int]:
    reach = [length] * len(at)
    open_places: list[int] = []  # places that no later place has been as good as, so far
    for i, key in enumerate(keys):
        while open_places and keys[open_places[-1]] >= key:
            worse = open_places.pop()
            reach[worse] = min(reach[worse], at[i] - at[worse])
            if keys[worse] == key:
                reach[i] = min(reach[i], at[i] - at[worse])
        if open_places:
            reach[i] = min(reach[i], at[i] - at[open_places[-1]])
        open_places.append(i)
    return reach


def _cuts(places: _Places, start: int, end: int, core: int, size: int) -> list[int]:
    """Where to cut a stretch into cores of ``core`` characters, up to ``size`` for a long word."""
    if end - start <= core:
        return []
    radius = core // 2
    while end - start > 2 * core and radius >= max(1, core // 4):
        inside = places.between(start + radius, end - radius)
        best = [places.at[i] for i in inside if places.reach[i] > radius]
        if best:
            bounds = [start, *best, end]
            cuts: list[int] = []
            for left, right in pairwise(bounds):
                cuts += [*_cuts(places, left, right, core, size), right]
            return cuts[:-1]
        radius //= 2
    return _cut_in_two(places, start, end, core) or _cut_in_order(places, start, end, core, size)


def _cut_in_two(places: _Places, start: int, end: int, core: int) -> list[int]:
    """The best place that leaves two cores, neither of them tiny; none where there is none."""
    room = (end - start) // 4
    inside = places.between(max(end - core, start + room), min(start + core, end - room))
    best = min(inside, key=lambda i: places.keys[i], default=None)
    return [] if best is None else [places.at[best]]


def _cut_in_order(places: _Places, start: int, end: int, core: int, size: int) -> list[int]:
    """The last place that fits, again and again; a word longer than ``size`` is cut there."""
    cuts: list[int] = []
    while end - start > core:
        fitting = places.between(start + 1, start + core)
        if fitting:
            start = places.at[fitting[-1]]
        else:
            after = places.between(start + core + 1, min(start + size, end - 1))
            if not after and end - start <= size:
                break
            start = places.at[after[0]] if after else _hard_cut(places.text, start, size)
        cuts.append(start)
    return cuts


def _hard_cut(text: str, start: int, size: int) -> int:
    """``size`` characters on, or a few less where that would part a grapheme."""
    nearby = range(start + size, max(start, start + size - _SEEN), -1)
    return next((at for at in nearby if _parts_graphemes(text, at)), start + size)


def _with_context(places: _Places, start: int, end: int, context: int) -> Window:
    """A window around a core, its context beginning and ending with whole words."""
    first, last = start, end
    if not places.parts_sentences(start):
        before = places.between(start - context, start)
        first = 0 if start <= context else places.at[before[0]] if before else start
    if not places.parts_sentences(end):
        after = bisect_right(places.ends, end + context) - 1
        whole = end + context >= len(places.text)
        last = len(places.text) if whole else max([end, *places.ends[after : after + 1]])
    return Window(first, last, start, end)
