"""Texts in, entities out: the one inference path of scoring, bulk tagging and serving.

Knows windows and batches. Does not know where texts come from or where entities go. Texts of
any length are tagged whole: long ones in windows, cut where the text around says so, and in
smaller ones where a window turns out to be too much for the model.

Three steps, which a server takes one by one and ``Tagger.tag`` in one go: an :class:`Asker` makes
pieces of texts, :func:`run` asks a model about a batch of pieces, and :class:`Prepared` makes the
texts' entities of the answers.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain

from torch import nn

from raytag.errors import ModelError
from raytag.model.adapter import AdapterCard, LoadedModel, token_limit
from raytag.model.heads import Asked, Head, TooLong
from raytag.text.spans import Entity
from raytag.text.windows import Window, merge, split

Answer = list[tuple[Window, list[Entity]]]
"""What was found of a piece: its window, or the smaller ones it was asked in, with the entities
of each, relative to it."""


@dataclass(frozen=True, kw_only=True)
class Asker:
    """How texts are made into questions for a model, and which answers count. Holds no model.

    ``window`` is in characters; entities that score below ``threshold`` are left out.
    """

    head: Head
    window: int
    max_tokens: int
    """The longest input the model can take."""
    threshold: float = 0.0

    def prepare(self, texts: Sequence[str]) -> "Prepared":
        """The texts' pieces, tokenised; may be called in any thread, whatever the model does.

        Raises DataError for a text with lone surrogates, ModelError where the model cannot take
        even one character.
        """
        windows = [(i, w) for i, text in enumerate(texts) for w in split(text, self.window)]
        return Prepared(len(texts), self._fitting(texts, windows))

    def smaller(self, piece: "Piece") -> list["Piece"]:
        """A piece in windows of half its size, or less, that fit; their cores tile its core."""
        window, content = piece.window, piece.asked.text
        if len(content) == 1:
            raise ModelError(
                f"the model takes {self.max_tokens} tokens, which is too few for {content!r} and "
                "what is asked about it"
            )
        parts: list[tuple[int, Window]] = []
        for part in split(content, (len(content) + 1) // 2):
            start = max(part.core_start, window.core_start - window.start)
            end = min(part.core_end, window.core_end - window.start)
            if start < end:
                parts.append((0, Window(part.start, part.end, start, end)))
        return [
            Piece(self, piece.text, inner.window.shifted(window.start), inner.asked)
            for inner in self._fitting([content], parts)
        ]

    def counted(self, entities: Sequence[Entity]) -> list[Entity]:
        """Those that are sure enough."""
        return [e for e in entities if (e.score or 0.0) >= self.threshold]

    def _fitting(
        self, texts: Sequence[str], windows: Sequence[tuple[int, Window]]
    ) -> list["Piece"]:
        """Windows as they are, or where they take too many tokens as smaller ones."""
        told = [(i, w) for i, w in windows if not texts[i][w.start : w.end].isspace()]
        asked = self.head.ask([texts[i][w.start : w.end] for i, w in told])
        pieces: list[Piece] = []
        for (i, window), row in zip(told, asked, strict=True):
            piece = Piece(self, i, window, row)
            pieces += [piece] if piece.tokens <= self.max_tokens else self.smaller(piece)
        return pieces


@dataclass(frozen=True, slots=True)
class Piece:
    """A window of a text as a model is asked about it: one row of a batch."""

    asker: Asker
    text: int
    """Which of the texts it is of, by index."""
    window: Window
    asked: Asked

    @property
    def tokens(self) -> int:
        """What one forward pass reads of it."""
        return self.asked.tokens


@dataclass(frozen=True, slots=True)
class Prepared:
    """Texts ready to be asked about: how many they are, and the pieces of them in order.

    An empty text has no piece.
    """

    texts: int
    pieces: list[Piece]

    @property
    def tokens(self) -> int:
        """What a model reads of all of them, padding left out."""
        return sum(piece.tokens for piece in self.pieces)

    def entities(self, answers: Sequence[Answer]) -> list[list[Entity]]:
        """Entities of each text, sorted, without overlaps, as offsets into it.

        ``answers`` are those to ``pieces``, in their order.
        """
        answered: list[Answer] = [[] for _ in range(self.texts)]
        for piece, answer in zip(self.pieces, answers, strict=True):
            answered[piece.text] += answer
        return [_in_order(answer) for answer in answered]


def run(
    pieces: Sequence[Piece], extract: Callable[[Sequence[Piece]], list[list[Entity]]]
) -> list[Answer]:
    """Answers to a batch of pieces, in their order, with those entities that count.

    ``extract`` asks the model about pieces in one batch. A piece whose answer does not fit the
    model is asked about in several parts; the answers to the others do not change by that.
    """
    try:
        found = extract(pieces)
    except TooLong:
        pass  # and leave this block, which keeps the failed batch's tensors alive
    else:
        return [
            [(piece.window, piece.asker.counted(entities))]
            for piece, entities in zip(pieces, found, strict=True)
        ]
    # Which piece it was is found by halving; what each is then given does not depend on the
    # batch it was in.
    if len(pieces) > 1:
        half = len(pieces) // 2
        return run(pieces[:half], extract) + run(pieces[half:], extract)
    (piece,) = pieces
    return [list(chain.from_iterable(run(piece.asker.smaller(piece), extract)))]


@dataclass(frozen=True, kw_only=True)
class Tagger(Asker):
    """A loaded model and its head, asked in batches.

    ``batch_tokens`` bounds texts times the longest text's tokens in one forward pass.
    """

    model: nn.Module
    batch_tokens: int = 4096

    @classmethod
    def of(
        cls, loaded: LoadedModel, batch_tokens: int = 4096, threshold: float | None = None
    ) -> "Tagger":
        """One for a loaded model, in windows of its own size; without a ``threshold``, with that of
        its training."""
        return cls(
            model=loaded.model,
            head=loaded.head,
            window=loaded.card.window,
            max_tokens=token_limit(loaded.model),
            batch_tokens=batch_tokens,
            threshold=trained_threshold(loaded.card) if threshold is None else threshold,
        )

    def tag(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Entities of each text, sorted, without overlaps, as offsets into it.

        The model is left in the mode it was found in. Raises as :meth:`prepare`.
        """
        return self.tag_counted(texts)[0]

    def tag_counted(self, texts: Sequence[str]) -> tuple[list[list[Entity]], int]:
        """As :meth:`tag`, with the number of tokens the model was asked to read."""
        prepared = self.prepare(texts)
        answers: dict[int, Answer] = {}
        with evaluating(self.model):
            for batch in batches([piece.tokens for piece in prepared.pieces], self.batch_tokens):
                pieces = [prepared.pieces[i] for i in batch]
                answers |= zip(batch, run(pieces, self._extract), strict=True)
        found = prepared.entities([answers[i] for i in range(len(prepared.pieces))])
        return found, prepared.tokens

    def _extract(self, pieces: Sequence[Piece]) -> list[list[Entity]]:
        return self.head.extract(self.model, [piece.asked for piece in pieces])


def trained_threshold(card: AdapterCard) -> float:
    """What an adapter's entities had to score to count in its training."""
    threshold = card.settings.get("threshold", 0.0)
    if not isinstance(threshold, int | float):
        raise ModelError(f"the adapter's card has a threshold that is no number: {threshold!r}")
    return float(threshold)


def batches(tokens: Sequence[int], budget: int) -> list[list[int]]:
    """Pieces of so many ``tokens``, by index, in batches of like lengths, the longest first.

    The rows of a batch times its longest row's tokens stay within the budget, or it is one row.
    """
    made: list[list[int]] = []
    longest = 0
    for i in sorted(range(len(tokens)), key=lambda i: -tokens[i]):
        if not made or (len(made[-1]) + 1) * longest > budget:
            made.append([])
            longest = tokens[i]
        made[-1].append(i)
    return made


def _in_order(answer: Answer) -> list[Entity]:
    """One text's entities from those of its windows, which come in any order."""
    ordered = sorted(answer, key=lambda pair: pair[0].core_start)
    return merge([window for window, _ in ordered], [entities for _, entities in ordered])


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout off, and on again afterwards if it was."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        if training:
            model.train()
