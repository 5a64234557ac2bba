"""The figures of memory in docs/operations.md are those of the job's own arithmetic."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_says_what_the_arithmetic_says() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "docs" / "sizing.py"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    rows = ran.stdout.splitlines()
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    assert len(rows) == 10
    assert [row for row in rows if row not in page] == []
