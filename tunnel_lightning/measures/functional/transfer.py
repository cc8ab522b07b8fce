"""How well the layers of one network transfer (Harun et al., NeurIPS 2024, arXiv 2405.15018, section 3).

A *curve* is the probe accuracy of layers 1 to the penultimate, in [0, 1] and in that order: neither the raw
input nor the network's own output belong to it. The measures are per OOD set; the paper averages them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np


def ood_retained(ood: Sequence[float]) -> float:
    """Percentage of OOD performance retained: penultimate layer's OOD accuracy over the best layer's.

    Args:
        ood: OOD curve; NaN layers are ignored, except the last.

    Returns:
        0 to 100; 100 means no tunnel. NaN for an empty curve, a NaN last layer, or no accuracy above 0.

    Example:
        >>> ood_retained([0.5, 0.8, 0.4])
        50.0
    """
    curve = np.asarray(ood, dtype=float)
    if curve.size == 0 or np.isnan(curve[-1]) or np.nanmax(curve) <= 0:
        return math.nan
    return float(100 * (curve[-1] / np.nanmax(curve)))


def id_ood_pearson(id: Sequence[float], ood: Sequence[float]) -> float:
    """Pearson correlation of the in-distribution and the OOD curve over the layers.

    Args:
        id: in-distribution curve.
        ood: OOD curve of the same layers; a layer that is NaN in either is left out.

    Returns:
        -1 to 1; NaN for fewer than two layers or a flat curve.

    Raises:
        ValueError: curves of different lengths.

    Example:
        >>> round(id_ood_pearson([0.1, 0.2, 0.3], [0.5, 0.6, 0.7]), 6)
        1.0
    """
    if len(id) != len(ood):
        raise ValueError(
            f"the ID curve has {len(id)} layers and the OOD curve {len(ood)}: give both the same layers"
        )
    x, y = np.asarray(id, dtype=float), np.asarray(ood, dtype=float)
    both = ~(np.isnan(x) | np.isnan(y))
    x, y = x[both], y[both]
    if x.size < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return math.nan
    return float(np.corrcoef(x, y)[0, 1])


def id_ood_alignment(id_accuracy: float, ood_accuracy: float, id_chance: float, ood_chance: float) -> float:
    """ID/OOD alignment: ``(a_id - c_id) * (a_ood - c_ood)``.

    Args:
        id_accuracy: in-distribution accuracy of the penultimate layer's probe, in [0, 1].
        ood_accuracy: OOD accuracy of the same layer.
        id_chance: accuracy of guessing on the in-distribution set, 1 / classes.
        ood_chance: the same of the OOD set.

    Returns:
        The product; NaN where an accuracy is.

    Example:
        >>> round(id_ood_alignment(0.9, 0.6, 0.1, 0.1), 6)
        0.4
    """
    return (id_accuracy - id_chance) * (ood_accuracy - ood_chance)


def strength_bin(retained: float) -> str:
    """Name of a tunnel's strength by its mean :func:`ood_retained` over the OOD sets.

    Args:
        retained: percentage.

    Returns:
        ``"negligible"`` from 95, ``"weak"`` from 90, ``"medium"`` from 80, ``"strong"`` below, ``"unknown"``
        for NaN.

    Example:
        >>> strength_bin(93.0)
        'weak'
    """
    if math.isnan(retained):
        return "unknown"
    bins = ((95, "negligible"), (90, "weak"), (80, "medium"))
    return next((name for least, name in bins if retained >= least), "strong")
