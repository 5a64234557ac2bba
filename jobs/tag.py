#!/usr/bin/env python3
"""Tag a corpus: `ray job submit … -- python jobs/tag.py --input … --output … --model …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raytag.cli import run, tag

if __name__ == "__main__":
    sys.exit(run(tag))
