#!/usr/bin/env python3
"""Fine-tune a base model on annotated text: `ray job submit … -- python jobs/finetune.py --help`.

Without any arguments it trains on the sample that ships.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "platform"))

from raytag.cli import read_settings, run  # noqa: E402


def main(arguments: Sequence[str]) -> int:
    from raytag.train.settings import FinetuneSettings

    given = list(arguments) or ["--config", str(ROOT / "jobs" / "sample.yaml")]
    settings = read_settings(FinetuneSettings, given, "finetune.py")
    from raytag.report.terminal import print_report, print_tagged
    from raytag.train.finetune import finetune

    published = finetune(settings)
    if published is not None:
        print_report(published.report, sentences=0)
        print("\nheld-out sentences, as the adapter tags them:")
        print_tagged([example.text for example in published.test], published.predicted)
        print(f"adapter: {settings.output}/adapter")
        print(f"report:  {settings.output}/report/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
