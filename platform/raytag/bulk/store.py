"""What a tagging job keeps below its output, and in which order it comes to count.

    OUTPUT/_plan.json                    what is tagged, with what, cut into shards: created once
          /data/00012-1f2e3d4c.parquet   rows of a shard, under a name no other attempt has
          /_rejected/00012-1f2e3d4c.jsonl  documents of the shard that could not be tagged
          /_shards/00012.json            its receipt, created only if absent: now the shard counts
          /_manifest.json                last, after all shards: what a reader goes by

Knows files and counts, nothing of models. A shard is done by whoever creates its receipt; what
others wrote for it is never part of the result and is swept away before the manifest. Tagging
again what was set aside is a generation of its own: ``_plan-1.json``, ``_shards/1-00012.json``,
and a manifest that takes the place of the one before.
"""

import hashlib
import json
import uuid
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

from raytag import storage
from raytag.bulk.corpus import Columns, CorpusFile, Stretch
from raytag.errors import StorageError

FORMAT = 1
MANIFEST = "_manifest.json"
NAMES_KEPT = 200
"""Most frequent names of each label that a receipt keeps."""
_AT_ONCE = 16
"""Receipts read at a time; a store answers many small requests at once."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be tagged, and in which shards; the same for every attempt."""

    generation: int = 0
    settings: Mapping[str, Any]
    """Those that shape the result."""
    model: str
    """Its revision, see ``raytag.model.files.revision_of``."""
    files: Sequence[CorpusFile]
    columns: Columns
    shards: Sequence[Sequence[Stretch]]

    @property
    def documents(self) -> int:
        return sum(stretch.rows for shard in self.shards for stretch in shard)

    def input_fingerprint(self) -> str:
        """SHA-256 over the files' names and fingerprints."""
        named = [(file.name, file.fingerprint) for file in self.files]
        return hashlib.sha256(json.dumps(named).encode()).hexdigest()

    def shard_name(self, index: int) -> str:
        return f"{self.generation}-{index:05}" if self.generation else f"{index:05}"

    def to_json(self) -> bytes:
        content = {
            "format": FORMAT,
            "generation": self.generation,
            "settings": dict(self.settings),
            "model": self.model,
            "columns": self.columns.to_dict(),
            "files": [asdict(file) for file in self.files],
            "shards": [[astuple(stretch) for stretch in shard] for shard in self.shards],
        }
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, data: bytes, uri: str) -> "Plan":
        """Raises StorageError for what is no plan."""
        try:
            content = json.loads(data)
            if content["format"] != FORMAT:
                raise StorageError(f"{uri} has format {content['format']}; this reads {FORMAT}")
            return cls(
                generation=content["generation"],
                settings=content["settings"],
                model=content["model"],
                columns=Columns.from_dict(content["columns"]),
                files=[CorpusFile(**file) for file in content["files"]],
                shards=[[Stretch(*s) for s in shard] for shard in content["shards"]],
            )
        except (ValueError, KeyError, TypeError) as exc:
            raise StorageError(f"{uri} is no plan of a tagging job; name an empty folder") from exc


@dataclass(frozen=True, kw_only=True)
class Receipt:
    """What became of a shard. ``data`` and ``rejects`` are names below the output."""

    shard: str
    documents: int
    tagged: int
    rejected: int
    data: str | None
    data_bytes: int = 0
    data_sha256: str = ""
    rejects: str | None
    rejects_sha256: str = ""
    labels: Mapping[str, int] = field(default_factory=dict)
    """Entities by label."""
    names: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """By label, its most frequent names in this shard."""
    tokens: int = 0
    seconds: float = 0.0
    """Spent on it by the actor that tagged it."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The result: every document that came in, out or set aside, and where the rows are."""

    generation: int
    documents_in: int
    documents_out: int
    documents_rejected: int
    labels: Mapping[str, int]
    names: Mapping[str, Sequence[tuple[str, int]]]
    """By label, the most frequent names and how often; counted from those each shard reports."""
    settings: Mapping[str, Any]
    model: str
    input: str
    """Fingerprint of the corpus."""
    shards: Sequence[Receipt]


