"""The generating head, with random weights and with a model that has learned something."""

import math
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import Layout, assert_legal, checkpoint
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    MistralConfig,
    MistralForCausalLM,
)

from raytag.errors import DataError, ModelError, SettingsError
from raytag.model.heads import IGNORED, Encoded
from raytag.model.heads.generate import GenerateHead, _likeliest
from raytag.text.prompt import ask, read_answer, write_answer
from raytag.text.spans import Entity, Example

LABELS = ("PER", "LOC", "ORG", "A: [B]")
LAYOUTS: tuple[Layout, ...] = ("byte-level", "sentencepiece")
PIECES = [
    *("Tim Cook", "in Seoul", "Zoë", "met", "the", "aa a", "x-y", "1,2.5", "don't", "New York"),
    *("e\u0301te\u0301", "n\u0303\u0323", "👩\u200d👩\u200d👧", "👩🏽\u200d🔬", "🙂", "🇰🇷"),
    *("שלום", "\u202bمرحبا\u202c", "東京タワー", "ไทย", "▁", "ﬁ", "İ", "\u00a0", "\u200b"),
    *("[", "]", "[PER: Tim]", "a: b", "::", "\\", "\\]", "] [", "\t", "\n", "\r\n", "<s>"),
]


def texts(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    return [
        "".join(rng.choice(PIECES) + rng.choice(["", " ", " "]) for _ in range(rng.randint(0, 9)))
        for _ in range(count)
    ]


Loaded = tuple[GenerateHead, nn.Module]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[Layout, Loaded]]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices this small only lose by being shared out
    heads: dict[Layout, Loaded] = {}
    for layout in LAYOUTS:
        folder = checkpoint(tmp_path_factory.mktemp(layout), layout)
        model = AutoModelForCausalLM.from_pretrained(folder)
        heads[layout] = GenerateHead(AutoTokenizer.from_pretrained(folder), LABELS), model
    yield heads
    torch.set_num_threads(threads)


@contextmanager
def talkative(head: GenerateHead, model: nn.Module) -> Iterator[None]:
    """Random weights that go on to more entities, and close them, more often than by chance."""
    bias = torch.zeros(head.vocabulary.largest + 1)
    bias[head.vocabulary.eos] -= 0.5
    for token, data in head.vocabulary.bytes_of.items():
        bias[token] += 0.4 * (b"]" in data)

    def lean(module: nn.Module, inputs: object, output: object) -> None:
        output.logits += bias  # type: ignore[attr-defined]

    hook = model.register_forward_hook(lean)
    try:
        yield
    finally:
        hook.remove()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_no_entity_outside_the_text_and_no_foreign_label_whatever_the_weights(
    layout: Layout, loaded: dict[Layout, Loaded]
) -> None:
    head, model = loaded[layout]
    asked = texts(500, seed=LAYOUTS.index(layout))
    found = 0
    with talkative(head, model):
        for start in range(0, len(asked), 50):
            batch = asked[start : start + 50]
            for text, answer in zip(batch, head.answer(model, head.ask(batch)), strict=True):
                entities = answer.entities
                # The decoder walked the offsets; the reader looks for them in the string.
                assert entities == read_answer(answer.written, text, LABELS)
                assert_legal(entities, text, LABELS)
                found += len(entities)
    assert found >= 500, "a test of entities needs entities"


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_batch_says_what_its_texts_say_alone(
    layout: Layout, loaded: dict[Layout, Loaded]
) -> None:
    head, model = loaded[layout]
    asked = texts(40, seed=7)
    with talkative(head, model):
        together = head.extract(model, head.ask(asked))
        alone = [head.extract(model, head.ask([text]))[0] for text in asked]
    assert together == alone
    assert sum(map(len, alone)) > 20
    scores = [
        [entity.score for entities in run for entity in entities] for run in (together, alone)
    ]
    assert scores[0] == pytest.approx(scores[1], rel=1e-3)


def gold(text: str, *spans: tuple[str, str]) -> Example:
    entities = tuple(Entity(text.index(s), text.index(s) + len(s), label) for label, s in spans)
    return Example(text, text, entities)


