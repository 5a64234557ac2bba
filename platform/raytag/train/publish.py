"""What a training run leaves behind: predictions, adapter and report, written in that order.

Knows scores and files. The adapter is complete once its ``card.json`` is there, the job once
``report/report.json`` is.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from typing import Any

from raytag import storage
from raytag.model.adapter import CARD, card_json, snippet
from raytag.report.content import CurvePoint, DataNotes, Report, Resources, to_json
from raytag.report.mistakes import worst_errors
from raytag.report.modelcard import CardFacts, model_card
from raytag.report.page import render_page
from raytag.text.formats import write_jsonl
from raytag.text.score import Scores, confusion, join_examples, score
from raytag.text.spans import Entity, Example
from raytag.train.data import TrainingData
from raytag.train.settings import FinetuneSettings
from raytag.train.worker import JOINED, Outcome

WORST = 30
"""Sentences in the report's section of errors."""
PACKAGES = ("torch", "transformers", "peft", "deepspeed", "ray", "bitsandbytes")


@dataclass(frozen=True, kw_only=True)
class Published:
    report: Report
    test: Sequence[Example]
    predicted: Sequence[Sequence[Entity]]
    """Of the test examples."""


def publish(
    settings: FinetuneSettings, data: TrainingData, outcome: Outcome, seconds: Mapping[str, float]
) -> Published:
    """Write everything below ``settings.output``; ``seconds`` is the driver's time by phase."""
    found = outcome.predictions
    documents = join_examples(data.test, JOINED)
    for name, examples in (("dev", data.dev), ("test", data.test), ("test_documents", documents)):
        path = storage.join(settings.output, "predictions", f"{name}.jsonl")
        write_jsonl(path, tagged(examples, found[name]))
    report = _report(settings, data, outcome, seconds, documents)
    _write_adapter(settings, data, outcome, report)
    folder = storage.join(settings.output, "report")
    storage.write_bytes(storage.join(folder, "report.html"), render_page(report).encode())
    storage.write_bytes(storage.join(folder, "report.json"), to_json(report).encode())
    return Published(report=report, test=data.test, predicted=found["test"])


def tagged(examples: Sequence[Example], found: Sequence[Sequence[Entity]]) -> list[Example]:
    """The examples with what was found in the place of gold."""
    return [
        replace(example, entities=tuple(entities))
        for example, entities in zip(examples, found, strict=True)
    ]


def scores_of(examples: Sequence[Example], found: Sequence[Sequence[Entity]]) -> Scores | None:
    """Strict scores, or None where there is nothing to score."""
    return score([e.entities for e in examples], found) if examples else None


def versions() -> dict[str, str]:
    return {"raytag": version("raytag"), **{name: version(name) for name in PACKAGES}}


def _report(
    settings: FinetuneSettings,
    data: TrainingData,
    outcome: Outcome,
    seconds: Mapping[str, float],
    documents: Sequence[Example],
) -> Report:
    found, progress = outcome.predictions, outcome.progress
    untrained = scores_of(data.test, found["untrained"]) if "untrained" in found else None
    trained = sum(record["examples"] for record in progress.history)
    shown, predicted = (data.test, found["test"]) if data.test else (data.dev, found["dev"])
    return Report(
        title=settings.output.rstrip("/").rsplit("/", 1)[-1],
        summary=_summary(settings, outcome),
        test=scores_of(data.test, found["test"]),
        dev=scores_of(data.dev, found["dev"]),
        test_documents=scores_of(documents, found["test_documents"]),
        ceiling=_ceiling(data, outcome),
        baseline=untrained.f1 if untrained else None,
        curve=[_point(record) for record in progress.history],
        learning_rates={
            name: [(record["step"], record["rates"][name]) for record in progress.history]
            for name in progress.history[-1]["rates"]
        },
        confusions=confusion([e.entities for e in shown], predicted),
        errors=worst_errors(shown, predicted, WORST),
        data=DataNotes(
            counts=data.counts(),
            notes=data.notes,
            check=data.check.to_dict(),
            fingerprint=data.fingerprint(),
        ),
        settings=asdict(settings),
        resources=Resources(
            seconds={**seconds, **outcome.seconds},
            examples_per_second=trained / progress.stepping if progress.stepping else None,
            peak_memory_bytes=outcome.peak_memory_bytes,
            workers=outcome.workers,
            zero_stage=outcome.zero,
            device=outcome.device,
        ),
        versions=versions(),
    )


def _summary(settings: FinetuneSettings, outcome: Outcome) -> str:
    progress = outcome.progress
    best = f", best at step {progress.best_step}" if progress.best_f1 is not None else ""
    stop = " (stopped early)" if progress.stopped_early else ""
    return (
        f"{settings.base}, {settings.head} head, LoRA rank {settings.rank}, "
        f"LoRA+ ratio {settings.ratio:g}; {progress.step} steps{stop}{best}"
    )


def _point(record: Mapping[str, Any]) -> CurvePoint:
    return CurvePoint(
        step=record["step"],
        epoch=record["epoch"],
        loss=record["loss"],
        seconds=record["seconds"],
        dev_f1=record.get("dev_f1"),
    )


def _ceiling(data: TrainingData, outcome: Outcome) -> dict[str, float]:
    """By split, the share of gold the head can express."""
    entities = {name: counts["entities"] for name, counts in data.counts().items()}
    return {n: 1.0 - outcome.lost[n] / total for n, total in entities.items() if total}


def _write_adapter(
    settings: FinetuneSettings, data: TrainingData, outcome: Outcome, report: Report
) -> None:
    folder = storage.join(settings.output, "adapter")
    card = replace(
        outcome.card,
        settings=asdict(settings),
        data={"fingerprint": data.fingerprint(), "counts": data.counts()},
        scores={
            name: scores.to_dict()
            for name, scores in (("dev", report.dev), ("test", report.test))
            if scores
        },
    )
    facts = CardFacts(
        name=report.title,
        base=card.base,
        base_revision=card.revision or "",
        head=card.head,
        labels=card.labels,
        snippet=snippet(card, folder),
    )
    for name, content in outcome.adapter.items():
        storage.write_bytes(storage.join(folder, name), content)
    storage.write_bytes(storage.join(folder, "README.md"), model_card(report, facts).encode())
    storage.write_bytes(storage.join(folder, CARD), card_json(card).encode())
