"""Variance between and within classes, in closed form from class sums."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class ClassVariances(NamedTuple):
    """Float64 scalars; see :func:`class_variances`."""

    inter: Tensor
    intra: Tensor
    ratio: Tensor


def class_variances(count: Tensor, total: Tensor, square: Tensor) -> ClassVariances:
    """Inter- and intra-class variance and their ratio.

    As the tunnel paper's released code has it (e7mul/tunnel_project): *inter* is the mean over pairs of
    classes of the squared distance between their centres, *intra* the mean over classes of the mean squared
    distance of a sample to its own centre, *ratio* inter / intra. That code L2-normalises each sample's
    features first: give the sums of normalised features for it, of the features themselves for the raw
    variant.

    In closed form, with class means ``m_c`` and K classes: ``inter = 2 / (K - 1) * sum_c |m_c - mean(m)|^2``
    and ``intra = mean_c (square_c / count_c - |m_c|^2)``. Classes without samples are left out.

    Args:
        count: samples per class ``[C]``.
        total: sums of feature vectors per class ``[C, D]``, float64.
        square: sums of squared norms per class ``[C]``, float64.

    Returns:
        Inter, intra and ratio; inter and ratio are NaN for fewer than two classes, all for none; the ratio
        also where intra is zero.

    Example:
        >>> import torch
        >>> x = torch.tensor([[0.0], [2.0], [10.0], [12.0]], dtype=torch.float64)
        >>> sums = torch.stack([x[:2].sum(0), x[2:].sum(0)])
        >>> squares = torch.stack([x[:2].square().sum(), x[2:].square().sum()])
        >>> [v.item() for v in class_variances(torch.tensor([2, 2]), sums, squares)]
        [100.0, 1.0, 100.0]
    """
    seen = count > 0
    means = total[seen] / count[seen, None]
    inter = (
        (means - means.mean(0)).square().sum() * 2 / (len(means) - 1)
        if len(means) > 1
        else total.new_tensor(float("nan"))
    )
    intra = (square[seen] / count[seen] - means.square().sum(1)).clamp(min=0).mean()
    return ClassVariances(inter, intra, (inter / intra).where(intra > 0, float("nan")))
