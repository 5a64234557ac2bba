"""The automaton of answers, and the vocabulary it is walked with."""

from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import Layout, tokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from raytag.errors import DataError, ModelError, SettingsError
from raytag.model.heads.grammar import Answer, Grammar
from raytag.model.heads.vocabulary import Vocabulary
from raytag.text.prompt import read_answer, sayable, write_answer
from raytag.text.spans import Entity, Example
from raytag.text.words import words

LAYOUTS: tuple[Layout, ...] = ("byte-level", "sentencepiece")
LABELS = ("PER", "PERSONA", "A: [B]", "ÅR")
ALPHABET = [
    "Tim ",
    "New York",
    "a",
    "aa",
    "a a ",
    "é",
    "e\u0301",
    "[",
    "]",
    ":",
    "\\",
    "\n",
    "\t",
    "▁",
]
ALPHABET += [
    "👩\u200d🔬",
    "🙂",
    "東京",
    "שלום",
    " ",
    "  ",
    "] [",
    ": ",
    "<|endoftext|>",
    "</s>",
    "\u00a0",
]


@cache
def vocabulary(layout: Layout) -> Vocabulary:
    tok = tokenizer(layout)
    # Tokens that span several parts of the grammar, as big vocabularies have them.
    tok.add_tokens(["] [", "]]", " [PER: a", "a] [PER: a", "a] [PERSONA: a] [PER", ": ", "a\\]"])
    return Vocabulary(tok)


def answer(text: str, layout: Layout = "byte-level") -> Answer:
    return Grammar(vocabulary(layout), LABELS).answer(text)


def write(answer: Answer, text: str) -> Answer:
    """Writes ``text`` byte by byte, whatever larger tokens there are."""
    voc = answer._vocabulary
    single = {data: token for token, data in voc.bytes_of.items() if len(data) == 1}
    for byte in text.encode():
        answer.take(single[bytes([byte])])
    return answer


@st.composite
def examples(draw: st.DrawFn) -> Example:
    text = "".join(draw(st.lists(st.sampled_from(ALPHABET), max_size=12)))
    ranges = words(text)
    entities = []
    for first in draw(st.sets(st.integers(0, max(0, len(ranges) - 1)), max_size=4)):
        last = min(first + draw(st.integers(0, 2)), len(ranges) - 1)
        if ranges:
            label = draw(st.sampled_from(LABELS))
            entities.append(Entity(ranges[first][0], ranges[last][1], label))
    return Example("x", text, tuple(entities))


@pytest.mark.parametrize("layout", LAYOUTS)
@given(gold=examples())
@settings(max_examples=150, deadline=None)
def test_the_answer_of_any_example_is_accepted_as_it_is_tokenised(
    layout: Layout, gold: Example
) -> None:
    text, _ = write_answer(gold)
    said = answer(gold.text, layout)
    ids = vocabulary(layout).encode(text)
    for token in ids:
        assert token in said.allowed()
        said.take(token)
    assert vocabulary(layout).eos in said.allowed()
    said.take(vocabulary(layout).eos)
    assert said.done
    assert said.written == text
    assert said.entities == sayable(gold)[0]


@pytest.mark.parametrize("layout", LAYOUTS)
@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_allowed_is_what_can_be_taken_and_every_way_ends_in_the_text(
    layout: Layout, data: st.DataObject
) -> None:
    text = "".join(data.draw(st.lists(st.sampled_from(ALPHABET), max_size=8)))
    said = answer(text, layout)
    voc = vocabulary(layout)
    steps = 0
    while not said.done:
        allowed = said.allowed().tolist()
        tried = [token for token in voc.bytes_of if said._path(voc.bytes_of[token])]
        ends = [] if said._open else [voc.eos]
        assert sorted(allowed) == sorted(tried + ends)
        assert said.forced() == b"" or len({voc.bytes_of[t][0] for t in tried}) == 1
        must = b"".join(voc.bytes_of[token] for token in said.forced_ids())
        assert said.forced().startswith(must)
        # Going on where that is possible, so that long answers come up too.
        said.take(data.draw(st.sampled_from([t for t in allowed if t != voc.eos] or allowed)))
        steps += 1
    assert steps <= said.bound + 1
    assert said.entities == read_answer(said.written, text, LABELS)


def test_what_the_text_does_not_say_is_refused() -> None:
    said = write(answer("Tim met Timothy"), " [PER: Ti")
    tokens = {data: token for token, data in said._vocabulary.bytes_of.items()}
    with pytest.raises(ValueError, match="cannot come next"):
        said.take(tokens[b"]"])  # inside a word
    with pytest.raises(ValueError, match="cannot come next"):
        said.take(tokens[b"n"])  # not in the text
    with pytest.raises(ValueError, match="cannot come next"):
        said.take(said._vocabulary.eos)  # inside an entity
    write(said, "m]")
    assert said.entities == [Entity(0, 3, "PER")]


@pytest.mark.parametrize("opening", ["[", "  ", " [ORG", " [PER:", " [PE:", " [PER]"])
def test_only_the_grammar_and_the_labels_can_be_opened(opening: str) -> None:
    said = answer("Tim")
    if opening == " [PER:":  # that far it is right; what follows is not
        write(said, opening)
        opening = "T"
    with pytest.raises(ValueError, match="cannot come next"):
        write(said, opening)


def test_an_entity_is_its_first_occurrence_of_whole_words() -> None:
    said = write(answer("Timothy met Tim and Tim"), " [PER: Tim] [PER: Tim]")
    assert said.entities == [Entity(12, 15, "PER"), Entity(20, 23, "PER")]


