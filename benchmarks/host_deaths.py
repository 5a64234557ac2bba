"""Seconds that a host's death costs, in training and in tagging.

    python benchmarks/host_deaths.py --model FOLDER             goes on where it stopped
    python benchmarks/host_deaths.py --model FOLDER --quick     one death of each kind, not kept

FOLDER is a merged `tag` model of the news sample, as jobs/merge.py makes it. Hosts are network
namespaces of this machine with a worker of one thread each. One of two is `killed` (all of its
processes by SIGKILL, its network lives on for the moment) or `cut` (its link is taken down, as
when a machine is gone at once), a new one joins, and so on in the same job:

    training      jobs/finetune.py --workers 1:2: from the last step before to the first that had
                  not been taken, less a step: what stood still, and what was done again
    tagging       jobs/tag.py --actors 1:2: seconds of living hosts in which no shard that counts
                  was tagged, beyond what goes between two shards while nobody dies

The head misses a silent host after some 15 s here, as the image has it. Medians
are kept with every death in benchmarks/results/host_deaths.json.
"""

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, Self

from bulk_speed import documents
from host_runs import ROOT, Kept, Site, dated_steps, site
from raytag import storage
from scaling import make_base

sys.path[:0] = [str(ROOT / "tests" / "cluster")]

from finetuning import finetune, saved  # noqa: E402

from waiting import until  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "host_deaths.json"
BUCKET = "s3://deaths"

How = Literal["killed", "cut"]

FULL = {
    "deaths": 3,
    "batch": 16,
    "checkpoint_every": 45,
    "documents": 30_000,
    "shard": 50,
    "calm_seconds": 15,
}
QUICK = {**FULL, "deaths": 1, "checkpoint_every": 30, "documents": 10_000, "calm_seconds": 8}


@dataclass(frozen=True)
class Death:
    when: float
    unnoticed: float
    """Seconds until the head held the host to be dead."""
    load: float
    """Of the machine, a minute's average before."""


def lose(there: Site, how: How) -> Death:
    victim = there.ray.workers[0]
    began, load = time.time(), os.getloadavg()[0]
    if how == "cut":
        victim.cut()
    else:
        # All but the first process: as long as that is there, the kernel tells the others that
        # their connections are over.
        victim.call("bash", "-c", "kill -9 -1")
    unnoticed = until(lambda: victim.address not in there.ray.alive(), 90)
    # What a host that was cut off does now concerns nobody, and takes time from the others.
    there.ray.kill(victim)
    return Death(began, unnoticed, load)


def gain(there: Site) -> float:
    """When a new worker was there for Ray."""
    worker = there.ray.add_worker()
    until(lambda: worker.address in there.ray.alive(), 60)
    return time.time()


def end(job: "subprocess.Popen[str]", there: Site) -> None:
    """The job has shown what it had to."""
    for running in there.ray.ask("/api/jobs/"):
        stop = ["ray", "job", "stop", "--no-wait", running["submission_id"]]
        there.ray.on_client(*stop).communicate(timeout=60)
    job.communicate(timeout=120)


# Training


