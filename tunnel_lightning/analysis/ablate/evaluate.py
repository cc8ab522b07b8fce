"""One pass of the network over the test images, and what is said of it beside the intact network's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _NormBase
from torchmetrics.functional.classification import multiclass_calibration_error

from tunnel_lightning.analysis.ablate.options import BINS
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.measures.base import scores_of
from tunnel_lightning.measures.functional.rank import numerical_rank
from tunnel_lightning.measures.functional.similarity import centred_features, linear_cka
from tunnel_lightning.surgery import State, loaded
from tunnel_lightning.taps import quiet, tap
from tunnel_lightning.taps.hooks import first_tensor

Progress = Callable[[str, int, int], None]

KEPT, ESTIMATED = "kept", "estimated"
"""Whose statistics normalisation layers have: those that came with the weights, or estimated after the surgery."""


class Seen(NamedTuple):
    """What a network gave on the test images, on the CPU.

    Attributes:
        scores: float32 ``[N, C]``.
        final: the final representation, what its head takes in, ``[N, D]``; of a network without a head its scores.
    """

    scores: Tensor
    final: Tensor


class Value(NamedTuple):
    """A figure, its standard error (NaN for none), and how many images it rests on."""

    value: float
    se: float
    n: int


@dataclass
class Bench:
    """The network, on its device, and the images it is scored on.

    Attributes:
        subject: the network.
        images: the set.
        limit: test images; None for all.
        bn_images: training images for the statistics of normalisation layers; 0 for none.
        device: where it runs.
        progress: told how far the pass at hand is.
    """

    subject: Subject
    images: ImageSet
    limit: int | None
    bn_images: int
    device: torch.device
    progress: Progress

    def __post_init__(self) -> None:
        with tap(self.network, self.example) as taps:
            self.head = taps.head.module if taps.head is not None else ""
        norms = [m for m in self.network.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
        self.has_statistics = bool(norms)
        self._intact: Seen | None = None

    @property
    def network(self) -> nn.Module:
        """What the layers are of."""
        return self.subject.network

    @property
    def example(self) -> Tensor:
        """Two images on the device."""
        return self.images.example.to(self.device)

    @property
    def labels(self) -> Tensor:
        """Labels int64 ``[N]`` of the test images."""
        return self.images.labels("test", self.limit)

    @property
    def intact(self) -> Seen:
        """What the network gives as it is."""
        if self._intact is None:
            self._intact = self.look()
        return self._intact

    def look(self, model: nn.Module | None = None, network: nn.Module | None = None) -> Seen:
        """One quiet pass over the test images.

        Args:
            model: what is called; by default the subject's.
            network: what the head is in; by default the subject's.

        Raises:
            ValueError: it gives no scores ``[B, C]``.
        """
        model, network = model or self.subject.model, network or self.network
        head = network.get_submodule(self.head) if self.head else None
        scores, final, taken = [], [], []

        def keep(module: nn.Module, args: Any) -> None:
            if (x := first_tensor(args)) is not None:
                taken.append(x.detach().flatten(1))

        handle = head.register_forward_pre_hook(keep) if head is not None else None
        try:
            with quiet(model):
                for x, _ in self.images.batches("test", self.limit):
                    taken.clear()
                    found = scores_of(model(x.to(self.device)))
                    if found is None:
                        raise ValueError(f"{self.subject.title} gives no scores [B, classes] to ablate")
                    scores.append(found.float().cpu())
                    final.append((taken[-1] if taken else found).float().cpu())
        finally:
            if handle is not None:
                handle.remove()
        return Seen(torch.cat(scores), torch.cat(final))

    def under(self, state: State | None = None, model: nn.Module | None = None) -> dict[str, Seen]:
        """What a network gives under an intervention, with its statistics as they are and estimated anew.

        Args:
            state: what the subject's network holds meanwhile; None for what it holds.
            model: another network of the same layers, in the place of the subject's.
        """
        network = model or self.network
        called = model or self.subject.model
        if state is not None:
            with loaded(network, state):
                return self.under(None, model)
        found = {KEPT: self.look(called, network)}
        if self.bn_images and self.has_statistics:
            with self.estimated(called):
                found[ESTIMATED] = self.look(called, network)
        return found

    @contextmanager
    def estimated(self, model: nn.Module) -> Iterator[None]:
        """Normalisation layers have the mean and variance of training images as they come through the layers now.

        Every batch counts alike; dropout stays off.
        """
        norms = [m for m in model.modules() if isinstance(m, _NormBase) and m.running_mean is not None]
        before = [
            (m, m.momentum, {k: v.clone() for k, v in m._buffers.items() if v is not None}) for m in norms
        ]
        try:
            with quiet(model):
                for module in norms:
                    module.reset_running_stats()
                    module.momentum, module.training = None, True  # the plain mean over batches
                for x, y in self.images.batches("train", self.bn_images):
                    if len(y) > 1:
                        model(x.to(self.device))
            yield
        finally:
            for module, momentum, buffers in before:
                module.momentum = momentum
                for name, value in buffers.items():
                    module._buffers[name].copy_(value)  # type: ignore[union-attr]

    def values(self, seen: Seen) -> dict[str, Value]:
        """Everything that is said of a network, by quantity: see :func:`values_of`."""
        labels = self.labels if self.subject.matches else None
        return values_of(seen, self.intact, labels, BINS)


def values_of(seen: Seen, intact: Seen, labels: Tensor | None, bins: int = BINS) -> dict[str, Value]:
    """What a network answers on the test images, and how far that is from the intact one's.

    Args:
        seen: what it gave.
        intact: what the intact network gave on the same images.
        labels: class indices ``[N]``; None where the outputs are not their classes.
        bins: of the calibration error.

    Returns:
        ``accuracy`` (fraction), ``ece`` (expected calibration error, Guo et al. 2017, eq. 3), ``nll`` (mean
        cross-entropy, nats), where there are labels; ``agreement`` (share of images answered as by the intact
        network), ``rank`` (numerical rank of the final representation, rtol 1e-3) and ``cka`` (unbiased linear CKA
        of it with the intact network's).

    Example:
        >>> scores = torch.tensor([[2.0, 0.0], [0.0, 2.0], [2.0, 0.0], [0.0, 2.0]])
        >>> found = values_of(Seen(scores, scores), Seen(scores, scores), torch.tensor([0, 1, 1, 1]))
        >>> found["accuracy"].value, found["agreement"].value, found["rank"].value
        (0.75, 1.0, 1.0)
    """
    answers, n = seen.scores.argmax(1), len(seen.scores)
    found: dict[str, Value] = {}
    if labels is not None:
        found["accuracy"] = share(answers == labels)
        sure = torch.nan_to_num(seen.scores.double(), nan=0.0, posinf=1e30, neginf=-1e30)
        ece = multiclass_calibration_error(
            sure.softmax(1), labels, seen.scores.shape[1], bins, validate_args=False
        )
        found["ece"] = Value(float(ece), math.nan, n)
        loss = F.cross_entropy(seen.scores.double(), labels, reduction="none")
        found["nll"] = Value(float(loss.mean()), float(loss.std() / math.sqrt(n)), n)
    found["agreement"] = share(answers == intact.scores.argmax(1))
    found["rank"] = Value(float(rank_of(seen.final)), math.nan, n)
    found["cka"] = Value(float(linear_cka(seen.final, intact.final)), math.nan, n)
    return found


def share(right: Tensor) -> Value:
    """A share of images with its binomial standard error.

    Example:
        >>> share(torch.tensor([True, False]))
        Value(value=0.5, se=0.3535533905932738, n=2)
    """
    n = len(right)
    p = float(right.double().mean())
    return Value(p, math.sqrt(p * (1 - p) / n), n)


def rank_of(features: Tensor) -> Tensor:
    """Numerical rank (rtol 1e-3) of the covariance of features ``[N, D]``, from the smaller of two matrices.

    0 for features that are constant but for rounding, NaN where they are not finite.

    Example:
        >>> rank_of(torch.tensor([[0.0, 1.0, 1.0], [1.0, 1.0, 1.0], [3.0, 1.0, 1.0]]))
        tensor(1., dtype=torch.float64)
    """
    x = centred_features(features)
    if x.isnan().any() and torch.isfinite(features).all():
        return torch.zeros((), dtype=torch.float64)
    return numerical_rank(x.T @ x if x.shape[1] <= len(x) else x @ x.T)


def spearman(x: Sequence[float], y: Sequence[float]) -> float:
    """Rank correlation of two lists; NaN for fewer than three pairs, or a constant one.

    Example:
        >>> round(spearman([1, 2, 3], [2, 4, 5]), 6), spearman([1, 1, 1], [1, 2, 3])
        (1.0, nan)
    """
    from scipy.stats import spearmanr

    kept = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(kept) < 3 or any(len(set(side)) < 2 for side in zip(*kept, strict=True)):
        return math.nan
    return float(spearmanr(*zip(*kept, strict=True)).statistic)
