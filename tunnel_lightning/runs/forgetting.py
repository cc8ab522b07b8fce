"""What a sequence of tasks did to a learner, from its accuracies alone: plain functions of one matrix.

An accuracy matrix has a column for each of T tasks. Its rows are *after k tasks*, for k = 1 to T, and before them
there may be one more, from before any training: shape ``[T, T]`` or ``[T + 1, T]``, fractions, NaN where nothing was
measured, as in the later rows of a run that goes on. The functions serve the network's own accuracy and a layer's
probes alike.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]


def before_and_after(accuracy: ArrayLike) -> tuple[Array, Array]:
    """Part a matrix: accuracies before any training, shape ``[T]``, NaN for none, and after each task, ``[T, T]``.

    Raises:
        ValueError: it has another shape.

    Example:
        >>> before_and_after([[0.5, 0.4], [1.0, 0.6], [0.9, 1.0]])[0]
        array([0.5, 0.4])
    """
    found = np.asarray(accuracy, dtype=np.float64)
    if found.ndim == 2 and found.shape[0] == found.shape[1]:
        return np.full(found.shape[1], np.nan), found
    if found.ndim == 2 and found.shape[0] == found.shape[1] + 1:
        return found[0], found[1:]
    raise ValueError(
        f"An accuracy matrix of T tasks has the shape [T, T] or [T + 1, T], not {list(found.shape)}."
    )


def average_accuracy(accuracy: ArrayLike, weights: ArrayLike | None = None) -> Array:
    """Average the accuracy over the tasks learnt so far, after each task.

    ``A_k = 1/k sum_{j <= k} a_{k,j}`` (Chaudhry et al., 2018, arXiv:1801.10112); its last value is ACC of Lopez-Paz
    and Ranzato (2017, arXiv:1706.08840, equation 2).

    Avalanche: a row of the matrix is ``Top1_Acc_Exp``. ``Top1_Acc_Stream`` counts images, not tasks, of all the tasks
    it was shown: with the whole stream equal to the last value here, given the tasks' numbers of images as
    ``weights`` (or where those are alike).

    Args:
        accuracy: the matrix.
        weights: what each task counts, shape ``[T]``; by default all the same.

    Returns:
        Shape ``[T]``; NaN where a task learnt so far was not measured.

    Example:
        >>> average_accuracy([[1.0, 0.0], [0.5, 1.0]])
        array([1.  , 0.75])
    """
    _, after = before_and_after(accuracy)
    share = np.ones(len(after)) if weights is None else np.asarray(weights, dtype=np.float64)
    return np.array(
        [(after[k, : k + 1] * share[: k + 1]).sum() / share[: k + 1].sum() for k in range(len(after))]
    )


def over_earlier(values: ArrayLike) -> Array:
    """Average a quantity over the tasks learnt before the last one, after each task.

    Args:
        values: shape ``[T, T]``: after each task, of each task.

    Returns:
        Shape ``[T]``; NaN after the first task, which has none before it, and where one is NaN.

    Example:
        >>> over_earlier([[0.0, np.nan, np.nan], [0.5, 0.0, np.nan], [0.75, 0.25, 0.0]])
        array([nan, 0.5, 0.5])
    """
    found = np.asarray(values, dtype=np.float64)
    return np.array([found[k, :k].mean() if k else np.nan for k in range(len(found))])


def since_learnt(accuracy: ArrayLike) -> Array:
    """What each task lost since it was learnt, ``a_{j,j} - a_{k,j}``, after each task.

    A row is Avalanche's ``ExperienceForgetting``; with the other sign its ``ExperienceBWT``.

    Returns:
        Shape ``[T, T]``: row k, column j; 0 on the diagonal, NaN above it.

    Example:
        >>> since_learnt([[1.0, 0.0], [0.25, 1.0]])
        array([[0.  ,  nan],
               [0.75, 0.  ]])
    """
    _, after = before_and_after(accuracy)
    lost = np.diag(after) - after
    return np.where(np.tri(len(after), dtype=bool), lost, np.nan)


def forgetting_since_learnt(accuracy: ArrayLike) -> Array:
    """Average what was lost since each task was learnt over the tasks before the last one.

    Avalanche's ``StreamForgetting``, except that this is NaN after the first task, where Avalanche says 0.

    Returns:
        Shape ``[T]``: after each task.

    Example:
        >>> forgetting_since_learnt([[0.9, 0.0], [0.4, 1.0]])
        array([nan, 0.5])
    """
    return over_earlier(since_learnt(accuracy))


def forgetting(accuracy: ArrayLike) -> Array:
    """Average what was lost of the best there ever was, over the tasks before the last one.

    ``F_k = 1/(k-1) sum_{j < k} (max_{l < k} a_{l,j} - a_{k,j})`` (Chaudhry et al., 2018, arXiv:1801.10112).
    It is at least `forgetting_since_learnt`: a task may have been known better later than when it was learnt.
    Accuracies from before any training don't count.

    Returns:
        Shape ``[T]``: after each task; NaN after the first.

    Example:
        >>> forgetting([[0.8, 0.0, 0.0], [0.9, 0.7, 0.0], [0.5, 0.7, 1.0]]).round(2)
        array([ nan, -0.1,  0.2])
    """
    _, after = before_and_after(accuracy)
    best = np.fmax.accumulate(after, axis=0)  # of heads that were not there yet nothing is known
    lost = np.full(after.shape, np.nan)
    lost[1:] = best[:-1] - after[1:]
    return over_earlier(lost)


def backward_transfer(accuracy: ArrayLike) -> Array:
    """What later tasks gave to earlier ones: ``BWT_k = 1/(k-1) sum_{j < k} (a_{k,j} - a_{j,j})``.

    Lopez-Paz and Ranzato (2017, arXiv:1706.08840, equation 3); `forgetting_since_learnt` with the other sign.
    Avalanche's ``StreamBWT``.

    Returns:
        Shape ``[T]``: after each task; NaN after the first.

    Example:
        >>> backward_transfer([[0.9, 0.0], [0.4, 1.0]])
        array([ nan, -0.5])
    """
    return -forgetting_since_learnt(accuracy)


def forward_transfer(accuracy: ArrayLike, baseline: bool = True) -> Array:
    """What earlier tasks gave to later ones, over those that are learnt or next: ``FWT`` is the last value.

    ``FWT = 1/(T-1) sum_{j >= 2} (a_{j-1,j} - b_j)`` (Lopez-Paz and Ranzato, 2017, arXiv:1706.08840, equation 4).
    Their ``b`` is a network at random; here, as in Avalanche, it is this one before any training. Avalanche's
    ``StreamForwardTransfer``.

    Args:
        accuracy: the matrix.
        baseline: whether the accuracy from before any training is taken off; without, ``b = 0``: how well tasks are
            done that were not learnt yet.

    Returns:
        Shape ``[T]``: after each task the mean over tasks 2 to k + 1; the last two are the same.

    Raises:
        ValueError: the baseline is wanted, and the matrix has no row from before training.

    Example:
        >>> forward_transfer([[0.1, 0.1], [0.9, 0.3], [0.4, 1.0]]).round(2)
        array([0.2, 0.2])
        >>> forward_transfer([[0.9, 0.3], [0.4, 1.0]], baseline=False)
        array([0.3, 0.3])
    """
    before, after = before_and_after(accuracy)
    if baseline and np.shape(accuracy)[0] == len(after):
        raise ValueError(
            "Forward transfer is against the network before training: give a matrix of shape [T + 1, T], or "
            "baseline=False."
        )
    gain = np.diag(after, 1) - (before[1:] if baseline else 0)
    tasks = len(after)
    return np.array([gain[: k + 1].mean() if tasks > 1 else np.nan for k in range(tasks)])


def drift(fixed: ArrayLike) -> Array:
    """What probes lost that were fitted when their task was learnt, and never again; over tasks before the last one.

    Features may move without losing anything: beside `representation_forgetting` this says how far they did.

    Args:
        fixed: accuracies of these probes, ``[T, T]`` or ``[T + 1, T]``.

    Returns:
        Shape ``[T]``: after each task; NaN after the first.

    Example:
        >>> drift([[1.0, np.nan], [0.75, 1.0]])
        array([ nan, 0.25])
    """
    return forgetting_since_learnt(fixed)


def representation_forgetting(refit: ArrayLike) -> Array:
    """What probes lost that are fitted anew after every task, over the tasks before the last one.

    ``LP(j, after j) - LP(j, after k)``: what is lost even to the best linear classifier of a task's images (Davari et
    al., 2022, arXiv:2203.13381).

    Args:
        refit: accuracies of these probes, ``[T, T]`` or ``[T + 1, T]``.

    Returns:
        Shape ``[T]``: after each task; NaN after the first.

    Example:
        >>> representation_forgetting([[1.0, 0.9], [0.99, 1.0]]).round(2)
        array([ nan, 0.01])
    """
    return forgetting_since_learnt(refit)


def relative_forgetting(refit: ArrayLike, least_gain: float = 0.01) -> Array:
    """Which share of what learning a task gave to its features is lost again, over the tasks before the last one.

    Of one task ``(LP(j, after j) - LP(j, after k)) / (LP(j, after j) - LP(j, before j))`` (Hess et al., 2023,
    arXiv:2304.00933): 0 nothing, 1 all of it, more where features are worse than before. Here both differences are
    averaged over tasks first: a task that gained next to nothing would otherwise decide.

    Args:
        refit: accuracies of probes fitted anew after every task, ``[T + 1, T]``: the first task's gain is known by
            what there was before any training.
        least_gain: a share of a mean gain below this is noise.

    Returns:
        Shape ``[T]``: after each task; NaN after the first, and where too little was gained.

    Example:
        >>> relative_forgetting([[0.7, 0.7], [0.9, 0.8], [0.8, 1.0]]).round(3)
        array([nan, 0.5])
    """
    before, after = before_and_after(refit)
    gain = np.diag(after) - np.append(before[:1], np.diag(after, 1))
    mean = over_earlier(np.broadcast_to(gain, after.shape))
    lost = forgetting_since_learnt(refit)
    return np.divide(lost, mean, out=np.full(len(after), np.nan), where=mean >= least_gain)


def lost_of_best(values: ArrayLike) -> Array:
    """What is lost of the best there ever was, the state before any training included.

    For a probe of all the stream's classes, which is one number after each task.

    Args:
        values: shape ``[..., N]``, in the order of time.

    Returns:
        The same shape; never negative; the first is 0.

    Example:
        >>> lost_of_best([0.9, 0.95, 0.85]).round(2)
        array([0. , 0. , 0.1])
    """
    found = np.asarray(values, dtype=np.float64)
    return np.fmax.accumulate(found, axis=-1) - found


def at_end(values: ArrayLike) -> float:
    """The last of several values that is known, or NaN.

    Example:
        >>> at_end([np.nan, 0.5, np.nan])
        0.5
    """
    found = np.asarray(values, dtype=np.float64)
    known = found[np.isfinite(found)]
    return float(known[-1]) if len(known) else float("nan")


def mean_and_deviation(values: ArrayLike) -> tuple[Array, Array]:
    """Aggregate over seeds: mean and sample standard deviation along the first axis.

    Args:
        values: shape ``[S, ...]``.

    Returns:
        Both of shape ``[...]``; NaN where a seed has no value, and deviations of a single seed.

    Example:
        >>> mean_and_deviation([[0.5, 1.0], [0.75, 1.0]])[0]
        array([0.625, 1.   ])
    """
    found = np.asarray(values, dtype=np.float64)
    mean = found.mean(axis=0)
    if len(found) < 2:
        return mean, np.full(mean.shape, np.nan)
    return mean, found.std(axis=0, ddof=1)
