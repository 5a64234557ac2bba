"""Parquet: columns text and entities (a list of structs), or tokens and ner_tags (words)."""

from raytag.errors import DataError
from raytag.text.formats.intake import BadRowError, Intake


def read(data: bytes, file: str, stem: str, intake: Intake) -> None:
    """Hands every row to the intake, a batch in memory at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(pa.BufferReader(data)).iter_batches(1024):
            for record in batch.to_pylist():
                number += 1
                try:
                    intake.add_record(f"{stem}:{number}", record)
                except BadRowError as bad:
                    intake.reject(file, number, str(bad), repr(record))
    except (pa.ArrowException, OSError, UnicodeDecodeError) as exc:
        said = " ".join(str(exc).split())
        where = f"{file}:{number + 1}"
        raise DataError(f"{where}: not readable Parquet ({said}); write it anew") from exc
