"""Trials in, a comparison out: figures worked out by hand, and a page that shows them."""

import io
import json
import math
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from raytag.report.comparison import (
    Comparison,
    Evaluation,
    Standing,
    TrialRecord,
    best_of,
    compare,
)
from raytag.report.comparison_page import print_comparison, render_comparison, to_markdown
from raytag.report.terminal import FleetTable

RIGHT, WRONG, MISSED = (1, 0, 0), (0, 1, 0), (0, 0, 1)


def trial(
    method: str, lr: float, seed: int, dev: list[float], test: Any = (), **other: Any
) -> TrialRecord:
    """Evaluated on dev every 10 steps, at a second each."""
    told: dict[str, Any] = {"state": "finished", "data": "news", "examples": 200, "seconds": 40.0}
    return TrialRecord(
        method=method,
        seed=seed,
        point={"lr": lr},
        total_steps=30,
        losses=[1.0, 0.5],
        evaluations=[Evaluation(step=10 * i, f1=f, seconds=i) for i, f in enumerate(dev, 1)],
        test=test,
        **{**told, **other},
    )


TRIALS = [
    # By test the first would win, by dev it is the second, which stands at no edge.
    trial("lora", 1e-3, 0, [0.1, 0.2, 0.3], [RIGHT, RIGHT, RIGHT, RIGHT]),
    trial("lora", 2e-3, 0, [0.3, 0.5, 0.6], [RIGHT, RIGHT, MISSED, WRONG]),
    trial("lora", 4e-3, 0, [0.9, 0.1], state="stopped", seconds=7.0),
    trial("lora", 2e-3, 1, [0.4, 0.7, 0.7], [RIGHT, MISSED, RIGHT, RIGHT]),
    trial("lora", 1e-3, 1, [0.9, 0.9, 0.9], [RIGHT, RIGHT, RIGHT, RIGHT]),
    trial("lora+", 1e-3, 0, [0.6, 0.7, 0.65], [RIGHT, RIGHT, RIGHT, WRONG]),
    trial("lora+", 2e-3, 0, [0.2, 0.2, 0.2], [WRONG, WRONG, WRONG, WRONG]),
    trial("lora+", 4e-3, 0, [0.2, 0.2, 0.2], [WRONG, WRONG, WRONG, WRONG]),
    trial("lora+", 1e-3, 1, [0.5, 0.6, 0.6], [RIGHT, RIGHT, RIGHT, RIGHT]),
    trial("hopeless", 1e-3, 0, [0.0], state="stopped"),
]


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare("rates", TRIALS, reference="lora", first_seed=0, machine={"devices": ["CPU"]})


def standing(comparison: Comparison, method: str) -> Standing:
    (contest,) = comparison.contests
    (found,) = [s for s in contest.standings if s.method == method]
    return found


def test_a_method_stands_at_what_was_best_on_dev_with_the_first_seed(
    comparison: Comparison,
) -> None:
    lora, plus = standing(comparison, "lora"), standing(comparison, "lora+")
    assert (lora.point, lora.seeds, lora.at_edge) == ({"lr": 2e-3}, [0, 1], [])
    assert (plus.point, plus.seeds, plus.at_edge) == ({"lr": 1e-3}, [0, 1], ["lr"])
    assert lora.dev.values == [0.6, 0.7]
    assert lora.test.values == [4 / 6, 6 / 7]
    assert lora.test.deviation == pytest.approx((6 / 7 - 4 / 6) / math.sqrt(2))
    assert (lora.tried, lora.stopped, lora.search_seconds) == (5, 1, 4 * 40 + 7)
    assert [s.method for s in comparison.contests[0].standings] == ["lora", "lora+"]
    assert comparison.contests[0].best is plus
    assert comparison.contests[0].sentences == 4


