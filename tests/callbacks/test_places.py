"""Where the network is in a module, and what it costs."""

import torch
from torch import nn

from tunnel_lightning.callbacks.places import flops_by_path, sole_child


def net():
    return nn.Sequential(nn.Linear(10, 4), nn.ReLU(), nn.Linear(4, 2))


def test_costs_by_the_paths_in_the_network():
    model = nn.Sequential(nn.Identity(), net())
    network = sole_child(model)
    assert network is model[1]
    found = flops_by_path(model, network, torch.zeros(2, 10))
    assert (found["0"], found["2"]) == (80, 16)


def test_of_a_network_that_is_no_module_of_the_model_only_the_whole_is_known():
    class Hidden(nn.Module):
        def __init__(self):
            super().__init__()
            self.kept = [net()]

        def forward(self, x):
            return self.kept[0](x)

    model = Hidden()
    assert flops_by_path(model, model.kept[0], torch.zeros(2, 10)) == {"": 96}
