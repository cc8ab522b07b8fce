"""What one measurement collects: scores of the network, ranks of its layers, rows of the profile table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from tunnel_lightning.measures import Accuracy, Moments, Value, effective_rank, eigenvalues, numerical_rank
from tunnel_lightning.runs import Row
from tunnel_lightning.taps import Tap


def ranks(features: Tensor, moments: Moments | None) -> list[Value]:
    """Numerical rank (``rtol=1e-3``) and effective rank of the covariance of features.

    One decomposition serves both; of fewer images than columns, that of their inner products, whose eigenvalues are
    those of the covariance without the zeros.

    Args:
        features: ``[N, D]``.
        moments: of those features; None to decompose the inner products.

    Example:
        >>> x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> [value.value for value in ranks(x, None)]
        [1.0, 1.0]
    """
    if moments is None:
        x = features.double()
        x = x - x.mean(0)
        spectrum = eigenvalues(x @ x.T / (len(x) - 1))
        constant = bool((features == features[0]).all())
    else:
        spectrum = eigenvalues(moments.covariance)
        constant = bool(moments.problem)
    values = (numerical_rank(eigenvalues=spectrum), effective_rank(eigenvalues=spectrum))
    named = (("rank_cov", "rtol=1e-3"), ("effective_rank", "cov"))
    return [
        Value(*name, math.nan if constant else float(value), math.nan, len(features))
        for name, value in zip(named, values, strict=True)
    ]


def network_accuracy(scores: Tensor, y: Tensor, outputs: Sequence[int]) -> list[Value]:
    """Accuracy among all outputs (``network``) and among a task's own (``within_task``).

    Args:
        scores: ``[N, C]``.
        y: which output is right, ``[N]``.
        outputs: the task's, ascending.

    Example:
        >>> scores = torch.tensor([[3.0, 2.0, 1.0], [0.0, 1.0, 2.0]])
        >>> [value.value for value in network_accuracy(scores, torch.tensor([1, 2]), (1, 2))]
        [0.5, 1.0]
    """
    network, within = Accuracy("network"), Accuracy("within_task")
    network.update(scores, y)
    within.update(scores[:, list(outputs)], positions(y, outputs))
    return network.compute() + within.compute()


def positions(values: Tensor, among: Sequence[int]) -> Tensor:
    """Where each value stands among some, which are in ascending order.

    Example:
        >>> positions(torch.tensor([7, 3, 7]), (3, 7))
        tensor([1, 0, 1])
    """
    return torch.searchsorted(torch.tensor(among, device=values.device), values)


@dataclass
class Scores:
    """The network's scores of every image it is shown, on the CPU: an ``Observer``."""

    batches: list[Tensor] = field(default_factory=list)

    def update(self, features: Mapping[str, Tensor], target: Tensor, output: Tensor | None) -> None:
        """Keep the scores of a batch, where there are any."""
        if output is not None:
            self.batches.append(output.float().cpu())

    def all_reduce(self, group: Any = None) -> None:
        """Nothing: a continual run is one process."""


@dataclass
class Rows:
    """The rows of one measurement.

    Attributes:
        run_id: as in `Row`.
        step: as in `Row`.
        epoch: as in `Row`.
        after: the experience that was trained on last.
        rows: so far.

    Example:
        >>> rows = Rows("run/version_0", step=10, epoch=1, after=0)
        >>> place = Tap("a", "a", 1, 1, "Linear", (4,), 4, 20)
        >>> rows.add("task 1", place, [Value("effective_rank", "cov", 2.0, math.nan, 100)])
        >>> rows.rows[0].experience, rows.rows[0].dim
        (0, 4)
    """

    run_id: str
    step: int
    epoch: int
    after: int
    rows: list[Row] = field(default_factory=list)

    def add(
        self, dataset: str, place: Tap, values: Iterable[Value], split: str = "test", dim: int | None = None
    ) -> None:
        """Add values of one layer on one set of images."""
        where = (self.run_id, self.step, self.epoch, self.after, split, dataset, place.name, place.index)
        width = place.dim if dim is None else dim
        self.rows += [Row(*where, *value, dim=width) for value in values]

    def warn(self) -> None:
        """One warning that names all layers with a NaN."""
        sick = dict.fromkeys(repr(row.layer) for row in self.rows if math.isnan(row.value))
        if sick:
            when = "before the first task" if self.after < 0 else f"after task {self.after + 1}"
            warnings.warn(
                f"Constant, NaN or infinite features {when} in {', '.join(sick)}: values of theirs are NaN.",
                stacklevel=3,
            )