def test_words_that_touch_are_never_empty_entities() -> None:
    said = write(answer("東京"), " [PER: ")
    assert [byte for byte, _ in said._following(said._state)] == [
        "東".encode()[0],
        "京".encode()[0],
    ]


def test_after_the_last_word_the_answer_can_only_end() -> None:
    said = write(answer("Tim "), " [PER: Tim]")
    assert said.allowed().tolist() == [said._vocabulary.eos]
    said.take(said._vocabulary.eos)
    with pytest.raises(ValueError, match="cannot come next"):
        said.take(said._vocabulary.eos)


def test_a_text_without_words_has_the_empty_answer_only() -> None:
    said = answer(" \n")
    assert said.empty
    assert said.allowed().tolist() == [said._vocabulary.eos]


def test_what_is_forced_is_known() -> None:
    said = write(answer("Tim Cook"), " [PERS")
    assert said.forced() == b"ONA: "
    write(said, "ONA: ")
    assert said.forced() == b""  # Tim or Cook
    write(said, "T")
    assert said.forced() == b"im"
    write(said, "im ")
    assert said.forced() == b"Cook]"


def test_what_is_forced_is_written_as_the_tokenizer_cuts_it() -> None:
    tok = tokenizer("byte-level")
    said = Grammar(Vocabulary(tok), ("PERSONA", "LOC")).answer("Zoë or Timothy Apple")
    whole = tok(" [LOC: Timothy Apple]", add_special_tokens=False).input_ids
    written: list[int] = []
    free = 0
    while len(written) < len(whole):
        forced = said.forced_ids()
        if not forced:
            assert whole[len(written)] in said.allowed()
            free += 1
        for token in forced or [whole[len(written)]]:
            said.take(token)
            written.append(token)
    assert written == whole
    assert free < len(whole) / 2


@pytest.mark.parametrize(("token", "settled"), [("y]", "kx"), ("x]", "k"), ("x,", "k")])
def test_a_forced_token_is_left_open_where_a_longer_one_could_stand(
    token: str, settled: str
) -> None:
    tok = tokenizer("byte-level")
    tok.add_tokens([token])
    voc = Vocabulary(tok)
    said = Grammar(voc, LABELS).answer("Sixkx, x")
    for written in voc.encode(" [PER: Six"):
        said.take(written)
    assert said.forced() == b"kx"
    assert voc.decode(said.forced_ids()) == settled


def test_the_score_is_the_product_over_the_tokens_that_wrote_a_part() -> None:
    tokens = {data: token for token, data in vocabulary("byte-level").bytes_of.items()}
    said = answer("a a")
    for data in (b" [PER: a", b"] [", b"P", b"E", b"R", b": ", b"a", b"]"):
        said.take(tokens[data], -1.0)
    first, second = (entity.score for entity in said.entities)
    assert first == pytest.approx(2.718281828**-2)  # "] [" is a part of both
    assert second == pytest.approx(2.718281828**-7)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    "text", [" [PER: Tim]", "", " ", "▁ ▁", "e\u0301 é", "\n\n  x", " 👩\u200d🔬\u0000", "</s> <s>"]
)
def test_any_text_is_encoded_to_the_byte(layout: Layout, text: str) -> None:
    voc = vocabulary(layout)
    assert voc.decode(voc.encode(text)) == text
    assert not set(voc.encode(text)) & set(voc.tokenizer.all_special_ids)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_plain_answers_are_tokenised_as_the_tokenizer_would(layout: Layout) -> None:
    tok, text = tokenizer(layout), "[PER: Tim] [LOC: Seoul]"
    whole = tok(f"Answer: {text}", add_special_tokens=False).input_ids
    start = tok("Answer:", add_special_tokens=False).input_ids
    assert whole == start + Vocabulary(tok).encode(f" {text}")


def test_a_prompt_begins_as_the_tokenizer_begins_and_holds_no_other_special_token() -> None:
    voc = vocabulary("sentencepiece")
    ids = voc.prompt_ids("a </s> b")
    assert ids[0] == voc.tokenizer.bos_token_id
    assert not set(ids[1:]) & set(voc.tokenizer.all_special_ids)


@pytest.mark.parametrize("say", [lambda t: answer(t), lambda t: vocabulary("byte-level").encode(t)])
def test_half_a_character_is_refused(say: object) -> None:
    with pytest.raises(DataError, match="surrogate"):
        say("a\ud800b")  # type: ignore[operator]


def test_a_tokenizer_that_loses_text_is_refused() -> None:
    pieces = {"[UNK]": 0, "[SEP]": 1, "tim": 2, "##my": 3, "[": 4, "]": 5, ":": 6}
    tok = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    tok.normalizer = normalizers.BertNormalizer()
    tok.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    wordpiece = PreTrainedTokenizerFast(tokenizer_object=tok, unk_token="[UNK]", eos_token="[SEP]")
    with pytest.raises(ModelError, match="use the tag head"):
        Vocabulary(wordpiece)


def test_a_tokenizer_without_an_end_is_refused() -> None:
    tok = tokenizer("byte-level")
    tok.eos_token = None
    with pytest.raises(ModelError, match="end-of-sequence"):
        Vocabulary(tok)


def test_a_tokenizer_that_lacks_bytes_is_refused() -> None:
    alphabet = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"Ā"})  # no NUL
    tok = Tokenizer(models.BPE({char: i for i, char in enumerate(["<e>", *alphabet])}, []))
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    with pytest.raises(ModelError, match="no token for 1 of the bytes"):
        Vocabulary(PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<e>"))


def test_a_label_set_is_not_empty() -> None:
    with pytest.raises(SettingsError):
        Grammar(vocabulary("byte-level"), ())
