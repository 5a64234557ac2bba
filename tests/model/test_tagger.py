"""The tagger: long texts, many texts, texts that are too much for the model."""

import random
from collections.abc import Sequence

import pytest
import torch
from tiny import checkpoint, encoder
from torch import Tensor, nn

from raytag.errors import DataError, ModelError
from raytag.model.adapter import context, make_head, output_names
from raytag.model.base import find_base, load_model, load_tokenizer
from raytag.model.heads import Asked, Head
from raytag.model.heads.generate import GenerateHead
from raytag.model.heads.tag import TagHead
from raytag.model.settings import HeadName
from raytag.model.tagger import Tagger
from raytag.text.spans import Entity
from raytag.text.windows import merge, split
from raytag.text.words import words

LABELS = ("PER", "LOC")
WORDS = [
    *("Tim", "Cook", "met", "Zoë", "Müller", "in", "New York", "and", "Paris", "where", "Apple"),
    *("opened", "🙂", "👩\u200d👩\u200d👧", "東京", "שלום", "e\u0301te\u0301", "office", "Monday"),
]
Loaded = dict[str, tuple[Head, nn.Module]]
KINDS = ("qwen2-generate", "qwen2-tag", "bert-tag")


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("bases")
    bases = {"qwen2": checkpoint(folder / "qwen2"), "bert": encoder(folder / "bert")}
    made: Loaded = {}
    for kind in KINDS:
        base_name, name = kind.split("-")
        head_name: HeadName = "tag" if name == "tag" else "generate"
        torch.manual_seed(0)
        base = find_base(str(bases[base_name]))
        model = load_model(base, head_name, output_names(head_name, LABELS), "fp32")
        head = make_head(head_name, load_tokenizer(base.path), LABELS, context=context(model))
        if isinstance(head, GenerateHead):
            model.register_forward_hook(_talkative(head))
        else:
            output = model.get_submodule("classifier" if base_name == "bert" else "score")
            nn.init.normal_(output.weight, std=2.0)  # type: ignore[arg-type]
        made[kind] = head, model
    return made


def _talkative(head: GenerateHead) -> object:
    """Random weights that go on to more entities, and close them, more often than by chance."""
    bias = torch.zeros(head.vocabulary.largest + 1)
    bias[head.vocabulary.eos] -= 0.5
    for token, data in head.vocabulary.bytes_of.items():
        bias[token] += 0.4 * (b"]" in data)

    def lean(module: nn.Module, inputs: object, output: object) -> None:
        output.logits += bias  # type: ignore[attr-defined]

    return lean


def sentences(count: int, seed: int, length: int = 9) -> list[str]:
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=rng.randint(1, length))) + "." for _ in range(count)]


def tagger(loaded: tuple[Head, nn.Module], **settings: object) -> Tagger:
    head, model = loaded
    limit = context(model)  # type: ignore[arg-type]
    given = {"window": 120, "max_tokens": limit or 1 << 20, **settings}
    return Tagger(model=model, head=head, **given)  # type: ignore[arg-type]


def scores(found: Sequence[Sequence[Entity]]) -> list[float]:
    return [entity.score or 0.0 for entities in found for entity in entities]


@pytest.mark.parametrize("kind", KINDS)
def test_results_stand_in_the_order_of_the_texts_whatever_the_batches(
    kind: str, loaded: Loaded
) -> None:
    texts = [*sentences(8, 1), "", *sentences(4, 2, length=40), " \n\t", "Paris"]
    whole = tagger(loaded[kind]).tag(texts)
    assert len(whole) == len(texts)
    assert whole[8] == whole[13] == []
    assert sum(map(len, whole)) > 20
    for batch_tokens in (1, 200, 1 << 20):
        found = tagger(loaded[kind], batch_tokens=batch_tokens).tag(texts)
        assert found == whole
        assert scores(found) == pytest.approx(scores(whole), rel=1e-3)
    assert tagger(loaded[kind]).tag(texts[::-1]) == whole[::-1]
    assert [tagger(loaded[kind]).tag([text])[0] for text in texts] == whole


