"""Texts in, entities out: the one inference path of scoring, bulk tagging and serving.

Knows windows and batches. Does not know where texts come from or where entities go. Texts of
any length are tagged whole: long ones in windows, cut where the text around says so, and in
smaller ones where a window turns out to be too much for the model.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from raytag.errors import ModelError
from raytag.model.adapter import LoadedModel, token_limit
from raytag.model.heads import Asked, Head, TooLong
from raytag.text.spans import Entity
from raytag.text.windows import Window, merge, split


@dataclass(frozen=True, slots=True)
class _Piece:
    """A window of one of the texts, by its index, and its tokens."""

    text: int
    window: Window
    asked: Asked


@dataclass(frozen=True, kw_only=True)
class Tagger:
    """A loaded model and its head, asked in batches.

    ``window`` is in characters. ``batch_tokens`` bounds texts times the longest text's tokens
    in one forward pass; entities that score below ``threshold`` are left out.
    """

    model: nn.Module
    head: Head
    window: int
    max_tokens: int
    """The longest input the model can take."""
    batch_tokens: int = 4096
    threshold: float = 0.0

    @classmethod
    def of(
        cls, loaded: LoadedModel, batch_tokens: int = 4096, threshold: float | None = None
    ) -> "Tagger":
        """One for a loaded model, in windows of its own size; without a ``threshold``, with that of
        its training."""
        trained = float(loaded.card.settings.get("threshold", 0.0))
        return cls(
            model=loaded.model,
            head=loaded.head,
            window=loaded.card.window,
            max_tokens=token_limit(loaded.model),
            batch_tokens=batch_tokens,
            threshold=trained if threshold is None else threshold,
        )

    def tag(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Entities of each text, sorted, without overlaps, as offsets into it.

        The model is left in the mode it was found in. Raises DataError for a text with lone
        surrogates, ModelError where the model cannot take even one character.
        """
        return self.tag_counted(texts)[0]

    def tag_counted(self, texts: Sequence[str]) -> tuple[list[list[Entity]], int]:
        """As :meth:`tag`, with the number of tokens the model was asked to read."""
        windows = [(i, w) for i, text in enumerate(texts) for w in split(text, self.window)]
        pieces = self._fitting(texts, windows)
        answered: list[list[tuple[Window, list[Entity]]]] = [[] for _ in texts]
        with evaluating(self.model):
            for batch in self._batches(pieces):
                for piece, entities in self._ask(batch):
                    kept = [e for e in entities if (e.score or 0.0) >= self.threshold]
                    answered[piece.text].append((piece.window, kept))
        tokens = sum(piece.asked.tokens for piece in pieces)
        return [_in_order(windows) for windows in answered], tokens

    def _fitting(self, texts: Sequence[str], windows: Sequence[tuple[int, Window]]) -> list[_Piece]:
        """Windows as they are, or where they take too many tokens as smaller ones."""
        told = [(i, w) for i, w in windows if not texts[i][w.start : w.end].isspace()]
        asked = self.head.ask([texts[i][w.start : w.end] for i, w in told])
        pieces: list[_Piece] = []
        for (i, window), row in zip(told, asked, strict=True):
            piece = _Piece(i, window, row)
            pieces += [piece] if piece.asked.tokens <= self.max_tokens else self._smaller(piece)
        return pieces

    def _smaller(self, piece: _Piece) -> list[_Piece]:
        """A window in windows of half its size, or less, that fit; their cores tile its core."""
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
            _Piece(piece.text, inner.window.shifted(window.start), inner.asked)
            for inner in self._fitting([content], parts)
        ]

    def _batches(self, pieces: Sequence[_Piece]) -> list[list[_Piece]]:
        """Pieces sorted by length, the longest first, in batches within the token budget."""
        batches: list[list[_Piece]] = []
        longest = 0
        for piece in sorted(pieces, key=lambda p: (-p.asked.tokens, p.text, p.window.start)):
            if not batches or (len(batches[-1]) + 1) * longest > self.batch_tokens:
                batches.append([])
                longest = piece.asked.tokens
            batches[-1].append(piece)
        return batches

    def _ask(self, batch: list[_Piece]) -> Iterator[tuple[_Piece, list[Entity]]]:
        """Every piece with its entities; one whose answer does not fit in several parts."""
        try:
            answers = self.head.extract(self.model, [piece.asked for piece in batch])
        except TooLong:
            pass  # and leave this block, which keeps the failed batch's tensors alive
        else:
            yield from zip(batch, answers, strict=True)
            return
        # Which piece it was is found by asking one at a time; what each is then given does not
        # depend on the batch it was in.
        for piece in batch if len(batch) > 1 else self._smaller(batch[0]):
            yield from self._ask([piece])


def _in_order(answered: list[tuple[Window, list[Entity]]]) -> list[Entity]:
    """One text's entities from those of its windows, which come in any order."""
    answered.sort(key=lambda pair: pair[0].core_start)
    return merge([window for window, _ in answered], [entities for _, entities in answered])


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