def plan_uri(output: str, generation: int) -> str:
    return storage.join(output, f"_plan-{generation}.json" if generation else "_plan.json")


def read_plan(output: str, generation: int = 0) -> Plan | None:
    """The plan that stands there, if one does."""
    there = storage.exists(plan_uri(output, generation))
    return settled_plan(output, generation) if there else None


def settled_plan(output: str, generation: int) -> Plan:
    """The plan that stands there. Raises StorageError where there is none."""
    uri = plan_uri(output, generation)
    return Plan.from_json(storage.read_bytes(uri), uri)


def settle_plan(output: str, plan: Plan) -> Plan:
    """The plan that counts: this one, or that of another driver that was first."""
    storage.create(plan_uri(output, plan.generation), plan.to_json())
    return settled_plan(output, plan.generation)


def receipt_uri(output: str, shard: str) -> str:
    return storage.join(output, "_shards", f"{shard}.json")


def read_receipt(output: str, shard: str) -> Receipt | None:
    """The receipt of a shard, if it is done."""
    uri = receipt_uri(output, shard)
    return _receipt(uri) if storage.exists(uri) else None


def read_receipts(output: str, plan: Plan) -> dict[str, Receipt]:
    """The receipts of all shards of this plan that are done, by shard."""
    wanted = {receipt_uri(output, plan.shard_name(i)) for i in range(len(plan.shards))}
    there = [uri for uri in storage.list_files(storage.join(output, "_shards")) if uri in wanted]
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        return {receipt.shard: receipt for receipt in pool.map(_receipt, there)}


def _receipt(uri: str) -> Receipt:
    return Receipt(**json.loads(storage.read_bytes(uri)))


def commit(
    output: str,
    receipt: Receipt,
    suffix: str,
    data: bytes | None,
    rejects: bytes | None,
) -> Receipt:
    """Write a shard's files, then its receipt; gives the receipt that counts.

    ``receipt`` comes without the files' names and sums. Killed at any point this leaves either
    no receipt, or one whose files are whole.
    """
    attempt = f"{receipt.shard}-{uuid.uuid4().hex[:8]}"
    content = asdict(receipt)
    if data is not None:
        content["data"] = f"data/{attempt}.{suffix}"
        content["data_bytes"] = len(data)
        content["data_sha256"] = hashlib.sha256(data).hexdigest()
        storage.write_bytes(storage.join(output, content["data"]), data)
    if rejects is not None:
        content["rejects"] = f"_rejected/{attempt}.jsonl"
        content["rejects_sha256"] = hashlib.sha256(rejects).hexdigest()
        storage.write_bytes(storage.join(output, content["rejects"]), rejects)
    uri = receipt_uri(output, receipt.shard)
    if storage.create(uri, json.dumps(content).encode()):
        return Receipt(**content)
    # Another attempt was first: its files count, so these must go.
    for name in (content["data"], content["rejects"]):
        if name:
            storage.remove(storage.join(output, name))
    return _receipt(uri)


def finish(output: str, plan: Plan, receipts: Iterable[Receipt], before: Manifest | None) -> None:
    """Check the counts, sweep away what does not count, write the manifest.

    ``before`` is the manifest of the generation before, whose rejects this one has tried again.
    """
    done = sorted(receipts, key=lambda receipt: receipt.shard)
    _check_counts(plan, done)
    kept = [_without_rejects(receipt) for receipt in before.shards] if before else []
    tally = Tally()
    for receipt in (*kept, *done):
        tally.add(receipt)
    manifest = Manifest(
        generation=plan.generation,
        documents_in=before.documents_in if before else plan.documents,
        documents_out=tally.tagged,
        documents_rejected=tally.rejected,
        labels=dict(sorted(tally.labels.items())),
        names=tally.top(20),
        settings=plan.settings,
        model=plan.model,
        input=plan.input_fingerprint(),
        shards=(*kept, *done),
    )
    if manifest.documents_in != manifest.documents_out + manifest.documents_rejected:
        raise RuntimeError(
            f"{manifest.documents_in} documents in, but {manifest.documents_out} out and "
            f"{manifest.documents_rejected} rejected"
        )
    _sweep(output, [*kept, *done, *(before.shards if before else ())])
    content = json.dumps({"format": FORMAT, **asdict(manifest)}, ensure_ascii=False).encode()
    storage.write_bytes(storage.join(output, MANIFEST), content)
    if before:
        # Only now does nobody go by the rejects of before.
        _sweep(output, manifest.shards)


