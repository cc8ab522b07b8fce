import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torchmetrics.functional.image import total_variation

from tunnel_lightning.analysis.invert.descent import noise, points_of
from tunnel_lightning.analysis.invert.generate import generate
from tunnel_lightning.analysis.invert.objective import Embedding, readout, still
from tunnel_lightning.analysis.invert.recipe import blurred, preset
from tunnel_lightning.analysis.invert.recover import invert
from tunnel_lightning.backbones import ResNet
from tunnel_lightning.taps import tap

MEAN, STD = [0.2, 0.5], [0.5, 0.25]


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 2, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.ReLU(inplace=True),  # on what it is shown
        nn.Conv2d(2, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3),
        nn.Flatten(),
        nn.Linear(96, 5),
    )


def begin(images, recipe, starts=2):
    return noise(len(images), starts, images.shape[1:], recipe, 0)


def run(network, images, recipe, layers=("5",), **options):
    return invert(network, list(layers), images, recipe, **{"starts": 2, "mean": MEAN, "std": STD, **options})


# One step, by hand --------------------------------------------------------------------------------------------------


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 20), nn.Linear(20, 2)).double()


def gradient_by_hand(network, images, x, recipe):
    """Of the loss at x [N, S, 2, 8, 8] in numpy: ``scale * sum |W d|``, or of squares, d = (x - a) / std."""
    weight = network[1].weight.detach().numpy()
    std = np.repeat(STD, 64)
    difference = (x - images[:, None]).flatten(-3).numpy() / std @ weight.T
    towards = np.sign(difference) if recipe.loss == "l1" else 2 * difference
    found = recipe.scale * towards
    if recipe.relative:
        shown = (images.flatten(1).numpy() - np.repeat(MEAN, 64)) / std
        target = shown @ weight.T + network[1].bias.detach().numpy()
        size = np.abs(target).sum(1) if recipe.loss == "l1" else (target**2).sum(1)
        found = found / size[:, None, None]
    return torch.from_numpy(found @ weight / std).view(x.shape)


@pytest.mark.parametrize("loss", ["l1", "l2"])
@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize("units", ["network", "pixels"])
def test_a_plain_step(images, loss, relative, units):
    network, images = linear(), images.double()
    recipe = preset("badger-sharp", steps=1, loss=loss, relative=relative, units=units, lr=0.02)
    x = begin(images, recipe).double()
    width = torch.tensor(STD).square().view(-1, 1, 1) if units == "network" else 1.0
    wanted = x - 0.02 * width * gradient_by_hand(network, images, x, recipe)
    found = run(network, images, recipe, ["1"])
    torch.testing.assert_close(found.images[0], wanted)
    np.testing.assert_allclose(found.input[0, ..., 1], (wanted - images[:, None]).flatten(-3).norm(dim=-1))


def test_adam_steps_as_torchs(images):
    network, images = linear(), images.double()
    recipe = preset("adam", steps=1, tv=0.0, clamp=False)
    x = begin(images, recipe).double()
    gradient = gradient_by_hand(network, images, x, recipe)
    wanted = x - 0.05 * gradient / (gradient.abs() + 1e-8)  # Adam's first step
    torch.testing.assert_close(run(network, images, recipe, ["1"]).images[0], wanted)


def test_blur_and_clamp_come_after_the_step(images):
    network, images = linear(), images.double()
    one = preset("badger", steps=1, lr=60.0, clamp=True)
    x = begin(images, one).double()
    step = x - 60.0 * torch.tensor(STD).square().view(-1, 1, 1) * gradient_by_hand(network, images, x, one)
    wanted = blurred(step.flatten(0, 1), 2.4).clamp(0, 1).view(step.shape)
    assert wanted.min() == 0
    torch.testing.assert_close(run(network, images, one, ["1"]).images[0], wanted, rtol=1e-5, atol=1e-6)


def test_blur_narrows_from_step_to_step(images):
    network, images = linear(), images.double()
    recipe = preset("badger", steps=3, lr=1e-30)
    wanted = begin(images, recipe).double().flatten(0, 1)
    for sigma in (2.4, 1.4, 0.4):
        wanted = blurred(wanted, sigma)
    torch.testing.assert_close(run(network, images, recipe, ["1"]).images[0].flatten(0, 1), wanted)


