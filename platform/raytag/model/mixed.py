"""Texts of many adapters on one base, tagged in one batch: the model side of serving.

Knows which pieces of a batch are whose, and gives each what ``Tagger`` gives it with its adapter
alone. Does not know where adapters come from, which are kept, or which pieces make a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from raytag.errors import ModelError, SettingsError
from raytag.model.adapter import AdapterCard
from raytag.model.frozen import FrozenAdapter
from raytag.model.heads import Batch
from raytag.model.heads.generate import GenerateHead, answer_together
from raytag.model.heads.tag import TagHead, extract_together
from raytag.model.packed import PackedModel, Share
from raytag.model.tagger import Answer, Asker, Piece, run, trained_threshold
from raytag.text.spans import Entity


@dataclass(frozen=True, kw_only=True, eq=False)
class MixedAdapter(Asker):
    """An adapter that can be asked beside others: what it holds, and how texts are put to it."""

    card: AdapterCard
    weights: FrozenAdapter

    @property
    def nbytes(self) -> int:
        """Of its tensors."""
        return self.weights.nbytes


class MixedTagger:
    """One model, and any adapters of it in a batch.

    ``read`` and the adapters' ``prepare`` may be called in any thread at any time; ``run`` in one
    thread at a time.
    """

    def __init__(self, packed: PackedModel) -> None:
        self.packed = packed
        packed.model.eval()
        # Here, not when the first adapter waits for it; and a tokenizer that takes its settings
        # over, as it does when first used, is not to be used in another thread meanwhile.
        _ = packed.fingerprint
        packed.make_head(("any",)).ask([" "])

    def read(self, folder: Path, threshold: float | None = None) -> MixedAdapter:
        """An adapter from its folder; without a ``threshold``, with that of its training.

        Raises ModelError where it is none of this base's, of a kind that is not packed, or not
        whole.
        """
        weights, card = self.packed.read(folder)
        try:
            head = self.packed.make_head(card.labels, card.instruction)
        except SettingsError as exc:
            raise ModelError(f"the adapter at {folder} cannot be asked: {exc}") from exc
        return MixedAdapter(
            head=head,
            window=card.window,
            max_tokens=self.packed.limit,
            threshold=trained_threshold(card) if threshold is None else threshold,
            card=card,
            weights=weights,
        )

    def run(self, pieces: Sequence[Piece]) -> list[Answer | ModelError]:
        """Answers to a batch of pieces of any adapters, in their order.

        The pieces are those that the adapters prepared. One that cannot be answered, such as that
        of an adapter whose logits are not numbers, has its error for an answer, and the others
        theirs.
        """
        try:
            return [*run(pieces, self._extract)]
        except ModelError as exc:
            if len(pieces) == 1:
                return [exc]
        half = len(pieces) // 2
        return self.run(pieces[:half]) + self.run(pieces[half:])

    def _extract(self, pieces: Sequence[Piece]) -> list[list[Entity]]:
        owned: dict[int, list[int]] = {}
        for i, piece in enumerate(pieces):
            owned.setdefault(id(piece.asker), []).append(i)
        adapters = {key: _adapter(pieces[own[0]]) for key, own in owned.items()}
        # Adapters of equally many rows and equal rank are asked together, as neighbours.
        order = sorted(owned, key=lambda key: (len(owned[key]), adapters[key].weights.rank))
        found = self._asked(
            [adapters[key] for key in order], [[pieces[i] for i in owned[key]] for key in order]
        )
        entities: list[list[Entity]] = [[] for _ in pieces]
        for key, answers in zip(order, found, strict=True):
            for i, answer in zip(owned[key], answers, strict=True):
                entities[i] = answer
        return entities

    def _asked(
        self, adapters: Sequence[MixedAdapter], pieces: Sequence[Sequence[Piece]]
    ) -> list[list[list[Entity]]]:
        """Entities of each adapter's pieces, from one batch of all."""
        weights = [adapter.weights for adapter in adapters]
        asked = [[piece.asked for piece in own] for own in pieces]

        def logits(batch: Batch, shares: Sequence[tuple[int, int]]) -> list[Tensor]:
            width = batch.input_ids.shape[1]
            whose = [Share(weights[owner], rows, width) for owner, rows in shares]
            return self.packed.logits(batch.to(self.packed.device), whose)

        if self.packed.head == "tag":
            tagging = [a.head for a in adapters if isinstance(a.head, TagHead)]
            return extract_together(list(zip(tagging, asked, strict=True)), logits)
        writing = [a.head for a in adapters if isinstance(a.head, GenerateHead)]
        answers = answer_together(
            list(zip(writing, asked, strict=True)),
            lambda owners: self.packed.asking(*(weights[owner] for owner in owners)),
        )
        return [[answer.entities for answer in own] for own in answers]


def _adapter(piece: Piece) -> MixedAdapter:
    assert isinstance(piece.asker, MixedAdapter), "pieces of a mixed batch are of its adapters"
    return piece.asker
