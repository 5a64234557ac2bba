#!/usr/bin/env python3
"""Score an adapter on annotated text: `ray job submit … -- python jobs/evaluate.py --help`."""

import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "platform"))

from raytag.cli import read_settings, run


def main(arguments: Sequence[str]) -> int:
    from raytag.train.evaluate import EvaluateSettings, evaluate

    settings = read_settings(EvaluateSettings, arguments, "evaluate.py")
    from raytag.report.terminal import print_report

    print_report(evaluate(settings))
    if settings.output:
        print(f"report: {settings.output}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