def test_decay_takes_the_rate_of_the_step(images):
    network, images = linear(), images.double()
    both = run(network, images, preset("badger-sharp", steps=2, decay="linear", lr_end=1e-12), ["1"])
    first = run(network, images, preset("badger-sharp", steps=1), ["1"])
    torch.testing.assert_close(both.images, first.images)


def test_total_variation_smooths(images, network):
    def rough(tv):
        return total_variation(run(network, images, preset("adam", steps=30, tv=tv)).images.flatten(0, 2))

    assert rough(10.0) < 0.5 * rough(0.0)


def test_total_variation_is_weighed_by_pixels(images):
    network, images = linear(), images.double()
    recipe = preset("badger-sharp", steps=1, lr=1.0, tv=0.3, units="pixels")
    x = begin(images, recipe).double().flatten(0, 1).requires_grad_()
    (smooth,) = torch.autograd.grad(0.3 * total_variation(x) / 128, x)
    x = x.detach().view(3, 2, 2, 8, 8)
    wanted = x - gradient_by_hand(network, images, x, recipe) - smooth.view(x.shape)
    torch.testing.assert_close(run(network, images, recipe, ["1"]).images[0], wanted)


def test_jitter_shows_a_rolled_image_and_counts_on_a_still_one(images):
    network, images = linear(), images.double()
    recipe = preset("badger-sharp", steps=1, jitter=2)
    offset = tuple(torch.randint(-2, 3, (2,), generator=torch.Generator().manual_seed(0)).tolist())
    assert any(offset)
    x = begin(images, recipe).double()
    gradient = gradient_by_hand(network, images, x.roll(offset, (-2, -1)), recipe)
    back = gradient.roll([-o for o in offset], (-2, -1))
    found = run(network, images, recipe, ["1"])
    torch.testing.assert_close(found.images[0], x - 0.1 * torch.tensor(STD).square().view(-1, 1, 1) * back)
    still = run(network, images, preset("badger-sharp", steps=1), ["1"])
    torch.testing.assert_close(found.embedding[..., 0], still.embedding[..., 0])


def test_lbfgs_takes_each_image_by_itself(images):
    network, images = linear(), images.double()
    recipe = preset("lbfgs", steps=40, tv=0.0)
    found = run(network, images, recipe, ["1"])
    alone = run(network, images[:1], recipe, ["1"])
    torch.testing.assert_close(found.images[:, :1], alone.images)
    assert float((found.embedding[..., -1] / found.embedding[..., 0]).max()) < 1e-3
    assert (found.loss.diff(dim=-1) <= 0).all()


# What comes back ----------------------------------------------------------------------------------------------------


def test_shapes_and_curves(images, network):
    recipe = preset("badger", steps=7)
    found = run(network, images, recipe, ["1", "5", "7"], points=3)
    assert found.layers == ("1", "5", "7")
    assert found.images.shape == (3, 3, 2, 2, 8, 8)
    assert found.steps.tolist() == [0, 2, 5, 7]
    for curve in (found.loss, found.embedding, found.input):
        assert curve.shape == (3, 3, 2, 4)
    # The first and the last point are those of the start and of what came back, by a plain forward.
    shown = lambda x: (x - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)  # noqa: E731
    for point, x in ((0, begin(images, recipe)), (-1, found.images[1])):
        with torch.no_grad():
            out = network.eval()[:6](shown(torch.cat([x.flatten(0, 1), images]))).flatten(1)
        difference = out[:6].view(3, 2, -1) - out[6:, None]
        torch.testing.assert_close(
            found.embedding[1, ..., point], difference.norm(dim=-1), rtol=1e-4, atol=1e-5
        )
        torch.testing.assert_close(
            found.loss[1, ..., point], 0.15 * difference.abs().sum(-1), rtol=1e-4, atol=1e-5
        )
        moved = (x - images[:, None]).flatten(-3).norm(dim=-1)
        torch.testing.assert_close(found.input[1, ..., point], moved)
    torch.testing.assert_close(found.embedding_norm[1], out[6:].norm(dim=-1))
    torch.testing.assert_close(found.input_norm, images.flatten(1).norm(dim=1))
    # |a' - a| of 128 pixels
    np.testing.assert_allclose(found.reference_input, 128**0.5 / 25, rtol=0.25)
    assert (
        run(network, images, recipe, ["1"], sigma=1 / 18).reference_input.mean()
        > found.reference_input.mean()
    )