def training(there: Site, settings: Mapping[str, Any], base: Path, how: How) -> list[Any]:
    """A figure for each death, and one for each host that joined."""
    ray, output = there.ray, f"{BUCKET}/training-{time.time_ns()}"
    chance = random.Random(how)
    flags = ["--base", str(base), "--batch-size", str(settings["batch"]), "--epochs", "1000"]
    for name, rows in {"train": 256, "dev": 4, "test": 4}.items():
        file = ROOT / "sample" / "news" / f"{name}.jsonl"
        lines = file.read_text(encoding="utf-8").splitlines()[:rows]
        storage.write_bytes(f"{BUCKET}/{name}.jsonl", "\n".join(lines).encode())
        flags += [f"--{name}", f"{BUCKET}/{name}.jsonl"]
    every = settings["checkpoint_every"]
    flags += ["--workers", "1:2", "--zero", "2", "--patience", "0", "--max-failures", "-1"]
    # At an evaluation the dates of the steps are put where they can be read.
    flags += ["--checkpoint-every", str(every), "--eval-every", str(every // 3)]

    def at_work() -> None:
        """Until all hosts train, and have left a checkpoint."""
        places = {host.address for host in ray.workers}
        until(lambda: ray.training() == places, 180, f"workers on {places}")
        before = saved(output)
        until(lambda: saved(output) > before or job.poll() is not None, 120, "a checkpoint")
        assert job.poll() is None, job.communicate()[0][-4000:]

    ray.have_workers(2)
    job = finetune(ray, output, *flags)
    happened: list[tuple[Death, float]] = []
    for _ in range(settings["deaths"]):
        at_work()
        time.sleep(chance.uniform(0, every * 0.15))  # at any time since the last checkpoint
        death = lose(there, how)
        at_work()
        happened.append((death, gain(there)))
    at_work()
    steps = dated_steps(output)
    end(job, there)
    ends = [death.when for death, _ in happened[1:]] + [steps[-1][1]]
    return [
        {
            "unnoticed_seconds": death.unnoticed,
            **stall(steps, death.when, joined),
            "join": stall(steps, joined, last),
            "load_before": death.load,
        }
        for (death, joined), last in zip(happened, ends, strict=True)
    ]


def stall(steps: Sequence[tuple[int, float]], begin: float, end: float) -> dict[str, float]:
    """What the longest pause between two times cost."""
    near = [(step, when) for step, when in steps if begin - 2 <= when <= end]
    at = max(range(1, len(near)), key=lambda i: near[i][1] - near[i - 1][1])
    (before, stopped), (first, went_on) = near[at - 1], near[at]
    pace = (near[-1][1] - went_on) / (len(near) - 1 - at)
    caught_up = next(when for step, when in near[at:] if step > before)
    return {
        "lost_seconds": caught_up - stopped - pace,
        "still_seconds": went_on - stopped - pace,
        "steps_again": before - first + 1,
        "seconds_again": caught_up - went_on,
        "step_seconds_after": pace,
    }


# Tagging


class Receipts(threading.Thread):
    """When the shards of a job came to count, while this is entered."""

    def __init__(self, output: str) -> None:
        super().__init__(daemon=True)
        self._output = output
        self._over = threading.Event()
        self.dated: dict[str, float] = {}
        """By the receipt's file."""

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self.join()

    def run(self) -> None:
        while not self._over.wait(0.25):
            now = time.time()
            for file in storage.list_files(f"{self._output}/_shards"):
                self.dated.setdefault(file, now)


def tagging(there: Site, settings: Mapping[str, Any], how: How) -> list[dict[str, float]]:
    """A figure for each death."""
    ray, output = there.ray, f"{BUCKET}/tags-{time.time_ns()}"
    flags = ["--input", f"{BUCKET}/corpus", "--model", f"{BUCKET}/model", "--actors", "1:2"]
    ray.have_workers(2)
    job = ray.job("tag.py", "--output", output, *flags, "--shard-documents", str(settings["shard"]))
    with Receipts(output) as receipts:
        until(lambda: len(receipts.dated) > 5, 120, "shards tagged")
        calm = time.time()
        time.sleep(settings["calm_seconds"])
        happened: list[tuple[Death, float]] = []
        for _ in range(settings["deaths"]):
            death = lose(there, how)
            happened.append((death, gain(there)))
            time.sleep(2 * settings["calm_seconds"])
    assert job.poll() is None, "the corpus is too small"
    done = receipts.dated
    ends = [death.when for death, _ in happened[1:]] + [time.time()]
    end(job, there)
    took = {file: json.loads(storage.read_bytes(file))["seconds"] for file in done}

    def tagged(begin: float, end: float) -> float:
        """Seconds of actors behind the shards that came to count then."""
        return sum(took[file] for file, when in done.items() if begin <= when < end)

    first = happened[0][0].when
    share = tagged(calm, first) / (2 * (first - calm))
    shard = statistics.median(took.values())
    found = []
    for (death, joined), last in zip(happened, ends, strict=True):
        died = death.when
        living = (joined - died) + 2 * (last - joined)
        # Of the shards up to the last that was done soon after, the latest.
        begun = max(file for file, when in done.items() if when < died + 3)
        late = max(when for file, when in done.items() if when >= died and file <= begun)
        after = sorted(when for when in done.values() if died <= when < last)
        pause = max(b - a for a, b in pairwise([died, *after]))
        found.append(
            {
                "unnoticed_seconds": death.unnoticed,
                "lost_seconds": living - tagged(died, last) / share,
                "shard_late_seconds": late - died,
                "longest_pause_seconds": pause,
                "shard_seconds": shard,
                "busy_share_before": share,
                "alone_seconds": joined - died,
                "load_before": death.load,
            }
        )
    return found


def put_corpus(settings: Mapping[str, Any], model: Path) -> None:
    storage.upload_folder(str(model), f"{BUCKET}/model")
    texts = documents(min(2000, settings["documents"]))
    chance = random.Random(0)
    each = 500
    for number in range(settings["documents"] // each):
        lines = [json.dumps({"text": text}) for text in chance.choices(texts, k=each)]
        storage.write_bytes(f"{BUCKET}/corpus/{number:03}.jsonl", "\n".join(lines).encode())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a merged tag model's folder")
    parser.add_argument("--minutes", type=float, default=60, help="after which no job is begun")
    parser.add_argument("--only", choices=("training", "tagging"))
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    settings = QUICK if given.quick else FULL
    kept = Kept(None if given.quick else RESULTS, settings)
    stop = time.monotonic() + 60 * given.minutes
    hows: tuple[How, How] = ("killed", "cut")
    with site() as there, tempfile.TemporaryDirectory() as folder:
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))
        base = make_base(Path(folder))
        put_corpus(settings, given.model)
        for how in hows:
            for name in ("training", "tagging"):
                if given.only not in (None, name) or time.monotonic() > stop:
                    continue
                if kept.count(f"{name}, {how}"):
                    continue
                runs = (
                    training(there, settings, base, how)
                    if name == "training"
                    else tagging(there, settings, how)
                )
                for run in runs:
                    kept.add(f"{name}, {how}", run)


if __name__ == "__main__":
    main()
