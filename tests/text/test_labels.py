"""Tags and spans: seqeval's strict mode, conlleval's lenient one, and the way back."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from seqeval.metrics.sequence_labeling import get_entities
from seqeval.scheme import BILOU, IOB1, IOB2, IOBES, Entities

from raytag.errors import DataError, SettingsError
from raytag.text.labels import TagSpan, decode, detect_scheme, encode, irregular, parse_tag

SCHEMES = {
    "IOB1": ("BI", IOB1),
    "IOB2": ("BI", IOB2),
    "BIOES": ("BIES", IOBES),
    "BILOU": ("BILU", BILOU),
}


def tags_of(prefixes: str) -> st.SearchStrategy[list[str]]:
    labelled = [f"{prefix}-{label}" for prefix in prefixes for label in ("X", "creative-work")]
    return st.lists(st.sampled_from([*labelled, "O"]), max_size=9)


@st.composite
def spans(draw: st.DrawFn) -> tuple[list[TagSpan], int]:
    bounds = sorted(draw(st.sets(st.integers(0, 12), max_size=8)))
    pairs = list(pairwise(bounds))
    kept = [pair for pair in pairs if draw(st.booleans())]
    return [(a, b, draw(st.sampled_from("XY"))) for a, b in kept], 12


@pytest.mark.parametrize("scheme", SCHEMES)
@given(data=st.data())
def test_strict_reading_is_seqevals_for_any_tags(scheme: str, data: st.DataObject) -> None:
    prefixes, theirs = SCHEMES[scheme]
    tags = data.draw(tags_of(prefixes))
    expected = [(e.start, e.end, e.tag) for e in Entities([tags], theirs).entities[0]]
    assert decode(tags, scheme) == expected


@given(tags_of("BIES"))
def test_lenient_reading_is_conllevals_for_any_tags(tags: list[str]) -> None:
    expected = [(start, end + 1, label) for label, start, end in get_entities(tags)]
    assert decode(tags, strict=False) == expected


@pytest.mark.parametrize("scheme", SCHEMES)
@given(made=spans())
def test_what_is_encoded_is_decoded(scheme: str, made: tuple[list[TagSpan], int]) -> None:
    wanted, length = made
    tags = encode(wanted, length, scheme)
    assert decode(tags, scheme) == wanted
    assert decode(tags, strict=False) == wanted
    assert irregular(tags, scheme) == 0


@pytest.mark.parametrize("scheme", ["IOB2", "BIOES", "BILOU"])
@given(made=spans())
def test_the_scheme_is_found_again(scheme: str, made: tuple[list[TagSpan], int]) -> None:
    tags = encode(made[0], made[1], scheme)
    assert decode(tags, detect_scheme([tags])) == made[0]


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        (["I-A", "I-A", "O", "I-A", "B-A"], "IOB1"),
        (["B-A", "I-A", "O", "I-A", "B-A"], "IOB2"),
        (["B-A", "I-B", "O"], "IOB2"),
        (["O", "O"], "IOB2"),
        (["B-A", "E-A"], "BIOES"),
        (["U-A", "O"], "BILOU"),
    ],
)
def test_detection(tags: list[str], scheme: str) -> None:
    assert detect_scheme([tags]) == scheme


def test_an_orphan_is_read_leniently_and_counted() -> None:
    tags = ["O", "I-A", "I-A", "B-B", "I-A"]
    assert decode(tags, "IOB2") == [(3, 4, "B")]
    assert decode(tags, strict=False) == [(1, 3, "A"), (3, 4, "B"), (4, 5, "A")]
    assert irregular(tags, "IOB2") == 2


def test_synonyms_name_the_same_scheme() -> None:
    assert encode([(0, 1, "A")], 2, "iobes") == encode([(0, 1, "A")], 2, "BIOES") == ["S-A", "O"]
    assert encode([(0, 2, "A")], 2, "BILUO") == ["B-A", "L-A"]
    with pytest.raises(SettingsError, match="'IOE' is not a tagging scheme; choose from IOB1"):
        encode([], 1, "IOE")


@pytest.mark.parametrize("tag", ["B", "B-", "PER", "b-PER", "B_PER", "ORG", "", "B--", "0"])
def test_what_is_no_tag_is_refused(tag: str) -> None:
    with pytest.raises(DataError, match="is not a tag; write O, or a prefix and a type like B-PER"):
        parse_tag(tag)


def test_a_prefix_of_another_scheme_is_refused_when_strict() -> None:
    with pytest.raises(DataError, match="'S-A' is not a tag of IOB2"):
        decode(["S-A"], "IOB2")


@pytest.mark.parametrize("wrong", [[(0, 2, "A"), (1, 3, "A")], [(0, 4, "A")], [(1, 1, "A")]])
def test_spans_that_overlap_or_stick_out_cannot_be_encoded(wrong: list[TagSpan]) -> None:
    with pytest.raises(ValueError, match="overlaps another or leaves the 3 tokens"):
        encode(wrong, 3)
