"""How the answers of networks differ, image by image and class by class.

After the section on predictions of Nguyen, Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same
Things?", ICLR 2021 (arXiv 2010.15327): networks of two kinds that are right equally often may still be wrong
about different images. Everything is numpy, in float64; a *group* is several networks of one kind (seeds).
"""

from __future__ import annotations

from itertools import combinations
from math import comb
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]


def per_example_accuracy(predicted: ArrayLike, target: ArrayLike) -> Floats:
    """Share of a group's networks that are right about each image.

    Args:
        predicted: class indices ``[R, N]``, one row per network.
        target: class indices ``[N]``.

    Returns:
        Fractions ``[N]``.

    Raises:
        ValueError: another number of images.

    Example:
        >>> per_example_accuracy([[0, 1, 1], [0, 0, 1]], [0, 1, 0])
        array([1. , 0.5, 0. ])
    """
    return _right(predicted, target).mean(0)


def _right(predicted: ArrayLike, target: ArrayLike) -> NDArray[np.bool_]:
    answers, labels = np.atleast_2d(np.asarray(predicted)), np.asarray(target)
    if answers.ndim != 2 or labels.shape != answers.shape[1:]:
        raise ValueError(
            f"predictions {list(answers.shape)} and labels {list(labels.shape)} are not of the same images: "
            "give predictions [networks, images] and labels [images]"
        )
    return answers == labels


class Churn(NamedTuple):
    """Fractions of images; see :func:`churn`."""

    changed: float
    lost: float
    won: float


def churn(before: ArrayLike, after: ArrayLike, target: ArrayLike) -> Churn:
    """What changes for the images when one network takes another's place.

    Milani Fard et al., "Launch and Iterate: Reducing Prediction Churn", NeurIPS 2016: churn is the share of
    images whose label changes. Of those, *losses* were right and are wrong now (bad churn), *wins* the other
    way; accuracy changes by wins - losses, so the smaller of the two, twice, is churn without a use. The rest goes
    from one wrong label to another. 1 - changed is the agreement of the two networks.

    Args:
        before: class indices ``[N]`` that the first network answers.
        after: class indices ``[N]`` that the second answers.
        target: class indices ``[N]``.

    Returns:
        Changed, lost and won.

    Raises:
        ValueError: another number of images.

    Example:
        >>> churn([0, 1, 2, 0], [0, 0, 1, 1], [0, 1, 1, 2])
        Churn(changed=0.75, lost=0.25, won=0.25)
    """
    answers = np.stack([np.asarray(before), np.asarray(after)])
    right = _right(answers, target)
    return Churn(
        float(np.mean(answers[0] != answers[1])),
        float(np.mean(right[0] & ~right[1])),
        float(np.mean(right[1] & ~right[0])),
    )


def mean_kl(log_p: ArrayLike, log_q: ArrayLike) -> float:
    """Mean over images of the Kullback-Leibler divergence KL(p || q) of two networks' class probabilities.

    Args:
        log_p: natural logarithms of the first network's probabilities ``[N, C]``.
        log_q: those of the second; logarithms, since a probability may be too small for a float.

    Returns:
        Nats, at least 0; the mean over images of ``sum_c p_c (log p_c - log q_c)``.

    Example:
        >>> round(mean_kl(np.log([[0.5, 0.5]]), np.log([[0.25, 0.75]])), 6)
        0.143841
    """
    log_p, log_q = np.asarray(log_p, dtype=float), np.asarray(log_q, dtype=float)
    p = np.exp(log_p)
    # 0 log 0 is 0, and a class that p rules out adds nothing.
    terms = p * np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)
    return float(terms.sum(1).mean())


