"""Converged softmax probes: multinomial logistic regression on features held in memory.

The objective, on features standardised by their own mean and population deviation (columns without variance
get weight zero), with an unpenalised intercept:

    mean_n( -log softmax(W z_n + b)[y_n] ) + penalty / 2 * ||W||_F^2

It equals scikit-learn's ``make_pipeline(StandardScaler(), LogisticRegression(C=1 / (penalty * N), tol=tol))``
for three classes or more; for two, scikit-learn fits one vector in place of two opposite ones, and its
``C = 2 / (penalty * N)`` is the same. ``penalty`` is per sample: a probe does not change its strength with the
number of images.

The solver is L-BFGS (Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4) whose initial matrix is
not the identity but the inverse of ``c * Z^T Z / N + penalty * I``, the same for every class: the Hessian's
upper bound of Boehning (1992, "Multinomial logistic regression algorithm", section 2) with its 1/2 replaced by
the mean curvature ``c`` of the softmax at the present point. Layers' features are so correlated that it takes
a tenth of the iterations. The scores move along a straight line, so the line search needs no product with the
features: one product with them and one with their transpose per iteration.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tunnel_lightning.measures.functional.ridge import LinearHead, Standardised, nan_head, standardise
from tunnel_lightning.taps.precision import full_precision

PENALTIES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
# Pairs of steps and gradients L-BFGS remembers: small beside the features, and each saves iterations.
MEMORY = 20
# The stand-in for the Hessian is made again where the mean curvature has changed by this factor.
REFRESH = 2.0
# A step is taken where the slope along it has fallen to this share.
SLOPE = 0.1


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
) -> LogisticFit:
    """Softmax probe from features in memory, converged.

    Products are taken in the precision of the features, float32 or float64.

    Args:
        features: ``[N, D]``.
        target: class indices ``[N]``.
        num_classes: C.
        penalty: on the squared weights (module docstring), above 0.
        tol: largest absolute component of the gradient to stop at, as scikit-learn's.
        max_iter: iterations to stop after at the latest.
        start: a head to start from; by default zero.

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
    problem = _Problem.of(features, target, num_classes)
    if problem is None:
        return LogisticFit(nan_head(num_classes, features.shape[1], features.device), 0, math.nan, False)
    return problem.solve(penalty, tol, max_iter, start)


