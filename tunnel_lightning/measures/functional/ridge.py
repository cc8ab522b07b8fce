"""Closed-form linear probes: ridge regression on one-hot targets.

The objective, on features standardised by their own mean and population deviation (columns without variance
get weight zero) and one-hot targets Y, with an unpenalised intercept:

    ||Z W + b - Y||_F^2 + alpha * N * ||W||_F^2

``alpha`` is relative: ``Z^T Z`` has trace N * D, so ``alpha * N`` is ``alpha`` times its mean eigenvalue, and
a probe does not change its strength with the number of images. It equals scikit-learn's
``make_pipeline(StandardScaler(), Ridge(alpha * N))`` on one-hot targets.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

if TYPE_CHECKING:
    from tunnel_lightning.measures.moments import Moments

# Rows whose sums are taken in float64 at once: few enough to stay in the processor's cache.
ROWS = 128


class LinearHead(NamedTuple):
    """An affine map from raw features to class scores, standardisation folded in.

    Float64, since ``weight @ x`` cancels against ``bias`` where a layer's mean dwarfs its deviation.

    Attributes:
        weight: ``[C, D]``.
        bias: ``[C]``.

    Example:
        >>> head = LinearHead(torch.eye(2).double(), torch.zeros(2).double())
        >>> head(torch.tensor([[3.0, 1.0]])).argmax(1)
        tensor([0])
    """

    weight: Tensor
    bias: Tensor

    def __call__(self, features: Tensor) -> Tensor:
        """Class scores ``[B, C]`` of features ``[B, D]``, on the head's device."""
        with torch.autocast(self.weight.device.type, enabled=False):
            return torch.addmm(self.bias, features.to(self.weight), self.weight.T)


class Standardised(NamedTuple):
    """Standardised features and what they were before.

    Attributes:
        z: ``[N, D]``.
        mean: of the raw columns ``[D]``, float64.
        scale: one over their deviation ``[D]``, float64; 0 for columns without variance.
    """

    z: Tensor
    mean: Tensor
    scale: Tensor


def ridge(features: Tensor, target: Tensor, num_classes: int, alpha: float = 1e-2) -> LinearHead:
    """Ridge probe from features in memory; solved in the smaller of D and N dimensions.

    Args:
        features: ``[N, D]``.
        target: class indices ``[N]``.
        num_classes: C.
        alpha: penalty relative to the mean eigenvalue (module docstring).

    Returns:
        The head; NaN throughout where the features are empty, constant or not finite.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
        >>> ridge(x, torch.tensor([0, 0, 1, 1]), 2)(x).argmax(1)
        tensor([0, 0, 1, 1])
    """
    found = standardise(features, torch.float64)
    n, dim = features.shape
    if found is None:
        return nan_head(num_classes, dim, features.device)
    z, mean, scale = found
    y = torch.nn.functional.one_hot(target.long(), num_classes).to(z)
    prior = y.mean(0)
    if dim <= n:
        weight = _solve((z.T @ z).div_(n), z.T @ (y - prior) / n, alpha)
    else:
        weight = z.T @ _solve((z @ z.T).div_(n), (y - prior) / n, alpha)
    return _fold(weight, mean, scale, prior)


def ridge_from_moments(moments: Moments, alpha: float = 1e-2) -> LinearHead:
    """The same probe from streamed :class:`Moments`, without the features.

    Args:
        moments: of the training features.
        alpha: penalty relative to the mean eigenvalue (module docstring).

    Returns:
        The head; NaN throughout where the features are empty, constant or not finite.

    Example:
        >>> from tunnel_lightning.measures import Moments
        >>> moments = Moments(1, 2)
        >>> moments.update(torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([0, 0, 1, 1]))
        >>> ridge_from_moments(moments)(torch.tensor([[2.0], [8.0]])).argmax(1)
        tensor([0, 1])
    """
    n, mean = moments.n, moments.mean
    if moments.problem:
        return nan_head(moments.num_classes, moments.dim, mean.device)
    correlation = moments.scatter.div_(n)
    deviation = correlation.diagonal().clamp(min=0).sqrt()
    if not _usable(mean, deviation):
        return nan_head(moments.num_classes, moments.dim, mean.device)
    scale = _inverse(deviation)
    correlation.mul_(scale).mul_(scale[:, None])
    count = moments.class_count.double()
    cross = (moments.class_sum - count[:, None] * mean) * scale / n
    return _fold(_solve(correlation, cross.T, alpha), mean, scale, count / n)


def _usable(mean: Tensor, deviation: Tensor) -> bool:
    finite = torch.isfinite(mean).all() & torch.isfinite(deviation).all()
    return bool(finite & (deviation > 0).any())


def _inverse(deviation: Tensor) -> Tensor:
    return torch.where(deviation > 0, 1 / deviation, 0.0)


def _solve(gram: Tensor, right: Tensor, alpha: float) -> Tensor:
    """Solve ``(gram + alpha I) x = right``; the least-norm solution where the matrix is singular."""
    gram.diagonal().add_(alpha)
    factor, info = torch.linalg.cholesky_ex(gram)
    if info.item() == 0:
        return torch.cholesky_solve(right, factor)
    return torch.linalg.pinv(gram, hermitian=True) @ right


def standardise(features: Tensor, dtype: torch.dtype) -> Standardised | None:
    """Features less their mean over their population deviation; columns of one value become zero.

    One copy is made, whatever the precision: sums are float64, over blocks of rows.

    Args:
        features: ``[N, D]``.
        dtype: of the result.

    Returns:
        The features and what to fold into a head; None where they are empty, constant or not finite.

    Example:
        >>> standardise(torch.tensor([[1.0, 5.0], [3.0, 5.0]]), torch.float32).z
        tensor([[-1.,  0.],
                [ 1.,  0.]])
    """
    n = len(features)
    if n == 0:
        return None
    z = features.detach().to(dtype, copy=True)
    # A column of equal values has a mean that is off by rounding, hence a tiny variance.
    constant = z.amax(0) == z.amin(0)
    # The mean as it is taken away, so that folding it into the bias is exact.
    mean = (torch.stack([rows.double().sum(0) for rows in z.split(ROWS)]).sum(0) / n).to(dtype)
    z -= mean
    square = torch.stack([rows.double().square().sum(0) for rows in z.split(ROWS)]).sum(0) / n
    deviation = square.sqrt().masked_fill(constant, 0)
    if not _usable(mean, deviation):
        return None
    scale = _inverse(deviation)
    z *= scale.to(dtype)
    return Standardised(z, mean.double(), scale)


def nan_head(num_classes: int, dim: int, device: torch.device) -> LinearHead:
    """The head of a layer that cannot be fitted."""
    nan = torch.full((num_classes, dim + 1), torch.nan, dtype=torch.float64, device=device)
    return LinearHead(nan[:, :-1], nan[:, -1])


def _fold(weight: Tensor, mean: Tensor, scale: Tensor, prior: Tensor) -> LinearHead:
    folded = (weight * scale[:, None]).T.contiguous()
    return LinearHead(folded, prior - folded @ mean)
