"""Dropout by gaps is dropout: the same distribution, gradient, switches and determinism."""

import pytest
import torch
from torch import nn

from raytag.model.dropout import SparseDropout, dropped_places, use_sparse_dropout


@pytest.mark.parametrize("p", [0.01, 0.05, 0.2])
def test_every_element_is_dropped_independently_with_probability_p(p: float) -> None:
    torch.manual_seed(0)
    rows, columns = 20_000, 16
    dropped = torch.zeros(rows * columns)
    dropped[dropped_places(rows * columns, p)] = 1
    tries = dropped.view(rows, columns)
    error = (p * (1 - p) / rows) ** 0.5
    assert (tries.mean(0) - p).abs().max() < 4 * error
    together = (tries[:, :-1] * tries[:, 1:]).mean(0)
    assert (together - p * p).abs().max() < 5 * (p * p / rows) ** 0.5
    counts = tries.sum(1)
    assert abs(counts.var().item() / (columns * p * (1 - p)) - 1) < 0.05


@pytest.mark.parametrize("count", [0, 1, 3, 50])
def test_places_are_ascending_and_within(count: int) -> None:
    torch.manual_seed(1)
    for _ in range(200):
        places = dropped_places(count, 0.2).tolist()
        assert places == sorted(set(places))
        assert all(0 <= place < count for place in places)


def test_first_and_last_element_are_dropped_as_often_as_any() -> None:
    torch.manual_seed(2)
    tries = 20_000
    ends = [0, 0]
    for _ in range(tries):
        places = dropped_places(6, 0.2).tolist()
        ends[0] += 0 in places
        ends[1] += 5 in places
    for end in ends:
        assert abs(end / tries - 0.2) < 4 * (0.16 / tries) ** 0.5


def test_gradient_passes_where_values_passed() -> None:
    torch.manual_seed(3)
    values = torch.randn(8, 30, 5).transpose(0, 1).requires_grad_()
    out = SparseDropout(0.2)(values)
    out.backward(torch.full_like(out, 2.0))
    kept = out != 0
    assert 0 < (~kept).sum() < 500
    torch.testing.assert_close(out[kept], values[kept] / 0.8)
    assert values.grad is not None
    torch.testing.assert_close(values.grad, kept * 2.0 / 0.8)


def test_seed_decides_and_evaluation_drops_nothing() -> None:
    layer, ones = SparseDropout(0.1), torch.ones(1000)
    torch.manual_seed(4)
    first = layer(ones)
    torch.manual_seed(4)
    assert torch.equal(first, layer(ones))
    assert not torch.equal(first, layer(ones))
    assert layer.eval()(ones) is ones


def test_replaces_every_plain_dropout_and_keeps_its_mode() -> None:
    model = nn.Sequential(nn.Dropout(0.1), nn.ModuleDict({"a": nn.Dropout(0.3)}), nn.Linear(2, 2))
    model.eval()
    use_sparse_dropout(model)
    found = [m for m in model.modules() if isinstance(m, nn.Dropout)]
    assert [type(m) for m in found] == [SparseDropout, SparseDropout]
    assert [m.p for m in found] == [0.1, 0.3]
    assert not any(m.training for m in found)
