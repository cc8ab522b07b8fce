"""VGG, against torchvision's where it is the same network."""

import pytest
import torch
from torch import nn
from torchvision import models

from tunnel_lightning.backbones import VGG


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
@pytest.mark.parametrize("norm", [True, False])
def test_the_convolutions_are_torchvisions(depth, norm):
    ours = VGG(depth, width=64, batch_norm=norm).eval()
    theirs = models.get_model(f"vgg{depth}{'_bn' if norm else ''}", init_weights=False).features.eval()
    state = theirs.state_dict()
    if norm:  # a bias before a norm does nothing, and ours has none
        state = {
            name: value
            for name, value in state.items()
            if not (name.endswith("bias") and isinstance(theirs[int(name.split(".")[0])], nn.Conv2d))
        }
        for module in theirs:
            if isinstance(module, nn.Conv2d):
                nn.init.zeros_(module.bias)
    names = [name for name in ours.state_dict() if not name.startswith("head")]
    ours.load_state_dict(dict(zip(names, state.values(), strict=True)), strict=False)
    convolutions = [name for name, m in ours.named_modules() if isinstance(m, nn.Conv2d)]
    assert len(convolutions) == depth - 3
    assert all(name.endswith(".conv") for name in convolutions)
    assert "stages.0.0.act" in dict(ours.named_modules())
    with torch.no_grad():
        x = torch.randn(2, 3, 32, 32)
        features, wanted = ours.features(x), theirs(x).flatten(1)
    assert torch.allclose(features, wanted, rtol=1e-3, atol=1e-5 * wanted.abs().max().item())


@pytest.mark.parametrize(("side", "pools"), [(32, 5), (16, 4), (8, 3), (1, 0), (224, 5)])
def test_pools_stop_at_one_pixel(side, pools):
    network = VGG(11, width=2, input_shape=(1, side, side))
    assert sum(isinstance(module, nn.MaxPool2d) for module in network.modules()) == pools


@pytest.mark.parametrize("side", [8, 16, 32])
def test_the_signal_reaches_the_last_stage_without_norm_layers(side):
    torch.manual_seed(0)
    network = VGG(19, width=32, batch_norm=False, input_shape=(3, side, side))
    scales = []
    network.stages[0][0].conv.register_forward_hook(lambda m, i, out: scales.append(out.std().item()))
    network.stages[4][3].conv.register_forward_hook(lambda m, i, out: scales.append(out.std().item()))
    with torch.no_grad():
        network(torch.randn(16, 3, side, side))
    # Counting nine taps in a 1x1 map leaves 3^-8 of it for images of 8x8.
    assert 0.1 < scales[1] / scales[0] < 10


@pytest.mark.parametrize("norm", [True, False])
def test_nineteen_layers_train_by_sgd(norm):
    torch.manual_seed(0)
    network = VGG(19, width=8, batch_norm=norm, num_classes=3, input_shape=(1, 8, 8))
    y = torch.randint(3, (96,))
    x = torch.randn(96, 1, 8, 8) + (y.view(-1, 1, 1, 1) - 1) * 2
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"depth": 12}, "depth is 12; choose one of 11, 13, 16, 19"), ({"width": 0}, "width is 0")],
)
def test_other_layouts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"VGG: {message}"):
        VGG(**arguments)
