"""Speed of the generating head beside transformers' ``model.generate``: documents per second.

    python benchmarks/generate_speed.py                       # trains an adapter first, minutes
    python benchmarks/generate_speed.py --adapter FOLDER      # one trained by sample_generate.yaml
    python benchmarks/generate_speed.py --adapter FOLDER --unmerged

Four sides answer the same prompts about the news sample's test sentences, with the same model in
one process on one thread, in the same batches of sentences, sorted by length where not said
otherwise:

    raytag                 GenerateHead.extract
    generate               model.generate, greedy, with its cache, until the end of sequence or the
                           longest gold answer's tokens; what it names that the text does not say
                           is dropped
    generate, as written   the same as a user who does not know the gold would write it: prompts as
                           they come, up to 128 tokens
    generate, constrained  the same, held to the same grammar by ``prefix_allowed_tokens_fn``

First each side tries all batch sizes; then they take turns in the batch size that was best for
``generate``, and in the best of their own.
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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers

from machine import machine
from raytag.errors import DataError
from raytag.model.adapter import load_adapter
from raytag.model.heads.generate import GenerateHead
from raytag.text.formats import read_examples
from raytag.text.prompt import read_answer
from raytag.text.score import score
from raytag.text.spans import Entity, Example

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "generate_speed.json"
OURS, PLAIN, WRITTEN, HELD = SIDES = (
    "raytag",
    "generate",
    "generate, as written",
    "generate, constrained",
)
USUAL = 128
"""Tokens that a user allows for an answer."""
SIZES = (8, 16, 32, 64)


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every side is given; ``examples`` are sorted, the longest prompt first."""

    model: Any
    head: GenerateHead
    examples: Sequence[Example]
    longest: int
    """Tokens of the longest gold answer, its end included."""

    def run(self, side: str, size: int) -> "Run":
        """Answer everything once in batches of ``size``."""
        if side == WRITTEN:
            mixed = random.Random(0).sample(self.examples, len(self.examples))
            return replace(self, examples=mixed, longest=USUAL).run(PLAIN, size)
        answer = {OURS: self._ours, PLAIN: self._plain, HELD: self._held}[side]
        wall, cpu = time.perf_counter(), time.process_time()
        found: list[list[Entity]] = []
        for start in range(0, len(self.examples), size):
            found += answer([example.text for example in self.examples[start : start + size]])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        f1 = score([example.entities for example in self.examples], found).f1
        return Run(len(self.examples) / wall, len(self.examples) / cpu, f1)

    def _ours(self, texts: Sequence[str]) -> list[list[Entity]]:
        return self.head.extract(self.model, self.head.ask(texts))

    def _plain(self, texts: Sequence[str]) -> list[list[Entity]]:
        said = self._generate(texts, self.longest)
        return [entities_named(s, t, self.head.labels) for s, t in zip(said, texts, strict=True)]

    def _held(self, texts: Sequence[str]) -> list[list[Entity]]:
        answers = [self.head.grammar.answer(text) for text in texts]
        read = [-1] * len(texts)

        def allowed(row: int, ids: torch.Tensor) -> list[int]:
            # Called once per row and step; the first time there is only the prompt.
            answer = answers[row]
            if read[row] >= 0 and not answer.done:
                answer.take(int(ids[-1]))
            read[row] = len(ids)
            return [self.head.vocabulary.eos] if answer.done else answer.allowed().tolist()

        self._generate(texts, self.longest + 32, prefix_allowed_tokens_fn=allowed)
        return [answer.entities for answer in answers]

    def _generate(self, texts: Sequence[str], tokens: int, **options: Any) -> list[str]:
        """What ``model.generate`` writes about each text, set up as its documentation says."""
        vocabulary = self.head.vocabulary
        prompts = [row.input_ids for row in self.head.ask(texts)]
        padding = self.model.generation_config.pad_token_id
        inputs = vocabulary.tokenizer.pad(
            {"input_ids": prompts}, padding_side="left", return_tensors="pt"
        )
        written = self.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=tokens,
            do_sample=False,
            use_cache=True,
            eos_token_id=vocabulary.eos,
            pad_token_id=padding,
            **options,
        )[:, inputs["input_ids"].shape[1] :].tolist()
        ends = [row.index(vocabulary.eos) if vocabulary.eos in row else None for row in written]
        return [
            b"".join(vocabulary.bytes_of.get(token, b"") for token in row[:end]).decode(
                "utf-8", errors="replace"
            )
            for row, end in zip(written, ends, strict=True)
        ]


@dataclass(frozen=True)
class Run:
    """One run over all documents."""

    per_second: float
    per_cpu_second: float
    """Of this process: what is left of contention once waiting for a core is out of it."""
    f1: float


