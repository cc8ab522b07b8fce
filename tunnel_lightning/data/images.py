"""Images before they become batches: in memory or as files, brought to one size, divided into parts."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Shape = tuple[int, int, int]


class Files:
    """Image files, each decoded when it is asked for.

    Args:
        paths: The files, in the order of their labels.

    Example:
        >>> len(Files(["a.png", "b.png"])[[1]])
        1
    """

    def __init__(self, paths: Sequence[str | Path]) -> None:
        # One array of strings: a list of a million path objects is copied page by page into every worker.
        self.paths = np.asarray([str(path) for path in paths], dtype=np.str_)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, keep: Sequence[int] | np.ndarray) -> Files:
        return Files(self.paths[np.asarray(keep, dtype=np.int64)].tolist())

    def read(self, index: int) -> Tensor:
        """The image at ``index``: uint8 ``[3, H, W]``.

        Raises:
            FileNotFoundError: The file is gone.
            ValueError: The file is no image, or a damaged one.
        """
        path = str(self.paths[index])
        try:
            with Image.open(path) as image:
                pixels = np.array(image.convert("RGB"))
        except FileNotFoundError:
            raise FileNotFoundError(
                f"The image {path} is missing: part of the set was deleted; fetch the set again."
            ) from None
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise ValueError(
                f"Cannot read the image {path} ({error}): replace the file or take it out of the folder."
            ) from None
        return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class Pool:
    """Some images and their labels.

    Attributes:
        images: uint8 ``[N, C, H, W]``, or files that are decoded on request.
        labels: int64 ``[N]``.
    """

    images: Tensor | Files
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, keep: np.ndarray) -> Pool:
        """The images at the positions ``keep`` (int64 ``[M]``), in that order."""
        if len(keep) == len(self) and np.array_equal(keep, np.arange(len(self))):
            return self
        return Pool(self.images[keep], self.labels[torch.from_numpy(keep)])

    def read(self, index: int) -> Tensor:
        """One image: uint8 ``[C, H, W]``."""
        return self.images.read(index) if isinstance(self.images, Files) else self.images[index]


def fit(images: Tensor, shape: Shape) -> Tensor:
    """Bring images to another number of channels and another size.

    Cut about the centre to the wanted ratio of sides, then resized (bilinear, antialiased). Grey becomes
    RGB by repetition, RGB becomes grey by the luma weights of ITU-R 601.

    Args:
        images: uint8 ``[..., C, H, W]``, C being 1 or 3.
        shape: Wanted ``(C, H, W)``.

    Returns:
        uint8 ``[..., C, H, W]`` of the wanted shape; the same tensor where nothing had to change.

    Example:
        >>> fit(torch.zeros(2, 1, 8, 8, dtype=torch.uint8), (3, 16, 16)).shape
        torch.Size([2, 3, 16, 16])
    """
    from torchvision.transforms.v2 import functional as v2

    channels, height, width = shape
    if images.shape[-3] == 3 and channels == 1:
        images = v2.rgb_to_grayscale(images, num_output_channels=1)
    if images.shape[-2:] != (height, width):
        h, w = images.shape[-2:]
        zoom = min(h / height, w / width)
        images = v2.center_crop(images, [round(height * zoom), round(width * zoom)])
        images = v2.resize(images, [height, width], antialias=True)
    if images.shape[-3] == 1 and channels == 3:
        images = images.expand(*images.shape[:-3], 3, height, width)
    return images


def fit_pool(pool: Pool, shape: Shape) -> Tensor:
    """All images of a pool at one shape: uint8 ``[N, C, H, W]``."""
    if isinstance(pool.images, Tensor) and tuple(pool.images.shape[1:]) == shape:
        return pool.images
    result = torch.empty(len(pool), *shape, dtype=torch.uint8)
    if isinstance(pool.images, Tensor):
        for start in range(0, len(pool), 1024):
            result[start : start + 1024] = fit(pool.images[start : start + 1024], shape)
        return result

    def place(index: int) -> None:
        result[index] = fit(pool.read(index), shape)

    with ThreadPoolExecutor(4) as threads:
        for _ in threads.map(place, range(len(pool))):
            pass
    return result


def channel_statistics(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation of each channel, of pixels in 0..1.

    Exact: integer sums, so the order of the images does not matter.

    Args:
        images: uint8 ``[N, C, H, W]``.

    Example:
        >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(1, 1, 1, 2))
        ([0.5], [0.5])
    """
    total = torch.zeros(images.shape[1], dtype=torch.int64)
    squares = torch.zeros_like(total)
    for part in images.split(4096):
        values = part.transpose(0, 1).flatten(1).to(torch.int64)
        total += values.sum(1)
        squares += (values * values).sum(1)
    count = images.shape[0] * images.shape[2] * images.shape[3]
    mean = total.double() / count
    std = (squares.double() / count - mean**2).clamp_min(0).sqrt()
    # A channel without any contrast is only centred: one grey level is the smallest step there is.
    return (mean / 255).tolist(), (std / 255).clamp_min(1 / 255).tolist()


def stratified_split(
    labels: np.ndarray, fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Cut ``fraction`` of every class out, at least one image where the class has two.

    Args:
        labels: int64 ``[N]``.
        fraction: Share cut out, between 0 and 1.
        rng: Where the choice comes from.

    Returns:
        Positions kept (in order) and positions cut out (shuffled, so that the first of them are a fair
        sample too).

    Example:
        >>> kept, cut = stratified_split(np.array([0] * 10 + [1] * 20), 0.1, np.random.default_rng(0))
        >>> len(kept), len(cut)
        (27, 3)
    """
    cut = []
    for label in np.unique(labels):
        where = rng.permutation(np.flatnonzero(labels == label))
        cut.append(where[: min(max(1, round(fraction * len(where))), len(where) - 1)])
    chosen = rng.permutation(np.concatenate(cut)) if cut else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(labels)), chosen), chosen


def choose_per_class(
    labels: np.ndarray, count: int, names: Sequence[str], rng: np.random.Generator
) -> np.ndarray:
    """Positions of ``count`` images of every class, in order.

    Args:
        labels: int64 ``[N]``.
        count: Images of each class.
        names: Class names, for the message.
        rng: Where the choice comes from.

    Raises:
        ValueError: A class has fewer images.
    """
    chosen = []
    for label, name in enumerate(names):
        where = np.flatnonzero(labels == label)
        if len(where) < count:
            raise ValueError(
                f"samples_per_class is {count}, but class {name!r} has only {len(where)} training images: "
                f"lower samples_per_class to {len(where)} or less."
            )
        chosen.append(rng.permutation(where)[:count])
    return np.sort(np.concatenate(chosen))
