"""Install the project into the environment that runs this, versions as in constraints.txt.

Given an index with torch's CPU builds, one of those is taken where there is no GPU and the index
can be reached; else pip decides.
"""

import argparse
import shutil
import subprocess
import sys
import urllib.request
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def reachable(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5):
            return True
    except OSError:
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch-cpu-index", help="index with CPU builds of torch")
    parser.add_argument("target", help=". or .[extra]")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", options.target]
    command += ["--constraint", str(ROOT / "constraints.txt")]
    index = options.torch_cpu_index
    if index and shutil.which("nvidia-smi") is None and reachable(index):
        command += ["--extra-index-url", index]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
