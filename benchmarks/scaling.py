"""Weak scaling: as much work for each worker, on 1, 2 and 4 hosts.

    python benchmarks/scaling.py --model FOLDER             goes on where it stopped
    python benchmarks/scaling.py --model FOLDER --quick     two small runs of each, not kept

FOLDER is a merged `tag` model of the news sample, as jobs/merge.py makes it. Hosts are network
namespaces of this machine with a worker of one thread each, so where it has fewer cores than
workers, they share them. Three parts, which take turns:

    training      jobs/finetune.py under ZeRO-2 and ZeRO-3 on a Llama of random weights whose
                  matrices are large enough for ZeRO-3 to part them: seconds and bytes a step, of
                  each worker; seconds and bytes of a checkpoint
    tagging       jobs/tag.py: documents a second, bytes from and to the store, requests
    collectives   gloo alone: bytes of each worker and seconds of an all-reduce, a reduce-scatter
                  and an all-gather

Bytes are those that the kernel counts at each host's network device. Medians are kept with every
run in benchmarks/results/scaling.json.
"""

import argparse
import json
import os
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from bulk_speed import documents
from host_runs import ROOT, Kept, Site, Traffic, dated_steps, site
from raytag import storage
from raytag.bulk.results import finished as tagged

sys.path[:0] = [str(ROOT / "tests" / "cluster")]

from finetuning import finetune, report  # noqa: E402
from ray_hosts import finished  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results" / "scaling.json"
BUCKET = "s3://scaling"
SETTLED = 4
"""Steps before which ZeRO-3 still learns the order of the layers, and gathers them twice."""
STILL = 0.5
"""Seconds in which nothing is sent, before and after what is counted."""
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 4}

FULL = {
    "workers": [1, 2, 4],
    "examples": 64,  # of each worker, an epoch
    "batch": 8,  # of each worker
    "epochs": 8,
    "checkpoint_every": 16,
    "documents": 1600,  # of each worker
    "shard": 100,
    "collective_megabytes": 16,
    "base": SHAPE,
}
QUICK = {
    **FULL,
    "workers": [1, 2],
    "epochs": 2,
    "checkpoint_every": 8,
    "documents": 100,
    "shard": 5,
    "collective_megabytes": 1,
}


def make_base(folder: Path) -> Path:
    """The sample's tokenizer, and a wider Llama of random weights."""
    sample = ROOT / "sample" / "base"
    config = LlamaConfig.from_pretrained(sample)
    config.update({**SHAPE, "num_attention_heads": 8, "num_key_value_heads": 8, "head_dim": 64})
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(sample).save_pretrained(folder)
    return folder


def put_examples(settings: Mapping[str, Any], base: Path) -> list[str]:
    """Enough for the most workers; flags that name base, dev and test."""
    flags = ["--base", str(base)]
    news = ROOT / "sample" / "news"
    for name in ("dev", "test"):
        lines = (news / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:8]
        storage.write_bytes(f"{BUCKET}/{name}.jsonl", "\n".join(lines).encode())
        flags += [f"--{name}", f"{BUCKET}/{name}.jsonl"]
    lines = (news / "train.jsonl").read_text(encoding="utf-8").splitlines()
    for workers in settings["workers"]:
        rows = lines[: settings["examples"] * workers]
        assert len(rows) == settings["examples"] * workers
        storage.write_bytes(f"{BUCKET}/train-{workers}.jsonl", "\n".join(rows).encode())
    return flags


def put_corpus(settings: Mapping[str, Any], model: Path) -> None:
    storage.upload_folder(str(model), f"{BUCKET}/model")
    texts = documents(settings["documents"] * max(settings["workers"]))
    random.Random(0).shuffle(texts)
    for workers in settings["workers"]:
        lines = [json.dumps({"text": text}) for text in texts[: settings["documents"] * workers]]
        storage.write_bytes(f"{BUCKET}/corpus-{workers}.jsonl", "\n".join(lines).encode())


