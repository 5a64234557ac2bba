"""The instruction and the answer: written, read back, and what the answer cannot say."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytag.errors import DataError, SettingsError
from raytag.text.formats import read_examples
from raytag.text.prompt import (
    INSTRUCTION,
    ask,
    ceiling,
    escape,
    read_answer,
    sayable,
    unescape,
    write_answer,
)
from raytag.text.spans import Entity, Example
from raytag.text.words import words

DATA = Path(os.environ.get("RAYTAG_DATA") or Path(__file__).parents[3] / "shared" / "data") / "ner"
SETS = {  # files, entities, and those of them the answer cannot say
    "bc5cdr": ("*.tsv", 28787, 2),
    "btc": ("*.conll", 14885, 75),
    "crossner-politics": ("[dt]*.txt", 8995, 0),
    "crossner-science": ("[dt]*.txt", 6702, 0),
    "ncbi-disease": ("*.tsv", 6881, 5),
    "wikigold": ("*.conll.txt", 3558, 2),
    "wnut17": ("*.[ca]*", 3890, 6),
}


def example(text: str, *spans: tuple[str, str]) -> Example:
    """Gold by name, each looked for after the one before."""
    entities, at = [], 0
    for label, span in spans:
        start = text.index(span, at)
        at = start + len(span)
        entities.append(Entity(start, at, label))
    return Example("x", text, tuple(entities))


def test_prompt_and_answer_are_the_recipe_to_the_letter() -> None:
    gold = example(
        "Apple's CEO Tim Cook gave a presentation in Seoul.",
        ("ORG", "Apple"),
        ("PER", "Tim Cook"),
        ("LOC", "Seoul"),
    )
    assert ask(gold.text) + write_answer(gold)[0] == (
        "Extract named entities from the sentence below. Format: [TYPE: entity]\n"
        "Sentence: Apple's CEO Tim Cook gave a presentation in Seoul.\n"
        "Answer: [ORG: Apple] [PER: Tim Cook] [LOC: Seoul]"
    )


def test_a_sentence_without_entities_has_the_empty_answer() -> None:
    assert write_answer(Example("x", "Nothing here.")) == ("", {})
    assert read_answer("", "Nothing here.", {"PER"}) == []


def test_a_template_of_the_users_own_may_list_the_labels() -> None:
    assert ask("a {labels} b", "{labels}? {text}!", ["X", "Y"]) == "X, Y? a {labels} b!"


@pytest.mark.parametrize("template", ["no slot", "{text} and {text}"])
def test_a_template_needs_its_slot_once(template: str) -> None:
    with pytest.raises(SettingsError, match="exactly once"):
        ask("text", template)


def test_what_the_grammar_uses_is_escaped_and_nothing_else() -> None:
    gold = example("see [a:b]\\c\n\td now", ("A: [B]", "[a:b]\\c\n\td"))
    answer, lost = write_answer(gold)
    assert answer == " [A\\: \\[B\\]: \\[a\\:b\\]\\\\c\n\td]"
    assert not lost
    assert read_answer(answer, gold.text, {"A: [B]"}) == list(gold.entities)


def test_the_first_match_is_of_whole_words_after_the_end_of_the_previous_entity() -> None:
    text = "Carpet Car Car Care"
    answer = " [X: Car] [X: Car] [Y: Care]"
    assert read_answer(answer, text, {"X", "Y"}) == [
        Entity(7, 10, "X"),
        Entity(11, 14, "X"),
        Entity(15, 19, "Y"),
    ]


def test_what_the_answer_cannot_say_is_dropped_and_counted_by_reason() -> None:
    text = "Paris met Paris in New York City today"
    gold = Example(
        "x",
        text,
        (
            Entity(10, 15, "PER"),  # the first Paris is none: shadowed
            Entity(19, 27, "LOC"),  # inside the next: overlap
            Entity(19, 32, "LOC"),
            Entity(33, 36, "TIME"),  # "tod": cut
        ),
    )
    answer, lost = write_answer(gold)
    assert answer == " [LOC: New York City]"
    assert lost == {"shadowed": 1, "overlap": 1, "cut": 1}
    said = ceiling([gold, Example("y", "none")])
    assert (said.entities, said.expressible, said.lost) == (4, 1, lost)
    assert said.recall == 0.25
    assert ceiling([]).recall == 1.0


def test_a_second_mention_can_be_said_once_the_first_has_been() -> None:
    gold = example("Paris met Paris", ("LOC", "Paris"), ("PER", "Paris"))
    answer, lost = write_answer(gold)
    assert answer == " [LOC: Paris] [PER: Paris]"
    assert not lost


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("[PER: Ann] and more", "not ' and more'"),
        ("[PER: Ann][PER: Bob]", r"not '\[PER: Bob\]'"),
        ("[PER:Ann]", "LABEL: span"),
        ("[PER: Ann", "LABEL: span"),
        ("[PER: ]", "LABEL: span"),
        ("[ORG: Ann]", "label that was not asked for: 'ORG'"),
        ("[PER: Eve]", "what the text does not say there: 'Eve'"),
        ("[PER: An]", "what the text does not say there: 'An'"),
        ("[PER: Bob] [PER: Ann]", "what the text does not say there: 'Ann'"),
    ],
)
def test_an_answer_outside_the_grammar_or_the_text_is_refused(answer: str, reason: str) -> None:
    with pytest.raises(DataError, match=reason):
        read_answer(answer, "Ann saw Bob", {"PER"})


@given(st.text())
def test_escaping_loses_nothing(text: str) -> None:
    assert unescape(escape(text)) == text


@st.composite
def examples(draw: st.DrawFn) -> Example:
    text = draw(st.text(alphabet="ab []:\\\n\t'é\u0301\u200d🙂東א", max_size=30))
    bounds = st.integers(0, len(text))
    spans = {tuple(sorted(draw(st.tuples(bounds, bounds)))) for _ in range(draw(bounds) % 6)}
    return Example("x", text, tuple(Entity(s, e, "A:]") for s, e in spans if s < e))


@given(examples())
def test_what_is_written_is_read_back_and_the_rest_is_counted(gold: Example) -> None:
    answer, lost = write_answer(gold)
    said = read_answer(answer, gold.text, {"A:]"})
    assert said == sayable(gold)[0]
    assert set(said) <= set(gold.entities)
    assert len(said) + lost.total() == len(gold.entities)
    starts, ends = zip(*words(gold.text), strict=True) if words(gold.text) else ((), ())
    assert all(entity.start in starts and entity.end in ends for entity in said)


@pytest.mark.parametrize("name", SETS)
def test_the_gold_of_real_data_comes_back_but_for_the_ceiling(name: str) -> None:
    if not DATA.is_dir():
        pytest.skip(f"no data to measure on at {DATA}: set RAYTAG_DATA")
    pattern, total, unsayable = SETS[name]
    files = sorted((DATA / name).glob(pattern))
    gold = [ex for file in files for ex in read_examples(str(file), "conll").examples]
    labels = {entity.label for ex in gold for entity in ex.entities}
    back = 0
    for ex in gold:
        said = read_answer(write_answer(ex)[0], ex.text, labels)
        assert set(said) <= set(ex.entities)
        back += len(said)
    measured = ceiling(gold)
    assert (measured.entities, measured.entities - measured.expressible) == (total, unsayable)
    assert back == measured.expressible
    assert set(measured.lost) <= {"shadowed"}


def test_the_default_instruction_ends_where_the_answer_begins() -> None:
    assert INSTRUCTION.endswith("Answer:")
