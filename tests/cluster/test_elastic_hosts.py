"""Training goes on while hosts die, are cut off from the network, and join."""

import re
from typing import TYPE_CHECKING

import pytest
from finetuning import finetune, losses, put_sample, report, saved
from ray_hosts import RayHosts, finished

from waiting import until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(900)]
INTERVAL = 15
"""Steps between checkpoints."""


@pytest.fixture(scope="module")
def flags(s3: "S3Client") -> list[str]:
    s3.create_bucket(Bucket="elastic")
    data = put_sample("s3://elastic", 300, 100, 20)
    # Dropout's masks are each worker's own: without it, two workers compute what three do.
    shape = ["--batch-size", "8", "--epochs", "12", "--lr", "3e-4", "--dropout", "0"]
    when = ["--checkpoint-every", str(INTERVAL), "--eval-every", "150", "--patience", "0"]
    return [*data, *shape, *when, "--zero", "2"]


@pytest.fixture(scope="module")
def calm(hosts: RayHosts, flags: list[str]) -> str:
    """An undisturbed run, on one host."""
    hosts.have_workers(1)
    finished(finetune(hosts, "s3://elastic/calm", *flags, "--workers", "1"))
    return "s3://elastic/calm"


def test_a_host_killed_one_added_and_one_cut_off(
    hosts: RayHosts, flags: list[str], calm: str
) -> None:
    first, second, third = hosts.have_workers(3)
    output = "s3://elastic/wild"
    job = finetune(hosts, output, *flags, "--workers", "2:3")

    def trained_on(places: set[str], seconds: float) -> None:
        """Wait until there is a worker on each of these hosts and a checkpoint of theirs."""
        until(lambda: hosts.training() == places, seconds, f"workers on {places}")
        before = saved(output)
        until(lambda: saved(output) > before or job.poll() is not None, seconds, "a checkpoint")
        assert job.poll() is None, job.communicate()[0][-4000:]

    least = []
    trained_on({first.address, second.address, third.address}, 120)
    least.append(saved(output))
    hosts.kill(first)
    trained_on({second.address, third.address}, 120)

    least.append(saved(output))
    fourth = hosts.add_worker()
    trained_on({second.address, third.address, fourth.address}, 150)

    least.append(saved(output))
    second.cut()
    unnoticed = until(lambda: second.address not in hosts.alive(), 90)
    trained_on({third.address, fourth.address}, 120)
    second.restore()

    said = finished(job)
    resumed = [int(step) for step in re.findall(r"going on from step (\d+)", said)]
    assert len(resumed) == len(least), said[-4000:]
    assert all(there >= at for there, at in zip(resumed, least, strict=True))
    assert losses(output) == pytest.approx(losses(calm), abs=1e-2)
    was, is_ = report(calm).dev, report(output).dev
    assert was is not None
    assert is_ is not None
    assert is_.f1 == pytest.approx(was.f1, abs=0.01)
    assert was.f1 > 0.5
    assert 5 < unnoticed < 30
