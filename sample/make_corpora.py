"""Write the sample corpora beside this file.

python sample/make_corpora.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT.parent / "platform"))

from raytag.text import sample  # noqa: E402  (the source root has to be on the path first)

if __name__ == "__main__":
    for path in sample.write(ROOT):
        print(path.relative_to(ROOT.parent))
