"""What every format hands its rows to: rows become examples, or rejected rows with a reason.

Knows what a row must hold to be an example, nothing of how any format writes it.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeGuard

from raytag.errors import DataError
from raytag.text.labels import decode, detect_scheme, irregular
from raytag.text.spans import Entity, Example, without_overlaps

OnBad = Literal["raise", "set-aside"]
Overlaps = Literal["flatten", "reject"]

_ENTITY_KEYS = ("entities", "spans")
_LABEL_KEYS = ("label", "type")
_TAG_KEYS = ("ner_tags", "tags", "labels")
_GROUP_KEYS = ("group", "document")


class BadRowError(Exception):
    """Why a row is no example. Never leaves the formats: it becomes a Rejected or a DataError."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """A row that is no example: where it stands, why, and what it was.

    ``line`` is the line of the file where the trouble is, in Parquet and data sets the row, both
    counted from 1.
    """

    file: str
    line: int
    reason: str
    raw: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}: {self.reason}"

    def to_dict(self) -> dict[str, Any]:
        return {"file": self.file, "line": self.line, "reason": self.reason, "raw": self.raw}


@dataclass
class Intake:
    """Collects the rows of one reading under its two policies: see ``read_examples``.

    ``counts`` holds what was mended or passed over, by name; formats add to it.
    """

    on_bad: OnBad = "raise"
    overlaps: Overlaps = "flatten"
    examples: list[Example] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    tags: list[list[str]] = field(default_factory=list)
    """The tags of every example that came as tokens, for the scheme they are in."""

    def add_text(
        self, name: str, text: str, spans: Sequence[tuple[int, int, str]], group: str = ""
    ) -> None:
        """An example from a text and its gold spans, in characters."""
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise BadRowError(
                f"half a surrogate pair at character {exc.start}; mend the text"
            ) from exc
        for start, end, _ in spans:
            if not 0 <= start < end <= len(text):
                raise BadRowError(
                    f"entity {start}:{end} is not a stretch of the text of {len(text)} characters; "
                    "offsets count characters from 0, the end excluded"
                )
        unique = {Entity(start, end, label) for start, end, label in spans}
        kept, dropped = without_overlaps(sorted(unique))
        if dropped and self.overlaps == "reject":
            one = dropped[0]
            raise BadRowError(
                f"entity {one.start}:{one.end} ({one.label}) overlaps another; make the entities "
                "of a text disjoint, or read with overlaps=flatten"
            )
        self.counts["repeated entities dropped"] += len(spans) - len(unique)
        self.counts["overlapping entities dropped"] += len(dropped)
        self.examples.append(Example(name, text, tuple(kept), group))

    def add_tokens(
        self, name: str, tokens: Sequence[str], tags: Sequence[str], group: str = ""
    ) -> None:
        """An example from tokens, which single spaces join to its text, and their tags."""
        offsets: list[int] = []
        position = 0
        for token in tokens:
            offsets.append(position)
            position += len(token) + 1
        spans = [
            (offsets[first], offsets[after - 1] + len(tokens[after - 1]), label)
            for first, after, label in decode(tags, strict=False)
        ]
        self.add_text(name, " ".join(tokens), spans, group)
        self.tags.append(list(tags))

    def add_record(self, name: str, record: Mapping[str, Any]) -> None:
        """An example from named columns: text and entities, or tokens and their tags."""
        name = _identity(record.get("id"), "id") or name
        group = next((_identity(record.get(key), key) for key in _GROUP_KEYS if key in record), "")
        if "text" not in record and "tokens" in record:
            self.add_tokens(name, *_tokens_and_tags(record), group)
            return
        if not isinstance(record.get("text"), str):
            raise BadRowError('no "text"; give each row a text, or tokens and ner_tags')
        self.add_text(name, record["text"], _spans(record, record["text"]), group)

    def reject(self, file: str, line: int, reason: str, raw: str) -> None:
        """Sets a bad row aside, or raises it as a DataError."""
        bad = Rejected(file, line, reason, raw)
        if self.on_bad == "raise":
            raise DataError(str(bad))
        self.rejected.append(bad)

    def scheme(self) -> str | None:
        """The scheme of the tags read, counting entities that break it; None without tags."""
        if not self.tags:
            return None
        scheme = detect_scheme(self.tags)
        odd = sum(irregular(tags, scheme) for tags in self.tags)
        self.counts[f"entities that break {scheme}, read leniently"] += odd
        return scheme


def _identity(value: Any, key: str) -> str:
    """A name as a string; numbers are welcome, an absent or empty one is ""."""
    if value is None:
        return ""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadRowError(f'"{key}" is neither a string nor a whole number; mend it')
    return str(value)


def _spans(record: Mapping[str, Any], text: str) -> list[tuple[int, int, str]]:
    """The spans of a record; data sets may hold a list of objects as an object of lists."""
    key = next((key for key in _ENTITY_KEYS if record.get(key) is not None), None)
    if key is None:
        raise BadRowError('no "entities"; write "entities": [] for a text without any')
    entities = record[key]
    if isinstance(entities, dict) and all(isinstance(column, list) for column in entities.values()):
        rows = zip(*entities.values(), strict=False)
        entities = [dict(zip(entities, row, strict=True)) for row in rows]
    if not isinstance(entities, list):
        raise BadRowError(f'"{key}" is no list; write [{{"start": 0, "end": 5, "label": "PER"}}]')
    return [_span(entity, text) for entity in entities]


def _span(entity: Any, text: str) -> tuple[int, int, str]:
    if not isinstance(entity, dict):
        raise BadRowError('an entity is no object; write {"start": 0, "end": 5, "label": "PER"}')
    start, end = (_offset(entity, key) for key in ("start", "end"))
    label = next((entity[key] for key in _LABEL_KEYS if entity.get(key) is not None), None)
    if not isinstance(label, str) or not label.strip():
        raise BadRowError(f'entity {start}:{end} has no "label"; give it a type')
    said = entity.get("text")
    if isinstance(said, str) and 0 <= start < end <= len(text) and text[start:end] != said:
        raise BadRowError(
            f"entity {start}:{end} says {said!r} but {text[start:end]!r} stands there; "
            "offsets count characters (code points) from 0, the end excluded"
        )
    return start, end, label


def _offset(entity: Mapping[str, Any], key: str) -> int:
    value = entity.get(key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise BadRowError(f'"{key}" of an entity is {value!r}; it must be a whole number')
    return value


def _tokens_and_tags(record: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    tokens = record["tokens"]
    tags = next((record[key] for key in _TAG_KEYS if record.get(key) is not None), None)
    if not _words(tokens) or not all(token.strip() for token in tokens):
        raise BadRowError('"tokens" is no list of words; write ["Tim", "Cook"]')
    if not _words(tags):
        raise BadRowError('no "ner_tags" in words; write ["B-PER", "I-PER"]')
    if len(tokens) != len(tags):
        raise BadRowError(f"{len(tokens)} tokens but {len(tags)} tags; give each token one tag")
    try:
        decode(tags, strict=False)
    except DataError as exc:
        raise BadRowError(str(exc)) from exc
    return tokens, tags


def _words(value: Any) -> TypeGuard[list[str]]:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)
