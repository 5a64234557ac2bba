r"""What an answer may say next, given one text and a closed label set, as token ids.

Knows the answer's grammar (``text.prompt``) as an automaton over UTF-8 bytes and walks it
together with the vocabulary's trie; knows nothing of models. Going by bytes, not by the
sentence's token ids, matters twice: an entity is often tokenised otherwise in the answer than
in the sentence, and one token may span several parts of the grammar (``] [``) or a fraction of
a character.

The automaton. Outside entities it reads ``" [LABEL: "`` through a trie of all labels; the
label set is thereby closed. Inside a span its state is a set of *readers*: one for each
occurrence, at or after the end of the previous entity, of what has been written so far from the
start of a word. A byte is allowed where some reader sees it next and moves those readers on;
``]`` where some reader stands at the end of a word, and the first that does is the entity. So
no entity lies outside the text, and offsets need no search afterwards.

Two facts it leans on:

- It is never stuck. A reader goes no further than the end of the last word, so it always sees
  another byte or may close; the vocabulary has a token for each single byte.
- It ends. Each entity takes up at least one word more of the text, so the whole answer is no
  longer than ``Answer.bound`` bytes, and each token writes at least one.

Much of an answer is *forced*: once a label or a word is told from all others, its rest can only
come one way. Which tokens spell a forced stretch is no choice about the text either, so it is
written as the tokenizer cuts it in training (``Answer.forced_ids``), not as a model might.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import exp

import numpy as np
from numpy.typing import NDArray

from raytag.errors import DataError, SettingsError
from raytag.model.heads.vocabulary import Vocabulary
from raytag.text.prompt import Places, escape
from raytag.text.spans import Entity

Ids = NDArray[np.int64]

_State = tuple[int, tuple[int, ...]]
"""(node, (end,)) in the opening of an entity: the label trie's node, and where the previous
entity ended; (START or SPAN, readers) before and after a span's first byte. Places count bytes
of the escaped text."""

# Below zero inside a span, from zero on in the label trie.
_START = -2  # apart, because words may touch: where one starts another may end, and "]" wait
_SPAN = -1
_BETWEEN = 0  # the label trie's root: an entity may open, or the answer end
_CLOSE = ord("]")


class Grammar:
    """The openings ``" [LABEL: "`` of a label set as a trie of bytes, over one vocabulary.

    Raises SettingsError for an empty label set.
    """

    def __init__(self, vocabulary: Vocabulary, labels: Sequence[str]) -> None:
        if not labels:
            raise SettingsError("a generating head needs at least one label")
        self.vocabulary = vocabulary
        self.children: list[dict[int, int]] = [{}]  # node -> byte -> node
        self.label_at: dict[int, str] = {}  # the leaves
        # Openings end in an unescaped ": ", so none is the beginning of another.
        openings = {label: f" [{escape(label)}: ".encode() for label in labels}
        for label, opening in openings.items():
            node = _BETWEEN
            for byte in opening:
                if byte not in self.children[node]:
                    self.children[node][byte] = len(self.children)
                    self.children.append({})
                node = self.children[node][byte]
            self.label_at[node] = label
        self.longest = max(map(len, openings.values()))

    def answer(self, text: str) -> "Answer":
        """A fresh answer about ``text``. DataError for a text with lone surrogates."""
        return Answer(self, _Text(text))


@lru_cache(maxsize=4096)  # texts are made of few different characters, and of many
def _spelled(char: str) -> bytes:
    return escape(char).encode("utf-8")


class _Text:
    """One text, escaped and in bytes, with its word boundaries as places in those bytes."""

    def __init__(self, text: str) -> None:
        places = Places(text)
        try:
            spelled = [_spelled(char) for char in text]
        except UnicodeEncodeError as exc:
            raise DataError(f"the text holds half a character (a lone surrogate): {exc}") from exc
        self.bytes = b"".join(spelled)
        byte_at = [0, *accumulate(map(len, spelled))]
        self.starts = [byte_at[start] for start in places.starts]
        self.ends = frozenset(byte_at[end] for end in places.ends)
        self.stop = max(self.ends, default=0)
        self.char_at = {byte_at[c]: c for c in (*places.starts, *places.ends)}

    def starts_from(self, end: int) -> tuple[int, ...]:
        return tuple(self.starts[bisect_left(self.starts, end) :])


@dataclass(slots=True)
class _Open:
    """The entity being written."""

    log_score: float
    label: str = ""
    length: int = 0  # bytes of its span so far


class Answer:
    """One answer being written: what may come next, and the entities said so far.

    Take tokens out of ``allowed`` until ``done``. What is allowed is remembered per state, so
    it is looked up when the same answer comes by a state again.
    """

    def __init__(self, grammar: Grammar, text: _Text) -> None:
        self.entities: list[Entity] = []
        self.done = False
        self.bound = len(text.bytes) + len(text.starts) * (grammar.longest + 1)
        self._grammar = grammar
        self._vocabulary = grammar.vocabulary
        self._text = text
        self._state: _State = (_BETWEEN, (0,))
        self._open: _Open | None = None
        self._written = bytearray()
        self._known: dict[_State, Ids] = {}
        # Since the last token that ended between entities, which is where tokenising can start.
        self._tokens: list[int] = []
        self._whole = 0  # bytes written before them

    @property
    def empty(self) -> bool:
        """Whether the text has no word, so that the only answer is the empty one."""
        return not self._text.starts

    @property
    def written(self) -> str:
        """The answer so far, as ``text.prompt`` writes answers, once it ends on a character."""
        return self._written.decode("utf-8")

    def allowed(self) -> Ids:
        """The ids of all tokens that may come next, at least one; in no order, none twice.

        Between entities the end-of-sequence token is one of them. Not to be changed.
        """
        return self._ids(self._state)

    @property
    def between(self) -> bool:
        """Whether an entity may open here, or the answer end."""
        return self._state[0] == _BETWEEN

    def take(self, token: int, log_probability: float = 0.0) -> None:
        """Write one token. Raises ValueError, and changes nothing, if it is not allowed.

        An entity's score is the product of the probabilities of every token that wrote a part
        of it, its brackets and label included; a token that was forced has probability 1. End
        of sequence makes the answer ``done``.
        """
        if token == self._vocabulary.eos and self.between and not self.done:
            self.done = True
            return
        data = b"" if self.done else self._vocabulary.bytes_of.get(token, b"")
        states = self._path(data)
        if not states:
            raise ValueError(f"token {token} ({data!r}) cannot come next in this answer")
        if self._open:
            self._open.log_score += log_probability
        for state in states:
            self._enter(state, log_probability)
        self._written += data
        if self.between:
            self._tokens, self._whole = [], len(self._written)
        else:
            self._tokens.append(token)
        assert len(self._written) <= self.bound, "every entity takes up text: an answer is finite"

    def forced(self) -> bytes:
        """The bytes that must come next unless the answer ends; empty where there is a choice.

        They end with an entity, if not before.
        """
        return self._forced()[0]

    def forced_ids(self) -> list[int]:
        """The tokens that write what is ``forced``, or as much of it as the tokens settle.

        They are those that the tokenizer makes of the entity so far and the forced stretch. None
        where the entity so far was written in other tokens than these. The last one is left out
        where a longer token could stand in its place: which of the two is a choice.
        """
        run, states = self._forced()
        if not run:
            return []
        known = len(self._tokens)
        whole = bytes(self._written[self._whole :]) + run
        ids = self._vocabulary.cut(whole)
        if ids[:known] != self._tokens or len(ids) == known:
            return []
        *ids, last = ids[known:]
        bytes_of = self._vocabulary.bytes_of
        before = sum(len(bytes_of[token]) for token in ids)
        if before + len(bytes_of[last]) == len(run):
            rivals = self._ids(states[before])
            if max(len(bytes_of.get(token, b"")) for token in rivals.tolist()) == len(run) - before:
                ids.append(last)
        return ids

    def _forced(self) -> tuple[bytes, list[_State]]:
        """The forced bytes, and the states before, between and after them."""
        run = bytearray()
        states = [self._state]
        while len(following := self._following(states[-1])) == 1:
            ((byte, state),) = following
            run.append(byte)
            states.append(state)
            if state[0] == _BETWEEN:
                break
        return bytes(run), states

    def _path(self, data: bytes) -> list[_State]:
        """The state after each byte of ``data``; empty if one of them is not allowed."""
        states: list[_State] = []
        state = self._state
        for byte in data:
            after = dict(self._following(state)).get(byte)
            if after is None:
                return []
            states.append(state := after)
        return states

    def _enter(self, state: _State, log_probability: float) -> None:
        """Go one byte on, to ``state``, keeping account of the entity being written."""
        before, self._state = self._state, state
        if before[0] == _BETWEEN:
            self._open = _Open(log_probability)
        open_ = self._open
        assert open_ is not None
        if state[0] == _BETWEEN:
            (end,) = state[1]
            char_at = self._text.char_at
            start = char_at[end - open_.length]
            score = min(1.0, exp(open_.log_score))
            self.entities.append(Entity(start, char_at[end], open_.label, score))
            self._open = None
        elif state[0] == _SPAN:
            open_.length += 1
        elif state[0] == _START:
            leaf = self._grammar.children[before[0]][ord(" ")]
            open_.label = self._grammar.label_at[leaf]

    def _following(self, state: _State) -> list[tuple[int, _State]]:
        """(byte, state after it) for every byte that may come next, none twice."""
        node, places = state
        if node < 0:
            return self._following_in_span(node, places)
        if node == _BETWEEN and not self._text.starts_from(places[0]):
            return []
        after: list[tuple[int, _State]] = []
        for byte, child in self._grammar.children[node].items():
            if child in self._grammar.label_at:
                after.append((byte, (_START, self._text.starts_from(places[0]))))
            else:
                after.append((byte, (child, places)))
        return after

    def _following_in_span(self, node: int, readers: tuple[int, ...]) -> list[tuple[int, _State]]:
        text = self._text
        moved: dict[int, list[int]] = {}
        for place in readers:
            if place < text.stop:
                moved.setdefault(text.bytes[place], []).append(place + 1)
        after: list[tuple[int, _State]] = [(b, (_SPAN, tuple(p))) for b, p in moved.items()]
        # No "]" of the text can be meant by this one: the text's stands behind a backslash, and
        # a reader between the two is not at the end of a word.
        if node == _SPAN:
            end = next((place for place in readers if place in text.ends), None)
            if end is not None:
                after.append((_CLOSE, (_BETWEEN, (end,))))
        return after

    def _ids(self, state: _State) -> Ids:
        ids = self._known.get(state)
        if ids is None:
            node, places = state
            if node < 0 and len(places) > 1:
                # What a set of readers allows is what each alone allows: only the first may
                # close, but with more of the text before it, it may then say all the rest can.
                each = [self._ids((node, (place,))) for place in places]
                ids = np.unique(np.concatenate(each))
            else:
                found = [self._vocabulary.eos] if node == _BETWEEN else []
                self._walk(found, self._vocabulary.ROOT, state)
                ids = np.unique(np.asarray(found, dtype=np.int64))
            self._known[state] = ids
        return ids

    def _walk(self, found: list[int], node: int, state: _State) -> None:
        """Add the tokens that fit from ``state`` on, below a node of the vocabulary's trie."""
        if state[0] < 0:
            for place in state[1]:
                self._walk_text(found, node, place, state[0] == _SPAN)
            return
        for byte, after in self._following(state):
            child = self._vocabulary.child(node, byte)
            if child is not None:
                found += self._vocabulary.ids_at(child)
                self._walk(found, child, after)

    def _walk_text(self, found: list[int], node: int, place: int, may_close: bool) -> None:
        """``_walk`` for a single reader, which has one way to go, and ways out at word ends."""
        text, vocabulary = self._text, self._vocabulary
        for at in range(place, text.stop + 1):
            if may_close and at in text.ends:
                closed = vocabulary.child(node, _CLOSE)
                if closed is not None:
                    found += vocabulary.ids_at(closed)
                    self._walk(found, closed, (_BETWEEN, (at,)))
            if at == text.stop:
                return
            child = vocabulary.child(node, text.bytes[at])
            if child is None:
                return
            node, may_close = child, True
            found += vocabulary.ids_at(node)
