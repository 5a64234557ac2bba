"""The head is killed and started again: what was saved is gone on from, the rest is begun anew."""

import re
from typing import TYPE_CHECKING

import pytest
from finetuning import finetune, put_sample, report, saved
from ray_hosts import START_SECONDS, RayHosts, finished

from waiting import until

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

pytestmark = [pytest.mark.cluster, pytest.mark.slow, pytest.mark.timeout(600)]
STEPS, INTERVAL = 240, 10
WORKERS_GIVE_UP = 120.0
"""Seconds; Ray has them wait for the head for 60."""


def test_a_job_submitted_again_goes_on_from_its_checkpoint(hosts: RayHosts, s3: "S3Client") -> None:
    hosts.have_workers(2)
    s3.create_bucket(Bucket="head")
    output = "s3://head/run"
    flags = [*put_sample("s3://head", 80, 20, 10), "--workers", "2", "--zero", "2"]
    flags += ["--batch-size", "4", "--epochs", "12", "--checkpoint-every", str(INTERVAL)]
    flags += ["--eval-every", "80", "--patience", "0"]
    job = finetune(hosts, output, *flags)
    until(lambda: saved(output) > 0 or job.poll() is not None, 120, "a checkpoint")
    least = saved(output)
    hosts.head.kill()
    said, _ = job.communicate(timeout=60)
    assert job.returncode != 0, said[-4000:]

    # Workers of a head that is gone end by themselves; what starts Ray on them starts it again.
    hosts.start_head()
    until(lambda: all(map(hosts.ended, hosts.workers)), WORKERS_GIVE_UP, "the workers give up")
    for worker in hosts.workers:
        hosts.join(worker)
    wanted = {host.address for host in (hosts.head, *hosts.workers)}
    until(lambda: hosts.alive() == wanted, START_SECONDS, f"{wanted} are up")
    assert hosts.ask("/api/jobs/") == []

    said = finished(finetune(hosts, output, *flags))
    resumed = re.findall(r"going on from step (\d+)", said)
    assert len(resumed) == 1, said[-4000:]
    assert int(resumed[0]) >= least >= INTERVAL
    assert [point.step for point in report(output).curve] == list(range(1, STEPS + 1))
