"""Two snapshots of a layer: overlap of principal subspaces, and what the best linear map leaves."""

import doctest
import math

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from tunnel_lightning.measures import linear_cka, linear_map_residual, principal_directions, subspace_overlap
from tunnel_lightning.measures.functional import drift


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def low_rank(n: int, dim: int, rank: int, seed: int = 0) -> torch.Tensor:
    return noise(n, rank, seed=seed) @ noise(rank, dim, seed=seed + 100)


# Directions and subspaces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(60, 20), (20, 60)])
def test_directions_are_those_of_the_singular_value_decomposition(shape: tuple[int, int]) -> None:
    x = noise(*shape) * torch.linspace(3, 1, shape[1]) + 5
    found = principal_directions(x, 4)
    wanted = torch.linalg.svd(x.double() - x.double().mean(0)).Vh[:4].T
    assert found.shape == (shape[1], 4)
    torch.testing.assert_close((found.T @ wanted).abs(), torch.eye(4).double(), atol=1e-9, rtol=0)


def test_overlap_is_the_formula() -> None:
    x, y = noise(50, 12), noise(40, 12, seed=1)
    u, v = (torch.linalg.svd(z.double() - z.double().mean(0)).Vh[:5].T for z in (x, y))
    wanted = torch.linalg.matrix_norm(v.T @ u).square() / 5
    assert subspace_overlap(x, y, 5) == pytest.approx(wanted.item(), abs=1e-12)
    assert subspace_overlap(x, k=5, directions=principal_directions(y, 5)) == subspace_overlap(x, y, 5)


def test_overlap_of_the_same_and_of_orthogonal_subspaces() -> None:
    x = low_rank(50, 6, 3)
    padded, aside = torch.cat([x, torch.zeros_like(x)], 1), torch.cat([torch.zeros_like(x), x], 1)
    assert subspace_overlap(padded, 7 * padded + 3, 3) == pytest.approx(1, abs=1e-9)
    assert subspace_overlap(padded, aside, 3) == pytest.approx(0, abs=1e-9)


def test_overlap_knows_which_column_is_which() -> None:
    x = noise(60, 20) * torch.linspace(3, 0.1, 20)
    y = x.flip(1)
    assert linear_cka(x, y) == pytest.approx(1, abs=1e-9)
    assert subspace_overlap(x, y, 5) < 0.2


def test_overlap_of_fewer_directions_than_asked_for() -> None:
    # Ten directions of features that vary along three: the other seven would be rounding.
    x = low_rank(50, 20, 3)
    assert principal_directions(x, 10).shape == (20, 3)
    assert subspace_overlap(x, 2 * x, 10) == pytest.approx(1, abs=1e-6)


def test_a_mean_that_dwarfs_the_deviation_is_no_direction() -> None:
    x = low_rank(50, 20, 3) + 1e4
    assert principal_directions(x, 10).shape[1] == 3


# Linear map -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dim", [8, 70])
def test_residual_is_that_of_a_ridge_regression_on_every_second_image(dim: int) -> None:
    x, y = noise(80, dim) * torch.linspace(1, 9, dim), noise(80, 5, seed=1)
    y[:, 0] += x[:, 0]
    scaler = StandardScaler().fit(x[::2].double().numpy())
    fitted = Ridge(alpha=0.02 * 40).fit(scaler.transform(x[::2].double().numpy()), y[::2].double().numpy())
    target = y[1::2].double().numpy()
    left = target - fitted.predict(scaler.transform(x[1::2].double().numpy()))
    wanted = np.square(left).sum() / np.square(target - target.mean(0)).sum()
    assert linear_map_residual(x, y, 0.02).item() == pytest.approx(wanted, rel=1e-9)


def test_residual_of_a_linear_image_of_independent_features_and_of_the_same() -> None:
    x = noise(400, 6)
    assert linear_map_residual(x, 5 * x @ noise(6, 9, seed=1) - 3) < 1e-5
    assert linear_map_residual(x, noise(400, 6, seed=2)) == pytest.approx(1, abs=0.1)
    assert linear_map_residual(x, x) < 1e-5


def test_residual_has_a_direction() -> None:
    # What holds six dimensions tells the two of them; two of them do not tell six.
    x = noise(400, 6)
    part = x[:, :2]
    assert linear_map_residual(x, part) < 1e-5
    assert linear_map_residual(part, x) > 0.5


def test_a_wide_map_does_not_look_perfect() -> None:
    # With more columns than images it fits any target: scored where it was fitted it would leave nothing.
    assert linear_map_residual(noise(100, 200), noise(100, 10, seed=1)) > 0.9


# Nothing to measure, and mistakes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("spoil", [0.0, math.nan, math.inf])
def test_constant_and_non_finite_features_are_nan(spoil: float) -> None:
    x, bad = noise(20, 4), noise(20, 4, seed=1)
    if spoil:
        bad[3, 1] = spoil
    else:
        bad[:] = 2.5
    for first, second in ((x, bad), (bad, x)):
        assert torch.isnan(subspace_overlap(first, second))
        assert torch.isnan(linear_map_residual(first, second))


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match=r"of one layer and k of at least 1, got \[5, 3\], \[5, 4\]"):
        subspace_overlap(noise(5, 3), noise(5, 4))
    with pytest.raises(ValueError, match="k=0"):
        subspace_overlap(noise(5, 3), noise(5, 3), 0)
    with pytest.raises(ValueError, match="either the other features or their directions"):
        subspace_overlap(noise(5, 3))
    with pytest.raises(ValueError, match="same N >= 4 images"):
        linear_map_residual(noise(5, 3), noise(6, 3))
    with pytest.raises(ValueError, match="alpha above 0"):
        linear_map_residual(noise(5, 3), noise(5, 3), 0)


def test_the_examples_in_the_docstrings_hold() -> None:
    done = doctest.testmod(drift)
    assert done.attempted
    assert not done.failed
