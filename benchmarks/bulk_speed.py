"""Bulk tagging beside what a user would run instead, on the same machine.

    python benchmarks/bulk_speed.py pipeline --model FOLDER   transformers' pipeline, one thread
    python benchmarks/bulk_speed.py machine --model FOLDER    the same, all cores of the machine
    python benchmarks/bulk_speed.py loop --model FOLDER       the same model and batches, no Ray
    python benchmarks/bulk_speed.py growth --model FOLDER     1, 4 and 16 times the corpus
    python benchmarks/bulk_speed.py spacy --model FOLDER      a CNN trained on the same sentences
    python benchmarks/bulk_speed.py heads --model FOLDER --generate FOLDER    both heads

FOLDER is a merged `tag` model of the news sample, as jobs/merge.py makes it, used in the dtype it
was merged to. The corpus is made
up here, by seed: documents of 1 to 20 sentences of the news sample's kind. Sides take turns;
medians and ratios are printed and kept in benchmarks/results/bulk_speed.json.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers

from machine import machine
from raytag.local import LocalCluster
from raytag.model.adapter import AdapterCard
from raytag.model.merge import load_for_tagging
from raytag.model.tagger import Tagger
from raytag.text.formats import read_examples
from raytag.text.sample import corpus as sample_corpus
from raytag.text.score import score
from raytag.text.spans import Entity

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "bulk_speed.json"
NEWS = ROOT / "sample" / "news"


def documents(count: int, seed: int = 0) -> list[str]:
    """Texts of 1 to 20 sentences, most of them short."""
    chance = random.Random(seed)
    sentences: list[str] = []
    texts = []
    turn = 0
    while len(texts) < count:
        wanted = min(20, 1 + int(chance.expovariate(1 / 4)))
        while len(sentences) < wanted:
            turn += 1
            sentences += [row["text"] for row in sample_corpus("news", "test", seed=100 + turn)]
        texts.append(" ".join(sentences[:wanted]))
        del sentences[:wanted]
    return texts


def words_in(texts: Sequence[str]) -> int:
    return sum(len(text.split()) for text in texts)


def dtype_of(model: Path) -> str:
    """What the model was merged to."""
    return str(AdapterCard.read(model).merged["dtype"])  # type: ignore[index]


def tagger_of(model: Path) -> Tagger:
    """One thread; batches as the job has them on a CPU."""
    torch.set_num_threads(1)
    dtype: Any = dtype_of(model)
    loaded = load_for_tagging(model, base=None, load_in=dtype, device=torch.device("cpu"))
    return Tagger.of(loaded, batch_tokens=1024)


def pipeline_of(model: Path) -> Any:
    """transformers' own, in the dtype of the model's files, a word's label that of its first
    token, as the model was trained."""
    pipeline = transformers.pipeline(
        "token-classification", model=str(model), aggregation_strategy="first", device="cpu"
    )
    pipeline.tokenizer.pad_token = pipeline.tokenizer.pad_token or pipeline.tokenizer.eos_token
    return pipeline


def in_turns(sides: dict[str, Callable[[], float]], rounds: int, first: str) -> dict[str, Any]:
    """Documents per second by side and round, and how many times as fast the first is."""
    speeds: dict[str, list[float]] = {side: [] for side in sides}
    names = list(sides)
    for turn in range(rounds):
        for i in range(len(names)):
            side = names[(turn + i) % len(names)]
            speeds[side].append(sides[side]())
        said = ", ".join(f"{side} {values[-1]:.1f}" for side, values in speeds.items())
        print(f"round {turn + 1}: {said} documents/s", file=sys.stderr, flush=True)
    ratios = {
        side: statistics.median(a / b for a, b in zip(speeds[first], values, strict=True))
        for side, values in speeds.items()
        if side != first
    }
    return {
        "documents_per_second": speeds,
        "median": {side: statistics.median(values) for side, values in speeds.items()},
        "median_ratio": ratios,
    }


def pipeline_part(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """One process and thread each; the pipeline at its best batch size."""
    tagger = tagger_of(model)
    pipeline = pipeline_of(model)
    texts = documents(arguments.documents)
    ordered = sorted(texts, key=len)

    def timed(run: Callable[[], object], count: int) -> float:
        began = time.perf_counter()
        run()
        return count / (time.perf_counter() - began)

    trial = texts[: len(texts) // 4]
    tried = {
        size: timed(lambda size=size: pipeline(trial, batch_size=size), len(trial))  # type: ignore[misc]
        for size in (1, 2, 4, 8, 16, 32)
    }
    tried_sorted = {
        size: timed(lambda size=size: pipeline(sorted(trial, key=len), batch_size=size), len(trial))  # type: ignore[misc]
        for size in (1, 2, 4, 8, 16, 32)
    }
    best, best_sorted = (max(t, key=t.__getitem__) for t in (tried, tried_sorted))
    found = in_turns(
        {
            "raytag": lambda: timed(lambda: tagger.tag(texts), len(texts)),
            "pipeline": lambda: timed(lambda: pipeline(texts, batch_size=best), len(texts)),
            "pipeline, sorted": lambda: timed(
                lambda: pipeline(ordered, batch_size=best_sorted), len(texts)
            ),
        },
        arguments.rounds,
        "raytag",
    )
    test = read_examples(str(NEWS / "test.jsonl")).examples
    gold = [example.entities for example in test]
    sentences = [example.text for example in test]
    said = pipeline(sentences, batch_size=best)
    theirs = [
        [Entity(e["start"], e["end"], e["entity_group"]) for e in found if e["end"] > e["start"]]
        for found in said
    ]
    return {
        "documents": len(texts),
        "words": words_in(texts),
        "batch_sizes_tried": {"as they come": tried, "sorted": tried_sorted},
        "test_f1": {
            "raytag": score(gold, tagger.tag(sentences)).f1,
            "pipeline": score(
                gold, [_stripped(t, e) for t, e in zip(sentences, theirs, strict=True)]
            ).f1,
        },
        **found,
    }


def _stripped(text: str, entities: Sequence[Entity]) -> list[Entity]:
    """Without the space that a byte-level token brings along."""
    found = []
    for entity in entities:
        start, end = entity.start, entity.end
        while start < end and text[start].isspace():
            start += 1
        if start < end and (not found or found[-1].end <= start):
            found.append(Entity(start, end, entity.label))
    return found


def _loop(model: str, texts: Sequence[str], shard: int, output: str) -> None:
    """What one process of a bare loop does: the job's own shards, tagged and written."""
    tagger = tagger_of(Path(model))
    with Path(output).open("w", encoding="utf-8") as file:
        for start in range(0, len(texts), shard):
            part = texts[start : start + shard]
            for text, entities in zip(part, tagger.tag(part), strict=True):
                row = {"text": text, "entities": [[e.start, e.end, e.label] for e in entities]}
                file.write(json.dumps(row) + "\n")