def read_manifest(output: str) -> Manifest | None:
    """The manifest, if the job has finished."""
    uri = storage.join(output, MANIFEST)
    if not storage.exists(uri):
        return None
    try:
        content = json.loads(storage.read_bytes(uri))
        if content.pop("format") != FORMAT:
            raise StorageError(f"{uri} has another format than this version reads")
        content["shards"] = [Receipt(**receipt) for receipt in content["shards"]]
        content["names"] = {k: [(n, c) for n, c in v] for k, v in content["names"].items()}
        return Manifest(**content)
    except (ValueError, KeyError, TypeError, AttributeError) as exc:
        raise StorageError(f"{uri} is no manifest of a tagging job") from exc


def read_rejects(output: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """The documents that were set aside, with file, row, id and reason."""
    for receipt in manifest.shards:
        if receipt.rejects:
            for line in storage.read_bytes(storage.join(output, receipt.rejects)).splitlines():
                yield json.loads(line)


@dataclass
class Tally:
    """Running sums over receipts, of a size that does not grow with their number."""

    documents: int = 0
    tagged: int = 0
    rejected: int = 0
    tokens: int = 0
    labels: Counter[str] = field(default_factory=Counter)
    names: dict[str, Counter[str]] = field(default_factory=dict)

    def add(self, receipt: Receipt) -> None:
        self.documents += receipt.documents
        self.tagged += receipt.tagged
        self.rejected += receipt.rejected
        self.tokens += receipt.tokens
        self.labels.update(receipt.labels)
        for label, names in receipt.names.items():
            counter = self.names.setdefault(label, Counter())
            counter.update(names)
            if len(counter) > 100 * NAMES_KEPT:
                self.names[label] = Counter(dict(counter.most_common(50 * NAMES_KEPT)))

    def top(self, count: int) -> dict[str, list[tuple[str, int]]]:
        """The most frequent names of each label; of equally frequent ones the first in order."""
        return {
            label: sorted(names.items(), key=lambda item: (-item[1], item[0]))[:count]
            for label, names in sorted(self.names.items())
        }


def _check_counts(plan: Plan, done: Sequence[Receipt]) -> None:
    expected = {
        plan.shard_name(i): sum(stretch.rows for stretch in shard)
        for i, shard in enumerate(plan.shards)
    }
    found = {receipt.shard: receipt.documents for receipt in done}
    if found != expected:
        wrong = sorted(s for s in expected if found.get(s) != expected[s])[:3]
        raise RuntimeError(f"shards {', '.join(wrong)} do not hold the documents planned for them")
    for receipt in done:
        if receipt.documents != receipt.tagged + receipt.rejected:
            raise RuntimeError(f"shard {receipt.shard} has lost documents: {receipt}")


def _without_rejects(receipt: Receipt) -> Receipt:
    content = asdict(receipt)
    content |= {"documents": receipt.tagged, "rejected": 0, "rejects": None, "rejects_sha256": ""}
    return Receipt(**content)


def _sweep(output: str, receipts: Iterable[Receipt]) -> None:
    """Remove what attempts left that were not the first: a listing then shows what counts."""
    counted = {name for r in receipts for name in (r.data, r.rejects) if name}
    for folder in ("data", "_rejected"):
        for uri in storage.list_files(storage.join(output, folder)):
            if f"{folder}/{uri.rpartition('/')[2]}" not in counted:
                storage.remove(uri)