def test_steps_are_told_by_those_that_the_reference_took_to_its_best(
    comparison: Comparison,
) -> None:
    lora, plus = standing(comparison, "lora"), standing(comparison, "lora+")
    # With seed 0 it has 0.6 at 10 of 30 steps; with seed 1 it never comes to 0.7.
    assert plus.steps_ratio is not None
    assert plus.steps_ratio.values == [10 / 30]
    assert plus.reached == 1
    assert plus.steps.values == [20, 20]
    assert lora.steps.values == [30, 20]
    assert plus.curve == [(10, 0.55), (20, pytest.approx(0.65)), (30, pytest.approx(0.625))]


def test_the_difference_is_of_all_seeds_counts_with_an_interval_around_it(
    comparison: Comparison,
) -> None:
    assert standing(comparison, "lora").difference is None
    found = standing(comparison, "lora+").difference
    assert found is not None
    assert found.f1 == pytest.approx(14 / 15 - 10 / 13)
    assert found.low < found.f1 < found.high
    alone = compare("x", TRIALS[-5:], reference="lora", first_seed=0)
    assert standing(alone, "lora+").difference is None
    assert standing(alone, "lora+").steps_ratio is None


def test_what_was_stopped_or_never_scored_is_not_the_best() -> None:
    assert best_of(TRIALS[2:3]) is None
    assert compare("x", TRIALS[-1:], reference="hopeless", first_seed=0).contests == []
    equal = [trial("m", lr, 0, [0.5], [RIGHT]) for lr in (1.0, 2.0)]
    assert best_of(equal) is equal[0]


def test_a_record_comes_back_as_it_was_written() -> None:
    told = [[1, 0, 0], [0, 1, 2]]
    whole = trial(
        *("m", 1e-3, 7, [0.5, 0.25], told), examples=0, device="a card", settings={"lr": 1e-3}
    )
    assert TrialRecord.from_json(whole.to_json()) == whole
    odd = trial("m", 1.0, 0, [0.5], [RIGHT])
    text = TrialRecord.to_json(
        TrialRecord.from_json(odd.to_json().replace('"losses":[1.0', '"losses":[null'))
    )
    assert json.loads(text)["losses"] == [None, 0.5]
    with pytest.raises((ValueError, KeyError, TypeError)):
        TrialRecord.from_json('{"losses": []}')


def test_where_nothing_was_found_the_last_weights_are_kept_and_nobody_comes_to_that() -> None:
    nothing = trial("lora", 1e-3, 0, [0.0, 0.0, 0.0], [MISSED])
    assert nothing.peak.step == 30
    found = compare(
        "x", [nothing, trial("lora+", 1e-3, 0, [0.5], [RIGHT])], reference="lora", first_seed=0
    )
    assert standing(found, "lora+").steps_ratio is None
    assert "| 1 | 0.500 | 1.000 |" in to_markdown(found)


def test_what_is_missing_is_said() -> None:
    records = [
        *(trial("lora", 1e-3, seed, [0.5, 0.6], [RIGHT]) for seed in (0, 1, 2)),
        *(trial("lora+", 1e-3, seed, [0.7, 0.6], [RIGHT]) for seed in (0, 3)),
        trial("slow", 1e-3, 0, [0.1], state="stopped"),
    ]
    asked = ("lora", "lora+", "broken", "slow")
    found = compare("x", records, reference="lora", first_seed=0, asked=asked)
    (contest,) = found.contests
    assert contest.without == ["broken", "slow"]
    # Of its two seeds the reference has one, to whose peak it came.
    assert (standing(found, "lora+").reached, standing(found, "lora+").compared) == (1, 1)
    for text in (to_markdown(found), render_comparison(found)):
        assert "No trial of the search finished: broken, slow" in text
        assert "1.000 ± 0.000, 2 of 3 seeds" in text
    assert json.loads(found.to_json())["contests"][0]["without"] == ["broken", "slow"]
    alone = compare("x", records[3:], reference="lora", first_seed=0)
    assert "never" not in to_markdown(alone)


