"""What `invert` is asked: which layers, which images, how they are recovered, and what is shown beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

from tunnel_lightning.analysis.invert.recipe import Loss, Optimizer, Recipe, Units, preset
from tunnel_lightning.analysis.options import GIB
from tunnel_lightning.runs.lists import listed

RecipeName = Literal["badger", "badger-sharp", "adam", "lbfgs"]
SETTINGS = ("optimizer", "lr", "units", "steps", "loss", "blur", "tv", "jitter", "clamp")
"""Options that change a recipe; None leaves the recipe's own."""


@dataclass(frozen=True)
class Options:
    """Settings of an inversion.

    Attributes:
        layers: a kind or glob, or several with commas between, as `taps.layers`; all that they match. By default up
            to `most_layers` of those the run watched, spread evenly over the depth: the first, the last, and those at
            which the tunnel starts, where that is known.
        most_layers: how many layers where none are named.
        images: test images to recover, of as many classes as there are.
        files: image files to recover in their place, a list or with commas between; cut and resized to the network's
            input.
        starts: descents for each layer and image, each from noise of its own.
        recipe: badger (the paper's: 500 plain steps, each followed by a blur), badger-sharp (without the blur), adam
            (total variation, pixels kept in range) or lbfgs.
        optimizer: of the recipe: gradient, adam or lbfgs.
        lr: of the recipe: the step size.
        units: of the recipe: what a plain step is taken in, of the input (as the paper's, whose network took
            pixels as they are) or of pixels.
        steps: of the recipe: how many.
        loss: of the recipe: l1 or l2.
        blur: of the recipe: whether a Gaussian blur follows each step.
        tv: of the recipe: weight of the total variation.
        jitter: of the recipe: pixels that the image is shifted by at random in each step.
        clamp: of the recipe: keep pixels in their range.
        untrained: invert the network as it was before training, too.
        sigma: of the noise on the image that is the reference, of pixels from 0 to 1. The paper's text says 1/25.
        neighbours: how many training images nearest to each image's embedding, and to the recovered one's, are
            looked at; 0 for none.
        neighbour_images: training images among which they are looked for.
        others: recover images of the other sets and of noise, too.
        generate: make images of classes from noise: of each layer's ridge probe the likelihood of a class is raised.
        noise_network: train the network on images of pure noise with random labels, and invert it, too. Badger's
            has 10,000 images of 100 classes, batches of 128 and 90 epochs of Adam at 1e-4.
        noise_images: images that it is trained on.
        noise_classes: classes of these; at most the network's outputs where it can't be made with other ones.
        noise_epochs: how often it sees them.
        noise_lr: Adam's step size.
        seed: of the choice of images, of starts, and of weights that are drawn anew.
        memory_gb: GiB that a descent may take beside the network.

    Raises:
        ValueError: a number out of range, or a recipe's settings that don't go together.

    Example:
        >>> str(Options(recipe="adam", steps=100).how)
        'adam (steps 100)'
    """

    layers: str | list[str] | None = None
    most_layers: int = 8
    images: int = 5
    files: str | list[str] | None = None
    starts: int = 3
    recipe: RecipeName = "badger"
    optimizer: Optimizer | None = None
    lr: float | None = None
    units: Units | None = None
    steps: int | None = None
    loss: Loss | None = None
    blur: bool | None = None
    tv: float | None = None
    jitter: int | None = None
    clamp: bool | None = None
    untrained: bool = True
    sigma: float = 0.04
    neighbours: int = 3
    neighbour_images: int = 2_000
    others: bool = False
    generate: bool = False
    noise_network: bool = False
    noise_images: int = 2_000
    noise_classes: int = 100
    noise_epochs: int = 30
    noise_lr: float = 1e-3
    seed: int = 0
    memory_gb: float = 4.0

    def __post_init__(self) -> None:
        if self.files is None and self.images < 1:
            raise ValueError(f"there is nothing to recover with {self.images} images: give at least 1")
        if self.files is not None and not self.paths:
            raise ValueError("--files names no file: give at least one image")
        if self.layers is not None and not self.patterns:
            raise ValueError("--layers names no layer: give a kind or glob, or leave it out")
        least = {"most_layers": 2, "starts": 1, "neighbours": 0, "neighbour_images": 1, "noise_images": 2}
        least |= {"noise_classes": 2, "noise_epochs": 1}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be at least {low}, got {getattr(self, name)}")
        for name in ("sigma", "memory_gb", "noise_lr"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}")
        self.how  # noqa: B018 - says what does not go together

    @cached_property
    def how(self) -> Recipe:
        """The recipe with its settings."""
        return preset(self.recipe, **{name: getattr(self, name) for name in SETTINGS})

    @property
    def paths(self) -> tuple[str, ...]:
        """The files."""
        return _split(self.files)

    @property
    def patterns(self) -> tuple[str, ...]:
        """The layers that are asked for; none for a choice over the depth."""
        return _split(self.layers)

    @property
    def memory(self) -> int:
        """The memory limit in bytes."""
        return int(self.memory_gb * GIB)

    def settings(self) -> dict[str, Any]:
        """All of it as plain values, the recipe's settings among them."""
        found = {key: value for key, value in asdict(self).items() if key not in SETTINGS}
        return {**found, "recipe": asdict(self.how)}


def _split(given: str | Sequence[str] | None) -> tuple[str, ...]:
    return () if given is None else listed(given)
