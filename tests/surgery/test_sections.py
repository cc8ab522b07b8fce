import doctest
import sys
from collections import OrderedDict

import pytest
import torch
from torch import nn

from tunnel_lightning.backbones import MLP, VGG, Named, ResNet
from tunnel_lightning.surgery import Exits, sections, snapshot

NORM = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def example(network):
    return torch.zeros(2, *network.input_shape)


def under(section):
    """Module paths that have entries in a section."""
    return list(dict.fromkeys(entry.rpartition(".")[0] for entry in section.entries))


def everything(found):
    return [entry for section in (*found.layers, found.head) for entry in section.entries]


def test_the_example():
    # By its path: the package's attribute of that name is the function.
    assert doctest.testmod(sys.modules["tunnel_lightning.surgery.sections"]) == (0, 6)


def test_mlp_has_one_section_a_layer():
    network = MLP(depth=3, width=5, num_classes=4, input_shape=(1, 4, 4))
    found = sections(network, example(network))
    assert len(found) == 3
    assert [section.name for section in found.layers] == [f"layers.{i}.linear" for i in range(3)]
    assert found[2].entries == ("layers.1.linear.weight", "layers.1.linear.bias")
    assert found[2].modules == ("layers.1.linear", "layers.1.act")
    assert (found.head.index, found.head.name, found.head.entries) == (
        4,
        "head",
        ("head.weight", "head.bias"),
    )


def test_norm_and_statistics_go_with_their_convolution():
    network = VGG(depth=11, width=2, num_classes=3, input_shape=(1, 8, 8))
    found = sections(network, example(network))
    assert len(found) == 8
    assert found[1].entries == ("stages.0.0.conv.weight", *(f"stages.0.0.norm.{name}" for name in NORM))
    assert found[2].modules == ("stages.1.0.conv", "stages.1.0.norm", "stages.1.0.act", "stages.1.1")
    assert found[8].modules[-1] == "pool"


def test_a_shortcut_goes_with_what_runs_around_it():
    network = ResNet(depth=8, width=4, num_classes=3, input_shape=(1, 8, 8))
    found = sections(network, example(network))
    assert under(found[5]) == [
        f"stages.1.0.{name}" for name in ("conv2", "norm2", "shortcut.conv", "shortcut.norm")
    ]
    assert under(found[1]) == ["stem.conv", "stem.norm"]


@pytest.mark.parametrize(
    "network",
    [
        ResNet(depth=8, width=2, num_classes=3, input_shape=(1, 8, 8)),
        Named("torchvision:resnet18", input_shape=(3, 32, 32)),
    ],
    ids=["ResNet", "torchvision"],
)
@pytest.mark.parametrize("kind", ["default", "block", "activation", "all"])
def test_every_entry_is_in_one_section(network, kind):
    found = sections(network, example(network), kind)
    assert sorted(everything(found)) == sorted(network.state_dict())
    assert len(found.head.entries) == 2


def test_blocks_open_and_activations_close_their_section():
    network = ResNet(depth=8, width=4, num_classes=3, input_shape=(1, 8, 8))
    blocks = sections(network, example(network), "block")
    assert under(blocks[2])[0] == "stages.1.0.conv1"
    assert under(blocks[2])[-1] == "stages.1.0.shortcut.norm"
    assert under(blocks[1])[0] == "stem.conv"  # what runs before the first belongs to it
    activations = sections(network, example(network), "activation")
    assert under(activations[2]) == ["stages.0.0.conv1", "stages.0.0.norm1"]
    assert under(activations[3]) == ["stages.0.0.conv2", "stages.0.0.norm2"]


def test_a_block_that_holds_other_taps_closes():
    network = ResNet(depth=8, width=4, num_classes=3, input_shape=(1, 8, 8))
    found = sections(network, example(network), ["stages.1.0.conv1", "stages.1.0"])
    assert found[1].modules[-1] == "stages.1.0.conv1"
    assert found[2].modules[0] == "stages.1.0.norm1"


def test_class_token_embedding_and_layer_scale():
    options = {"img_size": 16, "patch_size": 8, "depth": 2, "embed_dim": 12}
    vit = Named("timm:vit_tiny_patch16_224", options=options, input_shape=(3, 16, 16))
    found = sections(vit, example(vit))
    assert {"net.cls_token", "net.pos_embed"} <= set(found[1].entries)
    assert sorted(everything(found)) == sorted(vit.state_dict())
    options = {"depths": [1, 1, 1, 1], "dims": [4, 4, 4, 4]}
    convnext = Named("timm:convnext_atto", options=options, input_shape=(3, 32, 32))
    found = sections(convnext, example(convnext))
    block = next(section for section in found.layers if section.name.endswith("stages.2.blocks.0.conv_dw"))
    assert "net.stages.2.blocks.0.gamma" in block.entries
    # Its norm stands in the module that is called head, but runs before the head.
    assert found.head.entries == ("net.head.fc.weight", "net.head.fc.bias")
    assert "net.head.norm.weight" in found[len(found)].entries


