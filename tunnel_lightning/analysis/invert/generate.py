"""Images made for a class through a chosen layer, after Badger: recognition and generation are one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tunnel_lightning.analysis.invert.descent import Descents, Progress, noise
from tunnel_lightning.analysis.invert.objective import ClassScore, Embedding, Readout
from tunnel_lightning.analysis.invert.recipe import Recipe
from tunnel_lightning.taps import Tap


@dataclass(frozen=True)
class Generated:
    """Images made for K classes through L layers, from S starts each; curves have P points. All on the CPU.

    Attributes:
        layers: the layers' names.
        classes: the classes.
        images: ``[L, K, S, C, H, W]``, pixels as they came out.
        steps: how many steps were done at each point of the curves ``[P]``.
        score: the class's score ``[L, K, S, P]``.
        recipe: how.
    """

    layers: tuple[str, ...]
    classes: tuple[int, ...]
    images: Tensor
    steps: Tensor
    score: Tensor
    recipe: Recipe


def generate(
    network: nn.Module,
    layers: Sequence[Tap | str],
    readouts: Sequence[Readout] | None,
    classes: Sequence[int],
    shape: Sequence[int],
    recipe: Recipe | None = None,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    model: nn.Module | None = None,
    starts: int = 1,
    seed: int = 0,
    points: int = 50,
    memory_gb: float = 2.0,
    progress: Progress | None = None,
) -> Generated:
    """Make images for classes through chosen layers: from noise, the class's score there is driven up.

    The paper's pages ascend a class's output before the softmax, with the same noise, step and blur as the inversion
    (``recipe.scale`` weighs the score). Here the score is read at any layer by a linear probe, which makes the layers
    comparable: every one of them is asked for the same classes. To approach a class's mean embedding instead, invert
    images of the class.

    Args:
        network: the network whose layers have these names.
        layers: taps of it, or names.
        readouts: for each layer what reads class scores ``[B, K]`` of its whole output, as ``objective.readout``
            makes them of a probe; None where the layers give class scores themselves, as the head does.
        classes: class indices.
        shape: (C, H, W) of one image.
        recipe: how; the paper's by default. Its loss is not used, its ``relative`` neither.
        mean: as for :func:`invert`, and so are the others.
        std: see there.
        model: see there.
        starts: S, from how many noises each class is made. Class k begins with the same noises whatever the layer.
        seed: see there.
        points: see there.
        memory_gb: see there.
        progress: see there.

    Raises:
        ValueError: as :func:`invert`; or another number of readouts than of layers.

    Example:
        >>> from tunnel_lightning.analysis.invert.recipe import preset
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
        >>> made = generate(network, ["1"], None, [0, 2], (1, 4, 4), preset("badger-sharp", steps=20))
        >>> made.images.shape, bool((made.score[..., -1] > made.score[..., 0]).all())
        (torch.Size([1, 2, 1, 1, 4, 4]), True)
    """
    recipe = recipe or Recipe()
    if not classes:
        raise ValueError("generate: no class is named")
    with_all = Descents(network, recipe, shape, mean, std, model, starts, seed, points, memory_gb, progress)
    begin = noise(len(classes), starts, shape, recipe, seed).to(with_all.like).flatten(0, 1)
    wanted = torch.tensor(list(classes), device=begin.device).repeat_interleave(starts)
    images, scores = [], []
    with with_all.still():
        taps = with_all.layers(layers)
        reads: Sequence[Readout] = [nn.Identity()] * len(taps) if readouts is None else readouts
        if len(reads) != len(taps):
            raise ValueError(f"generate: {len(reads)} readouts for {len(taps)} layers; give one of each")
        for number, (layer, read) in enumerate(zip(taps, reads, strict=True), 1):
            with with_all.embedding(layer) as embed:
                _check(read, embed, begin[:1], classes)
                made = with_all.run(
                    embed,
                    lambda part, read=read: ClassScore(read, wanted[part], recipe.scale),  # type: ignore[misc]
                    begin,
                    begin,
                    f"{layer.name} ({number} of {len(taps)})",
                )
            images.append(made.images.unflatten(0, (len(classes), starts)))
            scores.append(made.measure.unflatten(0, (len(classes), starts)))
    return Generated(
        tuple(layer.name for layer in taps),
        tuple(classes),
        torch.stack(images),
        torch.tensor(with_all.at),
        torch.stack(scores),
        recipe,
    )


def _check(read: Readout, embed: Embedding, image: Tensor, classes: Sequence[int]) -> None:
    with torch.no_grad():
        scores = read(embed(image))
    if scores.ndim != 2 or len(scores) != 1:
        raise ValueError(
            f"the layer {embed.layer.name} gives {list(scores.shape)} for one image and no class scores: give a "
            "readout, or choose the classifier"
        )
    if not 0 <= min(classes) <= max(classes) < scores.shape[1]:
        raise ValueError(
            f"generate: classes {min(classes)} to {max(classes)} are asked for, and scores are of {scores.shape[1]} "
            "classes, counted from 0"
        )
