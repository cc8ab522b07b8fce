"""The method on cases whose answer is known, as the paper's MLPs at about 64 inputs.

Badger, "Depth and Representation in Vision Models", 2022: an input is recovered only where no layer is narrower than
it, with ReLU about twice as wide. In double precision, step size falling to 1e-4, without blur.
"""

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.analysis.invert.recipe import preset
from tunnel_lightning.analysis.invert.recover import invert
from tunnel_lightning.analysis.invert.scores import scores_of

MEAN, STD = [0.3], [0.5]


def images(count=2):
    return torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def stack(widths, relu=False):
    torch.manual_seed(0)
    layers = [nn.Flatten()]
    for wide, narrow in zip([64, *widths], widths, strict=False):
        layers += [nn.Linear(wide, narrow)] + [nn.ReLU()] * relu
    return nn.Sequential(*layers, nn.Linear(widths[-1], 2)).double()


def shares(network, steps, recipe="badger-sharp", **changes):
    """Distances of embeddings and inputs at the last layer, of their norms: means over images and starts."""
    recipe = preset(recipe, steps=steps, decay="linear", **changes)
    found = invert(network, [str(len(network) - 2)], images(), recipe, starts=1, points=10)
    scores = scores_of(found, images())
    return scores.embedding_share.mean(), scores.input_share.mean(), scores


def test_a_wide_linear_stack_gives_the_input_back():
    embedding, moved, scores = shares(stack([128] * 4), 1000)
    assert embedding < 0.01
    assert moved < 0.05
    assert not scores.non_unique.any()
    assert not scores.plateau.any()


def test_a_deeper_one_needs_more_steps():
    _, early, _ = shares(stack([128] * 7), 100, "adam", tv=0.0, clamp=False)
    _, late, _ = shares(stack([128] * 7), 1500, "adam", tv=0.0, clamp=False)
    assert early > 0.2
    assert late < 0.06


def test_a_narrow_layer_loses_it_though_the_embedding_is_met():
    embedding, moved, scores = shares(stack([128, 32, 128, 128]), 1000)
    assert embedding < 0.001
    assert moved > 0.3
    assert scores.non_unique.all()
    assert scores.plateau.all()


@pytest.mark.parametrize(("width", "recovered"), [(64, False), (256, True)])
def test_with_relu_it_takes_more_than_the_width_of_the_input(width, recovered):
    _, moved, _ = shares(stack([width] * 2, relu=True), 500)
    assert (moved < 0.01) if recovered else (moved > 0.25)


def null_space():
    """A linear map of 64 pixels to 24 numbers, as the pixels meet it, and the network."""
    network = stack([24])
    return network[1].weight.detach().numpy() / STD[0], network


@pytest.mark.parametrize("name", ["badger-sharp", "lbfgs"])
def test_the_null_space_stays_as_the_start_had_it(name):
    weight, network = null_space()
    changes = {"tv": 0.0} if name == "lbfgs" else {}
    recipe = preset(name, steps=30, **changes)
    start = invert(
        network, ["1"], images(), preset("badger-sharp", steps=1, lr=1e-300, start_mean=recipe.start_mean)
    )
    found = invert(network, ["1"], images(), recipe, mean=MEAN, std=STD)
    lost = np.eye(64) - np.linalg.pinv(weight) @ weight
    moved = (found.images - start.images).flatten(-3).numpy()
    assert np.abs(moved).max() > 0.1
    assert np.abs(moved @ lost).max() < 1e-12


def test_least_squares_ends_where_the_pseudoinverse_says():
    weight, network = null_space()
    recipe = preset("badger-sharp", loss="l2", scale=1.0, units="pixels", lr=0.1, steps=1000)
    begin = (
        invert(network, ["1"], images(), preset("badger-sharp", steps=1, lr=1e-300))
        .images.flatten(-3)
        .numpy()
    )
    found = invert(network, ["1"], images(), recipe, mean=MEAN, std=STD)
    wanted = begin + (images()[:, None].flatten(-3).numpy() - begin) @ (np.linalg.pinv(weight) @ weight).T
    np.testing.assert_allclose(found.images.flatten(-3).numpy(), wanted, atol=1e-9)
    assert float(found.embedding[..., -1].max()) < 1e-8
