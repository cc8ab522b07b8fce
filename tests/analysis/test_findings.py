"""Means over pairs of networks, and their errors."""

import doctest
from itertools import product

import numpy as np
import pytest
import torch

from tunnel_lightning.analysis import findings
from tunnel_lightning.analysis.findings import along_depth, mean_of_pairs


def left_out(values, within):
    """The jackknife as it is written: the mean again without each network of each group."""
    groups = [range(values.shape[0])] if within else [range(values.shape[0]), range(values.shape[1])]
    total = 0.0
    for axis, group in enumerate(groups):
        means = []
        for gone in group:
            pairs = [
                values[i, j]
                for i, j in product(range(values.shape[0]), range(values.shape[1]))
                if gone not in ((i, j) if within else ((i, j)[axis],)) and not (within and i == j)
            ]
            means.append(np.mean(pairs, axis=0))
        n = len(group)
        total = total + (n - 1) / n * np.sum((np.array(means) - np.mean(means, axis=0)) ** 2, axis=0)
    return np.sqrt(total)


def similarities(first, second, within):
    """Random similarities of 3 layers with 4, or of 3 with 3 where the groups are one."""
    values = np.random.default_rng(0).uniform(size=(first, second, 3, 3 if within else 4))
    if within:  # (i, j) is (j, i) transposed
        values = (values + values.transpose(1, 0, 3, 2)) / 2
    return values


@pytest.mark.parametrize(
    ("first", "second", "within"), [(3, 3, True), (5, 5, True), (2, 2, False), (3, 5, False)]
)
def test_the_error_leaves_out_one_network_at_a_time(first, second, within):
    values = similarities(first, second, within)
    mean, se = mean_of_pairs(torch.from_numpy(values), within)
    pairs = [values[i, j] for i, j in np.ndindex(first, second) if not (within and i == j)]
    np.testing.assert_allclose(mean, np.mean(pairs, axis=0))
    np.testing.assert_allclose(se, left_out(values, within))


def test_the_error_of_independent_parts_is_that_of_their_sum():
    x, y = np.random.default_rng(1).normal(size=(2, 6))
    values = torch.from_numpy(x[:, None] + y[None, :])
    _, se = mean_of_pairs(values, within=False)
    assert float(se) == pytest.approx(np.sqrt((x.var(ddof=1) + y.var(ddof=1)) / 6))
    assert float(se) > float(values.std() / 6), "pairs of the same networks are not 36 independent ones"


@pytest.mark.parametrize(
    ("first", "second", "within", "mean"),
    [(1, 1, True, False), (2, 2, True, True), (1, 1, False, True), (1, 4, False, True), (4, 1, False, True)],
)
def test_too_few_networks_have_no_error(first, second, within, mean):
    value, se = mean_of_pairs(torch.from_numpy(similarities(first, second, within)), within)
    assert bool(value.isfinite().all()) == mean
    assert se.isnan().all()
    assert se.shape == value.shape


@pytest.mark.parametrize(
    ("size", "expected"), [((3, 3), [0, 4, 8]), ((1, 3), [0, 1, 2]), ((2, 4), [0, 1, 6, 7])]
)
def test_along_depth(size, expected):
    values = torch.arange(9.0)[: size[0] * size[1]].view(size)
    assert along_depth(values) == pytest.approx(np.mean(expected))
    assert along_depth(values.T) == pytest.approx(np.mean(expected))


def test_examples():
    assert doctest.testmod(findings).failed == 0
