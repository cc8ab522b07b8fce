"""How good the class scores of a linear head are: accuracy, balanced accuracy and top-5."""

from __future__ import annotations

import math

import torch
import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.measures.functional import LinearHead
from tunnel_lightning.measures.layer import Value

TOP = 5


class ProbeScores:
    """Accuracies of a given linear head on a layer's features: a ``Measure``.

    - ``probe_accuracy``: share of samples whose highest score is their class's;
    - ``probe_balanced_accuracy``: the same per class, averaged over the classes that occur (Brodersen et al.,
      2010, "The balanced accuracy and its posterior distribution"; scikit-learn's ``balanced_accuracy_score``);
    - ``probe_top5_accuracy``: share of samples whose class is among the five highest scores; left out for five
      classes or fewer, where it is 1.

    Standard errors are binomial; that of the balanced accuracy adds those of its classes. All is NaN as soon as
    one score is NaN or infinite.

    Args:
        head: maps features ``[B, D]`` to scores ``[B, C]``.
        variant: kind of probe, such as ``"logistic"``.
        num_classes: C.

    Example:
        >>> head = LinearHead(torch.tensor([[-1.0], [1.0]]), torch.zeros(2))
        >>> scores = ProbeScores(head, "ridge", num_classes=2)
        >>> scores.update(torch.tensor([[-2.0], [3.0], [1.0], [4.0]]), torch.tensor([0, 1, 0, 1]))
        >>> [(value.measure, value.value) for value in scores.compute()]
        [('probe_accuracy', 0.75), ('probe_balanced_accuracy', 0.75)]
    """

    def __init__(self, head: LinearHead, variant: str, num_classes: int) -> None:
        self.head = head
        self.variant = variant
        self.num_classes = num_classes
        self.counts = torch.zeros(3 + 2 * num_classes, dtype=torch.float64)

    @torch.no_grad()
    def update(self, features: Tensor, target: Tensor) -> None:
        """Add features ``[B, D]`` and class indices ``[B]``; never waits for the device."""
        scores = self.head(features)
        target = target.to(scores.device)
        right = scores.argmax(1) == target
        top = scores.topk(min(TOP, self.num_classes), dim=1).indices == target[:, None]
        member = target == torch.arange(self.num_classes, device=target.device)[:, None]
        sums = [torch.full((), len(target), device=scores.device), (~torch.isfinite(scores)).sum(), top.sum()]
        counts = torch.cat([torch.stack(sums), member.sum(1), (member & right).sum(1)])
        self.counts = self.counts.to(counts.device, non_blocking=True) + counts

    def merge(self, other: ProbeScores) -> None:
        """Add the samples of ``other``."""
        self.counts = self.counts + other.counts.to(self.counts.device)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over processes."""
        dist.all_reduce(self.counts, group=group)

    def compute(self) -> list[Value]:
        """Accuracies in [0, 1]."""
        n, bad, top, *per_class = self.counts.tolist()
        count, right = per_class[: self.num_classes], per_class[self.num_classes :]
        found = {"probe_accuracy": _share(sum(right), n)}
        shares = [_share(hits, size) for hits, size in zip(right, count, strict=True) if size]
        classes = len(shares) or math.nan
        found["probe_balanced_accuracy"] = (
            sum(accuracy for accuracy, _ in shares) / classes,
            math.hypot(*(se for _, se in shares)) / classes,
        )
        if self.num_classes > TOP:
            found["probe_top5_accuracy"] = _share(top, n)
        nan = math.nan if bad else 0.0
        return [
            Value(measure, self.variant, value + nan, se + nan, int(n))
            for measure, (value, se) in found.items()
        ]


def _share(hits: float, n: float) -> tuple[float, float]:
    """A share and its binomial standard error."""
    share = hits / n if n else math.nan
    return share, math.sqrt(share * (1 - share) / n) if n else math.nan
