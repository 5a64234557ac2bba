"""What reaches a terminal or a log: legible without colour, and obeying nothing in the text."""

import io

from report_cases import make_report
from rich.console import Console

from raytag.report.content import Report
from raytag.report.terminal import (
    TrainingProgress,
    duration,
    highlighted,
    is_plain,
    print_entities,
    print_report,
    print_tagged,
    scores_table,
    visible,
)
from raytag.text.score import score
from raytag.text.spans import Entity

TEXT = "Tim Cook of Apple"
ENTITIES = [Entity(0, 8, "PER"), Entity(12, 17, "ORG")]


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def log(encoding: str = "utf-8") -> tuple[Console, io.BytesIO]:
    """A console as in a Ray job: a pipe."""
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    return Console(file=file, highlight=False, width=80), raw


def terminal(*, no_color: bool = False) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    console = Console(
        file=file,
        force_terminal=True,
        color_system="256",
        no_color=no_color,
        width=100,
        _environ={},
    )
    return console, file


def written(console: Console, raw: io.BytesIO) -> str:
    console.file.flush()
    return raw.getvalue().decode()


def test_highlighted_without_colour() -> None:
    console, raw = log()
    print_entities(TEXT, ENTITIES, console)
    assert written(console, raw) == "[Tim Cook]PER of [Apple]ORG\n"


def test_highlighted_with_colour() -> None:
    console, file = terminal()
    print_entities(TEXT, ENTITIES, console)
    assert "\x1b[" in file.getvalue()
    line = highlighted(TEXT, ENTITIES, plain=False)
    assert line.plain == "Tim Cook PER of Apple ORG"
    styles = {line.plain[span.start : span.end]: str(span.style) for span in line.spans}
    assert styles["Tim Cook"] != styles["Apple"]


def test_no_color_is_obeyed() -> None:
    assert is_plain(Console(force_terminal=True, _environ={"NO_COLOR": "1"}))
    console, file = terminal(no_color=True)
    print_entities(TEXT, ENTITIES, console)
    assert file.getvalue() == "[Tim Cook]PER of [Apple]ORG\n"


def test_overlaps_are_not_lost() -> None:
    entities = [Entity(0, 8, "PER"), Entity(4, 8, "FAMILY")]
    assert highlighted("Tim Cook sat", entities, plain=True).plain == (
        "[Tim Cook]PER sat also [Cook]FAMILY"
    )


def test_combining_mark_does_not_land_on_the_label() -> None:
    line = highlighted("Cafe\u0301", [Entity(0, 4, "ORG")], plain=True)
    assert line.plain == "[Cafe]ORG\N{DOTTED CIRCLE}\u0301"


def test_text_cannot_command_the_terminal() -> None:
    text = "a\x1b[31mb\r\n\tc\x07\x9b\u202ed\u2066\ud83d [bold]x"
    shown = visible(text)
    assert len(shown) == len(text)
    assert not set(shown) & set("\x1b\r\n\t\x07\x9b\u202e\u2066\ud83d")
    console, raw = log()
    print_entities(text, [], console)
    assert "[bold]x" in written(console, raw)
    assert visible("👩\u200d👧 가 é") == "👩\u200d👧 가 é"


def test_scores_table() -> None:
    console, raw = log()
    gold = [[Entity(0, 1, "[red]A"), Entity(2, 3, "B")]]
    console.print(scores_table(score(gold, [[Entity(0, 1, "[red]A")]]), title="[b]t"))
    lines = written(console, raw).splitlines()
    assert any("[b]t" in line for line in lines)
    assert any(line.split() == ["[red]A", "1.000", "1.000", "1.000", "1"] for line in lines)
    assert any(line.split() == ["B", "0.000", "0.000", "0.000", "1"] for line in lines)
    assert any(line.split() == ["all", "types", "0.667", "1.000", "0.500", "2"] for line in lines)


def test_print_report(report: Report) -> None:
    console, raw = log()
    print_report(report, console, sentences=2)
    out = written(console, raw)
    assert "base before training 0.113" in out
    assert "     gold  [Tim Cook]PER of [Apple]ORG met" in out
    assert "predicted  [Tim Cook]PER of [Apple]PRODUCT met" in out
    assert out.count("predicted  ") == 2
    console, file = terminal()
    print_report(make_report(), console)
    assert "\x1b[" in file.getvalue()


def test_progress_in_a_log_is_sparse() -> None:
    console, raw = log()
    clock = Clock()
    with TrainingProgress(console, clock=clock) as progress:
        for step in range(1, 191):
            clock.now += 0.1
            progress.update(step, 190, 0.2126, 0.871 if step == 40 else None, 0.3 * (190 - step))
    lines = written(console, raw).splitlines()
    assert lines[0] == f"step   1/190 [{'░' * 20}] loss 0.213  57 s left"
    assert "step  40/190 [████░░░░░░░░░░░░░░░░] loss 0.213  dev F1 0.871  45 s left" in lines
    assert lines[-1] == f"step 190/190 [{'█' * 20}] loss 0.213  dev F1 0.871  0 s left"
    assert 10 <= len(lines) <= 13
    assert all("\x1b" not in line for line in lines)


def test_progress_survives_ascii() -> None:
    console, raw = log("ascii")
    with TrainingProgress(console) as progress:
        progress.update(1, 2, 0.5)
    assert written(console, raw) == "step 1/2 [##########..........] loss 0.500\n"


def test_progress_on_a_terminal() -> None:
    console, file = terminal()
    with TrainingProgress(console) as progress:
        for step in range(1, 11):
            progress.update(step, 10, 0.5, 0.75, 3)
    out = file.getvalue()
    assert "10/10" in out
    assert "dev F1 0.750" in out
    assert "━" in out


def test_duration() -> None:
    assert [duration(s) for s in (0, 0.44, 9.96, 12, 59.6, 185, 7620)] == [
        *("0 s", "0.4 s", "10 s", "12 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"),
    ]


def test_tagged_texts_with_most_labels_come_first() -> None:
    texts = ["nothing here", "Ann saw Rome", "Ann"]
    found = [[], [Entity(0, 3, "PER"), Entity(8, 12, "LOC")], [Entity(0, 3, "PER")]]
    console = Console(file=io.StringIO(), width=80)
    print_tagged(texts, found, console, sentences=2)
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert said.index("[Ann]PER saw [Rome]LOC") < said.rindex("[Ann]PER")
    assert "nothing" not in said
