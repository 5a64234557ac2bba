#!/usr/bin/env python3
"""Fine-tune a base model on annotated text: `ray job submit … -- python jobs/finetune.py --help`.

Without any arguments it trains on the sample that ships.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))

from raytag.cli import finetune, run  # noqa: E402

if __name__ == "__main__":
    sample = ["--config", str(ROOT / "jobs" / "sample.yaml")]
    sys.exit(run(finetune, sys.argv[1:] or sample))
