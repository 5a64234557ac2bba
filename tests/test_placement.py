"""Workers land on the kind of GPU they were told, alone or together, and wait until it is there."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from test_adapter import make
from tiny import checkpoint

from nodes import alive, gpu_node, places
from raytag import storage
from raytag.arguments import check_accelerator
from raytag.bulk.results import finished
from raytag.errors import SettingsError
from raytag.local import LocalCluster
from raytag.registry.registry import Registry
from raytag.serve.keys import Keys
from s3 import free_port

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def bare() -> Iterator[LocalCluster]:
    """A head with neither CPU nor GPU to offer, as cluster.yaml has it."""
    with LocalCluster(cpus=0) as running:
        yield running


@pytest.fixture(scope="module")
def h100(bare: LocalCluster) -> Iterator[str]:
    with gpu_node(bare, "H100") as node:
        yield node


@pytest.fixture(scope="module")
def l4(bare: LocalCluster) -> Iterator[str]:
    """Two of them on one node."""
    with gpu_node(bare, "L4", gpus=2) as node:
        yield node


@contextmanager
def running(cluster: LocalCluster, *command: str) -> "Iterator[subprocess.Popen[str]]":
    """A driver of the cluster in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, *command],
        env={**cluster.environment, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT / "platform")},
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.communicate(timeout=60)


def until_it_waits(process: "subprocess.Popen[str]") -> list[str]:
    """What it said before."""
    assert process.stdout is not None
    said: list[str] = []
    for line in process.stdout:
        said.append(line)
        if line.startswith("waiting for nodes"):
            break
    assert said[-1].startswith("waiting for nodes"), "".join(said)
    return said


def ended(process: "subprocess.Popen[str]") -> str:
    """What it said since, when it has ended well."""
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 0, said
    return said


# Evaluates its arguments in turn, and prints what comes of them.
ASKS = """
import sys
from dataclasses import replace
from raytag.cluster import connect
from raytag.errors import RaytagError
from raytag.placement import find_seat
from raytag.train.finetune import finetune
from raytag.train.fleet_settings import FleetSettings
from raytag.train.settings import FinetuneSettings
connect("a test")
sample = FinetuneSettings(base="sample/base", train="sample/news/train.jsonl", output="nowhere")
placed = FleetSettings(manifest="none", output="nowhere")
waiting = replace(placed, wait_for_nodes=True)
for asked in sys.argv[1:]:
    try:
        print("=", eval(asked), flush=True)
    except RaytagError as exc:
        print("=", f"{type(exc).__name__}: {exc}", flush=True)
"""


def answers(process: "subprocess.Popen[str]") -> list[str]:
    """All, when it has ended well."""
    said = ended(process).splitlines()
    return [line.removeprefix("= ") for line in said if line.startswith("= ")]


def test_with_auto_the_gpus_of_the_node_that_came_are_taken(
    bare: LocalCluster, request: pytest.FixtureRequest
) -> None:
    assert len(alive(bare)) == 1
    asked = ["find_seat(waiting, 2, 'worker', dry=True)", "find_seat(waiting, 1, 'worker')"]
    with running(bare, "-c", ASKS, *asked) as asking:
        assert "= 1 CPU(s)\n" in until_it_waits(asking)
        request.getfixturevalue("h100")
        assert answers(asking) == ["1 CPU(s) and a GPU"]


def test_tagging_waits_for_the_kind_it_was_told(
    bare: LocalCluster, h100: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    assert alive(bare) > {h100}
    adapter = make(tmp_path / "adapter", checkpoint(tmp_path / "base"), "tag").folder
    rows = [json.dumps({"text": f"Ann was in Oslo {i} times."}) for i in range(6)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows), encoding="utf-8")
    output = tmp_path / "tags"
    flags = ["--input", str(tmp_path / "corpus.jsonl"), "--model", str(adapter)]
    flags += ["--output", str(output), "--accelerator", "L4", "--wait-for-nodes", "true"]
    with running(bare, "jobs/tag.py", *flags) as tagging:
        until_it_waits(tagging)
        assert tagging.poll() is None
        l4 = request.getfixturevalue("l4")
        ended(tagging)
    assert finished(str(output)).documents_out == 6
    assert places(bare, "ShardTagger") == {l4}


