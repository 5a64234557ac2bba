"""The generating head: a causal LM writes ``[ORG: Apple] [LOC: Seoul]`` after the instruction.

Knows prompts, targets and decoding with a cache; ``grammar`` decides what may be said. Prompt
and answer are always tokenised apart and laid one after the other, in training and in decoding,
so the boundary between them is the same in both. Everything is padded on the left: the answers
are then the last columns, and only those are turned into logits.

Decoding asks the model only where it has a choice. What all prompts of a head begin with is read
once for the whole batch; what an answer is forced to say is read together with the choice before
it. So the rows of a batch go on by different numbers of tokens, and the shorter ones are padded,
on the left and masked, in every pass.
"""

import inspect
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import groupby
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicLayer

from raytag.errors import DataError, ModelError
from raytag.model.heads import IGNORED, Asked, Batch, Encoded, TooLong
from raytag.model.heads.grammar import Answer, Grammar, Ids
from raytag.model.heads.vocabulary import Vocabulary
from raytag.model.settings import HeadName
from raytag.text.prompt import INSTRUCTION, ask, write_answer
from raytag.text.spans import Entity, Example

_STRIDE = 3
"""The most tokens a row reads in one pass once its prompt is read. A row with more takes more
passes: all others are padded to the longest, and padding costs as much as reading."""


