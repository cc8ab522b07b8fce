"""Blocks of layers that are all alike, and whether another network has anything like them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """A run of layers that all resemble each other.

    Attributes:
        start: position of its first layer in the map, from 0; not the layer's index in a profile, which counts
            from 1 and may have gaps.
        end: of its last, included.
        size: layers.
        min_cka: the smallest similarity between any two of them.
    """

    start: int
    end: int
    size: int
    min_cka: float


class Resemblance(NamedTuple):
    """See :func:`resemblance`; float64.

    Attributes:
        best: for each layer, its largest similarity with any layer of the other network ``[L]``.
        inside: mean of ``best`` over the layers of blocks; NaN without a block.
        outside: mean over the other layers; NaN without any.
    """

    best: Tensor
    inside: Tensor
    outside: Tensor


def contiguous_blocks(similarity: Tensor, threshold: float = 0.9, min_size: int = 3) -> list[Block]:
    """The block structure of a map of similarities between a network's layers.

    Nguyen et al. (ICLR 2021, section 4) call block structure a range of layers whose mutual CKA is high, and see it
    as a bright square; they give no number. Here: an interval of consecutive layers of which every two have at
    least ``threshold``. The longest interval is a block, then the longest of what is left before and behind it, and
    so on; of equal ones the one with the higher smallest similarity. A NaN layer belongs to no block and parts its
    neighbours.

    Args:
        similarity: ``[L, L]`` symmetric, layers in order of execution.
        threshold: smallest similarity within a block.
        min_size: layers that make a block; two neighbours are often alike.

    Returns:
        Blocks that do not overlap, by position.

    Raises:
        ValueError: not a square matrix.

    Example:
        >>> similarity = torch.eye(6)
        >>> similarity[1:5, 1:5] = 0.95
        >>> [(block.start, block.end) for block in contiguous_blocks(similarity)]
        [(1, 4)]
    """
    if similarity.ndim != 2 or similarity.shape[0] != similarity.shape[1]:
        raise ValueError(f"contiguous_blocks needs a map [L, L], got {list(similarity.shape)}")
    values = similarity.double().cpu()
    size = len(values)
    # The diagonal counts too: it is NaN for a layer without features.
    alike = values >= threshold
    reach = []
    for start in range(size):
        end = start
        while end < size and bool(alike[start : end + 1, end].all() and alike[end, start : end + 1].all()):
            end += 1
        reach.append(end)

    def longest(low: int, high: int) -> list[Block]:
        found = [
            Block(start, end - 1, end - start, values[start:end, start:end].min().item())
            for start in range(low, high)
            if (end := min(reach[start], high)) - start >= max(min_size, 1)
        ]
        if not found:
            return []
        best = max(found, key=lambda block: (block.size, block.min_cka))
        return [*longest(low, best.start), best, *longest(best.end + 1, high)]

    return longest(0, size)


def resemblance(cross: Tensor, blocks: Sequence[Block]) -> Resemblance:
    """Whether the layers of a network's blocks resemble any layer of another network.

    Nguyen et al. (ICLR 2021, section 5) find that layers outside blocks have a counterpart in networks of other
    seeds and shapes, and layers of a block have almost none: ``inside`` far below ``outside``.

    Args:
        cross: similarity ``[L, M]`` of the network's layers with those of the other.
        blocks: the network's blocks, of :func:`contiguous_blocks`.

    Returns:
        The best match of every layer, and its mean over layers in blocks and over the others; NaN similarities
        are passed over.

    Raises:
        ValueError: ``cross`` has fewer layers than the blocks.

    Example:
        >>> cross = torch.tensor([[0.9, 0.2], [0.1, 0.2], [0.3, 0.1], [0.2, 0.1]])
        >>> result = resemblance(cross, [Block(1, 3, 3, 0.97)])
        >>> round(result.inside.item(), 3), round(result.outside.item(), 3)
        (0.233, 0.9)
    """
    if cross.ndim != 2 or any(block.end >= len(cross) for block in blocks):
        raise ValueError(
            f"resemblance needs a map [L, M] of all layers of the blocks, got {list(cross.shape)}"
        )
    values = cross.double()
    best = values.nan_to_num(nan=-torch.inf).amax(1)
    best = best.where(~values.isnan().all(1), torch.nan)
    inside = torch.zeros(len(values), dtype=torch.bool, device=values.device)
    for block in blocks:
        inside[block.start : block.end + 1] = True
    return Resemblance(best, best[inside].nanmean(), best[~inside].nanmean())
