"""Inputs recovered from layers' embeddings, after Badger, "Depth and Representation in Vision Models", 2022."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.analysis.invert.descent import Descents, Progress, noise
from tunnel_lightning.analysis.invert.objective import Distance, Embedding, rows
from tunnel_lightning.analysis.invert.recipe import Recipe
from tunnel_lightning.taps import Tap

SIGMA = 1 / 25
"""Deviation of the noise that makes the reference input; the paper's script has 1/18."""


@dataclass(frozen=True)
class Recovered:
    """What was recovered of N images from L layers, from S starts each; curves have P points. All on the CPU.

    Attributes:
        layers: the layers' names.
        images: what was recovered ``[L, N, S, C, H, W]``, pixels as they came out, also outside [0, 1].
        steps: how many steps were done at each point of the curves ``[P]``; the first is 0, the last all.
        loss: what was minimised, without the total variation ``[L, N, S, P]``.
        embedding: distance of embeddings m_g = ``|O(a) - O(a_g)|``, the same shape.
        input: distance of inputs m_i = ``|a - a_g|`` in pixels of [0, 1], the same shape.
        reference_embedding: m_r = ``|O(a) - O(a')|`` with ``a' = a + N(0, sigma)`` ``[L, N, S]``.
        reference_input: ``|a - a'|`` ``[N, S]``.
        embedding_norm: ``|O(a)|`` ``[L, N]``.
        input_norm: ``|a|`` ``[N]``.
        sigma: of the reference.
        recipe: how.
    """

    layers: tuple[str, ...]
    images: Tensor
    steps: Tensor
    loss: Tensor
    embedding: Tensor
    input: Tensor
    reference_embedding: Tensor
    reference_input: Tensor
    embedding_norm: Tensor
    input_norm: Tensor
    sigma: float
    recipe: Recipe


def joined(parts: Sequence[Recovered]) -> Recovered:
    """What was recovered from some layers of the same images, and from others.

    Args:
        parts: of :func:`invert` with the same images, recipe, starts and seed.

    Raises:
        ValueError: none, or of other images or another recipe.
    """
    if not parts:
        raise ValueError("there is nothing to join")
    first, *others = parts
    for other in others:
        if other.recipe != first.recipe or not torch.equal(other.reference_input, first.reference_input):
            raise ValueError(
                "only what was recovered of the same images by the same recipe and seed can be joined"
            )
    by_layer = ("images", "loss", "embedding", "input", "reference_embedding", "embedding_norm")
    whole: dict[str, Any] = {name: torch.cat([getattr(part, name) for part in parts]) for name in by_layer}
    return replace(first, layers=tuple(name for part in parts for name in part.layers), **whole)


def invert(
    network: nn.Module,
    layers: Sequence[Tap | str],
    targets: Tensor,
    recipe: Recipe | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model: nn.Module | None = None,
    starts: int = 3,
    seed: int = 0,
    sigma: float = SIGMA,
    points: int = 50,
    memory_gb: float = 2.0,
    progress: Progress | None = None,
) -> Recovered:
    """Recover images from what each of some layers makes of them, by descent from noise.

    Every layer is inverted by itself, from the same starts; so is another network with the same ``seed``. The network
    is left as it was: weights, flags, gradients, device, hooks and random states.

    Args:
        network: the network whose layers have these names; it stays on its device and keeps its precision.
        layers: taps of it, or names as in ``TapSpec``. A layer's whole output counts, not pooled.
        targets: images in [0, 1], ``[N, C, H, W]``.
        recipe: how; the paper's by default.
        mean: of each channel, as the network's data is normalised; None shows it the pixels as they are.
        std: the same, standard deviations.
        model: what is called on images, where ``network`` is a part of it.
        starts: S, from how many noises each image is recovered.
        seed: draws the starts, the references and the jitter.
        sigma: deviation of the noise that makes the reference input (the paper: 1/25, in its script 1/18).
        points: about how many points the curves have.
        memory_gb: what the images under way may take for the gradient; more are done in chunks.
        progress: told ``(what, done, in all)`` in steps.

    Raises:
        ValueError: images that are no batch in [0, 1], no such layer, a layer that is no module, a mean or std for
            another number of channels, or no gradient.

    Example:
        >>> from tunnel_lightning.analysis.invert.recipe import preset
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 40), nn.ReLU(), nn.Linear(40, 2))
        >>> found = invert(network, ["1"], torch.rand(2, 1, 4, 4), preset("badger-sharp", steps=20))
        >>> found.images.shape, bool((found.embedding[..., -1] < found.embedding[..., 0]).all())
        (torch.Size([1, 2, 3, 1, 4, 4]), True)
    """
    recipe = recipe or Recipe()
    _check(targets, sigma)
    n, *shape = targets.shape
    with_all = Descents(network, recipe, shape, mean, std, model, starts, seed, points, memory_gb, progress)
    images = targets.to(with_all.like)
    begin = noise(n, starts, shape, recipe, seed).to(with_all.like).flatten(0, 1)
    drawn = torch.randn(n, starts, *shape, generator=torch.Generator().manual_seed(seed + 1))
    near = images[:, None] + sigma * drawn.to(with_all.like)
    each = images.repeat_interleave(starts, 0)
    found: dict[str, list[Tensor]] = {}
    with with_all.still():
        taps = with_all.layers(layers)
        for number, layer in enumerate(taps, 1):
            with with_all.embedding(layer) as embed:
                size = with_all.chunk(embed)
                wanted, shifted = (_embedded(embed, x, size) for x in (images, near.flatten(0, 1)))
                of = wanted.repeat_interleave(starts, 0)
                made = with_all.run(
                    embed,
                    lambda part, of=of: Distance(of[part], recipe),  # type: ignore[misc]
                    begin,
                    each,
                    f"{layer.name} ({number} of {len(taps)})",
                )
            of_layer = dict(zip(("images", "loss", "embedding", "input"), made, strict=True))
            of_layer["reference_embedding"] = torch.linalg.vector_norm(shifted - of, dim=1)
            for name, value in of_layer.items():
                found.setdefault(name, []).append(value.unflatten(0, (n, starts)).cpu())
            found.setdefault("embedding_norm", []).append(torch.linalg.vector_norm(wanted, dim=1).cpu())
    return Recovered(
        layers=tuple(layer.name for layer in taps),
        steps=torch.tensor(with_all.at),
        reference_input=torch.linalg.vector_norm((near - images[:, None]).flatten(2), dim=2).cpu(),
        input_norm=torch.linalg.vector_norm(images.flatten(1), dim=1).cpu(),
        sigma=sigma,
        recipe=recipe,
        **{name: torch.stack(values) for name, values in found.items()},
    )


def _embedded(embed: Embedding, images: Tensor, size: int) -> Tensor:
    with torch.no_grad():
        return torch.cat([rows(embed(x), len(x)) for x in images.split(size)])


def _check(targets: Tensor, sigma: float) -> None:
    if targets.ndim != 4 or not targets.numel() or not targets.is_floating_point():
        raise ValueError(
            f"the images to recover are {list(targets.shape)} of {targets.dtype}: give floating-point pixels "
            "[N, C, H, W]"
        )
    low, high = targets.aminmax()
    if not (low >= -1e-3 and high <= 1 + 1e-3):
        raise ValueError(
            f"the images to recover have values from {low:.3g} to {high:.3g}: give pixels in [0, 1], and the mean "
            "and std that the network's data is normalised by apart"
        )
    if not sigma > 0:
        raise ValueError(f"sigma is {sigma}; give a positive number")
