"""What the quickstart reaches and where its time goes, for both heads.

    python benchmarks/quickstart.py

Submits jobs/finetune.py as `make quickstart` does, once a head, on a local cluster of its own,
and writes benchmarks/results/quickstart.json: test F1 of the adapter, of the untrained base and
of a linear CRF, seconds from submission to the first step by what they are spent on.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from crf_baseline import score as crf_score
from machine import machine
from raytag.local import LocalCluster

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "quickstart.json"
HEADS = ("tag", "generate")


def submit(cluster: LocalCluster, head: str, output: Path) -> dict[str, Any]:
    """Run one job; its scores and seconds."""
    ray = Path(sys.executable).with_name("ray")
    config = "jobs/sample.yaml" if head == "tag" else "jobs/sample_generate.yaml"
    submitted = time.time()
    command = [str(ray), "job", "submit", "--working-dir", ".", "--"]
    command += ["python", "jobs/finetune.py", "--config", config, "--output", str(output)]
    subprocess.run(
        command, cwd=ROOT, env=dict(cluster.environment), check=True, stdout=subprocess.DEVNULL
    )
    finished = time.time()
    report = json.loads((output / "report" / "report.json").read_text(encoding="utf-8"))
    spent = report["resources"]["seconds"]
    until_first = ["start driver", "read data and connect", "schedule workers", "start workers"]
    until_first += ["load base", "score untrained", "prepare"]
    phases = {name: round(spent.get(name, 0.0), 2) for name in until_first}
    phases["first step"] = round(report["curve"][0]["seconds"], 2)
    inside = sum(spent.values())
    phases = {"submit and wind up": round(finished - submitted - inside, 2), **phases}
    return {
        "test_f1": round(report["test"]["f1"], 4),
        "untrained_f1": round(report["baseline"], 4),
        "test_documents_f1": round(report["test_documents"]["f1"], 4),
        "dev_f1": round(report["dev"]["f1"], 4),
        "steps": report["curve"][-1]["step"],
        "examples_per_second": round(report["resources"]["examples_per_second"], 1),
        "seconds_in_all": round(finished - submitted, 1),
        "seconds_training": round(spent["train"], 1),
        "seconds_scoring": round(spent["score"], 1),
        "seconds_to_first_step": phases,
    }


def main() -> None:
    results: dict[str, Any] = {"machine": machine(), "crf_f1": round(crf_score("news")[0], 4)}
    began = time.time()
    with tempfile.TemporaryDirectory() as folder, LocalCluster() as cluster:
        results["seconds_to_start_cluster"] = round(time.time() - began, 1)
        for head in HEADS:
            results[head] = submit(cluster, head, Path(folder) / head)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(results, indent=2))


if __name__ == "__main__":
    main()
