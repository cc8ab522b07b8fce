import random

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.taps import quiet, untouched_rng


def draw_all():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_random_states_end_as_they_began():
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    with untouched_rng():
        inside = draw_all()
        draw_all()
    assert draw_all() == inside


def net():
    return nn.Sequential(
        nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(nn.Dropout(0.5), nn.BatchNorm1d(4))
    )


@pytest.mark.parametrize("fails", [False, True])
def test_every_flag_comes_back(fails):
    model = net().train()
    model[1].eval()
    model[2][1].eval()
    before = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    try:
        with quiet(model):
            assert not any(module.training for module in model.modules())
            assert not torch.is_grad_enabled()
            model(torch.randn(8, 4))
            if fails:
                raise KeyError
    except KeyError:
        pass
    assert [module.training for module in model.modules()] == before
    assert torch.is_grad_enabled()
    assert torch.equal(torch.get_rng_state(), random_state)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_overridden_train_method_is_not_called():
    class Merging(nn.Module):
        calls = 0

        def train(self, mode=True):
            self.calls += 1
            return super().train(mode)

    model = nn.Sequential(Merging())
    with quiet(model):
        assert not model[0].training
    assert model[0].calls == 0


def test_weights_keep_their_gradients_in_the_same_autocast_region():
    # Autocast remembers half-precision weights; before torch 2.11 those made without gradients were used again.
    model = nn.Linear(4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        with quiet(model):
            model(torch.randn(2, 4))
        model(torch.randn(2, 4)).sum().backward()
    assert model.weight.grad is not None
