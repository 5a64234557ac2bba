"""How a model is asked for entities, and how it is trained to answer.

A head turns an example into token ids with targets, a batch into a loss, and texts into
entities. It knows tokens and words; it does not load models, window long texts or choose
batches, and it never sees more than one batch at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from raytag.errors import DataError
from raytag.model.settings import HeadName
from raytag.text.spans import Entity, Example

IGNORED = -100
"""The target of a token that takes no part in the loss."""


class TooLong(DataError):  # noqa: N818
    """A text, or a text with its growing answer, takes more tokens than the model can."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """One example as token ids, with the target of every position (``IGNORED`` for none).

    ``targets[i]`` is what the model should say at position i: a label for ``tag``, the next
    token for ``generate``. ``lost`` counts the gold entities the head has no way to express.
    """

    input_ids: list[int]
    targets: list[int]
    lost: int = 0

    @property
    def labelled(self) -> int:
        """How many positions take part in the loss."""
        return sum(target != IGNORED for target in self.targets)


@dataclass(frozen=True, slots=True)
class Batch:
    """Encoded examples as tensors of shape (examples, longest), int64, padded."""

    input_ids: Tensor
    attention_mask: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(t.to(device) for t in (self.input_ids, self.attention_mask, self.targets)))


@dataclass(frozen=True, slots=True)
class Asked:
    """A text as a model is asked about it: the tokens of one row, the prompt included.

    ``offsets`` are the characters each token stands for, where the head goes by them.
    """

    text: str
    input_ids: list[int]
    offsets: Sequence[tuple[int, int]] = ()

    @property
    def tokens(self) -> int:
        """What one forward pass over the text reads."""
        return len(self.input_ids)


class Head(Protocol):
    """What training, tagging and scoring ask of a head."""

    @property
    def name(self) -> HeadName: ...

    @property
    def labels(self) -> tuple[str, ...]: ...

    def encode(self, example: Example) -> Encoded:
        """Token ids and targets. Never truncates."""

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Pad to the longest row, on the side this head needs."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy in fp32, summed (not averaged) over the labelled positions."""

    def ask(self, texts: Sequence[str]) -> list[Asked]:
        """The texts as rows of tokens. Raises DataError for a text with lone surrogates."""

    def extract(self, model: nn.Module, asked: Sequence[Asked]) -> list[list[Entity]]:
        """Entities of each text, sorted, with scores; the texts are one batch.

        Offsets lie on word boundaries of the text as given, labels in ``labels``. The model is
        asked as it is: its caller puts it in evaluation mode. Raises TooLong, for the whole
        batch, where one text or its answer does not fit the model.
        """
