"""How much a layer changes what the layer before it said."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.measures.layer import Value
from tunnel_lightning.taps import Tap


class L1Change:
    """Mean absolute change from a layer to the next one of the same shape, as an ``Observer``.

    ``mean |x_(l+1) - x_l| / mean |x_l|`` over images and columns. Masarczyk et al. (2023) show the L1 norm of the
    differences beside the CKA of an MLP: large in the extractor, small in the tunnel. Dividing by the size of what
    changes makes layers comparable. The value belongs to the first layer of the pair.

    Args:
        layers: taps in execution order; pairs of neighbours with equal shapes are compared.

    Example:
        >>> from torch import nn
        >>> from tunnel_lightning.taps import tap
        >>> taps = tap(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 3), nn.Linear(3, 2)), torch.zeros(1, 4))
        >>> change = L1Change(taps.layers)
        >>> change.update({"0": torch.ones(2, 3), "1": 3 * torch.ones(2, 3)}, torch.tensor([0, 1]), None)
        >>> change.values()
        {'0': Value(measure='l1_change', variant='next', value=2.0, se=nan, n=2)}
    """

    def __init__(self, layers: Sequence[Tap]) -> None:
        self.pairs = [(a.name, b.name) for a, b in pairwise(layers) if (a.shape, a.dim) == (b.shape, b.dim)]
        self._sums: Tensor | None = None  # [pairs, 3]: change, size, images

    @torch.no_grad()
    def update(self, features: Mapping[str, Tensor], target: Tensor, output: Tensor | None = None) -> None:
        """Add a batch of features ``{layer: [B, D]}``."""
        if not self.pairs or not len(target):
            return
        if self._sums is None:
            self._sums = torch.zeros(len(self.pairs), 3, dtype=torch.float64, device=target.device)
        for row, (first, second) in zip(self._sums, self.pairs, strict=True):
            if first in features and second in features:
                x, y = features[first].float(), features[second].float()
                row += torch.stack([(y - x).abs().mean(1).sum(), x.abs().mean(1).sum(), x.new_tensor(len(x))])

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over processes."""
        if self.pairs:
            if self._sums is None:
                self._sums = torch.zeros(len(self.pairs), 3, dtype=torch.float64)
            dist.all_reduce(self._sums, group=group)

    def values(self) -> dict[str, Value]:
        """One value for each layer that has a next one of its shape; NaN without images."""
        sums = torch.zeros(len(self.pairs), 3) if self._sums is None else self._sums.cpu()
        return {
            first: Value(
                "l1_change", "next", float(change / size) if size > 0 else math.nan, math.nan, int(n)
            )
            for (first, _), (change, size, n) in zip(self.pairs, sums, strict=True)
        }
