"""k nearest neighbours against a brute-force search by hand."""

import math
import tracemalloc

import numpy as np
import pytest
import torch
from counting import peak_bytes

from tunnel_lightning.measures.functional.neighbours import knn_accuracy, knn_bytes


def data(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    y = rng.integers(4, size=n)
    # One wide column: standardised features would have other neighbours.
    x = (rng.standard_normal((n, 6)) + 2 * np.eye(4, 6)[y]) * np.array([5, 1, 1, 1, 1, 1])
    return torch.from_numpy(x).float(), torch.from_numpy(y)


def test_equals_a_vote_by_hand() -> None:
    (x, y), (x_test, y_test) = data(300, 0), data(120, 1)
    nearest = torch.cdist(x_test.double(), x.double()).argsort(1)[:, :20]
    votes = torch.nn.functional.one_hot(y[nearest], 4).sum(1)
    expected = (votes.argmax(1) == y_test).double().mean().item()
    accuracy, se = knn_accuracy(x, y, x_test, y_test)
    assert accuracy == pytest.approx(expected)
    assert 0.3 < accuracy < 0.95
    assert se == pytest.approx(math.sqrt(expected * (1 - expected) / 120))
    nearest_only = (y[nearest[:, 0]] == y_test).double().mean().item()
    assert knn_accuracy(x, y, x_test, y_test, k=1).accuracy == pytest.approx(nearest_only)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("where", [0, 2])
def test_features_that_are_not_finite_give_nan(bad: float, where: int) -> None:
    parts = [*data(50, 0), *data(20, 1)]
    parts[where][0, 0] = bad
    assert all(math.isnan(value) for value in knn_accuracy(*parts))


def test_no_array_as_large_as_the_features_is_made() -> None:
    n, dim = 4000, 300
    parts = (torch.randn(n, dim), torch.arange(n) % 4, torch.randn(n, dim), torch.arange(n) % 4)
    knn_accuracy(*parts)  # imports
    assert peak_bytes(lambda: knn_accuracy(*parts)) < n * dim / 10
    tracemalloc.start()
    knn_accuracy(*parts)
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    # What scikit-learn allocates for its threads is not seen here.
    assert 0 < used < 64 * n * 20 < knn_bytes(dim, n)
    assert knn_bytes(2 * dim, n) > knn_bytes(dim, n)


def test_no_test_samples_give_nan_and_too_few_votes_are_refused() -> None:
    x, y = data(50, 0)
    assert math.isnan(knn_accuracy(x, y, x[:0], y[:0]).accuracy)
    with pytest.raises(ValueError, match="at least 20 training samples, got 5"):
        knn_accuracy(x[:5], y[:5], x, y)
