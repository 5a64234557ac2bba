"""One fine-tuning job from the driver's side: data in, workers through, adapter and report out.

Knows the order of things and the layout of the output; training itself is the workers'.

    OUTPUT/run.json          whose output this is: the fingerprint of settings and data
          /data/             the splits as they were used, and rows that were set aside
          /checkpoints/      of training, until the job is done
          /predictions/      entities found in dev, test and joined test documents
          /tensorboard/      event files
          /adapter/          the result
          /report/           report.html for people, report.json for programs
"""

import json
import os
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import psutil
import ray
from ray.train import FailureConfig, RunConfig, ScalingConfig, TrainingFailedError
from ray.train.torch import TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raytag import storage
from raytag.cluster import check_output, check_reach, connect, nodes
from raytag.errors import RaytagError, ResourceError, SettingsError
from raytag.model.adapter import output_names
from raytag.model.base import Base, find_base, head_config
from raytag.model.files import find_fingerprint
from raytag.registry.records import Version
from raytag.report.content import from_json
from raytag.train.data import FREE, TrainingData, gather, settings_fingerprint
from raytag.train.follow import Follower, Mailbox, check_mlflow
from raytag.train.lineage import begun_from, read_parent, register
from raytag.train.memory import GIB, MemoryNeed, memory_need
from raytag.train.publish import Published, publish
from raytag.train.settings import FinetuneSettings
from raytag.train.worker import Outcome, TrainJob, train_worker

