"""LoRA+ under every ZeRO stage walks one curve, and goes on from any number of workers.

The workers are real processes over gloo; engine_cases.py is what they run.
"""

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import engine_cases
import pytest
import torch

CASES = Path(engine_cases.__file__)
HALF = engine_cases.STEPS // 2
RATES = {"A": 1e-4, "B": 16e-4, "head": 1e-3, "head, no decay": 1e-3}


def _run(workers: int, job: str, folder: Path) -> dict[str, Any]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    command = [sys.executable, str(CASES)]
    running = [
        subprocess.Popen(
            [*command, str(rank), str(workers), port, job, str(folder)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(workers)
    ]
    said = [process.communicate(timeout=240)[0] for process in running]
    assert all(process.returncode == 0 for process in running), "\n".join(said)[-4000:]
    results: dict[str, Any] = torch.load(folder / f"{job}.pt", weights_only=False)
    return results


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("engine")


@pytest.fixture(scope="module")
def one(folder: Path) -> dict[str, Any]:
    return _run(1, "1", folder)


@pytest.fixture(scope="module")
def two(folder: Path, one: dict[str, Any]) -> dict[str, Any]:
    return _run(2, "2", folder)


@pytest.fixture(scope="module")
def from_two(folder: Path, two: dict[str, Any]) -> dict[int, dict[str, Any]]:
    results = _run(1, "from_two", folder)
    return {int(zero): result for zero, result in results.items()}


def _distance(one: list[float], other: list[float]) -> float:
    assert len(one) == len(other)
    return max(abs(a - b) for a, b in zip(one, other, strict=True))


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    a, b = one["state"], other["state"]
    assert a.tensors.keys() == b.tensors.keys()
    return a.adam_step == b.adam_step and all(
        torch.equal(a.tensors[name], b.tensors[name]) for name in a.tensors
    )


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_stages_in_one_process_walk_plain_training(one: dict[str, Any], zero: int) -> None:
    assert _distance(one["zero0"]["losses"], one[f"zero{zero}"]["losses"]) < 1e-4


@pytest.mark.parametrize("case", ["zero0", "zero1", "zero2", "zero3", "offload"])
def test_two_workers_walk_the_curve_of_one(
    one: dict[str, Any], two: dict[str, Any], case: str
) -> None:
    assert _distance(one["zero0"]["losses"], two[case]["losses"]) < 1e-4


def test_the_curve_is_one_of_learning(one: dict[str, Any]) -> None:
    # Twenty steps on noise: were nothing updated, no loss would differ from that of the start.
    state = one["zero0"]["state"].weights
    moved = [name for name, value in state.items() if "lora_B" in name and value.abs().max() > 0]
    assert len(moved) == sum("lora_B" in name for name in state)


def test_bf16_with_fp32_masters_stays_near(one: dict[str, Any]) -> None:
    assert _distance(one["zero0"]["losses"], one["bf16"]["losses"]) < 0.05


def test_every_rate_is_read_at_every_step(one: dict[str, Any], two: dict[str, Any]) -> None:
    runs = [one[f"zero{z}"] for z in range(4)] + [two[f"zero{z}"] for z in range(4)]
    for run in runs:
        assert len(run["rates"]) == engine_cases.STEPS
        for rates in run["rates"]:
            assert rates == pytest.approx(RATES, rel=1e-6)


def test_with_equal_gradients_b_moves_sixteen_times_as_far(
    one: dict[str, Any], two: dict[str, Any]
) -> None:
    for moved in [*one["moves"].values(), *two["moves"].values()]:
        assert moved["lora_A"] == pytest.approx(1e-3, rel=1e-3)
        assert moved["lora_B"] / moved["lora_A"] == pytest.approx(16, rel=1e-3)


@pytest.mark.parametrize(
    ("half", "again", "whole"), [("half", "again", "zero0"), ("half2", "again2", "zero2")]
)
def test_one_worker_goes_on_to_the_bit(
    one: dict[str, Any], half: str, again: str, whole: str
) -> None:
    assert one[half]["state"].adam_step == HALF
    assert one[again]["losses"] == one[whole]["losses"][HALF:]
    assert _same(one[again], one[whole])


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_workers_go_on_to_the_bit(two: dict[str, Any], zero: int) -> None:
    assert _same(two[f"again{zero}"], two[f"zero{zero}"])


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_one_goes_on_from_two(
    two: dict[str, Any], from_two: dict[int, dict[str, Any]], zero: int
) -> None:
    resumed = from_two[zero]
    assert abs(resumed["losses"][0] - two[f"zero{zero}"]["losses"][HALF]) < 1e-3
    assert _distance(resumed["losses"], two[f"zero{zero}"]["losses"][HALF:]) < 1e-3
    assert resumed["rates"][0] == pytest.approx(RATES, rel=1e-6)
    assert resumed["state"].adam_step == engine_cases.STEPS


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_two_go_on_from_one(one: dict[str, Any], two: dict[str, Any], zero: int) -> None:
    resumed = two["from_one"][zero]
    assert _distance(resumed["losses"], one["zero0"]["losses"][HALF:]) < 1e-3
    assert resumed["rates"][0] == pytest.approx(RATES, rel=1e-6)
