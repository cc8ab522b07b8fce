"""Similarities of two matrices: gold values, independent formulas in numpy, invariances, what is undefined."""

import numpy as np
import pytest
import scipy.linalg
import torch
from sklearn.cross_decomposition import CCA

from tunnel_lightning.measures.functional.pairwise import procrustes, pwcca, rbf_cka, svcca
from tunnel_lightning.measures.functional.similarity import hsic_1, l1_change, linear_cka, u_center_


def gold() -> tuple[torch.Tensor, torch.Tensor]:
    """The data of the notebook of Kornblith et al., whose outputs are the gold values."""
    state = np.random.RandomState(1337)
    x = state.randn(100, 10)
    return torch.from_numpy(x), torch.from_numpy(state.randn(100, 10) + x)


def song(k: np.ndarray, l: np.ndarray) -> float:  # noqa: E741
    """HSIC_1 in its three terms, as Song et al. write it."""
    n = len(k)
    k, l = k - np.diag(np.diag(k)), l - np.diag(np.diag(l))  # noqa: E741
    one = np.ones(n)
    return (
        np.trace(k @ l)
        + (one @ k @ one) * (one @ l @ one) / ((n - 1) * (n - 2))
        - 2 / (n - 2) * (one @ k @ l @ one)
    ) / (n * (n - 3))


def rotation(dim: int, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.linalg.qr(np.random.default_rng(seed).standard_normal((dim, dim)))[0])


