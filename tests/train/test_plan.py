"""Steps are fixed by seed and step; shares and micro-batches change nothing in them."""

from hypothesis import given, settings
from hypothesis import strategies as st

from raytag.train.plan import Plan, rate_at

lengths = st.lists(st.integers(1, 60), min_size=1, max_size=120)


def _plan(sizes: list[int], batch: int, seed: int = 0) -> Plan:
    return Plan(lengths=sizes, batch_size=batch, epochs=3, seed=seed)


@settings(deadline=None)
@given(lengths, st.integers(1, 17), st.integers(0, 5))
def test_an_epoch_holds_every_example_once(sizes: list[int], batch: int, seed: int) -> None:
    plan = _plan(sizes, batch, seed)
    for epoch in range(plan.epochs):
        first = epoch * plan.steps_per_epoch
        steps = [plan.batch(step) for step in range(first, first + plan.steps_per_epoch)]
        assert sorted(i for step in steps for i in step) == list(range(len(sizes)))
        assert all(1 <= len(step) <= batch for step in steps)


@settings(deadline=None)
@given(lengths, st.integers(1, 17), st.integers(1, 5), st.integers(1, 200))
def test_shares_hold_the_batch_within_the_budget(
    sizes: list[int], batch: int, workers: int, budget: int
) -> None:
    plan = _plan(sizes, batch)
    for step in range(plan.steps_per_epoch):
        shares = plan.shares(step, workers, budget)
        assert len(shares) == workers
        assert len({len(micros) for micros in shares}) == 1
        held = [i for micros in shares for micro in micros for i in micro]
        assert sorted(held) == sorted(plan.batch(step))
        for micro in (micro for micros in shares for micro in micros if micro):
            padded = len(micro) * max(sizes[i] for i in micro)
            assert padded <= budget or len(micro) == 1


def test_a_step_does_not_depend_on_the_steps_asked_before() -> None:
    sizes = list(range(1, 50))
    forwards, backwards = _plan(sizes, 4), _plan(sizes, 4)
    steps = range(forwards.total_steps)
    there = {step: forwards.batch(step) for step in steps}
    back = {step: backwards.batch(step) for step in reversed(steps)}
    assert there == back
    assert forwards.batch(0) != forwards.batch(forwards.steps_per_epoch)
    assert _plan(sizes, 4, seed=1).batch(0) != there[0]


def test_grouping_by_length_pads_less() -> None:
    sizes = [5 + (i * 37) % 90 for i in range(400)]
    plan = _plan(sizes, 16)

    def padding(batches: list[list[int]]) -> int:
        return sum(len(b) * max(sizes[i] for i in b) - sum(sizes[i] for i in b) for b in batches)

    grouped = [plan.batch(step) for step in range(plan.steps_per_epoch)]
    as_they_come = [list(range(i, min(i + 16, 400))) for i in range(0, 400, 16)]
    assert padding(grouped) * 4 < padding(as_they_come)


def test_rates_rise_then_fall() -> None:
    linear = [rate_at(step, 100, 0.1, "linear") for step in range(100)]
    assert linear[:10] == sorted(linear[:10])
    assert linear[10:] == sorted(linear[10:], reverse=True)
    assert max(linear) == 1.0
    assert 0 < linear[0] < 0.1
    assert 0 < linear[-1] < 0.02
    assert rate_at(99, 100, 0.0, "constant") == 1.0
    assert rate_at(50, 100, 0.0, "cosine") < 0.51
