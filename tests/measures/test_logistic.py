"""Logistic-regression probes against scikit-learn, in float64."""

import math

import numpy as np
import pytest
import torch
from counting import peak_bytes
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from tunnel_lightning.measures.functional import softmax
from tunnel_lightning.measures.functional.logistic import (
    logistic,
    logistic_all,
    logistic_bytes,
    logistic_path,
    stratified_split,
)
from tunnel_lightning.measures.functional.ridge import LinearHead


def data(n: int, dim: int, classes: int = 4, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Correlated columns far from zero, of very different scales, with classes that overlap."""
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    mixed = rng.standard_normal((n, dim)) * np.geomspace(1, 1e-3, dim) @ rng.standard_normal((dim, dim))
    x = mixed + 0.7 * rng.standard_normal((classes, dim))[y]
    return x * np.geomspace(1e-2, 1e2, dim) + 5, y


def sklearn_fit(x: np.ndarray, y: np.ndarray, c: float, tol: float) -> tuple[np.ndarray, LogisticRegression]:
    z = StandardScaler().fit_transform(x)
    model = LogisticRegression(C=c, tol=tol, max_iter=20_000).fit(z, y)
    return z, model


def objective_gradient(head: LinearHead, x: np.ndarray, y: np.ndarray, penalty: float) -> np.ndarray:
    """The gradient with respect to weights and bias on standardised features, from the head on raw ones."""
    z, deviation = StandardScaler().fit_transform(x), x.std(0)
    scores = x @ head.weight.numpy().T + head.bias.numpy()
    p = np.exp(scores - scores.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True) - np.eye(len(head.bias))[y]
    weight = error.T @ z / len(x) + penalty * head.weight.numpy() * deviation
    return np.concatenate([weight, error.mean(0)[:, None]], axis=1)


@pytest.mark.parametrize(("n", "dim"), [(300, 30), (60, 90)])
@pytest.mark.parametrize("penalty", [1e-1, 1e-3])
def test_equals_sklearn(n: int, dim: int, penalty: float) -> None:
    x, y = data(n, dim)
    z, model = sklearn_fit(x, y, 1 / (penalty * n), tol=1e-8)
    fit = logistic(torch.from_numpy(x), torch.from_numpy(y), 4, penalty, tol=1e-8)
    assert fit.converged
    assert fit.gradient <= 1e-8
    p = fit.head(torch.from_numpy(x)).softmax(1)
    np.testing.assert_allclose(p, model.predict_proba(z), atol=2e-5)
    np.testing.assert_allclose(fit.head.weight.numpy() * x.std(0), model.coef_, atol=2e-4)


def test_two_classes_equal_sklearn_with_half_the_penalty() -> None:
    x, y = data(200, 10, classes=2)
    z, model = sklearn_fit(x, y, 2 / (1e-2 * 200), tol=1e-8)
    fit = logistic(torch.from_numpy(x), torch.from_numpy(y), 2, 1e-2, tol=1e-8)
    p = fit.head(torch.from_numpy(x)).softmax(1)
    np.testing.assert_allclose(p, model.predict_proba(z), atol=1e-5)


@pytest.mark.parametrize(("n", "dim"), [(400, 40), (60, 90)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_tolerance_is_that_of_the_standardised_features(n: int, dim: int, dtype: torch.dtype) -> None:
    x, y = data(n, dim)
    fit = logistic(torch.from_numpy(x).to(dtype), torch.from_numpy(y), 4, 1e-4, tol=1e-4)
    gradient = np.abs(objective_gradient(fit.head, x, y, 1e-4)).max()
    assert fit.converged
    assert gradient == pytest.approx(fit.gradient, rel=0.05)
    assert gradient <= 1.05e-4


def noisy(n: int, dim: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """The same, but half the labels are drawn at random: no probe separates them."""
    x, y = data(n, dim, seed=seed)
    rng = np.random.default_rng(seed)
    return x, np.where(rng.random(n) < 0.5, rng.integers(4, size=n), y)


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize(("n", "dim"), [(1500, 80), (70, 80)])
def test_noisy_labels_take_a_fraction_of_the_iterations_of_sklearn(
    n: int, dim: int, wide: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if wide:
        monkeypatch.setattr(softmax, "WIDE", 40)
    x, y = noisy(n, dim)
    fit = logistic(torch.from_numpy(x), torch.from_numpy(y), 4, 1e-3, tol=1e-6)
    z, model = sklearn_fit(x, y, 1 / (1e-3 * n), tol=1e-6)
    assert fit.converged
    if n > dim:
        assert fit.iterations < model.n_iter_[0] / (2 if wide else 4)
    np.testing.assert_allclose(fit.head(torch.from_numpy(x)).softmax(1), model.predict_proba(z), atol=1e-3)


def test_float32_features_with_a_large_mean() -> None:
    x, y = data(400, 20)
    x = (x / x.std(0) + 1e3).astype(np.float32)
    fit = logistic(torch.from_numpy(x), torch.from_numpy(y), 4, 1e-2, tol=1e-6)
    z, model = sklearn_fit(x.astype(np.float64), y, 1 / (1e-2 * 400), tol=1e-8)
    np.testing.assert_allclose(fit.head(torch.from_numpy(x)).softmax(1), model.predict_proba(z), atol=1e-4)


def test_columns_without_variance_get_no_weight() -> None:
    x, y = (torch.from_numpy(part) for part in data(200, 5))
    wide = torch.cat([x, torch.full((200, 1), 0.1), torch.zeros(200, 1)], dim=1)
    fit = logistic(wide, y, 4, 1e-3, tol=1e-8)
    assert (fit.head.weight[:, 5:] == 0).all()
    expected = logistic(x, y, 4, 1e-3, tol=1e-8)
    torch.testing.assert_close(fit.head(wide), expected.head(x), atol=1e-5, rtol=0)


def test_start_at_the_solution_is_done_at_once() -> None:
    for n, dim in ((300, 30), (60, 90)):
        x, y = (torch.from_numpy(part) for part in data(n, dim))
        first = logistic(x, y, 4, 1e-3)
        again = logistic(x, y, 4, 1e-3, start=first.head)
        assert first.iterations > 3
        assert again.iterations == 0
        torch.testing.assert_close(again.head.weight, first.head.weight, atol=1e-9, rtol=1e-6)
        torch.testing.assert_close(again.head.bias, first.head.bias, atol=1e-9, rtol=1e-6)


def test_separable_classes_with_a_tiny_penalty() -> None:
    x = torch.cat([torch.eye(3), torch.eye(3) * 2]).repeat(20, 1)
    y = torch.arange(3).repeat(40)
    fit = logistic(x, y, 3, 1e-8, tol=1e-6)
    assert fit.converged
    assert torch.equal(fit.head(x).argmax(1), y)


def test_stopping_early_is_told() -> None:
    x, y = (torch.from_numpy(part) for part in data(300, 30))
    fit = logistic(x, y, 4, 1e-5, max_iter=2)
    assert (fit.iterations, fit.converged) == (2, False)
    assert fit.gradient > 1e-4


@pytest.mark.parametrize(
    "x",
    [torch.zeros(0, 3), torch.ones(4, 3), torch.tensor([[torch.nan] * 3] * 4), torch.eye(4)[:, :3] / 0],
    ids=["empty", "constant", "nan", "infinite"],
)
def test_unusable_features_give_nan(x: torch.Tensor) -> None:
    fit = logistic(x, torch.arange(len(x)) % 2, 2, 1e-2)
    assert fit.head.weight.shape == (2, 3)
    assert fit.head.weight.isnan().all()
    assert fit.head.bias.isnan().all()
    assert math.isnan(fit.gradient)
    assert not fit.converged


def test_sick_layers_leave_the_others_alone() -> None:
    x, y = (torch.from_numpy(part).clone() for part in data(100, 6))
    sick = x.clone()
    sick[3, 2] = torch.nan
    done: list[str] = []
    found = logistic_all(
        {"sick": sick, "good": x, "flat": torch.ones(100, 2)}, y, 4, [1e-1, 1e-2], progress=done.append
    )
    assert list(found) == done == ["sick", "good", "flat"]
    for name in ("sick", "flat"):
        assert found[name].fit.head.weight.isnan().all()
        assert all(math.isnan(accuracy) for accuracy in found[name].accuracy.values())
        assert math.isnan(found[name].penalty)
    alone = logistic_path(x, y, 4, [1e-1, 1e-2])
    assert torch.equal(found["good"].fit.head.weight, alone.fit.head.weight)


def test_the_path_chooses_on_held_out_samples() -> None:
    x, y = noisy(400, 60, seed=3)
    penalties = [1e-4, 10.0, 1e-1]
    tensors = torch.from_numpy(x), torch.from_numpy(y)
    path = logistic_path(*tensors, 4, penalties, holdout=0.25, seed=1, tol=1e-7)
    kept, held = (part.numpy() for part in stratified_split(tensors[1], 0.25, seed=1))
    scaler = StandardScaler().fit(x[kept])
    expected = {}
    for penalty in sorted(penalties, reverse=True):
        model = LogisticRegression(C=1 / (penalty * len(kept)), tol=1e-8, max_iter=20_000)
        model.fit(scaler.transform(x[kept]), y[kept])
        expected[penalty] = model.score(scaler.transform(x[held]), y[held])
    assert len(set(expected.values())) == 3
    assert list(path.accuracy) == [10.0, 1e-1, 1e-4]
    assert path.accuracy == pytest.approx(expected)
    assert path.penalty == max(expected, key=expected.get)
    on_all = logistic(*tensors, 4, path.penalty, tol=1e-7)
    torch.testing.assert_close(path.fit.head(tensors[0]), on_all.head(tensors[0]), atol=1e-3, rtol=0)


def test_all_layers_are_fitted_in_double_precision_without_a_copy_of_the_layer() -> None:
    x, y = (torch.from_numpy(part) for part in noisy(400, 30))
    single = x.float()
    found = logistic_all({"a": single}, y, 4)["a"]
    double = logistic_path(single.double(), y, 4)
    assert torch.equal(found.fit.head.weight, double.fit.head.weight)
    assert torch.equal(found.fit.head.bias, double.fit.head.bias)
    assert found.accuracy == double.accuracy
    assert not torch.equal(found.fit.head.weight, logistic_path(single, y, 4).fit.head.weight)


@pytest.mark.parametrize(
    ("n", "dim", "wide"), [(3000, 100, 2048), (200, 400, 2048), (1500, 300, 100), (300, 500, 200)]
)
def test_it_takes_no_more_bytes_than_it_says(
    n: int, dim: int, wide: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "WIDE", wide)
    x, y = noisy(n, dim)
    layer, target = torch.from_numpy(x).float(), torch.from_numpy(y)
    used = peak_bytes(lambda: logistic_all({"a": layer}, target, 4, [1e-1, 1e-2, 1e-3]))
    assert logistic_bytes(n, dim, 4) / 2 < used <= logistic_bytes(n, dim, 4)
    two = peak_bytes(lambda: logistic_all({"a": layer, "b": layer}, target, 4, [1e-1, 1e-2, 1e-3]))
    assert two < 1.05 * used, "one layer at a time"


def test_the_split_is_stratified_seeded_and_leaves_the_random_state_alone() -> None:
    y = torch.from_numpy(np.repeat(np.arange(5), [10, 20, 30, 40, 100]))[torch.randperm(200)]
    state = torch.random.get_rng_state()
    kept, held = stratified_split(y, 0.2, seed=4)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(torch.cat([kept, held]).sort().values, torch.arange(200))
    _, theirs = train_test_split(y.numpy(), test_size=0.2, stratify=y.numpy(), random_state=0)
    assert y[held].bincount().tolist() == np.bincount(theirs).tolist() == [2, 4, 6, 8, 20]
    assert torch.equal(stratified_split(y, 0.2, seed=4)[1], held)
    assert not torch.equal(stratified_split(y, 0.2, seed=5)[1], held)


def test_wrong_use_is_refused() -> None:
    x, y = torch.eye(4), torch.arange(4)
    with pytest.raises(ValueError, match=r"penalty .* must be above 0, got 0"):
        logistic(x, y, 4, 0)
    with pytest.raises(ValueError, match=r"got \[4, 4\] and \[3\]"):
        logistic(x, y[:3], 4, 1)
    with pytest.raises(ValueError, match="num_classes=3 does not fit"):
        logistic(x, y, 3, 1)
    with pytest.raises(ValueError, match="at least one penalty"):
        logistic_path(x, y, 4, [])
    with pytest.raises(ValueError, match=r"holding out 0.1 of 4 samples"):
        logistic_path(x, y, 4, holdout=0.1)