def train(
    there: Site, settings: Mapping[str, Any], flags: Sequence[str], zero: int, workers: int
) -> dict[str, Any]:
    """One training; what it took."""
    hosts = there.ray.have_workers(workers)
    output = f"{BUCKET}/training-{time.time_ns()}"
    batch = settings["batch"] * workers
    shape = ["--train", f"{BUCKET}/train-{workers}.jsonl", "--batch-size", str(batch)]
    shape += ["--epochs", str(settings["epochs"]), "--workers", str(workers), "--zero", str(zero)]
    shape += ["--checkpoint-every", str(settings["checkpoint_every"]), "--eval-every", "1000"]
    load, began = os.getloadavg()[0], time.monotonic()
    with Traffic([*hosts, there.store]) as traffic:
        finished(finetune(there.ray, output, *flags, *shape), 400)
        took = time.monotonic() - began
    said = report(output)
    seconds = {point.step: point.seconds for point in said.curve}
    # The driver hears of a step late by anything down to nothing: the least delay dates them all.
    start = min(heard - seconds[step] for step, heard in dated_steps(output))
    due = settings["checkpoint_every"]
    saved = [i for i in seconds if i > SETTLED and (i - 1) % due == 0]
    # Not beside a checkpoint, as dates are not exact.
    clean = [i for i in seconds if i > SETTLED and i % due > 2]
    each = {i: seconds[i] - seconds[i - 1] for i in (*clean, *saved)}
    step = statistics.median(each[i] for i in clean)
    sent, received = 0.0, 0.0
    for host in hosts:
        for i in clean:
            passed = traffic.of(host, start + seconds[i - 1], start + seconds[i])
            sent, received = sent + passed.sent, received + passed.received
    count = len(clean) * workers
    stored = traffic.of(there.store)
    to_store = [
        traffic.of(there.store, start + seconds[i - 2], start + seconds[i + 1]).received
        for i in saved
    ]
    return {
        "step_seconds": step,
        "examples_per_second": batch / step,
        "bytes_per_step_and_worker": {"sent": sent / count, "received": received / count},
        "checkpoint": {
            "seconds": statistics.median(each[i] for i in saved) - step,
            "bytes_written": statistics.median(to_store),
        },
        "job_seconds": took,
        "phase_seconds": dict(said.resources.seconds),
        "store_bytes": {"read": stored.sent, "written": stored.received},
        "peak_memory_mib": (said.resources.peak_memory_bytes or 0) / 2**20,
        "load_before": load,
    }


