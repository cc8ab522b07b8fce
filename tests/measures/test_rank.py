"""Ranks of planted spectra against numpy, in float64."""

import numpy as np
import pytest
import scipy.stats
import torch

from tunnel_lightning.measures import (
    effective_rank,
    eigenvalue_pair,
    eigenvalues,
    numerical_rank,
    participation_ratio,
    rankme,
    stable_rank,
)


def planted(spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    rotation = np.linalg.qr(np.random.default_rng(seed).standard_normal((len(spectrum),) * 2))[0]
    return rotation * spectrum @ rotation.T


SPECTRUM = np.concatenate([np.geomspace(1, 1.1e-3, 20), np.geomspace(0.9e-3, 2e-5, 15), np.full(65, 1e-6)])


@pytest.mark.parametrize("scale", [1.0, 1e-12, 1e12])
def test_numerical_rank_is_exact_at_both_tolerances(scale: float) -> None:
    covariance = torch.from_numpy(planted(SPECTRUM) * scale)
    assert numerical_rank(covariance) == 20
    # 100 * eps(float32) = 1.2e-5
    assert numerical_rank(covariance, rtol="torch") == 35
    assert numerical_rank(covariance, rtol=0.5) == np.linalg.matrix_rank(planted(SPECTRUM), rtol=0.5)


def test_torch_tolerance_is_that_of_matrix_rank_in_float32() -> None:
    covariance = torch.from_numpy(planted(SPECTRUM)).float()
    assert numerical_rank(covariance, rtol="torch") == torch.linalg.matrix_rank(covariance)


def test_soft_ranks_against_numpy() -> None:
    covariance = planted(SPECTRUM)
    known = eigenvalues(torch.from_numpy(covariance))
    singular = np.linalg.svd(covariance, compute_uv=False)
    expected = {
        effective_rank: np.exp(scipy.stats.entropy(singular)),
        stable_rank: singular.sum() / singular.max(),
        participation_ratio: singular.sum() ** 2 / (singular**2).sum(),
    }
    for function, value in expected.items():
        assert function(torch.from_numpy(covariance)).item() == pytest.approx(value, rel=1e-9)
        assert function(eigenvalues=known).item() == pytest.approx(value, rel=1e-9)


def test_rankme_against_singular_values_of_the_features() -> None:
    x = np.random.default_rng(1).standard_normal((300, 20)) * np.geomspace(1, 1e-2, 20) + 3
    singular = np.linalg.svd(x, compute_uv=False)
    p = singular / singular.sum() + 1e-7
    expected = np.exp(-(p * np.log(p)).sum())
    assert rankme(torch.from_numpy(x.T @ x)).item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("function", [effective_rank, stable_rank, participation_ratio, rankme])
def test_undefined_is_nan(function) -> None:
    assert function(torch.zeros(3, 3)).isnan()
    assert function(torch.full((3, 3), torch.nan)).isnan()
    assert function(torch.full((3, 3), torch.inf)).isnan()


def test_rank_of_zero_and_of_nan() -> None:
    assert numerical_rank(torch.zeros(3, 3)) == 0
    assert numerical_rank(torch.full((3, 3), torch.nan)).isnan()
    assert numerical_rank(torch.ones(1, 1)) == 1


def test_needs_one_of_matrix_and_eigenvalues() -> None:
    with pytest.raises(ValueError, match="either"):
        numerical_rank()


@pytest.mark.parametrize("dim", [1, 2, 3, 100])
@pytest.mark.parametrize("along", ["anywhere", "an axis", "zero"])
def test_eigenvalues_before_and_after_a_rank_one_update(dim: int, along: str) -> None:
    rng = np.random.default_rng(dim)
    matrix = planted(np.geomspace(1, 1e-9, dim), dim)
    vector = {"anywhere": rng.standard_normal(dim), "an axis": -3 * np.eye(dim)[0], "zero": np.zeros(dim)}[
        along
    ]
    given = torch.from_numpy(matrix), torch.from_numpy(vector)
    before, after = eigenvalue_pair(*given)
    updated = matrix + np.outer(vector, vector)
    assert before.dtype == after.dtype == torch.float64
    np.testing.assert_allclose(before, np.linalg.eigvalsh(matrix), atol=1e-14)
    np.testing.assert_allclose(after, np.linalg.eigvalsh(updated), atol=1e-14 * np.linalg.norm(updated))
    np.testing.assert_array_equal(given[0], matrix)  # what was given is left alone
    np.testing.assert_array_equal(given[1], vector)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_eigenvalues_of_what_is_not_finite(bad: float) -> None:
    eye, ones = torch.eye(3), torch.ones(3)
    assert all(part.isnan().all() for part in eigenvalue_pair(eye * bad, ones))
    assert all(part.isnan().all() for part in eigenvalue_pair(eye, ones * bad)[1:])
