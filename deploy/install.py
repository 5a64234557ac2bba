"""Install the project into the environment that runs this, versions as in constraints.txt.

Without a GPU, torch's CPU build is taken where its index can be reached; else pip decides.
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
    parser.add_argument("--torch-cpu-index", required=True, help="index with CPU builds of torch")
    parser.add_argument("target", help=". or .[extra]")
    options = parser.parse_args()
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--editable", options.target]
    command += ["--constraint", str(ROOT / "constraints.txt")]
    if shutil.which("nvidia-smi") is None and reachable(options.torch_cpu_index):
        command += ["--extra-index-url", options.torch_cpu_index]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
