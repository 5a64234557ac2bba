#!/usr/bin/env python3
"""Score an adapter on annotated text: `ray job submit … -- python jobs/evaluate.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raytag.cli import evaluate, run

if __name__ == "__main__":
    sys.exit(run(evaluate))
