"""Ridge probes against scikit-learn, in float64."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tunnel_lightning.measures import Moments, ridge, ridge_from_moments


def data(n: int, dim: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    x = rng.standard_normal((n, dim)) * np.geomspace(1, 1e-2, dim) + rng.standard_normal((classes, dim))[y]
    return x, y


def sklearn_scores(x: np.ndarray, y: np.ndarray, classes: int, alpha: float) -> np.ndarray:
    model = make_pipeline(StandardScaler(), Ridge(alpha * len(x)))
    return model.fit(x, np.eye(classes)[y]).predict(x)


@pytest.mark.parametrize(("n", "dim"), [(200, 30), (40, 90), (60, 60)])
def test_equals_sklearn(n: int, dim: int) -> None:
    x, y = data(n, dim)
    scores = ridge(torch.from_numpy(x), torch.from_numpy(y), 4, alpha=1e-2)(torch.from_numpy(x))
    np.testing.assert_allclose(scores, sklearn_scores(x, y, 4, 1e-2), atol=1e-10)


def test_predicts_as_ridge_classifier() -> None:
    x, y = data(300, 20)
    predicted = ridge(torch.from_numpy(x), torch.from_numpy(y), 4, alpha=0.1)(torch.from_numpy(x)).argmax(1)
    classifier = make_pipeline(StandardScaler(), RidgeClassifier(0.1 * 300)).fit(x, y)
    np.testing.assert_array_equal(predicted, classifier.predict(x))


def test_dual_equals_primal() -> None:
    # The dual in 40 dimensions, against the primal in 90 that moments can only take.
    x, y = (torch.from_numpy(part) for part in data(40, 90))
    x = x.float()
    moments = Moments(90, 4)
    moments.update(x, y)
    dual, primal = ridge(x, y, 4), ridge_from_moments(moments)
    torch.testing.assert_close(dual(x), primal(x), atol=1e-4, rtol=0)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_from_moments_equals_sklearn(offset: float) -> None:
    x, y = data(2500, 40)
    x = (x / x.std(0) + offset).astype(np.float32)
    moments = Moments(40, 4)
    for part in range(0, 2500, 250):
        moments.update(torch.from_numpy(x[part : part + 250]), torch.from_numpy(y[part : part + 250]))
    scores = ridge_from_moments(moments, alpha=1e-3)(torch.from_numpy(x))
    np.testing.assert_allclose(scores, sklearn_scores(x.astype(np.float64), y, 4, 1e-3), atol=1e-5)


def test_columns_without_variance_get_no_weight() -> None:
    x, y = (torch.from_numpy(part) for part in data(100, 5))
    # A hundred times .9 in float64 is not 90: the mean of the constant column is off by rounding.
    wide = torch.cat([x, torch.full((100, 1), 0.9, dtype=x.dtype), torch.zeros(100, 1)], dim=1)
    moments = Moments(7, 4)
    moments.update(wide, y)
    for head in (ridge(wide, y, 4), ridge_from_moments(moments)):
        assert (head.weight[:, 5:] == 0).all()
        torch.testing.assert_close(head(wide), ridge(x, y, 4)(x), atol=1e-5, rtol=0)


def test_singular_without_penalty_is_least_norm() -> None:
    x, y = (torch.from_numpy(part) for part in data(100, 5))
    twice = torch.cat([x, x], dim=1)
    head = ridge(twice, y, 4, alpha=0)
    torch.testing.assert_close(head(twice), ridge(x, y, 4, alpha=0)(x), atol=1e-6, rtol=0)
    torch.testing.assert_close(head.weight[:, :5], head.weight[:, 5:], atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "x",
    [torch.zeros(0, 3), torch.ones(4, 3), torch.full((4, 3), 0.1), torch.tensor([[torch.nan] * 3] * 4)],
    ids=["empty", "constant", "constant with rounding", "nan"],
)
def test_unusable_features_give_nan(x: torch.Tensor) -> None:
    y = torch.arange(len(x)) % 2
    moments = Moments(3, 2)
    moments.update(x, y)
    for head in (ridge(x, y, 2), ridge_from_moments(moments)):
        assert head.weight.isnan().all()
        assert head.weight.shape == (2, 3)
        assert head.bias.isnan().all()


def test_one_class() -> None:
    x = torch.randn(10, 3, generator=torch.Generator().manual_seed(0))
    y = torch.zeros(10, dtype=torch.long)
    assert (ridge(x, y, 2)(x).argmax(1) == 0).all()
