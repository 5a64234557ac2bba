"""Eight adapters trained together on one base, beside one after another: examples per second.

    python benchmarks/pack_speed.py                  # tag head
    python benchmarks/pack_speed.py --head generate

Eight tenants of 100 to 400 examples each, of both shipped domains and different seeds, on the
shipped base, the same settings and steps on every side, one process on one thread:

    packed        all eight by one train_pack
    one by one    each by a train_pack of its own, on the same resident base
    loop          each by the loop of a job of its own under ZeRO-0, without Ray around it

The sides take turns. Two rates are told: of the steps alone, and of the whole call, from examples
to the adapter's files (for the loop: to its weights, the base loaded each time, as a job must).
Peak memory is that of a process that does nothing else.
"""

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import transformers

from machine import machine
from raytag.model.adapter import context, make_head, output_names, token_limit
from raytag.model.base import find_base, load_model, load_tokenizer
from raytag.model.lora import add_adapter, parameter_groups
from raytag.model.packed import PackedModel
from raytag.model.settings import HeadName
from raytag.text.check import check_data
from raytag.text.sample import corpus
from raytag.text.spans import Entity, Example
from raytag.train.data import TrainingData
from raytag.train.loop import Loop
from raytag.train.pack import Member, train_pack
from raytag.train.settings import FinetuneSettings
from raytag.train.worker import Outcome

BASE = Path(__file__).resolve().parent.parent / "sample" / "base"
SIZES = (100, 100, 120, 150, 150, 200, 250, 400)
PACKED, APART, LOOP = SIDES = ("packed", "one by one", "loop")


@dataclass(frozen=True)
class Turn:
    """What training all members on one side took."""

    stepping: float
    whole: float
    losses: list[float]
    """Of each member's last step."""


def tenants(head: HeadName, batch_size: int, epochs: int) -> list[Member]:
    members = []
    for seed, size in enumerate(SIZES):
        domain = ("news", "biomedical")[seed % 2]
        rows = [row for s in (seed, seed + 100) for row in corpus(domain, "train", s)][:size]
        train = [
            Example(f"{i}", row["text"], tuple(Entity(**entity) for entity in row["entities"]))
            for i, row in enumerate(rows)
        ]
        settings = FinetuneSettings(
            base=str(BASE),
            train=domain,
            output="nowhere",
            head=head,
            load_in="fp32",
            lr=3e-4,
            seed=seed,
            batch_size=batch_size,
            epochs=epochs,
        )
        # Without dev and test nothing but training is timed.
        check = check_data(train, [], [])
        data = TrainingData(train=train, dev=(), test=(), rejected=(), check=check, notes=())
        members.append(Member(settings=settings, data=data))
    return members


def train_packed(packed: PackedModel, groups: Sequence[Sequence[Member]], tokens: int) -> Turn:
    begun = time.perf_counter()
    results = [r for group in groups for r in train_pack(packed, group, pass_tokens=tokens)]
    whole = time.perf_counter() - begun
    outcomes = []
    for result in results:
        if not isinstance(result, Outcome):
            raise result
        outcomes.append(result.progress)
    stepping = sum(progress.stepping for progress in outcomes)
    return Turn(stepping, whole, [progress.history[-1]["loss"] for progress in outcomes])


def train_loops(members: Sequence[Member]) -> Turn:
    begun, stepping, losses = time.perf_counter(), 0.0, []
    for member in members:
        settings, labels = member.settings, member.data.labels
        base = find_base(settings.base)
        torch.manual_seed(settings.seed)
        model = load_model(base, settings.head, output_names(settings.head, labels), "fp32")
        adapted = add_adapter(model, settings.head, settings.lora)
        head = make_head(settings.head, load_tokenizer(base.path), labels, context=context(model))
        limit = token_limit(model)
        groups = parameter_groups(adapted, settings.lora_plus)
        loop = Loop(adapted, head, member.data.train, settings, groups=groups, zero=0, limit=limit)
        since = time.perf_counter()
        records = [loop.take(step) for step in range(loop.plan.total_steps)]
        stepping += time.perf_counter() - since
        losses.append(records[-1]["loss"])
        loop.engine.weights()
        loop.engine.close()
    return Turn(stepping, time.perf_counter() - begun, losses)


