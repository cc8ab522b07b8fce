"""A trained network cut at a layer, its probe as the head: it answers as the probe does, and costs what is left."""

import pytest
import torch
from torch import nn

from tunnel_lightning.backbones import MLP, Cut, Named, ResNet
from tunnel_lightning.backbones.cut import Centred
from tunnel_lightning.measures.functional.ridge import LinearHead, ridge
from tunnel_lightning.surgery import Severed, costs_of, cut
from tunnel_lightning.taps import tap

SHAPE = (1, 8, 8)


@pytest.fixture(scope="module")
def images():
    """Images in clusters, and their classes."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 5
    centres = torch.randn(5, *SHAPE, generator=generator)
    return centres[y] + 0.7 * torch.randn(200, *SHAPE, generator=generator), y


@pytest.fixture(scope="module")
def resnet():
    torch.manual_seed(0)
    return ResNet(8, 4, num_classes=5, input_shape=SHAPE).eval()


def features(network, layer, x, pool="2x2"):
    with tap(network, x, [layer], pool) as taps:
        taps.arm()
        with torch.no_grad():
            network(x)
        return taps.take()[layer]


def probe(network, layer, images, pool="2x2") -> LinearHead:
    x, y = images
    return ridge(features(network, layer, x, pool), y, 5)


def test_it_answers_as_the_probe_does_and_leaves_the_network(resnet, images):
    x, _ = images
    before = {name: value.clone() for name, value in resnet.state_dict().items()}
    head = probe(resnet, "stages.1.0.conv2", images)
    random = torch.get_rng_state()
    resnet.train()
    resnet.stages[0].eval()
    made = cut(resnet, "stages.1.0.conv2", *head, x[:32])
    assert torch.equal(torch.get_rng_state(), random)
    assert resnet.training
    assert not resnet.stages[0].training
    resnet.eval()
    assert isinstance(made, Cut)
    assert not made.training
    assert type(made.head) is nn.Linear  # nothing cancels here
    wanted = head(features(resnet, "stages.1.0.conv2", x))
    torch.testing.assert_close(made(x).double(), wanted, atol=1e-5, rtol=0)
    assert torch.equal(made(x).argmax(1), wanted.argmax(1))
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.zero_()
    assert all(torch.equal(value, before[name]) for name, value in resnet.state_dict().items())


@pytest.mark.parametrize("pool", ["avg", "flatten", "token"])
def test_other_poolings(resnet, images, pool):
    x, _ = images
    head = probe(resnet, "stages.0.0.act1", images, pool)
    made = cut(resnet, "stages.0.0.act1", *head, x[:8], pool)
    torch.testing.assert_close(
        made(x).double(), head(features(resnet, "stages.0.0.act1", x, pool)), atol=1e-4, rtol=0
    )


def test_the_columns_of_a_capped_probe(resnet, images):
    x, y = images
    with tap(resnet, x, ["stages.0.0.conv1"], "flatten", max_features=20, seed=3) as taps:
        taps.arm()
        with torch.no_grad():
            resnet(x)
        found = taps.take()["stages.0.0.conv1"]
    made = cut(resnet, "stages.0.0.conv1", *ridge(found, y, 5), x[:8], "flatten", max_features=20, seed=3)
    with torch.no_grad():
        assert torch.equal(made.features(x), found)
    assert len(made.init_args["columns"]) == 20


def test_a_mean_that_dwarfs_the_deviation(images):
    """Float32 ``W x + b`` loses as many digits as the mean is longer than the deviation; the head keeps them."""
    x, _ = images
    torch.manual_seed(0)
    network = MLP(2, 16, num_classes=5, input_shape=SHAPE).eval()
    with torch.no_grad():
        network.layers[0].linear.bias += 1e4
    layer = "layers.0.linear"
    head = probe(network, layer, images)
    made = cut(network, layer, *head, x[:32])
    assert isinstance(made.head, Centred)
    assert made.init_args["centred"]
    found = features(network, layer, x)
    wanted = head(found)
    plain = nn.functional.linear(found, head.weight.float(), head.bias.float()).double()
    error, worse = ((scores - wanted).abs().max() for scores in (made(x).double(), plain))
    assert error < 1e-5 * wanted.abs().max()
    assert worse > 20 * error
    again = Cut(**made.init_args)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval()(x), made(x))


def test_images_that_come_otherwise_normalised(resnet, images):
    x, _ = images
    head = probe(resnet, "stages.0.0", images)
    made = cut(resnet, "stages.0.0", *head, x[:8], mean=[0.3], std=[0.5])
    torch.testing.assert_close(
        made(x * 0.5 + 0.3), cut(resnet, "stages.0.0", *head, x[:8])(x), atol=1e-5, rtol=1e-4
    )


class Anyones(nn.Module):
    """Not a Backbone; the second convolution is beside what a cut at the first needs."""

    def __init__(self):
        super().__init__()
        self.first, self.beside = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(1, 4, 1)
        self.last = nn.Linear(4, 5)

    def forward(self, x):
        y = self.beside(x) + self.first(x).relu_()
        return self.last(y.mean((2, 3)))


def test_anyones_network(images):
    x, _ = images
    network = Anyones().eval()
    head = probe(network, "first", images)
    made = cut(network, "first", *head, x[:8])
    assert isinstance(made, Severed)
    assert sorted(made.state_dict()) == ["body.first.bias", "body.first.weight", "head.bias", "head.weight"]
    torch.testing.assert_close(made(x).double(), head(features(network, "first", x)), atol=1e-5, rtol=0)
    again = Severed(network, "first", x[:2], 5)
    again.load_state_dict(made.state_dict())
    assert torch.equal(again.eval()(x), made(x))
    with torch.no_grad():
        made.body.first.weight.zero_()
    assert network.first.weight.abs().sum() > 0


def test_a_network_in_half_precision_is_cut_in_float32(images):
    x, _ = images
    network = ResNet(8, 4, num_classes=5, input_shape=SHAPE).eval()
    head = probe(network, "stages.0.0", images)
    made = cut(network.bfloat16(), "stages.0.0", *head, x[:8])
    assert made(x).dtype == torch.float32


def test_costs_by_hand(resnet):
    """Cut behind the first convolution of the second stage: stem, two of the first stage, that one, and the head."""
    example = torch.zeros(2, *SHAPE)
    made = cut(resnet, "stages.1.0.conv1", torch.ones(5, 32).double(), torch.zeros(5).double(), example)
    pixels, quarter = 64, 16
    flops = 2 * (pixels * (9 * 1 * 4 + 2 * 9 * 4 * 4) + quarter * 9 * 4 * 8 + 32 * 5)
    weights = 9 * 1 * 4 + 2 * 9 * 4 * 4 + 9 * 4 * 8 + 32 * 5 + 5
    norms = 3 * 2 * 4  # of the stem and the first stage; the one behind the cut is gone
    assert costs_of(made, example) == (flops, weights + norms)
    whole = costs_of(resnet, example)
    assert whole[0] > flops
    assert whole[1] > weights + norms


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"pool": "avg"}, "reads 16 features, and the layer has 4 with pool 'avg'"),
        ({"max_features": 5}, "has 5 with pool '2x2'"),
        ({"layer": "stages.0.0.conv9"}, "near: stages.0.0.conv2, stages.0.0.conv1"),
        ({"weight": torch.full((5, 16), torch.nan)}, "is not finite"),
        ({"bias": torch.zeros(4)}, r"\[C, D\] and \[C\]"),
        ({"pool": "gram"}, "choose one of 2x2"),
    ],
)
def test_mistakes_are_said(resnet, change, said):
    given = {"layer": "stages.0.0.conv1", "weight": torch.ones(5, 16), "bias": torch.zeros(5), **change}
    with pytest.raises(ValueError, match=said):
        cut(resnet, example=torch.zeros(2, *SHAPE), **given)


def test_a_backbone_that_was_changed_after_it_was_made_is_refused(images):
    x, _ = images
    network = ResNet(8, 4, num_classes=5, input_shape=SHAPE).eval()
    network.stages[0][0].conv1 = nn.Conv2d(4, 4, 1)
    with pytest.raises(ValueError, match="not what its config says"):
        cut(network, "stages.0.0.conv2", torch.ones(5, 16), torch.zeros(5), x[:4])
    assert isinstance(
        cut(nn.Sequential(network), "0.stages.0.0.conv2", torch.ones(5, 16), torch.zeros(5), x[:4]), Severed
    )


def test_weights_that_are_the_same_by_name_but_work_otherwise_are_refused(images):
    x, _ = images
    network = ResNet(8, 4, num_classes=5, input_shape=SHAPE).eval()
    network.stages[0][0].act1 = nn.Tanh()
    with pytest.raises(ValueError, match="gives other features than it does whole"):
        cut(network, "stages.0.0.conv2", torch.ones(5, 16), torch.zeros(5), x[:4])


@pytest.mark.slow
def test_a_network_of_torchvision_by_either_way():
    torch.manual_seed(0)
    network = Named("torchvision:resnet18", small_stem=True, num_classes=5, input_shape=(3, 16, 16)).eval()
    x, head = torch.randn(4, 3, 16, 16), (torch.randn(5, 512).double(), torch.zeros(5).double())
    named = cut(network, "net.layer2.0.relu#2", *head, x)
    bare = cut(network.net, "layer2.0.relu#2", *head, x)
    assert (type(named), type(bare)) == (Cut, Severed)
    assert torch.equal(named(x), bare(x))
