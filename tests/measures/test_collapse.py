"""Neural collapse against numpy's D x D definitions, closed forms, and what must not matter."""

import math

import numpy as np
import pytest
import torch

from tunnel_lightning.measures import (
    COLLAPSE,
    MomentMeasures,
    Moments,
    cdnv,
    nc1,
    nc2,
    nc3,
    nearest_mean_head,
)


def data(n=400, dim=12, classes=5, spread=1.0, seed=0, offset=0.0):
    rng = np.random.default_rng(seed)
    y = np.concatenate([np.arange(classes), rng.integers(classes, size=n - classes)])
    y[: n // 10] = 0  # unbalanced: the mean of class means is not the mean of samples
    x = (
        rng.standard_normal((n, dim)) * np.geomspace(1, 0.1, dim) * spread
        + rng.standard_normal((classes, dim))[y]
    )
    return x + offset, y


def sums(x, y, classes):
    x, y = torch.as_tensor(x).double(), torch.as_tensor(y)
    one_hot = torch.nn.functional.one_hot(y, classes).double()
    centred = x - x.mean(0)
    return one_hot.sum(0).long(), one_hot.T @ x, one_hot.T @ x.square().sum(1), centred.T @ centred


def reference(x, y):
    """The definitions as they stand, nothing in closed form."""
    labels = np.unique(y)
    k = len(labels)
    means = np.stack([x[y == c].mean(0) for c in labels])
    m = means - means.mean(0)
    within = x - means[np.searchsorted(labels, y)]
    s_w, s_b = within.T @ within / len(x), m.T @ m / k
    norms = np.linalg.norm(m, axis=1)
    cosines = [m[i] @ m[j] / norms[i] / norms[j] for i in range(k) for j in range(k) if i != j]
    simplex = (np.eye(k) - 1 / k) / math.sqrt(k - 1)
    gram = m @ m.T
    variance = [np.square(x[y == c] - means[i]).sum(1).mean() for i, c in enumerate(labels)]
    pairs = [
        (variance[i] + variance[j]) / (2 * np.square(means[i] - means[j]).sum())
        for i in range(k)
        for j in range(i)
    ]
    return {
        "trace_pinv": np.trace(s_w @ np.linalg.pinv(s_b, rcond=1e-10, hermitian=True)) / k,
        "trace_ratio": np.trace(s_w) / np.trace(s_b),
        "norm_cv": norms.std() / norms.mean(),
        "angle": np.abs(np.array(cosines) + 1 / (k - 1)).mean(),
        "etf": np.linalg.norm(gram / np.linalg.norm(gram) - simplex),
        "cdnv": np.mean(pairs),
    }


def ours(x, y, classes):
    count, total, square, scatter = sums(x, y, classes)
    return {
        name: value.item()
        for name, value in {
            **nc1(count, total, square, scatter)._asdict(),
            **nc2(count, total)._asdict(),
            "cdnv": cdnv(count, total, square),
        }.items()
    }


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize(("dim", "classes"), [(12, 5), (3, 6), (40, 2), (1, 2)])
def test_against_numpy(dim, classes, offset):
    x, y = data(dim=dim, classes=classes, offset=offset)
    assert ours(x, y, classes) == pytest.approx(reference(x, y), rel=1e-6)


def test_classes_without_samples_are_left_out():
    x, y = data()
    assert ours(x, np.array([0, 2, 3, 7, 8])[y], 10) == pytest.approx(reference(x, y), rel=1e-9)


def test_collinear_means_use_the_pseudo_inverse():
    rng = np.random.default_rng(0)
    y = np.arange(300) % 3
    x = rng.standard_normal((300, 4))
    x -= np.stack([x[y == c].mean(0) for c in range(3)])[y]  # the means exactly on a line
    x += np.outer(y, [1.0, 2.0, 0.0, 0.0])
    assert ours(x, y, 3)["trace_pinv"] == pytest.approx(reference(x, y)["trace_pinv"], rel=1e-9)


def test_a_simplex_of_points_is_all_zero():
    y = np.arange(40) % 4
    x = np.eye(4)[y] * 3 + 7
    count, total, _, _ = sums(x, y, 4)
    assert ours(x, y, 4) == pytest.approx(dict.fromkeys(reference(x, y), 0), abs=1e-9)
    head = total / count[:, None]
    assert nc3(count, total, 5 * (head - head.mean(0))).item() == pytest.approx(0, abs=1e-9)
    # What is farthest from it: all columns the same.
    assert nc3(count, total, head[[0, 0, 0, 0]]) > 1


def test_nc3_against_its_definition():
    x, y = data()
    rng = np.random.default_rng(1)
    weight = rng.standard_normal((5, 12))
    count, total, _, _ = sums(x, y, 5)
    means = np.stack([x[y == c].mean(0) for c in range(5)])
    product = weight @ (means - means.mean(0)).T
    expected = np.linalg.norm(product / np.linalg.norm(product) - (np.eye(5) - 0.2) / 2)
    assert nc3(count, total, torch.from_numpy(weight)).item() == pytest.approx(expected, rel=1e-10)


def test_rotation_shift_and_scale_do_not_matter():
    x, y = data()
    rotation = np.linalg.qr(np.random.default_rng(2).standard_normal((12, 12)))[0]
    assert ours(3 * x @ rotation + 5, y, 5) == pytest.approx(ours(x, y, 5), rel=1e-8)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.zeros((0, 3)), np.zeros(0, int)),
        (np.random.default_rng(0).standard_normal((9, 3)), np.zeros(9, int)),
        (np.full((9, 3), np.nan), np.arange(9) % 2),
        (np.ones((9, 3)), np.arange(9) % 2),
    ],
    ids=["none", "one class", "nan", "equal means"],
)
def test_undefined_is_nan(x, y):
    assert all(math.isnan(value) for value in ours(x, y, 2).values())
    measure = MomentMeasures(3, 2, COLLAPSE)
    measure.update(torch.as_tensor(x).float(), torch.as_tensor(y).long())
    values = measure.compute()
    assert len(values) == 7
    assert all(math.isnan(value.value) for value in values)


