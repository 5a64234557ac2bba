"""The corpora that ship: invented news and invented biomedicine, the same for the same seed.

Knows how sentences become rows, documents and splits. Knows nothing of models, and needs no file
to make a corpus; the files in `sample/` are this module's output. Names, sentences and cue words
of one split occur in no other, so a score on `test` is about what the base knows of words, not
about what `train` happened to spell out.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Final, TypedDict

from raytag.text.sample import lexicon, skeletons
from raytag.text.sample.grammar import Sentence, Speaker

DOMAINS: Final = tuple(lexicon.LABELS)
SPLITS: Final = lexicon.SPLITS
SIZES: Final = {"train": 300, "dev": 100, "test": 300}
SEED: Final = 7


class EntityRow(TypedDict):
    """A name: characters of the row's text, end excluded."""

    start: int
    end: int
    label: str


class Row(TypedDict):
    """A sentence; three to six in a row share a document."""

    id: str
    document: str
    text: str
    entities: list[EntityRow]


def labels(domain: str) -> tuple[str, ...]:
    """The types of names that a domain has."""
    return lexicon.LABELS[domain]


def corpus(domain: str, split: str, seed: int = SEED) -> list[Row]:
    """The sentences of a split, in the order of its documents."""
    rng = random.Random(f"{domain}/{split}/{seed}")
    speaker = Speaker(domain, split, rng)
    sentences = _sentences(speaker, split, SIZES[split])
    rows: list[Row] = []
    for document, size in enumerate(_document_sizes(rng, len(sentences))):
        for sentence in sentences[len(rows) : len(rows) + size]:
            rows.append(_row(f"{domain}-{split}", document, len(rows), sentence))
    return rows


def write(folder: Path, seed: int = SEED) -> list[Path]:
    """Every split of every domain as `folder/<domain>/<split>.jsonl`; returns the files."""
    written = []
    for domain in DOMAINS:
        (folder / domain).mkdir(parents=True, exist_ok=True)
        for split in SPLITS:
            path = folder / domain / f"{split}.jsonl"
            path.write_text(as_jsonl(corpus(domain, split, seed)), encoding="utf-8", newline="\n")
            written.append(path)
    return written


def as_jsonl(rows: list[Row]) -> str:
    """One JSON object a line, Unicode as it is."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _document_sizes(rng: random.Random, count: int) -> list[int]:
    """Three to six sentences each, `count` in all."""
    sizes: list[int] = []
    while left := count - sum(sizes):
        sizes.append(rng.choice([n for n in range(3, 7) if left - n == 0 or left - n >= 3]))
    return sizes


def _sentences(speaker: Speaker, split: str, count: int) -> list[Sentence]:
    """As many different sentences, 15 in 100 of them without names, cores taken in turn."""
    rng = speaker.rng
    cores = skeletons.CORES[split]
    order: list[str] = []
    made: list[Sentence] = []
    seen: set[str] = set()
    while len(made) < count:
        if rng.random() < 0.15:
            core = rng.choice(skeletons.EMPTY[split])
        else:
            order = order or rng.sample(cores, len(cores))
            core = order.pop()
        sentence = speaker.fill(skeletons.sentence(rng, core))
        if sentence.text not in seen:
            seen.add(sentence.text)
            made.append(sentence)
    return made


def _row(prefix: str, document: int, number: int, sentence: Sentence) -> Row:
    return {
        "id": f"{prefix}-{number:04d}",
        "document": f"{prefix}-d{document:03d}",
        "text": sentence.text,
        "entities": [{"start": m.start, "end": m.end, "label": m.label} for m in sentence.mentions],
    }
