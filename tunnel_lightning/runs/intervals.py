"""Confidence intervals of accuracies."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def wilson(accuracy: ArrayLike, n: ArrayLike, z: float = 1.96) -> tuple[NDArray[Any], NDArray[Any]]:
    """Give the score interval of a share of ``n`` images (Wilson, 1927, JASA 22, p. 209).

    Unlike the accuracy with two standard errors to either side it stays within [0, 1] and has a width at 0 and
    at 100 %.

    Args:
        accuracy: fractions, any shape.
        n: images each rests on, of a shape that broadcasts.
        z: normal quantile; 1.96 for 95 %.

    Returns:
        Lower and upper end, in the common shape; NaN where the accuracy is NaN or there are no images.

    Example:
        >>> low, high = wilson(1.0, 100)
        >>> f"{low:.3f} to {high:.3f}"
        '0.963 to 1.000'
    """
    p, size = np.asarray(accuracy, dtype=float), np.asarray(n, dtype=float)
    size = np.where(size > 0, size, np.nan)
    middle = (p + z**2 / (2 * size)) / (1 + z**2 / size)
    half = z / (1 + z**2 / size) * np.sqrt(p * (1 - p) / size + z**2 / (4 * size**2))
    # At 0 and 1 the ends are exact on paper; rounding must not put them outside, or the accuracy itself.
    return np.clip(np.minimum(middle - half, p), 0, 1), np.clip(np.maximum(middle + half, p), 0, 1)
