from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.analysis.invert.recipe import Recipe, preset
from tunnel_lightning.analysis.invert.recover import Recovered, invert, joined
from tunnel_lightning.analysis.invert.scores import (
    names,
    non_unique,
    outside,
    over_images,
    plateau,
    psnr,
    scores_of,
    ssim,
)

L, N, S, SHAPE = 2, 3, 2, (3, 12, 10)


@pytest.fixture(scope="module")
def targets():
    return torch.rand(N, *SHAPE, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(scope="module")
def found(targets):
    """Made by hand: what every score is follows from it."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape):
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    images = targets[None, :, None] + 0.3 * draw(L, N, S, *SHAPE) - 0.1
    curve = torch.linspace(1, 0.01, 5, dtype=torch.float64)
    return Recovered(
        layers=("a", "b"),
        images=images,
        steps=torch.tensor([0, 5, 10, 15, 20]),
        loss=draw(L, N, S, 1) * curve,
        embedding=draw(L, N, S, 1) * curve,
        input=(images - targets[None, :, None]).flatten(-3).norm(dim=-1, keepdim=True).repeat(1, 1, 1, 5),
        reference_embedding=0.01 * draw(L, N, S),
        reference_input=4 * draw(N, S),
        embedding_norm=draw(L, N),
        input_norm=targets.flatten(1).norm(dim=1),
        sigma=0.04,
        recipe=Recipe(),
    )


def test_all_against_numpy(found, targets):
    scores = scores_of(found, targets)
    a, b = targets.numpy()[None, :, None], found.images.numpy()
    m_g, m_r = found.embedding.numpy()[..., -1], found.reference_embedding.numpy()
    m_i = np.sqrt(((a - b) ** 2).sum((-3, -2, -1)))
    away = np.broadcast_to(found.reference_input.numpy(), m_i.shape)
    norm = np.sqrt((a**2).sum((-3, -2, -1)))
    wanted = {
        "embedding_distance": m_g,
        "input_distance": m_i,
        "reference_embedding": m_r,
        "reference_input": away,
        "embedding_ratio": m_g / m_r,
        "input_ratio": m_i / away,
        "embedding_share": m_g / found.embedding_norm.numpy()[..., None],
        "input_share": m_i / norm,
        "psnr": -10 * np.log10(((a - b) ** 2).mean((-3, -2, -1))),
        "outside": ((b < 0) | (b > 1)).mean((-3, -2, -1)),
        "non_unique": (m_g < m_r) & (m_i > away),
        "plateau": m_i > away,
        "diverged": np.zeros_like(m_i),
    }
    assert {*wanted, "ssim"} == set(names())
    for name, values in wanted.items():
        np.testing.assert_allclose(getattr(scores, name), values, rtol=1e-6, err_msg=name)
    assert 0 < wanted["non_unique"].mean() < 1
    assert 0 < wanted["plateau"].mean() < 1
    assert 0 < wanted["outside"].mean() < 1


def ssim_by_hand(a, b, sigma, reach):
    """Wang et al., 2004, of one image [C, H, W]: the mean over windows about every pixel, edges mirrored."""
    at = np.arange(-reach, reach + 1)
    line = np.exp(-(at**2) / (2 * sigma**2))
    window = np.outer(line, line) / line.sum() ** 2
    patches = [
        np.lib.stride_tricks.sliding_window_view(wide, (2 * reach + 1,) * 2, axis=(-2, -1))
        for wide in (np.pad(x, [(0, 0), (reach, reach), (reach, reach)], mode="reflect") for x in (a, b))
    ]
    (mean_a, mean_b) = ((p * window).sum((-2, -1)) for p in patches)
    var_a, var_b = (
        (p**2 * window).sum((-2, -1)) - m**2 for p, m in zip(patches, (mean_a, mean_b), strict=True)
    )
    both = (patches[0] * patches[1] * window).sum((-2, -1)) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    return (
        ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    ).mean()


@pytest.mark.parametrize(("size", "sigma", "reach"), [(14, 1.5, 5), (8, 3 / 3.5, 3)])
def test_ssim_also_of_small_images(size, sigma, reach):
    a, b = torch.rand(2, 2, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    value = ssim(b[None, None, None], a[None])
    np.testing.assert_allclose(value, ssim_by_hand(a.numpy(), b.numpy(), sigma, reach), rtol=1e-6)
    assert np.isnan(ssim(torch.zeros(1, 1, 1, 1, 2, 2), torch.zeros(1, 1, 2, 2))).all()


def test_the_very_image_has_no_distance(targets):
    same = targets[None, :, None]
    assert np.isinf(psnr(same, targets)).all()
    np.testing.assert_allclose(ssim(same, targets), 1)
    assert (outside(same) == 0).all()


def test_the_test_of_non_uniqueness_asks_for_both():
    assert non_unique([1, 1, 3, 3], 2, [9, 1, 9, 1], 5).tolist() == [True, False, False, False]


@pytest.mark.parametrize(
    ("m_g", "m_i", "verdict"),
    [
        ([10, 1, 0.1], [5, 4, 4], True),
        ([10, 1, 0.1], [5, 4, 9], True),  # grows
        ([10, 1, 0.1], [5, 4, 3.5], False),  # still falls
        ([10, 5, 2], [5, 4, 4], False),  # the embedding is not met
        ([10, 1, 0.1], [5, 0.1, 0.1], False),  # recovered
        ([10, 1, np.nan], [5, 4, np.nan], False),
    ],
)
def test_plateau(m_g, m_i, verdict):
    assert plateau(m_g, m_i, [0, 5, 10], 0.5) == verdict


def test_what_diverged_is_said(found, targets):
    embedding = found.embedding.clone()
    embedding[0, 0, 0, -1] = torch.inf
    embedding[1, 2, 1] = torch.tensor([1.0, 2, 3, 4, 5])
    scores = scores_of(replace(found, embedding=embedding), targets)
    assert np.argwhere(scores.diverged).tolist() == [[0, 0, 0], [1, 2, 1]]
    assert scores.non_unique[0, 0, 0] == scores.non_unique[1, 2, 1] == 0


def test_a_run_that_diverges_is_scored_all_the_same():
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.Linear(40, 2))
    x = torch.rand(2, 1, 4, 4)
    network = network.requires_grad_(False)
    network[1].weight.mul_(100)
    scores = scores_of(invert(network, ["1"], x, preset("badger-sharp", loss="l2", steps=60, lr=1.0)), x)
    assert (scores.diverged == 1).all()
    assert (scores.outside == 1).all()
    assert not scores.non_unique.any()


def test_over_images_starts_are_averaged_first():
    values = np.random.default_rng(0).normal(size=(2, 5, 3))
    spread = over_images(values)
    of_images = values.mean(-1)
    np.testing.assert_allclose(spread.mean, of_images.mean(-1))
    np.testing.assert_allclose(spread.deviation, of_images.std(-1, ddof=1))
    assert spread.n == 5
    assert np.isnan(over_images(values[:, :1]).deviation).all()


def test_other_images_are_refused(found, targets):
    with pytest.raises(ValueError, match="are not those that"):
        scores_of(found, targets[:2])


def test_parts_of_other_images_are_not_joined(found):
    whole = joined([found, replace(found, layers=("c", "d"))])
    assert whole.layers == ("a", "b", "c", "d")
    assert len(whole.images) == len(whole.embedding_norm) == 4
    with pytest.raises(ValueError, match="same images"):
        joined([found, replace(found, reference_input=found.reference_input + 1)])
    with pytest.raises(ValueError, match="nothing to join"):
        joined([])
