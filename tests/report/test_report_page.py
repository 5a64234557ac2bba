"""The page is whole, stands alone, escapes what people wrote, and can be read by everyone."""

import re
from collections import Counter
from html.parser import HTMLParser
from importlib.resources import files

import pytest
from report_cases import MARKUP, TEXTS

from raytag.report.content import Report
from raytag.report.page import render_page

VOID = {"meta", "link", "path", "br"}


class Page(HTMLParser):
    """The elements of a page, its text, and whether its tags close as they should."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(html)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len(dict(attrs)) == len(attrs)
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self._open:
            self.text += data

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


@pytest.fixture(scope="module")
def page(report: Report) -> Page:
    return Page(render_page(report))


def test_sections(page: Page) -> None:
    assert [section.get("id") for section in page.named("section")] == [
        *("headline", "curves", "types", "confusions", "errors"),
        *("data", "settings", "resources", "versions"),
    ]
    ids = Counter(attributes["id"] for _, attributes in page.elements if "id" in attributes)
    assert set(ids.values()) == {1}
    for section in page.named("section"):
        assert section.get("aria-label") or section["aria-labelledby"] in ids


def test_numbers(page: Page, report: Report) -> None:
    assert report.test
    assert report.dev
    assert report.test_documents
    for scores in (report.test, report.dev, report.test_documents):
        for row in (scores.micro, *scores.per_type.values()):
            for value in (row.f1, row.precision, row.recall):
                assert f"{value:.3f}" in page.text
    for words in ("0.113", "0.991", "sha256:9f2c4be01d0f6a75", "NVIDIA H100", "1 min 56 s"):
        assert words in page.text
    for point in report.curve:
        if point.dev_f1 is not None:
            assert f"{point.dev_f1:.3f}" in page.text
    for note in report.data.notes:
        assert note in page.text
    for words in ("lora.rank", "q_proj, k_proj, v_proj, o_proj", "2.9.1", "6.9 GiB"):
        assert words in page.text


def test_mistakes_are_said_in_words(page: Page) -> None:
    words = " ".join(page.text.split())
    assert "Wrong type: Apple is ORG, not PRODUCT." in words
    assert "Wrong boundary: LOC is Seoul, not Seoul on Tuesday." in words
    assert "Missed: Cafe\u0301 Central is FACILITY." in words
    assert "Spurious: ministry is not ORG." in words


def test_texts_stand_whole(page: Page) -> None:
    """Between the labels, which a reader of the page hears in brackets."""
    words = re.sub(r" \[[^\[\]]*\] ", "", page.text)
    for text in (TEXTS[0], TEXTS[2], TEXTS[5]):
        assert text in words


@pytest.mark.parametrize("name", ["report", "hostile"])
def test_nothing_from_outside(name: str, request: pytest.FixtureRequest) -> None:
    html = render_page(request.getfixturevalue(name))
    page = Page(html)
    assert not page.named("script")
    assert not page.named("img")
    assert not page.named("iframe")
    for _, attributes in page.elements:
        assert "src" not in attributes
        assert not any(key.startswith("on") for key in attributes)
        assert (attributes.get("href") or "data:,").startswith(("data:", "#"))
    assert not re.search(r"https?://|@import|url\(", html)
    assert "default-src 'none'" in html


def test_markup_is_text(hostile: Report) -> None:
    html = render_page(hostile)
    assert "<script" not in html
    page = Page(html)
    # Title, summary, label, id, split, count, note, check, setting, phase, version…
    assert page.text.count(MARKUP) >= 14
    html.encode("utf-8")
    assert "\x1b" not in html
    assert "The training diverged" in page.text
    assert "A|B" in page.text


def test_empty_report() -> None:
    page = Page(render_page(Report(title="nothing")))
    assert "no labelled examples" in page.text


def test_only_dev(report: Report) -> None:
    page = Page(render_page(Report(title="t", dev=report.dev)))
    assert "Dev F1" in page.text
    assert "Test F1" not in page.text


def test_accessible(page: Page) -> None:
    assert page.named("html")[0]["lang"] == "en"
    assert any(meta.get("name") == "viewport" for meta in page.named("meta"))
    assert all(header.get("scope") in {"row", "col"} for header in page.named("th"))
    drawings = [svg for svg in page.named("svg") if svg.get("aria-hidden") != "true"]
    assert len(drawings) == 3
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in drawings)
    assert len(page.named("figcaption")) == len(page.named("figure")) == 3
    texts = [attributes for attributes in page.named("p") if attributes.get("class") == "text"]
    assert texts
    assert all(attributes["dir"] == "auto" for attributes in texts)


def luminance(color: str) -> float:
    parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [0, 1])
def test_contrast(theme: int) -> None:
    """Every colour that text is set in has 4.5 to 1 on the page, as WCAG AA asks."""
    css = files("raytag.report").joinpath("page.css.j2").read_text("utf-8")
    blocks = re.findall(r":root \{(.*?)\}", css, re.DOTALL)
    assert len(blocks) == 2
    colors = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", blocks[theme]))
    for name in ("ink", "muted", "gold", "predicted"):
        for paper in ("paper", "raised"):
            light, dark = sorted((luminance(colors[name]), luminance(colors[paper])), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, paper)
