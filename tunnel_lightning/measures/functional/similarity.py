"""How alike two sets of features of the same images are.

All take features ``[N, D1]`` and ``[N, D2]``, row i of both of the same image, compute in float64 and return a
float64 scalar: NaN where features are constant, NaN or infinite, never a clamped value. Features are centred
before any product is taken: where the mean dwarfs the deviation (deep layers of an untrained network) products of
raw features hold nothing but rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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


class Procrustes(NamedTuple):
    """Float64 scalars; see :func:`procrustes`."""

    similarity: Tensor
    distance: Tensor


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
    _check("linear_cka", x, y, 4 if unbiased else 2)
    a, b = _centred(x), _centred(y)
    if len(a) <= max(a.shape[1], b.shape[1]):
        return (_unit_gram(a @ a.T, unbiased) * _unit_gram(b @ b.T, unbiased)).sum()
    norms = [_norm(_inner(side, side, unbiased), side.square().sum()) for side in (a, b)]
    return _inner(a, b, unbiased) / (norms[0] * norms[1])


def rbf_cka(x: Tensor, y: Tensor, threshold: float = 1.0, unbiased: bool = True) -> Tensor:
    """Centred kernel alignment of Gaussian kernels (Kornblith et al., ICML 2019, section 5).

    ``K_ij = exp(-|x_i - x_j|^2 / (2 s^2))``, with ``s^2 = threshold^2 * median(|x_i - x_j|^2)`` over all pairs of
    rows, a row with itself included: the definition of the authors' notebook. Holds several N x N matrices.

    Args:
        x: features ``[N, D1]``.
        y: features ``[N, D2]`` of the same images.
        threshold: bandwidth as a share of the median distance.
        unbiased: as in :func:`linear_cka`.

    Returns:
        Float64 scalar; NaN where the median distance is zero.

    Raises:
        ValueError: as in :func:`linear_cka`.

    Example:
        >>> x = torch.tensor([[0.0, 1.0], [1.0, 0.0], [2.0, 5.0], [3.0, 1.0], [7.0, 2.0]])
        >>> round(rbf_cka(x, 3 * x + 1).item(), 9)
        1.0
    """
    _check("rbf_cka", x, y, 4 if unbiased else 2)
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
    _check("procrustes", x, y, 2)
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
    _check("svcca", x, y, 2)
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
    _check("pwcca", x, y, 2)
    return _weighted_correlation(_directions(x), _directions(y))


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


def pairwise(
    kind: str, features: Sequence[Tensor], progress: Callable[[int, int], None] | None = None
) -> Tensor:
    """One of these similarities between all pairs of layers; what each layer alone needs is computed once.

    Holds, in float64 and for all layers at once, an N x N matrix for ``rbf_cka`` and no more than the features for
    the others: choose N accordingly.

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
        >>> pairwise("procrustes", [x, 2 * x + 1]).round(decimals=6)
        tensor([[1., 1.],
                [1., 1.]], dtype=torch.float64)
    """
    if kind not in _PAIRWISE:
        raise ValueError(f"no pairwise similarity {kind!r}; there are {', '.join(_PAIRWISE)}")
    for x in features:
        _check(kind, features[0], x, 4 if kind == "rbf_cka" else 2)
    prepare, compare = _PAIRWISE[kind]
    ready = [prepare(x) for x in features]
    found = torch.empty(len(ready), len(ready), dtype=torch.float64)
    pairs = [(i, j) for i in range(len(ready)) for j in range(i + 1)]
    for done, (i, j) in enumerate(pairs):
        found[i, j] = compare(ready[i], ready[j])
        # A weighted correlation is not symmetric.
        found[j, i] = compare(ready[j], ready[i]) if kind == "pwcca" else found[i, j]
        if progress is not None:
            progress(done + 1, len(pairs))
    return found


def _check(what: str, x: Tensor, y: Tensor, images: int) -> None:
    if x.ndim != 2 or y.ndim != 2 or len(x) != len(y) or len(x) < images:
        raise ValueError(
            f"{what} needs features [N, D1] and [N, D2] of the same N >= {images} images, got "
            f"{list(x.shape)} and {list(y.shape)}"
        )


def _centred(x: Tensor) -> Tensor:
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


def _unit_gram(gram: Tensor, unbiased: bool) -> Tensor:
    """The Gram, which is overwritten, centred and scaled to norm one."""
    trace = gram.trace()
    if unbiased:
        u_center_(gram)
    else:
        mean = gram.mean(0)
        gram.sub_(mean).sub_(mean[:, None] - mean.mean())
    return gram.div_(_norm(gram.square().sum(), trace))


def _kernel(x: Tensor, threshold: float, unbiased: bool) -> Tensor:
    """The Gaussian kernel, centred and scaled to norm one."""
    x = _centred(x)
    gram = x @ x.T
    square = gram.diagonal()
    distances = (square + square[:, None] - 2 * gram).clamp_(min=0).fill_diagonal_(0)
    # The mean of the two middle values, as numpy has it; torch.median takes the lower.
    flat = distances.flatten()
    middle = [flat.kthvalue(place).values for place in ((len(flat) + 1) // 2, len(flat) // 2 + 1)]
    return _unit_gram(torch.exp(distances / (-(threshold**2) * (middle[0] + middle[1]))), unbiased)


def _narrow(x: Tensor) -> Tensor:
    """Centred features with the same Gram matrix in at most N columns."""
    x = _centred(x)
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
    return u[:, : int((shares < variance * (1 - 1e-12)).sum()) + 1]


def _mean_correlation(a: Tensor, b: Tensor) -> Tensor:
    # The mean of none is NaN.
    return torch.linalg.svdvals(a.T @ b).clamp(max=1).mean()


def _directions(x: Tensor) -> tuple[Tensor, Tensor]:
    """A basis of the directions in which features vary ``[N, R]``, and the features in it ``[R, D]``."""
    u, s = _components(x)
    u = u[:, s > 1e-6 * s[:1]]
    return u, u.T @ _centred(x)


def _weighted_correlation(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
    directions, correlations, _ = torch.linalg.svd(a[0].T @ b[0], full_matrices=False)
    weights = (directions.T @ a[1]).abs().sum(1)
    return (weights * correlations.clamp(max=1)).sum() / weights.sum()


_PAIRWISE: dict[str, tuple[Callable[[Tensor], Any], Callable[[Any, Any], Tensor]]] = {
    "rbf_cka": (lambda x: _kernel(x, 1.0, True), lambda a, b: (a * b).sum()),
    "procrustes": (_unit, _nuclear),
    "svcca": (lambda x: _principal(x, 0.99), _mean_correlation),
    "pwcca": (_directions, _weighted_correlation),
}