def test_what_can_and_what_cannot_be_had(bare: LocalCluster, h100: str, l4: str) -> None:
    """What trains together takes one kind; on the CPU all are alike."""
    expected = {
        "finetune(sample)": "ResourceError: the cluster has GPUs of several kinds (H100, L4), and "
        "workers that train together take one: name it with --accelerator",
        "find_seat(sample, 3, 'worker')": "1 CPU(s) and a GPU",
        "find_seat(replace(sample, accelerator='L4'), 2, 'worker').of_one_kind()": (
            "1 CPU(s) and a GPU of kind L4"
        ),
        "find_seat(replace(sample, device='cpu'), 4, 'worker').of_one_kind()": "1 CPU(s)",
        "find_seat(replace(placed, accelerator='l40'), 1, 'worker')": (
            "SettingsError: --accelerator l40: Ray knows no such GPU; near are L4"
        ),
        "find_seat(replace(placed, accelerator='A10G'), 1, 'worker')": (
            "ResourceError: there is no room for 1 worker of 1 CPU(s) and a GPU of kind A10G: the "
            "cluster has it for 0 (GPUs are H100, L4); ask for less, "
        ),
        "find_seat(replace(placed, device='gpu', cpus=3), 1, 'worker')": (
            "ResourceError: there is no room for 1 worker of 3 CPU(s) and a GPU: the "
        ),
    }
    with running(bare, "-c", ASKS, *expected) as asking:
        said = answers(asking)
    assert len(said) == len(expected)
    for line, wanted in zip(said, expected.values(), strict=True):
        assert line.startswith(wanted), line


def test_a_process_sees_no_gpu_but_those_it_was_given(bare: LocalCluster, l4: str) -> None:
    code = """
import os, ray
from raytag.placement import hide_gpus_not_given

def seen():
    hide_gpus_not_given()
    return os.environ.get("CUDA_VISIBLE_DEVICES")

ray.init(log_to_driver=False)
tasks = [ray.remote(num_cpus=1, num_gpus=gpus)(seen) for gpus in (0, 1)]
print("seen", *map(repr, ray.get([task.remote() for task in tasks])))
"""
    with running(bare, "-c", code) as process:
        said, _ = process.communicate(timeout=120)
    assert "seen '' '0'" in said or "seen '' '1'" in said


def test_a_kind_of_gpu_is_not_asked_for_on_cpus() -> None:
    check_accelerator("L4", "auto")
    with pytest.raises(SettingsError, match="--device cpu takes none"):
        check_accelerator("L4", "cpu")


ELASTIC = """
import sys
from pathlib import Path
from ray.train import RunConfig
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer
from raytag.cluster import connect
from raytag.placement import find_seat
from raytag.train.finetune import scaling_config
from raytag.train.settings import FinetuneSettings

def work(config):
    import ray
    import ray.train

    here = Path(config["places"]) / str(ray.train.get_context().get_world_rank())
    here.write_text(ray.get_runtime_context().get_node_id())

connect("a test")
elastic = FinetuneSettings(
    base="-", train="-", output="-", workers="1:3", accelerator="L4"
)
DataParallelTrainer(
    work,
    train_loop_config={"places": sys.argv[1]},
    scaling_config=scaling_config(elastic, find_seat(elastic, 1, "worker")),
    run_config=RunConfig(name="placed", storage_path=sys.argv[1] + "/ray"),
).fit()
"""


@pytest.mark.slow
def test_an_elastic_group_does_not_grow_onto_another_kind(
    bare: LocalCluster, h100: str, l4: str, tmp_path: Path
) -> None:
    """Of two L4 and an H100, three workers at most take the two L4."""
    with running(bare, "-c", ELASTIC, str(tmp_path)) as training:
        ended(training)
    assert [file.read_text() for file in tmp_path.iterdir() if file.is_file()] == [l4, l4]


@pytest.mark.slow
def test_a_fleet_stays_on_its_kind(bare: LocalCluster, h100: str, l4: str, tmp_path: Path) -> None:
    rows = (ROOT / "sample" / "news" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    storage.write_bytes(tmp_path / "train.jsonl", "\n".join(rows[:20]).encode())
    domains = {name: {"train": str(tmp_path / "train.jsonl")} for name in ("a", "b", "c")}
    manifest = {
        "defaults": {"base": str(checkpoint(tmp_path / "base")), "epochs": 1},
        "tenants": {"acme": {"domains": domains}},
    }
    storage.write_bytes(tmp_path / "fleet.yaml", json.dumps(manifest).encode())
    flags = ["--accelerator", "L4", "--manifest", str(tmp_path / "fleet.yaml")]
    flags += ["--output", str(tmp_path / "out"), "--registry", str(tmp_path / "registry")]
    with running(bare, "jobs/finetune_fleet.py", *flags) as training:
        ended(training)
    registry = Registry(str(tmp_path / "registry"))
    assert [len(registry.versions("acme", name)) for name in domains] == [1, 1, 1]
    assert places(bare, "Worker") == {l4}


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
        ExitStack() as entered,
        LocalCluster(cpus=0) as cluster,
        gpu_node(cluster, "H100"),
        running(cluster, "jobs/serve.py", *flags, "--wait-for-nodes", "true") as serving,
    ):
        until_it_waits(serving)
        l4 = entered.enter_context(gpu_node(cluster, "L4"))
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