def per_class_accuracy(predicted: ArrayLike, target: ArrayLike, num_classes: int) -> Floats:
    """Accuracy of each network on the images of each class.

    Args:
        predicted: class indices ``[R, N]``, one row per network.
        target: class indices ``[N]``.
        num_classes: C.

    Returns:
        Fractions ``[R, C]``; NaN for a class without images.

    Raises:
        ValueError: another number of images.

    Example:
        >>> per_class_accuracy([[0, 1, 1]], [0, 0, 1], 2)
        array([[0.5, 1. ]])
    """
    right, labels = _right(predicted, target), np.asarray(target)
    images = np.bincount(labels, minlength=num_classes)
    counts = np.stack([np.bincount(labels, row, num_classes) for row in right])
    return np.divide(counts, images, out=np.full(counts.shape, np.nan), where=images > 0)


class ClassDifferences(NamedTuple):
    """Arrays ``[C]``; see :func:`class_differences`."""

    difference: Floats
    t: Floats
    df: Floats
    p: Floats
    p_holm: Floats


def class_differences(a: ArrayLike, b: ArrayLike) -> ClassDifferences:
    """In which classes two groups of networks differ, by Welch's t-test on each class.

    Welch, "The generalization of 'Student's' problem when several different population variances are involved",
    Biometrika 1947: the groups' variances may differ, and the degrees of freedom follow from both.

    Args:
        a: accuracies ``[R_a, C]`` of the networks of one group, as from :func:`per_class_accuracy`.
        b: accuracies ``[R_b, C]`` of the other.

    Returns:
        Mean of ``a`` less mean of ``b``, t, its degrees of freedom, the two-sided p, and p corrected by
        :func:`holm` for the number of classes. The last four are NaN where no test is possible: a class
        without images, fewer than two networks in a group, or no spread in either.

    Raises:
        ValueError: different numbers of classes.

    Example:
        >>> found = class_differences([[0.9, 0.5], [0.8, 0.6]], [[0.5, 0.5], [0.4, 0.7]])
        >>> found.difference.round(2), found.p.round(3), found.p_holm.round(3)
        (array([ 0.4 , -0.05]), array([0.03 , 0.712]), array([0.06 , 0.712]))
    """
    from scipy.stats import t as student

    a, b = np.atleast_2d(np.asarray(a, dtype=float)), np.atleast_2d(np.asarray(b, dtype=float))
    if a.shape[1:] != b.shape[1:]:
        raise ValueError(f"the groups have {a.shape[1]} and {b.shape[1]} classes: compare the same classes")
    difference = a.mean(0) - b.mean(0)
    t, df, p = np.full((3, a.shape[1]), np.nan)
    if min(len(a), len(b)) > 1:
        # Without any spread t is infinite and p 0, however few the networks: that is no evidence. Told by the
        # range, since the variance of equal numbers may be a rounding error.
        tested = np.isfinite(difference) & ((np.ptp(a, 0) > 0) | (np.ptp(b, 0) > 0))
        parts = [each[:, tested].var(0, ddof=1) / len(each) for each in (a, b)]
        t[tested] = difference[tested] / np.sqrt(sum(parts))
        df[tested] = sum(parts) ** 2 / (parts[0] ** 2 / (len(a) - 1) + parts[1] ** 2 / (len(b) - 1))
        p[tested] = 2 * student.sf(np.abs(t[tested]), df[tested])
    return ClassDifferences(difference, t, df, p, holm(p))


def holm(p: ArrayLike) -> Floats:
    """p-values corrected for their number (Holm, "A Simple Sequentially Rejective Multiple Test", 1979).

    The i-th smallest of m (from 1) becomes the largest of ``(m - j + 1) p_(j)`` over j up to i, at most 1.

    Args:
        p: p-values ``[m]``; a NaN stays NaN and counts among the m.

    Returns:
        Corrected p-values ``[m]``: those below alpha are rejected at a family-wise error of at most alpha.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        array([0.03, 0.06, 0.06])
    """
    p = np.asarray(p, dtype=float)
    order = np.argsort(p)  # NaN last
    corrected = np.empty_like(p)
    scaled = p[order] * np.arange(len(p), 0, -1)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1)
    return corrected


