"""Characters drawn in many fonts, shaken and noisy: a task whose difficulty is a set of dials."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tunnel_lightning.data.base import ImageData, Part, Shape, check_range
from tunnel_lightning.data.fonts import CANVAS, characters_of, draw, text_fonts
from tunnel_lightning.data.images import Pool

_PARTS: dict[Part, int] = {"train": 0, "val": 1, "test": 2}
_FRAME = 48  # side of the part of a drawing that fills an image at scale 1
_OVERSAMPLING = 2


class Glyphs(ImageData):
    """Characters rendered from the fonts that matplotlib ships; needs no download, any size, any number.

    Every image is one character in a random font, turned, slanted, scaled and shifted, thinner or bolder,
    with random grey levels of ink and paper and noise. At the defaults (26 classes) ridge regression on the
    pixels reads .14, an MLP of 12 x 256 reaches about .57, a small convolutional network .92. With
    ``polarity="both"`` the pixels tell a linear probe nothing at all: ink and paper cancel on average.

    The images of a character follow from ``seed``, the part and the character alone: the same seed gives the
    same bytes, and a larger set or alphabet holds the smaller one. A font that lacks a character is left out
    for it; no image is blank.

    Args:
        alphabet: `ALPHABETS` joined by "+" ("latin+greek+cyrillic"), or the characters themselves.
        samples_per_class: Training images of every class.
        val_samples_per_class: Validation images of every class.
        test_samples_per_class: Test images of every class.
        shift: Largest move up, down, left or right, as a share of the image's side.
        scale: Largest change of size, as a factor: 0.25 gives 0.8 to 1.25.
        slant: Largest shear, as sideways move per height.
        weight: Largest change of the strokes, in twentieths of the font's height on either side.
        rotation: Largest turn, in degrees.
        contrast: Smallest difference of ink and paper, of the range of grey levels; 1 is black on white.
        noise: Standard deviation of the noise, of the range of grey levels.
        polarity: ``dark`` ink on light paper, ``light`` on dark, or ``both`` at random.
        fonts: Patterns of font names ("DejaVu*"); None for all.
        image_size: Height and width at which the characters are drawn.
        batch_size: Images of a batch, on each process.
        classes: Only the first so many characters, or the listed ones by position.
        channels: 1 for grey, 3 for RGB.
        augment: Random crops of the training images (from a reflected border of an eighth of the size).
        seed: Of images, order and augmentation.
        loader: ``device``, ``workers`` or ``auto``, see `ImageData`.
        num_workers: Reading processes, for ``workers``.
        device_limit_mb: Largest part, in MB, that ``auto`` puts on the device.

    Raises:
        ValueError: A number out of its range, a character that no (chosen) font shows.

    Example:
        >>> glyphs = Glyphs(samples_per_class=2)
        >>> glyphs.num_classes, glyphs.input_shape, glyphs.class_names[:3]
        (26, (1, 16, 16), ['A', 'B', 'C'])
        >>> Glyphs("latin+latin-lower+greek+cyrillic").num_classes
        84
    """

    flips = False

    def __init__(
        self,
        alphabet: str = "latin",
        samples_per_class: int = 350,
        val_samples_per_class: int = 80,
        test_samples_per_class: int = 40,
        shift: float = 0.13,
        scale: float = 0.3,
        slant: float = 0.3,
        weight: float = 1.0,
        rotation: float = 20.0,
        contrast: float = 0.35,
        noise: float = 0.08,
        polarity: Literal["dark", "light", "both"] = "light",
        fonts: list[str] | None = None,
        image_size: int = 16,
        batch_size: int = 128,
        classes: int | list[int] | None = None,
        channels: int | None = None,
        augment: bool = False,
        seed: int = 0,
        loader: Literal["auto", "device", "workers"] = "auto",
        num_workers: int = 2,
        device_limit_mb: int = 1024,
    ) -> None:
        super().__init__(
            batch_size=batch_size,
            classes=classes,
            samples_per_class=samples_per_class,
            image_size=image_size,
            channels=channels,
            augment=augment,
            seed=seed,
            loader=loader,
            num_workers=num_workers,
            device_limit_mb=device_limit_mb,
        )
        check_range(self, "val_samples_per_class", val_samples_per_class, 1)
        check_range(self, "test_samples_per_class", test_samples_per_class, 1)
        check_range(self, "shift", shift, 0, 0.3)
        check_range(self, "scale", scale, 0, 1)
        check_range(self, "slant", slant, 0, 1)
        check_range(self, "weight", weight, 0, 2)
        check_range(self, "rotation", rotation, 0, 180)
        check_range(self, "contrast", contrast, 0.1, 1)
        check_range(self, "noise", noise, 0, 1)
        check_range(self, "image_size", image_size, 8, 128)
        if polarity not in ("dark", "light", "both"):
            raise ValueError(f"Glyphs: polarity must be dark, light or both, got {polarity!r}.")
        self.alphabet = alphabet
        self.shift, self.scale, self.slant, self.weight = shift, scale, slant, weight
        self.rotation, self.contrast, self.noise, self.polarity = rotation, contrast, noise, polarity
        self.fonts = fonts
        self.side = image_size
        self._counts: dict[Part, int] = {
            "train": samples_per_class,
            "val": val_samples_per_class,
            "test": test_samples_per_class,
        }
        self._characters = characters_of(alphabet)
        self._fonts = [f for f in text_fonts() if fonts is None or any(fnmatch(f, p) for p in fonts)]
        if not self._fonts:
            raise ValueError(f"Glyphs: no font matches {fonts}: choose from {', '.join(text_fonts())}.")

    @property
    def native_shape(self) -> Shape:
        """One grey channel of ``image_size``."""
        return (1, self.side, self.side)

    @property
    def all_class_names(self) -> list[str]:
        """The characters."""
        return list(self._characters)

    def _load(self, part: Part) -> Pool:
        # Only the chosen classes are drawn; the base relabels them.
        images = torch.cat([self._images(self._characters[each], part) for each in self.class_ids])
        labels = torch.tensor(self.class_ids).repeat_interleave(self._counts[part])
        # Mixed, so that the first so many images of a part are a fair sample of it.
        order = np.random.default_rng([self.seed, _PARTS[part]]).permutation(len(labels))
        return Pool(images, labels).take(order)

    def _images(self, character: str, part: Part) -> Tensor:
        """All images of one character in one part: uint8 ``[n, 1, side, side]``."""
        drawings = [pixels for font in self._fonts if (pixels := draw(character, font)) is not None]
        if not drawings:
            raise ValueError(
                f"Glyphs: none of the chosen fonts shows the character {character!r}: choose others, or "
                "leave it out of the alphabet."
            )
        count, side = self._counts[part], self.side
        rng = np.random.default_rng([self.seed, _PARTS[part], ord(character)])
        # One row of numbers for each image, so that a longer part begins with the images of a shorter one.
        dials = rng.random((count, 10), dtype=np.float32)
        noise = np.random.default_rng([self.seed, _PARTS[part], ord(character), 1]).standard_normal(
            (count, 1, side, side), dtype=np.float32
        )
        which = (dials[:, 0] * len(drawings)).astype(np.int64)
        spread = torch.from_numpy(dials[:, 1:7] * 2 - 1)
        ink = self._stroke(torch.from_numpy(np.stack(drawings))[torch.from_numpy(which)], spread[:, 0])
        coverage = self._warp(ink, spread[:, 1:])
        # A thin stroke, spread over the large pixels of a small image, is made as dark as a thick one.
        peak = coverage.amax((1, 2, 3), keepdim=True)
        lost = peak.flatten() < 0.2
        if lost.any():  # moved or thinned away: shown straight and as it is drawn
            plain = torch.from_numpy(np.stack(drawings))[torch.from_numpy(which)][lost]
            coverage[lost] = self._warp(plain[:, None].float() / 255, torch.zeros(int(lost.sum()), 5))
            peak = coverage.amax((1, 2, 3), keepdim=True)
        coverage /= peak
        difference = self.contrast + (1 - self.contrast) * dials[:, 7]
        darkest = (1 - difference) * dials[:, 8]
        dark_ink = {"dark": 1.0, "light": 0.0}.get(self.polarity, dials[:, 9] < 0.5)
        paper = np.where(dark_ink, darkest + difference, darkest).reshape(-1, 1, 1, 1)
        step = np.where(dark_ink, -difference, difference).reshape(-1, 1, 1, 1)
        ink, grain = coverage * torch.from_numpy(step), self.noise * torch.from_numpy(noise)
        grey = torch.from_numpy(paper) + ink + grain
        return (grey * 255).round().clamp(0, 255).to(torch.uint8)

    def _stroke(self, drawings: Tensor, spread: Tensor) -> Tensor:
        """Thinner or bolder strokes: float ``[n, 1, CANVAS, CANVAS]`` in 0..1 from uint8 drawings."""
        ink = drawings[:, None].float() / 255
        # A twentieth of the em is two pixels; between whole pixels the two neighbours are mixed.
        radius = spread * self.weight * 2
        result, grown = ink.clone(), ink
        for step in range(int(np.ceil(2 * self.weight))):
            rows = torch.nonzero(radius > step).flatten()
            wider = F.max_pool2d(grown[rows], 3, 1, 1)
            result[rows] = torch.lerp(
                grown[rows], wider, (radius[rows] - step).clamp(max=1)[:, None, None, None]
            )
            grown = grown.index_copy(0, rows, wider)
        # A hairline is two pixels wide and would vanish: thinner strokes keep a third of what they lose.
        rows = torch.nonzero(radius < 0).flatten()
        amount = (-radius[rows]).clamp(max=2 / 3)[:, None, None, None]
        result[rows] = torch.lerp(ink[rows], -F.max_pool2d(-ink[rows], 3, 1, 1), amount)
        return result

    def _warp(self, ink: Tensor, spread: Tensor) -> Tensor:
        """Turn, slant, scale and shift: float ``[n, 1, side, side]``, the share of ink in each pixel."""
        turn = spread[:, 0] * float(np.deg2rad(self.rotation))
        size = (1 + self.scale) ** spread[:, 1] * (CANVAS / _FRAME)
        shear = spread[:, 2] * self.slant
        cos, sin = torch.cos(turn) / size, torch.sin(turn) / size
        # Rows of the map from image to drawing, both in -1..1.
        theta = torch.stack(
            [
                torch.stack([cos + shear * sin, sin + shear * cos, spread[:, 3] * 2 * self.shift], 1),
                torch.stack([-sin, cos, spread[:, 4] * 2 * self.shift], 1),
            ],
            1,
        )
        fine = self.side * _OVERSAMPLING
        grid = F.affine_grid(theta, [len(ink), 1, fine, fine], align_corners=False)
        return F.avg_pool2d(F.grid_sample(ink, grid, align_corners=False), _OVERSAMPLING)
