"""Where a layer's own head and the network answer differently."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.measures.functional import LinearHead
from tunnel_lightning.measures.layer import Value


class Agreement:
    """Share of images where a head on a layer and the network give different classes: an ``Observer``.

    With the heads of :func:`nearest_mean_head` it is NC4 of Papyan, Han & Donoho (PNAS 2020, figure 7): 0
    where the network's answer is the nearest class mean.

    Args:
        heads: by layer.

    Example:
        >>> head = LinearHead(torch.eye(2).double(), torch.zeros(2).double())
        >>> agreement = Agreement({"late": head})
        >>> features = {"late": torch.tensor([[3.0, 1.0], [0.0, 2.0]])}
        >>> agreement.update(features, torch.tensor([0, 0]), torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
        >>> agreement.values()["late"].value
        0.5
    """

    def __init__(self, heads: Mapping[str, LinearHead]) -> None:
        self.heads = dict(heads)
        device = next((head.weight.device for head in self.heads.values()), None)
        # Images, different answers, answers from scores that are not finite: of each head.
        self._counts = torch.zeros(len(self.heads), 3, dtype=torch.int64, device=device)

    @torch.no_grad()
    def update(self, features: Mapping[str, Tensor], target: Tensor, output: Tensor | None) -> None:
        """Add a batch: features ``[B, D]`` by layer and the network's scores ``[B, C]``."""
        if output is None:
            return
        answer = output.argmax(1).to(self._counts.device)
        healthy = torch.isfinite(output).all(1).to(answer.device)
        for counts, (name, head) in zip(self._counts, self.heads.items(), strict=True):
            if name in features:
                scores = head(features[name])
                counts[0] += len(scores)
                counts[1] += (scores.argmax(1) != answer).sum()
                counts[2] += (~(healthy & torch.isfinite(scores).all(1))).sum()

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over processes."""
        dist.all_reduce(self._counts, group=group)

    def values(self) -> dict[str, Value]:
        """``ncm_disagreement`` by layer, in [0, 1] with its binomial error; NaN where a score was not finite."""
        found = {}
        for name, (n, different, bad) in zip(self.heads, self._counts.tolist(), strict=True):
            share = different / n if n and not bad else math.nan
            error = math.sqrt(share * (1 - share) / n) if n else math.nan
            found[name] = Value("ncm_disagreement", "network", share, error, n)
        return found