def _pipeline(model: str, texts: Sequence[str], size: int, output: str) -> None:
    """What a user's script does, on as many threads as torch takes."""
    with Path(output).open("w", encoding="utf-8") as file:
        for text, found in zip(
            texts, pipeline_of(Path(model))(texts, batch_size=size), strict=True
        ):
            row = {"text": text, "entities": [[e["start"], e["end"]] for e in found]}
            file.write(json.dumps(row) + "\n")


def processes_seconds(
    run: str, model: Path, texts: Sequence[str], number: int, count: int, folder: Path
) -> float:
    """``count`` processes that each run a function of this file on a share of the texts, from
    their start to the last row; each has its share of the cores as threads."""
    began = time.perf_counter()
    code = "import sys, json; sys.path.insert(0, sys.argv[1]); import bulk_speed; "
    code += f"bulk_speed.{run}"
    code += "(sys.argv[2], json.load(open(sys.argv[3])), int(sys.argv[4]), sys.argv[5])"
    threads = str(max(1, (os.cpu_count() or 1) // count))
    share = -(-len(texts) // count)
    running = []
    for i in range(count):
        part = folder / f"part-{i}.json"
        part.write_text(json.dumps(texts[i * share : (i + 1) * share]))
        command = [sys.executable, "-c", code, str(Path(__file__).parent), str(model), str(part)]
        running.append(
            subprocess.Popen(
                [*command, str(number), str(folder / f"part-{i}.out")],
                env={**os.environ, "OMP_NUM_THREADS": threads},
                stderr=subprocess.DEVNULL,
            )
        )
    for process in running:
        if process.wait():
            raise RuntimeError(f"{run} failed")
    return time.perf_counter() - began


def job_seconds(
    cluster: LocalCluster, model: Path, texts: Sequence[str], shard: int, folder: Path
) -> tuple[float, float]:
    """(seconds from submission to the manifest, the driver's largest memory in MiB)."""
    corpus = folder / "corpus.jsonl"
    corpus.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [sys.executable, str(ROOT / "jobs" / "tag.py"), "--input", str(corpus)]
        command += ["--output", f"{output}/tags", "--model", str(model)]
        command += ["--shard-documents", str(shard), "--load-in", dtype_of(model)]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=dict(cluster.environment), stdout=subprocess.DEVNULL
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - began
        if status:
            raise RuntimeError("the job failed")
        return seconds, usage.ru_maxrss / 1024


def loop_part(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The job on two actors of a running cluster, and two bare processes, in turns."""
    return against_processes(model, arguments, {"bare loop": ("_loop", arguments.shard, 2)})


def machine_part(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The job on all cores, and the pipeline in one process with all of them as threads."""
    best = arguments.batch
    return against_processes(model, arguments, {"pipeline": ("_pipeline", best, 1)})


def against_processes(
    model: Path, arguments: argparse.Namespace, others: dict[str, tuple[str, int, int]]
) -> dict[str, Any]:
    """Everything a user waits for counts: imports, loading, Ray's actors, writing."""
    texts = documents(arguments.documents)
    with tempfile.TemporaryDirectory() as name, LocalCluster(cpus=os.cpu_count()) as cluster:
        folder = Path(name)

        def job() -> float:
            return len(texts) / job_seconds(cluster, model, texts, arguments.shard, folder)[0]

        def other(run: str, number: int, count: int) -> float:
            return len(texts) / processes_seconds(run, model, texts, number, count, folder)

        sides: dict[str, Callable[[], float]] = {"raytag": job}
        sides |= {side: (lambda given=given: other(*given)) for side, given in others.items()}  # type: ignore[misc]
        found = in_turns(sides, arguments.rounds, "raytag")
    return {"documents": len(texts), "shard": arguments.shard, **found}


def growth_part(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """The same job on 1, 4 and 16 times the corpus."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, LocalCluster(cpus=2) as cluster:
        for times in (1, 4, 16):
            texts = documents(arguments.documents * times)
            seconds, memory = job_seconds(cluster, model, texts, arguments.shard, Path(folder))
            found[f"{times}x"] = {
                "documents": len(texts),
                "seconds": round(seconds, 1),
                "driver_mib": round(memory, 1),
            }
            print(f"{times}x: {found[f'{times}x']}", file=sys.stderr, flush=True)
    return found


def spacy_part(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """spaCy's own NER (hash embeddings, CNN, transitions), trained on the same 300 sentences."""
    import spacy
    from spacy.training import Example as Annotated
    from spacy.util import fix_random_seed, minibatch

    tagger = tagger_of(model)
    train, dev, test = (
        read_examples(str(NEWS / f"{name}.jsonl")).examples for name in ("train", "dev", "test")
    )
    fix_random_seed(0)
    nlp = spacy.blank("en")
    nlp.add_pipe("ner")

    def annotated(examples: Sequence[Any]) -> list[Annotated]:
        rows = []
        for example in examples:
            spans = [(e.start, e.end, e.label) for e in example.entities]
            rows.append(Annotated.from_dict(nlp.make_doc(example.text), {"entities": spans}))
        return rows

    def f1(tag: Callable[[list[str]], list[list[Entity]]], examples: Sequence[Any]) -> float:
        return score([e.entities for e in examples], tag([e.text for e in examples])).f1

    def spacy_tag(texts: list[str]) -> list[list[Entity]]:
        return [
            [Entity(e.start_char, e.end_char, e.label_) for e in doc.ents]
            for doc in nlp.pipe(texts, batch_size=128)
        ]

    rows = annotated(train)
    nlp.initialize(lambda: rows)
    best, kept = -1.0, b""
    chance = random.Random(0)
    for _ in range(40):
        chance.shuffle(rows)
        for batch in minibatch(rows, size=16):
            nlp.update(batch, drop=0.2)
        if (now := f1(spacy_tag, dev)) > best:
            best, kept = now, nlp.to_bytes()
    nlp.from_bytes(kept)
    texts = documents(arguments.documents)
    words = words_in(texts)

    def timed(tag: Callable[[list[str]], object]) -> float:
        began = time.perf_counter()
        tag(texts)
        return words / (time.perf_counter() - began)

    found = in_turns(
        {"raytag": lambda: timed(tagger.tag), "spacy": lambda: timed(spacy_tag)},
        arguments.rounds,
        "raytag",
    )
    found["words_per_second"] = found.pop("documents_per_second")
    return {
        "documents": len(texts),
        "words": words,
        "test_f1": {"raytag": f1(tagger.tag, test), "spacy": f1(spacy_tag, test)},
        "spacy": spacy.__version__,
        **found,
    }


def heads_part(model: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both heads, trained on the same sentences of the same base, on the same documents."""
    if arguments.generate is None:
        raise SystemExit("heads needs --generate, a merged model with that head")
    taggers = {"tag": tagger_of(model), "generate": tagger_of(arguments.generate)}
    texts = documents(arguments.documents)
    test = read_examples(str(NEWS / "test.jsonl")).examples

    def timed(tagger: Tagger) -> float:
        began = time.perf_counter()
        tagger.tag(texts)
        return len(texts) / (time.perf_counter() - began)

    found = in_turns(
        {head: (lambda tagger=tagger: timed(tagger)) for head, tagger in taggers.items()},  # type: ignore[misc]
        arguments.rounds,
        "tag",
    )
    gold = [example.entities for example in test]
    f1 = {
        head: score(gold, tagger.tag([example.text for example in test])).f1
        for head, tagger in taggers.items()
    }
    return {"documents": len(texts), "words": words_in(texts), "test_f1": f1, **found}


PARTS = {
    "heads": heads_part,
    "pipeline": pipeline_part,
    "machine": machine_part,
    "loop": loop_part,
    "growth": growth_part,
    "spacy": spacy_part,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=sorted(PARTS))
    parser.add_argument("--model", type=Path, required=True, help="a merged tag model's folder")
    parser.add_argument("--generate", type=Path, help="a merged generate model's folder")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--shard", type=int, default=2000, help="documents in a shard")
    parser.add_argument("--batch", type=int, default=1, help="the pipeline's batch in `machine`")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # a side has the threads it is given
    found = PARTS[arguments.part](arguments.model, arguments)
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept[f"{arguments.part}, {dtype_of(arguments.model)}"] = {**found, "machine": machine()}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if "per_second" not in k}, indent=2))


if __name__ == "__main__":
    main()
