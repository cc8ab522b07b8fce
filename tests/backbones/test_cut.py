"""A network up to one of its layers: the same features as the taps capture there, and nothing that isn't needed."""

import copy
import pickle
from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tunnel_lightning.backbones import MLP, VGG, Backbone, Cut, Named, ResNet, rebuild
from tunnel_lightning.backbones.cut import Centred, Shifted
from tunnel_lightning.backbones.graph import cut_graph, find
from tunnel_lightning.taps import tap
from tunnel_lightning.taps.quiet import untouched_rng

SHAPE = (1, 9, 9)
POOLS = ("2x2", "avg", "flatten", "token")


def lively(network: Backbone) -> Backbone:
    """In evaluation mode, with statistics that are not those of a new network."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
    return network.eval()


def taken_over(network: Backbone, layer: str, **options) -> Cut:
    """The cut network with the whole one's weights."""
    cut = Cut(network.config, layer, num_classes=3, input_shape=network.input_shape, **options)
    state = network.state_dict()
    cut.body.load_state_dict({name: state[name] for name in cut.body.state_dict()})
    return cut.eval()


def captured(network: nn.Module, layers, pool: str, x: torch.Tensor) -> dict[str, torch.Tensor]:
    with tap(network, x, layers, pool) as taps:
        taps.arm()
        with torch.no_grad():
            network(x)
        return taps.take()


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return lively(ResNet(8, 4, num_classes=5, input_shape=SHAPE))


@pytest.fixture
def x():
    return torch.randn(4, *SHAPE, generator=torch.Generator().manual_seed(2))


NETWORKS = {
    "mlp": lambda: MLP(4, 8, num_classes=5, input_shape=SHAPE),
    "vgg": lambda: VGG(11, 4, num_classes=5, input_shape=SHAPE),
    "resnet": lambda: ResNet(8, 4, num_classes=5, input_shape=SHAPE),
    "plain": lambda: ResNet(8, 4, residual=False, num_classes=5, input_shape=SHAPE),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_every_layer_gives_the_bits_that_taps_capture(name, x):
    network = lively(NETWORKS[name]())
    found = captured(network, "all" if name in ("mlp", "resnet") else "default", "2x2", x)
    assert len(found) >= 6
    for layer, features in found.items():
        with torch.no_grad():
            assert torch.equal(taken_over(network, layer).features(x), features), layer


@pytest.mark.parametrize("kind", ["default", "block", "activation"])
@pytest.mark.parametrize("how", POOLS)
def test_every_kind_of_tap_and_pooling(resnet, x, kind, how):
    found = captured(resnet, kind, how, x)
    for layer in list(found)[1::3]:
        with torch.no_grad():
            assert torch.equal(taken_over(resnet, layer, pool=how).features(x), found[layer]), layer


BIG = [
    (
        "torchvision:resnet18",
        {"small_stem": True},
        (3, 16, 16),
        ["net.layer2.0.conv1", "net.layer2.0.relu#2", "net.avgpool"],
    ),
    (
        "torchvision:mobilenet_v3_small",
        {},
        (3, 32, 32),
        ["net.features.4.block.2.fc1", "net.features.5.block.1.0"],
    ),
    ("torchvision:convnext_tiny", {}, (3, 32, 32), ["net.features.1.0.block.3"]),
    ("timm:resnet18", {}, (3, 32, 32), ["net.layer2.0", "net.layer1.0.act1"]),
    ("timm:convnext_atto", {}, (3, 32, 32), ["net.stages.1.blocks.0.mlp.fc1", "net.stages.2.blocks.1"]),
    (
        "timm:vit_tiny_patch16_224",
        {"options": {"img_size": 32, "patch_size": 8, "depth": 2}},
        (3, 32, 32),
        ["net.blocks.0", "net.blocks.1.attn.proj", "net.blocks.1.mlp.fc1", "net.norm"],
    ),
    (
        "timm:swin_tiny_patch4_window7_224",
        {"options": {"img_size": 32, "window_size": 4, "depths": (1, 2, 1, 1)}},
        (3, 32, 32),
        ["net.layers.1.blocks.1", "net.layers.1.blocks.1.attn.qkv"],
    ),
]
FAST = ("timm:vit_tiny_patch16_224",)


@pytest.mark.parametrize(
    ("name", "options", "shape", "layers"),
    [pytest.param(*each, marks=[] if each[0] in FAST else pytest.mark.slow, id=each[0]) for each in BIG],
)
def test_networks_of_the_libraries(name, options, shape, layers):
    network = lively(Named(name, **options, num_classes=5, input_shape=shape))
    x = torch.randn(3, *shape)
    for how in ("2x2", "token"):
        found = captured(network, layers, how, x)
        assert len(found) == len(layers)
        for layer, features in found.items():
            with torch.no_grad():
                assert torch.equal(taken_over(network, layer, pool=how).features(x), features), layer


# What is left -----------------------------------------------------------------------------------------------


def test_a_cut_inside_a_block_has_no_shortcut_and_nothing_behind(resnet):
    cut = taken_over(resnet, "stages.1.0.conv1")
    assert {name for name, _ in cut.named_parameters()} == {
        *("body.stem.conv.weight", "body.stem.norm.weight", "body.stem.norm.bias"),
        *(f"body.stages.0.0.{part}{n}.weight" for part, n in product(("conv", "norm"), (1, 2))),
        *(f"body.stages.0.0.norm{n}.bias" for n in (1, 2)),
        *("body.stages.1.0.conv1.weight", "head.weight", "head.bias"),
    }
    assert [path for path, _ in cut.body.stages.named_children()] == ["0", "1"]


def test_a_cut_in_the_shortcut_has_no_main_path(resnet):
    kept = [path for path, module in taken_over(resnet, "stages.1.0.shortcut.norm").body.named_modules()]
    assert "stages.1.0.shortcut.conv" in kept
    assert not [path for path in kept if path.startswith("stages.1.0.conv")]


def test_calls_of_one_module_are_told_apart():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.relu = nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(inplace=True)

        def forward(self, x):
            x = self.relu(self.a(x))
            return self.relu(self.b(x))

    network, x = Twice(), torch.randn(3, 4)
    first, second = (cut_graph(network, find(network, f"relu#{n}", x), x) for n in (1, 2))
    assert torch.equal(first(x), network.a(x).relu())
    assert torch.equal(second(x), network(x))
    assert list(first.state_dict()) == ["a.weight", "a.bias"]
    assert isinstance(first.a, nn.Linear)  # by torch.fx
    assert isinstance(second.b, nn.Linear)
    with pytest.raises(ValueError, match="runs 2 times in a forward; say which, relu#1 to relu#2"):
        find(network, "relu", x)
    with pytest.raises(ValueError, match="runs 2 time"):
        find(network, "relu#3", x)


def test_what_changes_in_its_place_stays_where_it_counts():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            x = self.a(x)
            x.add_(1)  # nobody reads what it gives, and b reads x
            F.relu(x, inplace=True)
            y = self.b(x)
            y.mul_(0)  # behind b: not what b put out
            return self.c(y)

    network, x = InPlace(), torch.randn(3, 4)
    body = cut_graph(network, find(network, "b", x), x)
    assert torch.equal(body(x), network.b((network.a(x) + 1).relu()))
    assert body(x).abs().sum() > 0
    assert isinstance(body.a, nn.Linear)  # by torch.fx
    assert sorted(body.state_dict()) == ["a.bias", "a.weight", "b.bias", "b.weight"]


def test_a_tensor_inside_what_a_module_gives():
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 4)

        def forward(self, x):
            return {"number": torch.zeros(1, dtype=torch.long), "found": (self.linear(x), x)}

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.pair = Pair()

        def forward(self, x):
            return self.pair(x)["found"][0] * 2

    network, x = Outer(), torch.randn(3, 4)
    assert torch.equal(cut_graph(network, find(network, "pair", x), x)(x), network.pair.linear(x))


