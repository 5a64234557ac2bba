"""What a canary's rule says of what was seen, and who is asked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytag.errors import SettingsError
from raytag.serve.canary import Canary, Observed, Rule, chosen, decide
from raytag.text.spans import Entity

RULE = Rule(min_requests=100, max_error_rate=0.02, max_latency_ratio=1.5, min_agreement=0.8)
COUNTS = st.builds(
    Observed,
    **{
        name: st.integers(0, 1000)
        for name in ("requests", "compared", "candidate_errors", "incumbent_errors", "both")
    },
)


def seen(
    requests: int,
    *,
    errors: int = 0,
    incumbent_errors: int = 0,
    seconds: tuple[float, float] = (1.0, 1.0),
    entities: tuple[int, int, int] = (10, 0, 0),
) -> Observed:
    """``seconds`` of the candidate and the incumbent, ``entities`` of both and of one alone."""
    return Observed(
        requests=requests,
        compared=requests - max(errors, incumbent_errors),
        candidate_errors=errors,
        incumbent_errors=incumbent_errors,
        candidate_seconds=seconds[0],
        incumbent_seconds=seconds[1],
        both=entities[0],
        only_candidate=entities[1],
        only_incumbent=entities[2],
    )


@pytest.mark.parametrize(
    ("observed", "verdict", "reason"),
    [
        (seen(0), "wait", "0 of 100"),
        (seen(99), "wait", "99 of 100"),
        (seen(100), "forward", "100 requests compared"),
        (seen(3, errors=2), "wait", "1 of 100"),
        (seen(3, errors=3), "back", "3 errors more"),
        (seen(1000, errors=20), "forward", "20 errors more"),
        (seen(1000, errors=21), "back", "21 errors more"),
        (seen(100, seconds=(1.5, 1.0)), "forward", "1.50 times"),
        (seen(100, seconds=(1.6, 1.0)), "back", "takes 1.60 times"),
        (seen(99, seconds=(1.6, 1.0)), "wait", "99 of 100"),
        (seen(100, seconds=(1.0, 0.0)), "back", "takes inf times"),
        (seen(100, seconds=(0.0, 0.0)), "forward", "1.00 times"),
        (seen(100, entities=(8, 2, 2)), "forward", "agreement 0.800"),
        (seen(100, entities=(7, 2, 2)), "back", "agreement with the version in use is 0.778"),
        (seen(100, entities=(0, 0, 0)), "forward", "agreement 1.000"),
    ],
)
def test_the_rule_waits_goes_forward_or_back(observed: Observed, verdict: str, reason: str) -> None:
    decision = decide(RULE, observed)
    assert decision.verdict == verdict
    assert reason in decision.reason


def test_what_fails_for_both_is_not_held_against_the_candidate() -> None:
    assert decide(RULE, seen(1000, errors=50, incumbent_errors=50)).verdict == "forward"
    assert decide(RULE, seen(1000, errors=71, incumbent_errors=50)).verdict == "back"


def test_where_neither_answers_nothing_goes_forward() -> None:
    assert decide(RULE, seen(500, errors=500, incumbent_errors=500)).verdict == "wait"


def test_a_request_is_compared_by_offsets_and_labels_document_by_document() -> None:
    observed = Observed.of(
        candidate=[[Entity(0, 5, "ORG", 0.9), Entity(6, 9, "PER")], [Entity(0, 2, "LOC")]],
        candidate_seconds=0.2,
        incumbent=[[Entity(0, 5, "ORG", 0.4), Entity(6, 9, "LOC")], [Entity(6, 9, "PER")]],
        incumbent_seconds=0.1,
    )
    assert (observed.both, observed.only_candidate, observed.only_incumbent) == (1, 2, 2)
    assert (observed.requests, observed.compared) == (1, 1)
    assert observed.agreement == pytest.approx(1 / 3)
    assert observed.latency_ratio == pytest.approx(2.0)


def test_a_request_that_one_side_fails_counts_as_its_error_and_nothing_else() -> None:
    observed = Observed.of(
        candidate=None,
        candidate_seconds=9.0,
        incumbent=[[Entity(0, 5, "ORG")]],
        incumbent_seconds=0.1,
    )
    assert observed == Observed(requests=1, candidate_errors=1)


@given(COUNTS, COUNTS)
def test_what_was_seen_adds_up(a: Observed, b: Observed) -> None:
    assert (a + b).requests == a.requests + b.requests
    assert (a + b).both == a.both + b.both
    assert a + b == b + a
    assert a + Observed() == a


@given(st.text(st.characters()), st.floats(0, 1))
def test_the_same_request_is_always_of_the_same_side(request_id: str, share: float) -> None:
    canary = Canary(id="a", version=2, share=share)
    assert chosen(canary, request_id) == chosen(canary, request_id)
    assert not chosen(Canary(id="a", version=2, share=0), request_id)
    assert chosen(Canary(id="a", version=2, share=1), request_id)


def test_the_chosen_are_the_share_and_others_for_another_canary() -> None:
    ids = [f"request-{number}" for number in range(20_000)]
    first = {i for i in ids if chosen(Canary(id="first", version=2, share=0.1), i)}
    second = {i for i in ids if chosen(Canary(id="second", version=2, share=0.1), i)}
    assert len(first) == pytest.approx(2000, rel=0.1)
    assert len(first & second) == pytest.approx(200, rel=0.3)


def test_a_larger_share_only_adds_to_the_chosen() -> None:
    ids = [f"request-{number}" for number in range(1000)]
    few = {i for i in ids if chosen(Canary(id="a", version=2, share=0.1), i)}
    assert few < {i for i in ids if chosen(Canary(id="a", version=2, share=0.3), i)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"share": 1.1}, "share"),
        ({"share": float("nan")}, "share"),
        ({"version": 0}, "version"),
        ({"id": ""}, "id"),
    ],
)
def test_a_canary_that_cannot_be_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Canary(**{"id": "a", "version": 2, "share": 0.5, **settings})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "settings",
    [
        {"min_requests": 0},
        {"min_requests": 10**400},
        {"max_error_rate": -0.1},
        {"max_latency_ratio": 0.0},
        {"max_latency_ratio": float("nan")},
        {"max_latency_ratio": float("inf")},
        {"min_agreement": 1.1},
    ],
)
def test_a_rule_that_cannot_be_is_refused(settings: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match=next(iter(settings))):
        Rule(**settings)  # type: ignore[arg-type]
