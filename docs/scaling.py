"""The tables of scaling.md: a model of training and tagging on many GPUs, and what it says of the
runs that were measured.

Bytes follow from the shapes of a base and its adapter and from what DeepSpeed 0.19 does with them;
seconds from those and a machine's data sheet. What benchmarks/scaling.py and
benchmarks/host_deaths.py have counted is read from their results.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, PreTrainedConfig

from raytag.train.memory import laid_out

RESULTS = Path(__file__).resolve().parents[1] / "benchmarks" / "results"
RANK, LABELS = 16, 9

# DeepSpeed's defaults (runtime/zero/config.py), which the project leaves as they are.
PERSISTENT = 100_000
"""Weights of a tensor up to which ZeRO-3 keeps it whole on every worker."""
REUSED = 1_000_000_000
"""Weights used meanwhile up to which ZeRO-3 keeps what it has gathered."""
FETCHED = 50_000_000
"""Weights that one gather brings at most, ahead of their use."""

BUFFER, PART = 4 << 20, 1 << 16
"""Bytes that a tagging actor asks the store for at a time, and that it finds its place by."""
SECOND_LOOK = 10.0
"""Seconds after which Ray counts the hosts again for a group that has not got its workers."""

# Assumed; nothing of it was measured.
COMPUTE_SHARE = 0.4
"""Of the card's dense bf16 peak."""
NETWORK_SHARE = 0.8
"""Of a link's line rate, in large collectives."""
TOKENS = 4096
"""Of one worker's batch: 8 texts of 512 tokens."""
TEXT_TOKENS, TEXT_BYTES = 512, 2048
RESTART = 90.0
"""Seconds to start workers and load a 7B base, and the same for a tagging actor."""
NOTICED = 15.0
"""Seconds until a silent host is missed, with the health checks of operations.md."""
STORE_RATE = 100e6
"""Bytes a second of one stream to the store."""


@dataclass(frozen=True)
class Shape:
    """Sizes of a base's and its adapter's tensors, in weights."""

    base: tuple[int, ...]
    adapter: tuple[int, ...]
    linear: int
    """Weights that each token is multiplied with."""

    @classmethod
    def of(cls, config: PreTrainedConfig) -> "Shape":
        model = laid_out(config)
        layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
        factors = [
            RANK * width for layer in layers for width in (layer.in_features, layer.out_features)
        ]
        hidden = config.get_text_config().hidden_size
        return cls(
            base=tuple(parameter.numel() for parameter in model.parameters()),
            adapter=(*factors, hidden * LABELS, LABELS),
            linear=sum(layer.weight.numel() for layer in layers),
        )


@dataclass(frozen=True)
class Collective:
    """One kind of a step's collectives: ``bytes`` of the whole tensor, in ``count`` calls."""

    verb: str
    bytes: float
    count: int = 1

    def sent(self, workers: int, gloo: bool) -> float:
        """By each worker, around a ring. Gloo reduces everything everywhere and keeps a part."""
        twice = self.verb == "all_reduce" or (gloo and self.verb == "reduce_scatter")
        return self.bytes * (workers - 1) / workers * (2 if twice else 1)


def collectives(shape: Shape, zero: int, width: int) -> Iterator[Collective]:
    """Of a step with one micro-batch; ``width`` is the bytes of a weight."""
    adapter = sum(shape.adapter) * width
    if zero == 2:
        yield Collective("all_reduce", adapter)
        yield Collective("all_gather", adapter, 3)  # a group each: A, B, the head's layer
        return
    large = sum(n for n in (*shape.base, *shape.adapter) if n > PERSISTENT)
    small = sum(n for n in (*shape.base, *shape.adapter) if n <= PERSISTENT)
    again = max(0, large - REUSED // 2)  # the last layers are still there when going back
    gathered = large + again
    yield Collective("all_gather", gathered * width, math.ceil(gathered / FETCHED))
    yield Collective("all_gather", small * width)
    yield Collective("reduce_scatter", adapter)


def sent(shape: Shape, zero: int, width: int, workers: int, gloo: bool = False) -> float:
    """Bytes of each worker in a step."""
    return sum(one.sent(workers, gloo) for one in collectives(shape, zero, width))


# The runs that were measured


def runs(name: str) -> Mapping[str, Any]:
    """Medians by the name of the configuration."""
    return json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["median"]


def measured_shape() -> Shape:
    """As benchmarks/scaling.py makes it, with the tokenizer of the sample."""
    settings = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))["settings"]
    return Shape.of(LlamaConfig(vocab_size=2560, num_attention_heads=8, **settings["base"]))


