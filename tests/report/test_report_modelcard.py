"""The card is one the Hub can read, and says what the report says."""

from typing import Any

import pytest
import yaml
from report_cases import MARKUP

from raytag.report.content import Report
from raytag.report.modelcard import CardFacts, fenced, inline, model_card, table

SNIPPET = "from peft import PeftModel\n\nprint('''```''')"


def facts(**changes: Any) -> CardFacts:
    given = {
        "name": "acme/biomedical",
        "base": "Qwen/Qwen3-0.6B-Base",
        "base_revision": "main",
        "head": "generate",
        "labels": ["PER", "ORG"],
        "snippet": SNIPPET,
        "language": ["en"],
    }
    return CardFacts(**{**given, **changes})


def front_matter(card: str) -> dict[str, Any]:
    _, head, _ = card.split("---\n", 2)
    data = yaml.safe_load(head)
    assert isinstance(data, dict)
    return data


def test_front_matter(report: Report) -> None:
    data = front_matter(model_card(report, facts()))
    assert data["library_name"] == "peft"
    assert data["base_model"] == "Qwen/Qwen3-0.6B-Base"
    assert "lora" in data["tags"]
    metrics = data["model-index"][0]["results"][0]["metrics"]
    assert report.test
    assert {m["type"]: m["value"] for m in metrics}["f1"] == report.test.f1


def test_hub_reads_it(report: Report) -> None:
    hub = pytest.importorskip("huggingface_hub")
    card = hub.ModelCard(model_card(report, facts()))
    assert card.data.base_model == "Qwen/Qwen3-0.6B-Base"
    assert {result.metric_type for result in card.data.eval_results} == {
        "precision",
        "recall",
        "f1",
    }


@pytest.mark.parametrize("base", ["/models/qwen", "./qwen", "s3://bucket/qwen", "a/b/c"])
def test_a_directory_is_no_hub_name(report: Report, base: str) -> None:
    card = model_card(report, facts(base=base))
    assert "base_model" not in front_matter(card)
    assert base in card


def test_text(report: Report) -> None:
    card = model_card(report, facts())
    assert report.test
    assert "strict and at entity level" in card
    assert f"| all types | {report.test.precision:.3f} | {report.test.recall:.3f}" in card
    assert "| train | 300 | 812 | 104 |" in card
    assert "| lora.rank | 16 |" in card
    assert f"````python\n{SNIPPET}\n````" in card
    assert "F1 of the base before training: 0.113" in card
    for heading in ("Use", "Types", "Scores", "Training", "Limits"):
        assert f"\n## {heading}\n" in card


def test_hostile_words_stay_words(hostile: Report) -> None:
    name = f'---\n{MARKUP} | "x": [y]\ud83d'
    card = model_card(hostile, facts(name=name, labels=["A|B", "# x", "1. x", "- x", MARKUP]))
    card.encode("utf-8")
    assert "<script" not in card.split("---\n", 2)[2]
    assert front_matter(card)["model-index"][0]["name"].startswith("---\n<script")
    for line in ("- A\\|B", "- \\# x", "- 1\\. x", "- \\- x"):
        assert f"\n{line}\n" in card


def test_empty_report() -> None:
    card = model_card(Report(title="t"), facts())
    assert "## Scores" not in card
    assert "## Training" not in card


def test_inline() -> None:
    assert inline("learning_rate") == "learning_rate"
    assert inline("_a_ *b*\n`c` | d") == "\\_a\\_ \\*b\\* \\`c\\` \\| d"
    assert inline(0.5) == "0.5"
    assert fenced("x", "python") == "```python\nx\n```"
    assert table(("a", "b"), [("c|d", 1)]) == "| a | b |\n| :-- | --: |\n| c\\|d | 1 |"