def test_starts_do_not_depend_on_layer_network_or_number(images, network):
    recipe = preset("badger-sharp", steps=1, lr=1e-30)
    twin = copy.deepcopy(network)
    nn.init.normal_(twin[1].weight)
    one = run(network, images, recipe, ["1", "5"]).images
    assert torch.equal(one[0], one[1])
    assert torch.equal(one, run(twin, images, recipe, ["1", "5"]).images)
    assert torch.equal(one[:, :1], run(network, images[:1], recipe, ["1", "5"]).images)
    assert not torch.equal(one[0, 0, 0], one[0, 0, 1])
    assert not torch.equal(one, run(network, images, recipe, ["1", "5"], seed=1).images)


@pytest.mark.parametrize("recipe", ["badger", "adam"])
def test_chunks_give_the_same(images, network, recipe):
    recipe = preset(recipe, steps=5, jitter=1)
    told = []
    whole = run(network, images, recipe, progress=lambda *said: told.append(said))
    assert told[0] == ("5 (1 of 1)", 0, 5)
    assert told[-1] == ("5 (1 of 1)", 5, 5)
    small = run(network, images, recipe, memory_gb=1e-9, progress=lambda *said: told.append(said))
    assert told[-1] == ("5 (1 of 1)", 30, 30)
    torch.testing.assert_close(whole.images, small.images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(whole.embedding, small.embedding, rtol=1e-3, atol=1e-4)


def test_layers_alone_or_together_are_the_same(images, network):
    recipe = preset("badger", steps=4)
    both = run(network, images, recipe, ["1", "5"])
    assert torch.equal(both.images[1:], run(network, images, recipe, ["5"]).images)


def test_points():
    assert points_of(500)[1] == 10
    assert len(points_of(500)) == 51
    assert points_of(4, 50) == [0, 1, 2, 3, 4]
    assert points_of(7, 3) == [0, 2, 5, 7]


# What is left as it was ---------------------------------------------------------------------------------------------


def test_the_network_and_random_states_stay(images, network):
    network.train()
    network[5].eval()
    network[1].weight.requires_grad_(False)
    network[7].weight.grad = torch.ones_like(network[7].weight)
    before = copy.deepcopy(network.state_dict())
    flags = [module.training for module in network.modules()]
    wanted = [p.requires_grad for p in network.parameters()]
    hooks = [len(module._forward_hooks) for module in network.modules()]
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    expected = torch.rand(1), np.random.rand(), random.random()
    torch.manual_seed(3), np.random.seed(3), random.seed(3)
    run(network, images, preset("badger", steps=2, jitter=1), ["1", "5"])
    assert (torch.rand(1), np.random.rand(), random.random()) == expected
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == flags
    assert [p.requires_grad for p in network.parameters()] == wanted
    assert [len(module._forward_hooks) for module in network.modules()] == hooks
    assert network[7].weight.grad is not None
    assert network[5].weight.grad is None


def test_nothing_is_left_after_a_mistake(images, network):
    class Stop(Exception):
        pass

    def stop(*said):
        raise Stop

    with pytest.raises(Stop):
        run(network, images, preset(steps=2), progress=stop)
    assert not any(module._forward_hooks for module in network.modules())
    assert all(p.requires_grad for p in network.parameters())


def test_it_works_without_gradients_around(images, network):
    with torch.no_grad():
        found = run(network, images, preset("badger-sharp", steps=2))
    assert not found.images.requires_grad


# Any network --------------------------------------------------------------------------------------------------------


class Odd(nn.Module):
    """A module that runs twice, outputs that are tuples, and a layer that must not run."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.pair = Pair()
        self.head = nn.Linear(128, 3)
        self.ran = 0

    def forward(self, x):
        x = self.relu(self.conv(x))
        x = self.relu(self.conv(x) - 0.1)
        x, _ = self.pair(x)
        self.ran += 1
        return self.head(x.flatten(1))


class Pair(nn.Module):
    def forward(self, x):
        return x * 2, torch.ones(())


def test_calls_and_tuples_and_no_deeper(images):
    torch.manual_seed(0)
    network = Odd().eval()
    taps = tap(network, images, ["conv", "relu", "pair"])
    taps.remove()
    assert [layer.name for layer in taps.layers] == ["conv#1", "relu#1", "conv#2", "relu#2", "pair"]
    network.ran = 0
    first = network.conv(images)
    second = (network.conv(first.relu()) - 0.1).relu()
    with still(network):
        for layer, wanted in zip(taps.layers, (first, first.relu(), None, second, 2 * second), strict=True):
            with Embedding(network, layer) as embed:
                for _ in range(2):
                    assert wanted is None or torch.equal(embed(images), wanted)
    found = invert(network, taps.layers, images, preset("badger-sharp", steps=5))
    assert found.layers == ("conv#1", "relu#1", "conv#2", "relu#2", "pair")
    assert network.ran == 0
    assert invert(network, ["relu#2"], images, preset(steps=1)).layers == ("relu#2",)


def test_a_part_of_what_is_called(images):
    torch.manual_seed(0)

    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = linear().float()

        def forward(self, x):
            return self.net(2 * x)

    whole = Whole()
    double = linear().float()
    with torch.no_grad():
        double[1].weight.mul_(2)
    found = invert(whole.net, ["1"], images, preset("badger-sharp", steps=3), model=whole)
    torch.testing.assert_close(
        found.images,
        invert(double, ["1"], images, preset("badger-sharp", steps=3)).images,
        rtol=1e-4,
        atol=1e-5,
    )


def test_windows_of_an_image_are_put_together(images):
    class Windows(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(32, 4)
            self.head = nn.Linear(16, 2)

        def forward(self, x):
            return self.head(self.layer(x.reshape(4 * len(x), 32)).reshape(len(x), 16))

    found = invert(Windows(), ["layer"], images, preset("badger-sharp", steps=20))
    assert (found.embedding[..., -1] < found.embedding[..., 0]).all()


def test_under_compile_and_checkpointing(images):
    from torch.utils.checkpoint import checkpoint

    class Recomputed(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = linear().float()

        def forward(self, x):
            return checkpoint(self.net, x, use_reentrant=False)

    plain, recipe = linear().float(), preset("badger-sharp", steps=3)
    wanted = invert(plain, ["1"], images, recipe).images
    torch.testing.assert_close(invert(Recomputed(), ["net.1"], images, recipe).images, wanted)
    torch.testing.assert_close(invert(torch.compile(plain), ["1"], images, recipe).images, wanted)


class NoGradient(nn.Sequential):
    def forward(self, x):
        return super().forward(x.detach())


def residual():
    network = ResNet(8, width=4, input_shape=(2, 8, 8))
    with tap(network, torch.zeros(2, 2, 8, 8), "addition") as taps:
        return network, [layer for layer in taps.layers if layer.kind == "Add"][:1]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"targets": torch.zeros(0, 2, 8, 8)}, "images to recover are"),
        ({"targets": torch.zeros(3, 64)}, "images to recover are"),
        ({"targets": torch.zeros(3, 2, 8, 8, dtype=torch.uint8)}, "floating-point pixels"),
        ({"targets": torch.full((3, 2, 8, 8), -2.0)}, "values from -2 to -2: give pixels in"),
        ({"targets": torch.full((3, 2, 8, 8), torch.nan)}, "values from nan"),
        ({"mean": [0.0]}, "mean has 1 values and the images 2 channels"),
        ({"std": [1.0, 0.0]}, "give positive numbers"),
        ({"starts": 0}, "starts is 0"),
        ({"memory_gb": 0}, "memory_gb is 0"),
        ({"sigma": 0.0}, "sigma is 0.0"),
        ({"layers": []}, "no layer is named"),
        ({"layers": ["9"]}, "matches no module"),
        ({"recipe": preset(jitter=8)}, "jitter 8 on images of 8x8"),
        ({"network": NoGradient(*linear().float())}, "no gradient with respect to the pixels"),
    ],
)
def test_mistakes(images, options, says):
    given = {
        "network": linear().float(),
        "layers": ["1"],
        "targets": images,
        "recipe": preset(steps=1),
        **options,
    }
    with pytest.raises(ValueError) as error:  # noqa: PT011
        invert(**given)
    assert says in str(error.value)


def test_an_addition_is_refused_in_words(images):
    network, layers = residual()
    with pytest.raises(ValueError, match="residual addition, which no module puts out: choose the block"):
        invert(network, layers, images, preset(steps=1))


def test_a_line_cannot_be_blurred():
    network = nn.Sequential(nn.Flatten(), nn.Linear(6, 4), nn.Linear(4, 2))
    with pytest.raises(ValueError, match="1x6 can't be blurred"):
        invert(network, ["1"], torch.rand(1, 1, 1, 6), preset())
    assert (
        invert(network, ["1"], torch.rand(1, 1, 1, 6), preset("badger-sharp", steps=1)).images.shape[-1] == 6
    )


# For a class --------------------------------------------------------------------------------------------------------


def test_generate_raises_the_class_through_a_probe(images, network):
    taps = tap(network, images, ["1", "5"], pool="avg")
    taps.remove()
    weights = [torch.randn(3, layer.dim, generator=torch.Generator().manual_seed(0)) for layer in taps.layers]
    bias = torch.tensor([3.0, 1.0, 2.0])
    reads = [
        readout(network, layer, weight, bias, "avg")
        for layer, weight in zip(taps.layers, weights, strict=True)
    ]
    recipe = preset("badger-sharp", steps=10)
    made = generate(network, taps.layers, reads, [2, 0], (2, 8, 8), recipe, mean=MEAN, std=STD, starts=3)
    assert made.images.shape == (2, 2, 3, 2, 8, 8)
    assert (made.score[..., -1] > made.score[..., 0]).all()
    # The score is the probe's of the pooled features.
    shown = (made.images[1, 1] - torch.tensor(MEAN).view(-1, 1, 1)) / torch.tensor(STD).view(-1, 1, 1)
    with torch.no_grad():
        features = network.eval()[:6](shown).mean((2, 3))
    torch.testing.assert_close(
        made.score[1, 1, :, -1], (features @ weights[1].T + bias)[:, 0], rtol=1e-4, atol=1e-4
    )


def test_generate_climbs_as_the_gradient_says():
    network = linear()
    made = generate(network, ["2"], None, [1], (2, 8, 8), preset("badger-sharp", steps=1, scale=0.5))
    slope = (network[2].weight @ network[1].weight)[1].view(2, 8, 8)
    wanted = noise(1, 1, (2, 8, 8), preset(), 0)[0, 0] + 0.1 * 0.5 * slope
    torch.testing.assert_close(made.images[0, 0, 0], wanted.detach())


def test_generate_says_what_is_wrong(network):
    def make(**options):
        given = {"layers": ["1"], "readouts": None, "classes": [0], "shape": (2, 8, 8), **options}
        generate(network, recipe=preset(steps=1), **given)

    with pytest.raises(ValueError, match="no class is named"):
        make(classes=[])
    with pytest.raises(ValueError, match="2 readouts for 1 layers"):
        make(readouts=[nn.Identity(), nn.Identity()])
    with pytest.raises(ValueError, match="classes 5 to 5 are asked for, and scores are of 5"):
        make(layers=["7"], classes=[5])
    with pytest.raises(ValueError, match="no class scores"):
        make(layers=["1"])
    [layer] = tap(network, torch.zeros(2, 2, 8, 8), ["1"]).layers
    with pytest.raises(ValueError, match="a probe of 3 features can't read the layer 1, which has 16"):
        readout(network, layer, torch.zeros(2, 3))