def entities_named(said: str, text: str, labels: Sequence[str]) -> list[Entity]:
    """The entities of an answer that nothing held to the text, without those that are not in it.

    Entity by entity, so that one that cannot be read takes no other with it.
    """
    kept = ""
    entities: list[Entity] = []
    for part in said.split("] ["):
        entity = " [" + part.removeprefix(" [").removesuffix("]") + "]"
        try:
            entities = read_answer(kept + entity, text, labels)
        except DataError:
            continue
        kept += entity
    return entities


def read_task(adapter: Path, merged: bool) -> Task:
    loaded = load_adapter(adapter)
    head = loaded.head
    if not isinstance(head, GenerateHead):
        raise SystemExit(f"{adapter} has a {head.name} head; this needs one that generates")
    model: Any = loaded.model
    if merged:
        model = model.merge_and_unload().eval()
    examples = read_examples(str(ROOT / "sample" / "news" / "test.jsonl")).examples
    return Task(
        model=model,
        head=head,
        examples=sorted(examples, key=lambda example: -head.ask([example.text])[0].tokens),
        longest=max(head.encode(example).labelled for example in examples),
    )


def train(folder: Path) -> Path:
    """An adapter by the sample's own settings, in a few minutes."""
    python = sys.executable
    settings = ROOT / "jobs" / "sample_generate.yaml"
    job = [python, str(ROOT / "jobs" / "finetune.py"), "--config", str(settings)]
    subprocess.run(
        [python, "-m", "raytag.local", "--", *job, "--output", str(folder)], cwd=ROOT, check=True
    )
    return folder / "adapter"


def median_of(runs: Sequence[Run], what: Callable[[Run], float]) -> float:
    return statistics.median(map(what, runs))


def measure(task: Task, rounds: int) -> dict[str, Any]:
    tried = {side: {size: task.run(side, size) for size in SIZES} for side in SIDES}
    best = {side: max(SIZES, key=lambda n: tried[side][n].per_cpu_second) for side in SIDES}
    runs: dict[str, list[Run]] = {side: [] for side in (*SIDES, f"{OURS}, own best")}
    loads = []
    for turn in range(rounds):
        loads.append(os.getloadavg()[0])
        # Each round begins with another side, so that none always follows the same one.
        for side in (*SIDES[turn % 4 :], *SIDES[: turn % 4]):
            size = best[PLAIN] if side == OURS else best[side]
            runs[side].append(task.run(side, size))
        runs[f"{OURS}, own best"].append(task.run(OURS, best[OURS]))
        print(
            f"round {turn + 1}: {[round(r[-1].per_second, 1) for r in runs.values()]}", flush=True
        )
    found: dict[str, Any] = {"rounds": rounds, "load_average_before_each_round": loads}
    for side, of_side in runs.items():
        found[side] = {
            "batch_size": best[PLAIN] if side == OURS else best[side.removesuffix(", own best")],
            "f1": of_side[0].f1,
            "documents_per_second": median_of(of_side, lambda run: run.per_second),
            "documents_per_cpu_second": median_of(of_side, lambda run: run.per_cpu_second),
            "every_round": [run.per_second for run in of_side],
            "every_round_per_cpu_second": [run.per_cpu_second for run in of_side],
        }
    for what in ("every_round", "every_round_per_cpu_second"):
        found[f"median_ratio, {what}"] = {
            f"{ours} to {theirs}": statistics.median(
                a / b for a, b in zip(found[ours][what], found[theirs][what], strict=True)
            )
            for ours in (OURS, f"{OURS}, own best")
            for theirs in (PLAIN, WRITTEN, HELD)
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapter", type=Path, help="a trained one's folder; none: train it")
    parser.add_argument("--unmerged", action="store_true", help="the adapter on its base")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as folder:
        adapter = arguments.adapter or train(Path(folder) / "run")
        task = read_task(adapter, merged=not arguments.unmerged)
        found = measure(task, arguments.rounds)
    found |= {"documents": len(task.examples), "threads": 1, "machine": machine()}
    kept = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    kept["adapter on base" if arguments.unmerged else "merged"] = found
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n")
    for side in (*SIDES, f"{OURS}, own best"):
        of_side = found[side]
        print(
            f"{side:24}{of_side['documents_per_second']:8.1f} documents/s "
            f"({of_side['documents_per_cpu_second']:.1f} per CPU second), batches of "
            f"{of_side['batch_size']}, F1 {of_side['f1']:.3f}"
        )
    for what in ("every_round", "every_round_per_cpu_second"):
        print(found[f"median_ratio, {what}"])


if __name__ == "__main__":
    main()
