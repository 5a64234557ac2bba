"""The playground in a real browser, against a running service: what it shows is what was
answered, at the right characters, for every eye and hand."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from playwright.sync_api import Browser, Page, Route, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium; apt-get install chromium")

NAMES = "Apple's CEO Tim Cook gave a presentation in Seoul."
ODD = (
    "👩🏽‍🚀🇰🇷 Apple's CEO Tim Cook gave a presentation in Seoul 🎉.\n\n"
    "\tZoe\u0308 Mu\u0308ller e\u0301crit à A\u030angstro\u0308m 𝒳𝒴 GmbH, Tōkyō; "
    "Tim Cook 👨‍👩‍👧 was in Seoul. \n"
)
MARKUP = (
    "<img src=x onerror=\"document.title='owned'\"> <b>Tim Cook</b> of Apple &amp; "
    "<script>document.title='owned'</script> in Seoul"
)
FOR_THE_SHELL = "It's $HOME and `id` in \"Seoul\", \\n 100% Tim Cook!\nTo'night\t😀 '"


@dataclass
class Visit:
    """A page of its own, and what went wrong on it."""

    page: Page
    url: str
    key: str
    complaints: list[str] = field(default_factory=list)
    hosts: set[str] = field(default_factory=set)

    def enter(self, key: str | None = None) -> None:
        self.page.get_by_label("API key").fill(self.key if key is None else key)
        self.page.keyboard.press("Tab")

    def extract(self, text: str) -> None:
        self.page.get_by_label("Text", exact=True).fill(text)
        self.page.get_by_role("button", name="Extract").click()
        expect(self.status).to_have_text(re.compile(r"in \d+\.\d\d s\."))

    def ask(self, text: str, version: int | None = None) -> list[dict[str, Any]]:
        """What the API answers to the same."""
        answer = httpx.post(
            f"{self.url}v1/paper/news/entities",
            params={} if version is None else {"version": version},
            headers={"Authorization": f"Bearer {self.key}"},
            json={"texts": [text]},
            timeout=15,
        )
        entities: list[dict[str, Any]] = answer.raise_for_status().json()["documents"][0][
            "entities"
        ]
        return entities

    @property
    def status(self) -> Any:
        return self.page.get_by_role("status")

    @property
    def error(self) -> Any:
        return self.page.get_by_role("alert")

    def marks(self, panel: int = 0) -> list[tuple[str, str]]:
        """(text, label) of what is highlighted, in order."""
        box = self.page.locator("article").nth(panel).locator(".text")
        found: list[list[str]] = box.locator("mark").evaluate_all(
            "all => all.map(m => [m.textContent, m.nextElementSibling.firstChild.data])"
        )
        return [(text, label) for text, label in found]

    def text(self, panel: int = 0) -> str:
        """The text as it is shown, without the labels in it."""
        shown: str = (
            self.page.locator("article")
            .nth(panel)
            .locator(".text")
            .evaluate(
                "box => { const copy = box.cloneNode(true);"
                " copy.querySelectorAll('bdi').forEach(tag => tag.remove());"
                " return copy.textContent; }"
            )
        )
        return shown

    def rows(self, panel: int = 0) -> list[list[str]]:
        found: list[list[str]] = (
            self.page.locator("article")
            .nth(panel)
            .locator("tbody tr")
            .evaluate_all("all => all.map(row => [...row.cells].map(cell => cell.textContent))")
        )
        return found

    def tab_to(self, selector: str) -> None:
        """With the Tab key alone."""
        for _ in range(30):
            if self.page.evaluate("s => document.activeElement.matches(s)", selector):
                return
            self.page.keyboard.press("Tab")
        raise AssertionError(f"the Tab key does not lead to {selector}")


def pairs(entities: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entity["text"], entity["label"]) for entity in entities]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    expect.set_options(timeout=15_000)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--disable-dev-shm-usage"]
        )
        yield browser
        browser.close()


@pytest.fixture
def visit(browser: Browser, served: Any) -> Iterator[Visit]:
    """Fails a test whose page complained on the console or asked another host for anything."""
    url = served.url.rstrip("/") + "/"
    context = browser.new_context(permissions=["clipboard-read", "clipboard-write"])
    context.set_default_timeout(15_000)
    visit = Visit(context.new_page(), url, served.keys["paper"])
    visit.page.on(
        "console",
        lambda line: visit.complaints.append(line.text) if line.type != "log" else None,
    )
    visit.page.on("pageerror", lambda error: visit.complaints.append(str(error)))
    visit.page.on("request", lambda request: visit.hosts.add(urlsplit(request.url).netloc))
    visit.page.goto(url)
    yield visit
    context.close()
    assert visit.complaints == []
    assert visit.hosts - {""} == {urlsplit(url).netloc}  # a data: address has no host


def test_the_page_runs_under_a_policy_that_lets_nothing_else_run(visit: Visit) -> None:
    policy = httpx.get(visit.url).headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy


def test_a_key_opens_the_domains_and_versions_of_its_tenant(visit: Visit) -> None:
    visit.enter()
    expect(visit.page.get_by_label("Domain")).to_have_value("news")
    versions = visit.page.get_by_label("Version or alias")
    expect(versions).to_have_value("alias:production")
    assert versions.locator("option").all_inner_texts() == [
        "production (version 1)",
        "candidate (version 2)",
        "version 2",
        "version 1",
    ]


@pytest.mark.parametrize("text", [NAMES, ODD, MARKUP, FOR_THE_SHELL])
def test_what_is_highlighted_is_what_the_api_answers(visit: Visit, text: str) -> None:
    visit.enter()
    visit.extract(text)
    entities = visit.ask(text)
    assert visit.text() == text
    assert visit.marks() == pairs(entities)
    assert visit.rows() == [
        [str(e["start"]), str(e["end"]), e["label"], e["text"], f"{e['score']:.3f}"]
        for e in entities
    ]
    assert visit.page.title() == "Raytag playground"
    assert visit.page.locator("#result :is(img, script, b)").count() == 0


def test_the_texts_of_these_tests_have_entities(visit: Visit) -> None:
    """Guards the guard: nothing found would be nothing tested."""
    assert visit.ask(NAMES)
    assert any(not entity["text"].isascii() or entity["start"] > 4 for entity in visit.ask(ODD))


def test_a_text_without_entities_says_so(visit: Visit) -> None:
    visit.enter()
    visit.extract(" \n ")
    expect(visit.page.get_by_text("No entities found.")).to_be_visible()
    assert (visit.text(), visit.marks()) == (" \n ", [])


def test_a_label_is_hidden_and_shown_by_its_button(visit: Visit) -> None:
    visit.enter()
    visit.extract(NAMES)
    entities = visit.ask(NAMES)
    label = entities[0]["label"]
    count = sum(entity["label"] == label for entity in entities)
    button = visit.page.get_by_role("button", name=f"{label} {count}", exact=True)
    button.click()
    expect(button).to_have_attribute("aria-pressed", "false")
    rest = [entity for entity in entities if entity["label"] != label]
    assert visit.marks() == pairs(rest)
    assert len(visit.rows()) == len(rest)
    assert visit.text() == NAMES
    button.click()
    assert visit.marks() == pairs(entities)


def test_two_versions_are_compared_side_by_side(visit: Visit) -> None:
    visit.enter()
    visit.page.get_by_label("Compare with").select_option("candidate (version 2)")
    visit.extract(ODD)
    answers = [visit.ask(ODD, version) for version in (1, 2)]
    assert answers[0] != answers[1], "the two versions ought to differ somewhere"
    spans = [{(e["start"], e["end"], e["label"]) for e in answer} for answer in answers]
    both = len(spans[0] & spans[1])
    for i, answer in enumerate(answers):
        assert visit.text(i) == ODD
        assert visit.marks(i) == pairs(answer)
        only = [e for e in answer if (e["start"], e["end"], e["label"]) not in spans[1 - i]]
        marked = visit.page.locator("article").nth(i).locator("mark.only")
        assert marked.all_text_contents() == [e["text"] for e in only]
        assert sum(row[5] == "only here" for row in visit.rows(i)) == len(only)
    line = visit.page.locator("#difference").inner_text()
    assert line.startswith(f"{both} entit")
    assert f"{len(spans[0] - spans[1])} only by production, version 1" in line
    assert f"{len(spans[1] - spans[0])} only by candidate, version 2" in line


def test_a_wrong_key_is_refused_in_one_line_and_a_right_one_mends_it(
    visit: Visit, served: Any
) -> None:
    visit.enter(served.keys["wrong"])
    expect(visit.error).to_contain_text("Key not accepted (401): ")
    assert "\n" not in visit.error.inner_text()
    expect(visit.page.get_by_label("Domain")).to_be_disabled()
    visit.page.get_by_role("button", name="Extract").click()
    expect(visit.page.get_by_label("API key")).to_be_focused()
    expect(visit.page.get_by_label("API key")).to_have_attribute("aria-invalid", "true")
    # The browser's own line about an answer that is not OK cannot be held back.
    assert all("401" in line for line in visit.complaints)
    visit.complaints.clear()
    visit.enter()
    expect(visit.status).to_contain_text("accepted")
    expect(visit.error).to_be_empty()


@pytest.mark.parametrize(
    ("key", "said"),
    [("", "Enter your API key"), ("secret", "rt~TENANT~ID~SECRET"), ("rt~acme~ä~ü", "rt~TENANT")],
)
def test_what_is_no_key_is_not_sent(visit: Visit, key: str, said: str) -> None:
    visit.enter(key)
    visit.page.get_by_role("button", name="Extract").click()
    expect(visit.error).to_contain_text(said)


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (429, {"Retry-After": "7"}, "Over your limit (429): the reason. Try again in 7 seconds."),
        (503, {"Retry-After": "1"}, "not ready (503): the reason. Try again in 1 second."),
        (404, {}, "Not found (404): the reason."),
        (422, {}, "Request not understood (422): the reason."),
    ],
)
def test_an_error_is_one_line_that_says_what_to_do(
    visit: Visit, status: int, headers: dict[str, str], said: str
) -> None:
    problem = {"type": "about:blank", "title": "t", "status": status, "detail": "the reason"}
    visit.page.route(
        "**/entities",
        lambda route: route.fulfill(
            status=status,
            headers={"Content-Type": "application/problem+json", **headers},
            body=json.dumps(problem),
        ),
    )
    visit.enter()
    visit.page.get_by_role("button", name="Extract").click()
    expect(visit.error).to_contain_text(said)
    expect(visit.page.locator("#result")).to_be_hidden()
    visit.complaints.clear()


def test_a_service_out_of_reach_is_told_and_tried_again(visit: Visit) -> None:
    visit.page.context.set_offline(True)
    visit.enter()
    expect(visit.error).to_contain_text("The service cannot be reached")
    visit.complaints.clear()
    visit.page.context.set_offline(False)
    visit.extract(NAMES)
    assert visit.marks() == pairs(visit.ask(NAMES))
    expect(visit.error).to_be_empty()


def test_an_older_answer_never_replaces_a_newer_one(visit: Visit) -> None:
    asked: list[Route] = []

    def hold_first(route: Route) -> None:
        asked.append(route)
        if len(asked) > 1:
            route.continue_()

    visit.enter()
    visit.page.route("**/entities", hold_first)
    text, button = visit.page.locator("#text"), visit.page.locator("#extract")
    with visit.page.expect_request("**/entities"):
        button.click()
    expect(button).to_have_attribute("aria-disabled", "true")
    button.click(force=True)  # which asks nothing: it is switched off
    text.fill(MARKUP)
    text.press("Control+Enter")
    expect(visit.page.locator("article .text")).to_be_visible()
    asked[0].continue_()
    expect(button).to_have_attribute("aria-disabled", "false")
    assert visit.text() == MARKUP
    assert visit.marks() == pairs(visit.ask(MARKUP))
    assert len(asked) == 2


def test_the_json_is_copied_and_the_page_says_so(visit: Visit) -> None:
    visit.enter()
    visit.extract(ODD)
    visit.page.get_by_role("button", name="Copy JSON").click()
    expect(visit.status).to_have_text("JSON of production, version 1 copied.")
    copied = json.loads(visit.page.evaluate("navigator.clipboard.readText()"))
    assert copied["model"] == {
        "tenant": "paper",
        "domain": "news",
        "version": 1,
        "alias": "production",
    }
    assert pairs(copied["documents"][0]["entities"]) == pairs(visit.ask(ODD))


def test_the_curl_line_asks_the_same_from_any_posix_shell(visit: Visit) -> None:
    visit.enter()
    visit.page.get_by_label("Version or alias").select_option("version 2")
    visit.extract(FOR_THE_SHELL)
    visit.page.get_by_role("button", name="Copy curl").click()
    expect(visit.status).to_have_text("curl of version 2 copied.")
    line: str = visit.page.evaluate("navigator.clipboard.readText()")
    assert visit.key not in line
    assert "\n" not in line
    # The shell takes the line apart; a function in curl's place tells how.
    words = subprocess.run(
        ["sh", "-c", "curl() { printf '%s\\0' \"$@\"; }\n" + line],
        env={"RAYTAG_KEY": visit.key},
        capture_output=True,
        check=True,
    )
    *options, body, end = words.stdout.decode().split("\0")
    assert options == [
        "-sS",
        f"{visit.url}v1/paper/news/entities?version=2",
        "-H",
        f"Authorization: Bearer {visit.key}",
        "-H",
        "Content-Type: application/json",
        "--data-binary",
    ]
    assert (json.loads(body), end) == ({"texts": [FOR_THE_SHELL]}, "")


def test_everything_can_be_done_with_the_keyboard(visit: Visit) -> None:
    keyboard = visit.page.keyboard
    visit.tab_to("#key")
    keyboard.insert_text(visit.key)
    visit.tab_to("#show")
    keyboard.press("Space")
    expect(visit.page.get_by_label("API key")).to_have_attribute("type", "text")
    expect(visit.status).to_contain_text("accepted")
    visit.tab_to("#second")
    keyboard.press("ArrowDown")
    keyboard.press("ArrowDown")
    visit.tab_to("#text")
    keyboard.press("Control+A")
    keyboard.insert_text(ODD)
    keyboard.press("Control+Enter")
    expect(visit.status).to_contain_text(" s.")
    entities = visit.ask(ODD, 1)
    assert visit.page.locator("article").count() == 2

    visit.tab_to("#legend button")
    keyboard.press("Enter")
    expect(visit.page.locator("#legend button").first).to_have_attribute("aria-pressed", "false")
    keyboard.press("Enter")

    visit.tab_to("mark")
    for key, entity in (("Home", entities[0]), ("End", entities[-1])):
        keyboard.press(key)
        focused = visit.page.locator("mark:focus")
        score = f"score {entity['score']:.3f}"
        name = focused.get_attribute("aria-label") or ""
        assert name.startswith(f"{entity['text']}, {entity['label']}, {score}")
        expect(focused.locator("+ bdi .score")).to_be_visible()
    visit.tab_to("article:last-child button")
    keyboard.press("Enter")
    expect(visit.status).to_contain_text("copied")


def test_the_key_is_kept_in_the_tab_only(visit: Visit) -> None:
    visit.enter()
    expect(visit.status).to_contain_text("accepted")
    visit.page.reload()
    expect(visit.status).to_contain_text("accepted")
    assert visit.key not in visit.page.url
    assert visit.page.evaluate("localStorage.length") == 0
    assert visit.page.context.cookies() == []
    visit.enter("")
    expect(visit.page.get_by_label("Domain")).to_be_disabled()
    assert visit.page.evaluate("sessionStorage.length") == 0


def test_nothing_sticks_out_of_a_narrow_screen(visit: Visit) -> None:
    visit.page.set_viewport_size({"width": 360, "height": 700})
    visit.enter()
    visit.page.get_by_label("Compare with").select_option("version 2")
    visit.extract(ODD + "W" * 200)
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= 360
    boxes = [visit.page.locator("article").nth(i).bounding_box() for i in range(2)]
    assert boxes[0] is not None
    assert boxes[1] is not None
    assert boxes[0]["y"] + boxes[0]["height"] <= boxes[1]["y"]


CONTRASTS = """() => {
  const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
  const luminance = (...layers) => {
    for (const layer of layers) { canvas.fillStyle = layer; canvas.fillRect(0, 0, 1, 1); }
    const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map((value) =>
      value <= 10 ? value / 3294.6 : ((value / 255 + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ratio = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const box = document.body.appendChild(document.createElement("p"));
  box.className = "text";
  return [...Array(8).keys()].map((color) => {
    const mark = box.appendChild(document.createElement("mark"));
    const tag = box.appendChild(document.createElement("bdi"));
    mark.className = `c${color}`;
    tag.className = `tag c${color}`;
    const style = getComputedStyle(mark);
    const field = getComputedStyle(box).backgroundColor;
    return [
      ratio(luminance(style.color), luminance(field, style.backgroundColor)),
      ratio(luminance(getComputedStyle(tag).color), luminance(field)),
    ];
  });
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_labels_and_marks_can_be_read(visit: Visit, scheme: Any) -> None:
    visit.page.emulate_media(color_scheme=scheme)
    ratios: list[list[float]] = visit.page.evaluate(CONTRASTS)
    assert len(ratios) == 8
    assert min(min(pair) for pair in ratios) >= 4.5
