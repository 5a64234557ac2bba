"""What an actor does with one shard: read its rows, tag them, write them, hand over a receipt.

Knows rows and their output form; the order in which files come to count is the store's. The
same shard gives the same rows whoever tags it, however often.
"""

import io
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from raytag.bulk.corpus import Row, read_rows
from raytag.bulk.raw import EXCERPT
from raytag.bulk.settings import TagSettings
from raytag.bulk.store import NAMES_KEPT, Plan, Receipt, commit, read_receipt
from raytag.errors import DataError, ModelError, ResourceError
from raytag.model.tagger import Tagger
from raytag.text.spans import Entity

ENTITY = pa.struct(
    [
        pa.field("start", pa.int64(), nullable=False),
        pa.field("end", pa.int64(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("text", pa.string(), nullable=False),
        pa.field("score", pa.float32()),
    ]
)
"""Offsets count characters (Unicode code points) of the document, the end excluded."""

Found = list[Entity]


def tag_shard(plan: Plan, index: int, settings: TagSettings, tagger: Tagger) -> Receipt:
    """Tag a shard of the plan and commit it, unless that is done already.

    Raises StorageError where the input cannot be read or the output written, ResourceError where
    the memory does not hold a single document's window.
    """
    name = plan.shard_name(index)
    done = read_receipt(settings.output, name)
    if done is not None:
        return done
    began = time.monotonic()
    rows = [
        row
        for stretch in plan.shards[index]
        for row in read_rows(plan.files, plan.columns, stretch, settings.encoding)
    ]
    rows = [_within_limit(row, settings.max_characters) for row in rows]
    good = [row for row in rows if not row.trouble]
    found, tokens = _tag(tagger, [row.text for row in good])
    tagged: list[tuple[Row, Found]] = []
    bad = [row for row in rows if row.trouble]
    for row, entities in zip(good, found, strict=True):
        if isinstance(entities, str):
            bad.append(replace(row, trouble=entities))
        else:
            tagged.append((row, entities))
    labels, names = _counts(tagged)
    receipt = Receipt(
        shard=name,
        documents=len(rows),
        tagged=len(tagged),
        rejected=len(bad),
        data=None,
        rejects=None,
        labels=labels,
        names=names,
        tokens=tokens,
        seconds=time.monotonic() - began,
    )
    return commit(
        settings.output,
        receipt,
        settings.format,
        _encoded(tagged, plan, settings) if tagged else None,
        _rejects(bad) if bad else None,
    )


def _within_limit(row: Row, limit: int) -> Row:
    if not limit or len(row.text) <= limit or row.trouble:
        return row
    return replace(row, trouble=f"{len(row.text)} characters, over the limit of {limit}")


def _tag(tagger: Tagger, texts: Sequence[str]) -> tuple[list[Found | str], int]:
    """Entities of each text, or why it has none; and the tokens read.

    One text that the model cannot be asked about does not take the others with it.
    """
    try:
        together, tokens = _in_memory(tagger, texts)
        return list(together), tokens
    except (DataError, ModelError):
        tokens = 0
    found: list[Found | str] = []
    for text in texts:
        try:
            alone, read = _in_memory(tagger, [text])
            found += alone
            tokens += read
        except (DataError, ModelError) as exc:
            found.append(str(exc))
    return found, tokens


def _in_memory(tagger: Tagger, texts: Sequence[str]) -> tuple[list[Found], int]:
    """Tag, in smaller batches where the GPU's memory does not hold the usual ones."""
    budget = tagger.batch_tokens
    while True:
        try:
            return replace(tagger, batch_tokens=budget).tag_counted(texts)
        except torch.OutOfMemoryError as exc:
            if budget < 2 * tagger.window:
                raise ResourceError(
                    "the GPU's memory does not hold one window; load the model in bf16 or use a "
                    "larger GPU"
                ) from exc
            budget //= 2
            torch.cuda.empty_cache()


def _counts(
    tagged: Sequence[tuple[Row, Found]],
) -> tuple[dict[str, int], dict[str, dict[str, int]]]:
    """(entities by label, the most frequent names by label)."""
    names: dict[str, Counter[str]] = {}
    for row, entities in tagged:
        for entity in entities:
            name = " ".join(row.text[entity.start : entity.end].split())
            names.setdefault(entity.label, Counter())[name] += 1
    return (
        {label: counter.total() for label, counter in names.items()},
        {label: dict(counter.most_common(NAMES_KEPT)) for label, counter in names.items()},
    )


def output_schema(plan: Plan, keep_text: bool) -> pa.Schema:
    """id, text, entities, file and row, then the columns that came along."""
    columns = plan.columns
    carried = [field for field in columns.schema if field.name != columns.id]
    known = columns.id is not None and columns.schema.field(columns.id).type
    return pa.schema(
        [
            pa.field("id", known or pa.string()),
            *([pa.field("text", pa.string())] if keep_text else []),
            pa.field("entities", pa.list_(ENTITY)),
            pa.field("file", pa.string()),
            pa.field("row", pa.int64()),
            *carried,
        ]
    )


def _encoded(tagged: Sequence[tuple[Row, Found]], plan: Plan, settings: TagSettings) -> bytes:
    records = [_record(row, entities, settings.keep_text) for row, entities in tagged]
    if settings.format == "jsonl":
        lines = (json.dumps(record, ensure_ascii=False, default=str) for record in records)
        return "".join(f"{line}\n" for line in lines).encode()
    table = pa.Table.from_pylist(records, output_schema(plan, settings.keep_text))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def _record(row: Row, entities: Found, keep_text: bool) -> dict[str, Any]:
    said = [{**asdict(e), "text": row.text[e.start : e.end]} for e in entities]
    text = {"text": row.text} if keep_text else {}
    place = {"file": row.file, "row": row.number}
    return {"id": row.id, **text, "entities": said, **place, **row.carried}


def _rejects(rows: Sequence[Row]) -> bytes:
    """A line for each, with what can be shown of it."""
    lines = []
    for row in sorted(rows, key=lambda row: (row.file, row.number)):
        said = {"id": row.id, "file": row.file, "row": row.number, "reason": row.trouble}
        said["excerpt"] = row.text[:EXCERPT]
        lines.append(json.dumps(said, ensure_ascii=False, default=str))
    return "".join(f"{line}\n" for line in lines).encode()