class GenerateHead:
    """Prompts, targets and constrained decoding for one tokenizer and label set.

    ``context``
        The most tokens the model can take, prompt and answer together; None for no limit. Past
        it ``encode`` and ``extract`` raise TooLong, they cut nothing off.
    ``vocabulary``
        The tokenizer's, if another head has built it already.
    Raises ModelError for a tokenizer that cannot write text exactly, SettingsError for a
    template without its ``{text}`` or an empty label set.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        labels: Sequence[str],
        *,
        template: str = INSTRUCTION,
        context: int | None = None,
        vocabulary: Vocabulary | None = None,
    ) -> None:
        ask("", template)  # a template that cannot work is refused here
        self.name: HeadName = "generate"
        self.labels = tuple(labels)
        self.template = template
        self.context = context
        self.vocabulary = vocabulary or Vocabulary(tokenizer)
        self.grammar = Grammar(self.vocabulary, self.labels)

    def encode(self, example: Example) -> Encoded:
        """Prompt and answer, with the next token as target from the prompt's last token on.

        The last target is the end of sequence, which nothing follows: it is no input. Raises
        DataError for a label outside ``labels``, TooLong for more tokens than ``context``.
        """
        foreign = sorted({entity.label for entity in example.entities} - set(self.labels))
        if foreign:
            raise DataError(f"example {example.id!r} has labels the head does not know: {foreign}")
        text, lost = write_answer(example)
        prompt = self._prompt(example.text)
        answer = self.vocabulary.encode(text)
        ids = prompt + answer
        self.fits(len(ids) + 1, f"example {example.id!r} with its answer")
        targets = [IGNORED] * (len(prompt) - 1) + answer + [self.vocabulary.eos]
        return Encoded(ids, targets, lost.total())

    def collate(self, rows: Sequence[Encoded]) -> Batch:
        """The rows padded on the left to the longest."""
        # Masked, so any token will do; not every tokenizer has one for padding.
        ids, mask = _pad_left([row.input_ids for row in rows], self.vocabulary.eos)
        targets, _ = _pad_left([row.targets for row in rows], IGNORED)
        return Batch(ids, mask, targets)

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """Cross-entropy of the answers' tokens, in fp32, summed. Shape ().

        ``model`` is called as a module and nothing more, so it may be wrapped (peft, DeepSpeed).
        """
        # The answers are the last columns: the first of them is as far back as any row's.
        columns = (batch.targets != IGNORED).any(dim=0).nonzero()
        width = batch.targets.shape[1]
        keep = width - int(columns[0]) if len(columns) else 1
        output = _forward(
            model,
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            position_ids=_positions(batch.attention_mask),
            use_cache=False,
            logits_to_keep=keep,
        )
        targets = batch.targets[:, -keep:]
        labelled = targets != IGNORED
        logits = output.logits[:, -keep:][labelled].float()
        return cross_entropy(logits, targets[labelled], reduction="sum")

    def ask(self, texts: Sequence[str]) -> list[Asked]:
        """The prompts with these texts; their answers come on top."""
        return [Asked(text, self._prompt(text)) for text in texts]

    def extract(self, model: nn.Module, asked: Sequence[Asked]) -> list[list[Entity]]:
        """Entities of each text, in its order; ``answer`` says how and what it raises.

        An entity's score is the product, over every choice that wrote a part of it (brackets and
        label included), of the model's probability for what it chose among what the grammar
        allowed there; what could come in one way only counts as certain, and whether to end or to
        open an entity is a choice of two. It tells how sure the model was of writing just this,
        then: it falls with every label and word it was told from, and tokenisations that would
        spell a choice alike share its probability.
        """
        return [answer.entities for answer in self.answer(model, asked)]

    def answer(self, model: nn.Module, asked: Sequence[Asked]) -> list[Answer]:
        """What the model writes about each text, decoded greedily as one batch.

        Raises TooLong for more tokens than ``context``, ModelError for a model whose logits are
        not numbers.
        """
        return answer_together([(self, asked)], lambda _: model)[0]

    def _prompt(self, text: str) -> list[int]:
        return self.vocabulary.prompt_ids(ask(text, self.template, self.labels))

    def fits(self, tokens: int, what: str) -> None:
        """Raises TooLong for more tokens than ``context``."""
        if self.context is not None and tokens > self.context:
            raise TooLong(
                f"{what} takes {tokens} tokens or more and the model {self.context}: use a "
                "smaller window"
            )


def answer_together(
    questions: Sequence[tuple[GenerateHead, Sequence[Asked]]],
    model_for: Callable[[Sequence[int]], nn.Module],
) -> list[list[Answer]]:
    """What :meth:`GenerateHead.answer` gives of each head's texts, decoded as one batch.

    The heads have one vocabulary. ``model_for`` gives the model to ask about a batch's rows, told
    whose they are: the index of the question, for each row; those of a question lie side by side.
    """
    answers: list[list[Answer]] = []
    rows: list[_Row] = []
    for owner, (head, asked) in enumerate(questions):
        answers.append([head.grammar.answer(row.text) for row in asked])
        for i, (row, answer) in enumerate(zip(asked, answers[-1], strict=True)):
            if not answer.empty:
                head.fits(row.tokens + 1, f"text {i} of the batch with its answer")
                rows.append(_Row(head, owner, answer, list(row.input_ids), row.tokens))
    if rows:
        with torch.inference_mode():
            _decode(rows, model_for)
    return answers


def _decode(rows: list["_Row"], model_for: Callable[[Sequence[int]], nn.Module]) -> None:
    """Write all answers to their end. One forward pass per turn."""
    cache = _begun(rows, model_for)
    for row in rows:
        row.go_on()
    stride = max(len(row.ahead) for row in rows)  # all prompts are read in one pass
    while rows:
        blocks = [row.next(stride) for row in rows]
        model = model_for([row.owner for row in rows])
        logits = cache.read(model, blocks, keep=1 + max(row.back for row in rows))
        if logits.shape[-1] <= rows[0].head.vocabulary.largest:
            raise ModelError("the tokenizer has more tokens than the model: not its own?")
        _end_or_open(rows, logits)
        _choose(rows, logits)
        left = [i for i, row in enumerate(rows) if not row.answer.done]
        # Leaving rows out copies the cache, so they leave in groups; all copies together
        # then cost no more than a few of the cache at its full width.
        if 4 * len(left) <= 3 * len(rows):
            # Adapters with equally many rows are asked together where they are neighbours.
            counts = Counter(rows[i].owner for i in left)
            left.sort(key=lambda i: (counts[rows[i].owner], rows[i].owner))
            rows = [rows[i] for i in left]
            cache.select(left)
        stride = _STRIDE if cache.takes_gaps else 1


def _begun(rows: Sequence["_Row"], model_for: Callable[[Sequence[int]], nn.Module]) -> "_Cache":
    """A cache in which what the prompts of each question begin with is read already, once."""
    owners = [list(own) for _, own in groupby(rows, key=lambda row: row.owner)]
    shared = [_common([row.ahead[:-1] for row in own]) if len(own) > 1 else [] for own in owners]
    longest = max(map(len, shared))
    for i, own in enumerate(owners):
        if len(own) == 1:  # read as far as the others, so that none waits for it afterwards
            shared[i] = own[0].ahead[:-1][:longest]
    cache = _Cache(len(owners))
    if longest:
        cache.read(model_for([own[0].owner for own in owners]), shared, keep=1)
        # Of the beginnings that are not equally long some were read with gaps before them.
        if not cache.takes_gaps:
            return _Cache(len(rows))
        for own, ids in zip(owners, shared, strict=True):
            for row in own:
                del row.ahead[: len(ids)]
    cache.select([i for i, own in enumerate(owners) for _ in own])
    return cache


def _end_or_open(rows: Sequence["_Row"], logits: Tensor) -> None:
    """Decide for the rows that stand between entities whether their answers end there."""
    asked = [(i, row) for i, row in enumerate(rows) if row.undecided]
    if not asked:
        return
    some = logits[[i for i, _ in asked], [-1 - row.back for _, row in asked]]
    allowed = [np.array([row.eos, row.proposed[0]]) for _, row in asked]
    for (_, row), (token, score) in zip(asked, _likeliest(some, allowed), strict=True):
        row.write([token] if token == row.eos else row.proposed, score)
        row.proposed = []


def _choose(rows: Sequence["_Row"], logits: Tensor) -> None:
    """Choose for the rows that have read all they said, and write what follows from it."""
    asked = [(i, r) for i, r in enumerate(rows) if not (r.ahead or r.answer.done)]
    if not asked:
        return
    some = logits[[i for i, _ in asked], -1]
    allowed = [row.answer.allowed() for _, row in asked]
    for (_, row), (token, score) in zip(asked, _likeliest(some, allowed), strict=True):
        row.write([token], score)
        row.ahead = [token]
        row.go_on()


@dataclass(slots=True)
class _Row:
    """One text of a batch while its answer is written."""

    head: GenerateHead
    owner: int
    """The index of the question it is of."""
    answer: Answer
    ahead: list[int]
    """Tokens the model has still to read."""
    length: int
    """Tokens of the prompt and of what is written."""
    proposed: list[int] = field(default_factory=list)
    """The last of ``ahead``, not written yet: how an entity opens, should the answer not end."""

    @property
    def eos(self) -> int:
        return self.head.vocabulary.eos

    def next(self, count: int) -> list[int]:
        """The next tokens to read, ``count`` at most; they are no longer ahead."""
        if self.answer.done:  # what it still said may be more than the model can take
            return []
        block, self.ahead = self.ahead[:count], self.ahead[count:]
        return block

    @property
    def undecided(self) -> bool:
        """Whether all that is written has been read, and an entity is proposed."""
        return bool(self.proposed) and len(self.ahead) <= len(self.proposed)

    @property
    def back(self) -> int:
        """How many columns before the last one the model spoke about the proposal."""
        return len(self.proposed) - len(self.ahead) if self.undecided else 0

    def write(self, ids: Sequence[int], log_probability: float = 0.0) -> None:
        """Take tokens, the first one chosen and the others entailed."""
        for token in ids:
            self.answer.take(token, log_probability)
            log_probability = 0.0
        self.length += len(ids)

    def go_on(self) -> None:
        """Write what can come in one way only; between entities, propose how one would open."""
        answer, context = self.answer, self.head.context
        while not answer.done:
            ids = answer.forced_ids()
            if ids and answer.between:
                if context is None or self.length + len(ids) < context:
                    self.proposed = ids
                    self.ahead += ids
                break
            if not ids:
                ids = answer.allowed().tolist()
                if len(ids) > 1:
                    break
            self.write(ids)
            self.ahead += ids
        if not answer.done:
            self.head.fits(self.length + 1, "a text with the answer the model gives")


class _Cache:
    """What has been read of every row of a batch: keys and values, and where they stand.

    Rows may be read different numbers of tokens at a time, which leaves gaps in the mask.
    """

    def __init__(self, rows: int) -> None:
        self._past: Any = None
        self._mask = torch.zeros((rows, 0), dtype=torch.int64)
        self._lengths = torch.zeros(rows, dtype=torch.int64)

    @property
    def takes_gaps(self) -> bool:
        """Whether each token attends to all before it that the mask shows.

        A sliding window counts gaps as tokens, and a recurrent state would take them in.
        """
        layers = getattr(self._past, "layers", [])
        return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)

    def read(self, model: nn.Module, blocks: Sequence[Sequence[int]], keep: int) -> Tensor:
        """Read on, each row its own block, and give (rows, at least keep, vocabulary) logits.

        The last column is what each row says next, whatever the lengths of the blocks.
        """
        device = next(model.parameters()).device
        ids, mask = (t.to(device) for t in _pad_left(blocks, 0))
        self._lengths = self._lengths.to(device)
        positions = (self._lengths[:, None] + _positions(mask)).clamp_(min=0)
        self._mask = torch.cat([self._mask.to(device), mask], dim=1)
        self._lengths = self._lengths + mask.sum(dim=1)
        output = _forward(
            model,
            input_ids=ids,
            attention_mask=self._mask,
            position_ids=positions,
            past_key_values=self._past,
            use_cache=True,
            logits_to_keep=keep,
        )
        self._past = output.past_key_values
        logits: Tensor = output.logits
        return logits

    def select(self, rows: Sequence[int]) -> None:
        """Go on with these rows, by index, in this order; one may come several times."""
        if rows:
            index = torch.tensor(rows, dtype=torch.int64, device=self._mask.device)
            self._mask = self._mask[index]
            self._lengths = self._lengths[index]
            if self._past is not None:
                self._past.batch_select_indices(index)


def _common(rows: Sequence[Sequence[int]]) -> list[int]:
    """What all rows begin with."""
    length = 0
    for column in zip(*rows, strict=False):
        if len(set(column)) > 1:
            break
        length += 1
    return list(rows[0][:length])


def _likeliest(logits: Tensor, allowed: Sequence[Ids]) -> list[tuple[int, float]]:
    """Each row's likeliest allowed token, and its log-probability among the allowed.

    Gathers the few logits that count, so the cost does not grow with the vocabulary.
    """
    index = np.zeros((len(allowed), max(map(len, allowed))), dtype=np.int64)
    barred = np.ones(index.shape, dtype=np.bool_)
    for row, ids in enumerate(allowed):
        index[row, : len(ids)] = ids
        barred[row, : len(ids)] = False
    ids_ = torch.from_numpy(index).to(logits.device)
    bars = torch.from_numpy(barred).to(logits.device)
    some = logits.gather(1, ids_).float().masked_fill_(bars, float("-inf"))
    log_probability, best = some.log_softmax(dim=1).max(dim=1)
    # One transfer for both; float64 holds every token id exactly.
    found = torch.stack([ids_.gather(1, best[:, None])[:, 0].double(), log_probability.double()])
    chosen, scores = found.tolist()
    if any(isnan(score) for score in scores):
        raise ModelError("the model's logits are not numbers (NaN): its weights or dtype are off")
    return [(int(token), score) for token, score in zip(chosen, scores, strict=True)]


def _pad_left(rows: Sequence[Sequence[int]], fill: int) -> tuple[Tensor, Tensor]:
    """(rows, mask), each (rows, longest), int64: the rows at the right edge, 1 where they are."""
    width = max((len(row) for row in rows), default=0)
    padded = torch.full((len(rows), width), fill, dtype=torch.int64)
    mask = torch.zeros_like(padded)
    for i, row in enumerate(rows):
        start = width - len(row)
        padded[i, start:] = torch.tensor(row, dtype=torch.int64)
        mask[i, start:] = 1
    return padded, mask


def _positions(mask: Tensor) -> Tensor:
    """Positions that count from each row's own first token, whatever stands left of it."""
    return (mask.cumsum(dim=1) - 1).clamp_(min=0)


def _forward(model: nn.Module, **inputs: Any) -> Any:
    """Call ``model`` with those of ``inputs`` that its innermost forward knows.

    Models differ in whether they take positions and in how many logits they can be asked for;
    wrappers take anything.
    """
    known = _parameters(type(_innermost(model)).forward)
    return model(**{name: value for name, value in inputs.items() if name in known})


@lru_cache(maxsize=32)  # a signature takes a millisecond, as long as a small model's whole pass
def _parameters(forward: Callable[..., Any]) -> frozenset[str]:
    return frozenset(inspect.signature(forward).parameters)


def _innermost(model: nn.Module) -> nn.Module:
    """The model itself under DeepSpeed's or DDP's wrapper and peft's."""
    while True:
        if isinstance(inner := getattr(model, "module", None), nn.Module):
            model = inner
        elif callable(base := getattr(model, "get_base_model", None)):
            model = base()
        else:
            return model
