"""What auto picks, and that docs/guidance.md says the same."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tiny import encoder

from raytag.errors import SettingsError
from raytag.model.base import Base, find_base
from raytag.train.advice import PICKED, TABLE, advised
from raytag.train.settings import FinetuneSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "guidance.md"
TOLD = FinetuneSettings(base="b", train="t", output="o", auto=True)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    return find_base(str(encoder(tmp_path_factory.mktemp("advice") / "base")))


def test_the_page_says_what_auto_picks() -> None:
    page = PAGE.read_text(encoding="utf-8")
    for row in TABLE:
        upto = "any" if math.isinf(row.weights) else f"{row.weights / 1e6:.0f} million"
        count = "any" if math.isinf(row.examples) else f"{row.examples:.0f}"
        picks = " | ".join(f"{row.picks[name]:g}" for name in PICKED)
        assert f"| {upto} | {count} | {picks} |" in page


def test_the_defaults_are_the_advice_for_what_was_not_measured() -> None:
    last = TABLE[-1]
    assert (last.weights, last.examples) == (math.inf, math.inf)
    assert all(getattr(TOLD, name) == value for name, value in last.picks.items())


def test_auto_picks_for_the_base_and_the_examples(
    base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    found = advised(TOLD, 200, base)
    assert {name: getattr(found, name) for name in PICKED} == TABLE[0].picks
    assert "(for 200 examples, 0 million weights and the tag head)" in capsys.readouterr().out
    assert advised(found, 200, base) == found
    assert advised(replace(TOLD, auto=False), 200, base) == replace(TOLD, auto=False)


@pytest.mark.parametrize("given", [{"epochs": 3}, {"lr": 3e-4, "ratio": 8.0, "head_lr": 5e-3}])
def test_what_was_given_stands(base: Base, given: dict[str, Any]) -> None:
    found = advised(replace(TOLD, **given), 200, base)
    picked = set(PICKED) - given.keys()
    assert {name: getattr(found, name) for name in picked} == {
        name: TABLE[0].picks[name] for name in picked
    }
    assert {name: getattr(found, name) for name in given} == given


@pytest.mark.parametrize("given", [{"lr": 3e-4}, {"ratio": 1.0}])
def test_half_of_what_goes_together_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match="change both or neither"):
        replace(TOLD, **given)
    replace(TOLD, auto=False, **given)


def test_what_was_measured_with_one_head_is_not_said_of_another(base: Base) -> None:
    told = replace(TOLD, head="generate")
    assert advised(told, 200, base) == told
