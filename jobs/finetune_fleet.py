#!/usr/bin/env python3
"""Train many adapters: `ray job submit … -- python jobs/finetune_fleet.py --manifest FILE …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raytag.cli import finetune_fleet, run

if __name__ == "__main__":
    sys.exit(run(finetune_fleet))
