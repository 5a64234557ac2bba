"""Scoring one adapter, or a merged model, on one file, in the same way training does.

The model runs where the cluster has room for it; the report is written by the driver.
"""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import ray

from raytag import storage
from raytag.arguments import check_accelerator
from raytag.cluster import connect
from raytag.errors import RaytagError, SettingsError
from raytag.model.adapter import AdapterCard
from raytag.model.merge import load_for_scoring
from raytag.model.settings import LoadIn
from raytag.model.tagger import Tagger
from raytag.placement import find_seat, hide_gpus_not_given
from raytag.report.content import DataNotes, Report, Resources, to_json
from raytag.report.mistakes import worst_errors
from raytag.report.page import render_page
from raytag.text.check import check_data
from raytag.text.formats import Format, read_examples, write_jsonl
from raytag.text.score import confusion, join_examples, score
from raytag.text.spans import Entity, Example
from raytag.train.publish import WORST, tagged, versions
from raytag.train.worker import JOINED


@dataclass(frozen=True, kw_only=True)
class EvaluateSettings:
    """Score an adapter on annotated text: strict, entity level, over character offsets."""

    adapter: str
    """The adapter, or a merged model: a folder, local or s3://, or tenant/domain@version."""
    data: str
    """Annotated text: file, folder or data set, local or s3://."""
    output: str | None = None
    """Folder for report.html, report.json and predictions; only printed if not given."""
    registry: str = "registry"
    """The registry that versions are in, a folder or s3:// prefix."""
    base: str | None = None
    """Where the base model is, if elsewhere than the adapter's card says."""
    load_in: LoadIn | None = None
    """Precision of the base; that of the training if not given."""
    format: Format = "auto"
    """Format of the data; auto looks."""
    threshold: float | None = None
    """Leave out entities that score below this; that of the training if not given."""
    batch_tokens: int = 4096
    """Most tokens in one forward pass, padding included."""
    cpus: int = 1
    """CPUs it takes, and so its threads."""
    device: Literal["auto", "cpu", "gpu"] = "auto"
    """auto takes a GPU where the cluster has any."""
    accelerator: str | None = None
    """Kind of GPU by Ray's name, such as L4 or H100; any if not given."""
    wait_for_nodes: bool = False
    """Wait for an autoscaler where the cluster is too small now, rather than refuse."""

    def __post_init__(self) -> None:
        check_accelerator(self.accelerator, self.device)
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise SettingsError(f"threshold must be in [0, 1), not {self.threshold}")
        for name in ("batch_tokens", "cpus"):
            if getattr(self, name) < 1:
                raise SettingsError(f"{name} must be at least 1, not {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Tagged:
    """What the model found in each part, in the order of its texts."""

    card: AdapterCard
    entities: Sequence[Sequence[Sequence[Entity]]]
    seconds: float


def evaluate(settings: EvaluateSettings) -> Report:
    """Score, and write the report if an output is named. Raises RaytagError."""
    started = time.time()
    read = read_examples(settings.data, settings.format)
    examples = list(read.examples)
    documents = join_examples(examples, JOINED)
    connect("evaluate.py")
    seat = find_seat(settings, 1, "worker")
    tag: Any = ray.remote(**seat.options, max_retries=2)(_tag)
    texts = [[example.text for example in part] for part in (examples, documents)]
    answer = ray.get(tag.remote(settings, texts))
    if isinstance(answer, RaytagError):
        raise answer
    found, joined = answer.entities
    check = check_data((), (), examples)
    gold = [example.entities for example in examples]
    report = Report(
        title=settings.adapter.rstrip("/").rsplit("/", 1)[-1],
        summary=f"{answer.card.base}, {answer.card.head} head, on {settings.data}",
        test=score(gold, found),
        test_documents=score([document.entities for document in documents], joined),
        confusions=confusion(gold, found),
        errors=worst_errors(examples, found, WORST),
        data=DataNotes(
            counts={"test": {"examples": len(examples), "entities": sum(map(len, gold))}},
            notes=(*read.notes, *check.lines()),
            check=check.to_dict(),
        ),
        settings=asdict(settings),
        resources=Resources(
            seconds={"tag": answer.seconds, "everything": time.time() - started},
            examples_per_second=sum(map(len, texts)) / answer.seconds,
            device="GPU" if seat.gpu else "CPU",
        ),
        versions=versions(),
    )
    if settings.output:
        _write(settings.output, report, examples, found)
    return report


def _tag(settings: EvaluateSettings, texts: Sequence[Sequence[str]]) -> Tagged | RaytagError:
    """Load the adapter and tag, part by part as training does.

    A mistake of the user's comes back as a value, since a raised one would be wrapped in Ray's.
    """
    import torch

    hide_gpus_not_given()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        with storage.on_disk(settings.adapter) as folder:
            loaded = load_for_scoring(
                folder, base=settings.base, load_in=settings.load_in, device=device
            )
        tagger = Tagger.of(loaded, settings.batch_tokens, settings.threshold)
        started = time.time()
        entities = [tagger.tag(part) for part in texts]
        return Tagged(card=loaded.card, entities=entities, seconds=time.time() - started)
    except RaytagError as exc:
        return exc


def _write(
    output: str, report: Report, examples: Sequence[Example], found: Sequence[Sequence[Entity]]
) -> None:
    write_jsonl(storage.join(output, "predictions.jsonl"), tagged(examples, found))
    storage.write_bytes(storage.join(output, "report.html"), render_page(report).encode())
    storage.write_bytes(storage.join(output, "report.json"), to_json(report).encode())
