"""The fully connected network."""

import pytest
import torch
from torch import nn

from tunnel_lightning.backbones import MLP


def test_layers_and_names():
    network = MLP(depth=3, width=8, num_classes=5, input_shape=(2, 4, 4))
    assert [(name, tuple(p.shape)) for name, p in network.named_parameters() if p.ndim == 2] == [
        ("layers.0.linear.weight", (8, 32)),
        ("layers.1.linear.weight", (8, 8)),
        ("layers.2.linear.weight", (8, 8)),
        ("head.weight", (5, 8)),
    ]
    assert isinstance(network.get_submodule("layers.2.act"), nn.ReLU)


def test_the_signal_keeps_its_scale_through_fifty_layers():
    torch.manual_seed(0)
    network = MLP(depth=50, width=512, input_shape=(1, 16, 16))
    features = network.features(torch.randn(64, 1, 16, 16))
    # Of a unit input, E[relu(h)^2] = 1 at every layer; the default of nn.Linear leaves 6^-50 of it.
    assert 0.3 < features.square().mean() < 3


def test_twenty_layers_train_by_sgd():
    torch.manual_seed(0)
    network = MLP(depth=20, width=64, num_classes=4, input_shape=(1, 4, 4))
    y = torch.randint(4, (256,))
    x = torch.randn(256, 1, 4, 4) + nn.functional.one_hot(y, 16).view(-1, 1, 4, 4) * 3
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(120):
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(x), y).backward()
        optimizer.step()
    assert (network(x).argmax(1) == y).float().mean() > 0.9


@pytest.mark.parametrize(("depth", "width"), [(0, 8), (2, 0), (-1, 8)])
def test_no_layers_are_refused(depth, width):
    with pytest.raises(ValueError, match=f"MLP: depth is {depth} and width {width}"):
        MLP(depth=depth, width=width)
