"""Scores of a linear head against scikit-learn."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from tunnel_lightning.measures.functional import LinearHead
from tunnel_lightning.measures.layer import ProbeAccuracy
from tunnel_lightning.measures.scores import ProbeScores


def data(classes: int = 8, n: int = 300) -> tuple[LinearHead, torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(0)
    # Class sizes differ and the last class does not occur.
    y = rng.choice(classes - 1, size=n, p=np.arange(1, classes) / np.arange(1, classes).sum())
    x = rng.standard_normal((n, 5)) + rng.standard_normal((classes, 5))[y]
    head = LinearHead(torch.from_numpy(rng.standard_normal((classes, 5))), torch.zeros(classes).double())
    return head, torch.from_numpy(x).float(), torch.from_numpy(y)


def test_equals_sklearn() -> None:
    head, x, y = data()
    scores = ProbeScores(head, "logistic", 8)
    for part in range(0, 300, 100):
        scores.update(x[part : part + 100], y[part : part + 100])
    found = {value.measure: value for value in scores.compute()}
    assert all(value.variant == "logistic" and value.n == 300 for value in found.values())
    predicted = head(x)
    assert found["probe_balanced_accuracy"].value == pytest.approx(
        balanced_accuracy_score(y, predicted.argmax(1))
    )
    assert found["probe_top5_accuracy"].value == pytest.approx(
        top_k_accuracy_score(y, predicted.numpy(), k=5, labels=np.arange(8))
    )
    reference = ProbeAccuracy(head, "logistic")
    reference.update(x, y)
    assert found["probe_accuracy"] == reference.compute()[0]


def test_standard_error_of_the_balanced_accuracy() -> None:
    head, x, y = data()
    scores = ProbeScores(head, "logistic", 8)
    scores.update(x, y)
    right = (head(x).argmax(1) == y).double()
    variances = [right[y == c].var(correction=0) / (y == c).sum() for c in range(7)]
    expected = math.sqrt(sum(variances)) / 7
    assert scores.compute()[1].se == pytest.approx(expected)


def test_few_classes_have_no_top5() -> None:
    head = LinearHead(torch.eye(5), torch.zeros(5))
    scores = ProbeScores(head, "ridge", 5)
    scores.update(torch.eye(5), torch.tensor([0, 1, 2, 3, 3]))
    assert [value.measure for value in scores.compute()] == ["probe_accuracy", "probe_balanced_accuracy"]
    assert [value.value for value in scores.compute()] == [0.8, pytest.approx((1 + 1 + 1 + 0.5) / 4)]


def test_merge_is_one_pass() -> None:
    head, x, y = data()
    both = [ProbeScores(head, "ridge", 8) for _ in range(3)]
    both[0].update(x[:90], y[:90])
    both[1].update(x[90:], y[90:])
    both[2].update(x, y)
    both[0].merge(both[1])
    assert both[0].compute() == both[2].compute()


def test_a_label_outside_is_a_wrong_answer() -> None:
    scores = ProbeScores(LinearHead(torch.eye(2), torch.zeros(2)), "ridge", 2)
    scores.update(torch.eye(2), torch.tensor([0, 7]))
    assert scores.compute()[0][2:] == (0.5, pytest.approx(math.sqrt(0.125)), 2)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_scores_that_are_not_finite_give_nan(bad: float) -> None:
    head, x, y = data()
    scores = ProbeScores(head, "ridge", 8)
    scores.update(x, y)
    x = x.clone()
    x[0, 0] = bad
    scores.update(x, y)
    assert all(math.isnan(value.value) and math.isnan(value.se) for value in scores.compute())
    assert [value.n for value in scores.compute()] == [600] * 3


def test_no_samples_give_nan() -> None:
    values = ProbeScores(data()[0], "ridge", 8).compute()
    assert len(values) == 3
    assert all(math.isnan(value.value) and value.n == 0 for value in values)