class Branching(nn.Module):
    """torch.fx can't follow a length; torch.export can."""

    def __init__(self, of_values: bool = False):
        super().__init__()
        self.of_values = of_values
        self.a, self.norm, self.b = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4)
        self.register_buffer("two", torch.full((4,), 2.0), persistent=False)

    def forward(self, x):
        y = self.norm(self.a(x)) * self.two
        if (bool(y.sum() > 0)) if self.of_values else (len(y.shape) == 2 and y.shape[1] > 3):
            y = y + 1
        return self.b(y)


def test_what_torch_fx_cannot_follow_goes_through_torch_export():
    network, x = Branching().eval(), torch.randn(3, 4)
    body = cut_graph(network, find(network, "b", x), x)
    many = torch.randn(7, 4)
    torch.testing.assert_close(body(many), network(many))
    assert body(x[:1]).shape == (1, 4)
    assert set(body.state_dict()) <= set(network.state_dict())
    assert not torch.equal(body(x), x)
    body.train()  # frozen as it was
    torch.testing.assert_close(body(many), network(many))


def test_what_neither_can_follow_is_refused_in_words():
    network, x = Branching(of_values=True).eval(), torch.randn(3, 4)
    with pytest.raises(
        ValueError, match=r"Branching can't be cut at b: torch\.fx can't .+, nor can torch\.export"
    ):
        cut_graph(network, find(network, "b", x), x)


# As a module ------------------------------------------------------------------------------------------------


