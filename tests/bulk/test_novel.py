"""A novel is tagged whole, and its entities stand where they would stand chapter by chapter."""

import re
from itertools import pairwise
from pathlib import Path

from raytag.model.adapter import load_adapter
from raytag.model.tagger import Tagger
from raytag.text.words import words


def test_a_novel_whole_and_chapter_by_chapter(data_folder: Path, adapter: Path) -> None:
    path = data_folder / "text" / "84_frankenstein_or_the_modern_prometheus.txt"
    with path.open(encoding="utf-8", newline="") as file:
        novel = file.read()[:90_000]
    cuts = [match.start() for match in re.finditer(r"^Chapter \d+", novel, re.MULTILINE)]
    assert len(cuts) >= 3
    chapters = [novel[a:b] for a, b in zip([0, *cuts], [*cuts, len(novel)], strict=True)]
    assert "".join(chapters) == novel
    tagger = Tagger.of(load_adapter(adapter))
    (whole,) = tagger.tag([novel])
    apart = [
        entity.shifted(at)
        for at, entities in zip([0, *cuts], tagger.tag(chapters), strict=True)
        for entity in entities
    ]
    # Windows look at the text around them: those that touch a cut may lie otherwise.
    near = 3 * tagger.window
    spared = [e for e in whole if all(abs(e.start - cut) > near for cut in cuts)]
    assert spared == [e for e in apart if all(abs(e.start - cut) > near for cut in cuts)]
    assert len(spared) > 0.8 * len(whole) > 1000
    starts, ends = zip(*words(novel), strict=True)
    assert {e.start for e in whole} <= set(starts)
    assert {e.end for e in whole} <= set(ends)
    assert all(a.end <= b.start for a, b in pairwise(whole))
