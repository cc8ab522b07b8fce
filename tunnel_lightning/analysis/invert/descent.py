"""Descent on pixels: from noise to an image of which a layer makes what is asked.

A layer's images and starts are one batch (in chunks, where memory asks for it); the network runs as deep as the layer
and no deeper; nothing is read off the device before a descent is over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.functional.image import total_variation

from tunnel_lightning.analysis.invert.objective import (
    Embedding,
    Objective,
    bytes_of_one,
    constants,
    resolved,
    still,
)
from tunnel_lightning.analysis.invert.recipe import Recipe, blurred
from tunnel_lightning.taps import Tap

Progress = Callable[[str, int, int], None]
"""Told ``(what, done, in all)``."""


def noise(count: int, starts: int, shape: Sequence[int], recipe: Recipe, seed: int) -> Tensor:
    """What the descents of ``count`` images begin with, ``[count, starts, C, H, W]``, float32.

    An image's starts do not depend on how many images there are, on the layer or on the network.

    Example:
        >>> a, b = (noise(n, 2, (1, 4, 4), Recipe(), seed=0) for n in (1, 3))
        >>> torch.equal(a, b[:1])
        True
    """
    drawn = torch.randn(count, starts, *shape, generator=torch.Generator().manual_seed(seed))
    return recipe.start_mean + recipe.start_std * drawn


def points_of(steps: int, count: int = 50) -> list[int]:
    """Numbers of steps at which curves have a point: 0, all, and about ``count`` in all, evenly spaced.

    Example:
        >>> points_of(500)[:3], points_of(500)[-1], points_of(3)
        ([0, 10, 20], 500, [0, 1, 2, 3])
    """
    count = min(max(count, 1), steps)
    return sorted({round(i * steps / count) for i in range(count + 1)})


class Descended(NamedTuple):
    """Where descents of B images came, and how: curves have P points.

    Attributes:
        images: the last ones ``[B, C, H, W]``.
        loss: what was minimised, without the total variation ``[B, P]``.
        measure: the objective's own ``[B, P]``.
        moved: distance ``|a - a_g|`` of pixels from the images compared with ``[B, P]``.
    """

    images: Tensor
    loss: Tensor
    measure: Tensor
    moved: Tensor


def descend(
    embed: Embedding,
    objective: Objective,
    begin: Tensor,
    origin: Tensor,
    recipe: Recipe,
    points: Sequence[int],
    seed: int = 0,
    tell: Callable[[int], None] | None = None,
) -> Descended:
    """One descent of a batch of images, each by itself, on the device that they are on.

    Args:
        embed: the layer, its hook on the network (inside ``still``).
        objective: what is asked of the layer's output for this batch.
        begin: first images ``[B, C, H, W]``.
        origin: images that the distance of pixels is measured from, the same shape.
        recipe: how.
        points: numbers of steps at which curves have a point, as :func:`points_of` gives them.
        seed: draws the jitter, the same for every image of a step.
        tell: told at every point how many steps are done.
    """
    curves: list[Tensor] = []
    x = begin.clone().requires_grad_()

    def keep(step: int, output: Tensor) -> None:
        with torch.no_grad():
            away = torch.linalg.vector_norm((x - origin).flatten(1), dim=1)
            curves.append(torch.stack([objective.loss(output), objective.measure(output), away]))
        if tell is not None:
            tell(step)

    if recipe.optimizer == "lbfgs":
        _lbfgs(embed, objective, x, recipe, points, keep)
    else:
        _first_order(embed, objective, x, recipe, points, seed, keep)
    with torch.no_grad():
        keep(recipe.steps, embed(x))
    loss, measure, moved = torch.stack(curves, -1)
    return Descended(x.detach(), loss, measure, moved)


Keep = Callable[[int, Tensor], None]


def _first_order(
    embed: Embedding,
    objective: Objective,
    x: Tensor,
    recipe: Recipe,
    points: Sequence[int],
    seed: int,
    keep: Keep,
) -> None:
    adam = recipe.optimizer == "adam"
    optimizer = torch.optim.Adam([x], recipe.lr) if adam else torch.optim.SGD([x], recipe.lr)
    width = None if adam or recipe.units == "pixels" else embed.constants(x)[1].square()
    generator = torch.Generator().manual_seed(seed)
    seen = frozenset(points)
    for step in range(recipe.steps):
        if recipe.jitter:
            ends = -recipe.jitter, recipe.jitter + 1
            offset = tuple(torch.randint(*ends, (2,), generator=generator).tolist())
            if step in seen:
                with torch.no_grad():
                    keep(step, embed(x))
            output = embed(x.roll(offset, (2, 3)))
        else:
            output = embed(x)
            if step in seen:
                keep(step, output)
        (gradient,) = torch.autograd.grad(_total(objective, output, x, recipe), x)
        x.grad = gradient if width is None else gradient * width
        optimizer.param_groups[0]["lr"] = recipe.rate(step)
        optimizer.step()
        if recipe.blur or recipe.clamp:
            with torch.no_grad():
                if recipe.blur:
                    x.copy_(blurred(x, recipe.sigma(step)))
                if recipe.clamp:
                    x.clamp_(0, 1)


def _lbfgs(
    embed: Embedding, objective: Objective, x: Tensor, recipe: Recipe, points: Sequence[int], keep: Keep
) -> None:
    """For one image: torch's L-BFGS would choose one step for all of a batch."""
    optimizer = torch.optim.LBFGS([x], recipe.lr, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        loss = _total(objective, embed(x), x, recipe)
        (x.grad,) = torch.autograd.grad(loss, x)
        return loss

    for done, until in pairwise(points):
        with torch.no_grad():
            keep(done, embed(x))
        group = optimizer.param_groups[0]
        group["max_iter"], group["max_eval"] = until - done, 25 * (until - done)
        optimizer.step(closure)


def _total(objective: Objective, output: Tensor, x: Tensor, recipe: Recipe) -> Tensor:
    """The loss of a batch: a sum over images, so that none tells in another's gradient."""
    loss = objective.loss(output).sum()
    if recipe.tv:
        loss = loss + recipe.tv * total_variation(x) / x[0].numel()
    return loss


@dataclass
class Descents:
    """What the descents at several layers of a network have in common.

    Attributes:
        network: the network whose layers have these names.
        recipe: how.
        shape: (C, H, W) of one image.
        mean: of each channel, or None for pixels as they are.
        std: the same, standard deviations.
        model: what is called on images.
        starts: S.
        seed: draws starts, references and jitter.
        points: about how many points curves have.
        memory_gb: what the images under way may take.
        progress: told ``(what, done, in all)``.

    Raises:
        ValueError: a setting out of range, or a mean or std for another number of channels.
    """

    network: nn.Module
    recipe: Recipe
    shape: Sequence[int]
    mean: Sequence[float] | None
    std: Sequence[float] | None
    model: nn.Module | None
    starts: int
    seed: int
    points: int
    memory_gb: float
    progress: Progress | None

    def __post_init__(self) -> None:
        channels, *sides = self.shape
        if self.starts < 1:
            raise ValueError(f"starts is {self.starts}; give at least 1")
        if not self.memory_gb > 0:
            raise ValueError(f"memory_gb is {self.memory_gb}; give a positive number of GB")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if values is not None and len(values) != channels:
                raise ValueError(
                    f"{name} has {len(values)} values and the images {channels} channels; give one of each"
                )
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}; give positive numbers")
        if self.recipe.blur and min(sides) < 2:
            raise ValueError(
                f"images of {'x'.join(map(str, sides))} can't be blurred: choose recipe badger-sharp"
            )
        if self.recipe.jitter >= min(sides):
            raise ValueError(
                f"jitter {self.recipe.jitter} on images of {'x'.join(map(str, sides))}; choose less"
            )

    @property
    def at(self) -> list[int]:
        """The steps at which curves have a point."""
        return points_of(self.recipe.steps, self.points)

    @property
    def like(self) -> Tensor:
        """A tensor of the network's device and precision."""
        like = next((p for p in self.network.parameters() if p.is_floating_point()), None)
        return torch.empty(0) if like is None else like.detach()

    def layers(self, asked: Sequence[Tap | str]) -> list[Tap]:
        """The layers as taps (inside ``still``)."""
        grey = torch.full((1, *self.shape), 0.5).to(self.like)
        mean, std = constants(grey, self.mean, self.std)
        return resolved(self.network, asked, (grey - mean) / std, self.model)

    @contextmanager
    def still(self) -> Iterator[None]:
        """The network as an unchanging function of its input."""
        with still(self.model if self.model is not None else self.network):
            yield

    def embedding(self, layer: Tap) -> Embedding:
        """The layer as a function of pixels."""
        return Embedding(self.network, layer, self.mean, self.std, self.model)

    def chunk(self, embed: Embedding) -> int:
        """How many images fit the memory at once, at least one."""
        return max(1, int(self.memory_gb * 2**30 / (2 * bytes_of_one(embed, self.shape, self.like))))

    def run(
        self,
        embed: Embedding,
        objective_of: Callable[[slice], Objective],
        begin: Tensor,
        origin: Tensor,
        name: str,
    ) -> Descended:
        """Descents of B images in chunks, their results together and on the CPU.

        Args:
            embed: the layer, its hook on the network (inside ``still``).
            objective_of: what is asked of some of the images.
            begin: first images ``[B, C, H, W]``.
            origin: images that the distance of pixels is measured from, the same shape.
            name: what the progress is told.
        """
        size = 1 if self.recipe.optimizer == "lbfgs" else self.chunk(embed)
        parts = [slice(i, i + size) for i in range(0, len(begin), size)]
        found = []
        for number, part in enumerate(parts):

            def tell(step: int, before: int = number * self.recipe.steps) -> None:
                if self.progress is not None:
                    self.progress(name, before + step, len(parts) * self.recipe.steps)

            made = descend(
                embed, objective_of(part), begin[part], origin[part], self.recipe, self.at, self.seed, tell
            )
            found.append([each.cpu() for each in made])
        return Descended(*(torch.cat(each) for each in zip(*found, strict=True)))
