"""How alike two sets of features of the same images are; more of it in :mod:`...functional.pairwise`.

All take features ``[N, D1]`` and ``[N, D2]``, row i of both of the same image, compute in float64 and return a
float64 scalar: NaN where features are constant, NaN or infinite, never a clamped value. Features are centred
before any product is taken: where the mean dwarfs the deviation (deep layers of an untrained network) products of
raw features hold nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# What rounding adds to a Gram matrix, as a share of its trace. The error of a float32 dot product is a few units of
# its 24 bits times |x_i| |x_j|; over all pairs that is in Frobenius norm a few units times the trace. Features of
# effective rank r have a norm of trace / sqrt(r): the floor hides no layer of fewer than 1e12 dimensions.
GRAM_NOISE = 8 * torch.finfo(torch.float32).eps


def rounding(dtype: torch.dtype, mean: Tensor) -> Tensor:
    """The variance, summed over columns, that rounding features to their own type gives them.

    Rounding ``m`` to the nearest value of a type with epsilon ``e`` errs by at most ``e m / 2``, evenly spread: a
    variance of at most ``(e m)^2 / 12``. Features that vary no more than that about their mean are constant.

    Args:
        dtype: the type of the features.
        mean: their mean ``[D]``.

    Example:
        >>> rounding(torch.float32, torch.full((3,), 2.0)) == torch.finfo(torch.float32).eps ** 2
        tensor(True)
    """
    return mean.square().sum() * (torch.finfo(dtype).eps ** 2 / 12)


def u_center_(gram: Tensor) -> Tensor:
    """U-centre Gram matrices in place: the inner product of two of them is ``N (N - 3)`` times their HSIC_1.

    Székely & Rizzo (Annals of Statistics 2014), definition 2; with it Nguyen et al.'s released code writes Song et
    al.'s estimator. Unlike that estimator's own three terms, nothing cancels. The diagonal becomes zero.

    Args:
        gram: ``[..., N, N]`` symmetric, N at least 3.

    Returns:
        ``gram``.

    Example:
        >>> u_center_(torch.ones(4, 4)).abs().max()
        tensor(0.)
    """
    n = gram.shape[-1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    diagonal.zero_()
    row = gram.sum(-1).div_(n - 2)
    row -= row.sum(-1, keepdim=True) / (2 * (n - 1))
    gram.sub_(row[..., None]).sub_(row[..., None, :])
    diagonal.zero_()
    return gram


def hsic_1(k: Tensor, l: Tensor) -> Tensor:  # noqa: E741
    """The unbiased estimator of the Hilbert-Schmidt independence criterion (Song et al., JMLR 2012, eq. 4).

    With diagonals set to zero, ``HSIC_1 = [tr(K L) + 1'K1 1'L1 / ((N-1)(N-2)) - 2/(N-2) 1'KL1] / (N (N-3))``, the
    form of Nguyen et al. (ICLR 2021, eq. 3).

    Args:
        k: Gram matrix ``[N, N]`` of the one set of features.
        l: of the other.

    Returns:
        Float64 scalar; may be negative where the sets have nothing in common.

    Raises:
        ValueError: other shapes, or fewer than four images.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [2.0], [3.0], [5.0]])
        >>> round(hsic_1(x @ x.T, x @ x.T).item(), 6)
        9.166667
    """
    if k.shape != l.shape or k.ndim != 2 or k.shape[0] != k.shape[1] or len(k) < 4:
        raise ValueError(
            "hsic_1 needs two Gram matrices [N, N] of the same N >= 4 images, got "
            f"{list(k.shape)} and {list(l.shape)}"
        )
    n = len(k)
    k, l = (gram.detach().to(torch.float64, copy=True) for gram in (k, l))  # noqa: E741
    return (u_center_(k) * u_center_(l)).sum() / (n * (n - 3))


def linear_cka(x: Tensor, y: Tensor, unbiased: bool = True) -> Tensor:
    """Linear centred kernel alignment (Kornblith et al., ICML 2019, eq. 4).

    ``HSIC(K, L) / sqrt(HSIC(K, K) HSIC(L, L))`` of the Gram matrices of both sets. Unbiased, the HSIC is
    :func:`hsic_1` (Nguyen et al., ICLR 2021, eq. 3): with few images the biased one sees likeness that is not there
    (independent Gaussians of 2,000 columns: .89 with 256 images). Unchanged by a shift, an orthogonal map and a
    scale of the columns. Computed from N x N Gram matrices, or from D x D ones where that is less.

    Args:
        x: features ``[N, D1]``.
        y: features ``[N, D2]`` of the same images.
        unbiased: HSIC_1; otherwise the biased estimator ``tr(K H L H) / (N - 1)^2``.

    Returns:
        Float64 scalar, 1 for equal features; the unbiased may be slightly below 0 or above 1. NaN where the
        self-similarity of a side is no more than rounding (``GRAM_NOISE``, :func:`rounding`).

    Raises:
        ValueError: other shapes, or fewer than four images (two, biased).

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [7.0, 2.0]])
        >>> round(linear_cka(x, 3 * x + 1).item(), 9)
        1.0
        >>> linear_cka(x, torch.ones(5, 2))
        tensor(nan, dtype=torch.float64)
    """
    check_features("linear_cka", 4 if unbiased else 2, x.shape, y.shape)
    a, b = centred_features(x), centred_features(y)
    if len(a) <= max(a.shape[1], b.shape[1]):
        return (unit_gram(a @ a.T, unbiased) * unit_gram(b @ b.T, unbiased)).sum()
    norms = [_norm(_inner(side, side, unbiased), side.square().sum()) for side in (a, b)]
    return _inner(a, b, unbiased) / (norms[0] * norms[1])


def l1_change(x: Tensor, y: Tensor) -> Tensor:
    """Mean absolute difference of two outputs of equal shape, over the mean absolute value of the first.

    How much a layer changes what it is given, unit by unit; unlike all else here it knows which column is which.

    Args:
        x: features ``[N, D]`` of the earlier layer.
        y: ``[N, D]`` of the later.

    Returns:
        Float64 scalar, 0 for no change; NaN where ``x`` is zero.

    Raises:
        ValueError: shapes differ.

    Example:
        >>> l1_change(torch.tensor([[1.0, 3.0]]), torch.tensor([[2.0, 3.0]]))
        tensor(0.2500, dtype=torch.float64)
    """
    if x.shape != y.shape:
        raise ValueError(
            f"l1_change needs two outputs of equal shape, got {list(x.shape)} and {list(y.shape)}"
        )
    x, y = x.double(), y.double()
    return (y - x).abs().mean() / x.abs().mean().where(x.any(), torch.nan)


def check_features(what: str, images: int, x: Sequence[int], y: Sequence[int]) -> None:
    """Refuse shapes of features that are not of the same images, or of fewer than ``images``."""
    if len(x) != 2 or len(y) != 2 or x[0] != y[0] or x[0] < images:
        raise ValueError(
            f"{what} needs features [N, D1] and [N, D2] of the same N >= {images} images, got "
            f"{list(x)} and {list(y)}"
        )


def centred_features(x: Tensor) -> Tensor:
    """In float64, columns about their mean; all NaN where they are constant but for rounding, or not finite."""
    mean = x.detach().double().mean(0)
    centred = x.detach() - mean
    # Again: the mean of numbers far from zero is itself rounded.
    centred = centred - centred.mean(0)
    total = centred.square().sum()
    varies = (total > len(x) * rounding(x.dtype, mean)) & torch.isfinite(total)
    return centred.where(varies, torch.nan)


def _inner(x: Tensor, y: Tensor, unbiased: bool) -> Tensor:
    """``<K^, L^>`` of centred features from their D1 x D2 product: rows of a centred Gram sum to zero."""
    product = (x.T @ y).square().sum()
    if not unbiased:
        return product
    n = len(x)
    k, other = x.square().sum(1), y.square().sum(1)
    return product - n / (n - 2) * (k @ other) + k.sum() * other.sum() / ((n - 1) * (n - 2))


def _norm(square: Tensor, trace: Tensor) -> Tensor:
    """Norm of a centred Gram; NaN where that is no more than rounding."""
    return square.where(square > (GRAM_NOISE * trace).square(), torch.nan).sqrt()


def unit_gram(gram: Tensor, unbiased: bool) -> Tensor:
    """The Gram, which is overwritten, centred and scaled to norm one."""
    trace = gram.trace()
    if unbiased:
        u_center_(gram)
    else:
        mean = gram.mean(0)
        gram.sub_(mean).sub_(mean[:, None] - mean.mean())
    return gram.div_(_norm(gram.square().sum(), trace))
