"""Examples longer than the model are trained on whole, in windows."""

from pathlib import Path

import pytest
from tiny import checkpoint

from raytag.model.adapter import make_head
from raytag.model.base import load_tokenizer
from raytag.model.settings import HeadName
from raytag.text.spans import Entity, Example
from raytag.train.loop import encoded


@pytest.mark.parametrize("name", ["tag", "generate"])
def test_a_long_example_becomes_rows_that_fit(name: HeadName, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(checkpoint(tmp_path))
    limit = 160
    head = make_head(name, tokenizer, ("PER",), context=limit)
    sentence = "Tim met Ann in the rain, and nobody said why. "
    text = sentence * 30
    entities = [
        Entity(at + start, at + start + 3, "PER")
        for at in range(0, len(text), len(sentence))
        for start in (0, 8)
    ]
    rows = encoded(head, Example("long", text, tuple(entities)), limit)
    assert len(rows) > 5
    assert all(len(row.input_ids) <= limit for row in rows)
    if name == "tag":
        begun = sum(row.targets.count(1) for row in rows)
        assert begun == len(entities)
    short = Example("short", sentence, tuple(entities[:2]))
    assert encoded(head, short, limit) == [head.encode(short)]
