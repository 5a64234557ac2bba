"""Training speed beside Hugging Face's Trainer: examples per second at an equal dev F1.

    python benchmarks/training_speed.py                      # the news sample, tag head
    python benchmarks/training_speed.py --head generate
    RAYTAG_DATA=... python benchmarks/training_speed.py --data wnut17

Three sides train the same base with the same LoRA from the same initial weights on the same
examples, batch size, rates, schedule, clipping and dtype, one process on one thread, as a worker:

    raytag            what a training worker does per step, without Ray around it
    trainer           transformers' Trainer with peft as it comes: random batches, padded to the
                      longest
    trainer, grouped  the same with train_sampling_strategy="group_by_length"

They take short turns in one process, so that whatever else the machine does falls on all of
them. Only the steps are timed: from the Trainer's on_train_begin to on_train_end, and from our
first step to our last. Tokenising is done before, for every side. Then each side trains for all
epochs, a few seeds, and its model is scored on dev by the same tagger.
"""

import argparse
import gc
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import (
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from machine import machine
from raytag.model.adapter import make_head, output_names
from raytag.model.base import Base, find_base, load_model, load_tokenizer
from raytag.model.heads import IGNORED, Encoded, Head
from raytag.model.lora import add_adapter, linear_targets, parameter_groups
from raytag.model.settings import HeadName
from raytag.model.tagger import Tagger
from raytag.text.formats import read_examples
from raytag.text.score import score
from raytag.text.spans import Example
from raytag.train.loop import Loop
from raytag.train.plan import rate_at
from raytag.train.settings import FinetuneSettings

ROOT = Path(__file__).resolve().parent.parent
OURS, PLAIN, GROUPED = SIDES = ("raytag", "trainer", "trainer, grouped")


@dataclass(frozen=True, kw_only=True)
class Task:
    """What every side is given."""

    base: Base
    tokenizer: PreTrainedTokenizerBase
    settings: FinetuneSettings
    labels: tuple[str, ...]
    train: Sequence[Example]
    dev: Sequence[Example]
    rows: Sequence[dict[str, list[int]]]
    """``train`` as the Trainer takes it."""

    def new_model(self, seed: int) -> PreTrainedModel:
        """The base with the head's output layer, its new weights from the seed."""
        torch.manual_seed(seed)
        head = self.settings.head
        return load_model(self.base, head, output_names(head, self.labels), "fp32")

    def head(self) -> Head:
        limit = self.base.config.get_text_config().max_position_embeddings
        return make_head(self.settings.head, self.tokenizer, self.labels, context=limit)

    def for_epochs(self, epochs: int) -> "Task":
        return replace(self, settings=replace(self.settings, epochs=epochs))

    def dev_f1(self, model: nn.Module) -> float:
        tagger = Tagger(
            model=model.eval(),
            head=self.head(),
            window=max(len(example.text) for example in self.train),
            max_tokens=self.base.config.get_text_config().max_position_embeddings,
        )
        found = tagger.tag([example.text for example in self.dev])
        return score([example.entities for example in self.dev], found).f1


@dataclass(frozen=True)
class Trained:
    """What one training came to."""

    seconds: float
    cpu_seconds: float
    """Of this process: what is left of contention once waiting for a core is out of it."""
    model: nn.Module


def train_ours(task: Task, seed: int) -> Trained:
    """All steps of a worker's loop."""
    settings = replace(task.settings, seed=seed)
    model = add_adapter(task.new_model(seed), settings.head, settings.lora)
    with _local_rank():
        groups = parameter_groups(model, settings.lora_plus)
        loop = Loop(model, task.head(), task.train, settings, groups=groups, zero=0)
        clock = _Clock()
        clock.on_train_begin()
        for step in range(loop.plan.total_steps):
            loop.take(step)
        clock.on_train_end()
    loop.engine.close()
    return Trained(clock.seconds, clock.cpu_seconds, model)


def train_theirs(task: Task, seed: int, sampling: str) -> Trained:
    """Trainer.train(), set up for speed the way its documentation says."""
    settings = task.settings
    model = adapted_by_peft(task.new_model(seed), settings)
    steps = settings.epochs * -(-len(task.rows) // settings.batch_size)
    optimizer = loraplus_of_peft(model, settings)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_at(step, steps, settings.warmup, settings.schedule)
    )
    clock = _Clock()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                per_device_train_batch_size=settings.batch_size,
                num_train_epochs=settings.epochs,
                max_grad_norm=settings.clip,
                train_sampling_strategy=sampling,
                seed=seed,
                use_cpu=True,
                report_to="none",
                logging_strategy="no",
                save_strategy="no",
                eval_strategy="no",
                disable_tqdm=True,
                dataloader_num_workers=0,
            ),
            train_dataset=task.rows,
            data_collator=collator(task),
            optimizers=(optimizer, schedule),
            callbacks=[clock],
        )
        trainer.train()
    if trainer.state.global_step != steps:
        raise RuntimeError(f"the Trainer took {trainer.state.global_step} steps, not {steps}")
    return Trained(clock.seconds, clock.cpu_seconds, model)


