"""Ready measures of one layer: what its moments tell, and the score of a linear head on it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.measures.functional import (
    LinearHead,
    cdnv,
    class_variances,
    effective_rank,
    eigenvalue_pair,
    eigenvalues,
    nc1,
    nc2,
    nc3,
    numerical_rank,
    participation_ratio,
    rankme,
    ridge_from_moments,
    stable_rank,
)
from tunnel_lightning.measures.moments import Moments

RANKS = ("rank_cov", "effective_rank", "stable_rank", "participation_ratio", "rankme")
VARIANCES = ("variance_inter", "variance_intra", "variance_ratio")
COLLAPSE = ("nc1", "nc2", "nc3", "cdnv")
MEASURES = (*RANKS, "pc1_fraction", *VARIANCES, *COLLAPSE)


class Value(NamedTuple):
    """One value of one layer.

    Attributes:
        measure: what was measured.
        variant: how: a tolerance, a normalisation, a kind of probe.
        value: NaN where undefined.
        se: standard error, NaN where there is none.
        n: samples it was measured on.
    """

    measure: str
    variant: str
    value: float
    se: float
    n: int


class MomentMeasures:
    """Ranks, class variances and neural collapse of one layer: a ``Measure`` around :class:`Moments`.

    Args:
        dim: D.
        num_classes: C.
        which: measures to give, of ``RANKS``, ``VARIANCES``, ``COLLAPSE`` and ``"pc1_fraction"``, the share
            of the variance along the first principal component (Nguyen, Raghu & Kornblith, ICLR 2021,
            section 5; exact, ``sigma_1^2 / sum sigma^2``). ``nc3`` solves for the ridge probe of these
            very samples.
        device: as in :class:`Moments`.
        alpha: that probe's penalty.

    Example:
        >>> measure = MomentMeasures(dim=2, num_classes=1, which=["rank_cov"])
        >>> measure.update(torch.arange(6.0).view(3, 2), torch.zeros(3, dtype=torch.long))
        >>> [(value.measure, value.variant, value.value) for value in measure.compute()]
        [('rank_cov', 'rtol=1e-3', 1.0), ('rank_cov', 'rtol=torch', 1.0)]
    """

    def __init__(
        self,
        dim: int,
        num_classes: int,
        which: Sequence[str] = RANKS + VARIANCES,
        device: torch.device | str | None = None,
        alpha: float = 1e-2,
    ) -> None:
        unknown = set(which) - set(MEASURES)
        if unknown:
            raise ValueError(f"no measure {sorted(unknown)}; there are {list(MEASURES)}")
        self.which = tuple(which)
        self.alpha = alpha
        self.moments = Moments(dim, num_classes, device)
        self._values: list[Value] | None = None
        self._spectrum: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes this measure holds."""
        return Moments.nbytes(self.moments.dim, self.moments.num_classes)

    def update(self, features: Tensor, target: Tensor) -> None:
        """Add samples, features ``[B, D]`` and class indices ``[B]``."""
        self._forget()
        self.moments.update(features, target)

    def merge(self, other: MomentMeasures) -> None:
        """Add the samples of ``other``."""
        self._forget()
        self.moments.merge(other.moments)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over processes."""
        self._forget()
        self.moments.all_reduce(group)

    @property
    def spectrum(self) -> Tensor | None:
        """Eigenvalues of the covariance, largest first, float64 ``[D]``; None where no measure needs them.

        One decomposition serves every measure. It takes some D^3 operations: more than a minute on a few
        cores for the tunnel paper's 8,000 columns.
        """
        self.compute()
        return self._spectrum

    def compute(self) -> list[Value]:
        """The values; all NaN for fewer than two samples and for NaN, infinite or constant features."""
        if self._values is None:
            self._values = self._compute()
        return list(self._values)

    def _forget(self) -> None:
        self._values = self._spectrum = None

    def _compute(self) -> list[Value]:
        moments, wanted = self.moments, set(self.which)
        found: list[tuple[str, str, Tensor]] = []
        if wanted & {*RANKS, "pc1_fraction"}:
            raw = None
            if "rankme" in wanted:
                # N / (N - 1) E[x x^T] is the covariance plus an outer product; RankMe does not mind the factor.
                share = moments.n / max(moments.n - 1, 1)
                covariance, raw = eigenvalue_pair(moments.covariance, moments.mean * math.sqrt(share))
            else:
                covariance = eigenvalues(moments.covariance)
            self._spectrum = covariance.flip(0).clamp(min=0)
            found += [
                ("rank_cov", "rtol=1e-3", numerical_rank(eigenvalues=covariance)),
                ("rank_cov", "rtol=torch", numerical_rank(rtol="torch", eigenvalues=covariance)),
                ("effective_rank", "cov", effective_rank(eigenvalues=covariance)),
                ("stable_rank", "cov", stable_rank(eigenvalues=covariance)),
                ("participation_ratio", "cov", participation_ratio(eigenvalues=covariance)),
                ("pc1_fraction", "cov", 1 / stable_rank(eigenvalues=covariance)),
            ]
            if raw is not None:
                # The float32 product's rounding, some 1e-8 of the largest variance, would be an eigenvalue for
                # every unused dimension, and RankMe takes its root: below that there is nothing to count.
                noise = torch.finfo(torch.float32).eps / 2 * covariance.max()
                found.append(("rankme", "raw", rankme(eigenvalues=raw.where(~(raw < noise), 0))))
        if wanted & {*VARIANCES, *COLLAPSE}:
            found += self._of_classes(wanted)
        found = [item for item in found if item[0] in wanted]
        values = torch.stack([value.double() for _, _, value in found]).tolist() if found else []
        # One class alone, or N < D, is no problem: those measures say NaN or a smaller rank by themselves.
        sick = bool(moments.problem)
        return [
            Value(measure, variant, math.nan if sick else value, math.nan, moments.n)
            for (measure, variant, _), value in zip(found, values, strict=True)
        ]

    def _of_classes(self, wanted: set[str]) -> list[tuple[str, str, Tensor]]:
        moments = self.moments
        count, total, square = moments.class_count, moments.class_sum, moments.class_square
        found: list[tuple[str, str, Tensor]] = []
        if wanted & set(VARIANCES):
            unit = class_variances(count, moments.class_unit, moments.class_unit_square)
            plain = class_variances(count, total, square)
            for variant, variances in (("l2", unit), ("raw", plain)):
                found += [(name, variant, value) for name, value in zip(VARIANCES, variances, strict=True)]
        if "nc1" in wanted:
            found += [
                ("nc1", *named) for named in nc1(count, total, square, moments.scatter)._asdict().items()
            ]
        if "nc2" in wanted:
            found += [("nc2", *named) for named in nc2(count, total)._asdict().items()]
        if "nc3" in wanted:
            found.append(("nc3", "ridge", nc3(count, total, ridge_from_moments(moments, self.alpha).weight)))
        if "cdnv" in wanted:
            found.append(("cdnv", "mean", cdnv(count, total, square)))
        return found


class Accuracy:
    """Accuracy of class scores with its binomial standard error, and their cross-entropy on request.

    A ``Measure`` whose features are the scores themselves: the network's own output. NaN as soon as one score
    is NaN or infinite.

    Args:
        variant: name of the variant.
        measure: name of the accuracy.
        loss: name of the cross-entropy (mean, in nats); ``None`` leaves it out.

    Example:
        >>> accuracy = Accuracy("network")
        >>> accuracy.update(torch.tensor([[2.0, 1.0], [0.0, 1.0]]), torch.tensor([0, 0]))
        >>> accuracy.compute()[0].value
        0.5
    """

    def __init__(self, variant: str, measure: str = "accuracy", loss: str | None = None) -> None:
        self.variant = variant
        self.measure = measure
        self.loss = loss
        self.counts: Tensor | None = None

    @torch.no_grad()
    def update(self, features: Tensor, target: Tensor) -> None:
        """Add scores ``[B, C]`` and class indices ``[B]``."""
        target = target.to(features.device)
        # Apple's GPUs have no float64.
        scores = features.float() if features.device.type == "mps" else features.double()
        batch = [
            torch.full((), len(target), device=scores.device),
            (scores.argmax(1) == target).sum(),
            (~torch.isfinite(scores)).sum(),
            torch.nn.functional.cross_entropy(scores, target, reduction="sum")
            if self.loss
            else 0 * target.sum(),
        ]
        counts = torch.stack([part.to(scores.dtype) for part in batch])
        self.counts = counts if self.counts is None else self.counts + counts

    def merge(self, other: Accuracy) -> None:
        """Add the samples of ``other``."""
        if other.counts is not None:
            self.counts = (
                other.counts.clone() if self.counts is None else self.counts + other.counts.to(self.counts)
            )

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over processes."""
        if self.counts is None:
            self.counts = torch.zeros(4, dtype=torch.float64)
        dist.all_reduce(self.counts, group=group)

    def compute(self) -> list[Value]:
        """Accuracy in [0, 1], and the loss if asked for."""
        n, correct, bad, loss = (0.0, 0.0, 0.0, 0.0) if self.counts is None else self.counts.tolist()
        valid = n > 0 and not bad
        accuracy = correct / n if valid else math.nan
        se = math.sqrt(accuracy * (1 - accuracy) / n) if valid else math.nan
        values = [Value(self.measure, self.variant, accuracy, se, int(n))]
        if self.loss:
            values.append(Value(self.loss, self.variant, loss / n if valid else math.nan, math.nan, int(n)))
        return values


class ProbeAccuracy(Accuracy):
    """Accuracy of a given linear head on a layer's features: a converged or an online probe.

    Args:
        head: maps features ``[B, D]`` to scores ``[B, C]``.
        variant: how the head was made: ``"ridge"``, ``"online"``.
        loss: also give ``probe_loss``, the cross-entropy.
        measure: name of the accuracy; another for a head that is no probe.

    Example:
        >>> head = LinearHead(torch.tensor([[-1.0], [1.0]]), torch.zeros(2))
        >>> probe = ProbeAccuracy(head, "ridge")
        >>> probe.update(torch.tensor([[-2.0], [3.0], [1.0], [4.0]]), torch.tensor([0, 1, 0, 1]))
        >>> probe.compute()
        [Value(measure='probe_accuracy', variant='ridge', value=0.75, se=0.21650635094610965, n=4)]
    """

    def __init__(
        self, head: LinearHead, variant: str, loss: bool = False, measure: str = "probe_accuracy"
    ) -> None:
        super().__init__(variant, measure, "probe_loss" if loss else None)
        self.head = head

    def update(self, features: Tensor, target: Tensor) -> None:
        """Add features ``[B, D]`` and class indices ``[B]``."""
        super().update(self.head(features), target)
