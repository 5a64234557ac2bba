#!/usr/bin/env python3
"""Make one model of an adapter and its base: `python jobs/merge.py --adapter … --output …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raytag.cli import merge, run

if __name__ == "__main__":
    sys.exit(run(merge))