def logistic_path(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    holdout: float = 0.2,
    seed: int = 0,
    tol: float = 1e-4,
    max_iter: int = 1000,
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
    kept, held = stratified_split(target, holdout, seed)
    problem = _Problem.of(features[kept], target[kept], num_classes)
    if problem is None or not bool(torch.isfinite(features[held]).all()):
        unusable = nan_head(num_classes, features.shape[1], features.device)
        return LogisticPath(
            LogisticFit(unusable, 0, math.nan, False), math.nan, dict.fromkeys(strongest_first, math.nan)
        )
    accuracy, heads, head = {}, {}, None
    for penalty in strongest_first:
        head = heads[penalty] = problem.solve(penalty, tol, max_iter, head).head
        accuracy[penalty] = float((head(features[held]).argmax(1) == target[held]).double().mean())
    del problem
    best = max(strongest_first, key=accuracy.__getitem__)
    fit = logistic(features, target, num_classes, best, tol, max_iter, start=heads[best])
    return LogisticPath(fit, best, accuracy)


def logistic_all(
    features: Mapping[str, Tensor],
    target: Tensor,
    num_classes: int,
    penalties: Sequence[float] = PENALTIES,
    progress: Callable[[str], None] | None = None,
    **options: Any,
) -> dict[str, LogisticPath]:
    """:func:`logistic_path` of every layer.

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
        found[name] = logistic_path(layer, target, num_classes, penalties, **options)
        if progress is not None:
            progress(name)
    return found


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
        >>> len(kept), (held % 2).tolist()
        (8, [0, 1])
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


class _Problem:
    """The objective of one layer's probe; its parameters are ``[C, D + 1]`` float64, the last column the bias.

    With fewer samples than columns, D is N: the solution is a combination of the samples, so the features are
    turned into N columns by a QR decomposition, ``Z = R^T Q^T``, which changes neither scores nor penalty.
    """

    def __init__(self, data: Standardised, target: Tensor, num_classes: int) -> None:
        self.mean, self.scale = data.mean, data.scale
        self.z: Tensor = data.z
        self.basis: Tensor | None = None
        n, dim = self.z.shape
        if n < dim:
            self.basis, upper = torch.linalg.qr(self.z.T)
            self.z = upper.T.contiguous()
        self.target = target.to(self.z.device).long()[:, None]
        self.num_classes = num_classes
        with full_precision(self.z.device):
            self.gram = (self.z.T @ self.z).div_(n)

    @classmethod
    def of(cls, features: Tensor, target: Tensor, num_classes: int) -> _Problem | None:
        """The problem, or None where the features cannot be fitted."""
        data = standardise(features, torch.promote_types(features.dtype, torch.float32))
        return None if data is None else cls(data, target, num_classes)

    def scores(self, w: Tensor) -> Tensor:
        """``[N, C]`` in the features' precision."""
        w = w.to(self.z.dtype)
        with full_precision(self.z.device):
            return torch.addmm(w[:, -1], self.z, w[:, :-1].T)

    def gradient(self, error: Tensor, w: Tensor, penalty: float) -> Tensor:
        """``[C, D + 1]`` float64, from the probabilities less the one-hot labels, ``[N, C]``."""
        with full_precision(self.z.device):
            gradient = torch.cat([error.T @ self.z, error.sum(0)[:, None]], dim=1).double().div_(len(error))
        gradient[:, :-1] += penalty * w[:, :-1]
        return gradient

    def largest(self, gradient: Tensor) -> float:
        """The largest component of a gradient with respect to the weights of the standardised features."""
        weight = gradient[:, :-1] if self.basis is None else gradient[:, :-1].to(self.z) @ self.basis.T
        return max(float(weight.abs().max()), float(gradient[:, -1].abs().max()))

    def error(self, scores: Tensor) -> Tensor:
        """Probabilities less the one-hot labels ``[N, C]``."""
        p = scores.softmax(1)
        return p.scatter_add_(1, self.target, p.new_full(self.target.shape, -1.0))

    def curvature(self, error: Tensor) -> float:
        """Mean eigenvalue of the softmax's Hessian ``diag(p) - p p^T``, over samples; 1/C where p is uniform."""
        # p is the error, plus 1 at the label.
        at_label = error.gather(1, self.target)
        square = error.square().sum(1) + (2 * at_label[:, 0] + 1)
        return float((1 - square).mean(dtype=torch.float64)) / (self.num_classes - 1)

    def inverse(self, curvature: float, penalty: float) -> Callable[[Tensor], Tensor]:
        """Multiplication by the inverse of the Hessian's stand-in, ``[C, D + 1] -> [C, D + 1]``."""
        matrix = self.gram.double().mul_(curvature)
        jitter = penalty
        while True:
            matrix.diagonal().add_(jitter)
            factor, info = torch.linalg.cholesky_ex(matrix)
            if info.item() == 0:
                break
            # The rounding of float32 products, some 1e-7 of the largest eigenvalue, may exceed a small penalty.
            jitter *= 10
        inverse = torch.cholesky_inverse(factor)
        return lambda g: torch.cat([g[:, :-1] @ inverse, g[:, -1:] / curvature], dim=1)

    def fold(self, w: Tensor) -> LinearHead:
        """The head on raw features."""
        weight = w[:, :-1] if self.basis is None else w[:, :-1] @ self.basis.T.double()
        weight = weight * self.scale
        return LinearHead(weight, w[:, -1] - weight @ self.mean)

    def unfold(self, head: LinearHead) -> Tensor:
        """The parameters of a head."""
        weight = head.weight.to(self.mean) * torch.where(self.scale > 0, 1 / self.scale, 0.0)
        bias = head.bias.to(self.mean) + head.weight.to(self.mean) @ self.mean
        weight = weight if self.basis is None else weight @ self.basis.double()
        return torch.cat([weight, bias[:, None]], dim=1)

    def solve(self, penalty: float, tol: float, max_iter: int, start: LinearHead | None) -> LogisticFit:
        """L-BFGS; see the module's docstring."""
        if start is None:
            w = self.z.new_zeros(self.num_classes, self.z.shape[1] + 1, dtype=torch.float64)
        else:
            w = self.unfold(start)
        scores = self.scores(w)
        error = self.error(scores)
        gradient = self.gradient(error, w, penalty)
        curvature = self.curvature(error)
        inverse = self.inverse(curvature, penalty)
        pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
        iterations = 0
        while (largest := self.largest(gradient)) > tol and iterations < max_iter:
            now = self.curvature(error)
            if not curvature / REFRESH < now < curvature * REFRESH:
                curvature, inverse = now, self.inverse(now, penalty)
            direction = _direction(gradient, pairs, inverse)
            moved = self.scores(direction)
            step = self.line_search(scores, moved, w, direction, penalty)
            if step == 0:
                break
            w = w + step * direction
            scores = scores.add_(moved, alpha=step)
            error = self.error(scores)
            before, gradient = gradient, self.gradient(error, w, penalty)
            change, difference = step * direction, gradient - before
            product = (change * difference).sum()
            pairs.append((change, difference, 1 / product))
            iterations += 1
        return LogisticFit(self.fold(w), iterations, largest, largest <= tol)

    def line_search(
        self, scores: Tensor, moved: Tensor, w: Tensor, direction: Tensor, penalty: float
    ) -> float:
        """The step along a direction where the slope of the (convex) objective is all but zero.

        Newton's iteration, kept between the ends known to lie on either side by bisection.
        """
        weight, along = w[:, :-1], direction[:, :-1]
        linear = float((weight * along).sum()) * penalty
        quadratic = float(along.square().sum()) * penalty
        low, high, step, first = 0.0, math.inf, 0.0, 0.0
        for evaluation in range(30):
            p = torch.softmax(torch.add(scores, moved, alpha=step), 1)
            moment = p * moved
            mean = moment.sum(1)
            slope_at = mean - moved.gather(1, self.target)[:, 0]
            bend_at = (moment * moved).sum(1) - mean.square()
            slope, bend = torch.stack([slope_at, bend_at]).mean(1, dtype=torch.float64).tolist()
            slope, bend = slope + linear + step * quadratic, bend + quadratic
            if evaluation == 0:
                first = slope
                if not slope < 0:
                    return 0.0
            elif abs(slope) <= SLOPE * -first:
                return step
            low, high = (step, high) if slope < 0 else (low, step)
            step = step - slope / bend if bend > 0 else math.inf
            if not low < step < high:
                step = (low + high) / 2 if high < math.inf else 2 * max(low, 1.0)
        return low


def _direction(
    gradient: Tensor,
    pairs: deque[tuple[Tensor, Tensor, Tensor]],
    inverse: Callable[[Tensor], Tensor],
) -> Tensor:
    """Minus the gradient times L-BFGS's estimate of the inverse Hessian: the two-loop recursion."""
    q = gradient
    weights = []
    for change, difference, one_over in reversed(pairs):
        weights.append(one_over * (change * q).sum())
        q = q - weights[-1] * difference
    q = inverse(q)
    for (change, difference, one_over), weight in zip(pairs, reversed(weights), strict=True):
        q = q + (weight - one_over * (difference * q).sum()) * change
    return -q