def tag(there: Site, settings: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """One tagging job; what it took, in all and while all actors were at work."""
    hosts = there.ray.have_workers(workers)
    output = f"{BUCKET}/tags-{time.time_ns()}"
    flags = ["--input", f"{BUCKET}/corpus-{workers}.jsonl", "--model", f"{BUCKET}/model"]
    flags += ["--shard-documents", str(settings["shard"]), "--actors", str(workers)]
    load, logged = os.getloadavg()[0], there.requests.stat().st_size
    done: list[tuple[float, int]] = []
    began = time.monotonic()
    with Traffic([*hosts, there.store]) as traffic:
        job = there.ray.job("tag.py", "--output", output, *flags)
        while job.poll() is None:
            done.append((time.time(), len(storage.list_files(f"{output}/_shards"))))
            with suppress(subprocess.TimeoutExpired):
                job.wait(0.5)
        took = time.monotonic() - began
        finished(job)
    heard = there.requests.read_bytes()[logged:].decode().splitlines()
    manifest = tagged(output)
    count, shards = manifest.documents_in, len(manifest.shards)
    # From when each actor has had its first shard until one may have had its last.
    steady = [(at, n) for at, n in done if workers <= n <= shards - workers]
    (first, n), (last, m) = steady[0], steady[-1]
    between = (m - n) * count / shards
    passed, stored = traffic.of(there.store, first, last), traffic.of(there.store)
    asked = Counter(
        found[1]
        for line in heard
        # Without what this process asks: how many receipts there are. Colours come along.
        if (found := re.search(r'"(?:\x1b\[\d+m)*([A-Z]+) (\S+) HTTP', line))
        and "_shards%2F" not in found[2]
    )
    size = len(storage.read_bytes(f"{BUCKET}/corpus-{workers}.jsonl"))
    model = sum(entry.size for entry in storage.list_entries(f"{BUCKET}/model"))
    busy = sum(receipt.seconds for receipt in manifest.shards)
    return {
        "documents_per_second": between / (last - first),
        "actor_seconds_per_document": busy / count,
        "job_seconds": took,
        "seconds_to_first_shard": next(at for at, n in done if n) - done[0][0],
        "bytes_per_document": {
            "read": passed.sent / between,
            "written": passed.received / between,
            "of_results": sum(receipt.data_bytes for receipt in manifest.shards) / count,
        },
        "store_bytes": {"read": stored.sent, "written": stored.received},
        "corpus_bytes": size,
        "model_bytes": model,
        "shards": shards,
        "requests_per_shard": {kind: number / shards for kind, number in sorted(asked.items())},
        "entities_per_document": sum(manifest.labels.values()) / count,
        "load_before": load,
    }


def collectives(there: Site, settings: Mapping[str, Any], workers: int) -> dict[str, Any]:
    """Gloo between the hosts: seconds and bytes of each worker, for each byte of the tensor."""
    hosts = there.ray.have_workers(workers)
    size = settings["collective_megabytes"] * 2**20
    command = [sys.executable, __file__, "--model", "-", "--peer"]
    with Traffic(hosts) as traffic:
        peers = [
            host.start(
                [*command, f"{rank},{workers},{hosts[0].address},{size}"],
                {**there.ray.variables, "GLOO_SOCKET_IFNAME": "eth0"},
                stdout=subprocess.PIPE,
            )
            for rank, host in enumerate(hosts)
        ]
        said = [json.loads(peer.communicate(timeout=120)[0].splitlines()[-1]) for peer in peers]
    found: dict[str, Any] = {}
    for name, (begin, end, times) in said[0].items():
        passed = [traffic.of(host, begin - STILL / 2, end + STILL / 2) for host in hosts]
        found[name] = {
            "seconds_per_megabyte": (end - begin) / times / (size / 1e6),
            "sent_per_byte": sum(one.sent for one in passed) / workers / times / size,
        }
    return found


def peer(rank: int, workers: int, master: str, size: int) -> None:
    """A process of `collectives`: (begin, end, times) of each."""
    torch.set_num_threads(1)
    where = f"tcp://{master}:29555"
    dist.init_process_group("gloo", init_method=where, rank=rank, world_size=workers)
    whole, part = torch.ones(size // 4), torch.ones(size // 4 // workers)
    verbs: dict[str, Callable[[], object]] = {
        "all_reduce": lambda: dist.all_reduce(whole),
        "reduce_scatter": lambda: dist.reduce_scatter_tensor(part, whole),
        "all_gather": lambda: dist.all_gather_into_tensor(whole, part),
    }
    found, times = {}, 10
    for name, verb in verbs.items():
        verb()
        dist.barrier()
        time.sleep(STILL)
        begin = time.time()
        for _ in range(times):
            verb()
        dist.barrier()
        found[name] = (begin, time.time(), times)
        time.sleep(STILL)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a merged tag model's folder")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--minutes", type=float, default=60, help="after which no run is begun")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peer", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.peer:
        rank, workers, master, size = given.peer.split(",")
        return peer(int(rank), int(workers), master, int(size))
    settings = QUICK if given.quick else FULL
    kept = Kept(None if given.quick else RESULTS, settings)
    stop = time.monotonic() + 60 * given.minutes
    with site() as there, tempfile.TemporaryDirectory() as folder:
        import boto3

        boto3.client("s3").create_bucket(Bucket=BUCKET.removeprefix("s3://"))
        flags = put_examples(settings, make_base(Path(folder)))
        put_corpus(settings, given.model)
        for turn in range(given.rounds):
            # There and back: what changes in the machine meanwhile falls on all.
            for workers in settings["workers"][:: -1 if turn % 2 else 1]:
                sides: dict[str, Callable[[], Any]] = {
                    "ZeRO-2": lambda n=workers: train(there, settings, flags, 2, n),
                    "ZeRO-3": lambda n=workers: train(there, settings, flags, 3, n),
                    "tagging": lambda n=workers: tag(there, settings, n),
                }
                if workers > 1:
                    sides["collectives"] = lambda n=workers: collectives(there, settings, n)
                for side, run in sides.items():
                    name = f"{side}, workers {workers}"
                    if kept.count(name) <= turn and time.monotonic() < stop:
                        kept.add(name, run())


if __name__ == "__main__":
    main()
