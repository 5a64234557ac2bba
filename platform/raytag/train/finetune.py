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
from raytag.cluster import check_output, check_reach, connect
from raytag.errors import ResourceError, SettingsError
from raytag.model.base import find_base, head_config
from raytag.placement import Seat, find_seat
from raytag.registry.records import Version
from raytag.report.content import from_json
from raytag.train.advice import advised
from raytag.train.attempt import attempt
from raytag.train.data import FREE, gather, settings_fingerprint
from raytag.train.follow import Follower, Mailbox, check_mlflow
from raytag.train.lineage import begun_from, read_parent, register
from raytag.train.memory import GIB
from raytag.train.preflight import base_fingerprint, plan_line, preflight
from raytag.train.publish import Published, publish
from raytag.train.settings import FinetuneSettings
from raytag.train.worker import Outcome, TrainJob

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
    settings = advised(settings, len(data.train), base)
    parent = read_parent(settings)
    for note in data.notes:
        print(note)
    connect("finetune.py")
    check_reach(settings.output)
    fewest, _ = settings.worker_range
    seat = find_seat(settings, fewest, "worker", dry=settings.dry_run).of_one_kind()
    zero, need, available = preflight(settings, seat, base, data)
    print(plan_line(settings, seat, zero))
    for line in need.lines():
        print(f"  {line}")
    if available is not None:
        print(f"  {available / GIB:8.2f} GiB  there")
    if settings.dry_run:
        return None
    weights = base_fingerprint(base, seat)
    start = begun_from(settings, weights, parent)
    run = settings_fingerprint(asdict(settings), data.fingerprint(), start)
    if _finished(settings, run):
        _say_version(register(settings, data, run, parent))
        return None
    _claim(settings, run)
    data.write(storage.join(settings.output, "data"))
    job = TrainJob(
        settings=settings,
        data=data,
        base=base,
        zero=zero,
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
            attempt,
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