def test_seeds_that_were_evaluated_after_other_steps_have_no_curve_and_a_page() -> None:
    evaluations = [Evaluation(step=6, f1=0.5, seconds=1.0)]
    other = replace(trial("lora", 1e-3, 1, [0.5], [RIGHT]), evaluations=evaluations)
    records = [trial("lora", 1e-3, 0, [0.5], [RIGHT]), other]
    found = compare("x", records, reference="lora", first_seed=0)
    assert standing(found, "lora").curve == []
    assert "0.500 ± 0.000" in render_comparison(found)


def test_two_records_of_one_trial_are_no_two_seeds() -> None:
    with pytest.raises(ValueError, match="two records are of"):
        compare("x", [*TRIALS, TRIALS[0]], reference="lora", first_seed=0)


def test_page_markdown_and_json_say_the_same(comparison: Comparison) -> None:
    markdown, page = to_markdown(comparison), render_comparison(comparison)
    row = "| news, 200 examples | 0.762 ± 0.135 | 0.929 ± 0.101 |"
    assert row in markdown
    assert "lr=0.001\\*" in markdown
    assert "0.33 (1 of 2)" in markdown
    assert "5 trials, 1 stopped" in markdown
    for cell in ("0.762 ± 0.135", "0.929 ± 0.101", "lr=0.001*", "0.33 (1 of 2)"):
        assert cell in page
    (contest,) = json.loads(comparison.to_json())["contests"]
    assert contest["methods"][1]["test"]["mean"] == standing(comparison, "lora+").test.mean
    printed = io.StringIO()
    print_comparison(comparison, Console(file=printed, width=100))
    assert "0.929 ± 0.101" in printed.getvalue()


def test_a_narrow_terminal_loses_no_row_name_and_no_figure() -> None:
    methods = [f"method {i}" for i in range(5)]
    data = "a-long-name-of-a-set"
    records = [
        trial(method, 1.0, seed, [0.5], [RIGHT], data=data) for method in methods for seed in (0, 1)
    ]
    found = compare("narrow", records, reference=methods[0], first_seed=0)
    printed = io.StringIO()
    print_comparison(found, Console(file=printed, width=80))
    assert "…" not in printed.getvalue()
    column = "".join(line[2:14].strip() for line in printed.getvalue().splitlines()[1:])
    assert data in column
    assert printed.getvalue().count("1.000 ±") == 5


def test_names_obey_nothing_and_end_no_table() -> None:
    bad = "<script>alert(1)</script>|*"
    records = [trial(bad, 1.0, 0, [0.5], [RIGHT]), trial("b", 1.0, 0, [0.5], [RIGHT], data=bad)]
    found = compare(bad, records, reference=bad, first_seed=0)
    assert "<script>alert" not in render_comparison(found)
    assert "&lt;script&gt;alert" in render_comparison(found)
    lines = [line for line in to_markdown(found).splitlines() if line.startswith("| Test F1")]
    assert lines == ["| Test F1 | &lt;script>alert(1)&lt;/script>\\|\\* | b |"]
    assert "–" in to_markdown(found)


def test_a_table_of_trials_knows_how_many_are_to_come() -> None:
    log = io.StringIO()
    with FleetTable((), Console(file=log, width=100), kind="trial", total=12) as table:
        table.show("first", "training")
        table.step("first", 10, 20, 0.5)
        table.show("first", "finished", f1=0.625)
    assert " 0/12 first training" in log.getvalue()
    assert " 1/12 first finished  F1 0.625" in log.getvalue()
    assert "1 of 12 done" in log.getvalue()
    assert "trial" in log.getvalue()


def test_a_long_name_takes_no_room_from_what_became_of_it() -> None:
    log, name = io.StringIO(), "[b]crossner-politics and its dev 500 LoRA+ 16 lr=0.0002 " * 2
    with FleetTable((), Console(file=log, width=60), kind="trial") as table:
        table.show(name, "training")
        table.step(name, 250, 320, 0.5)
        table.show(name, "finished", f1=0.625)
    end = log.getvalue().partition("1 of 1 done")[2]
    assert all(word in end for word in ("[b]crossner", "finished", "250/320", "0.625"))