GOLD = [
    gold("Tim Cook met Zoë in New York.", ("PER", "Tim Cook"), ("PER", "Zoë"), ("LOC", "New York")),
    gold("Apple opened an office in Seoul.", ("ORG", "Apple"), ("LOC", "Seoul")),
    gold("Nothing to be seen here."),
    gold("In 東京 it rained 🙂 on Ann.", ("LOC", "東京"), ("PER", "Ann")),
    gold("See [a:b] of Acme\\Co now.", ("A: [B]", "[a:b]"), ("ORG", "Acme\\Co")),
    gold("שלום to Paris\tand Rome", ("LOC", "Paris"), ("LOC", "Rome")),
    gold("Ann saw Cafe\u0301 Roma.", ("PER", "Ann"), ("ORG", "Cafe\u0301 Roma")),
    gold("It is all quiet in Oslo", ("LOC", "Oslo")),
]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_targets_are_the_next_tokens_of_the_answer_and_its_end(
    layout: Layout, loaded: dict[Layout, Loaded]
) -> None:
    head, _ = loaded[layout]
    for example in GOLD:
        row = head.encode(example)
        prompt = head.vocabulary.prompt_ids(ask(example.text))
        answer = row.input_ids[len(prompt) :]
        assert row.input_ids[: len(prompt)] == prompt
        assert len(prompt) == head.ask([example.text])[0].tokens
        assert head.vocabulary.decode(answer) == write_answer(example)[0]
        assert row.targets[: len(prompt) - 1] == [IGNORED] * (len(prompt) - 1)
        assert row.targets[len(prompt) - 1 :] == [*answer, head.vocabulary.eos]
        assert row.labelled == len(answer) + 1
        assert row.lost == 0


def test_gold_that_cannot_be_said_is_counted(loaded: dict[Layout, Loaded]) -> None:
    head, _ = loaded["byte-level"]
    row = head.encode(Example("x", "Ann and Ann", (Entity(8, 11, "PER"), Entity(4, 6, "PER"))))
    assert row.lost == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_loss_is_the_sum_over_the_rows_however_they_are_padded(
    layout: Layout, loaded: dict[Layout, Loaded]
) -> None:
    head, model = loaded[layout]
    rows = [head.encode(example) for example in GOLD]
    by_hand = 0.0
    for row in rows:
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([row.input_ids])).logits[0]
        by_hand += float(
            nn.functional.cross_entropy(
                logits, torch.tensor(row.targets), ignore_index=IGNORED, reduction="sum"
            )
        )
    batch = head.collate(rows)
    assert batch.attention_mask[:, -1].all(), "padded on the left"
    assert batch.attention_mask.sum() == sum(len(row.input_ids) for row in rows)
    assert float(head.loss(model, batch).detach()) == pytest.approx(by_hand, rel=1e-5)


def test_positions_count_from_each_rows_own_start(loaded: dict[Layout, Loaded]) -> None:
    # Rotary positions are relative and would hide a shift; GPT-2's are absolute.
    head, _ = loaded["byte-level"]
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=head.vocabulary.largest + 1, n_embd=32, n_layer=2, n_head=4, eos_token_id=0
    )
    model = GPT2LMHeadModel(config).eval()
    model.transformer.wpe.weight.data.normal_()
    rows = [head.encode(example) for example in GOLD]
    with torch.inference_mode():
        alone = sum(float(head.loss(model, head.collate([row]))) for row in rows)
        assert float(head.loss(model, head.collate(rows))) == pytest.approx(alone, rel=1e-5)
    asked = texts(12, seed=5)
    with talkative(head, model):
        assert head.extract(model, head.ask(asked)) == [
            head.extract(model, head.ask([text]))[0] for text in asked
        ]


def test_probabilities_are_those_among_the_allowed_tokens() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0, 9.0], [0.0, 5.0, 0.0, 7.0]])
    (first, score), second = _likeliest(logits, [np.array([1, 2]), np.array([1])])
    assert first == 2
    assert score == pytest.approx(math.log(math.e / (1 + math.e)))
    assert second == (1, 0.0)


def test_rows_without_targets_cost_nothing_and_can_be_differentiated(
    loaded: dict[Layout, Loaded],
) -> None:
    head, model = loaded["byte-level"]
    loss = head.loss(model, head.collate([Encoded([5, 6], [IGNORED, IGNORED])]))
    assert float(loss.detach()) == 0
    loss.backward()
    model.zero_grad()


def test_loss_and_decoding_agree_a_learned_answer_is_given_back(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path, "byte-level", seed=1)
    head = GenerateHead(AutoTokenizer.from_pretrained(folder), LABELS)
    base = AutoModelForCausalLM.from_pretrained(folder)
    # Through peft, which hides the model's own forward.
    model = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    batch = head.collate([head.encode(example) for example in GOLD])
    count = int((batch.targets != IGNORED).sum())
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    model.train()
    for _ in range(400):
        loss = head.loss(model, batch) / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if float(loss.detach()) < 0.01:
            break
    model.eval()
    found = head.extract(model, head.ask([example.text for example in GOLD]))
    assert found == [list(example.entities) for example in GOLD]
    assert all(entity.score > 0.8 for entities in found for entity in entities if entity.score)
    # Greedy decoding without any grammar says the same: training and decoding share a boundary.
    for example in GOLD[:3]:
        prompt = torch.tensor([head.vocabulary.prompt_ids(ask(example.text))])
        out = model.generate(input_ids=prompt, max_new_tokens=60, do_sample=False)
        said = head.vocabulary.decode(out[0, prompt.shape[1] :].tolist())
        assert said == write_answer(example)[0]


