"""How well an input was recovered from an embedding: the measures and verdicts of Badger, 2022, and two of images.

Badger, "Depth and Representation in Vision Models" (arXiv 2211.06496): a the image, a_g what was recovered of it,
a' = a + N(0, sigma) a reference that a person can't tell from a; O the layer's whole output; distances are Euclidean.
Everything is numpy in float64, but PSNR and SSIM, which are torchmetrics'.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

from tunnel_lightning.analysis.invert.recover import Recovered

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

ZERO, FLAT = 0.1, 0.05


@dataclass(frozen=True)
class Scores:
    """Of every layer, image and start: all ``[L, N, S]``, float64; verdicts are 0 or 1.

    Where a descent diverged, what came of it is infinite or NaN, and so are its scores; its verdicts of
    non-uniqueness are 0 and ``diverged`` is 1.

    Attributes:
        embedding_distance: m_g = ``|O(a) - O(a_g)|``.
        input_distance: m_i = ``|a - a_g|``, pixels in [0, 1].
        reference_embedding: m_r = ``|O(a) - O(a')|``.
        reference_input: ``|a - a'|``.
        embedding_ratio: m_g / m_r.
        input_ratio: m_i / ``|a - a'|``.
        embedding_share: m_g / ``|O(a)|``, which can be compared across layers.
        input_share: m_i / ``|a|``.
        psnr: peak signal-to-noise ratio in dB, of pixels as they came out, not clamped; the peak is 1.
        ssim: structural similarity of the same (see :func:`ssim`).
        outside: share of pixels outside [0, 1].
        non_unique: the paper's test: m_g < m_r while m_i > ``|a - a'|`` (:func:`non_unique`).
        plateau: m_g went to zero while m_i stayed (:func:`plateau`).
        diverged: the descent ended with no finite image, or further from the embedding than it began.
    """

    embedding_distance: Floats
    input_distance: Floats
    reference_embedding: Floats
    reference_input: Floats
    embedding_ratio: Floats
    input_ratio: Floats
    embedding_share: Floats
    input_share: Floats
    psnr: Floats
    ssim: Floats
    outside: Floats
    non_unique: Floats
    plateau: Floats
    diverged: Floats


def names() -> list[str]:
    """Names of the scores, in order."""
    return [field.name for field in fields(Scores)]


def scores_of(found: Recovered, targets: Tensor) -> Scores:
    """All scores of what was recovered.

    Args:
        found: by ``invert``.
        targets: the images it was asked for, ``[N, C, H, W]`` in [0, 1].

    Raises:
        ValueError: other images, by their number or size.

    Example:
        >>> import torch
        >>> from torch import nn
        >>> from tunnel_lightning.analysis.invert.recipe import preset
        >>> from tunnel_lightning.analysis.invert.recover import invert
        >>> images = torch.rand(2, 1, 8, 8)
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> scores = scores_of(invert(network, ["1"], images, preset("badger-sharp", steps=5), starts=4), images)
        >>> scores.psnr.shape
        (1, 2, 4)
    """
    if found.images.shape[1] != len(targets) or found.images.shape[3:] != targets.shape[1:]:
        raise ValueError(
            f"images {list(targets.shape)} are not those that {list(found.images.shape)} [layers, images, starts, C, "
            "H, W] were recovered of"
        )
    m_g, m_i = _double(found.embedding[..., -1]), _double(found.input[..., -1])
    m_r, away = _double(found.reference_embedding), _double(found.reference_input)[None].repeat(len(m_g), 0)
    finite = np.isfinite(m_g) & np.isfinite(m_i)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = (
            m_g / m_r,
            m_i / away,
            m_g / _double(found.embedding_norm)[..., None],
            m_i / _double(found.input_norm)[None, :, None],
        )
        verdicts = (
            non_unique(m_g, m_r, m_i, away),
            plateau(_double(found.embedding), _double(found.input), found.steps.numpy(), away),
            ~finite | (m_g > _double(found.embedding[..., 0])),
        )
    pixels = (psnr(found.images, targets), ssim(found.images, targets), outside(found.images))
    return Scores(
        m_g, m_i, m_r, away, *ratios, *pixels, *(verdict.astype(np.float64) for verdict in verdicts)
    )


def non_unique(m_g: ArrayLike, m_r: ArrayLike, m_i: ArrayLike, away: ArrayLike) -> Flags:
    """The paper's test: an input further from the image than the reference, whose embedding is nearer.

    Then the layer does not tell a from a_g, though it tells a from a'.

    Args:
        m_g: ``|O(a) - O(a_g)|``.
        m_r: ``|O(a) - O(a')|``.
        m_i: ``|a - a_g|``.
        away: ``|a - a'|``.

    Example:
        >>> non_unique([1.0, 3.0, 1.0], 2.0, [9.0, 9.0, 4.0], 5.0)
        array([ True, False, False])
    """
    nearer: Flags = np.asarray(m_g, np.float64) < np.asarray(m_r, np.float64)
    further: Flags = np.asarray(m_i, np.float64) > np.asarray(away, np.float64)
    return nearer & further


def plateau(
    m_g: ArrayLike, m_i: ArrayLike, steps: ArrayLike, away: ArrayLike, zero: float = ZERO, flat: float = FLAT
) -> Flags:
    """The verdict by curves: the embedding's distance goes to zero while the input's stays, or grows.

    The paper reads it off the curves; here it is: m_g ends at less than ``zero`` of what it began with, m_i fell by
    less than ``flat`` of itself in the second half of the steps, and it ends above the reference's distance (else it
    stays because the image is found).

    Args:
        m_g: curves ``[..., P]``.
        m_i: curves ``[..., P]``.
        steps: steps done at each point ``[P]``.
        away: ``|a - a'|``, ``[...]``.
        zero: share of m_g that counts as none.
        flat: share of m_i that counts as none.

    Example:
        >>> plateau([[9.0, 1.0, 0.1], [9.0, 1.0, 0.1]], [[5.0, 4.0, 3.99], [5.0, 2.0, 1.0]], [0, 5, 10], 0.5)
        array([ True, False])
    """
    embedding, moved = np.asarray(m_g, np.float64), np.asarray(m_i, np.float64)
    done = np.asarray(steps, np.float64)
    half = int(np.abs(done - done[-1] / 2).argmin())
    vanished = embedding[..., -1] < zero * embedding[..., 0]
    stayed = moved[..., -1] > (1 - flat) * moved[..., half]
    return vanished & stayed & (moved[..., -1] > np.asarray(away, np.float64))


def outside(images: Tensor) -> Floats:
    """Share of values outside [0, 1], of images ``[..., C, H, W]``; NaN counts as outside.

    Example:
        >>> import torch
        >>> outside(torch.tensor([[[[-0.1, 0.0], [1.0, 1.5]]]]))
        array([0.5])
    """
    return _double((~((images >= 0) & (images <= 1))).flatten(-3).double().mean(-1))


def psnr(images: Tensor, targets: Tensor) -> Floats:
    """Peak signal-to-noise ratio in dB, ``[L, N, S]``; infinite for the very image.

    Args:
        images: ``[L, N, S, C, H, W]``, not clamped.
        targets: ``[N, C, H, W]`` in [0, 1].

    Example:
        >>> import torch
        >>> psnr(torch.full((1, 1, 1, 1, 2, 2), 0.6), torch.full((1, 1, 2, 2), 0.5)).round(3)
        array([[[20.]]])
    """
    found, wanted = _pairs(images, targets)
    value = peak_signal_noise_ratio(found, wanted, data_range=1.0, reduction="none", dim=(1, 2, 3))
    return _double(value.view(images.shape[:3]))


def ssim(images: Tensor, targets: Tensor) -> Floats:
    """Structural similarity, ``[L, N, S]``, 1 for the very image (Wang et al., 2004).

    The Gaussian window of deviation 1.5 reaches 5 pixels each way, over the mirrored edge; on images too small for it
    the window is narrowed in proportion, and of those below 3 pixels there is no value (NaN).

    Args:
        images: ``[L, N, S, C, H, W]``, not clamped.
        targets: ``[N, C, H, W]`` in [0, 1].

    Example:
        >>> import torch
        >>> ssim(torch.full((1, 1, 1, 1, 8, 8), 0.5), torch.full((1, 1, 8, 8), 0.5))
        array([[[1.]]])
    """
    found, wanted = _pairs(images, targets)
    reach = min(5, (min(images.shape[-2:]) - 1) // 2)
    if reach < 1:
        return np.full(images.shape[:3], np.nan)
    sigma = 1.5 if reach == 5 else reach / 3.5  # torchmetrics' window reaches 3.5 deviations, rounded
    value = structural_similarity_index_measure(found, wanted, sigma=sigma, data_range=1.0, reduction="none")
    assert isinstance(value, Tensor)
    return _double(value.view(images.shape[:3]))


class Spread(NamedTuple):
    """A score over images, ``[L]``.

    Attributes:
        mean: over images, of the means over their starts.
        deviation: of those over images (n - 1); NaN for a single image.
        n: number of images.
    """

    mean: Floats
    deviation: Floats
    n: int


def over_images(values: ArrayLike) -> Spread:
    """Mean and deviation over images, their starts averaged first: starts of one image are no independent samples.

    Args:
        values: ``[..., N, S]``.

    Example:
        >>> over_images([[[1.0, 3.0], [4.0, 4.0]]])
        Spread(mean=array([3.]), deviation=array([1.41421356]), n=2)
    """
    of_images = np.asarray(values, np.float64).mean(-1)
    n = of_images.shape[-1]
    with np.errstate(invalid="ignore"):
        mean: Floats = of_images.mean(-1)
        deviation = of_images.std(-1, ddof=1) if n > 1 else np.full_like(mean, np.nan)
    return Spread(mean, deviation, n)


def _pairs(images: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    wanted = targets.double().cpu()[None, :, None].expand(images.shape)
    return images.double().cpu().flatten(0, 2), wanted.flatten(0, 2)


def _double(values: Tensor) -> Floats:
    found: Floats = values.detach().cpu().double().numpy()
    return found