def adapted_by_peft(model: PreTrainedModel, settings: FinetuneSettings) -> PeftModel:
    """The same LoRA as ours, as peft makes it: with the same seed, the same first weights."""
    shape = settings.lora
    config = LoraConfig(
        task_type=TaskType.TOKEN_CLS if settings.head == "tag" else TaskType.CAUSAL_LM,
        r=shape.rank,
        lora_alpha=shape.alpha,  # type: ignore[arg-type]
        lora_dropout=shape.dropout,
        target_modules=list(linear_targets(model)),
    )
    adapted: PeftModel = get_peft_model(model, config)
    return adapted


def loraplus_of_peft(model: PeftModel, settings: FinetuneSettings) -> torch.optim.Optimizer:
    """peft's LoRA+ optimizer with our rates. AdamW is fused, as the Trainer's own default is.

    peft would give the tagging head A's rate; it gets ours, so that only speed differs.
    """
    rates = settings.lora_plus
    optimizer: torch.optim.Optimizer = create_loraplus_optimizer(
        model,
        torch.optim.AdamW,
        lr=rates.lr,
        loraplus_lr_ratio=rates.ratio,
        loraplus_weight_decay=rates.weight_decay,
        fused=True,
    )
    named = model.named_parameters()
    head = [p for n, p in named if p.requires_grad and "modules_to_save" in n]
    if head:
        ids = {id(p) for p in head}
        for group in optimizer.param_groups:
            group["params"] = [p for p in group["params"] if id(p) not in ids]
        optimizer.add_param_group({"params": head, "lr": rates.head_lr})
    return optimizer


def collator(task: Task) -> Any:
    """The library's collator for the head; both pad to the longest of the batch."""
    if task.settings.head == "tag":
        return DataCollatorForTokenClassification(task.tokenizer)
    return DataCollatorForSeq2Seq(task.tokenizer, label_pad_token_id=IGNORED)


def trainer_row(row: Encoded, head: HeadName) -> dict[str, list[int]]:
    """An encoded example as transformers' models take it: for a causal LM the labels are the
    input ids themselves, which the model shifts."""
    ids, labels = row.input_ids, row.targets
    if head == "generate":
        ids, labels = [*ids, labels[-1]], [IGNORED, *labels]
    return {"input_ids": ids, "attention_mask": [1] * len(ids), "labels": labels}


class _Clock(TrainerCallback):
    """Seconds from the first step to the last."""

    seconds = cpu_seconds = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self._begun = time.perf_counter(), time.process_time()

    def on_train_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self._begun[0]
        self.cpu_seconds = time.process_time() - self._begun[1]


@contextmanager
def _local_rank() -> Iterator[None]:
    """The variable DeepSpeed insists on; with it the Trainer would think itself distributed."""
    os.environ["LOCAL_RANK"] = "0"
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]


def train_side(side: str, task: Task, seed: int) -> Trained:
    if side == OURS:
        return train_ours(task, seed)
    return train_theirs(task, seed, "random" if side == PLAIN else "group_by_length")


def read_task(arguments: argparse.Namespace) -> Task:
    base = find_base(str(ROOT / "sample" / "base"))
    if arguments.data == "news":
        files = [ROOT / "sample" / "news" / f"{name}.jsonl" for name in ("train", "dev")]
        train, dev = (read_examples(str(file)).examples for file in files)
    else:
        folder = Path(os.environ["RAYTAG_DATA"]) / "ner" / "wnut17"
        train = read_examples(str(folder / "wnut17train.conll"), "conll").examples[:800]
        dev = read_examples(str(folder / "emerging.dev.conll"), "conll").examples[:300]
    labels = tuple(sorted({e.label for example in train for e in example.entities}))
    tokenizer = load_tokenizer(base.path)
    head: HeadName = arguments.head
    known = [Example(d.id, d.text, tuple(e for e in d.entities if e.label in labels)) for d in dev]
    encode = make_head(head, tokenizer, labels).encode
    return Task(
        base=base,
        tokenizer=tokenizer,
        settings=FinetuneSettings(
            base=base.name,
            train=arguments.data,
            output="nowhere",
            head=head,
            load_in="fp32",
            zero="0",
            lr=1e-3,
            head_lr=5e-3 if head == "tag" else 1e-3,
            epochs=arguments.epochs,
        ),
        labels=labels,
        train=train,
        dev=known,
        rows=[trainer_row(encode(example), head) for example in train],
    )


