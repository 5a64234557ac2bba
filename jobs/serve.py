#!/usr/bin/env python3
"""Serve adapters: `ray job submit … -- python jobs/serve.py --base … --registry … --keys …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raytag.cli import run, serve

if __name__ == "__main__":
    sys.exit(run(serve))