@pytest.mark.parametrize("kind", KINDS)
def test_every_offset_is_exact_in_the_text_as_it_came(kind: str, loaded: Loaded) -> None:
    texts = [" ".join(sentences(12, seed)) for seed in range(3)]
    for text, entities in zip(texts, tagger(loaded[kind]).tag(texts), strict=True):
        starts, ends = ({span[side] for span in words(text)} for side in (0, 1))
        at = 0
        for entity in entities:
            assert at <= entity.start < entity.end <= len(text)
            assert entity.start in starts
            assert entity.end in ends
            assert entity.label in LABELS
            at = entity.end
        # Found all along, not in the first window only.
        assert {entity.start * 3 // len(text) for entity in entities} == {0, 1, 2}


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_its_windows_each_tagged_alone(kind: str, loaded: Loaded) -> None:
    text = "\n".join(sentences(20, 3))
    windows = split(text, 120)
    assert len(windows) > 4
    short = tagger(loaded[kind]).tag([text[w.start : w.end] for w in windows])
    assert tagger(loaded[kind]).tag([text]) == [merge(windows, short)]


class Names(nn.Module):
    """A model that needs no training: says B-PER for the tokens of one name, O for others."""

    def __init__(self, ids: set[int]) -> None:
        super().__init__()
        self.ids = nn.Parameter(torch.tensor(sorted(ids)), requires_grad=False)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
        named = torch.isin(input_ids, self.ids)
        logits = torch.zeros(*input_ids.shape, 1 + 2 * len(LABELS))
        logits[..., 0] = 5.0
        logits[named] = torch.tensor([0.0, 9.0, 0.0, 0.0, 0.0])
        return type("Output", (), {"logits": logits})()


@pytest.mark.parametrize("window", [10, 40, 1000])
def test_nothing_is_lost_or_doubled_at_cuts(window: int, loaded: Loaded) -> None:
    head, _ = loaded["bert-tag"]
    assert isinstance(head, TagHead)
    tim = set(head.tokenizer("Tim", add_special_tokens=False)["input_ids"])
    assert len(tim) == 1
    text = " ".join(sentences(40, 4)).replace("Cook", "🙂 Tim")
    found = Tagger(model=Names(tim), head=head, window=window, max_tokens=96).tag([text])[0]
    places = [span for span in words(text) if text[slice(*span)] == "Tim"]
    assert len(places) > 20
    assert [(entity.start, entity.end) for entity in found] == places


def test_a_text_of_more_tokens_than_the_model_takes_is_tagged_whole(loaded: Loaded) -> None:
    # Half of it plain and half of it 4 tokens a character, in one window of its size.
    head, model = loaded["qwen2-tag"]
    text = " ".join(sentences(4, 5)) + " 𐍈𐍉𐍊 𐍋𐍌" * 40 + " " + " ".join(sentences(4, 6))
    assert head.ask([text])[0].tokens > 300
    lengths: list[int] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> object:
            lengths.append(input_ids.shape[1])
            return self.model(input_ids=input_ids, attention_mask=attention_mask)

    watched = Tagger(model=Watched().eval(), head=head, window=10_000, max_tokens=50)
    (found,) = watched.tag([text])
    assert 0 < max(lengths) <= 50
    assert {entity.start * 4 // len(text) for entity in found} == {0, 1, 2, 3}
    assert watched.tag([text]) == [found]


def test_an_answer_that_outgrows_the_model_is_given_in_parts(loaded: Loaded) -> None:
    plain, model = loaded["qwen2-generate"]
    assert isinstance(plain, GenerateHead)
    texts = [*sentences(6, 7), " ".join(sentences(6, 8)), *sentences(6, 9)]
    free = tagger(loaded["qwen2-generate"], window=1000).tag(texts)
    room = max(plain.ask([text])[0].tokens for text in texts) + 12
    head = GenerateHead(
        plain.vocabulary.tokenizer, LABELS, context=room, vocabulary=plain.vocabulary
    )
    with pytest.raises(DataError, match="answer"):
        head.extract(model, head.ask(texts))
    tight = Tagger(model=model, head=head, window=1000, max_tokens=room)
    found = tight.tag(texts)
    long = texts[6]
    for i, text in enumerate(texts):
        if i != 6:
            assert found[i] == free[i], "what fits is not cut for its neighbours' sake"
        assert tight.tag([text]) == [found[i]]
    assert found[6] != free[6]
    assert {entity.start * 2 // len(long) for entity in found[6]} == {0, 1}
    for batch_tokens in (1, 500, 1 << 20):
        again = Tagger(
            model=model, head=head, window=1000, max_tokens=room, batch_tokens=batch_tokens
        )
        assert again.tag(texts) == found


def test_a_model_too_small_for_the_question_is_refused(loaded: Loaded) -> None:
    head, model = loaded["qwen2-generate"]
    small = Tagger(model=model, head=head, window=1000, max_tokens=20)
    with pytest.raises(ModelError, match="too few"):
        small.tag(["Tim Cook met Zoë in Paris. " * 100])
    assert small.tag(["", " "]) == [[], []]


def test_half_a_character_is_refused(loaded: Loaded) -> None:
    for kind in KINDS:
        with pytest.raises(DataError, match="lone surrogate"):
            tagger(loaded[kind]).tag(["Tim", "Co\ud800ok"])


def test_entities_below_the_threshold_are_left_out(loaded: Loaded) -> None:
    for kind in KINDS:
        texts = sentences(20, 10)
        found = tagger(loaded[kind]).tag(texts)
        middle = sorted(scores(found))[len(scores(found)) // 2]
        sure = tagger(loaded[kind], threshold=middle).tag(texts)
        assert sure == [[e for e in es if (e.score or 0.0) >= middle] for es in found]
        assert 0 < len(scores(sure)) < len(scores(found))


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_in_training_is_asked_without_dropout_and_left_training(
    kind: str, loaded: Loaded
) -> None:
    _, model = loaded[kind]
    noise = nn.Dropout(0.5)
    handle = model.base_model.get_input_embeddings().register_forward_hook(  # type: ignore[union-attr, operator]
        lambda module, inputs, output: noise(output)
    )
    model.noise = noise
    try:
        texts = sentences(10, 11)
        calm = tagger(loaded[kind]).tag(texts)
        assert not model.training
        model.train()
        assert tagger(loaded[kind]).tag(texts) == calm
        assert model.training
        assert noise.training
        with pytest.raises(DataError):
            tagger(loaded[kind]).tag(["\ud800"])
        assert model.training
    finally:
        model.eval()
        del model.noise
        handle.remove()


def test_each_window_is_measured_once(loaded: Loaded) -> None:
    head, model = loaded["bert-tag"]
    measured: list[str] = []

    class Measuring:
        name, labels = head.name, head.labels
        encode, collate, loss = head.encode, head.collate, head.loss
        extract = staticmethod(head.extract)

        def ask(self, texts: Sequence[str]) -> list[Asked]:
            measured.extend(texts)
            return head.ask(texts)

    texts = [*sentences(5, 12), "\n".join(sentences(20, 13))]
    Tagger(model=model, head=Measuring(), window=120, max_tokens=96).tag(texts)
    assert len(measured) == len(set(measured)) == 5 + len(split(texts[5], 120))