def time_sides(task: Task, rounds: int) -> dict[str, Any]:
    """Examples per second of each side, in turns."""
    examples = len(task.train) * task.settings.epochs
    speeds: dict[str, list[float]] = {side: [] for side in SIDES}
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    loads = []
    for turn in range(rounds):
        loads.append(os.getloadavg()[0])
        # Each round begins with another side, so that none always follows the same one.
        for side in (*SIDES[turn % 3 :], *SIDES[: turn % 3]):
            trained = train_side(side, task, seed=turn)
            speeds[side].append(examples / trained.seconds)
            cpu[side].append(examples / trained.cpu_seconds)
            del trained
            gc.collect()
        shown = ", ".join(f"{side} {speeds[side][-1]:.1f}" for side in SIDES)
        print(f"round {turn + 1}: {shown} examples/s", file=sys.stderr, flush=True)
    return {
        "epochs_per_round": task.settings.epochs,
        "examples_per_second": speeds,
        "median_examples_per_second": medians(speeds),
        "median_ratio": medians(ratios(speeds)),
        "ratio_per_round": ratios(speeds),
        "examples_per_cpu_second": cpu,
        "median_ratio_of_cpu_seconds": medians(ratios(cpu)),
        "load_average_before_each_round": loads,
    }


def ratios(speeds: dict[str, list[float]]) -> dict[str, list[float]]:
    """How many times as fast we are as each other side, round by round."""
    return {
        side: [ours / theirs for ours, theirs in zip(speeds[OURS], speeds[side], strict=True)]
        for side in (PLAIN, GROUPED)
    }


def medians(values: dict[str, list[float]]) -> dict[str, float]:
    return {side: statistics.median(of_side) for side, of_side in values.items()}


def score_sides(task: Task, seeds: int, known: dict[str, list[float]]) -> dict[str, list[float]]:
    """Dev F1 of each side after all epochs, by seed, those that are known already first."""
    f1s = {side: list(known.get(side, ()))[:seeds] for side in SIDES}
    for seed in range(min(map(len, f1s.values())), seeds):
        for side in SIDES:
            trained = train_side(side, task, seed)
            f1s[side].append(task.dev_f1(trained.model))
    return f1s


def table(found: dict[str, Any], task: Task) -> str:
    lines = [
        f"{task.settings.head} head, {len(task.train)} examples of {task.settings.train}, "
        f"batch {task.settings.batch_size}; dev F1 after {task.settings.epochs} epochs",
        f"{'':18}{'examples/s':>12}{'raytag is':>12}   dev F1, by seed",
    ]
    for side in SIDES:
        ratio = found["median_ratio"].get(side)
        times = f"{ratio:.2f}x" if ratio else ""
        f1s = " ".join(f"{f1:.3f}" for f1 in found["dev_f1"][side])
        median = found["median_examples_per_second"][side]
        lines.append(f"{side:18}{median:12.1f}{times:>12}   {f1s}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", choices=("tag", "generate"), default="tag")
    parser.add_argument("--data", choices=("news", "wnut17"), default="news")
    parser.add_argument("--rounds", type=int, default=7, help="timed turns; 0 keeps those on file")
    parser.add_argument("--timed-epochs", type=int, default=2, help="epochs of a turn")
    parser.add_argument("--seeds", type=int, default=3, help="trainings of each side to score")
    parser.add_argument("--epochs", type=int, default=6, help="epochs of a training to score")
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    transformers.logging.set_verbosity_error()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    task = read_task(arguments)
    results = Path(__file__).parent / "results" / "training_speed.json"
    kept = json.loads(results.read_text()) if results.is_file() else {}
    name = f"{arguments.data}, {arguments.head}, {arguments.threads} threads"
    known: dict[str, list[float]] = {}
    if arguments.rounds:
        # What a process does once (imports, allocations) is done before anything is timed.
        for side in SIDES:
            train_side(side, task.for_epochs(1), 0)
        found = time_sides(task.for_epochs(arguments.timed_epochs), arguments.rounds)
    else:
        found, known = kept[name], kept[name]["dev_f1"]
    found["dev_f1"] = score_sides(task, arguments.seeds, known)
    print(table(found, task))
    results.parent.mkdir(exist_ok=True)
    kept[name] = {
        **found,
        "examples": len(task.train),
        "epochs": arguments.epochs,
        "batch_size": task.settings.batch_size,
        "machine": machine(),
        "threads": arguments.threads,
    }
    results.write_text(json.dumps(kept, indent=2) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
