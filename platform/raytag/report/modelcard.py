"""A report → the README.md of an adapter's folder, a model card that the Hub can read.

The front matter is what machines go by, the text what people do. Knows what a report says;
whatever else stands in the card, the snippet above all, is the caller's.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from raytag.report.content import Report, flattened
from raytag.text.score import Scores

_WHAT_F1_MEANS: Final = (
    "F1 is strict and at entity level: an entity counts as right when its character offsets and"
    " its type are exactly those of a gold entity."
)
_LIMITS: Final = """\
- It names the types above and no others; what the training data did not label, it does not find.
- The scores hold for text like the test split. On text of another kind, score it anew first.
- It can be wrong about people. Let nobody come to harm by a tag that no person has read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CardFacts:
    """What a model card says beyond the report."""

    name: str
    base: str
    """A hub name, a directory or an s3:// prefix."""
    base_revision: str = ""
    head: str
    """``generate`` or ``tag``."""
    labels: Sequence[str]
    snippet: str
    """Python that loads the adapter and tags a sentence; run by the tests of whoever gives it."""
    language: Sequence[str] = ()
    """Codes such as ``en``."""
    license: str = ""


def model_card(report: Report, facts: CardFacts) -> str:
    """The text of README.md."""
    sections = [
        f"# {inline(facts.name)}",
        _introduction(facts),
        "## Use\n\n" + fenced(facts.snippet, "python"),
        "## Types\n\n" + "\n".join(f"- {inline(label)}" for label in facts.labels),
        _scores_section(report),
        _training_section(report),
        "## Limits\n\n" + _LIMITS,
    ]
    body = "\n\n".join(section for section in sections if section)
    text = f"---\n{_front_matter(report, facts)}---\n\n{body}\n"
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", text)


def inline(value: object) -> str:
    """Text that Markdown, in a table too, shows as it is: on one line, nothing in it a mark."""
    line = " ".join(str(value).split())
    line = line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    line = re.sub(r"([\\`*\[\]|~$#])", r"\\\1", line)
    # Inside a word an underscore marks nothing, and learning_rate is better left legible.
    line = re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", line)
    # What would begin a list, were it followed by a space: a dash, a plus, a number.
    return re.sub(r"^(\d*)([-+.)])(?=\s|$)", r"\1\\\2", line)


def fenced(code: str, language: str) -> str:
    """A block of code, in a fence longer than any run of backticks in it."""
    longest = max((len(run) for run in re.findall("`+", code)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{code.rstrip()}\n{fence}"


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A Markdown table, its first column to the left and the others to the right."""
    marks = [":--", *("--:" for _ in header[1:])]
    cells = [header, marks, *([inline(value) for value in row] for row in rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def _front_matter(report: Report, facts: CardFacts) -> str:
    """YAML, its strings written as JSON: so quoted, none can end its line or the front matter."""
    fields: dict[str, Any] = {"library_name": "peft", "pipeline_tag": "token-classification"}
    if _is_hub_name(facts.base):
        fields |= {"base_model": facts.base, "base_model_relation": "adapter"}
    if facts.language:
        fields["language"] = list(facts.language)
    if facts.license:
        fields["license"] = facts.license
    fields["tags"] = ["token-classification", "named-entity-recognition", "lora", "raytag"]
    fields["model-index"] = _model_index(report, facts)
    kept = ((key, value) for key, value in fields.items() if value)
    return "".join(f"{key}: {json.dumps(value, ensure_ascii=False)}\n" for key, value in kept)


def _model_index(report: Report, facts: CardFacts) -> list[dict[str, Any]]:
    """The scores in the form that the Hub lists beside a model."""
    if report.headline is None:
        return []
    split, scores = report.headline
    values = {"precision": scores.precision, "recall": scores.recall, "f1": scores.f1}
    result = {
        "task": {"type": "token-classification", "name": "named entity recognition"},
        "dataset": {"type": "custom", "name": report.title, "split": split},
        "metrics": [
            {"type": name, "name": f"strict entity {name}", "value": value}
            for name, value in values.items()
        ],
    }
    return [{"name": facts.name, "results": [result]}]


def _is_hub_name(base: str) -> bool:
    """A directory is nobody else's, and the Hub refuses a card that names one as its base."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?", base) is not None


def _introduction(facts: CardFacts) -> str:
    how = {
        "generate": "The model is asked for the entities of a sentence and writes them as"
        " `[TYPE: entity]`, which are then found in the text.",
        "tag": "One forward pass labels every token; the attention is bidirectional.",
    }.get(facts.head, f"It is asked with the head {inline(facts.head)}.")
    revision = f" at revision {inline(facts.base_revision)}" if facts.base_revision else ""
    return (
        f"A LoRA adapter that finds named entities in text, trained on {inline(facts.base)}"
        f"{revision} with Raytag. {how} Entities come with the character offsets of the"
        " text as it was given."
    )


def _scores_section(report: Report) -> str:
    if report.headline is None:
        return ""
    split, scores = report.headline
    context = [
        ("F1 over whole documents", report.test_documents and report.test_documents.f1),
        ("F1 of the base before training", report.baseline),
        ("Share of gold entities the head can express", report.ceiling.get(split)),
    ]
    lines = [f"- {name}: {value:.3f}" for name, value in context if value is not None]
    parts = [
        "## Scores",
        f"On the {split} split. {_WHAT_F1_MEANS}",
        _score_table(scores),
        "\n".join(lines),
    ]
    return "\n\n".join(part for part in parts if part)


def _score_table(scores: Scores) -> str:
    rows: list[Sequence[object]] = [
        (label, *(f"{part:.3f}" for part in (row.precision, row.recall, row.f1)), row.support)
        for label, row in [*scores.per_type.items(), ("all types", scores.micro)]
    ]
    return table(("Type", "Precision", "Recall", "F1", "Gold"), rows)


def _training_section(report: Report) -> str:
    counts = report.data.counts
    names = list(dict.fromkeys(name for row in counts.values() for name in row))
    data = table(
        ("Split", *(inline(name) for name in names)),
        ([split, *(row.get(name, "") for name in names)] for split, row in counts.items()),
    )
    settings = table(("Setting", "Value"), flattened(report.settings))
    parts = ["## Training", data if counts else "", settings if report.settings else ""]
    if report.data.fingerprint:
        parts.append(f"Fingerprint of the data: {inline(report.data.fingerprint)}")
    return "\n\n".join(part for part in parts if part) if any(parts[1:]) else ""