def train_side(side: str, packed: PackedModel | None, members: list[Member], tokens: int) -> Turn:
    if side == LOOP:
        return train_loops(members)
    packed = packed or PackedModel(find_base(str(BASE)), members[0].settings.head)
    groups = [members] if side == PACKED else [[member] for member in members]
    return train_packed(packed, groups, tokens)


def peak_memory_mib(side: str) -> float:
    """Of a process that trains this side alone, told by itself."""
    command = [sys.executable, *sys.argv, "--peak-of", side]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(done.stdout.splitlines()[-1])


def measure(members: list[Member], rounds: int, tokens: int) -> dict[str, Any]:
    packed = PackedModel(find_base(str(BASE)), members[0].settings.head)
    # What a process does once is done before anything is timed.
    few = [replace(m, data=replace(m.data, train=m.data.train[:16])) for m in members]
    for side in SIDES:
        train_side(side, packed, few, tokens)
    examples = sum(len(m.data.train) * m.settings.epochs for m in members)
    turns: dict[str, list[Turn]] = {side: [] for side in SIDES}
    loads = []
    for turn in range(rounds):
        loads.append(os.getloadavg()[0])
        for side in (*SIDES[turn % 3 :], *SIDES[: turn % 3]):
            turns[side].append(train_side(side, packed, members, tokens))
            gc.collect()
        shown = ", ".join(f"{s} {examples / turns[s][-1].stepping:.1f}" for s in SIDES)
        print(f"round {turn + 1}: {shown} examples/s", file=sys.stderr, flush=True)
    found: dict[str, Any] = {"examples": examples, "load_average_before_each_round": loads}
    for what in ("stepping", "whole"):
        rates = {s: [examples / getattr(turn, what) for turn in turns[s]] for s in SIDES}
        found[f"examples_per_second_{what}"] = rates
        found[f"median_{what}"] = {s: statistics.median(rates[s]) for s in SIDES}
        found[f"median_ratio_{what}"] = {
            s: statistics.median(a / b for a, b in zip(rates[PACKED], rates[s], strict=True))
            for s in (APART, LOOP)
        }
    found["last_losses"] = {side: turns[side][-1].losses for side in SIDES}
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--head", choices=("tag", "generate"), default="tag")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=1, help="of a turn")
    parser.add_argument("--batch-size", type=int, default=8, help="of each adapter")
    parser.add_argument("--pass-tokens", type=int, default=4096)
    parser.add_argument("--peak-of", choices=SIDES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    os.environ["LOCAL_RANK"] = "0"
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    members = tenants(arguments.head, arguments.batch_size, arguments.epochs)
    if arguments.peak_of:
        train_side(arguments.peak_of, None, members, arguments.pass_tokens)
        # Not ru_maxrss: a process that is started inherits that of the one that starts it.
        status = Path("/proc/self/status").read_text()
        print(int(status.partition("VmHWM:")[2].split()[0]) / 1024)
        return
    found = measure(members, arguments.rounds, arguments.pass_tokens)
    found["peak_memory_mib"] = {side: round(peak_memory_mib(side)) for side in SIDES}
    for side in SIDES:
        ratio = found["median_ratio_stepping"].get(side)
        print(
            f"{side:12}{found['median_stepping'][side]:8.1f} examples/s"
            f"{found['median_whole'][side]:8.1f} in all"
            f"{found['peak_memory_mib'][side]:8} MiB"
            + (f"   packed is {ratio:.2f}x" if ratio else "")
        )
    results = Path(__file__).parent / "results" / "pack_speed.json"
    kept = json.loads(results.read_text()) if results.is_file() else {}
    kept[f"{arguments.head}, batch {arguments.batch_size}"] = {
        **found,
        "adapters": len(SIZES),
        "epochs": arguments.epochs,
        "pass_tokens": arguments.pass_tokens,
        "machine": machine(),
        "threads": 1,
    }
    results.write_text(json.dumps(kept, indent=2) + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
