"""Reading what a tagging job has left, by its manifest.

Knows the rows' form. Other programs read the same rows with pandas, DuckDB or Spark.
"""

import hashlib
import io
import json
from collections.abc import Iterator
from typing import Any

import pyarrow.parquet as pq

from raytag import storage
from raytag.bulk.store import MANIFEST, Manifest, Receipt, read_manifest
from raytag.errors import SettingsError, StorageError
from raytag.report.tagged import TaggedDocument
from raytag.text.spans import Entity


def finished(output: str) -> Manifest:
    """The manifest. Raises StorageError where no job has finished there."""
    manifest = read_manifest(output)
    if manifest is None:
        raise StorageError(
            f"{output} holds no {MANIFEST}: nothing was tagged there, or not to the end"
        )
    return manifest


def read_results(output: str, manifest: Manifest) -> Iterator[dict[str, Any]]:
    """Every row: id, text where it was kept, entities, file, row, and what came along.

    In the order of the shards, a shard in memory at a time. Raises StorageError for a file that
    is not what was written.
    """
    for receipt in manifest.shards:
        if receipt.data is not None:
            yield from _rows(output, receipt, receipt.data)


def read_documents(output: str, manifest: Manifest) -> Iterator[TaggedDocument]:
    """The tagged documents. Raises SettingsError where their texts were not kept."""
    if not manifest.settings["keep_text"]:
        raise SettingsError(f"{output} was tagged with --keep-text false: no texts to show")
    for row in read_results(output, manifest):
        yield TaggedDocument(
            id=str(row["id"]),
            text=row["text"],
            entities=[
                Entity(e["start"], e["end"], e["label"], e["score"]) for e in row["entities"]
            ],
            source=f"{row['file']}:{row['row']}",
        )


def _rows(output: str, receipt: Receipt, name: str) -> Iterator[dict[str, Any]]:
    uri = storage.join(output, name)
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != receipt.data_sha256:
        raise StorageError(f"{uri} is not what the manifest lists: its checksum differs")
    if name.endswith(".jsonl"):
        yield from map(json.loads, data.splitlines())
        return
    for batch in pq.ParquetFile(io.BytesIO(data)).iter_batches():
        yield from batch.to_pylist()
