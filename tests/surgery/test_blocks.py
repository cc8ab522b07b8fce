"""Residual blocks of anyone's networks, and networks without them."""

import doctest
import sys

import pytest
import torch
from torch import nn
from torchvision.models import VisionTransformer, resnet18
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from tunnel_lightning.backbones import VGG, ResNet
from tunnel_lightning.surgery import snapshot
from tunnel_lightning.surgery.blocks import residual_blocks, without

X = torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))
RGB = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    made = ResNet(depth=14, width=4, num_classes=5, input_shape=(1, 8, 8))
    for module in made.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 2.0)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return made.eval()


def scores(network, x=X):
    with torch.no_grad():
        return network(x)


def test_the_examples():
    assert doctest.testmod(sys.modules["tunnel_lightning.surgery.blocks"]) == (0, 12)


def test_a_block_whose_shape_changes_keeps_its_projection(network):
    found = residual_blocks(network, X)
    assert [block.name for block in found] == [f"stages.{i}.{j}" for i in range(3) for j in range(2)]
    down = found[2]
    assert down.projected
    assert down.shape == (8, 4, 4)
    with without(network, [down]):
        deleted = scores(network)
    first, block = network.stages[0](network.stem(X)), network.stages[1][0]
    by_hand = network.stages[2](network.stages[1][1](block.act2(block.shortcut(first))))
    assert torch.equal(deleted, network.head(network.pool(by_hand).flatten(1)))


def test_several_are_deleted_together(network):
    found = residual_blocks(network, X)
    with without(network, [found[1], found[3]]):
        deleted = scores(network)
    network.stages[0][1] = network.stages[1][1] = nn.Identity()
    assert torch.equal(deleted, scores(network))


def test_the_network_is_as_it_was_also_after_an_exception(network):
    found, before, intact = residual_blocks(network, X), snapshot(network), scores(network)
    with without(network, found):
        assert not torch.equal(scores(network), intact)
    with pytest.raises(TypeError), without(network, found):
        network(None)
    assert torch.equal(scores(network), intact)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in network.modules())


def test_blocks_of_torchvision():
    found = residual_blocks(resnet18(), RGB)
    assert [block.name for block in found] == [f"layer{i}.{j}" for i in range(1, 5) for j in range(2)]
    assert [block.stage for block in found] == [1, 1, 2, 2, 3, 3, 4, 4]
    assert [block.projected for block in found] == [False, False, *[True, False] * 3]
    convnext = ConvNeXt([CNBlockConfig(4, 8, 2), CNBlockConfig(8, None, 1)], num_classes=3).eval()
    found = residual_blocks(convnext, RGB)
    assert [(block.name, block.stage) for block in found] == [
        ("features.1.0", 1), ("features.1.1", 1), ("features.3.0", 2),
    ]  # fmt: skip
    for layer in convnext.modules():
        if hasattr(layer, "layer_scale"):
            nn.init.ones_(layer.layer_scale)
    with without(convnext, found[:1]):
        deleted = scores(convnext, RGB)
    convnext.features[1][0] = nn.Identity()
    assert torch.equal(deleted, scores(convnext, RGB))


def test_attention_and_mlp_of_a_transformer_are_one_block():
    torch.manual_seed(0)
    vit = VisionTransformer(32, 8, 3, 2, 8, 16, num_classes=3).eval()
    nn.init.normal_(vit.heads.head.weight)
    found = residual_blocks(vit, RGB)
    assert [block.name for block in found] == [f"encoder.layers.encoder_layer_{i}" for i in range(3)]
    assert {len(block.branches) for block in found} == {2}
    with without(vit, found[1:2]):
        deleted = scores(vit, RGB)
    assert not torch.equal(deleted, scores(vit, RGB))
    vit.encoder.layers[1] = nn.Identity()
    assert torch.allclose(deleted, scores(vit, RGB), atol=1e-6)


class Twice(nn.Module):
    """Adds what one module gives, twice; it gives a pair."""

    class Pair(nn.Linear):
        def forward(self, x):
            return super().forward(x), None

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(6, 4)
        self.pair = self.Pair(4, 4)

    def forward(self, x):
        x = self.first(x)
        x = x + self.pair(x)[0]
        return x + self.pair(x)[0]


def test_one_call_of_a_module_that_runs_twice():
    network, x = Twice(), torch.randn(3, 6)
    found = residual_blocks(network, x)
    assert [block.name for block in found] == ["pair#1", "pair#2"]
    for block in found:
        with without(network, [block]):
            for _ in range(2):  # calls are counted anew in each forward
                deleted = scores(network, x)
        once = network.first(x)
        assert torch.allclose(deleted, once + network.pair(once)[0])


def test_networks_without_additions_have_none():
    assert residual_blocks(VGG(depth=11, width=2, num_classes=3, input_shape=(1, 8, 8)), X) == []
    plain = ResNet(depth=8, width=4, residual=False, num_classes=3, input_shape=(1, 8, 8))
    assert residual_blocks(plain, X) == []


def test_mistakes(network):
    found = residual_blocks(network, X)
    with pytest.raises(ValueError, match=r"has no stages\.0\.0\.norm2: the block is of another network"):
        without(nn.Linear(1, 1), found[:1]).__enter__()
    with pytest.raises(ValueError, match="is compiled, which hides its residual additions"):
        residual_blocks(torch.compile(network), X)
