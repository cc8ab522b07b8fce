"""Random crops and flips of a whole batch at once."""

from __future__ import annotations

import torch
from torch import Tensor


def augmented(images: Tensor, crop: Tensor | None, flip: Tensor | None, pad: int) -> Tensor:
    """Cut every image of a batch out of its reflected surroundings, and mirror some.

    Both are one gather by place in the image, so nothing is padded, and a flip costs nothing more.

    Args:
        images: Any type, ``[B, C, H, W]``.
        crop: int64 ``[B, 2]``, row and column in the image padded by reflection, 0 to ``2 * pad``; ``pad``
            is the middle and changes nothing. None for no crops.
        flip: bool ``[B]``, or None for no flips.
        pad: Pixels of padding, below H and W.

    Returns:
        ``[B, C, H, W]``.

    Example:
        >>> x = torch.arange(9).reshape(1, 1, 3, 3)
        >>> augmented(x, torch.tensor([[1, 2]]), None, 1)[0, 0].tolist()
        [[1, 2, 1], [4, 5, 4], [7, 8, 7]]
    """
    count, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device).expand(count, -1)
    columns = torch.arange(width, device=images.device).expand(count, -1)
    if flip is not None:
        columns = torch.where(flip[:, None], columns.flip(1), columns)
    if crop is not None:
        rows = _reflected(rows + (crop[:, :1] - pad), height)
        columns = _reflected(columns + (crop[:, 1:] - pad), width)
    place = (rows[:, :, None] * width + columns[:, None, :]).reshape(count, 1, -1)
    return images.flatten(2).gather(2, place.expand(-1, channels, -1)).view_as(images)


def _reflected(index: Tensor, size: int) -> Tensor:
    index = index.abs()
    return torch.where(index >= size, 2 * (size - 1) - index, index)
