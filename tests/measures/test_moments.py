"""Streamed moments against numpy in float64."""

import numpy as np
import pytest
import torch

from tunnel_lightning.measures import Moments, MomentsMetric, numerical_rank


def features(n: int, dim: int, offset: float = 0.0, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    mix = rng.standard_normal((dim, dim)) / dim**0.5
    x = (rng.standard_normal((n, dim)) @ mix + offset).astype(np.float32)
    return torch.from_numpy(x), torch.from_numpy(rng.integers(5, size=n))


def streamed(x: torch.Tensor, y: torch.Tensor, batch: int = 128) -> Moments:
    moments = Moments(x.shape[1], 5)
    for a, b in zip(x.split(batch), y.split(batch), strict=True):
        moments.update(a, b)
    return moments


@pytest.mark.parametrize("offset", [0.0, 1e4])
@pytest.mark.parametrize(("n", "dim"), [(2500, 300), (50, 300), (3000, 1), (2, 3)])
def test_against_numpy(n: int, dim: int, offset: float) -> None:
    x, y = features(n, dim, offset)
    moments = streamed(x, y)
    reference = x.double().numpy()
    covariance = np.cov(reference.T).reshape(dim, dim)
    scale = np.abs(covariance).max()
    np.testing.assert_allclose(moments.covariance, covariance, atol=1e-6 * scale, rtol=0)
    np.testing.assert_allclose(moments.mean, reference.mean(0), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(
        moments.second_moment, reference.T @ reference / n, rtol=1e-12, atol=1e-6 * scale
    )
    units = reference / np.linalg.norm(reference, axis=1, keepdims=True)
    for c in range(5):
        mine = y.numpy() == c
        assert moments.class_count[c] == mine.sum()
        np.testing.assert_allclose(moments.class_sum[c], reference[mine].sum(0), rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(moments.class_unit[c], units[mine].sum(0), rtol=1e-11, atol=1e-11)
        assert moments.class_square[c].item() == pytest.approx((reference[mine] ** 2).sum(), rel=1e-12)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_planted_rank_survives_a_large_mean(offset: float) -> None:
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.standard_normal((128, 128)))[0]
    # Float32 cannot hold more than 3e-4 of the deviation beside a mean of 1e4: 1e-7 of the variance.
    spread = np.concatenate([np.ones(12), np.full(116, 1e-3)])
    x = rng.standard_normal((3000, 128)) * spread @ rotation + offset
    moments = streamed(torch.from_numpy(x.astype(np.float32)), torch.zeros(3000, dtype=torch.long))
    assert numerical_rank(moments.covariance) == 12
    assert numerical_rank(moments.covariance, rtol="torch") == 12


def test_rank_is_at_most_samples_less_one() -> None:
    x, y = features(40, 200)
    covariance = streamed(x, y).covariance
    assert numerical_rank(covariance, rtol="torch") == 39


def test_merge_equals_whole_and_leaves_the_other() -> None:
    x, y = features(3000, 64, offset=100)
    whole, first, second = streamed(x, y), streamed(x[:700], y[:700]), streamed(x[700:], y[700:], 1000)
    before = {name: state.clone() for name, state in second.state_dict().items()}
    first.merge(second)
    assert_equal_sums(first.state_dict(), whole.state_dict())
    torch.testing.assert_close(second.state_dict(), before, atol=0, rtol=0)
    with pytest.raises(ValueError, match="64 dimensions and 5 classes into moments of 3 and 5"):
        Moments(3, 5).merge(second)


def test_merge_into_fresh_moments() -> None:
    x, y = features(10, 4)
    fresh = Moments(4, 5)
    fresh.merge(streamed(x, y))
    torch.testing.assert_close(fresh.state_dict(), streamed(x, y).state_dict(), atol=0, rtol=0)


def assert_equal_sums(found: dict, expected: dict) -> None:
    for name, state in expected.items():
        # The scatter is a float32 product over blocks of rows, and the blocks differ.
        tolerance = 1e-6 if name == "second" else 1e-12
        scale = state.abs().max().item()
        torch.testing.assert_close(found[name], state, rtol=0, atol=tolerance * scale)


def test_order_of_samples_does_not_matter() -> None:
    x, y = features(2000, 64)
    shuffled = torch.randperm(2000, generator=torch.Generator().manual_seed(0))
    assert_equal_sums(streamed(x[shuffled], y[shuffled], 77).state_dict(), streamed(x, y).state_dict())


def test_saved_and_restored(tmp_path) -> None:
    x, y = features(100, 8)
    moments = streamed(x, y)
    torch.save(moments.state_dict(), tmp_path / "moments.pt")
    restored = Moments(8, 5)
    restored.update(*features(10, 8, seed=1))
    restored.load_state_dict(torch.load(tmp_path / "moments.pt", weights_only=True))
    torch.testing.assert_close(restored.state_dict(), moments.state_dict(), atol=0, rtol=0)
    with pytest.raises(ValueError, match="shapes"):
        Moments(9, 5).load_state_dict(moments.state_dict())


def test_the_callers_buffer_may_be_overwritten() -> None:
    x, y = features(100, 8)
    buffer = x.clone()
    moments = Moments(8, 5)
    moments.update(buffer, y)
    buffer.zero_()
    torch.testing.assert_close(moments.mean, x.double().mean(0))


@pytest.mark.parametrize(
    ("x", "problem"),
    [
        (torch.zeros(0, 3), "no samples"),
        (torch.full((9, 3), 0.1), "constant features"),
        (torch.full((3000, 3), 12345.678), "constant features"),
        (torch.ones(1, 3), "constant features"),
        (torch.tensor([[1.0, 2.0, torch.nan], [1.0, 3.0, 2.0]]), "NaN or infinite features"),
        (torch.tensor([[1.0, 2.0, torch.inf], [1.0, 3.0, 2.0]]), "NaN or infinite features"),
        (torch.tensor([[1.0, 2.0, 5.0], [1.0, 3.0, 5.0]]), ""),
        (torch.tensor([[1e4, 1e4, 1e4], [1e4, 1e4, 1e4 + 0.01]]), ""),
    ],
)
def test_problem(x: torch.Tensor, problem: str) -> None:
    moments = Moments(3, 2)
    moments.update(x, torch.zeros(len(x), dtype=torch.long))
    assert moments.problem == problem
    if len(x) < 2 or "NaN" in problem:
        assert moments.covariance.isnan().any()
    elif problem:
        assert (moments.covariance == 0).all()


def test_constant_column_beside_others_is_exactly_zero() -> None:
    x, y = features(1500, 4)
    x[:, 1] = 12345.678
    covariance = streamed(x, y).covariance
    assert (covariance[1] == 0).all()
    np.testing.assert_allclose(covariance, np.cov(x.double().numpy().T), atol=1e-6)


def test_bytes_are_those_allocated() -> None:
    moments = streamed(*features(10, 37))
    held = [*moments._state.values(), *moments._rows]
    assert Moments.nbytes(37, 5) == sum(tensor.nbytes for tensor in held)


def test_wrong_input_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match=r"needs features \[B, 3\].* got \[2, 4\] and \[2\]"):
        Moments(3, 2).update(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long))
    moments = Moments(3, 2)
    moments.update(torch.zeros(2, 3), torch.tensor([0, 7]))
    with pytest.raises(ValueError, match=r"1 of 2 labels are not in 0\.\.1"):
        _ = moments.class_count
    with pytest.raises(ValueError, match="at least 1"):
        Moments(0, 2)


def test_half_precision_features_and_autocast() -> None:
    x, y = features(600, 32)
    half = x.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        moments = streamed(half, y)
        covariance = moments.covariance
    np.testing.assert_allclose(covariance, np.cov(half.double().numpy().T), atol=1e-6)


def test_metric_equals_moments() -> None:
    x, y = features(600, 16)
    metric, moments = MomentsMetric(16, 5), Moments(16, 5)
    for a, b in zip(x.split(200), y.split(200), strict=True):
        metric.update(a, b)
        moments.update(a, b)
    assert_equal_sums(metric.moments().state_dict(), moments.state_dict())
    values = metric.compute()
    assert values["rank_cov/rtol=1e-3"] == numerical_rank(moments.covariance)
    assert {"rankme/raw", "variance_ratio/l2"} <= set(values)
    metric.reset()
    assert metric.moments().n == 0
