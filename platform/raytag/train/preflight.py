"""What is found out on the cluster before a job begins: which base, ZeRO stage, memory.

Knows the cluster's hosts as Ray names them and the arithmetic of memory.py; loads no model.
"""

import ray

from raytag.cluster import nodes
from raytag.errors import RaytagError, ResourceError, SettingsError
from raytag.model.adapter import output_names
from raytag.model.base import Base, head_config
from raytag.model.files import find_fingerprint
from raytag.placement import Seat
from raytag.train.data import TrainingData
from raytag.train.memory import GIB, MemoryNeed, memory_need
from raytag.train.settings import FinetuneSettings


def preflight(
    settings: FinetuneSettings, seat: Seat, base: Base, data: TrainingData
) -> tuple[int, MemoryNeed, float | None]:
    """(ZeRO stage, memory each worker needs, bytes it can have if that is known).

    Raises ResourceError where the nodes have too little memory, and SettingsError where the
    precision that was found does not go with the stage.
    """
    fewest, most = settings.worker_range
    load_in = settings.load_in
    if load_in == "auto":
        load_in = "bf16" if seat.gpu else "fp32"
    if settings.zero == "0" and load_in != "fp32":
        raise SettingsError(f"--zero 0 keeps no fp32 master weights, which {load_in} needs")
    config = head_config(base, settings.head, output_names(settings.head, data.labels))
    stages = [int(settings.zero)] if settings.zero != "auto" else _stages(fewest, load_in)
    available = _memory_there(seat, most)
    host = _host_memory(seat, most)
    short: list[MemoryNeed] = []
    for zero in stages:
        need = memory_need(
            config,
            load_in=load_in,
            lora=settings.lora,
            zero=zero,
            workers=fewest,
            offload=settings.offload,
            batch_tokens=settings.batch_tokens,
            # A token is a character at least, but for scripts that take bytes.
            longest=data.window,
            gradient_checkpointing=settings.gradient_checkpointing,
            generates=settings.head == "generate",
        )
        if (available is None or need.total <= available) and (
            host is None or need.loading <= host
        ):
            return zero, need, available
        short.append(need)
    least = min(short, key=lambda need: need.total)
    if available is not None and least.total > available:
        raise ResourceError(
            f"each worker needs about {least.total / GIB:.1f} GiB and has "
            f"{available / GIB:.1f} GiB: lower --batch_tokens, set --gradient_checkpointing true, "
            "load the base in 8bit or 4bit, or use more --workers with --zero 3"
        )
    raise ResourceError(
        f"ZeRO-3 loads the base on the CPU first, {least.loading / GIB:.1f} GiB for each worker, "
        f"and a node has {(host or 0) / GIB:.1f} GiB for each: use nodes with more memory, or "
        "load the base in 8bit or 4bit with --zero 2"
    )


def base_fingerprint(base: Base, seat: Seat) -> str:
    """Of a base's files. What is not in a folder is read where workers will need it anyway: the
    driver's host may have no room for it, and no other use."""
    if base.revision is None:
        return base.fingerprint()
    # The least that keeps it away from a head that offers nothing.
    placed = seat.options | ({"num_cpus": 0, "num_gpus": 0.001} if seat.gpu else {"num_cpus": 1})
    task = ray.remote(**placed)(find_fingerprint)
    try:
        return str(ray.get(task.remote(base.name, base.revision)))
    except ray.exceptions.RayTaskError as exc:
        if isinstance(exc.cause, RaytagError):
            raise exc.cause from exc
        raise


def _stages(workers: int, load_in: str) -> list[int]:
    """ZeRO stages to try in turn: the cheapest first, partitioning the base last."""
    first = 0 if workers == 1 and load_in == "fp32" else 2
    return [first, 3] if workers > 1 and load_in not in ("8bit", "4bit") else [first]


def _memory_there(seat: Seat, workers: int) -> float | None:
    """Bytes one worker can have; None where no such node is up, or free, to ask."""
    if seat.gpu:
        if not seat.room():
            return None
        asked = ray.remote(**{**seat.options, "num_cpus": 0})(_gpu_memory).remote()
        try:
            return float(ray.get(asked, timeout=60))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(asked, force=True)
            return None
    return _host_memory(seat, workers)


def _host_memory(seat: Seat, workers: int) -> float | None:
    """Bytes of the CPU's memory for each worker of a node; None where no such node is up."""
    if seat.gpu:
        shares = [
            node.get("memory", 0.0) / min(workers, node["GPU"])
            for node in nodes()
            if seat.fits(node)
        ]
        return max(shares, default=None)
    alive = nodes()
    largest = max(node.get("memory", 0.0) for node in alive)
    return float(largest / max(1, -(-workers // len(alive))))


def _gpu_memory() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def plan_line(settings: FinetuneSettings, seat: Seat, zero: int) -> str:
    low, high = settings.worker_range
    workers = str(low) if low == high else f"{low} to {high}"
    place = (seat.kind or "GPU") if seat.gpu else "CPU"
    return f"plan: {workers} {place} worker(s), ZeRO-{zero}, {settings.head} head; needs"
