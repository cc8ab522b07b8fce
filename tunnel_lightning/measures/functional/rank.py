"""How many dimensions a layer uses: ranks of a covariance or second-moment matrix.

Every function takes the matrix, or its eigenvalues where they are known already: one decomposition of a
layer's covariance serves all, :func:`rankme`, which is uncentred, by :func:`eigenvalue_pair`. It is always
float64: float32's error, about 4e-6 of the largest eigenvalue at 1024 dimensions, is above torch's rank
tolerance for narrow layers, and it saves only a third of the time. A matrix with NaN or infinite entries gives
NaN.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from scipy.linalg import eigvalsh_tridiagonal, lapack
from torch import Tensor


def eigenvalues(matrix: Tensor) -> Tensor:
    """Eigenvalues of a symmetric matrix, ascending, in float64; all NaN where the matrix is not finite.

    Args:
        matrix: symmetric ``[D, D]``.

    Returns:
        ``[D]`` float64.

    Example:
        >>> eigenvalues(torch.diag(torch.tensor([2.0, 1.0])))
        tensor([1., 2.], dtype=torch.float64)
    """
    if not torch.isfinite(matrix).all():
        return torch.full((len(matrix),), torch.nan, dtype=torch.float64, device=matrix.device)
    return torch.linalg.eigvalsh(matrix.double())


def eigenvalue_pair(matrix: Tensor, vector: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues of a symmetric matrix and of ``matrix + vector vector^T``, for the price of one.

    A reflection that takes the vector to the first axis, then a tridiagonalisation, which keeps that axis: in this
    basis the two differ in the first entry alone, and the eigenvalues of a tridiagonal matrix cost next to nothing.
    On a GPU, where LAPACK does not reach, they are decomposed one after the other.

    Args:
        matrix: symmetric ``[D, D]``.
        vector: ``[D]``.

    Returns:
        Both ascending, ``[D]`` float64; all NaN where what is decomposed is not finite.

    Example:
        >>> eigenvalue_pair(torch.diag(torch.tensor([2.0, 1.0])), torch.tensor([0.0, 2.0]))
        (tensor([1., 2.], dtype=torch.float64), tensor([2., 5.], dtype=torch.float64))
    """
    vector = vector.double()
    norm = vector.norm()
    if (
        not matrix.is_cpu
        or len(vector) < 2
        or norm == 0
        or not torch.isfinite(matrix).all()
        or not norm.isfinite()
    ):
        return eigenvalues(matrix), eigenvalues(matrix + torch.outer(vector, vector))
    u = (vector / norm).numpy().copy()
    u[0] += np.copysign(1.0, u[0])
    scale = 2 / (u @ u)
    a = matrix.double().numpy()
    w = scale * (a @ u)
    w -= scale / 2 * (w @ u) * u
    a = a - np.outer(u, w) - np.outer(w, u)
    _, diagonal, off, _, _ = lapack.dsytrd(a, lower=1, lwork=64 * len(a), overwrite_a=1)
    before = eigvalsh_tridiagonal(diagonal, off, lapack_driver="sterf")
    diagonal[0] += (norm * norm).item()
    after = eigvalsh_tridiagonal(diagonal, off, lapack_driver="sterf")
    return torch.from_numpy(before), torch.from_numpy(after)


def _spectrum(matrix: Tensor | None, known: Tensor | None) -> Tensor:
    """The nonnegative spectrum; rounding makes the zero eigenvalues of a covariance slightly negative."""
    if (matrix is None) == (known is None):
        raise ValueError("give either the matrix or its eigenvalues")
    return (eigenvalues(matrix) if matrix is not None else known.double()).clamp(min=0)  # type: ignore[union-attr]