class Counting(nn.Module):
    """A wrapper, as DeepSpeed's engine is one, that counts the passes."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module
        self.passes = 0
        self.rows: list[int] = []
        self.read = 0

    def forward(self, **inputs: Tensor) -> object:
        self.passes += 1
        rows, width = inputs["input_ids"].shape
        self.rows.append(rows)
        self.read += int(inputs["attention_mask"][:, -width:].sum())
        return self.module(**inputs)


def test_rows_that_are_finished_leave_the_batch(loaded: dict[Layout, Loaded]) -> None:
    head, model = loaded["byte-level"]
    counting = Counting(model)
    with talkative(head, model):
        head.extract(counting, head.ask(texts(40, seed=3)))
    shared, *rows = counting.rows
    assert shared == 1, "what all prompts begin with is read once"
    assert rows == sorted(rows, reverse=True)
    assert rows[-1] < rows[0] / 4


@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_forced_takes_no_pass(layout: Layout, loaded: dict[Layout, Loaded]) -> None:
    head, model = loaded[layout]
    counting = Counting(model)
    (label, text) = ("A: [B]", "Zoë-Müller")
    alone = GenerateHead(head.vocabulary.tokenizer, [label], vocabulary=head.vocabulary)
    with talkative(head, model):
        (answer,) = alone.answer(counting, alone.ask([f"{text}  "]))
    written = head.vocabulary.encode(answer.written)
    assert answer.entities
    assert counting.passes < len(written)
    # One proposal to open was read for nothing if the answer ended.
    assert counting.read < len(alone._prompt(f"{text}  ")) + 2 * len(written)


def test_the_cache_of_a_sliding_window_gets_no_gaps(
    loaded: dict[Layout, Loaded],
) -> None:
    # A window counts columns: with gaps in them it would see less of a row than it should.
    head, _ = loaded["byte-level"]
    torch.manual_seed(0)
    config = MistralConfig(
        vocab_size=head.vocabulary.largest + 1,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=24,
        eos_token_id=head.vocabulary.eos,
        pad_token_id=None,
    )
    model = MistralForCausalLM(config).eval()
    asked = texts(12, seed=5)
    with talkative(head, model):
        together = head.extract(model, head.ask(asked))
        assert together == [head.extract(model, head.ask([text]))[0] for text in asked]
    assert any(together)


def test_more_tokens_than_the_context_are_refused_not_cut(loaded: dict[Layout, Loaded]) -> None:
    plain, model = loaded["byte-level"]
    example = GOLD[0]
    row = plain.encode(example)

    def head(context: int) -> GenerateHead:
        tok = plain.vocabulary.tokenizer
        return GenerateHead(tok, LABELS, context=context, vocabulary=plain.vocabulary)

    assert head(len(row.input_ids) + 1).encode(example) == row
    with pytest.raises(DataError, match="smaller window"):
        head(len(row.input_ids)).encode(example)
    with pytest.raises(DataError, match="text 1 of the batch"):
        head(plain.ask([example.text])[0].tokens).extract(model, plain.ask([" ", example.text]))
    with pytest.raises(DataError, match="the answer the model gives"), talkative(plain, model):
        head(plain.ask([example.text])[0].tokens + 3).extract(model, plain.ask([example.text]))


def test_labels_outside_the_set_are_refused(loaded: dict[Layout, Loaded]) -> None:
    head, _ = loaded["byte-level"]
    with pytest.raises(DataError, match="PLANET"):
        head.encode(gold("Mars", ("PLANET", "Mars")))


def test_a_template_without_its_slot_is_refused(loaded: dict[Layout, Loaded]) -> None:
    with pytest.raises(SettingsError):
        GenerateHead(loaded["byte-level"][0].vocabulary.tokenizer, LABELS, template="no")


def test_logits_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    folder = checkpoint(tmp_path)
    head = GenerateHead(AutoTokenizer.from_pretrained(folder), LABELS)
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.get_input_embeddings().weight.data.fill_(float("nan"))
    with pytest.raises(ModelError, match="not numbers"):
        head.extract(model, head.ask(["Tim"]))