def row(*cells: object) -> None:
    print("| " + " | ".join(map(str, cells)) + " |")


def against(predicted: float, counted: float, digits: int = 2) -> tuple[str, str, str]:
    return f"{predicted:.{digits}f}", f"{counted:.{digits}f}", f"{counted / predicted:.2f}"


def training_bytes(shape: Shape) -> None:
    said = runs("scaling")
    for zero in (2, 3):
        for workers in (2, 4):
            counted = said[f"ZeRO-{zero}, workers {workers}"]["bytes_per_step_and_worker"]["sent"]
            predicted = sent(shape, zero, 4, workers, gloo=True)
            row(f"ZeRO-{zero}, {workers} workers", *against(predicted / 1e6, counted / 1e6))


def training_seconds(shape: Shape, cores: int) -> None:
    """One worker's step, longer where workers share cores, and gloo's time for the bytes."""
    said = runs("scaling")
    for zero in (2, 3):
        alone = said[f"ZeRO-{zero}, workers 1"]["step_seconds"]
        for workers in (2, 4):
            gloo = said[f"collectives, workers {workers}"]
            moving = sum(
                one.bytes / 1e6 * gloo[one.verb]["seconds_per_megabyte"]
                for one in collectives(shape, zero, 4)
            )
            predicted = alone * max(1.0, workers / cores) + moving
            counted = said[f"ZeRO-{zero}, workers {workers}"]["step_seconds"]
            row(f"ZeRO-{zero}, {workers} workers", *against(predicted, counted))


def store_bytes() -> None:
    """Of a whole tagging job: models, one reading to count rows, and for each shard the file from
    the shard on, for none of these is as long as a buffer."""
    said = runs("scaling")
    for workers in (1, 2, 4):
        run = said[f"tagging, workers {workers}"]
        size, shards = run["corpus_bytes"], run["shards"]
        assert size <= BUFFER
        predicted = workers * run["model_bytes"] + size + shards * (size + PART) / 2
        row(f"{workers} actors", *against(predicted / 1e6, run["store_bytes"]["read"] / 1e6, 1))


def death_seconds() -> None:
    """A pause of training: until it is noticed, Ray's second look, and what a start takes."""
    said, calm = runs("host_deaths"), runs("scaling")["ZeRO-2, workers 1"]["phase_seconds"]
    start = sum(calm[part] for part in ("schedule workers", "load base", "prepare"))
    for how in ("killed", "cut"):
        run = said[f"training, {how}"]
        # A host that is missed only when it has been silent is no longer there to be counted.
        look = SECOND_LOOK if how == "killed" else 0.0
        predicted = run["unnoticed_seconds"] + look + start
        row(f"training, host {how}: pause", *against(predicted, run["still_seconds"], 1))
        row(
            f"training, host {how}: pause when one joins",
            *against(start, run["join"]["still_seconds"], 1),
        )
        again = run["steps_again"] * run["step_seconds_after"]
        row(f"training, host {how}: steps again", *against(again, run["seconds_again"], 1))


# 7B


@dataclass(frozen=True)
class Machine:
    """By data sheet: bytes a second in one direction, operations a second."""

    name: str
    gpus: int
    peak: float
    link: float
    """Between a GPU and the others of its machine."""
    network: float
    """Of the machine."""
    hop: float
    """Seconds from a GPU to the next around a ring, assumed."""


P5 = Machine("p5.48xlarge, H100", 8, 989e12, 450e9, 400e9, 10e-6)
G6 = Machine("g6.12xlarge, L4", 4, 121e12, 32e9, 5e9, 20e-6)
SEVEN = LlamaConfig(hidden_size=4096, intermediate_size=11_008, num_hidden_layers=32)


