#!/usr/bin/env python3
"""Compare ways of fine-tuning: `ray job submit … -- python jobs/sweep.py --config FILE …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raytag.cli import run, sweep

if __name__ == "__main__":
    sys.exit(run(sweep))
