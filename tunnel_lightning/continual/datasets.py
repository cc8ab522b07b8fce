"""What a stream is read from: plain data sets of normalised images, and what is done to an image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import affine_grid
from torch.utils.data import Dataset

from tunnel_lightning.data.loader import DeviceLoader, FittedImages, ImageLoader, WorkerLoader

TRAIN, TEST = 1000, 1001  # what a seed chooses: images to fit probes on, images to score on


class PartImages(Dataset):
    """All images of one part of a set, as ``(x, y)``: float32 ``[C, H, W]``, normalised, and the label.

    The pixels stay uint8, in memory or in files, and are shared by all tasks; each image is normalised when it is
    read, to the very values that the loader gives.

    Args:
        loader: of the part.

    Attributes:
        targets: the labels, a list of ints.

    Example:
        >>> from tunnel_lightning.data import Digits
        >>> x, y = PartImages(Digits().test_dataloader())[0]
        >>> x.shape, x.dtype, type(y)
        (torch.Size([1, 8, 8]), torch.float32, <class 'int'>)
    """

    def __init__(self, loader: ImageLoader) -> None:
        self.images: Tensor | FittedImages
        if isinstance(loader, DeviceLoader):
            self.images = loader.images.cpu()
        else:
            assert isinstance(loader, WorkerLoader)
            self.images = loader._dataset
        self.targets: list[int] = loader.labels.tolist()
        mean = torch.tensor(loader.mean, dtype=torch.float64)[:, None, None]
        std = torch.tensor(loader.std, dtype=torch.float64)[:, None, None]
        self.scale, self.shift = (1 / (255 * std)).float(), (-mean / std).float()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = self.images[index]
        if isinstance(image, Exception):
            raise image
        return image.to(torch.float32).mul_(self.scale).add_(self.shift), self.targets[index]


class Augment:
    """A random crop from the reflected surroundings of an image, and a random left-right flip.

    Draws from torch's global random state for each image, as torchvision's transforms do; workers of a DataLoader
    have their own, seeded from it. So whoever restores that state repeats the draws.

    Args:
        shape: ``(C, H, W)``.
        pad: pixels of border; 0 for no crops.
        flip: whether to flip.

    Example:
        >>> Augment((1, 8, 8), pad=1, flip=False)(torch.zeros(1, 8, 8)).shape
        torch.Size([1, 8, 8])
    """

    def __init__(self, shape: Sequence[int], pad: int, flip: bool) -> None:
        self.pad, self.flip = pad, flip
        _, height, width = shape
        # What row (column) of the image stands where, for every place of the crop; the flip is the second half.
        self.rows = [_reflected(torch.arange(height) + (at - pad), height) for at in range(2 * pad + 1)]
        self.columns = [
            _reflected(columns + (at - pad), width)
            for columns in (torch.arange(width), torch.arange(width).flip(0))
            for at in range(2 * pad + 1)
        ]

    def __call__(self, x: Tensor) -> Tensor:
        """The image ``[C, H, W]``, cut and flipped at random."""
        row, column = torch.randint(2 * self.pad + 1, (2,)).tolist() if self.pad else (0, 0)
        flip = bool(torch.randint(2, ())) if self.flip else False
        return self.cut(x, row, column, flip)

    def cut(self, x: Tensor, row: int, column: int, flip: bool) -> Tensor:
        """The image from ``row`` and ``column`` of its padded self on; ``pad`` is the middle."""
        columns = self.columns[column + flip * (2 * self.pad + 1)]
        return x.index_select(1, self.rows[row]).index_select(2, columns)


def _reflected(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)


class Permute:
    """The pixels of an image in another order, all channels alike.

    Args:
        order: int64 ``[H * W]``: which pixel stands at each place.

    Example:
        >>> Permute(torch.tensor([1, 0]))(torch.tensor([[[3.0, 4.0]]]))
        tensor([[[4., 3.]]])
    """

    def __init__(self, order: Tensor) -> None:
        self.order = order

    def __call__(self, x: Tensor) -> Tensor:
        """The image ``[..., C, H, W]``, permuted."""
        return x.flatten(-2).index_select(-1, self.order).view_as(x)


class Rotate:
    """An image turned about its centre, counter-clockwise, bilinear; black where nothing was.

    The same sum of four pixels for every image, so one turn is one gather.

    Args:
        shape: ``(C, H, W)``.
        degrees: how far.
        black: value of black, ``[C, 1, 1]``.

    Example:
        >>> Rotate((1, 2, 2), 90, torch.zeros(1, 1, 1))(torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])).round()
        tensor([[[2., 4.],
                 [1., 3.]]])
    """

    def __init__(self, shape: Sequence[int], degrees: float, black: Tensor) -> None:
        _, height, width = shape
        self.black = black
        angle = torch.tensor(degrees, dtype=torch.float64).deg2rad()
        cos, sin = angle.cos(), angle.sin()
        # Of the picture turned, every pixel asks where it was: in units of half a side, hence the ratio.
        turn = torch.stack(
            [
                torch.stack([cos, -sin * (height / width), torch.zeros_like(cos)]),
                torch.stack([sin * (width / height), cos, torch.zeros_like(cos)]),
            ]
        )
        grid = affine_grid(turn[None], [1, 1, height, width], align_corners=False)[0].reshape(-1, 2)
        column = ((grid[:, 0] + 1) * width - 1) / 2
        row = ((grid[:, 1] + 1) * height - 1) / 2
        # A turn by a right angle hits the pixels but for rounding.
        row, column = ((each * 2**20).round() / 2**20 for each in (row, column))
        places, weights = [], []
        for r in (row.floor(), row.floor() + 1):
            for c in (column.floor(), column.floor() + 1):
                inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
                weights.append((1 - (row - r).abs()) * (1 - (column - c).abs()) * inside)
                places.append(r.clamp(0, height - 1) * width + c.clamp(0, width - 1))
        self.places = torch.stack(places).long().flatten()
        self.weights = torch.stack(weights).float()

    def __call__(self, x: Tensor) -> Tensor:
        """The image ``[..., C, H, W]``, turned."""
        flat = (x - self.black).flatten(-2)
        taken = flat.index_select(-1, self.places).unflatten(-1, self.weights.shape)
        return (taken * self.weights).sum(-2).view_as(x) + self.black


class Both:
    """One change after the other."""

    def __init__(self, first: Augment, second: Permute | Rotate) -> None:
        self.first, self.second = first, second

    def __call__(self, x: Tensor) -> Tensor:
        """The image ``[C, H, W]``, changed."""
        return self.second(self.first(x))


def stratified_sample(labels: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Positions of up to ``count`` images, as many of every class as of any other, as far as they go.

    Args:
        labels: int64 ``[N]``.
        count: images wanted; more than there are: all.
        rng: where the choice comes from.

    Returns:
        int64 ``[min(count, N)]``, ascending.

    Example:
        >>> y = np.array([0] * 10 + [1] * 10 + [2])
        >>> np.bincount(y[stratified_sample(y, 9, np.random.default_rng(0))]).tolist()
        [4, 4, 1]
    """
    if count >= len(labels):
        return np.arange(len(labels))
    order = rng.permutation(len(labels))
    # The r-th image of its class comes in the r-th round; rounds are taken until there are enough.
    rounds = np.empty(len(labels), dtype=np.int64)
    for label in np.unique(labels):
        where = order[labels[order] == label]
        rounds[where] = np.arange(len(where))
    ranked = order[np.argsort(rounds[order], kind="stable")]
    return np.sort(ranked[:count])


def check_counts(train_images: int, test_images: int) -> None:
    """Raise one clear ValueError unless there is at least one image to measure on."""
    for name, count in (("train_images", train_images), ("test_images", test_images)):
        if count < 1:
            raise ValueError(f"{name}, the images of a task to measure on, must be 1 or more, got {count}.")