def compute_seconds(shape: Shape, machine: Machine) -> float:
    """Forward, forward again for the checkpointed activations, and back to them: no gradient of
    the base's own weights is needed."""
    return 6 * shape.linear * TOKENS / (COMPUTE_SHARE * machine.peak)


def moving_seconds(shape: Shape, machine: Machine, zero: int, gpus: int) -> float:
    """Around rings that pass each machine's network once."""
    rate = NETWORK_SHARE * (
        machine.link if gpus <= machine.gpus else min(machine.link, machine.network)
    )
    total = 0.0
    for one in collectives(shape, zero, 2):
        hops = (gpus - 1) * (2 if one.verb == "all_reduce" else 1)
        total += one.sent(gpus, gloo=False) / rate + one.count * hops * machine.hop
    return total


def training_table(shape: Shape) -> None:
    for machine in (G6, P5):
        compute = compute_seconds(shape, machine)
        for zero in (2, 3):
            for gpus in (8, 64, 512):
                moving = moving_seconds(shape, machine, zero, gpus)
                row(
                    machine.name,
                    f"ZeRO-{zero}",
                    gpus,
                    f"{sent(shape, zero, 2, gpus) / 1e9:.2f}",
                    f"{compute:.2f}",
                    f"{moving:.2f}",
                    f"{8 * gpus / (compute + moving):,.0f}",
                    f"{compute / (compute + moving):.0%}",
                    f"{min(1.0, compute / max(compute, moving)):.0%}",
                )


def tagging_table(shape: Shape) -> None:
    said = runs("scaling")["tagging, workers 1"]
    text = said["corpus_bytes"] / (1600)
    written = said["bytes_per_document"]["of_results"] / text * TEXT_BYTES
    shard = 4e6
    documents = shard / TEXT_BYTES
    read = TEXT_BYTES + math.ceil((shard + PART / 2) / BUFFER) * BUFFER / documents
    requests = said["requests_per_shard"]
    for machine in (G6, P5):
        speed = COMPUTE_SHARE * machine.peak / (2 * shape.linear * TEXT_TOKENS)
        for gpus in (8, 64, 512):
            rate = speed * gpus
            row(
                machine.name,
                gpus,
                f"{rate:,.0f}",
                f"{rate * read / 1e6:,.1f}",
                f"{rate * written / 1e6:,.1f}",
                f"{rate / documents:.2f}",
                f"{rate / documents * requests['GET']:.0f}",
                f"{rate / documents * requests['PUT']:.0f}",
                f"{1e9 / rate / 3600:,.1f}",
            )


def death_table(shape: Shape) -> None:
    """Training's share of time that counts, with the interval between checkpoints that is best for
    that many deaths (Young's), and tagging's."""
    checkpoint = 4 * sum(shape.adapter) * 4 / STORE_RATE
    for hours in (6300, 24, 6):
        for gpus in (8, 64, 512):
            hosts = gpus / G6.gpus
            between = hours * 3600 / hosts
            interval = math.sqrt(2 * checkpoint * between)
            # A death, and the host that comes in its place: each a pause, and half an interval.
            lost = NOTICED + 2 * RESTART + interval
            training = 1 / (1 + checkpoint / interval + lost / between)
            speed = COMPUTE_SHARE * G6.peak / (2 * shape.linear * TEXT_TOKENS)
            shard = 4e6 / TEXT_BYTES / speed
            tagging = 1 / (1 + (shard / 2 + RESTART) / (hours * 3600))
            row(
                f"1 in {hours:,} h",
                gpus,
                f"{between / 3600:.2f}",
                f"{interval:,.0f}",
                f"{training:.1%}",
                f"{tagging:.2%}",
            )


def main() -> None:
    small, seven = measured_shape(), Shape.of(SEVEN)
    machine = json.loads((RESULTS / "scaling.json").read_text(encoding="utf-8"))["machine"]
    training_bytes(small)
    training_seconds(small, machine["cores"])
    store_bytes()
    death_seconds()
    training_table(seven)
    tagging_table(seven)
    death_table(seven)


if __name__ == "__main__":
    main()
