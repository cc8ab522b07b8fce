"""Converged softmax probes: multinomial logistic regression on features held in memory.

The objective, on features standardised by their own mean and population deviation (columns without variance
get weight zero), with an unpenalised intercept:

    mean_n( -log softmax(W z_n + b)[y_n] ) + penalty / 2 * ||W||_F^2

It equals scikit-learn's ``make_pipeline(StandardScaler(), LogisticRegression(C=1 / (penalty * N), tol=tol))``
for three classes or more; for two, scikit-learn fits one vector in place of two opposite ones, and its
``C = 2 / (penalty * N)`` is the same. ``penalty`` is per sample: a probe does not change its strength with the
number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunnel_lightning.measures.functional.ridge import LinearHead, nan_head
from tunnel_lightning.measures.functional.softmax import SoftmaxProblem

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)


class LogisticFit(NamedTuple):
    """A logistic-regression probe and how well it converged.

    Attributes:
        head: on raw features, standardisation folded in.
        iterations: of the solver.
        gradient: largest absolute component of the objective's gradient at the solution.
        converged: whether that is at most the tolerance; False for features that cannot be fitted.
    """

    head: LinearHead
    iterations: int
    gradient: float
    converged: bool


class LogisticPath(NamedTuple):
    """A probe whose penalty was chosen on held-out samples.

    Attributes:
        fit: the probe, fitted on all samples with the chosen penalty.
        penalty: the chosen one.
        accuracy: held-out accuracy for each penalty tried, strongest first; NaN where unusable.
    """

    fit: LogisticFit
    penalty: float
    accuracy: dict[float, float]


def logistic(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    penalty: float,
    tol: float = 1e-4,
    max_iter: int = 1000,
    start: LinearHead | None = None,
    dtype: torch.dtype | None = None,
) -> LogisticFit:
    """Softmax probe from features in memory, converged.

    Args:
        features: ``[N, D]``.
        target: class indices ``[N]``.
        num_classes: C.
        penalty: on the squared weights (module docstring), above 0.
        tol: largest absolute component of the gradient to stop at, as scikit-learn's.
        max_iter: iterations to stop after at the latest.
        start: a head to start from; by default zero.
        dtype: of the products, float32 or float64; by default as the features.

    Returns:
        The fit; its head is NaN throughout where the features are empty, constant or not finite.

    Raises:
        ValueError: a penalty that is not positive, shapes that do not fit, labels outside ``0..C-1``.

    Example:
        >>> x = torch.tensor([[0.0], [1.0], [9.0], [10.0]])
        >>> fit = logistic(x, torch.tensor([0, 0, 1, 1]), 2, penalty=1e-2)
        >>> fit.head(x).argmax(1), fit.converged
        (tensor([0, 0, 1, 1]), True)
    """
    check(features, target, num_classes, penalty)
    problem = SoftmaxProblem.of(features, target, num_classes, dtype)
    if problem is None:
        return LogisticFit(nan_head(num_classes, features.shape[1], features.device), 0, math.nan, False)
    head, iterations, gradient = problem.solve(penalty, tol, max_iter, start)
    return LogisticFit(head, iterations, gradient, gradient <= tol)


def logistic_path(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    holdout: float = 0.2,
    seed: int = 0,
    tol: float = 1e-4,
    max_iter: int = 1000,
    dtype: torch.dtype | None = None,
) -> LogisticPath:
    """Softmax probe whose penalty is chosen on held-out samples, then fitted on all of them.

    The penalties are tried from the strongest on, each starting where the last ended; of equally good ones the
    strongest counts. The samples held out are the same share of every class.

    Args:
        features: ``[N, D]``.
        target: class indices ``[N]``.
        num_classes: C.
        penalties: to choose from, as in :func:`logistic`.
        holdout: share of the samples to choose on, between 0 and 1.
        seed: of their choice; the global random state is neither read nor changed.
        tol: as in :func:`logistic`.
        max_iter: as in :func:`logistic`.
        dtype: as in :func:`logistic`.

    Returns:
        The fit on all samples, its penalty, and the held-out accuracies.

    Raises:
        ValueError: as :func:`logistic`; no penalty, or no sample left to fit or to hold out.

    Example:
        >>> x = torch.cat([torch.linspace(0, 1, 20), torch.linspace(2, 3, 20)])[:, None]
        >>> path = logistic_path(x, torch.arange(40) // 20, 2, penalties=(1.0, 1e-3))
        >>> path.accuracy, path.penalty
        ({1.0: 1.0, 0.001: 1.0}, 1.0)
    """
    if not penalties:
        raise ValueError("logistic_path needs at least one penalty to choose, got none")
    check(features, target, num_classes, min(penalties))
    strongest_first = sorted(set(penalties), reverse=True)
    target = target.to(features.device)
    kept, held = stratified_split(target, holdout, seed)
    problem = SoftmaxProblem.of(features[kept], target[kept], num_classes, dtype)
    unseen, answers = features[held], target[held]
    # The two ends tell, without arrays as large as the features.
    if problem is None or not bool(torch.stack(unseen.aminmax()).isfinite().all()):
        unusable = nan_head(num_classes, features.shape[1], features.device)
        return LogisticPath(
            LogisticFit(unusable, 0, math.nan, False), math.nan, dict.fromkeys(strongest_first, math.nan)
        )
    accuracy, heads, head = {}, {}, None
    for penalty in strongest_first:
        head = heads[penalty] = problem.solve(penalty, tol, max_iter, head).head
        accuracy[penalty] = float((head(unseen).argmax(1) == answers).double().mean())
    del problem, unseen
    best = max(strongest_first, key=accuracy.__getitem__)
    fit = logistic(features, target, num_classes, best, tol, max_iter, heads[best], dtype)
    return LogisticPath(fit, best, accuracy)


def logistic_all(
    features: Mapping[str, Tensor],
    target: Tensor,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, LogisticPath]:
    """:func:`logistic_path` of every layer, one after the other in double precision.

    In single precision where the solver stops depends on the order of its sums, hence on the number of threads, and
    with processes that share a machine's cores an image or two changes sides. Beside the features it takes
    :func:`logistic_bytes`, of one layer at a time.

    Args:
        features: ``[N, D]`` by layer.
        target: class indices ``[N]``.
        num_classes: C.
        penalties: to choose from, for every layer by itself; a single one is taken without choosing.
        progress: called with the name of each layer when it is done.
        **options: of :func:`logistic_path`.

    Returns:
        By layer, in the order given; NaN heads for layers with constant or non-finite features.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([0, 0, 1, 1])
        >>> found = logistic_all({"a": x, "b": torch.ones(4, 2)}, y, 2, penalties=[1e-2])
        >>> found["a"].fit.converged, found["b"].fit.head.bias
        (True, tensor([nan, nan], dtype=torch.float64))
    """
    found = {}
    for name, layer in features.items():
        found[name] = logistic_path(layer, target, num_classes, penalties, dtype=torch.float64, **options)
        if progress is not None:
            progress(name)
    return found


def logistic_bytes(n: int, dim: int, num_classes: int) -> int:
    """Bytes at most that :func:`logistic_all` takes for one float32 layer ``[N, D]``, the layer left out.

    Those of :class:`SoftmaxProblem`, and the rows that are kept or held out while they are chosen from the layer.

    Example:
        >>> round(logistic_bytes(10_000, 2048, 10) / 2**30, 2)
        0.36
    """
    return SoftmaxProblem.nbytes(n, dim, num_classes) + 2 * n * dim


def stratified_split(target: Tensor, holdout: float, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Two disjoint sets of sample indices, with the same share of every class in both.

    Args:
        target: class indices ``[N]``.
        holdout: share of the second set.
        seed: of the choice.

    Returns:
        Ascending indices of the samples kept and of those held out, on the device of ``target``.

    Raises:
        ValueError: one of the sets would be empty.

    Example:
        >>> kept, held = stratified_split(torch.arange(10) % 2, 0.2)
        >>> len(kept), (held % 2).bincount().tolist()
        (8, [1, 1])
    """
    labels = target.cpu()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    order = order[labels[order].argsort(stable=True)]
    # Every 1/holdout-th sample of the shuffled classes laid end to end.
    ends = ((torch.arange(len(order) + 1) * holdout) + 0.5).floor()
    chosen = torch.zeros(len(order), dtype=torch.bool)
    chosen[order] = ends[1:] > ends[:-1]
    if chosen.all() or not chosen.any():
        raise ValueError(
            f"holding out {holdout} of {len(labels)} samples leaves none on one side: take more samples or "
            "another share"
        )
    return tuple(part.nonzero()[:, 0].to(target.device) for part in (~chosen, chosen))  # type: ignore


def check(features: Tensor, target: Tensor, num_classes: int, penalty: float) -> None:
    """Refuse what no layer's features could mend."""
    if features.ndim != 2 or target.shape != features.shape[:1]:
        raise ValueError(
            f"logistic regression needs features [N, D] and class indices [N], got {list(features.shape)} and "
            f"{list(target.shape)}"
        )
    if not penalty > 0:
        raise ValueError(
            f"the penalty of logistic regression must be above 0, got {penalty}: separable classes have no "
            "finite solution without one"
        )
    if len(target) and not 0 <= int(target.min()) <= int(target.max()) < num_classes:
        raise ValueError(
            f"labels go from {int(target.min())} to {int(target.max())}, which num_classes={num_classes} "
            "does not fit"
        )