def test_streamed_from_float32_features():
    x, y = data(n=3000, dim=30, spread=0.05, offset=3.0)
    x = x.astype(np.float32)
    measure = MomentMeasures(30, 5, COLLAPSE, alpha=0.1)
    for part in np.array_split(np.arange(3000), 7):
        measure.update(torch.from_numpy(x[part]), torch.from_numpy(y[part]))
    found = {(v.measure, v.variant): v.value for v in measure.compute()}
    expected = reference(x.astype(np.float64), y)
    assert expected["trace_pinv"] < 0.01
    for (name, variant), value in found.items():
        if name == "nc3":
            weight = np.linalg.norm(value)
            assert 0 < weight < 2
        else:
            assert value == pytest.approx(expected["cdnv" if name == "cdnv" else variant], rel=1e-4)
    assert list(found) == [
        ("nc1", "trace_pinv"), ("nc1", "trace_ratio"), ("nc2", "norm_cv"), ("nc2", "angle"), ("nc2", "etf"),
        ("nc3", "ridge"), ("cdnv", "mean"),
    ]  # fmt: skip


def moments_of(x, y, classes):
    moments = Moments(x.shape[1], classes)
    moments.update(torch.from_numpy(x), torch.from_numpy(y))
    return moments


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_nearest_mean_head(offset):
    x, y = data(offset=offset)
    x = x.astype(np.float32).astype(np.float64)
    scores = nearest_mean_head(moments_of(x, y, 5))(torch.from_numpy(x))
    means = np.stack([x[y == c].mean(0) for c in range(5)])
    distances = np.square(x[:, None] - means).sum(2)
    np.testing.assert_array_equal(scores.argmax(1), distances.argmin(1))
    # Scores and distances differ by the same amount for every class.
    np.testing.assert_allclose((scores.numpy() + distances).std(1), 0, atol=1e-6)


def test_nearest_mean_never_answers_a_class_without_samples():
    x, y = data(offset=2.0)
    scores = nearest_mean_head(moments_of(x, np.array([0, 2, 3, 7, 8])[y], 10))(torch.from_numpy(x))
    assert set(scores.argmax(1).tolist()) <= {0, 2, 3, 7, 8}
    assert torch.isfinite(scores).all()


@pytest.mark.parametrize("x", [np.full((9, 3), np.nan), np.ones((9, 3)), np.zeros((0, 3))])
def test_nearest_mean_of_sick_features_is_nan(x):
    head = nearest_mean_head(moments_of(x, np.arange(len(x)) % 2, 2))
    assert head.weight.isnan().all()
    assert head.bias.isnan().all()
