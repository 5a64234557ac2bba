"""The generating head: a causal LM writes ``[ORG: Apple] [LOC: Seoul]`` after the instruction.

Knows prompts, targets and decoding with a cache; ``grammar`` decides what may be said. Prompt
and answer are always tokenised apart and laid one after the other, in training and in decoding,
so the boundary between them is the same in both. Everything is padded on the left: the answers
are then the last columns, and only those are turned into logits.
"""

import inspect
from collections.abc import Callable, Sequence
from functools import lru_cache
from math import isnan
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, pad
from transformers import PreTrainedTokenizerBase

from raytag.errors import DataError, ModelError
from raytag.model.heads import IGNORED, Batch, Encoded, TooLong
from raytag.model.heads.grammar import Answer, Grammar, Ids
from raytag.model.heads.vocabulary import Vocabulary
from raytag.model.settings import HeadName
from raytag.text.prompt import INSTRUCTION, ask, write_answer
from raytag.text.spans import Entity, Example


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
        self._fits(len(ids) + 1, f"example {example.id!r} with its answer")
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

    def length(self, text: str) -> int:
        """How many tokens the prompt with this text takes; its answer comes on top."""
        return len(self._prompt(text))

    def extract(self, model: nn.Module, texts: Sequence[str]) -> list[list[Entity]]:
        """Entities of each text, in its order; ``answer`` says how and what it raises.

        An entity's score is the product, over every token that wrote a part of it (brackets and
        label included), of the model's probability for that token among those the grammar
        allowed there. It tells how sure the model was of writing just this, then: it falls with
        an entity's length, and tokenisations that would spell the same share the probability.
        """
        return [answer.entities for answer in self.answer(model, texts)]

    def answer(self, model: nn.Module, texts: Sequence[str]) -> list[Answer]:
        """What the model writes about each text, decoded greedily as one batch.

        Raises DataError for a text with lone surrogates, TooLong for more tokens than
        ``context``, ModelError for a model whose logits are not numbers.
        """
        answers = [self.grammar.answer(text) for text in texts]
        asked = [i for i, answer in enumerate(answers) if not answer.empty]
        prompts = [self._prompt(texts[i]) for i in asked]
        for i, prompt in zip(asked, prompts, strict=True):
            self._fits(len(prompt) + 1, f"text {i} of the batch with its answer")
        with torch.inference_mode():
            self._decode(model, [answers[i] for i in asked], prompts)
        return answers

    def _decode(self, model: nn.Module, answers: list[Answer], prompts: list[list[int]]) -> None:
        """Write all answers to their end. One forward pass per turn, and none but here."""
        device = next(model.parameters()).device
        eos = self.vocabulary.eos
        finished = np.array([eos])
        rows = _Rows(model, *(t.to(device) for t in _pad_left(prompts, eos)))
        lengths = [len(prompt) for prompt in prompts]
        while answers:
            self._fits(max(lengths) + 1, "a text with the answer the model gives")
            logits = rows.logits()
            if logits.shape[-1] <= self.vocabulary.largest:
                raise ModelError("the tokenizer has more tokens than the model: not its own?")
            allowed = [finished if answer.done else answer.allowed() for answer in answers]
            tokens, chosen, log_probabilities = _likeliest(logits, allowed)
            for i, answer in enumerate(answers):
                if not answer.done:
                    answer.take(chosen[i], log_probabilities[i])
                    lengths[i] += 1
            left = [i for i, answer in enumerate(answers) if not answer.done]
            # Leaving rows out copies the cache, so they leave in groups; all copies together
            # then cost no more than a few of the cache at its full width.
            if 4 * len(left) <= 3 * len(answers):
                answers = [answers[i] for i in left]
                lengths = [lengths[i] for i in left]
                kept = torch.tensor(left, dtype=torch.int64, device=device)
                rows.keep(kept)
                tokens = tokens[kept]
            rows.write(tokens)

    def _prompt(self, text: str) -> list[int]:
        return self.vocabulary.prompt_ids(ask(text, self.template, self.labels))

    def _fits(self, tokens: int, what: str) -> None:
        if self.context is not None and tokens > self.context:
            raise TooLong(
                f"{what} takes {tokens} tokens or more and the model {self.context}: use a "
                "smaller window"
            )


class _Rows:
    """The rows of a batch while they are written: tokens to read next, mask and cache.

    ``ids`` is (rows, longest prompt) for the first pass and (rows, 1) from then on.
    """

    def __init__(self, model: nn.Module, ids: Tensor, mask: Tensor) -> None:
        self._model = model
        self._ids = ids
        self._mask = mask
        self._positions = _positions(mask)
        self._cache: Any = None

    def logits(self) -> Tensor:
        """(rows, vocabulary): what each row says next. One forward pass."""
        output = _forward(
            self._model,
            input_ids=self._ids,
            attention_mask=self._mask,
            position_ids=self._positions,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        logits: Tensor = output.logits[:, -1]
        return logits

    def write(self, tokens: Tensor) -> None:
        """Put one token, (rows,), behind each row."""
        self._ids = tokens[:, None]
        self._mask = pad(self._mask, (0, 1), value=1)
        self._positions = self._positions[:, -1:] + 1

    def keep(self, rows: Tensor) -> None:
        """Go on with these rows only, by index."""
        self._mask = self._mask[rows]
        self._positions = self._positions[rows]
        if len(rows):
            self._cache.batch_select_indices(rows)


def _likeliest(logits: Tensor, allowed: Sequence[Ids]) -> tuple[Tensor, list[int], list[float]]:
    """Each row's likeliest allowed token, (rows,), and its log-probability among the allowed.

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
    tokens = ids_.gather(1, best[:, None])[:, 0]
    # One transfer for both; float64 holds every token id exactly.
    chosen, scores = torch.stack([tokens.double(), log_probability.double()]).tolist()
    if any(isnan(score) for score in scores):
        raise ModelError("the model's logits are not numbers (NaN): its weights or dtype are off")
    return tokens, [int(token) for token in chosen], scores


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
