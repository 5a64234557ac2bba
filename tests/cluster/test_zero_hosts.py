"""The same training on one host and on two, whose workers share it by ZeRO-2 and ZeRO-3."""

from typing import TYPE_CHECKING

import pytest
from finetuning import finetune, losses, put_sample, report
from ray_hosts import RayHosts, finished

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 16


@pytest.fixture(scope="module")
def flags(s3: "S3Client") -> list[str]:
    s3.create_bucket(Bucket="zero")
    data = put_sample("s3://zero", 32, 8, 8)
    return [*data, "--batch-size", "4", "--epochs", "2", "--dropout", "0", "--lr", "1e-3"]


@pytest.fixture(scope="module")
def alone(hosts: RayHosts, flags: list[str]) -> list[float]:
    """The loss of each step on one host, in one process, without ZeRO."""
    hosts.have_workers(2)
    finished(finetune(hosts, "s3://zero/alone", *flags, "--workers", "1", "--zero", "0"))
    assert len(losses("s3://zero/alone")) == STEPS
    return losses("s3://zero/alone")


@pytest.mark.parametrize("zero", ["2", "3"])
def test_two_hosts_walk_the_loss_curve_of_one(
    hosts: RayHosts, flags: list[str], alone: list[float], zero: str
) -> None:
    hosts.have_workers(2)
    output = f"s3://zero/stage-{zero}"
    finished(finetune(hosts, output, *flags, "--workers", "2", "--zero", zero))
    assert report(output).resources.workers == 2
    assert report(output).resources.zero_stage == int(zero)
    assert losses(output) == pytest.approx(alone, abs=1e-4)
    assert alone[-1] < alone[0] / 2
