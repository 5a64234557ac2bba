"""Skeletons filled with names and cue words: a sentence and where its names stand.

Knows the little language of skeletons. Knows nothing of which skeletons there are.

    {A}        a name; the type of A is drawn once for the sentence
    {A2}       another name of the same type as A
    {A.noun}   a cue word for the type of A, in that role (see lexicon)
    {day}      a filler of that kind (see lexicon); also {num}, {year}
    a/an       the article that fits the word after it
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from raytag.text.sample import lexicon, names

_TOKEN: Final = re.compile(r"\{([^}]+)\}|\b(a/an) ")
_ACRONYMS: Final = frozenset(lexicon.FILLERS["acr"])
_NAMERS: Final[dict[str, Callable[[random.Random, str, frozenset[str]], str]]] = {
    "news": names.news_name,
    "biomedical": names.biomedical_name,
}


@dataclass(frozen=True)
class Mention:
    """A name in a sentence: characters, end excluded."""

    start: int
    end: int
    label: str


@dataclass(frozen=True)
class Sentence:
    """A text, its names in order, and the skeleton that it was made from."""

    text: str
    mentions: tuple[Mention, ...]
    skeleton: str


@dataclass
class Speaker:
    """Fills skeletons for one domain and one pool of names and cues.

    `recent` names come back with chance `again`, often with another type: the same letters are
    a place here and a person there.
    """

    domain: str
    pool: str
    rng: random.Random
    again: float = 0.15
    recent: list[str] = field(default_factory=list)

    def name(self, taken: list[str]) -> str:
        """A name that none of `taken` contains or is contained in."""
        while True:
            if self.recent and self.rng.random() < self.again:
                name = self.rng.choice(self.recent[-12:])
            else:
                name = _NAMERS[self.domain](self.rng, self.pool, _ACRONYMS)
            if not any(name in other or other in name for other in taken):
                self.recent.append(name)
                return name

    def fill(self, skeleton: str) -> Sentence:
        """The skeleton with everything filled in, its first letter a capital unless a name."""
        rng = self.rng
        types: dict[str, str] = {}
        called: dict[str, str] = {}
        said: set[str] = set()
        text = ""
        mentions: list[Mention] = []
        article = False
        position = 0
        for match in _TOKEN.finditer(skeleton):
            literal = skeleton[position : match.start()]
            text += literal
            position = match.end()
            if match[2]:
                article = True
                continue
            slot = match[1]
            letter, _, role = slot.partition(".")
            named = False
            if letter[0].isupper() and len(letter) <= 2:
                label = types.setdefault(letter[0], rng.choice(lexicon.LABELS[self.domain]))
                if role:
                    words = lexicon.cues(label, role, self.pool)
                    piece = rng.choice([w for w in words if w not in said])
                    said.add(piece)
                else:
                    if letter not in called:
                        called[letter] = self.name(list(called.values()))
                    piece, named = called[letter], True
            else:
                piece = self._filler(slot)
            if article:
                text += _article(piece)
                article = False
            if named:
                mentions.append(Mention(len(text), len(text) + len(piece), label))
            text += piece
        text += skeleton[position:]
        return Sentence(_capitalised(text, mentions), tuple(mentions), skeleton)

    def _filler(self, kind: str) -> str:
        if kind == "num":
            return str(self.rng.choice((self.rng.randrange(2, 100), self.rng.randrange(100, 9000))))
        if kind == "year":
            return str(self.rng.randrange(1950, 2030))
        return self.rng.choice(lexicon.FILLERS[kind])


def _article(word: str) -> str:
    """The article for a word, by its first sound: "a unionised", "an X-linked"."""
    if word.startswith(("uni", "use", "eu", "one")):
        return "a "
    return "an " if word[0].lower() in "aeiou" or word.startswith("X-") else "a "


def _capitalised(text: str, mentions: list[Mention]) -> str:
    """The text with its first letter a capital, where that letter is no name's."""
    first = next((i for i, c in enumerate(text) if c.isalnum()), 0)
    if any(m.start <= first < m.end for m in mentions):
        return text
    return text[:first] + text[first].upper() + text[first + 1 :]
