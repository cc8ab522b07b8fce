"""The moments of one layer as a torchmetrics metric."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from tunnel_lightning.measures.layer import RANKS, VARIANCES, MomentMeasures
from tunnel_lightning.measures.moments import Moments, add_batch, empty_state


class MomentsMetric(Metric):
    """Ranks and class variances of a layer's features, in torchmetrics' terms: a thin shell of Moments.

    All states are sums. Torchmetrics gathers a copy from every process before it adds them up, which
    :meth:`Moments.all_reduce` does not: prefer that for wide layers and many processes.

    Args:
        dim: D.
        num_classes: C.
        which: measures to give, as in :class:`MomentMeasures`.
        **kwargs: of ``torchmetrics.Metric``.

    Example:
        >>> metric = MomentsMetric(dim=2, num_classes=1, which=["rank_cov"])
        >>> metric.update(torch.arange(6.0).view(3, 2), torch.zeros(3, dtype=torch.long))
        >>> metric.compute()["rank_cov/rtol=1e-3"]
        tensor(1., dtype=torch.float64)
    """

    full_state_update = False

    def __init__(
        self, dim: int, num_classes: int, which: tuple[str, ...] = RANKS + VARIANCES, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.dim, self.num_classes, self.which = dim, num_classes, which
        for name, state in empty_state(dim, num_classes).items():
            self.add_state(name, state, dist_reduce_fx="sum")

    def update(self, features: Tensor, target: Tensor) -> None:
        """Add features ``[B, D]`` and class indices ``[B]``."""
        add_batch(self._sums(), features.float(), target)

    def compute(self) -> dict[str, Tensor]:
        """Float64 scalars by ``measure/variant``."""
        measures = MomentMeasures(self.dim, self.num_classes, self.which, device=self.device)
        measures.moments.load_state_dict(self._sums())
        return {
            f"{value.measure}/{value.variant}": torch.tensor(
                value.value, dtype=torch.float64, device=self.device
            )
            for value in measures.compute()
        }

    def moments(self) -> Moments:
        """The plain state, with a copy of the sums of this process."""
        moments = Moments(self.dim, self.num_classes, self.device)
        moments.load_state_dict(self._sums())
        return moments

    def _sums(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in self._defaults}
