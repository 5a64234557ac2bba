"""The figures in docs/ are those of the arithmetic that stands beside them."""

import subprocess
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize(
    ("program", "page", "count"),
    [
        ("sizing.py", "operations.md", 10),
        ("scaling.py", "scaling.md", 44),
        ("evidence.py", "evidence.md", 81),
    ],
)
def test_the_page_says_what_the_arithmetic_says(program: str, page: str, count: int) -> None:
    ran = subprocess.run(
        [sys.executable, DOCS / program], capture_output=True, text=True, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    rows = ran.stdout.splitlines()
    said = (DOCS / page).read_text(encoding="utf-8")
    assert len(rows) == count
    assert [row for row in rows if row not in said] == []
    # Nor do the tables on the page hold rows that are no longer true.
    for block in said.split("\n\n"):
        table = [line for line in block.splitlines() if line.startswith("|")]
        if table and table[0] in rows:
            assert [row for row in table if row not in rows] == []
