"""How far a layer has moved from what it was: two sets of features of the same images, from two snapshots.

All compute in float64 and return a float64 scalar, NaN where features are constant, NaN or infinite. Features are
centred before any product is taken.
"""

from __future__ import annotations

import torch
from scipy.linalg import eigh
from torch import Tensor

from tunnel_lightning.measures.functional.ridge import standardise
from tunnel_lightning.measures.functional.similarity import centred_features, check_features, rounding

# Directions with less than this share of the first one's variance are rounding of float32 products: they point
# anywhere.
NOISE = 1e-12


def principal_directions(features: Tensor, k: int = 10) -> Tensor:
    """The first principal directions of features, unit vectors in the space of the layer's columns.

    Found from the D x D covariance or the N x N Gram matrix, whichever is smaller.

    Args:
        features: ``[N, D]``.
        k: directions at most. There are fewer where the features vary, beyond rounding, along fewer.

    Returns:
        ``[D, K]`` float64, largest variance first, K <= k; all NaN with K = 1 where the features are constant, NaN or
        infinite.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [2.0, 1.0], [4.0, 1.0]])
        >>> principal_directions(x).abs()
        tensor([[1.],
                [0.]], dtype=torch.float64)
    """
    x = centred_features(features)
    n, dim = x.shape
    if not torch.isfinite(x).all():
        return torch.full((dim, 1), torch.nan, dtype=torch.float64, device=x.device)
    values, vectors = _largest(x.T @ x if dim <= n else x @ x.T, min(k, n, dim))
    floor = len(x) * rounding(features.dtype, features.detach().double().mean(0))
    vectors = vectors[:, values > torch.maximum(NOISE * values[0], floor)]
    if dim <= n:
        return vectors
    directions = x.T @ vectors
    return directions / torch.linalg.vector_norm(directions, dim=0)


def subspace_overlap(
    x: Tensor, y: Tensor | None = None, k: int = 10, *, directions: Tensor | None = None
) -> Tensor:
    """Overlap of the first principal subspaces of two sets of features of one layer.

    ``||V_k^T U_k||_F^2 / k`` with the first k principal directions of either as columns (Ramasesh, Dyer & Raghu,
    "Anatomy of Catastrophic Forgetting", ICLR 2021): the mean squared cosine of the angles between the subspaces.
    Unlike CKA it knows which column is which, and every direction weighs the same. k is lowered to the number of
    directions along which both vary beyond rounding.

    Args:
        x: features ``[N, D]``.
        y: features ``[M, D]`` of the same layer.
        k: directions of each.
        directions: ``[D, k]`` as :func:`principal_directions` gives them, instead of ``y``.

    Returns:
        Float64 scalar from 0 (orthogonal subspaces) to 1 (the same); k / D for random directions.

    Raises:
        ValueError: other shapes, k below 1, or both ``y`` and ``directions``, or neither.

    Example:
        >>> x = torch.tensor([[1.0, 0.0, 0.0], [0.0, 2.0, 0.0], [3.0, 1.0, 0.0], [0.0, 0.0, 0.0]])
        >>> round(subspace_overlap(x, x.roll(1, 1), k=2).item(), 6)  # one axis in common
        0.5
    """
    if (y is None) == (directions is None):
        raise ValueError("subspace_overlap needs either the other features or their directions")
    other = y.shape[-1] if y is not None else len(directions)  # type: ignore[arg-type]
    if x.ndim != 2 or (y is not None and y.ndim != 2) or x.shape[1] != other or k < 1:
        raise ValueError(
            "subspace_overlap needs features [N, D] and [M, D] of one layer and k of at least 1, got "
            f"{list(x.shape)}, {list(directions.shape if y is None else y.shape)} and k={k}"  # type: ignore[union-attr]
        )
    u = principal_directions(x, k)
    v = principal_directions(y, k) if y is not None else directions
    assert v is not None
    k = min(u.shape[1], v.shape[1])
    return (v[:, :k].T @ u[:, :k]).square().sum() / k


def linear_map_residual(x: Tensor, y: Tensor, alpha: float = 1e-3) -> Tensor:
    """What the best linear map from features ``x`` leaves of features ``y``, as a share of the variance of ``y``.

    After the representation discrepancy of Kim, Kim & Sohn ("Measuring Representational Shifts in Continual
    Learning", ICML 2025, arXiv 2505.20970): whether what a layer held at an earlier snapshot (``y``) can still be
    read, linearly, from what it holds now (``x``). Theirs is the largest residual norm over the images the map was
    fitted on, in the units of the features. Here the map, with intercept, is fitted on every second image (the first,
    third, ...) and scored on the others; the squared residuals, summed over images and columns, are divided by the
    variation of ``y`` on the scored images about its mean there. So layers of any width and scale compare, and a map
    with more columns than images does not look perfect. One minus it is the coefficient of determination.

    Columns of ``x`` are standardised over the images of the fit; the ridge penalty is ``alpha`` times their number,
    as in :func:`~tunnel_lightning.measures.functional.ridge`.

    Args:
        x: features ``[N, D1]``, of the later snapshot.
        y: features ``[N, D2]`` of the same images, of the earlier one.
        alpha: penalty relative to the mean eigenvalue.

    Returns:
        Float64 scalar: near 0 where ``y`` is a linear function of ``x``, 1 where ``x`` tells no more than the mean;
        the penalty, and directions that the images of the fit do not span, keep it above 0 even for equal features.

    Raises:
        ValueError: other shapes, fewer than four images, or ``alpha`` not above 0.

    Example:
        >>> x = torch.randn(200, 5, generator=torch.Generator().manual_seed(0))
        >>> bool(linear_map_residual(x, x @ torch.ones(5, 3) + 1) < 1e-5)
        True
        >>> bool(linear_map_residual(x, torch.randn(200, 3, generator=torch.Generator().manual_seed(1))) > 0.9)
        True
    """
    check_features("linear_map_residual", 4, x.shape, y.shape)
    if not alpha > 0:
        raise ValueError(f"linear_map_residual needs alpha above 0, got {alpha}")
    found = standardise(x[::2], torch.float64)
    target, scored = y[::2].detach().double(), centred_features(y[1::2])
    finite = torch.isfinite(x).all() & torch.isfinite(scored).all() & torch.isfinite(target).all()
    if found is None or not finite:
        return torch.tensor(torch.nan, dtype=torch.float64, device=x.device)
    z, n = found.z, len(found.z)
    mean = target.mean(0)
    target = target - mean
    if z.shape[1] <= n:
        weight = _solve(z.T @ z, z.T @ target, alpha * n)
    else:
        weight = z.T @ _solve(z @ z.T, target, alpha * n)
    read = (x[1::2].detach().double() - found.mean) * found.scale @ weight + mean
    return (y[1::2].detach().double() - read).square().sum() / scored.square().sum()


def _largest(matrix: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest eigenvalues of a symmetric matrix, largest first, and their eigenvectors ``[D, k]``."""
    n = len(matrix)
    if not matrix.is_cpu:
        values, vectors = torch.linalg.eigh(matrix)
        return values[-k:].flip(0), vectors[:, -k:].flip(1)
    # Some of the vectors take half the time of all.
    some, columns = eigh(matrix.numpy(), subset_by_index=(n - k, n - 1), check_finite=False)
    return torch.from_numpy(some).flip(0), torch.from_numpy(columns).flip(1)


def _solve(gram: Tensor, right: Tensor, penalty: float) -> Tensor:
    gram.diagonal().add_(penalty)
    return torch.cholesky_solve(right, torch.linalg.cholesky(gram))
