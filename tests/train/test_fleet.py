"""Fleets of adapters, and single runs that are published and begin from one another."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file
from tiny import checkpoint

from raytag import storage
from raytag.errors import SettingsError
from raytag.local import LocalCluster
from raytag.model.adapter import AdapterCard
from raytag.model.files import fingerprint
from raytag.registry.registry import Registry
from raytag.train.fleet import Turns
from raytag.train.fleet_settings import Entry, FleetSettings, read_manifest
from raytag.train.settings import FinetuneSettings

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

ROOT = Path(__file__).resolve().parents[2]
TRAIN = ROOT / "sample" / "news" / "train.jsonl"


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = TRAIN.read_text(encoding="utf-8").splitlines()[:30]
    file = tmp_path_factory.mktemp("data") / "train.jsonl"
    file.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return file


def _job(name: str, *flags: str) -> list[str]:
    return [sys.executable, str(ROOT / "jobs" / f"{name}.py"), *flags]


def _run(cluster: LocalCluster, command: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        env={**cluster.environment, "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )


@pytest.mark.parametrize("place", ["disk", pytest.param("s3", marks=pytest.mark.slow)])
def test_of_six_one_fails_and_five_are_published_once_though_the_driver_dies_twice(
    cluster: LocalCluster, s3: "S3Client", base: Path, data: Path, tmp_path: Path, place: str
) -> None:
    root = str(tmp_path)
    if place == "s3":
        s3.create_bucket(Bucket="fleet")
        root = "s3://fleet/all"
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"text": "Tim Cook", "entities": [{"start": 0, "end": 99, "label": "X"}]}\n')
    domains = {f"d{i}": {"train": str(data), "seed": i} for i in range(3)}
    manifest = {
        "defaults": {"base": str(base), "epochs": 3, "batch_size": 4, "rank": 4},
        "tenants": {
            "acme": {"share": 2, "domains": {**domains, "broken": {"train": str(broken)}}},
            "globex": {
                "domains": {"a": {"train": str(data)}, "b": {"train": str(data), "rank": 8}}
            },
        },
    }
    file = tmp_path / "fleet.yaml"
    file.write_text(json.dumps(manifest))  # which is YAML
    flags = ["--manifest", str(file), "--output", f"{root}/runs", "--registry", f"{root}/registry"]
    command = _job("finetune_fleet", *flags, "--pack", "2", "--workers", "1")
    for marks in (1, 2):
        driver = subprocess.Popen(
            command,
            env={**cluster.environment, "OMP_NUM_THREADS": "1"},
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        assert driver.stdout is not None
        seen = 0
        for line in driver.stdout:
            # In the middle of the first pack, and in the middle of what the second run begins.
            seen += "training" in line
            if seen == 2 * marks:
                break
        assert seen == 2 * marks
        os.killpg(driver.pid, signal.SIGKILL)
        driver.wait()

    done = _run(cluster, command)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "1 of 6 adapters failed, acme/broken because:" in done.stderr
    assert "broken.jsonl" in done.stderr
    registry = Registry(f"{root}/registry")
    expected = {"acme": ["d0", "d1", "d2"], "globex": ["a", "b"]}
    for tenant, names in expected.items():
        assert [found.domain for found in registry.domains(tenant)] == names
        for name in names:
            (listed,) = registry.versions(tenant, name)
            registry.verify(f"{tenant}/{name}@1")
            assert listed.version.settings["seed"] == (int(name[1]) if name[0] == "d" else 0)
            assert storage.exists(f"{root}/runs/{tenant}/{name}/report/report.json")

    again = _run(cluster, command)
    assert again.returncode == 2
    assert again.stdout.count("unchanged") >= 5
    assert "published" not in again.stdout
    assert [len(registry.versions("acme", name)) for name in expected["acme"]] == [1, 1, 1]


@pytest.mark.slow
def test_a_run_is_published_and_another_begins_from_it(
    cluster: LocalCluster,
    s3: "S3Client",
    given: Callable[[str], int],
    base: Path,
    data: Path,
    tmp_path: Path,
) -> None:
    registry = str(tmp_path / "registry")
    s3.create_bucket(Bucket="lineage")
    storage.upload_folder(base, "s3://lineage/base")
    # Other tests' bases have the same files: with one more, this host has no copy of it yet.
    storage.write_bytes("s3://lineage/base/lineage.txt", b"")
    flags = ["--base", "s3://lineage/base", "--train", str(data), "--epochs", "1", "--rank", "4"]
    flags += ["--registry", registry, "--tenant", "acme", "--domain", "news"]
    first = _run(cluster, _job("finetune", *flags, "--output", str(tmp_path / "first")))
    assert first.returncode == 0, first.stdout + first.stderr
    assert "version: acme/news@1" in first.stdout
    # A run that is finished is published once.
    again = _run(cluster, _job("finetune", *flags, "--output", str(tmp_path / "first")))
    assert again.returncode == 0
    assert "version: acme/news@1" in again.stdout
    # For the driver, its task and the worker, twice.
    assert given("s3://lineage/base/model.safetensors") == 1
    assert AdapterCard.read(tmp_path / "first" / "adapter").base_fingerprint == fingerprint(base)
    Registry(registry).promote("acme/news@1", "production")

    # The same base from elsewhere. A rate of nothing: what comes out is what was begun from, but
    # for the label not known there.
    more = tmp_path / "more.jsonl"
    extra = {"text": "Gold rose.", "entities": [{"start": 0, "end": 4, "label": "METAL"}]}
    more.write_text(data.read_text(encoding="utf-8") + json.dumps(extra) + "\n", encoding="utf-8")
    still = ["--base", str(base), "--train", str(more), "--epochs", "1", "--rank", "4"]
    still += ["--lr", "1e-30", "--head-lr", "1e-30", "--dev-share", "0", "--test-share", "0"]
    still += ["--registry", registry, "--tenant", "acme", "--domain", "metals", "--seed", "7"]
    second = _run(
        cluster,
        _job(
            *("finetune", *still, "--warm-start", "acme/news@production"),
            *("--output", str(tmp_path / "second")),
        ),
    )
    assert second.returncode == 0, second.stdout + second.stderr
    parent, child = (
        load_file(tmp_path / name / "adapter" / "adapter_model.safetensors")
        for name in ("first", "second")
    )
    labels = [AdapterCard.read(tmp_path / n / "adapter").labels for n in ("first", "second")]
    assert set(labels[1]) - set(labels[0]) == {"METAL"}
    heads = [name for name in parent if ".lora_" not in name]
    assert heads
    for name, tensor in parent.items():
        if name not in heads:
            assert torch.equal(child[name], tensor), name
    for name in heads:
        for i, label in enumerate(labels[0]):
            j = labels[1].index(label)
            assert torch.equal(child[name][1 + 2 * j], parent[name][1 + 2 * i])

    version = Registry(registry).resolve("acme/metals@1")
    assert version.parent == "acme/news@1"
    assert version.settings["warm_start"] == "acme/news@production"
    card = AdapterCard.read(tmp_path / "second" / "adapter")
    assert card.parent is not None
    assert card.parent["name"] == "acme/news@1"
    assert version.data["counts"]["train"]["examples"] == 31
    assert Registry(registry).resolve("acme/news@1").parent is None

    wrong = _run(
        cluster,
        _job(
            *("finetune", *still[:6], "--rank", "8", "--registry", registry),
            *("--warm-start", "acme/news@1", "--output", str(tmp_path / "third")),
        ),
    )
    assert wrong.returncode == 2
    assert "rank 4 and this run 8" in wrong.stderr
    assert not (tmp_path / "third").exists()


def _entry(name: str, share: float = 1, base: str = "b") -> Entry:
    tenant, domain = name.split("/")
    settings = FinetuneSettings(base=base, train="t", output="o", tenant=tenant, domain=domain)
    return Entry(settings=settings, share=share)


def test_tenants_take_turns_by_their_shares() -> None:
    acme = [_entry(f"acme/d{i}", share=2) for i in range(8)]
    globex = [_entry(f"globex/d{i}") for i in range(4)]
    turns = Turns([*acme, *globex])
    order = [turns.next(1)[0].tenant for _ in range(6)]
    assert sorted(order) == ["acme"] * 4 + ["globex"] * 2
    assert "globex" in order[:2]
    assert [e.tenant for e in turns.next(99)].count("globex") == 2
    assert not turns.next(1)


def test_a_pack_is_of_one_base_and_what_was_lost_goes_alone() -> None:
    entries = [_entry("a/x"), _entry("a/y", base="c"), _entry("b/x"), _entry("b/y")]
    turns = Turns(entries)
    pack = turns.next(4)
    assert [entry.name for entry in pack] == ["a/x", "b/x", "b/y"]
    for entry in reversed(pack):
        turns.again(entry)
    assert [[e.name for e in turns.next(4)] for _ in range(4)] == [
        ["a/x"],
        ["b/x"],
        ["b/y"],
        ["a/y"],
    ]


@pytest.mark.parametrize(
    ("manifest", "said"),
    [
        ("tenants: [a]", "must be names"),
        ("tenants: {}", "nothing to train"),
        ("tenant: {}", "tenant is unknown"),
        ("tenants: {a: {domains: {d: {train: x}}}}", "base"),
        ("tenants: {a: {domains: {d: {base: b, train: x, epoch: 2}}}}", "no setting epoch"),
        ("tenants: {a: {domains: {d: {base: b, train: x, epochs: no}}}}", "a/d"),
        ("tenants: {a: {domains: {d: {base: b, train: x, epochs: 0}}}}", "at least 1"),
        ("tenants: {a: {domains: {d: {base: b, train: x, output: y}}}}", "the fleet decides"),
        ("tenants: {a: {share: 0, domains: {d: {base: b, train: x}}}}", "above 0"),
        ("tenants: {'../a': {domains: {d: {base: b, train: x}}}}", "no tenant name"),
        ("tenants: {a: {domains: {D: {base: b, train: x}}}}", "no domain name"),
        ("a: [", "not YAML"),
    ],
)
def test_a_mistake_in_a_manifest_is_said_before_anything_is_loaded(
    tmp_path: Path, manifest: str, said: str
) -> None:
    file = tmp_path / "fleet.yaml"
    file.write_text(manifest)
    with pytest.raises(SettingsError, match=said):
        read_manifest(FleetSettings(manifest=str(file), output="out"))
