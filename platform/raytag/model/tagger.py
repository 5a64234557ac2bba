"""Texts in, entities out: the one inference path of scoring, bulk tagging and serving.

Knows windows and batches. Does not know where texts come from or where entities go. Texts of
any length are tagged whole: long ones in windows, cut where the text around says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from raytag.errors import ModelError
from raytag.model.heads import Head
from raytag.text.spans import Entity
from raytag.text.windows import Window, merge, split


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

    def tag(self, texts: Sequence[str]) -> list[list[Entity]]:
        """Entities of each text, sorted, without overlaps, as offsets into it."""
        windows = [self._windows(text) for text in texts]
        pieces = [
            (i, j, text[w.start : w.end])
            for i, text in enumerate(texts)
            for j, w in enumerate(windows[i])
        ]
        found: list[list[list[Entity]]] = [[[] for _ in ws] for ws in windows]
        for batch in self._batches(pieces):
            answers = self.head.extract(self.model, [text for _, _, text in batch])
            for (i, j, _), entities in zip(batch, answers, strict=True):
                found[i][j] = [e for e in entities if (e.score or 0.0) >= self.threshold]
        return [merge(ws, per_window) for ws, per_window in zip(windows, found, strict=True)]

    def _windows(self, text: str) -> list[Window]:
        size = self.window
        while True:
            windows = split(text, size)
            longest = max((self.head.length(text[w.start : w.end]) for w in windows), default=0)
            if longest <= self.max_tokens:
                return windows
            # Rare characters can take several tokens each; smaller windows always fit in the end.
            if size < 16:
                raise ModelError(f"a window of {size} characters takes {longest} tokens")
            size //= 2

    def _batches(
        self, pieces: Sequence[tuple[int, int, str]]
    ) -> list[list[tuple[int, int, str]]]:
        """Pieces sorted by length, in batches within the token budget."""
        sized = sorted(((self.head.length(piece[2]), piece) for piece in pieces), reverse=True)
        batches: list[list[tuple[int, int, str]]] = []
        longest = 0
        for length, piece in sized:
            if not piece[2].strip():
                continue
            if not batches or (len(batches[-1]) + 1) * longest > self.batch_tokens:
                batches.append([])
                longest = length
            batches[-1].append(piece)
        return batches
