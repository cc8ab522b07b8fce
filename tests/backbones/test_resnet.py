"""ResNet, against torchvision's where it is the same network."""

import pytest
import torch
from torch import nn
from torchvision import models

from tunnel_lightning.backbones import ResNet


def main_path(network):
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and "shortcut" not in name
    ]


@pytest.mark.parametrize("depth", [18, 34])
def test_the_network_is_torchvisions_with_a_small_stem(depth):
    ours = ResNet(depth).eval()
    theirs = models.get_model(f"resnet{depth}", num_classes=10).eval()
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    for module in theirs.modules():  # away from the statistics of a fresh norm layer
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.1)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    with torch.no_grad():
        x = torch.randn(2, 3, 16, 16)
        logits, wanted = ours(x), theirs(x)
    assert torch.allclose(logits, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


@pytest.mark.parametrize("depth", [18, 34, 8, 20, 50])
def test_depth_counts_the_main_path_and_the_head(depth):
    network = ResNet(depth, width=2)
    names = main_path(network)
    assert len(names) == depth - 1
    assert names[:3] == ["stem.conv", "stages.0.0.conv1", "stages.0.0.conv2"]


@pytest.mark.parametrize(("depth", "width"), [(18, 64), (34, 64), (20, 16)])
def test_the_default_width_is_the_papers(depth, width):
    assert ResNet(depth).stem.conv.out_channels == width


def test_shortcuts_stand_only_where_the_shape_changes():
    shortcuts = [name for name, _ in ResNet(20).named_modules() if name.endswith("shortcut.conv")]
    assert shortcuts == ["stages.1.0.shortcut.conv", "stages.2.0.shortcut.conv"]


def test_a_plain_network_has_no_way_around():
    plain = ResNet(8, width=4, residual=False).eval()
    assert main_path(plain) == main_path(ResNet(8, width=4))
    assert not any("shortcut" in name for name, _ in plain.named_modules())
    nn.init.zeros_(plain.stages[1][0].conv2.weight)  # one dead layer, and nothing gets through
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(*plain(x))
    residual = ResNet(8, width=4).eval()
    nn.init.zeros_(residual.stages[1][0].conv2.weight)
    assert not torch.equal(*residual(x))


@pytest.mark.parametrize("residual", [True, False])
def test_it_trains_by_sgd(residual):
    torch.manual_seed(0)
    network = ResNet(34, width=4, residual=residual, num_classes=3, input_shape=(1, 8, 8))
    y = torch.randint(3, (96,))
    x = torch.randn(96, 1, 8, 8) + (y.view(-1, 1, 1, 1) - 1) * 2
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(network(x), y)
        loss.backward()
        optimizer.step()
    assert loss < 0.4


@pytest.mark.parametrize("depth", [2, 7, 19, 36])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"ResNet: depth is {depth}; choose 18, 34 or 6n \+ 2"):
        ResNet(depth)


def test_no_width_is_refused():
    with pytest.raises(ValueError, match="ResNet: width is 0"):
        ResNet(18, width=0)
