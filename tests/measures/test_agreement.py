"""Network and heads on its layers, in one pass."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.measures import Agreement, LinearHead, Moments, accumulate, nearest_mean_head
from tunnel_lightning.taps import tap


def setting(n=90):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    x, y = torch.randn(n, 6), torch.randint(3, (n,))
    batches = list(zip(x.split(32), y.split(32), strict=True))
    return model, x, y, batches, tap(model, x)


def test_share_of_images_whose_nearest_mean_is_not_the_answer():
    model, x, y, batches, taps = setting()
    moments = accumulate(model, taps, batches, [lambda tap: Moments(tap.dim, 3)])
    heads = {name: nearest_mean_head(moments[name][0]) for name in ("input", "0", "2")}
    agreement = Agreement(heads)
    accumulate(model, taps, batches, [], observers=[agreement])
    with torch.no_grad():
        features = {"input": x, "0": model[0](x), "2": model[:3](x)}
        answer = model(x).argmax(1)
    found = agreement.values()
    assert list(found) == ["input", "0", "2"]
    for name, rows in features.items():
        rows = rows.double().numpy()
        means = np.stack([rows[y.numpy() == c].mean(0) for c in range(3)])
        nearest = np.square(rows[:, None] - means).sum(2).argmin(1)
        share = np.mean(nearest != answer.numpy())
        assert 0 < share < 1
        assert found[name][:2] == ("ncm_disagreement", "network")
        assert found[name].value == pytest.approx(share)
        assert found[name].se == pytest.approx(math.sqrt(share * (1 - share) / 90))
        assert found[name].n == 90


def test_none_and_nan():
    healthy = LinearHead(torch.eye(2).double(), torch.zeros(2).double())
    sick = LinearHead(torch.full((2, 2), torch.nan).double(), torch.zeros(2).double())
    agreement = Agreement({"a": healthy, "b": sick, "c": healthy})
    assert all(math.isnan(value.value) and value.n == 0 for value in agreement.values().values())
    features, target = {"a": torch.eye(2), "b": torch.eye(2)}, torch.tensor([0, 1])
    agreement.update(features, target, None)
    assert agreement.values()["a"].n == 0
    agreement.update(features, target, torch.eye(2))
    found = agreement.values()
    assert found["a"][2:] == (0.0, 0.0, 2)
    assert math.isnan(found["b"].value)
    assert math.isnan(found["b"].se)
    assert found["c"].n == 0  # a layer that did not run
    agreement.update(features, target, torch.tensor([[1.0, 0.0], [0.0, torch.nan]]))
    assert math.isnan(agreement.values()["a"].value)