class Odd(nn.Module):
    """Registered in another order than it runs; one module runs twice, parameters are shared, one never runs."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 3)
        self.c = nn.Linear(4, 4)
        self.b = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.a = nn.Linear(4, 4)
        self.c.weight = self.a.weight
        self.unused = nn.Linear(2, 2)
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.attention.out_proj.bias = self.a.bias

    def forward(self, x):
        x = self.norm(self.a(x))
        x = self.norm(self.b(x))
        x = self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]
        return self.head(self.c(x))


def test_order_of_execution_shared_and_idle_parts():
    found = sections(Odd(), torch.zeros(2, 4))
    assert [section.name for section in found.layers] == ["a", "b", "c"]
    shared = {"c.weight", "attention.out_proj.bias"}
    assert {entry for entry in found[1].entries if not entry.startswith(("a.", "norm.", "unused."))} == shared
    # out_proj never runs as a module: it goes with the attention that holds it.
    assert under(found[2]) == ["b", "attention", "attention.out_proj"]
    assert found[3].entries == ("c.bias",)
    assert found.head.entries == ("head.weight", "head.bias")


class Heads(nn.Module):
    """As Avalanche's multi-head classifier."""

    def __init__(self, tasks):
        super().__init__()
        self.classifiers = nn.ModuleDict({str(i): nn.Sequential(nn.Linear(5, 2)) for i in range(tasks)})
        self.register_buffer("active_units_T0", torch.ones(2))

    def forward(self, x, label):
        return self.classifiers[str(label)](x)


class Decorated(nn.Module):
    """As Avalanche's multi-task decorator: the head is taken out of the backbone."""

    def __init__(self, tasks=2):
        super().__init__()
        self.model = MLP(depth=3, width=5, num_classes=2, input_shape=(1, 4, 4))
        self.model.head = nn.Sequential()
        self.head = Heads(tasks)

    def forward(self, x, label):
        return self.head(self.model(x), label)


def test_many_heads_are_one_section_and_names_count_from_the_backbone():
    model = Decorated()
    found = sections(model, torch.zeros(2, 1, 4, 4), forward=lambda x: model(x, 1))
    assert [section.name for section in found.layers] == [f"layers.{i}.linear" for i in range(3)]
    assert [section.path for section in found.layers] == [f"model.layers.{i}.linear" for i in range(3)]
    assert found.head.path == "head"
    assert set(found.head.entries) == {key for key in model.state_dict() if key.startswith("head.")}
    more = Decorated(tasks=3).state_dict()
    assert set(found.head_of(more)) == {key for key in more if key.startswith("head.")}
    globbed = sections(model, torch.zeros(2, 1, 4, 4), ["layers.1.linear"], lambda x: model(x, 0))
    assert [section.name for section in globbed.layers] == ["layers.1.linear"]
    names = [section.name for section in found.layers]
    inner = sections(model.model, torch.zeros(2, 1, 4, 4), names, lambda x: model(x, 0))
    assert [section.name for section in inner.layers] == names
    assert sorted(everything(inner)) == sorted(model.model.state_dict())


def test_heads_inside_the_backbone():
    model = MLP(depth=2, width=5, num_classes=2, input_shape=(1, 4, 4))
    model.head = Heads(2)
    found = sections(model, torch.zeros(2, 1, 4, 4), forward=lambda x: model.head(model.features(x), 1))
    assert [section.name for section in found.layers] == ["layers.0.linear", "layers.1.linear"]
    assert found.head.path == "head"
    assert set(found.head.entries) == {key for key in model.state_dict() if key.startswith("head.")}


@pytest.mark.parametrize("layers", ["default", "all", "layers.*.act"])
def test_a_backbone_without_its_head_has_all_its_layers(layers):
    model = Decorated().model
    found = sections(model, example(model), layers)
    assert len(found) == (6 if layers == "all" else 3)  # the empty head is none of them
    assert (found.head.path, found.head.entries) == ("head", ())
    assert sorted(everything(found)) == sorted(model.state_dict())


def test_what_stands_outside_the_backbone_is_no_layer():
    backbone = MLP(depth=2, width=5, num_classes=2, input_shape=(1, 4, 4))
    model = Exits(backbone, "default", torch.zeros(2, 1, 4, 4))
    found = sections(model, torch.zeros(2, 1, 4, 4))
    assert [section.name for section in found.layers] == ["layers.0.linear", "layers.1.linear"]
    assert {"backbone.head.weight", "heads.0.weight", "heads.1.bias"} <= set(found.head.entries)


def test_nothing_is_changed():
    model = Odd().train()
    model.norm.eval()
    before, hooks = (
        snapshot(model),
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
    )
    flags, state = [m.training for m in model.modules()], torch.get_rng_state()
    sections(model, torch.randn(4, 4, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert [m.training for m in model.modules()] == flags
    assert [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert torch.equal(torch.get_rng_state(), state)


def test_hooks_go_when_the_forward_fails():
    model = nn.Sequential(OrderedDict(a=nn.Linear(4, 4), b=nn.Linear(5, 2)))
    with pytest.raises(RuntimeError):
        sections(model, torch.zeros(2, 4))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_mistakes():
    network = MLP(depth=2, width=5, num_classes=4, input_shape=(1, 4, 4))
    with pytest.raises(ValueError, match=r"'layer\.0' matches no module"):
        sections(network, example(network), "layer.0")
    with pytest.raises(ValueError, match="are no modules"):
        sections(network, example(network), ["default", "addition"])
    with pytest.raises(ValueError, match="head names the classifier alone"):
        sections(network, example(network), "head")
    found = sections(network, example(network))
    for index in (0, 4):
        with pytest.raises(ValueError, match=f"no section {index}: the layers are 1 to 2 and the head is 3"):
            found.entries([index])
