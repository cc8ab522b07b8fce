"""Similarities of two whole matrices of features, and of all pairs of layers.

As in :mod:`...functional.similarity`: features ``[N, D1]`` and ``[N, D2]`` of the same images, computed in float64,
NaN where they are constant, NaN or infinite. What each side alone needs, a kernel or a decomposition, is prepared
apart from what compares two of them, so that many layers are prepared once each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunnel_lightning.measures.functional.similarity import centred_features, check_features, unit_gram


class Procrustes(NamedTuple):
    """Float64 scalars; see :func:`procrustes`."""

    similarity: Tensor
    distance: Tensor


def rbf_cka(x: Tensor, y: Tensor, threshold: float = 1.0, unbiased: bool = True) -> Tensor:
    """Centred kernel alignment of Gaussian kernels (Kornblith et al., ICML 2019, section 5).

    ``K_ij = exp(-|x_i - x_j|^2 / (2 s^2))``, with ``s^2 = threshold^2 * median(|x_i - x_j|^2)`` over all pairs of
    rows, a row with itself included: the definition of the authors' notebook. Holds several N x N matrices.

    Args:
        x: features ``[N, D1]``.
        y: features ``[N, D2]`` of the same images.
        threshold: bandwidth as a share of the median distance.
        unbiased: as in :func:`...functional.similarity.linear_cka`.

    Returns:
        Float64 scalar; NaN where the median distance is zero.

    Raises:
        ValueError: as in :func:`...functional.similarity.linear_cka`.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [7.0, 2.0]])
        >>> round(rbf_cka(x, 3 * x + 1).item(), 9)
        1.0
    """
    check_features("rbf_cka", 4 if unbiased else 2, x.shape, y.shape)
    return (_kernel(x, threshold, unbiased) * _kernel(y, threshold, unbiased)).sum()


def procrustes(x: Tensor, y: Tensor) -> Procrustes:
    """Orthogonal Procrustes similarity of centred features scaled to norm one (Ding et al., NeurIPS 2021, section 3).

    ``similarity = |X'Y|_*``, the nuclear norm, and ``distance = min_Q |X - Y Q|_F^2 = 2 - 2 similarity`` over
    orthogonal Q (columns of zeros added to the narrower side).

    Args:
        x: features ``[N, D1]``.
        y: features ``[N, D2]`` of the same images.

    Returns:
        Similarity from 0 to 1 and distance from 0 to 2.

    Raises:
        ValueError: other shapes, or fewer than two images.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
        >>> [round(v.item(), 9) + 0 for v in procrustes(x, 2 * x.flip(1) + 1)]
        [1.0, 0.0]
    """
    check_features("procrustes", 2, x.shape, y.shape)
    similarity = _nuclear(_unit(x), _unit(y))
    return Procrustes(similarity, 2 - 2 * similarity)


def svcca(x: Tensor, y: Tensor, variance: float = 0.99) -> Tensor:
    """Singular vector canonical correlation analysis (Raghu et al., NeurIPS 2017, section 2.1).

    Each side is cut to the fewest principal components that hold ``variance`` of its variance; the mean of the
    canonical correlations between what is left. Unchanged by an orthogonal map and a scale. As many images as kept
    components make it 1 whatever the features: take several times as many.

    Args:
        x: features ``[N, D1]``.
        y: features ``[N, D2]`` of the same images.
        variance: share of the variance to keep.

    Returns:
        Float64 scalar from 0 to 1; NaN for constant or non-finite features.

    Raises:
        ValueError: other shapes, or fewer than two images.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
        >>> round(svcca(x, x @ torch.tensor([[2.0, 1.0], [0.0, 3.0]])).item(), 9)
        1.0
    """
    check_features("svcca", 2, x.shape, y.shape)
    return _mean_correlation(_principal(x, variance), _principal(y, variance))


def pwcca(x: Tensor, y: Tensor) -> Tensor:
    """Projection weighted canonical correlation analysis (Morcos et al., NeurIPS 2018, eq. 4-6).

    The mean of the canonical correlations, each weighted by how much of ``x`` its direction accounts for: the sum
    over columns ``x_j`` of ``|<h_i, x_j>|``, with ``h_i`` the i-th canonical variable of ``x``. Not symmetric.
    Unchanged by an invertible linear map of ``y``. Directions in which a side does not vary, or by less than 1e-6 of
    the largest, which is float32 rounding, are left out.

    Args:
        x: features ``[N, D1]``.
        y: features ``[N, D2]`` of the same images.

    Returns:
        Float64 scalar from 0 to 1; NaN for constant or non-finite features.

    Raises:
        ValueError: other shapes, or fewer than two images.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
        >>> round(pwcca(x, x @ torch.tensor([[2.0, 1.0], [0.0, 3.0]])).item(), 9)
        1.0
    """
    check_features("pwcca", 2, x.shape, y.shape)
    return _weighted_correlation(_directions(x), _directions(y))


class Kind(NamedTuple):
    """How one similarity of all pairs is made.

    Attributes:
        prepare: from the features of a layer to what is compared.
        compare: two of these.
        images: fewest there must be.
        numbers: from ``(N, D)`` to the float64 numbers that ``prepare`` makes of a layer, at most.
    """

    prepare: Callable[[Tensor], Any]
    compare: Callable[[Any, Any], Tensor]
    images: int
    numbers: Callable[[int, int], int]


def pairwise(
    kind: str, features: Iterable[Tensor], progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """One of these similarities between all pairs of layers; what each layer alone needs is computed once.

    Only that is held, of all layers at once, in float64 (:func:`pairwise_bytes`): features that come one after the
    other, as from a generator that reads them from a disk, may be forgotten when the next are asked for.

    Args:
        kind: ``"rbf_cka"`` (threshold 1, unbiased), ``"procrustes"`` (the similarity), ``"svcca"`` or ``"pwcca"``
            (row: the layer that gives the weights).
        features: of L layers on the same images, each ``[N, D]``.
        progress: told how many of the ``L (L + 1) / 2`` pairs are done, and how many there are.

    Returns:
        ``[L, L]`` float64.

    Raises:
        ValueError: another kind, other shapes.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0]])
        >>> pairwise("procrustes", (scale * x for scale in (1, 2))).round(decimals=6)
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    how = _kind(kind)
    ready: list[Any] = []
    first: Sequence[int] = ()
    for x in features:
        first = first or x.shape
        check_features(kind, how.images, first, x.shape)
        ready.append(how.prepare(x))
    found = torch.empty(len(ready), len(ready), dtype=torch.float64)
    pairs = [(i, j) for i in range(len(ready)) for j in range(i + 1)]
    for done, (i, j) in enumerate(pairs):
        found[i, j] = how.compare(ready[i], ready[j])
        # A weighted correlation is not symmetric.
        found[j, i] = how.compare(ready[j], ready[i]) if kind == "pwcca" else found[i, j]
        if progress is not None:
            progress(done + 1, len(pairs))
    return found