def numerical_rank(
    covariance: Tensor | None = None,
    rtol: float | Literal["torch"] = 1e-3,
    *,
    eigenvalues: Tensor | None = None,
) -> Tensor:
    """Number of singular values of the sample covariance above ``rtol`` times the largest.

    The tunnel paper's numerical rank (Masarczyk et al., "The Tunnel Effect", NeurIPS 2023) has ``rtol=1e-3``.
    Its released code calls ``torch.linalg.matrix_rank`` on the float32 covariance with the default tolerance,
    ``rtol = D * eps(float32)``, which is 1.2e-4 at D = 1024; ``rtol="torch"`` is that variant. Singular
    values of a covariance are its eigenvalues, the squares of those of the features.

    Args:
        covariance: sample covariance ``[D, D]``.
        rtol: tolerance relative to the largest singular value, or ``"torch"``.
        eigenvalues: ``[D]``, instead of ``covariance``.

    Returns:
        Float64 scalar: an integer from 0 to D, or NaN.

    Example:
        >>> numerical_rank(torch.diag(torch.tensor([1.0, 1e-2, 1e-5])))
        tensor(2., dtype=torch.float64)
        >>> numerical_rank(torch.diag(torch.tensor([1.0, 1e-2, 1e-5])), rtol="torch")
        tensor(3., dtype=torch.float64)
    """
    spectrum = _spectrum(covariance, eigenvalues)
    relative = len(spectrum) * torch.finfo(torch.float32).eps if rtol == "torch" else rtol
    rank = (spectrum > relative * spectrum.max()).sum().double()
    return torch.where(spectrum.isnan().any(), torch.nan, rank)


def effective_rank(covariance: Tensor | None = None, *, eigenvalues: Tensor | None = None) -> Tensor:
    """Exponential of the entropy of the normalised spectrum (Roy & Vetterli, EUSIPCO 2007, eq. 3-4).

    Taken of the covariance, so the spectrum is that of variances, not of their roots.

    Args:
        covariance: ``[D, D]``.
        eigenvalues: ``[D]``, instead of ``covariance``.

    Returns:
        Float64 scalar from 1 to D; NaN for a zero or non-finite matrix.

    Example:
        >>> round(effective_rank(torch.eye(4)).item(), 9)
        4.0
    """
    spectrum = _spectrum(covariance, eigenvalues)
    return torch.special.entr(spectrum / spectrum.sum()).sum().exp()


def stable_rank(covariance: Tensor | None = None, *, eigenvalues: Tensor | None = None) -> Tensor:
    """Total variance over the largest: the stable rank of the centred features.

    ``||X||_F^2 / ||X||_2^2 = tr(covariance) / largest eigenvalue`` (Rudelson & Vershynin, J. ACM 2007).

    Args:
        covariance: ``[D, D]``.
        eigenvalues: ``[D]``, instead of ``covariance``.

    Returns:
        Float64 scalar from 1 to D; NaN for a zero or non-finite matrix.

    Example:
        >>> stable_rank(torch.diag(torch.tensor([2.0, 1.0, 1.0])))
        tensor(2., dtype=torch.float64)
    """
    spectrum = _spectrum(covariance, eigenvalues)
    return spectrum.sum() / spectrum.max()


def participation_ratio(covariance: Tensor | None = None, *, eigenvalues: Tensor | None = None) -> Tensor:
    """``(sum of eigenvalues)^2 / sum of their squares`` (Gao et al., bioRxiv 214262, 2017).

    Args:
        covariance: ``[D, D]``.
        eigenvalues: ``[D]``, instead of ``covariance``.

    Returns:
        Float64 scalar from 1 to D; NaN for a zero or non-finite matrix.

    Example:
        >>> participation_ratio(torch.diag(torch.tensor([1.0, 1.0, 0.0])))
        tensor(2., dtype=torch.float64)
    """
    spectrum = _spectrum(covariance, eigenvalues)
    # Divided first: squares of a tiny or huge spectrum leave the range of float64.
    shares = spectrum / spectrum.sum()
    return 1 / shares.square().sum()


def rankme(
    second_moment: Tensor | None = None, *, eigenvalues: Tensor | None = None, eps: float = 1e-7
) -> Tensor:
    """RankMe of the uncentred features (Garrido et al., ICML 2023, eq. 1).

    ``exp(-sum p_k log p_k)``, ``p_k = sigma_k / sum(sigma) + eps``, with ``sigma`` the singular values of the
    ``[N, D]`` features: the roots of the eigenvalues of ``X^T X``. The scale of the matrix does not matter.

    Args:
        second_moment: uncentred ``X^T X`` or ``X^T X / N``, ``[D, D]``.
        eigenvalues: ``[D]``, instead of ``second_moment``.
        eps: the paper's stabiliser.

    Returns:
        Float64 scalar; NaN for a zero or non-finite matrix.

    Example:
        >>> round(rankme(torch.eye(4)).item(), 3)
        4.0
    """
    singular = _spectrum(second_moment, eigenvalues).sqrt()
    return torch.special.entr(singular / singular.sum() + eps).sum().exp()
