"""Tagged documents on a terminal and on a page: whole, legible, and nothing in them is obeyed."""

import io
import re
from collections import Counter
from collections.abc import Sequence
from importlib.resources import files

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_cases import ENTITIES, EXAMPLES, MARKUP, TEXTS, predictions
from rich.console import Console
from test_report_page import Page, luminance

from raytag.report.tagged import (
    COLORS,
    TaggedDocument,
    print_documents,
    print_summary,
    render_tagged,
)
from raytag.text.spans import Entity

DOCUMENTS = [
    TaggedDocument(example.id, example.text, entities, f"news/{i}.jsonl:{i}")
    for i, (example, entities) in enumerate(zip(EXAMPLES, predictions(), strict=True))
]


class TaggedPage(Page):
    """A page, and the texts of its documents without the labels that stand in them."""

    def __init__(self, html: str) -> None:
        self.texts: list[str] = []
        super().__init__(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "input":
            self.elements.append((tag, dict(attrs)))
            return
        super().handle_starttag(tag, attrs)
        if dict(attrs).get("class") == "text":
            self.texts.append("")

    def handle_data(self, data: str) -> None:
        super().handle_data(data)
        if "ol" in self._open and "bdi" not in self._open and self.texts:
            self.texts[-1] += data

    def classes(self, tag: str) -> list[list[str]]:
        return [(attributes.get("class") or "").split() for attributes in self.named(tag)]


def page_of(documents: Sequence[TaggedDocument], **wanted: bool) -> TaggedPage:
    return TaggedPage(render_tagged(documents, title="t", total=len(documents), **wanted))


def printed(*documents: TaggedDocument, whole: bool = False) -> list[str]:
    """The lines in a log, below the one that names the document."""
    file = io.StringIO()
    print_documents(documents, whole=whole, console=Console(file=file, highlight=False, width=60))
    return file.getvalue().splitlines()[1:]


def summary(labels: dict[str, int], names: dict[str, list[tuple[str, int]]]) -> str:
    file = io.StringIO()
    print_summary(labels, names, Console(file=file, highlight=False, width=80))
    return file.getvalue()


@settings(deadline=None, max_examples=40)  # a template is compiled for each
@given(ENTITIES, st.booleans())
def test_texts_stand_to_the_character_and_every_entity_has_its_label(
    entities: list[Entity], whole: bool
) -> None:
    text = "Zoë\t🇩🇪\n שלום <b>&"
    assert len(text) == 17
    page = page_of([TaggedDocument("1", text, entities)], whole=whole or not entities)
    assert [shown.rstrip("\n") for shown in page.texts] == [text]
    tags = Counter(kind[1] for kind in page.classes("bdi") if kind[:1] == ["tag"])
    assert sorted(tags.values()) == sorted(Counter(e.label for e in set(entities)).values())


def test_nothing_is_reordered_or_lost_in_scripts_of_all_kinds() -> None:
    page = page_of(DOCUMENTS, whole=True)
    assert [text.strip("\n") for text in page.texts] == list(TEXTS)
    texts = [attributes for attributes in page.named("p") if attributes.get("class") == "text"]
    assert all(attributes["dir"] == "auto" for attributes in texts)


def test_the_page_counts_what_it_shows() -> None:
    page = TaggedPage(render_tagged(DOCUMENTS, title="Nachrichten", total=12345))
    words = " ".join(page.text.split())
    assert "6 of 12 345 documents, with 19 entities of 4 labels." in words
    assert words.count("LOC65") == 1
    again = [TaggedDocument(str(i), "Ann  saw\nAnn", [Entity(0, 3, "PER")]) for i in range(3)]
    assert "PER33Ann (3)" in page_of(again).text
    assert "\n3 documents, with 3 entities of 1 label." in page_of(again).text


def test_a_document_answers_to_the_filters_of_its_labels() -> None:
    html = render_tagged(DOCUMENTS, title="t", total=6)
    page = TaggedPage(html)
    boxes = [box["id"] for box in page.named("input")]
    assert boxes == ["label-0", "label-1", "label-2", "label-3"]
    assert [label["for"] for label in page.named("label")] == boxes
    order = re.findall(r'class="is-\d"><bdi>(\w+)</bdi></label>', html)
    shown = [kind for kind in page.classes("li") if kind and kind[0].startswith("has-")]
    for document, kind in zip(DOCUMENTS, shown, strict=True):
        assert {order[int(name[4:])] for name in kind} == {e.label for e in document.entities}
    for rank in range(4):
        assert f"body:has(#label-{rank}:checked) .documents > .has-{rank} {{" in html


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    html = render_tagged(DOCUMENTS, title="t", total=6)
    page = TaggedPage(html)
    assert not any(page.named(tag) for tag in ("script", "img", "iframe", "a"))
    for _, attributes in page.elements:
        assert not {key for key in attributes if key == "src" or key.startswith("on")}
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html


def test_markup_in_any_place_is_text() -> None:
    text = f"{MARKUP} \ud83d Ann & Bob \x1b[31m\u202e"
    hostile = TaggedDocument(MARKUP, text, [Entity(0, len(MARKUP), MARKUP, 0.5)], MARKUP)
    html = render_tagged([hostile, *DOCUMENTS], title=MARKUP, total=7)
    assert "<script" not in html
    assert "\x1b" not in html
    html.encode("utf-8")
    # Title twice, label in table, filter and text, name, id, source, and the text itself.
    assert TaggedPage(html).text.count(MARKUP) == 9


def test_scores_are_within_reach_of_a_keyboard() -> None:
    page = page_of([TaggedDocument("1", "Ann Bob", [Entity(0, 3, "A", 0.987), Entity(4, 7, "B")])])
    tags = [tag for tag in page.named("bdi") if (tag.get("class") or "").startswith("tag")]
    assert [tag.get("tabindex") for tag in tags] == ["0", None]
    assert "[A, score 0.99]" in page.text
    assert "[B]" in page.text
    assert all(header.get("scope") in {"row", "col"} for header in page.named("th"))


def test_names_are_marked_one_in_another_and_beyond_a_gap() -> None:
    text = "Bank of Rome" + "a" * 900 + "Ann"
    entities = [Entity(8, 12, "LOC"), Entity(0, 12, "ORG"), Entity(912, 915, "PER")]
    html = render_tagged([TaggedDocument("1", text, entities)], title="t", total=1)
    assert '<span class="name is-1">Bank of </span>' in html
    assert '<span class="name is-1"><span class="name is-0">Rome</span></span><bdi' in html
    assert 'a<span class="name is-2">Ann</span><bdi class="tag is-2">' in html


def test_long_documents_are_shortened_unless_wanted_whole() -> None:
    text = "a" * 900 + "Ann" + "b" * 900
    documents = [
        TaggedDocument("1", text, [Entity(900, 903, "PER")]),
        TaggedDocument("2", text, []),
    ]
    page = page_of(documents)
    assert page.text.count("[780 characters left out]") == 2
    assert "[1\N{NARROW NO-BREAK SPACE}683 characters left out]" in page.text
    assert "left out" not in page_of(documents, whole=True).text


def test_a_page_of_nothing() -> None:
    page = page_of([])
    assert "0 documents, with 0 entities." in page.text
    assert not page.named("section")
    assert not page_of([TaggedDocument("", "", [])]).named("fieldset")


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def tinted(paper: str, color: str) -> str:
    pairs = [(int(color[i : i + 2], 16), int(paper[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(0.13 * a + 0.87 * b):02x}" for a, b in pairs)


@pytest.mark.parametrize("theme", [0, 1])
def test_labels_and_marked_names_can_be_read(theme: int) -> None:
    """4.5 to 1, as WCAG AA asks; a name may stand on the tints of two entities."""

    def colors(css: str) -> dict[str, str]:
        text = files("raytag.report").joinpath(css).read_text("utf-8")
        block = re.findall(r":root \{(.*?)\}", text, re.DOTALL)[theme]
        return dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", block))

    page, labels = colors("page.css.j2"), list(colors("tagged.css.j2").values())
    assert len(set(labels)) == COLORS
    for label in labels:
        assert contrast(label, page["paper"]) >= 4.5, label
        assert contrast(page["ink"], tinted(tinted(page["paper"], label), label)) >= 4.5, label


def test_a_log_shows_the_lines_that_hold_entities() -> None:
    text = "No name.\n\nTim Cook came.\r\nNobody saw him.\nNor\tdid\nAnn.\n\n"
    entities = [Entity(text.index(n), text.index(n) + len(n), "PER") for n in ("Ann", "Tim Cook")]
    document = TaggedDocument("7", text, entities, "a.txt:7")
    assert printed(document) == ["…", "[Tim Cook]PER came.", "…", "[Ann]PER."]
    assert printed(document, whole=True) == [
        *("No name.", "", "[Tim Cook]PER came.", "Nobody saw him.", "Nor did", "[Ann]PER.", ""),
    ]


def test_a_name_across_lines_keeps_them_together() -> None:
    entities = [Entity(4, 12, "PER"), Entity(5, 7, "X")]
    document = TaggedDocument("7", "Old\nTim\nCook\nsat", entities)
    assert printed(document) == ["…", "[Tim Cook]PER also [im]X", "…"]


def test_a_log_shortens_long_lines_around_their_entities() -> None:
    text = "a" * 500 + "Ann Lee" + "b" * 500 + "Rome" + "c" * 500
    entities = [Entity(500, 507, "PER"), Entity(504, 507, "FAM"), Entity(1007, 1011, "LOC")]
    [line] = printed(TaggedDocument("7", text, entities))
    a, b, c = "a" * 120, "b" * 120, "c" * 120
    assert line == f"…{a}[Ann Lee]PER{b}…{b}[Rome]LOC{c}… also [Lee]FAM"


def test_a_document_without_entities_shows_how_it_begins() -> None:
    assert printed(TaggedDocument("7", "Nothing\nhere.", [])) == ["Nothing here."]
    assert printed(TaggedDocument("7", "a" * 900, [])) == ["a" * 120 + "…"]
    assert printed(TaggedDocument("7", "", [])) == [""]


def test_a_label_has_one_colour_in_all_documents() -> None:
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, color_system="256", _environ={})
    two = [TaggedDocument("1", "A B", [Entity(0, 1, "X"), Entity(2, 3, "Y")])]
    two.append(TaggedDocument("2", "B", [Entity(0, 1, "Y")]))
    print_documents(two, whole=False, console=console)
    codes = re.findall(r"\x1b\[([\d;]+)m(?=B\x1b)", file.getvalue())
    assert len(codes) == 2
    assert len(set(codes)) == 1


def test_ids_and_sources_cannot_command_the_terminal() -> None:
    file = io.StringIO()
    document = TaggedDocument("\x1b[2J[red]7", "a", [], "b\r\u202e:1")
    print_documents([document], whole=True, console=Console(file=file, highlight=False))
    assert file.getvalue() == "␛[2J[red]7  b \N{REPLACEMENT CHARACTER}:1\na\n"


def test_the_summary_has_the_most_frequent_label_first() -> None:
    names = {"LOC": [("Rome", 1200), ("Kyiv", 30)], "PER": [(f"Ann {i}", 9 - i) for i in range(9)]}
    lines = [
        line.split() for line in summary({"LOC": 1230, "ORG": 2, "PER": 4000}, names).split("\n")
    ]
    assert "label entities most frequent names".split() in lines
    at = [line[0] if line else "" for line in lines]
    assert at.index("PER") < at.index("LOC") < at.index("ORG") < at.index("all")
    assert lines[at.index("LOC")] == "LOC 1,230 Rome (1,200), Kyiv (30)".split()
    assert lines[at.index("ORG")] == ["ORG", "2"]
    assert lines[at.index("all")] == ["all", "labels", "5,232"]
    said = " ".join(summary({"PER": 45}, names).split())
    assert "Ann 4 (5)" in said
    assert "Ann 5" not in said


def test_names_in_the_summary_keep_to_themselves() -> None:
    names = {"[b]P": [("[red]\x1b[2J", 3), ("أحمد", 2), ("x" * 99, 1)]}
    said = summary({"[b]P": 6}, names)
    assert "[b]P" in said
    assert "[red]␛[2J (3)" in said
    assert "\u2068أحمد\u2069 (2)" in said
    assert f"{'x' * 39}… (1)" in said


def test_a_summary_of_nothing() -> None:
    assert summary({}, {}) == "no entities were found\n"
