"""The ``tag`` head: one forward pass, a BIO label for every word.

Knows tokens, words and label sequences. A word's label stands at its first token, as is usual
for token classification; words that share a token are taken as one, so that no entity can
begin or end inside a token. Decoding considers valid label sequences only (no I without its
B), the most probable of them: independent word probabilities under BIO's transition rules
(Viterbi 1967).
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from raytag.errors import DataError, ModelError
from raytag.model.heads import IGNORED, Asked, Batch, Encoded
from raytag.model.settings import HeadName
from raytag.text.spans import Entity, Example
from raytag.text.words import words

OUTSIDE = 0
_NEVER = -1e6
"""A log-probability that no other evidence makes up for; finite, so that sums can be compared."""


def tag_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The output layer's classes: O, then B and I of every label."""
    return ("O", *(f"{prefix}-{label}" for label in labels for prefix in "BI"))


@dataclass(frozen=True, slots=True)
class Unit:
    """A stretch of text that gets one label: characters, and the token that stands for it."""

    start: int
    end: int
    token: int | None
    """None where the tokenizer made nothing of these characters; they take part in no loss."""


@dataclass(frozen=True)
class TagHead:
    """Token classification over BIO labels, on an encoder or a bidirectional decoder."""

    tokenizer: PreTrainedTokenizerBase
    labels: tuple[str, ...]
    name: HeadName = field(default="tag", init=False)

    def encode(self, example: Example) -> Encoded:
        """Targets at the first token of each word.

        An entity that cuts a word is widened to it; of two that overlap the earlier is kept, and
        one that covers no word is left out. What the targets then do not say is counted as lost.
        Raises DataError for a label outside ``labels``.
        """
        foreign = sorted({entity.label for entity in example.entities} - set(self.labels))
        if foreign:
            raise DataError(f"example {example.id!r} has labels the head does not know: {foreign}")
        (asked,) = self.ask([example.text])
        input_ids, units = asked.input_ids, _units(asked)
        tags = [OUTSIDE] * len(units)
        for entity in example.entities:
            covered = [
                i for i, u in enumerate(units) if u.start < entity.end and entity.start < u.end
            ]
            if any(tags[i] != OUTSIDE for i in covered):
                continue
            begin = 1 + 2 * self.labels.index(entity.label)
            for i in covered:
                tags[i] = begin + (i != covered[0])
        targets = [IGNORED] * len(input_ids)
        certain = np.zeros((len(units), 1 + 2 * len(self.labels)), dtype=np.float32)
        for i, (unit, tag) in enumerate(zip(units, tags, strict=True)):
            if unit.token is not None:
                targets[unit.token] = tag
                certain[i] = _NEVER
                certain[i, tag] = 0.0
        said = Counter(self._read(units, certain))
        return Encoded(input_ids, targets, (Counter(example.entities) - said).total())

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """Padded on the right, and never empty: some models fail on no tokens at all."""
        longest = max(1, *(len(row.input_ids) for row in rows))
        shape = (len(rows), longest)
        ids = torch.full(shape, self.tokenizer.pad_token_id)
        mask = torch.zeros(shape, dtype=torch.int64)
        targets = torch.full(shape, IGNORED)
        for i, row in enumerate(rows):
            n = len(row.input_ids)
            ids[i, :n] = torch.tensor(row.input_ids)
            mask[i, :n] = 1
            targets[i, :n] = torch.tensor(row.targets)
        return Batch(ids, mask, targets)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return nn.functional.cross_entropy(
            logits.float().flatten(0, 1),
            batch.targets.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )

    def ask(self, texts: Sequence[str]) -> list[Asked]:
        """The texts' tokens; what looks like a special token in them is text."""
        if not texts:
            return []
        try:
            coded = self.tokenizer(
                list(texts), return_offsets_mapping=True, split_special_tokens=True
            )
        except TypeError as exc:  # what a tokenizer makes of text that UTF-8 cannot write
            raise DataError("the text holds half a character (a lone surrogate)") from exc
        rows = zip(texts, coded["input_ids"], coded["offset_mapping"], strict=True)
        return [Asked(text, ids, offsets) for text, ids, offsets in rows]

    def extract(self, model: nn.Module, asked: Sequence[Asked]) -> list[list[Entity]]:
        """The most probable valid labelling of each text.

        An entity's score is the product of its words' label probabilities. Raises ModelError for
        a model whose logits are not numbers.
        """

        def logits(batch: Batch, shares: Sequence[tuple[int, int]]) -> list[Tensor]:
            batch = batch.to(next(model.parameters()).device)
            told = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask)
            return [told.logits]

        return extract_together([(self, asked)], logits)[0]

    def _decode(self, units: list[Unit], log_p: NDArray[np.float32]) -> list[Entity]:
        """Entities from log-probabilities of shape (tokens, classes)."""
        # A unit without a token says nothing for or against any label.
        nothing = np.zeros(log_p.shape[1], dtype=np.float32)
        scores = [nothing if u.token is None else log_p[u.token] for u in units]
        return self._read(units, np.stack(scores)) if scores else []

    def _read(self, units: list[Unit], scores: NDArray[np.float32]) -> list[Entity]:
        """Entities from log-probabilities of shape (units, classes)."""
        if np.isnan(scores).any():
            raise ModelError(
                "the model's logits are not numbers (NaN): its weights or dtype are off"
            )
        tags = best_tags(scores)
        entities: list[Entity] = []
        i = 0
        while i < len(units):
            if tags[i] == OUTSIDE:
                i += 1
                continue
            first, label = i, self.labels[(tags[i] - 1) // 2]
            i += 1
            while i < len(units) and tags[i] == tags[first] + 1:
                i += 1
            score = float(np.exp(sum(scores[j, tags[j]] for j in range(first, i))))
            entities.append(Entity(units[first].start, units[i - 1].end, label, score))
        return entities


@torch.inference_mode()
def extract_together(
    questions: Sequence[tuple[TagHead, Sequence[Asked]]],
    logits: Callable[[Batch, Sequence[tuple[int, int]]], Sequence[Tensor]],
) -> list[list[list[Entity]]]:
    """What :meth:`TagHead.extract` gives of each head's texts, from one batch of them all.

    The heads have one tokenizer. ``logits`` is asked for those of a batch, on the CPU, and told
    whose its rows are: the index of the question and its rows, for each in turn. It gives those of
    each, of shape (rows, tokens, classes).
    """
    units = [[_units(row) for row in asked] for _, asked in questions]
    # A text that tokenizers make nothing of may leave nothing to call the model with.
    told = [
        [i for i, row in enumerate(own) if any(u.token is not None for u in row)] for own in units
    ]
    found: list[list[list[Entity]]] = [[[] for _ in asked] for _, asked in questions]
    shares = [(question, len(own)) for question, own in enumerate(told) if own]
    if not shares:
        return found
    rows = [questions[question][1][i].input_ids for question, _ in shares for i in told[question]]
    batch = questions[0][0].collate([Encoded(ids, [IGNORED] * len(ids)) for ids in rows])
    for (question, _), part in zip(shares, logits(batch, shares), strict=True):
        head = questions[question][0]
        probabilities = part.float().log_softmax(-1).cpu().numpy()
        for i, log_p in zip(told[question], probabilities, strict=True):
            found[question][i] = head._decode(units[question][i], log_p)
    return found


def _units(asked: Asked) -> list[Unit]:
    """The words of a text with their first tokens."""
    tokens = [(i, a, b) for i, (a, b) in enumerate(asked.offsets) if a < b]
    units: list[Unit] = []
    at = 0
    for start, end in words(asked.text):
        while at < len(tokens) and tokens[at][2] <= start:
            at += 1
        found = at < len(tokens) and tokens[at][1] < end
        if found and units and tokens[at][1] < units[-1].end:
            units[-1] = Unit(units[-1].start, end, units[-1].token)
            continue
        token = tokens[at][0] if found else None
        units.append(Unit(start, end, token))
    return units


def best_tags(log_p: NDArray[np.float32]) -> list[int]:
    """The most probable valid tag sequence for scores of shape (words, 1 + 2 labels).

    I may follow only B or I of its own label.
    """
    greedy = log_p.argmax(-1)
    inside = (greedy > 0) & (greedy % 2 == 0)
    before = np.concatenate(([OUTSIDE], greedy[:-1]))
    if not np.any(inside & (before != greedy) & (before != greedy - 1)):
        # Where the best tags happen to be valid they are the best valid ones.
        best: list[int] = greedy.tolist()
        return best
    return _viterbi(log_p)


def _viterbi(log_p: NDArray[np.float32]) -> list[int]:
    length, tags = log_p.shape
    is_inside = np.arange(tags) % 2 == 0
    is_inside[OUTSIDE] = False
    best = np.where(is_inside, -np.inf, log_p[0])
    back = np.zeros((length, tags), dtype=np.int64)
    begins = np.arange(tags) - 1
    for i in range(1, length):
        # O and B may follow anything; I follows the better of its own B and I.
        back[i] = best.argmax()
        stays = best >= best[begins]
        back[i, is_inside] = np.where(stays, np.arange(tags), begins)[is_inside]
        best = best[back[i]] + log_p[i]
    path = [int(best.argmax())]
    for i in range(length - 1, 0, -1):
        path.append(int(back[i, path[-1]]))
    return path[::-1]
