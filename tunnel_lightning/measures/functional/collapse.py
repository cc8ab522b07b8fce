"""Neural collapse of one layer's features, in closed form from class sums and the scatter.

For K classes with samples: ``mu_c`` is a class's mean, ``mu_G`` the mean of the class means, ``m_c = mu_c -
mu_G``, ``M = [m_1 ... m_K]``; ``S_W`` is the mean over samples of ``(x - mu_c)(x - mu_c)^T`` and ``S_B = M
M^T / K``. Classes without samples are left out. Papyan, Han & Donoho, "Prevalence of neural collapse during
the terminal phase of deep learning training" (PNAS 2020), measure the last layer so; here it is any layer.

All in float64. ``S_W`` is what is left of the scatter without the class means, so a collapse is seen down to
about 1e-6 of ``S_B``, the rounding of the scatter's float32 products.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from tunnel_lightning.measures.functional.ridge import LinearHead

if TYPE_CHECKING:
    from tunnel_lightning.measures.moments import Moments


class VariabilityCollapse(NamedTuple):
    """Float64 scalars; see :func:`nc1`."""

    trace_pinv: Tensor
    trace_ratio: Tensor


class SimplexDistance(NamedTuple):
    """Float64 scalars; see :func:`nc2`."""

    norm_cv: Tensor
    angle: Tensor
    etf: Tensor


def nc1(count: Tensor, total: Tensor, square: Tensor, scatter: Tensor) -> VariabilityCollapse:
    """How large the variance within classes is against that between them; 0 where every class is one point.

    *trace_pinv* is ``tr(S_W pinv(S_B)) / K`` (Papyan et al. 2020, NC1, figure 6), *trace_ratio* ``tr(S_W) /
    tr(S_B)``. ``S_B`` has rank K - 1 at most, and ``pinv(S_B) = K M G^+ G^+ M^T`` with the K x K Gram matrix
    ``G = M^T M``: nothing of D x D is decomposed.

    Args:
        count: samples per class ``[C]``.
        total: sums of feature vectors per class ``[C, D]``, float64.
        square: sums of squared norms per class ``[C]``, float64.
        scatter: ``sum (x - mean)(x - mean)^T`` over all samples ``[D, D]``, float64.

    Returns:
        Both; NaN for fewer than two classes, equal class means or features that are not finite.

    Example:
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]], dtype=torch.float64)
        >>> sums = torch.stack([x[:2].sum(0), x[2:].sum(0)])
        >>> squares = torch.stack([x[:2].square().sum(), x[2:].square().sum()])
        >>> [round(v.item(), 9) for v in nc1(torch.tensor([2, 2]), sums, squares, (x - 6).T @ (x - 6))]
        [0.02, 0.04]
    """
    n, means, m = _means(count, total)
    gram = m @ m.T
    if len(m) < 2 or not torch.isfinite(gram).all():
        return VariabilityCollapse(_nan(total), _nan(total))
    size = n.sum()
    within = (square[count > 0] - n * means.square().sum(1)).sum().clamp(min=0) / size
    between = m.square().sum() / len(m)
    # M^T S_W M: the scatter is about the mean of the samples, from which the class means differ by `off`.
    off = (means - total.sum(0) / size) @ m.T
    inner = (m @ scatter @ m.T - off.T @ (n[:, None] * off)) / size
    values, vectors = torch.linalg.eigh(gram)
    # The smallest of the K is zero, since the m_c sum to zero; more of them where means are collinear.
    tolerance = max(total.shape) * torch.finfo(torch.float64).eps * values[-1]
    values, vectors = values[1:], vectors[:, 1:]
    values, vectors = values[values > tolerance], vectors[:, values > tolerance]
    trace = ((vectors * (inner @ vectors)).sum(0) / values.square()).sum().clamp(min=0)
    nan = _nan(total)
    return VariabilityCollapse(
        torch.where(between > 0, trace, nan), torch.where(between > 0, within / between, nan)
    )


def nc2(count: Tensor, total: Tensor) -> SimplexDistance:
    """How far the class means are from a simplex equiangular tight frame; 0 where they are one.

    *norm_cv* is the standard deviation (by K) of the ``|m_c|`` over their mean (Papyan et al. 2020, NC2,
    figure 2), *angle* the mean over pairs of ``|cos(m_c, m_c') + 1 / (K - 1)|`` (figure 4), *etf* ``|| G /
    ||G||_F - (I - 1 1^T / K) / sqrt(K - 1) ||_F`` with ``G = M^T M`` (Zhu et al., NeurIPS 2021, who take the
    classifier's ``W W^T``).

    Args:
        count: samples per class ``[C]``.
        total: sums of feature vectors per class ``[C, D]``, float64.

    Returns:
        The three; NaN for fewer than two classes or equal class means.

    Example:
        >>> [round(v.item(), 9) for v in nc2(torch.ones(3), torch.eye(3).double())]
        [0.0, 0.0, 0.0]
    """
    _, _, m = _means(count, total)
    k = len(m)
    if k < 2:
        return SimplexDistance(_nan(total), _nan(total), _nan(total))
    norm = m.norm(dim=1)
    unit = m / norm[:, None]
    off = ~torch.eye(k, dtype=torch.bool, device=m.device)
    angle = (unit @ unit.T + 1 / (k - 1))[off].abs().mean()
    return SimplexDistance(norm.std(correction=0) / norm.mean(), angle, _from_simplex(m @ m.T))


def nc3(count: Tensor, total: Tensor, weight: Tensor) -> Tensor:
    """How far a linear head is from the class means (self-duality); 0 where they are one simplex.

    ``|| W M / ||W M||_F - (I - 1 1^T / K) / sqrt(K - 1) ||_F`` (Zhu et al., NeurIPS 2021; after NC3 of Papyan
    et al. 2020, figure 5).

    Args:
        count: samples per class ``[C]``.
        total: sums of feature vectors per class ``[C, D]``, float64.
        weight: of the head, on the same features ``[C, D]``.

    Returns:
        Float64 scalar; NaN for fewer than two classes or a head that is zero or not finite.

    Example:
        >>> round(nc3(torch.ones(3), torch.eye(3).double(), torch.eye(3).double()).item(), 9)
        0.0
    """
    _, _, m = _means(count, total)
    return _from_simplex(weight.to(m)[count > 0] @ m.T) if len(m) > 1 else _nan(total)


def cdnv(count: Tensor, total: Tensor, square: Tensor) -> Tensor:
    """Class-distance normalised variance, mean over pairs of classes (Galanti, György & Hutter, ICLR 2022).

    ``(var_c + var_c') / (2 |mu_c - mu_c'|^2)`` with ``var_c`` the mean squared distance of a class's samples
    to its mean; averaged over pairs by Wu & Papyan, "Linguistic Collapse" (NeurIPS 2024).

    Args:
        count: samples per class ``[C]``.
        total: sums of feature vectors per class ``[C, D]``, float64.
        square: sums of squared norms per class ``[C]``, float64.

    Returns:
        Float64 scalar; NaN for fewer than two classes or where two classes have one mean.

    Example:
        >>> sums, squares = torch.tensor([[2.0], [22.0]]).double(), torch.tensor([4.0, 244.0]).double()
        >>> cdnv(torch.tensor([2, 2]), sums, squares).item()
        0.01
    """
    n, means, m = _means(count, total)
    if len(m) < 2:
        return _nan(total)
    variance = (square[count > 0] / n - means.square().sum(1)).clamp(min=0)
    distance = torch.cdist(m, m, compute_mode="donot_use_mm_for_euclid_dist").square()
    i, j = torch.triu_indices(len(m), len(m), 1, device=m.device)
    value = ((variance[i] + variance[j]) / (2 * distance[i, j])).mean()
    return torch.where(torch.isfinite(value), value, math.nan)


def nearest_mean_head(moments: Moments) -> LinearHead:
    """The nearest class mean as a linear head: the class with the largest score has the nearest mean.

    The score is ``2 (mu_c - mean) . (x - mean) - |mu_c - mean|^2``, the squared distance but for a sign and
    what all classes share. Where it agrees with the network, the last sign of collapse is reached (NC4 of
    Papyan et al. 2020, figure 7).

    Args:
        moments: of the features whose class means they are.

    Returns:
        The head; NaN throughout where the features are empty, constant or not finite. A class without samples
        is never the nearest.

    Example:
        >>> from tunnel_lightning.measures import Moments
        >>> moments = Moments(1, 2)
        >>> moments.update(torch.tensor([[0.0], [2.0], [9.0], [11.0]]), torch.tensor([0, 0, 1, 1]))
        >>> nearest_mean_head(moments)(torch.tensor([[5.0], [6.0]])).argmax(1)
        tensor([0, 1])
    """
    count, mean = moments.class_count, moments.mean
    seen = count > 0
    m = torch.where(seen[:, None], moments.class_sum / count[:, None].clamp(min=1) - mean, 0)
    if moments.problem:
        m = torch.full_like(m, math.nan)
    bias = -2 * m @ mean - m.square().sum(1)
    return LinearHead(2 * m, torch.where(seen | bias.isnan(), bias, torch.finfo(bias.dtype).min))


def _means(count: Tensor, total: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Samples ``[K]``, means ``[K, D]`` and means about their mean of the classes that have samples."""
    seen = count > 0
    n = count[seen].double()
    means = total[seen] / n[:, None]
    return n, means, means - means.mean(0)


def _from_simplex(matrix: Tensor) -> Tensor:
    k = len(matrix)
    simplex = (torch.eye(k, dtype=matrix.dtype, device=matrix.device) - 1 / k) / math.sqrt(k - 1)
    return (matrix / matrix.norm() - simplex).norm()


def _nan(like: Tensor) -> Tensor:
    return like.new_tensor(math.nan)
