"""The L1 change between consecutive layers of one shape."""

import doctest

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.measures import accumulate
from tunnel_lightning.measures import change as module
from tunnel_lightning.measures.change import L1Change
from tunnel_lightning.taps import Tap, tap


def taps_of(*shapes):
    return [
        Tap(f"l{i}", f"l{i}", 1, i, "Linear", shape, int(np.prod(shape)), 0)
        for i, shape in enumerate(shapes, 1)
    ]


def test_equals_the_formula_over_batches_of_any_size():
    rng = np.random.default_rng(0)
    first, second, third = rng.normal(size=(3, 50, 6)).astype(np.float32)
    change = L1Change(taps_of((6,), (6,), (6,)))
    for part in np.split(np.arange(50), [1, 8, 30]):
        batch = {n: torch.from_numpy(x[part]) for n, x in (("l1", first), ("l2", second), ("l3", third))}
        change.update(batch, torch.zeros(len(part)), None)
    found = change.values()
    assert list(found) == ["l1", "l2"]
    for name, x, y in (("l1", first, second), ("l2", second, third)):
        x, y = x.astype(np.float64), y.astype(np.float64)
        assert found[name].value == pytest.approx(np.abs(y - x).mean() / np.abs(x).mean(), rel=1e-6)
        assert (found[name].measure, found[name].variant, found[name].n) == ("l1_change", "next", 50)
        assert np.isnan(found[name].se)


def test_only_neighbours_of_equal_shape_are_compared():
    change = L1Change(taps_of((4, 2, 2), (4, 2, 2), (16,), (16,), (4, 2, 2)))
    assert change.pairs == [("l1", "l2"), ("l3", "l4")], "as many columns are no equal shape"
    assert L1Change(taps_of((3,), (4,))).values() == {}


def test_nothing_and_nan():
    change = L1Change(taps_of((3,), (3,)))
    assert np.isnan(change.values()["l1"].value), "no images"
    change.update({"l1": torch.zeros(0, 3), "l2": torch.zeros(0, 3)}, torch.zeros(0), None)
    assert change.values()["l1"].n == 0
    change.update({"l1": torch.zeros(2, 3), "l2": torch.ones(2, 3)}, torch.zeros(2), None)
    assert np.isnan(change.values()["l1"].value), "relative to nothing"
    change.update({"l1": torch.full((2, 3), torch.nan), "l2": torch.ones(2, 3)}, torch.zeros(2), None)
    assert np.isnan(change.values()["l1"].value)


def test_a_layer_that_a_forward_skipped_counts_for_its_pairs_alone():
    change = L1Change(taps_of((3,), (3,), (3,)))
    change.update({"l1": torch.ones(2, 3), "l2": 2 * torch.ones(2, 3)}, torch.zeros(2), None)
    found = change.values()
    assert (found["l1"].value, found["l1"].n, found["l2"].n) == (1.0, 2, 0)


def test_in_a_pass_over_a_network():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2))
    x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
    taps = tap(model, x)
    change = L1Change(taps.layers)
    accumulate(
        model, taps, [(x[:7], torch.zeros(7).long()), (x[7:], torch.zeros(3).long())], [], observers=[change]
    )
    with torch.no_grad():
        y = model[0](x)
        z = model[1](y)
    assert change.values()["0"].value == pytest.approx(float((z - y).abs().mean() / y.abs().mean()), rel=1e-5)


def test_half_precision_features_are_summed_in_double():
    change = L1Change(taps_of((3,), (3,)))
    for _ in range(300):
        change.update(
            {"l1": torch.ones(50, 3).bfloat16(), "l2": 1.5 * torch.ones(50, 3).bfloat16()},
            torch.zeros(50),
            None,
        )
    assert change.values()["l1"].value == 0.5


def test_docstrings():
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0
