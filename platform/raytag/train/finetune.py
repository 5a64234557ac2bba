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
from raytag.placement import Seat, find_seat
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
    fewest, _ = settings.worker_range
    seat = find_seat(settings, fewest, "worker", dry=settings.dry_run).of_one_kind()
    zero, need, available = _preflight(settings, seat, base, data)
    print(_plan_line(settings, seat, zero))
    for line in need.lines():
        print(f"  {line}")
    if available is not None:
        print(f"  {available / GIB:8.2f} GiB  there")
    if settings.dry_run:
        return None
    weights = _fingerprint(base, seat)
    start = begun_from(settings, weights, parent)
    run = settings_fingerprint(asdict(settings), data.fingerprint(), start)
    if _finished(settings, run):
        _say_version(register(settings, data, run, parent))
        return None
    _claim(settings, run)
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
    outcome = _train(job, seat)
    published = publish(settings, data, outcome, driver)
    _say_version(register(settings, data, run, parent))
    storage.remove_folder(storage.join(settings.output, "checkpoints"))
    return published


def _fingerprint(base: Base, seat: Seat) -> str:
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


def _say_version(version: Version | None) -> None:
    if version is not None:
        print(f"version: {version}")


def _finished(settings: FinetuneSettings, run: str) -> bool:
    """Whether this very run has finished in the output, and is not to be replaced; says so.

    Raises SettingsError where the output holds another run, naming what differs, or files that no
    run has put there.
    """
    output = settings.output
    theirs = _recorded(output)
    if not theirs and storage.list_files(output):
        raise SettingsError(f"{output} holds files of something else; name an empty folder")
    if not theirs or settings.overwrite:
        return False
    if theirs["run"] != run:
        raise _another_run(settings, theirs)
    done = storage.join(output, "report", "report.json")
    if not storage.exists(done):
        return False
    report = from_json(storage.read_bytes(done).decode())
    print(f"{output} is finished already: {report.summary}")
    storage.remove_folder(storage.join(output, "checkpoints"))
    return True


def _claim(settings: FinetuneSettings, run: str) -> None:
    """Make the output this run's own. Raises SettingsError where another run was faster."""
    output = settings.output
    record = storage.join(output, "run.json")
    text = json.dumps({"run": run, "settings": asdict(settings)}, indent=2).encode()
    if storage.create(record, text):
        return
    theirs = _recorded(output)
    done = storage.exists(storage.join(output, "report", "report.json"))
    if theirs["run"] == run and not (done and settings.overwrite):
        print(f"going on with the run in {output}")
    elif settings.overwrite:
        for part in ("adapter", "report", "checkpoints", "predictions", "tensorboard"):
            storage.remove_folder(storage.join(output, part))
        storage.write_bytes(record, text)
    else:
        raise _another_run(settings, theirs)


def _recorded(output: str) -> Mapping[str, Any]:
    """Whose output it is; nothing where no run has put anything there. Raises SettingsError."""
    record = storage.join(output, "run.json")
    if not storage.exists(record):
        return {}
    try:
        found = json.loads(storage.read_bytes(record))
        return {"run": found["run"], "settings": found["settings"]}
    except (ValueError, KeyError, TypeError) as exc:
        raise SettingsError(f"{record} is none of ours; name an empty folder") from exc


def _another_run(settings: FinetuneSettings, theirs: Mapping[str, Any]) -> SettingsError:
    there, here = theirs["settings"], json.loads(json.dumps(asdict(settings)))
    keys = [key for key in here if here[key] != there.get(key) and key not in FREE]
    difference = ", ".join(f"{key}: {there.get(key)} there, {here[key]} here" for key in keys)
    return SettingsError(
        f"{settings.output} holds another run "
        f"({difference or 'the same settings on other data or another base'}); "
        "give another --output, or --overwrite true"
    )


def _preflight(
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


def _plan_line(settings: FinetuneSettings, seat: Seat, zero: int) -> str:
    low, high = settings.worker_range
    workers = str(low) if low == high else f"{low} to {high}"
    place = (seat.kind or "GPU") if seat.gpu else "CPU"
    return f"plan: {workers} {place} worker(s), ZeRO-{zero}, {settings.head} head; needs"


def scaling_config(settings: FinetuneSettings, seat: Seat) -> ScalingConfig:
    """As many workers as asked for, each on a seat."""
    low, high = settings.worker_range
    workers: Any = low if low == high else (low, high)
    return ScalingConfig(num_workers=workers, use_gpu=seat.gpu, resources_per_worker=seat.resources)


def _train(job: TrainJob, seat: Seat) -> Outcome:
    """Run the worker group to its end.

    Raises the RaytagError a worker sent, where that is why there is no outcome.
    """
    settings = job.settings
    # On this node: with another's death the messages would go, and the job with them.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    placed: Any = {"num_cpus": 0, "scheduling_strategy": here}
    mailbox: Any = ray.remote(**placed)(Mailbox).remote()
    follower = Follower(mailbox, settings, job.run)
    scaling = scaling_config(settings, seat)
    if isinstance(scaling.num_workers, tuple):
        os.environ.setdefault(*START_SOON)
    failure: Exception | None = None
    follower.start()
    with tempfile.TemporaryDirectory() as scratch:
        trainer = TorchTrainer(
            train_worker,
            train_loop_config={"job": ray.put(job), "mailbox": mailbox, "started": time.time()},
            scaling_config=scaling,
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
