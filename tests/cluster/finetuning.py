"""Fine-tuning as the tests of hosts submit it: the sample, from and to S3, and what it leaves."""

import subprocess
from pathlib import Path

from ray_hosts import ROOT, RayHosts

from raytag import storage
from raytag.report.content import Report, from_json

SAMPLE = ROOT / "sample" / "news"


def put_sample(bucket: str, train: int, dev: int, test: int) -> list[str]:
    """Rows of the sample, as many of each split, put there; flags that name them.

    The base is the one that lies in the working directory, of which every host gets a copy.
    """
    flags = ["--base", "sample/base"]
    for name, rows in {"train": train, "dev": dev, "test": test}.items():
        lines = Path(SAMPLE / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()[:rows]
        storage.write_bytes(f"{bucket}/{name}.jsonl", "\n".join(lines).encode())
        flags += [f"--{name}", f"{bucket}/{name}.jsonl"]
    return flags


def finetune(hosts: RayHosts, output: str, *flags: str) -> "subprocess.Popen[str]":
    return hosts.job("finetune.py", "--output", output, *flags)


def report(output: str) -> Report:
    return from_json(storage.read_bytes(f"{output}/report/report.json").decode())


def losses(output: str) -> list[float]:
    return [point.loss for point in report(output).curve]


def saved(output: str) -> int:
    """Steps of the newest complete checkpoint; 0 where there is none."""
    files = storage.list_files(f"{output}/checkpoints")
    complete = [file.split("/")[-2] for file in files if file.endswith("/manifest.json")]
    return max((int(name.partition("-")[0]) for name in complete), default=0)