def features(n: int, dims: tuple[int, ...], seed: int = 0) -> list[torch.Tensor]:
    """Features that share a few directions."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 5))
    return [
        torch.from_numpy(shared @ rng.standard_normal((5, d)) + 2 * rng.standard_normal((n, d))) for d in dims
    ]


def test_gold_values() -> None:
    x, y = gold()
    assert linear_cka(x, y, unbiased=False).item() == pytest.approx(0.55761, abs=5e-6)
    assert linear_cka(x, y).item() == pytest.approx(0.51346, abs=5e-6)
    assert rbf_cka(x, y, threshold=0.5, unbiased=False).item() == pytest.approx(0.65483, abs=5e-6)


def test_results_are_float64_also_of_half_precision() -> None:
    x, y = gold()
    for function in (linear_cka, rbf_cka, svcca, pwcca, l1_change):
        value = function(x.bfloat16(), y.bfloat16())
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(function(x, y).item(), abs=0.01)
    assert all(value.dtype == torch.float64 for value in procrustes(x.half(), y.half()))


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize("function", [linear_cka, rbf_cka])
def test_cka_knows_no_shift_rotation_or_scale(function, unbiased: bool) -> None:
    x, y = gold()
    expected = function(x, y, unbiased=unbiased).item()
    moved = [(x + 5, y - 3), (x @ rotation(10), y), (100 * x, 0.01 * y), (y, x)]
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    for a, b in [*moved, (x[order], y[order]), (x * 1e-12, y * 1e12)]:
        assert function(a, b, unbiased=unbiased).item() == pytest.approx(expected, rel=1e-9)
    assert function(x, 2 * x + 1, unbiased=unbiased).item() == pytest.approx(1, rel=1e-12)
    # An invertible linear map is no invariance.
    assert abs(function(x * torch.arange(1, 11), y, unbiased=unbiased).item() - expected) > 0.01


def test_hsic_1_is_songs() -> None:
    x, y = (side.numpy() for side in gold())
    k, l = x @ x.T, y @ y.T  # noqa: E741
    given = torch.from_numpy(k)
    assert hsic_1(given, torch.from_numpy(l)).item() == pytest.approx(song(k, l), rel=1e-12)
    np.testing.assert_array_equal(given, k)
    centred = u_center_(torch.from_numpy(np.stack([k, l])))
    assert (centred[0] * centred[1]).sum().item() / (100 * 97) == pytest.approx(song(k, l), rel=1e-12)
    np.testing.assert_allclose(centred.sum(1), 0, atol=1e-10)


@pytest.mark.parametrize("unbiased", [True, False])
@pytest.mark.parametrize(("n", "dims"), [(200, (30, 50)), (40, (300, 20)), (30, (400, 500)), (50, (50, 49))])
def test_both_forms_are_the_formula(n: int, dims: tuple[int, int], unbiased: bool) -> None:
    x, y = features(n, dims)
    a, b = (side.numpy() - side.numpy().mean(0) for side in (x, y))
    k, l = a @ a.T, b @ b.T  # noqa: E741
    if unbiased:
        expected = song(k, l) / np.sqrt(song(k, k) * song(l, l))
    else:
        expected = np.linalg.norm(a.T @ b) ** 2 / np.linalg.norm(a.T @ a) / np.linalg.norm(b.T @ b)
    assert linear_cka(x, y, unbiased).item() == pytest.approx(expected, rel=1e-10)
    # A column of zeros changes the shape, and with it the form, not the value.
    wide = torch.nn.functional.pad(x, (0, 600))
    assert linear_cka(wide, y, unbiased).item() == pytest.approx(expected, rel=1e-10)


def test_unbiased_where_the_biased_sees_likeness() -> None:
    rng = np.random.default_rng(0)
    pairs = [(rng.standard_normal((256, 2000)), rng.standard_normal((256, 2000))) for _ in range(3)]
    pairs = [tuple(torch.from_numpy(side) for side in pair) for pair in pairs]
    assert np.mean([linear_cka(*pair, unbiased=False).item() for pair in pairs]) == pytest.approx(
        0.889, abs=0.003
    )
    assert abs(np.mean([linear_cka(*pair).item() for pair in pairs])) < 0.01


def test_values_below_zero_are_not_clamped() -> None:
    rng = np.random.default_rng(0)
    values = [
        linear_cka(*(torch.from_numpy(rng.standard_normal((20, 50))) for _ in "ab")).item() for _ in range(20)
    ]
    assert min(values) < 0 < max(values)


def test_a_mean_that_dwarfs_the_deviation() -> None:
    x, y = gold()
    a, b = (1e4 + x).float(), (1e4 - y).float()
    exact = linear_cka(a.double() - 1e4, b.double() - 1e4).item()
    assert linear_cka(a, b).item() == pytest.approx(exact, rel=1e-9)


@pytest.mark.parametrize("n", [23, 20, 5])
@pytest.mark.parametrize("value", [0.0, 0.1, 0.3, 1e6, torch.nan, torch.inf])
def test_constant_and_broken_features_are_nan(n: int, value: float) -> None:
    x = torch.randn(n, 8, generator=torch.Generator().manual_seed(0))
    for sick in (torch.full((n, 6), value), torch.full((n, 6), value, dtype=torch.float64)):
        for a, b in ((x, sick), (sick, x), (sick, sick)):
            for unbiased in (True, False):
                assert linear_cka(a, b, unbiased).isnan()
                assert rbf_cka(a, b, unbiased=unbiased).isnan()
            assert svcca(a, b).isnan()
            assert pwcca(a, b).isnan()
            assert all(part.isnan() for part in procrustes(a, b))
    partly = x.clone()
    partly[0, 0] = torch.nan
    assert linear_cka(partly, x).isnan()
    assert svcca(partly, x).isnan()


def test_images_all_equally_far_apart_resemble_nothing() -> None:
    """Their unbiased HSIC with themselves is zero, and what a computer makes of it is rounding."""
    x = 3.3 * rotation(20)
    assert linear_cka(x, x).isnan()
    assert rbf_cka(x, torch.eye(20)).isnan()
    assert linear_cka(x, x, unbiased=False).item() == pytest.approx(1)


def test_rounding_is_not_signal() -> None:
    """A layer that only varies in the last bit of its type has no similarity to anything."""
    x = torch.randn(100, 8, generator=torch.Generator().manual_seed(0))
    # Near 1.1 neighbouring float32 differ by 1.2e-7.
    for spread, undefined in ((1e-8, True), (1e-5, False)):
        sick = 1.1 + spread * torch.randn(100, 8, generator=torch.Generator().manual_seed(1))
        assert bool(linear_cka(sick, x).isnan()) == undefined


def test_procrustes_against_scipy() -> None:
    for n, dims in ((100, (10, 10)), (20, (60, 60)), (50, (30, 10)), (20, (90, 40))):
        x, y = features(n, dims)
        a, b = (side.numpy() - side.numpy().mean(0) for side in (x, y))
        width = max(dims)
        a, b = (np.pad(side / np.linalg.norm(side), ((0, 0), (0, width - side.shape[1]))) for side in (a, b))
        turn, scale = scipy.linalg.orthogonal_procrustes(b, a)
        found = procrustes(x, y)
        assert found.similarity.item() == pytest.approx(scale, rel=1e-10)
        assert found.distance.item() == pytest.approx(np.linalg.norm(a - b @ turn) ** 2, rel=1e-9)
        again = procrustes(3 * x @ rotation(dims[0]) + 1, y)
        assert again.similarity.item() == pytest.approx(scale, rel=1e-10)
    assert procrustes(x, x @ rotation(90)).distance.item() == pytest.approx(0, abs=1e-12)


def canonical(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.cos(scipy.linalg.subspace_angles(a, b))


def test_svcca_against_scipy() -> None:
    for n, dims in ((300, (20, 30)), (60, (200, 20))):
        x, y = features(n, dims)
        kept = []
        for side in (x, y):
            u, s, _ = np.linalg.svd(side.numpy() - side.numpy().mean(0), full_matrices=False)
            share = np.cumsum(s**2) / np.sum(s**2)
            kept.append((u * s)[:, : np.searchsorted(share, 0.9) + 1])
        expected = canonical(*kept).mean()
        assert svcca(x, y, variance=0.9).item() == pytest.approx(expected, rel=1e-9)
        assert svcca(x @ rotation(dims[0]) * 5, y, variance=0.9).item() == pytest.approx(expected, rel=1e-9)
    assert svcca(x, y, variance=1.0).item() == pytest.approx(1, abs=1e-9), "more components than images"


def test_pwcca_against_sklearn() -> None:
    x, y = features(300, (6, 8))
    a, b = (side.numpy() - side.numpy().mean(0) for side in (x, y))
    cca = CCA(n_components=6, scale=False, max_iter=10_000, tol=1e-12).fit(a, b)
    mine, theirs = cca.transform(a, b)
    correlations = [np.corrcoef(mine[:, i], theirs[:, i])[0, 1] for i in range(6)]
    weights = np.abs((mine / np.linalg.norm(mine, axis=0)).T @ a).sum(1)
    assert pwcca(x, y).item() == pytest.approx(np.average(correlations, weights=weights), rel=1e-5)
    assert pwcca(x, y @ torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).double()).item() == (
        pytest.approx(pwcca(x, y).item(), rel=1e-9)
    )
    # Directions a side does not have must not count as perfectly correlated.
    narrow = torch.cat([x, x[:, :1] + x[:, 1:2]], 1)
    assert pwcca(narrow.float(), y).item() < 0.999
    assert pwcca(y, narrow).item() == pytest.approx(pwcca(y, x).item(), rel=1e-9)


def test_l1_change() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((20, 7)), rng.standard_normal((20, 7))
    expected = np.abs(x - y).mean() / np.abs(x).mean()
    assert l1_change(torch.from_numpy(x), torch.from_numpy(y)).item() == pytest.approx(expected, rel=1e-12)
    assert l1_change(torch.zeros(2, 3), torch.ones(2, 3)).isnan()
    with pytest.raises(ValueError, match="equal shape"):
        l1_change(torch.zeros(2, 3), torch.zeros(2, 4))


@pytest.mark.parametrize(
    ("function", "least"), [(linear_cka, 4), (rbf_cka, 4), (svcca, 2), (pwcca, 2), (procrustes, 2)]
)
def test_wrong_shapes_are_told(function, least: int) -> None:
    for a, b in ((torch.ones(5, 2), torch.ones(6, 2)), (torch.ones(5), torch.ones(5))):
        with pytest.raises(ValueError, match=function.__name__):
            function(a, b)
    with pytest.raises(ValueError, match=f">= {least}"):
        function(torch.ones(least - 1, 2), torch.ones(least - 1, 2))
    function(torch.ones(least, 2), torch.ones(least, 2))


def test_hsic_1_of_wrong_shapes() -> None:
    for k, l in ((torch.eye(5), torch.eye(6)), (torch.ones(5, 6), torch.ones(5, 6)), (torch.eye(3),) * 2):  # noqa: E741
        with pytest.raises(ValueError, match="hsic_1"):
            hsic_1(k, l)
