"""How an input is recovered: the settings of a descent on pixels, and the named ones."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal, get_args

from torch import Tensor

Optimizer = Literal["gradient", "adam", "lbfgs"]
Loss = Literal["l1", "l2"]
Decay = Literal["none", "linear"]
Units = Literal["network", "pixels"]


@dataclass(frozen=True)
class Recipe:
    """Settings of a descent on pixels in [0, 1]; the defaults are those of ``badger``.

    After Badger, "Depth and Representation in Vision Models", 2022 (arXiv 2211.06496). One step: the loss and its
    gradient with respect to the pixels, the optimizer's step, then the blur, then the clamp.

    Attributes:
        name: the preset it began as (see :func:`preset`).
        optimizer: ``gradient`` (a plain step), ``adam``, or ``lbfgs`` (torch's, with a strong Wolfe line search; one
            image after the other, since a line search over several would couple them).
        lr: the step size; of ``lbfgs`` the first length its line search tries.
        units: what a plain step of ``lr`` is taken in. ``network``: units of the network's input, which in the paper
            were the pixels; where the data is divided by a deviation, that is a step of ``lr`` times its square in
            pixels. ``pixels``: those themselves; on small normalised images the paper's step then runs away from the
            embedding. The other optimizers do not heed it.
        decay: ``none`` (constant, as the paper) or ``linear``, from ``lr`` to ``lr_end`` in the last step.
        lr_end: the last step's size under ``linear`` (1e-4: the paper's controls).
        steps: how many.
        loss: ``l1``: sum of ``|O(a) - O(target)|``, the paper's; ``l2``: sum of squares. O is the layer's whole
            output.
        scale: what the loss is multiplied by.
        relative: divide the loss by that of an output of zeros, ``|O(target)|``, so that neither the layer's size nor
            the scale of its activations tells in the step, or in the weight of ``tv``.
        blur: a 3 x 3 Gaussian blur after each step.
        blur_start: its standard deviation after the first step, in pixels.
        blur_end: the same after the last; linear in between.
        tv: weight of the total variation (mean absolute difference of neighbouring pixels) added to the loss.
        jitter: each step shows the network the image rolled by up to this many pixels either way.
        clamp: pixels are kept in [0, 1] after each step.
        start_mean: mean of the noise that the descent starts from.
        start_std: its standard deviation.

    Raises:
        ValueError: a setting out of range, or one that does not go with L-BFGS.

    Example:
        >>> Recipe().sigma(0), Recipe().sigma(499)
        (2.4, 0.4)
    """

    name: str = "badger"
    optimizer: Optimizer = "gradient"
    lr: float = 0.1
    units: Units = "network"
    decay: Decay = "none"
    lr_end: float = 1e-4
    steps: int = 500
    loss: Loss = "l1"
    scale: float = 0.15
    relative: bool = False
    blur: bool = True
    blur_start: float = 2.4
    blur_end: float = 0.4
    tv: float = 0.0
    jitter: int = 0
    clamp: bool = False
    start_mean: float = 0.7
    start_std: float = 0.05

    def __post_init__(self) -> None:
        for setting, known in (("optimizer", Optimizer), ("loss", Loss), ("decay", Decay), ("units", Units)):
            if getattr(self, setting) not in get_args(known):
                raise ValueError(
                    f"recipe: {setting} is {getattr(self, setting)!r}; choose one of {', '.join(get_args(known))}"
                )
        for setting in ("lr", "lr_end", "scale", "blur_start", "blur_end"):
            value = getattr(self, setting)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"recipe: {setting} is {value}; give a positive number")
        for setting in ("tv", "jitter", "start_std"):
            value = getattr(self, setting)
            if not (value >= 0 and math.isfinite(value)):
                raise ValueError(f"recipe: {setting} is {value}; give 0 or more")
        if not math.isfinite(self.start_mean):
            raise ValueError(f"recipe: start_mean is {self.start_mean}; give a number")
        if self.steps < 1:
            raise ValueError(f"recipe: steps is {self.steps}; give at least 1")
        moving = [
            f"{setting}={value!r}".lower()
            for setting, value, off in (
                ("blur", self.blur, False),
                ("jitter", self.jitter, 0),
                ("clamp", self.clamp, False),
                ("decay", self.decay, "none"),
            )
            if value != off
        ]
        if self.optimizer == "lbfgs" and moving:
            raise ValueError(
                f"recipe: L-BFGS needs a loss that stays the same and pixels that only it moves, so "
                f"{', '.join(moving)} can't go with it: begin with recipe lbfgs, or choose the optimizer adam"
            )

    def rate(self, step: int) -> float:
        """The step size of ``step``, from 0.

        Example:
            >>> Recipe(decay="linear", lr=1.0, lr_end=0.5, steps=3).rate(1)
            0.75
        """
        if self.decay == "none":
            return self.lr
        return _between(self.lr, self.lr_end, step, self.steps)

    def sigma(self, step: int) -> float:
        """Standard deviation of the blur after ``step``, from 0."""
        return _between(self.blur_start, self.blur_end, step, self.steps)

    def changes(self) -> dict[str, Any]:
        """The settings that are not those of the preset it is named after."""
        like = PRESETS.get(self.name, PRESETS["badger"])
        return {
            key: value for key, value in asdict(self).items() if value != getattr(like, key) and key != "name"
        }

    def __str__(self) -> str:
        """Its name, and what was changed.

        Example:
            >>> str(preset("badger", steps=100)), str(preset("badger-sharp"))
            ('badger (steps 100)', 'badger-sharp')
        """
        changed = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in self.changes().items())
        return f"{self.name} ({changed})" if changed else self.name


PRESETS: dict[str, Recipe] = {
    "badger": Recipe(),
    "badger-sharp": Recipe(name="badger-sharp", blur=False),
    "adam": Recipe(
        name="adam", optimizer="adam", lr=0.05, decay="linear", lr_end=1e-3, loss="l2", scale=1.0, relative=True,
        blur=False, tv=1e-2, clamp=True, start_mean=0.5,
    ),
    "lbfgs": Recipe(
        name="lbfgs", optimizer="lbfgs", lr=1.0, loss="l2", scale=1.0, relative=True, blur=False, tv=1e-4,
        start_mean=0.5,
    ),
}  # fmt: skip
"""The named recipes; `RECIPE_WORDS` says what each is."""

RECIPE_WORDS: Mapping[str, str] = {
    "badger": "the paper's: the sum of absolute differences, 500 plain steps of 0.1, each followed by a blur",
    "badger-sharp": "the paper's without the blur",
    "adam": "Adam on squared differences, total variation, pixels kept in range",
    "lbfgs": "L-BFGS on squared differences, total variation; one image after the other",
}


def preset(name: str = "badger", /, **changes: Any) -> Recipe:
    """A named recipe, with settings of one's own.

    Args:
        name: ``badger``, ``badger-sharp``, ``adam`` or ``lbfgs``.
        **changes: settings of :class:`Recipe`; those that are None stay as the preset has them.

    Raises:
        ValueError: no such preset or setting, or a setting out of range.

    Example:
        >>> preset("badger-sharp", steps=100, lr=None).lr
        0.1
    """
    if name not in PRESETS:
        raise ValueError(f"no recipe {name!r}: choose one of {', '.join(PRESETS)}")
    known = [field.name for field in fields(Recipe) if field.name != "name"]
    if unknown := [key for key in changes if key not in known]:
        raise ValueError(f"a recipe has no setting {unknown[0]!r}: choose among {', '.join(known)}")
    return replace(PRESETS[name], **{key: value for key, value in changes.items() if value is not None})


def _between(first: float, last: float, step: int, steps: int) -> float:
    way = step / (steps - 1) if steps > 1 else 0.0
    return first * (1 - way) + last * way


def blurred(images: Tensor, sigma: float) -> Tensor:
    """Images under a 3 x 3 Gaussian blur, the edge mirrored.

    Args:
        images: ``[B, C, H, W]``.
        sigma: standard deviation in pixels.

    Example:
        >>> import torch
        >>> bool(torch.allclose(blurred(torch.ones(1, 1, 4, 4), 2.4), torch.ones(1, 1, 4, 4)))
        True
    """
    from torchvision.transforms.v2.functional import gaussian_blur

    return gaussian_blur(images, [3, 3], [sigma, sigma])
