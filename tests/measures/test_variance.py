"""Class variances against the definition, computed pair by pair."""

import itertools

import numpy as np
import pytest
import torch

from tunnel_lightning.measures import Moments, class_variances


def by_definition(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    classes = np.unique(y)
    centre = {c: x[y == c].mean(0) for c in classes}
    inter = np.mean([((centre[a] - centre[b]) ** 2).sum() for a, b in itertools.combinations(classes, 2)])
    intra = np.mean([((x[y == c] - centre[c]) ** 2).sum(1).mean() for c in classes])
    return float(inter), float(intra)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_closed_form_equals_definition(offset: float) -> None:
    rng = np.random.default_rng(0)
    y = rng.choice([0, 1, 3], size=2500)  # class 2 has no sample
    x = (rng.standard_normal((2500, 16)) + y[:, None] * np.arange(16) / 8 + offset).astype(np.float32)
    moments = Moments(16, 4)
    for part in range(0, 2500, 500):
        moments.update(torch.from_numpy(x[part : part + 500]), torch.from_numpy(y[part : part + 500]))
    x = x.astype(np.float64)
    raw = class_variances(moments.class_count, moments.class_sum, moments.class_square)
    assert [raw.inter.item(), raw.intra.item()] == pytest.approx(by_definition(x, y), rel=1e-6)
    unit = class_variances(moments.class_count, moments.class_unit, moments.class_unit_square)
    expected = by_definition(x / np.linalg.norm(x, axis=1, keepdims=True), y)
    # At an offset of 1e4 the normalised features deviate by 1e-4 of their length: 1e-8 of their square.
    assert [unit.inter.item(), unit.intra.item()] == pytest.approx(expected, rel=1e-5)
    assert unit.ratio.item() == pytest.approx(expected[0] / expected[1], rel=1e-5)


def test_zero_vectors_stay_zero() -> None:
    x, y = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0], [0.0, 2.0]]), np.array([0, 0, 1, 1])
    moments = Moments(2, 2)
    moments.update(torch.from_numpy(x), torch.from_numpy(y))
    unit = class_variances(moments.class_count, moments.class_unit, moments.class_unit_square)
    normalised = np.array([[0.0, 0.0], [0.6, 0.8], [0.0, 1.0], [0.0, 1.0]])
    assert [unit.inter.item(), unit.intra.item()] == pytest.approx(by_definition(normalised, y), rel=1e-12)


def test_one_class_and_none() -> None:
    one = class_variances(torch.tensor([2, 0]), torch.ones(2, 3).double(), torch.tensor([4.0, 0.0]).double())
    assert one.inter.isnan()
    assert one.ratio.isnan()
    assert one.intra == 2 - 0.75
    none = class_variances(torch.zeros(2), torch.zeros(2, 3).double(), torch.zeros(2).double())
    assert all(value.isnan() for value in none)
