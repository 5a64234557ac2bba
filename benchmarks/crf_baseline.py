"""How far surface features carry on the sample corpora: a linear-chain CRF, no pretraining.

    python benchmarks/crf_baseline.py

Lafferty et al. 2001; features as in the usual CoNLL baselines: the word, its case, prefixes,
suffixes and shape, and the same of two neighbours on either side. Prints strict F1 over offsets
on test, per domain. A base that is worth fine-tuning has to do much better.
"""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from typing import Any

import sklearn_crfsuite

SAMPLE = Path(__file__).resolve().parent.parent / "sample"
_WORD = re.compile(r"\w+|[^\w\s]")
Span = tuple[int, int, str]


def shape_of(word: str) -> str:
    """Letters and digits by class, runs as one: "KVR-12" has "X-d"."""
    classes = (
        "X" if c.isupper() else "x" if c.isalpha() else "d" if c.isdigit() else c for c in word
    )
    return "".join(key for key, _ in itertools.groupby(classes))


def features(words: list[str], i: int) -> dict[str, Any]:
    """What the CRF sees of word i."""
    found: dict[str, Any] = {"bias": 1.0}
    for k in range(-2, 3):
        if not 0 <= i + k < len(words):
            found[f"{k}:edge"] = True
            continue
        word = words[i + k]
        found[f"{k}:word"] = word
        found[f"{k}:lower"] = word.lower()
        found[f"{k}:shape"] = shape_of(word)
        for n in (1, 2, 3, 4):
            found[f"{k}:prefix{n}"] = word[:n].lower()
            found[f"{k}:suffix{n}"] = word[-n:].lower()
    return found


def tags_of(spans: list[tuple[int, int]], entities: list[dict[str, Any]]) -> list[str]:
    """BIO tags of the words at these offsets."""
    tags = ["O"] * len(spans)
    for entity in entities:
        inside = [i for i, (s, e) in enumerate(spans) if s < entity["end"] and entity["start"] < e]
        for n, i in enumerate(inside):
            tags[i] = ("I-" if n else "B-") + entity["label"]
    return tags


def entities_of(spans: list[tuple[int, int]], tags: list[str]) -> set[Span]:
    """Entities that BIO tags spell; an I without its B begins one."""
    found: list[Span] = []
    last = "O"
    for (start, end), tag in zip(spans, tags, strict=True):
        if tag.startswith("I-") and last[2:] == tag[2:]:
            found[-1] = (found[-1][0], end, tag[2:])
        elif tag != "O":
            found.append((start, end, tag[2:]))
        last = tag
    return set(found)


def load(path: Path) -> tuple[list[list[dict[str, Any]]], list[list[str]], list[dict[str, Any]]]:
    """Features and tags per sentence, and the rows with their words' offsets."""
    xs, ys, rows = [], [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        row["spans"] = [m.span() for m in _WORD.finditer(row["text"])]
        words = [row["text"][s:e] for s, e in row["spans"]]
        xs.append([features(words, i) for i in range(len(words))])
        ys.append(tags_of(row["spans"], row["entities"]))
        rows.append(row)
    return xs, ys, rows


def score(domain: str, folder: Path = SAMPLE) -> tuple[float, float]:
    """Strict F1 on test, with types and (second) for the boundaries alone."""
    xs, ys, _ = load(folder / domain / "train.jsonl")
    crf = sklearn_crfsuite.CRF(algorithm="lbfgs", c1=0.1, c2=0.1, max_iterations=100)
    crf.fit(xs, ys)
    xs, _, rows = load(folder / domain / "test.jsonl")
    typed, untyped = [0, 0, 0], [0, 0, 0]
    for row, tags in zip(rows, crf.predict(xs), strict=True):
        gold = {(e["start"], e["end"], e["label"]) for e in row["entities"]}
        found = entities_of(row["spans"], list(tags))
        for counts, g, f in (
            (typed, gold, found),
            (untyped, {s[:2] for s in gold}, {s[:2] for s in found}),
        ):
            counts[0] += len(g & f)
            counts[1] += len(g)
            counts[2] += len(f)
    return 2 * typed[0] / (typed[1] + typed[2]), 2 * untyped[0] / (untyped[1] + untyped[2])


def main() -> None:
    """Print the figures of every domain."""
    for domain in ("news", "biomedical"):
        typed, untyped = score(domain)
        print(f"{domain}: strict F1 {typed:.3f} (boundaries alone {untyped:.3f})")


if __name__ == "__main__":
    main()