class ErrorSpread(NamedTuple):
    """How far per-example accuracies lie apart; see :func:`error_spread`.

    Attributes:
        size: h, networks on each side.
        between: ``[S, 2]``, h networks of one group against h of the other.
        within_a: ``[T, 2]``, a null: h networks of the first group against h others of it.
        within_b: the same in the second group.
    """

    size: int
    between: Floats
    within_a: Floats
    within_b: Floats


def error_spread(a: ArrayLike, b: ArrayLike, splits: int = 200, seed: int = 0) -> ErrorSpread:
    """Are two groups of networks right about different images, more than two halves of one group are?

    Nguyen et al. compare the per-example accuracies of two groups with those of two disjoint sets of one
    kind. Here both comparisons are of h against h networks, h being half of the smaller group, for the
    spread of an accuracy over h networks depends on h. Two numbers of each comparison, with d the difference
    of the two accuracies of an image: the mean over images of ``|d|``, and the variance of d (which
    leaves out that one side may be right more often).

    Args:
        a: whether each network of one group is right about each image, bool ``[R_a, N]``.
        b: the same of the other, ``[R_b, N]``.
        splits: at most so many comparisons between, and so many within each group: all there are, or drawn.
        seed: of the drawing.

    Returns:
        h and the three lists of comparisons, columns mean ``|d|`` and variance of d. They overlap in networks, so
        their number is no sample size.

    Raises:
        ValueError: a group of fewer than two networks, or other images.

    Example:
        >>> right = np.array([[1, 1, 1, 0], [1, 1, 0, 1]], dtype=bool)
        >>> found = error_spread(right, ~right)
        >>> found.size, found.within_a[:, 0], found.between[:, 0]
        (1, array([0.5]), array([1. , 0.5, 0.5, 1. ]))
    """
    a, b = np.atleast_2d(np.asarray(a, dtype=bool)), np.atleast_2d(np.asarray(b, dtype=bool))
    if min(len(a), len(b)) < 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"groups of {len(a)} and {len(b)} networks on {a.shape[1]} and {b.shape[1]} images: halves need "
            "at least two networks in each group, and the same images"
        )
    rng = np.random.default_rng(seed)
    size = min(len(a), len(b)) // 2
    between = _apart(a, b, _sides(len(a), len(b), size, splits, rng))
    within = [_apart(group, group, _halves(len(group), size, splits, rng)) for group in (a, b)]
    return ErrorSpread(size, between, *within)


Sides = list[tuple[tuple[int, ...], tuple[int, ...]]]


def _halves(count: int, size: int, limit: int, rng: np.random.Generator) -> Sides:
    """Unordered pairs of disjoint sets of ``size`` out of ``count``: all, or ``limit`` drawn ones."""
    if comb(count, size) * comb(count - size, size) // 2 > limit:
        drawn = (rng.permutation(count) for _ in range(limit))
        return [(tuple(each[:size]), tuple(each[size : 2 * size])) for each in drawn]
    return [
        (first, second)
        for first in combinations(range(count), size)
        for second in combinations([i for i in range(count) if i not in first], size)
        if first[0] < second[0]
    ]


def _sides(count_a: int, count_b: int, size: int, limit: int, rng: np.random.Generator) -> Sides:
    """Pairs of ``size`` out of one group and ``size`` out of another: all, or ``limit`` drawn ones."""
    if comb(count_a, size) * comb(count_b, size) > limit:
        return [
            (tuple(rng.permutation(count_a)[:size]), tuple(rng.permutation(count_b)[:size]))
            for _ in range(limit)
        ]
    return [(x, y) for x in combinations(range(count_a), size) for y in combinations(range(count_b), size)]


def _apart(a: NDArray[np.bool_], b: NDArray[np.bool_], pairs: Sides) -> Floats:
    """Mean absolute difference and variance of the difference ``[pairs, 2]``."""
    found = np.empty((len(pairs), 2))
    for i, (x, y) in enumerate(pairs):
        d = a[list(x)].mean(0) - b[list(y)].mean(0)
        found[i] = np.abs(d).mean(), d.var()
    return found
