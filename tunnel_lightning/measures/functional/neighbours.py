"""k-nearest-neighbour accuracy: what a layer knows without any head being fitted."""

from __future__ import annotations

import math
import os
from typing import Any, NamedTuple

import torch
from numpy.typing import NDArray
from torch import Tensor


class NeighbourAccuracy(NamedTuple):
    """Accuracy of a vote among nearest neighbours.

    Attributes:
        accuracy: in [0, 1]; NaN where undefined.
        se: its binomial standard error.
    """

    accuracy: float
    se: float


def knn_accuracy(
    train: Tensor, train_target: Tensor, test: Tensor, test_target: Tensor, k: int = 20
) -> NeighbourAccuracy:
    """Accuracy of the majority vote of the k nearest training samples (Cover and Hart, 1967).

    Nearest by Euclidean distance between the features as they are, not standardised: the geometry in which
    nearest class means and neural collapse are measured too. Each neighbour has one vote, the lower class wins
    a tie; computed by scikit-learn's ``KNeighborsClassifier``, by brute force. ``k = 20`` is the value Caron et
    al. (2021, arXiv:2104.14294, section 4.1) found best for features of images.

    Args:
        train: features ``[N, D]`` whose labels vote.
        train_target: class indices ``[N]``.
        test: features ``[M, D]`` to classify.
        test_target: class indices ``[M]``.
        k: neighbours.

    Returns:
        Accuracy on the M samples; NaN where either set has NaN or infinite features or there are no samples.

    Raises:
        ValueError: fewer than ``k`` training samples.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([0, 0, 1, 1])
        >>> knn_accuracy(x, y, torch.tensor([[0.4], [9.6]]), torch.tensor([0, 0]), k=2).accuracy
        0.5
    """
    # scikit-learn takes a while to import, and only this measure needs it.
    from sklearn.neighbors import KNeighborsClassifier

    if len(train) < k:
        raise ValueError(
            f"{k} nearest neighbours need at least {k} training samples, got {len(train)}: "
            "take a smaller k or more samples"
        )
    if not len(test) or not (_finite(train) and _finite(test)):
        return NeighbourAccuracy(math.nan, math.nan)
    classifier = KNeighborsClassifier(k, algorithm="brute").fit(_array(train), _array(train_target))
    accuracy = float((classifier.predict(_array(test)) == _array(test_target)).mean())
    return NeighbourAccuracy(accuracy, math.sqrt(accuracy * (1 - accuracy) / len(test)))


def knn_bytes(dim: int, tests: int, k: int = 20) -> int:
    """Bytes at most that :func:`knn_accuracy` takes for features ``[N, D]`` and ``[M, D]``, these left out.

    Whatever N: scikit-learn compares blocks of 256 rows, each thread in double precision, and the k nearest of every
    sample are counted.

    Args:
        dim: D.
        tests: M.
        k: neighbours.

    Example:
        >>> knn_bytes(512, 10_000) < 2**30
        True
    """
    return (os.cpu_count() or 1) * 8 * 256 * (2 * dim + 256) + 64 * tests * k


def _finite(features: Tensor) -> bool:
    """Whether all is finite: the two ends tell, without arrays as large as the features."""
    return bool(torch.stack(features.aminmax()).isfinite().all())


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()
