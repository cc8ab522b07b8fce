"""Answers of networks compared, against scipy and definitions written out."""

import doctest
import math

import numpy as np
import pytest
from scipy import stats
from scipy.special import log_softmax, rel_entr, softmax

from tunnel_lightning.measures.functional import predictions as room
from tunnel_lightning.measures.functional.predictions import (
    churn,
    class_differences,
    error_spread,
    holm,
    mean_kl,
    per_class_accuracy,
    per_example_accuracy,
)

rng = np.random.default_rng(0)


def test_per_example_accuracy_is_the_share_of_networks_that_are_right() -> None:
    predicted, target = rng.integers(0, 3, (7, 50)), rng.integers(0, 3, 50)
    expected = [np.mean([row[i] == target[i] for row in predicted]) for i in range(50)]
    np.testing.assert_allclose(per_example_accuracy(predicted, target), expected)


def test_churn_and_accuracy_tell_one_story() -> None:
    a, b, target = rng.integers(0, 4, (3, 500))
    found = churn(a, b, target)
    assert found.changed == pytest.approx(1 - np.mean(a == b))
    assert found.won - found.lost == pytest.approx(np.mean(b == target) - np.mean(a == target))
    back = churn(b, a, target)
    assert (back.changed, back.lost, back.won) == (found.changed, found.won, found.lost)
    assert churn(a, a, target) == (0, 0, 0)


def test_kl_against_scipy() -> None:
    x, y = rng.normal(size=(2, 40, 6)) * 3
    p, q = softmax(x, 1), softmax(y, 1)
    expected = rel_entr(p, q).sum(1).mean()
    assert mean_kl(log_softmax(x, 1), log_softmax(y, 1)) == pytest.approx(expected)
    assert mean_kl(log_softmax(x, 1), log_softmax(x, 1)) == 0


def test_kl_where_a_probability_underflows() -> None:
    scores = np.array([[0.0, -1000.0]])
    assert mean_kl(log_softmax(scores, 1), log_softmax(-scores, 1)) == pytest.approx(1000)
    assert mean_kl(np.array([[0.0, -np.inf]]), np.log([[0.5, 0.5]])) == pytest.approx(math.log(2))


def test_per_class_accuracy_by_loops_and_a_class_without_images() -> None:
    predicted, target = rng.integers(0, 4, (3, 90)), rng.integers(0, 3, 90)
    found = per_class_accuracy(predicted, target, 4)
    for r, c in np.ndindex(3, 3):
        assert found[r, c] == pytest.approx(np.mean(predicted[r, target == c] == c))
    assert np.isnan(found[:, 3]).all()


def test_welch_against_scipy() -> None:
    a, b = rng.normal(0.6, 0.02, (5, 3)), rng.normal(0.61, 0.05, (8, 3))
    found, expected = class_differences(a, b), stats.ttest_ind(a, b, equal_var=False)
    np.testing.assert_allclose(found.t, expected.statistic)
    np.testing.assert_allclose(found.df, expected.df)
    np.testing.assert_allclose(found.p, expected.pvalue)
    np.testing.assert_allclose(found.difference, a.mean(0) - b.mean(0))


def test_no_test_without_spread_or_networks() -> None:
    a = np.array([[0.1, np.nan, 0.3], [0.1, np.nan, 0.4]])
    b = np.array([[0.9, np.nan, 0.1], [0.9, np.nan, 0.1]])
    found = class_differences(a, b)
    assert np.isnan(found.p).tolist() == [True, True, False]
    # The two classes without a test still count.
    assert found.p_holm[2] == pytest.approx(min(1, 3 * found.p[2]))
    assert found.difference[0] == pytest.approx(-0.8)
    assert np.isnan(class_differences(a[:1], b).p).all()
    with pytest.raises(ValueError, match="3 and 2 classes"):
        class_differences(a, b[:, :2])


@pytest.mark.parametrize("p", [[0.01, 0.04, 0.03, 0.005], [0.5, 0.9, 0.6], [0.01, math.nan, 0.04], [0.2], []])
def test_holm_decides_as_the_stepwise_procedure(p: list[float]) -> None:
    corrected = holm(p)
    for alpha in np.linspace(0.001, 0.999, 400):
        rejected = set()
        for step, i in enumerate(sorted((i for i in range(len(p)) if p[i] == p[i]), key=lambda i: p[i])):
            if p[i] > alpha / (len(p) - step):
                break
            rejected.add(i)
        assert {i for i, value in enumerate(corrected) if value <= alpha} == rejected


def planted(networks: int, chance: np.ndarray, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random((networks, len(chance))) < chance


def test_groups_of_one_kind_differ_as_their_halves_do() -> None:
    chance = rng.beta(2, 1, 4000)
    found = error_spread(planted(10, chance, 1), planted(10, chance, 2))
    for column in (0, 1):
        null = np.concatenate([found.within_a, found.within_b])[:, column]
        assert found.between[:, column].mean() == pytest.approx(null.mean(), rel=0.03)


def test_a_planted_difference_shows_in_its_size() -> None:
    """Two kinds, equally often right, but each better by 2 x 0.1 on another half of the images."""
    sign = np.where(np.arange(4000) % 2, 0.1, -0.1)
    chance = np.full(4000, 0.7)
    found = error_spread(planted(12, chance + sign, 1), planted(12, chance - sign, 2))
    assert found.size == 6
    noise = (0.8 * 0.2 + 0.6 * 0.4) / 6  # variance of a difference of two means of six
    null = np.concatenate([found.within_a, found.within_b])[:, 1].mean()
    assert null == pytest.approx(noise, rel=0.05)
    assert found.between[:, 1].mean() == pytest.approx(noise + 0.2**2, rel=0.05)
    assert found.between[:, 0].mean() > 1.2 * found.within_a[:, 0].mean()


def test_being_right_more_often_is_no_variance() -> None:
    right = np.ones((2, 10), dtype=bool)
    found = error_spread(right, ~right)
    assert (found.between == [1, 0]).all()
    assert (found.within_a == 0).all()


def test_splits_are_all_there_are_or_drawn_by_the_seed() -> None:
    right = planted(8, np.full(30, 0.5), 0)
    found = error_spread(right[:4], right[4:7])
    # h = 1: 6 pairs within the four, 3 within the three, 12 between.
    assert [len(x) for x in (found.between, found.within_a, found.within_b)] == [12, 6, 3]
    expected = [np.abs(right[i] ^ right[j]).mean() for i in range(4) for j in range(i + 1, 4)]
    np.testing.assert_allclose(found.within_a[:, 0], expected)
    found = error_spread(right[:4], right[4:])
    assert [len(x) for x in (found.between, found.within_a, found.within_b)] == [36, 3, 3]
    few = [error_spread(right[:4], right[4:], splits=2, seed=seed).between for seed in (0, 0, 1)]
    assert len(few[0]) == 2
    assert (few[0] == few[1]).all()
    assert (few[0] != few[2]).any()


def test_wrong_sizes_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="same images"):
        per_example_accuracy([[0, 1]], [0])
    with pytest.raises(ValueError, match="at least two networks"):
        error_spread(np.ones((1, 4), dtype=bool), np.ones((3, 4), dtype=bool))


def test_examples() -> None:
    assert doctest.testmod(room).failed == 0