def test_rebuild_gives_the_same_network(resnet, x):
    cut = taken_over(
        resnet, "stages.1.0.norm2", pool="flatten", columns=[0, 7, 3], centred=True, mean=[0.5], std=[2.0]
    )
    again = rebuild(cut.config)
    assert again.config == cut.config
    again.load_state_dict(cut.state_dict())
    with torch.no_grad():
        assert torch.equal(again.eval()(x), cut(x))
        whole = captured(resnet, ["stages.1.0.norm2"], "flatten", (x - 0.5) / 2)["stages.1.0.norm2"]
        assert torch.equal(cut.features(x), whole[:, [0, 7, 3]])


def test_it_survives_copies_modes_types_and_compilation(resnet, x):
    cut = taken_over(resnet, "stages.1.0.conv2")
    with torch.no_grad():
        wanted = cut(x)
        for other in (
            copy.deepcopy(cut),
            pickle.loads(pickle.dumps(cut)),
            torch.compile(cut, backend="eager"),
        ):
            assert torch.equal(other(x), wanted)
        assert list(copy.deepcopy(cut).state_dict()) == list(cut.state_dict())
        assert cut.double()(x.double()).dtype == torch.float64
        assert cut.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


def test_it_trains_as_it_is_and_not_what_it_came_from(resnet, x):
    cut = taken_over(resnet, "stages.1.0.conv2").train()
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    cut(x).sum().backward()
    assert all(parameter.grad is not None for parameter in cut.parameters())
    norm = cut.body.stages.get_submodule("0.0.norm1")
    assert norm.training
    assert not torch.equal(norm.running_mean, before["stages.0.0.norm1.running_mean"])
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())
    assert not any(module.training for module in cut.eval().modules())


def test_a_new_one_is_in_training_mode_and_draws_as_its_network_does(resnet):
    def after(make):
        with untouched_rng():
            torch.manual_seed(3)
            make()
            return torch.rand(1)

    cut = Cut(resnet.config, "stages.2.0", num_classes=5, input_shape=SHAPE)
    assert all(module.training for module in cut.modules())
    head = cut.head.in_features
    assert after(lambda: Cut(resnet.config, "stages.2.0", num_classes=5, input_shape=SHAPE)) == after(
        lambda: (rebuild(resnet.config), nn.Linear(head, 5))
    )


def test_a_cut_of_a_cut(resnet, x):
    cut = taken_over(resnet, "stages.1.0.conv2")
    again = taken_over(cut, "body.stages.0.0.conv2")
    with torch.no_grad():
        assert torch.equal(again.features(x), taken_over(resnet, "stages.0.0.conv2").features(x))


# Mistakes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"layer": "stages.1.0.con1"}, "is no layer of ResNet; near: stages.1.0.conv1"),
        ({"layer": "stages.0.add"}, "Residual additions"),
        ({"layer": ""}, "is no layer"),
        ({"pool": "gram"}, "pool is 'gram'; choose one of 2x2"),
        ({"columns": [64]}, r"some of the layer's 32 features, got \[64\]"),
        ({"columns": []}, "got none"),
        ({"mean": [0.5]}, "give both"),
        ({"mean": [0.5] * 3, "std": [1.0] * 3}, "each of 1 channels"),
        ({"mean": [0.5], "std": [0.0]}, "positive std"),
        ({"input_shape": (1, 8, 8)}, r"the network takes images \[1, 9, 9\]"),
        ({"network": {"class_path": "x"}}, "class_path and init_args"),
        ({"network": {"class_path": "nowhere.Net", "init_args": {}}}, "not an imported subclass"),
    ],
)
def test_mistakes_are_said(resnet, change, said):
    given = {"network": resnet.config, "layer": "stages.1.0.conv1", "input_shape": SHAPE, **change}
    with pytest.raises(ValueError, match=said):
        Cut(**given)


def test_a_module_that_does_not_run_is_said():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x)

    with pytest.raises(ValueError, match="layer b: b of Idle does not run"):
        find(Idle(), "b", torch.zeros(2, 4))


# Its own layers -------------------------------------------------------------------------------------------


def test_a_centred_head_keeps_its_digits():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 32, generator=generator) + 1e4
    exact, plain, centred = nn.Linear(32, 5).double(), nn.Linear(32, 5), Centred(32, 5)
    with torch.no_grad():
        exact.bias -= exact.weight @ x.double().mean(0)
        plain.load_state_dict(exact.state_dict())
        centred.weight.copy_(exact.weight)
        centred.centre.copy_(x.double().mean(0))
        centred.bias.copy_(exact.bias + exact.weight @ centred.centre.double())
        wanted = exact(x.double())
        worse, better = ((head(x).double() - wanted).abs().max() for head in (plain, centred))
    assert better < 1e-5
    assert worse > 30 * better


def test_shifted_images():
    x = torch.rand(2, 3, 4, 4)
    found = Shifted([0.1, 0.2, 0.3], [1.0, 2.0, 4.0])(x)
    torch.testing.assert_close(found[:, 2], (x[:, 2] - 0.3) / 4)
