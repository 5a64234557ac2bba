"""The tables of docs/scaling.md are those of its model, and of the runs it is held against."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_page_says_what_the_model_says() -> None:
    ran = subprocess.run(
        [sys.executable, ROOT / "docs" / "scaling.py"], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    rows = ran.stdout.splitlines()
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert len(rows) == 44
    assert [row for row in rows if row not in page] == []
