"""The images that are recovered, as pixels in [0, 1], and the layers they are recovered from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.data.images import fit
from tunnel_lightning.taps import Tap

NOISE, FILES = "noise", "files"
NOISE_MEAN, NOISE_STD = 0.5, 0.25
"""Of an image of noise: Badger's, whose network is trained on N(0.5, 0.25)."""


@dataclass(frozen=True)
class Pixels:
    """How a network's images are made of pixels in [0, 1]: ``(pixels - mean) / std``, for each channel.

    Attributes:
        mean: of each channel.
        std: of each channel.
        note: what a reader must know of it; mostly empty.

    Example:
        >>> pixels = Pixels((0.5,), (0.25,))
        >>> pixels.of(pixels.shown(torch.full((1, 1, 2, 2), 0.75))).mean().item()
        0.75
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    note: str = ""

    def shown(self, pixels: Tensor) -> Tensor:
        """What the network is shown, ``[B, C, H, W]``."""
        return (pixels - self._of(self.mean, pixels)) / self._of(self.std, pixels)

    def of(self, images: Tensor) -> Tensor:
        """Pixels in [0, 1] of what the network is shown, ``[B, C, H, W]``."""
        return (images * self._of(self.std, images) + self._of(self.mean, images)).clamp(0, 1)

    @staticmethod
    def _of(values: Sequence[float], like: Tensor) -> Tensor:
        return torch.tensor(values, dtype=like.dtype, device=like.device)[:, None, None]


def pixels_of(data: LightningDataModule | None, images: ImageSet) -> Pixels:
    """How a set's images are made of pixels: as its datamodule says, else taken from the range of some of them.

    Raises:
        ValueError: images that are not [C, H, W].
    """
    if len(images.image_shape) != 3:
        raise ValueError(
            f"{images.name} gives images {list(images.image_shape)}: invert recovers images [channels, height, width]"
        )
    channels = images.image_shape[0]
    mean, std = (getattr(data, name, None) for name in ("mean", "std"))
    if mean is not None and std is not None and len(mean) == len(std) == channels:
        return Pixels(tuple(map(float, mean)), tuple(map(float, std)))
    some = torch.cat([x for x, _ in images.batches("train", 256)])
    low, high = float(some.min()), float(some.max())
    if low >= 0 and high <= 1:
        return Pixels((0.0,) * channels, (1.0,) * channels)
    width = max(high - low, 1e-6)
    note = (
        f"{images.name} says no mean and std of its pixels: its values from {low:.3g} to {high:.3g} count as pixels "
        "from 0 to 1"
    )
    return Pixels((-low / width,) * channels, (1 / width,) * channels, note)


@dataclass(frozen=True)
class Targets:
    """Images that are recovered.

    Attributes:
        name: their set's: that of a datamodule, ``files`` or ``noise``.
        pixels: in [0, 1], ``[N, C, H, W]``.
        names: what each is called.
        classes: of each, its class in the network's own set; -1 for none.
    """

    name: str
    pixels: Tensor
    names: list[str]
    classes: list[int]

    def described(self) -> list[dict[str, Any]]:
        """What ``summary.json`` says of them."""
        return [{"name": name, "class": label} for name, label in zip(self.names, self.classes, strict=True)]


def set_targets(images: ImageSet, count: int, seed: int, pixels: Pixels, own: bool = True) -> Targets:
    """Test images of as many classes as there are, drawn at random and the same each time.

    Args:
        images: the set.
        count: how many.
        seed: of the choice.
        pixels: how they are made of pixels.
        own: their classes are the network's.

    Raises:
        ValueError: the set has fewer test images.
    """
    labels = images.labels("test").numpy()
    if len(labels) < count:
        raise ValueError(
            f"{images.name} has {len(labels)} test images, fewer than the {count} of --images: ask for fewer"
        )
    draw = np.random.default_rng(seed)
    waiting = {int(c): list(draw.permutation(np.flatnonzero(labels == c))) for c in np.unique(labels)}
    chosen: list[int] = []
    while len(chosen) < count:
        for label in draw.permutation(list(waiting)).tolist():
            if waiting[label] and len(chosen) < count:
                chosen.append(int(waiting[label].pop()))
    shown = _at(images, chosen)
    numbers = images.numbers("test")
    return Targets(
        images.name,
        pixels.of(shown),
        [f"{images.class_names[labels[k]]} (test image {int(numbers[k])})" for k in chosen],
        [int(labels[k]) if own else -1 for k in chosen],
    )


def _at(images: ImageSet, places: Sequence[int]) -> Tensor:
    """The test images at places of a pass, ``[N, C, H, W]``."""
    found: dict[int, Tensor] = {}
    start = 0
    for x, _ in images.batches("test"):
        found |= {k: x[k - start].clone() for k in places if start <= k < start + len(x)}
        start += len(x)
    return torch.stack([found[k] for k in places])


def file_targets(paths: Sequence[str], shape: Sequence[int]) -> Targets:
    """Images of files, cut and resized as the package's own sets are.

    Args:
        paths: the files.
        shape: ``(C, H, W)`` of the network's images.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no image, or the network takes images of other than 1 or 3 channels.
    """
    channels, height, width = (int(each) for each in shape)
    if channels not in (1, 3):
        raise ValueError(f"files have 1 or 3 channels and the network takes images of {channels}")
    found = []
    for path in paths:
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no file {path}: check --files")
        try:
            with Image.open(path) as image:
                made = np.array(image.convert("L" if image.mode in ("L", "1", "I;16", "LA") else "RGB"))
        except (UnidentifiedImageError, OSError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"{path} can't be read as an image ({' '.join(str(error).split())}): give a PNG, a JPEG or the like"
            ) from error
        tensor = torch.from_numpy(made[..., None] if made.ndim == 2 else made).permute(2, 0, 1)
        found.append(fit(tensor.contiguous(), (channels, height, width)))
    names = [Path(path).name for path in paths]
    return Targets(FILES, torch.stack(found).float() / 255, names, [-1] * len(names))


def noise_targets(count: int, shape: Sequence[int], seed: int) -> Targets:
    """Images of noise, N(0.5, 0.25) in each value, kept in [0, 1].

    Args:
        count: how many.
        shape: ``(C, H, W)``.
        seed: of the noise.
    """
    made = noise(count, shape, seed)
    return Targets(NOISE, made, [f"noise {k + 1}" for k in range(count)], [-1] * count)


def noise(count: int, shape: Sequence[int], seed: int) -> Tensor:
    """Pixels of images of noise, ``[count, C, H, W]``.

    Example:
        >>> made = noise(2, (1, 4, 4), 0)
        >>> made.shape, bool((made >= 0).all() and (made <= 1).all())
        (torch.Size([2, 1, 4, 4]), True)
    """
    draw = torch.Generator().manual_seed(seed)
    return (NOISE_MEAN + NOISE_STD * torch.randn((count, *shape), generator=draw)).clamp(0, 1)


def spread(layers: Sequence[Tap], most: int, wanted: Sequence[str] = ()) -> list[Tap]:
    """Some of the layers, evenly over the depth: the first, the last, and those that are wanted.

    Args:
        layers: all of them.
        most: how many, at least 2.
        wanted: names of layers to have among them, as far as there is room.

    Example:
        >>> taps = [Tap(f"l{k}", f"l{k}", 1, k, "Linear", (4,), 4, 20) for k in range(1, 34)]
        >>> [tap.index for tap in spread(taps, 8)], [tap.index for tap in spread(taps, 4, ["l9"])]
        ([1, 6, 10, 15, 19, 24, 28, 33], [1, 9, 22, 33])
    """
    if len(layers) <= most:
        return list(layers)
    places = [round(k * (len(layers) - 1) / (most - 1)) for k in range(most)]
    for name in list(dict.fromkeys(wanted))[: max(0, most - 2)]:
        at = next((k for k, layer in enumerate(layers) if layer.name == name), None)
        if at is not None and at not in places:
            held = [layers[place].name in wanted for place in places]
            inner = [k for k in range(1, most - 1) if not held[k]]
            if inner:
                places[min(inner, key=lambda k: abs(places[k] - at))] = at
    return [layers[k] for k in sorted(set(places))]
