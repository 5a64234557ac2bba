"""Workers land on the kind of GPU they were told, alone or together, and wait until it is there."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from test_adapter import make
from tiny import checkpoint

from driving import driving
from nodes import alive, gpu_node, places, until
from raytag import storage
from raytag.arguments import check_accelerator
from raytag.bulk.results import finished
from raytag.errors import ResourceError, SettingsError
from raytag.local import LocalCluster
from raytag.placement import Seat, find_seat
from raytag.registry.registry import Registry
from raytag.serve.keys import Keys
from raytag.train.finetune import finetune, scaling_config
from raytag.train.fleet_settings import FleetSettings
from raytag.train.settings import FinetuneSettings
from s3 import free_port

ROOT = Path(__file__).resolve().parents[1]
SAMPLE = FinetuneSettings(base="sample/base", train="sample/news/train.jsonl", output="nowhere")
PLACED = FleetSettings(manifest="none", output="nowhere")
"""Settings that say where workers go, and nothing else that matters here."""


@pytest.fixture(scope="module")
def bare() -> Iterator[LocalCluster]:
    """A head with neither CPU nor GPU to offer, as cluster.yaml has it."""
    with LocalCluster(cpus=0) as running:
        yield running


@pytest.fixture(scope="module")
def mixed(bare: LocalCluster) -> Iterator[dict[str, str]]:
    """A node of two L4 and one of an H100, by kind; this process drives the cluster."""
    with gpu_node(bare, "L4", gpus=2) as l4, gpu_node(bare, "H100") as h100, driving(bare):
        yield {"L4": l4, "H100": h100}


@contextmanager
def job(cluster: LocalCluster, script: str, *flags: str) -> "Iterator[subprocess.Popen[str]]":
    """A job that waits for nodes; it has begun to wait when this is entered."""
    process = subprocess.Popen(
        [sys.executable, f"jobs/{script}", *flags, "--wait-for-nodes", "true"],
        env={**cluster.environment, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    try:
        said: list[str] = []
        for line in process.stdout:
            said.append(line)
            if line.startswith("waiting for nodes"):
                break
        assert said[-1].startswith("waiting for nodes"), "".join(said)
        yield process
    finally:
        process.terminate()
        process.wait(60)


def test_tagging_waits_for_the_kind_it_was_told(bare: LocalCluster, tmp_path: Path) -> None:
    adapter = make(tmp_path / "adapter", checkpoint(tmp_path / "base"), "tag").folder
    rows = [json.dumps({"text": f"Ann was in Oslo {i} times."}) for i in range(6)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    output = tmp_path / "tags"
    flags = ["--input", str(tmp_path / "corpus.jsonl"), "--model", str(adapter)]
    flags += ["--output", str(output), "--accelerator", "L4"]
    with gpu_node(bare, "H100"), job(bare, "tag.py", *flags) as tagging:
        assert tagging.poll() is None
        with gpu_node(bare, "L4") as l4:
            said, _ = tagging.communicate(timeout=120)
            assert tagging.returncode == 0, said
    assert finished(str(output)).documents_out == 6
    assert places(bare, "ShardTagger") == {l4}


def test_with_auto_the_gpus_of_the_node_that_came_are_taken(bare: LocalCluster) -> None:
    waiting = replace(PLACED, wait_for_nodes=True)
    with driving(bare), ThreadPoolExecutor() as pool:
        import ray.util

        assert find_seat(waiting, 2, "worker", dry=True) == Seat(cpus=1, gpu=False)
        seat = pool.submit(find_seat, waiting, 2, "worker")
        until(lambda: bool(ray.util.placement_group_table()), "nodes are asked for")
        with gpu_node(bare, "L4", gpus=2):
            assert seat.result(60) == Seat(cpus=1, gpu=True)
            assert seat.result().of_one_kind() == Seat(cpus=1, gpu=True, kind="L4")


def test_what_trains_together_takes_one_kind(mixed: dict[str, str]) -> None:
    with pytest.raises(ResourceError, match=r"several kinds \(H100, L4\).* name it with --acc"):
        finetune(SAMPLE)
    anywhere = find_seat(SAMPLE, 3, "worker")
    assert anywhere == Seat(cpus=1, gpu=True)
    named = find_seat(replace(SAMPLE, accelerator="L4"), 2, "worker")
    assert named == named.of_one_kind() == Seat(cpus=1, gpu=True, kind="L4")
    # On the CPU all are alike.
    assert find_seat(replace(SAMPLE, device="cpu"), 4, "worker").of_one_kind().kind is None


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"accelerator": "l40"}, "--accelerator l40: Ray knows no such GPU; near are L4"),
        ({"accelerator": "A10G"}, "no room for 1 worker of 1 CPU(s) and a GPU of kind A10G: "),
        ({"accelerator": "A10G"}, "the cluster has it for 0 (GPUs are H100, L4); ask for less, "),
        ({"device": "gpu", "cpus": 3}, "no room for 1 worker of 3 CPU(s) and a GPU: "),
    ],
)
def test_what_cannot_be_had_is_said(
    mixed: dict[str, str], change: dict[str, Any], said: str
) -> None:
    with pytest.raises((SettingsError, ResourceError)) as refused:
        find_seat(replace(PLACED, **change), 1, "worker")
    assert said in str(refused.value)


def test_a_kind_of_gpu_is_not_asked_for_on_cpus() -> None:
    check_accelerator("L4", "auto")
    with pytest.raises(SettingsError, match="--device cpu takes none"):
        replace(SAMPLE, accelerator="L4", device="cpu")


@pytest.mark.slow
def test_an_elastic_group_does_not_grow_onto_another_kind(
    bare: LocalCluster, mixed: dict[str, str], tmp_path: Path
) -> None:
    """Of two L4 and an H100, three workers at most take the two L4."""
    from ray.train import RunConfig
    from ray.train.data_parallel_trainer import DataParallelTrainer

    def work(config: dict[str, str]) -> None:
        import ray
        import ray.train

        here = Path(config["places"]) / str(ray.train.get_context().get_world_rank())
        here.write_text(ray.get_runtime_context().get_node_id())

    elastic = replace(SAMPLE, workers="1:3", accelerator="L4")
    DataParallelTrainer(
        work,
        train_loop_config={"places": str(tmp_path)},
        scaling_config=scaling_config(elastic, find_seat(elastic, 1, "worker")),
        run_config=RunConfig(name="placed", storage_path=str(tmp_path / "ray")),
    ).fit()
    found = [file.read_text() for file in tmp_path.iterdir() if file.is_file()]
    assert found == [mixed["L4"], mixed["L4"]]


@pytest.mark.slow
def test_a_fleet_stays_on_its_kind(
    bare: LocalCluster, mixed: dict[str, str], tmp_path: Path
) -> None:
    rows = (ROOT / "sample" / "news" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    storage.write_bytes(tmp_path / "train.jsonl", "\n".join(rows[:20]).encode())
    domains = {name: {"train": str(tmp_path / "train.jsonl")} for name in ("a", "b", "c")}
    manifest = {
        "defaults": {"base": str(checkpoint(tmp_path / "base")), "epochs": 1},
        "tenants": {"acme": {"domains": domains}},
    }
    storage.write_bytes(tmp_path / "fleet.yaml", json.dumps(manifest).encode())
    done = subprocess.run(
        [
            *(sys.executable, "jobs/finetune_fleet.py", "--accelerator", "L4"),
            *("--manifest", str(tmp_path / "fleet.yaml"), "--output", str(tmp_path / "out")),
            *("--registry", str(tmp_path / "registry")),
        ],
        env={**bare.environment, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert [str(v) for v in Registry(str(tmp_path / "registry")).list("acme")]
    assert places(bare, "Worker") == {mixed["L4"]}


@pytest.mark.slow
def test_serving_waits_for_its_kind(tmp_path: Path) -> None:
    base = checkpoint(tmp_path / "base")
    adapter = make(tmp_path / "adapter", base, "tag").folder
    registry = Registry(str(tmp_path / "registry"))
    registry.promote(str(registry.publish(str(adapter), "acme", "news")), "production")
    key = Keys(str(tmp_path / "keys")).create("acme", "extract").text
    port = free_port()
    flags = [f"--{name}={tmp_path / name}" for name in ("base", "registry", "keys")]
    flags += [f"--port={port}", "--accelerator=L4"]
    with (
        LocalCluster(cpus=0) as cluster,
        gpu_node(cluster, "H100"),
        job(cluster, "serve.py", *flags) as serving,
        gpu_node(cluster, "L4") as l4,
    ):
        assert serving.stdout is not None
        assert any("serving on" in line for line in serving.stdout), "it did not start"
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/acme/news/entities",
            json={"texts": ["Ann was in Oslo."]},
            headers={"Authorization": f"Bearer {key}"},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
        assert places(cluster, "Engine") == {l4}
        assert len(alive(cluster)) == 3
