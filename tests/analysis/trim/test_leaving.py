"""Where images leave, against the network's own rule, and which layers get an exit."""

import numpy as np
import pytest
import torch

from tunnel_lightning.analysis.trim.leaving import Answers, chosen_layers, costs_of, curve_of, left_at
from tunnel_lightning.surgery import leave


def answers(n=200, exits=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    scores = 2 * torch.randn(exits + 1, n, 4, generator=generator)
    target = torch.randint(4, (n,), generator=generator)
    scores[-1, torch.arange(n), target] += 3
    return Answers([*map(str, range(exits)), "network"], scores, target)


@pytest.mark.parametrize("threshold", [0.0, 0.6, 0.9, 1.0])
def test_images_leave_where_surgery_lets_them(threshold):
    found = answers()
    costs = (10, 20, 30, 45)
    reference = leave(found.scores, threshold, costs)
    left = left_at(found.sure()[0], threshold)
    assert np.array(costs)[left].tolist() == reference.flops.tolist()
    ended = left_at(found.sure()[0], threshold, ends=True)
    assert ended.tolist() == np.minimum(left, 2).tolist()


def test_the_curve_is_what_leaving_gives():
    found, costs = answers(), (10, 20, 30, 45)
    curve = curve_of(found, costs)
    half = len(curve.threshold) // 2
    assert 40 <= half <= 50
    assert (curve.threshold[0], curve.threshold[half - 1]) == (0, 1)
    assert curve.ends.tolist() == [False] * half + [True] * half
    assert curve.flops[[0, half - 1, half, -1]].tolist() == [10, 45, 10, 30]
    for threshold, accuracy, flops in list(zip(curve.threshold, curve.accuracy, curve.flops, strict=True))[
        :half:7
    ]:
        total, right = 0, 0
        for scores, label in zip(found.scores.transpose(0, 1), found.target, strict=True):
            sure = [k for k in range(3) if scores[k].softmax(0).max() > threshold]
            at = sure[0] if sure else 3
            right += int(scores[at].argmax() == label)
            total += costs[at]
        assert accuracy == pytest.approx(right / 200)
        assert flops == pytest.approx(total / 200)
    whole = float((found.scores[-1].argmax(1) == found.target).double().mean())
    assert curve.accuracy[half - 1] == pytest.approx(whole)  # at 1 it is the network


def test_a_layer_that_is_sure_and_right_gets_the_exit():
    """Of three layers one knows the easy half; one more exit that saves nothing is not taken."""
    n = 100
    target = torch.arange(n) % 4
    knows = 9 * torch.nn.functional.one_hot(target, 4).float()
    blank = torch.zeros(n, 4)
    half = torch.where((torch.arange(n) < n // 2)[:, None], knows, blank)
    blank[:, 0] = 1e-3  # sure of nothing, right about a quarter
    found = Answers(["a", "b", "c", "network"], torch.stack([blank, half, half, knows]), target)
    trunk = {"a": 10, "b": 20, "c": 80, "network": 100}
    chosen = chosen_layers(found, trunk, dict.fromkeys("abc", 1), 0.99, lambda done: None)
    assert chosen == ["b"]
    assert costs_of(["a", "c"], trunk, dict.fromkeys("abc", 1)) == [11, 82, 102]


def test_without_a_layer_that_saves_there_is_one_exit():
    target = torch.arange(20) % 2
    right = 9 * torch.nn.functional.one_hot(target, 2).float()
    found = Answers(["a", "b", "network"], torch.stack([-right, -right, right]), target)
    trunk = {"a": 10, "b": 20, "network": 100}
    assert len(chosen_layers(found, trunk, {"a": 1, "b": 1}, 1.0, lambda done: None)) == 1