def pairwise_bytes(kind: str, n: int, dims: Sequence[int]) -> int:
    """Bytes that :func:`pairwise` takes beside the features, at most: what is prepared, and the work on one layer.

    Args:
        kind: as in :func:`pairwise`.
        n: images.
        dims: width of each layer.

    Raises:
        ValueError: another kind.

    Example:
        >>> round(pairwise_bytes("procrustes", 2000, [2048] * 16) / 2**30, 2)
        0.69
    """
    how, widest = _kind(kind), max(dims, default=0)
    side = n if kind == "rbf_cka" else min(n, widest)
    # Copies of the widest layer while it is centred and decomposed, and square matrices of what comes of it.
    return 8 * (sum(how.numbers(n, dim) for dim in dims) + 3 * n * widest + 4 * side * side)


def _kind(name: str) -> Kind:
    if name not in KINDS:
        raise ValueError(f"no pairwise similarity {name!r}; there are {', '.join(KINDS)}")
    return KINDS[name]


def _kernel(x: Tensor, threshold: float, unbiased: bool) -> Tensor:
    """The Gaussian kernel, centred and scaled to norm one."""
    x = centred_features(x)
    gram = x @ x.T
    square = gram.diagonal()
    distances = (square + square[:, None] - 2 * gram).clamp_(min=0).fill_diagonal_(0)
    # The mean of the two middle values, as numpy has it; torch.median takes the lower.
    flat = distances.flatten()
    middle = [flat.kthvalue(place).values for place in ((len(flat) + 1) // 2, len(flat) // 2 + 1)]
    return unit_gram(torch.exp(distances / (-(threshold**2) * (middle[0] + middle[1]))), unbiased)


def _narrow(x: Tensor) -> Tensor:
    """Centred features with the same Gram matrix in at most N columns."""
    x = centred_features(x)
    return torch.linalg.qr(x.T, mode="r").R.T if x.shape[1] > len(x) else x


def _unit(x: Tensor) -> Tensor:
    x = _narrow(x)
    return x / torch.linalg.matrix_norm(x)


def _nuclear(a: Tensor, b: Tensor) -> Tensor:
    product = a.T @ b
    # A decomposition refuses NaN.
    return torch.linalg.svdvals(product).sum() if product.isfinite().all() else product.new_tensor(torch.nan)


def _components(x: Tensor) -> tuple[Tensor, Tensor]:
    """Left singular vectors and values; none for constant or non-finite features."""
    x = _narrow(x)
    if not x.isfinite().all():
        return x[:, :0], x.new_zeros(0)
    u, s, _ = torch.linalg.svd(x, full_matrices=False)
    return u, s


def _principal(x: Tensor, variance: float) -> Tensor:
    """The fewest principal components that hold so much of the variance, one number an image each."""
    u, s = _components(x)
    shares = s.square().cumsum(0) / s.square().sum()
    # One more than those that stay below the share; rounding must not ask for a component too many.
    return u[:, : int((shares < variance * (1 - 1e-12)).sum()) + 1].contiguous()


def _mean_correlation(a: Tensor, b: Tensor) -> Tensor:
    # The mean of none is NaN.
    return torch.linalg.svdvals(a.T @ b).clamp(max=1).mean()


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """A basis of the directions in which features vary ``[N, R]``, and the features in it ``[R, D]``."""
    u, s = _components(x)
    u = u[:, s > 1e-6 * s[:1]]
    return u, u.T @ centred_features(x)


def _weighted_correlation(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    directions, correlations, _ = torch.linalg.svd(a[0].T @ b[0], full_matrices=False)
    weights = (directions.T @ a[1]).abs().sum(1)
    return (weights * correlations.clamp(max=1)).sum() / weights.sum()


KINDS = {
    "rbf_cka": Kind(lambda x: _kernel(x, 1.0, True), lambda a, b: (a * b).sum(), 4, lambda n, d: n * n),
    "procrustes": Kind(_unit, _nuclear, 2, lambda n, d: n * min(n, d)),
    "svcca": Kind(lambda x: _principal(x, 0.99), _mean_correlation, 2, lambda n, d: n * min(n, d)),
    "pwcca": Kind(_directions, _weighted_correlation, 2, lambda n, d: (n + d) * min(n, d)),
}
"""By name: the similarities of all pairs."""
