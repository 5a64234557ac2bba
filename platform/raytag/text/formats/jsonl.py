"""JSON lines: an object per line, {"text": ..., "entities": [{"start", "end", "label"}]}."""

import json
from collections.abc import Iterable

from raytag import storage
from raytag.text.formats.intake import BadRowError, Intake, Rejected
from raytag.text.formats.lines import lines
from raytag.text.spans import Example


def read(data: bytes, file: str, stem: str, intake: Intake) -> None:
    """Hands every line that is not blank to the intake."""
    for line in lines(data, file):
        if not line.text.strip():
            continue
        try:
            if line.trouble:
                raise BadRowError(line.trouble)
            try:
                record = json.loads(line.text)
            except (ValueError, RecursionError) as exc:
                raise BadRowError(f"not JSON ({exc}); write one object per line") from exc
            if not isinstance(record, dict):
                raise BadRowError("not a JSON object; write one object per line")
            intake.add_record(f"{stem}:{line.number}", record)
        except BadRowError as bad:
            intake.reject(file, line.number, str(bad), line.text)


def write_jsonl(uri: str, examples: Iterable[Example]) -> None:
    """Writes examples as JSON lines; each entity also says its text, for people."""
    _write(uri, (_record(example) for example in examples))


def write_rejected(uri: str, rejected: Iterable[Rejected]) -> None:
    """Writes rejected rows as JSON lines: file, line, reason, raw."""
    _write(uri, (row.to_dict() for row in rejected))


def _record(example: Example) -> dict[str, object]:
    entities = [
        {"start": e.start, "end": e.end, "label": e.label, "text": example.text[e.start : e.end]}
        | ({} if e.score is None else {"score": e.score})
        for e in example.entities
    ]
    return {
        "id": example.id,
        "group": example.group,
        "text": example.text,
        "entities": entities,
    }


def _write(uri: str, records: Iterable[dict[str, object]]) -> None:
    rows = (json.dumps(record, ensure_ascii=False) + "\n" for record in records)
    storage.write_bytes(uri, "".join(rows).encode())