START_SOON = ("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "10")
"""Of an elastic group that has not got its workers by then, Ray counts the hosts again. It starts
at once after a death, before the host is missed, and would wait a minute for the one that died."""


def finetune(settings: FinetuneSettings) -> Published | None:
    """Run the job on the Ray cluster at hand; None where there was nothing left to do.

    Raises RaytagError, with one line for the user, for whatever they can mend.
    """
    started = time.time()
    check_mlflow(settings)
    check_output(settings.output)
    base = find_base(settings.base, settings.revision, weights=False)
    head_config(base, settings.head, ())
    data = gather(settings)
    parent = read_parent(settings)
    for note in data.notes:
        print(note)
    connect("finetune.py")
    check_reach(settings.output)
    device, zero, need, available = _preflight(settings, base, data)
    print(_plan_line(settings, device, zero))
    for line in need.lines():
        print(f"  {line}")
    if available is not None:
        print(f"  {available / GIB:8.2f} GiB  there")
    if settings.dry_run:
        return None
    weights = _fingerprint(base, device)
    start = begun_from(settings, weights, parent)
    run = settings_fingerprint(asdict(settings), data.fingerprint(), start)
    if not _claim(settings, run):
        _say_version(register(settings, data, run, parent))
        return None
    data.write(storage.join(settings.output, "data"))
    job = TrainJob(
        settings=settings,
        base=base,
        zero=zero,
        labels=data.labels,
        train=data.train,
        dev=data.dev,
        test=data.test,
        window=data.window,
        run=run,
        base_fingerprint=weights,
        parent=parent,
    )
    driver = {
        "start driver": started - psutil.Process().create_time(),
        "read data and connect": time.time() - started,
    }
    outcome = _train(job, device)
    published = publish(settings, data, outcome, driver)
    _say_version(register(settings, data, run, parent))
    storage.remove_folder(storage.join(settings.output, "checkpoints"))
    return published


def _fingerprint(base: Base, device: str) -> str:
    """Of a base's files. What is not in a folder is read where workers will need it anyway: the
    driver's host may have no room for it, and no other use."""
    if base.revision is None:
        return base.fingerprint()
    # The least that keeps it away from a head that offers nothing.
    placed: Any = {"num_gpus": 0.001} if device == "gpu" else {"num_cpus": 1}
    task = ray.remote(**placed)(find_fingerprint)
    try:
        return str(ray.get(task.remote(base.name, base.revision)))
    except ray.exceptions.RayTaskError as exc:
        if isinstance(exc.cause, RaytagError):
            raise exc.cause from exc
        raise


def _say_version(version: Version | None) -> None:
    if version is not None:
        print(f"version: {version}")


def _claim(settings: FinetuneSettings, run: str) -> bool:
    """Make the output this run's own. False where this very run has already finished there.

    Raises SettingsError where it holds another run, naming what differs, or files that no run
    has put there.
    """
    output = settings.output
    record = storage.join(output, "run.json")
    mine = {"run": run, "settings": asdict(settings)}
    text = json.dumps(mine, indent=2).encode()
    if not storage.exists(record) and storage.list_files(output):
        raise SettingsError(f"{output} holds files of something else; name an empty folder")
    if storage.create(record, text):
        return True
    try:
        theirs = json.loads(storage.read_bytes(record))
        same, settled = theirs["run"] == run, theirs["settings"]
    except (ValueError, KeyError, TypeError) as exc:
        raise SettingsError(f"{record} is none of ours; name an empty folder") from exc
    done = storage.join(output, "report", "report.json")
    if same and not storage.exists(done):
        print(f"going on with the run in {output}")
        return True
    if settings.overwrite:
        for part in ("adapter", "report", "checkpoints", "predictions", "tensorboard"):
            storage.remove_folder(storage.join(output, part))
        storage.write_bytes(record, text)
        return True
    if not same:
        raise SettingsError(
            f"{output} holds another run ({_difference(settled, mine)}); "
            "give another --output, or --overwrite true"
        )
    report = from_json(storage.read_bytes(done).decode())
    print(f"{output} is finished already: {report.summary}")
    storage.remove_folder(storage.join(output, "checkpoints"))
    return False


def _difference(theirs: Mapping[str, Any], mine: Mapping[str, Any]) -> str:
    ours = json.loads(json.dumps(mine["settings"]))
    keys = [key for key in ours if ours[key] != theirs.get(key) and key not in FREE]
    return ", ".join(f"{key}: {theirs.get(key)} there, {ours[key]} here" for key in keys) or (
        "the same settings on other data or another base"
    )


def _preflight(
    settings: FinetuneSettings, base: Base, data: TrainingData
) -> tuple[str, int, MemoryNeed, float | None]:
    """(device, ZeRO stage, memory each worker needs, bytes it can have if that is known).

    Raises ResourceError where the cluster has too few workers' worth or too little memory, and
    SettingsError where the precision that was found does not go with the stage.
    """
    cluster = ray.cluster_resources()
    device = settings.device
    if device == "auto":
        device = "gpu" if cluster.get("GPU", 0) >= 1 else "cpu"
    fewest, most = settings.worker_range
    there = int(cluster.get("GPU" if device == "gpu" else "CPU", 0))
    if there < fewest and not settings.wait_for_nodes:
        raise ResourceError(
            f"{fewest} workers asked for, and the cluster has {there} {device.upper()}s; ask for "
            "fewer with --workers, or let an autoscaler bring them with --wait_for_nodes true"
        )
    load_in = settings.load_in
    if load_in == "auto":
        load_in = "bf16" if device == "gpu" else "fp32"
    if settings.zero == "0" and load_in != "fp32":
        raise SettingsError(f"--zero 0 keeps no fp32 master weights, which {load_in} needs")
    config = head_config(base, settings.head, output_names(settings.head, data.labels))
    stages = [int(settings.zero)] if settings.zero != "auto" else _stages(fewest, load_in)
    available = _memory_there(device, most)
    host = _host_memory(device, most)
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
            return device, zero, need, available
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


def _stages(workers: int, load_in: str) -> list[int]:
    """ZeRO stages to try in turn: the cheapest first, partitioning the base last."""
    first = 0 if workers == 1 and load_in == "fp32" else 2
    return [first, 3] if workers > 1 and load_in not in ("8bit", "4bit") else [first]


def _memory_there(device: str, workers: int) -> float | None:
    """Bytes one worker can have; None where no such node is up, or free, to ask."""
    if device == "gpu":
        if not any(node.get("GPU", 0) >= 1 for node in nodes()):
            return None
        asked = ray.remote(num_gpus=1)(_gpu_memory).remote()
        try:
            return float(ray.get(asked, timeout=60))
        except ray.exceptions.GetTimeoutError:
            ray.cancel(asked, force=True)
            return None
    return _host_memory(device, workers)


def _host_memory(device: str, workers: int) -> float | None:
    """Bytes of the CPU's memory for each worker of a node; None where no such node is up."""
    alive = nodes()
    if device == "gpu":
        shares = [
            node.get("memory", 0.0) / min(workers, node["GPU"])
            for node in alive
            if node.get("GPU", 0) >= 1
        ]
        return max(shares, default=None)
    largest = max(node.get("memory", 0.0) for node in alive)
    return float(largest / max(1, -(-workers // len(alive))))


def _gpu_memory() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory


def _plan_line(settings: FinetuneSettings, device: str, zero: int) -> str:
    low, high = settings.worker_range
    workers = str(low) if low == high else f"{low} to {high}"
    return f"plan: {workers} {device.upper()} worker(s), ZeRO-{zero}, {settings.head} head; needs"


def _train(job: TrainJob, device: str) -> Outcome:
    """Run the worker group to its end.

    Raises the RaytagError a worker sent, where that is why there is no outcome.
    """
    settings = job.settings
    # On this node: with another's death the messages would go, and the job with them.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    placed: Any = {"num_cpus": 0, "scheduling_strategy": here}
    mailbox: Any = ray.remote(**placed)(Mailbox).remote()
    follower = Follower(mailbox, settings, job.run)
    low, high = settings.worker_range
    workers: Any = low if low == high else (low, high)
    each = {"CPU": settings.cpus, **({"GPU": 1} if device == "gpu" else {})}
    if low < high:
        os.environ.setdefault(*START_SOON)
    failure: Exception | None = None
    follower.start()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": ray.put(job), "mailbox": mailbox, "started": time.time()},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=device == "gpu", resources_per_worker=each
            ),
            run_config=RunConfig(
                name="raytag",
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=settings.max_failures),
            ),
        )
        try:
            trainer.fit()
        except TrainingFailedError as exc:
            failure = exc
        except SystemExit as exc:
            # Ctrl-C, as Ray's own handler ends it once the workers are gone.
            raise KeyboardInterrupt from exc
        finally:
            follower.finish()
    if follower.outcome is not None:
        return follower.outcome
    if follower.refusal is not None:
        raise follower.refusal
    if failure is not None and "out of memory" in str(failure).lower():
        raise ResourceError(
            "a worker ran out of memory; lower --batch_tokens, set --gradient_checkpointing true, "
            "or load the base in 8bit or 4bit: the same command then goes on"
        ) from failure
    raise failure or RuntimeError("training ended without an outcome")
