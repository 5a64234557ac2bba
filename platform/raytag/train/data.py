"""The examples a training job works with: read, checked, split, written down.

Knows files and splits, nothing of models. What was decided (which example went where) is kept
in the output, so that a score can be traced to its texts.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from raytag import storage
from raytag.errors import DataError
from raytag.text.check import DataCheck, check_data
from raytag.text.formats import ReadResult, Rejected, read_examples, write_jsonl, write_rejected
from raytag.text.spans import Example
from raytag.text.split import few, k_shot, split_by_seed
from raytag.train.settings import FinetuneSettings

FREE = frozenset(
    [
        # Where things lie and how the job is run; what is read has fingerprints of its own.
        *("base", "train", "dev", "test", "output", "overwrite", "dry_run", "mlflow"),
        *("tenant", "domain", "registry", "warm_start"),
        "auto",  # it shapes what it picks, which is told
        *("workers", "cpus", "max_failures", "accelerator", "wait_for_nodes"),
        # How the same steps are computed may change on the way, when memory runs out, say.
        *("batch_tokens", "device", "zero", "offload", "gradient_checkpointing"),
    ]
)
"""Settings that shape no result."""


@dataclass(frozen=True, kw_only=True)
class TrainingData:
    """Three disjoint lists of examples, and what was found out about them."""

    train: Sequence[Example]
    dev: Sequence[Example]
    test: Sequence[Example]
    rejected: Sequence[Rejected]
    check: DataCheck
    notes: Sequence[str]
    """For people: how the files were read, split and sampled, then the check's findings."""

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of train, sorted."""
        return tuple(sorted({e.label for example in self.train for e in example.entities}))

    @property
    def window(self) -> int:
        """The window of an adapter trained on this: its longest text, in characters."""
        return max(len(example.text) for example in self.train)

    @property
    def splits(self) -> dict[str, Sequence[Example]]:
        return {"train": self.train, "dev": self.dev, "test": self.test}

    def counts(self) -> dict[str, dict[str, int]]:
        return {
            name: {
                "examples": len(examples),
                "entities": sum(len(example.entities) for example in examples),
            }
            for name, examples in self.splits.items()
        }

    def fingerprint(self) -> str:
        """SHA-256 over every text and entity of every split."""
        digest = hashlib.sha256()
        for name, examples in self.splits.items():
            for example in examples:
                entities = [(e.start, e.end, e.label) for e in example.entities]
                row = json.dumps([name, example.id, example.text, entities])
                digest.update(row.encode())
        return digest.hexdigest()

    def write(self, folder: str) -> None:
        """Each split as JSON lines below ``folder``, and the rows that were set aside."""
        for name, examples in self.splits.items():
            write_jsonl(storage.join(folder, f"{name}.jsonl"), examples)
        if self.rejected:
            write_rejected(storage.join(folder, "rejected.jsonl"), self.rejected)


def gather(settings: FinetuneSettings) -> TrainingData:
    """Read what the settings name, split what is not given, and check it.

    Raises DataError for a bad row (unless those are set aside), for data without entities, and
    StorageError for what cannot be read.
    """
    read: dict[str, ReadResult] = {
        name: read_examples(
            uri, settings.format, on_bad=settings.on_bad, overlaps=settings.overlaps
        )
        for name, uri in _named(settings).items()
    }
    notes = [f"{name}: {note}" for name, result in read.items() for note in result.notes]
    rejected = [row for result in read.values() for row in result.rejected]
    parts: dict[str, list[Example]] = {n: list(result.examples) for n, result in read.items()}
    notes += _split_missing(parts, settings)
    if settings.examples:
        try:
            parts["train"] = few(parts["train"], settings.examples, settings.seed)
        except DataError as exc:
            raise DataError(f"{settings.train}: {exc}; lower --examples") from exc
        notes.append(f"train: {settings.examples} examples drawn by seed {settings.seed}")
    if settings.k_shot:
        parts["train"] = k_shot(parts["train"], settings.k_shot, settings.seed)
        notes.append(f"train: {len(parts['train'])} examples drawn, {settings.k_shot} per type")
    if not any(example.entities for example in parts["train"]):
        raise DataError(f"{settings.train}: no entities to learn from in its training examples")
    check = check_data(parts["train"], parts["dev"], parts["test"])
    return TrainingData(
        train=parts["train"],
        dev=parts["dev"],
        test=parts["test"],
        rejected=rejected,
        check=check,
        notes=(*notes, *check.lines()),
    )


def _named(settings: FinetuneSettings) -> dict[str, str]:
    named = {"train": settings.train, "dev": settings.dev, "test": settings.test}
    return {name: uri for name, uri in named.items() if uri}


def _split_missing(parts: dict[str, list[Example]], settings: FinetuneSettings) -> list[str]:
    """Take dev and test out of train where they were not given; says what was done."""
    shares = {"dev": settings.dev_share, "test": settings.test_share}
    wanted = {name: 0.0 if name in parts else share for name, share in shares.items()}
    if any(wanted.values()):
        keep = 1.0 - sum(wanted.values())
        split = split_by_seed(parts["train"], (keep, wanted["dev"], wanted["test"]), settings.seed)
        parts["train"] = split.train
        for name, taken in (("dev", split.dev), ("test", split.test)):
            if wanted[name]:
                parts[name] = taken
    for name in shares:
        parts.setdefault(name, [])
    return [
        f"{name}: {len(parts[name])} examples split off train by seed {settings.seed}"
        for name, share in wanted.items()
        if share
    ]


def settings_fingerprint(settings: Mapping[str, Any], data: str, base: str) -> str:
    """What identifies a run: everything that shapes its result, nothing that does not.

    ``data`` and ``base`` are the fingerprints of what it learns from.
    """
    shaping = {key: value for key, value in settings.items() if key not in FREE}
    return hashlib.sha256(json.dumps([shaping, data, base], sort_keys=True).encode()).hexdigest()
