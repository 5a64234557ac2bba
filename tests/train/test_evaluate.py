"""What is scored: an adapter, or the model it was merged into; both alike."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from test_adapter import make
from tiny import checkpoint

from driving import driving
from raytag.errors import ModelError
from raytag.local import LocalCluster
from raytag.model.merge import merge_adapter
from raytag.model.settings import MergeSettings
from raytag.train.evaluate import EvaluateSettings, evaluate

DATA = Path(__file__).resolve().parents[2] / "sample" / "news" / "dev.jsonl"


@pytest.fixture(scope="module")
def driver(cluster: LocalCluster) -> Iterator[None]:
    with driving(cluster):
        yield


def test_a_merged_model_is_scored_as_its_adapter_is(driver: None, tmp_path: Path) -> None:
    adapter = make(tmp_path / "adapter", checkpoint(tmp_path / "base"), "tag").folder
    data = tmp_path / "data.jsonl"
    data.write_text("".join(DATA.open(encoding="utf-8").readlines()[:10]), encoding="utf-8")
    merged = str(tmp_path / "merged")
    merge_adapter(MergeSettings(adapter=str(adapter), output=merged, dtype="fp32"))
    by_adapter, by_merged = (
        evaluate(EvaluateSettings(adapter=name, data=str(data))) for name in (str(adapter), merged)
    )
    assert by_adapter.test is not None
    assert by_adapter.test.micro.tp + by_adapter.test.micro.fp > 0
    assert by_merged.test == by_adapter.test
    assert by_merged.confusions == by_adapter.confusions
    with pytest.raises(ModelError, match="loaded in fp32 or bf16, not in 4bit"):
        evaluate(EvaluateSettings(adapter=merged, data=str(data), load_in="4bit"))
