"""The solver behind the logistic-regression probes; the objective is in :mod:`...functional.logistic`.

It is L-BFGS (Nocedal and Wright, Numerical Optimization, 2006, algorithm 7.4) that starts its estimate of the
inverse Hessian from ``(Z^T Z / (C N) + penalty * I)^-1``, the same for every class, in place of the identity:
the Hessian where all classes are equally likely, and for two classes the upper bound of Boehning (1992,
"Multinomial logistic regression algorithm", section 2) everywhere. A layer's columns are so correlated that it
takes a tenth of the iterations on real features. Finer stand-ins (the mean curvature at the present point, per
class, or per sample) were tried and saved none.

The scores move along a straight line, so a line search needs no product with the features: an iteration takes
one product with them and one with their transpose.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from tunnel_lightning.measures.functional.ridge import LinearHead, Standardised, standardise
from tunnel_lightning.taps.precision import full_precision

# Pairs of steps and changes of the gradient to remember: small beside the features, and each saves iterations.
MEMORY = 20
# A step is taken once the slope along it has fallen to this share.
SLOPE = 0.1
# Columns of one block of the symmetric product: only those on and below the diagonal are computed.
BLOCK = 256
# Layers of more columns take the stand-in for the Hessian from at most as many rows: less to multiply and to
# factorise, for two to three times the iterations. What those rows miss is taken as TAIL of the mean eigenvalue.
WIDE = 2048
TAIL = 0.2


class Solution(NamedTuple):
    """Where the solver stopped.

    Attributes:
        head: on raw features.
        iterations: taken.
        gradient: largest absolute component of the gradient.
    """

    head: LinearHead
    iterations: int
    gradient: float


class SoftmaxProblem:
    """The objective of one layer's probe, for any penalty; products are in the precision of the features.

    Parameters are ``[C, D + 1]`` float64, the last column the bias.

    Args:
        data: standardised features, N of them.
        target: class indices ``[N]``.
        num_classes: C.

    Example:
        >>> x, y = torch.tensor([[0.0], [1.0], [9.0], [10.0]]), torch.tensor([0, 0, 1, 1])
        >>> SoftmaxProblem.of(x, y, 2).solve(penalty=1e-2).gradient < 1e-4
        True
    """

    def __init__(self, data: Standardised, target: Tensor, num_classes: int) -> None:
        self.mean, self.scale = data.mean, data.scale
        self.z = data.z
        self.labels = target.to(self.z.device).long()[None]
        self.num_classes = num_classes

    @cached_property
    def _gram(self) -> Tensor:
        """``Z^T Z / N``, ``[D, D]`` float64."""
        return _products(self.z).div_(len(self.z)).double()

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """Some of the rows ``[M, D]``, and the products of all pairs of them ``[M, M]`` float64."""
        rows = self.z[:: math.ceil(len(self.z) / WIDE)].contiguous()
        return rows, _products(rows.T).double()

    @classmethod
    def of(
        cls, features: Tensor, target: Tensor, num_classes: int, dtype: torch.dtype | None = None
    ) -> SoftmaxProblem | None:
        """The problem of raw features ``[N, D]``; None where they are empty, constant or not finite.

        Products are in ``dtype``, by default that of the features and no less than float32.
        """
        data = standardise(features, dtype or torch.promote_types(features.dtype, torch.float32))
        return None if data is None else cls(data, target, num_classes)

    @staticmethod
    def nbytes(n: int, dim: int, num_classes: int) -> int:
        """Bytes at most in use while a problem in double precision is made and solved, features left out.

        The standardised features, some arrays of one score for each sample and class, the solver's memory of steps,
        and the stand-in for the Hessian with its factors.

        Example:
            >>> round(SoftmaxProblem.nbytes(8000, 2048, 10) / 2**30, 2)
            0.29
        """
        rows = min(n, WIDE)
        squares = 5 * dim * dim if dim <= WIDE else rows * dim + 5 * rows * rows
        steps = 2 * MEMORY + 10
        return 8 * (n * dim + 8 * num_classes * n + steps * num_classes * (dim + 1) + squares)

    def solve(
        self, penalty: float, tol: float = 1e-4, max_iter: int = 1000, start: LinearHead | None = None
    ) -> Solution:
        """Minimise the objective.

        Args:
            penalty: on the squared weights.
            tol: largest absolute component of the gradient to stop at.
            max_iter: iterations to stop after at the latest.
            start: by default zero.
        """
        w = self._parameters(start)
        scores = self._scores(w)
        error = self._error(scores)
        gradient = self._gradient(error, w, penalty)
        precondition = None
        pairs: deque[tuple[Tensor, Tensor, Tensor]] = deque(maxlen=MEMORY)
        iterations = 0
        while (largest := float(gradient.abs().max())) > tol and iterations < max_iter:
            if precondition is None:
                precondition = self._preconditioner(penalty)
            direction = -self._newton(gradient, pairs, precondition)
            moved = self._scores(direction)
            step = self._line_search(scores, moved, w, direction, penalty)
            if step == 0:  # the gradient is down to rounding
                break
            change = step * direction
            w = w + change
            scores.add_(moved, alpha=step)
            error = self._error(scores)
            before, gradient = gradient, self._gradient(error, w, penalty)
            difference = gradient - before
            product = (change * difference).sum()
            if product > 0:  # always, but for rounding
                pairs.append((change, difference, 1 / product))
            iterations += 1
        return Solution(self._head(w), iterations, largest)

    def _scores(self, w: Tensor) -> Tensor:
        """``[C, N]``: softmax over the first dimension is many times faster than over the last."""
        w = w.to(self.z.dtype)
        with full_precision(self.z.device):
            return torch.addmm(w[:, -1:], w[:, :-1], self.z.T)

    def _error(self, scores: Tensor) -> Tensor:
        """Probabilities less the one-hot labels ``[C, N]``."""
        p = scores.softmax(0)
        return p.scatter_add_(0, self.labels, p.new_full(self.labels.shape, -1.0))

    def _gradient(self, error: Tensor, w: Tensor, penalty: float) -> Tensor:
        with full_precision(self.z.device):
            gradient = torch.cat([error @ self.z, error.sum(1, keepdim=True)], dim=1).double()
        gradient /= len(self.z)
        gradient[:, :-1].add_(w[:, :-1], alpha=penalty)
        return gradient

    def _preconditioner(self, penalty: float) -> Callable[[Tensor], Tensor]:
        """Multiplication by the inverse of the Hessian's stand-in, ``[C, D + 1] -> [C, D + 1]``."""
        weights = (self._by_columns if self.z.shape[1] <= WIDE else self._by_rows)(penalty)
        return lambda g: torch.cat([weights(g[:, :-1]), g[:, -1:] * self.num_classes], dim=1)

    def _by_columns(self, penalty: float) -> Callable[[Tensor], Tensor]:
        matrix = self._gram / self.num_classes
        added = penalty
        while True:
            matrix.diagonal().add_(added)
            factor, info = torch.linalg.cholesky_ex(matrix)
            if info.item() == 0:
                inverse = torch.cholesky_inverse(factor)
                return lambda weight: weight @ inverse
            # The rounding of a float32 product, 1e-7 of the largest eigenvalue, may exceed a small penalty.
            added *= 10

    def _by_rows(self, penalty: float) -> Callable[[Tensor], Tensor]:
        # (R^T R / (C M) + a I)^-1 = (I - R^T (R R^T + a C M I)^-1 R) / a
        rows, products = self._rows
        added = penalty + TAIL / self.num_classes
        matrix = products.clone()
        matrix.diagonal().add_(added * self.num_classes * len(rows))
        factor = torch.linalg.cholesky(matrix)

        def multiply(weight: Tensor) -> Tensor:
            narrow = weight.to(rows)
            with full_precision(rows.device):
                inner = torch.cholesky_solve((rows @ narrow.T).double(), factor).to(rows)
                return (narrow - inner.T @ rows).double() / added

        return multiply

    def _newton(
        self,
        gradient: Tensor,
        pairs: deque[tuple[Tensor, Tensor, Tensor]],
        precondition: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """The gradient times the estimate of the inverse Hessian: the two-loop recursion."""
        q = gradient.clone()
        weights = []
        for change, difference, one_over in reversed(pairs):
            weights.append(one_over * (change * q).sum())
            q.addcmul_(weights[-1], difference, value=-1)
        q = precondition(q)
        for (change, difference, one_over), weight in zip(pairs, reversed(weights), strict=True):
            q.addcmul_(weight - one_over * (difference * q).sum(), change)
        return q

    def _line_search(
        self, scores: Tensor, moved: Tensor, w: Tensor, direction: Tensor, penalty: float
    ) -> float:
        """The step to where the slope of the objective, which is convex, is all but zero; 0 if it never falls.

        Newton's iteration, by bisection where it leaves the ends known to lie on either side.
        """
        weight, along = w[:, :-1], direction[:, :-1]
        linear, quadratic = (penalty * torch.stack([(weight * along).sum(), along.square().sum()])).tolist()
        low, high, step, least = 0.0, math.inf, 0.0, 0.0
        for trial in range(50):
            p = torch.add(scores, moved, alpha=step).softmax(0)
            moment = p * moved
            mean = moment.sum(0)
            slopes = mean - moved.gather(0, self.labels)[0]
            bends = (moment * moved).sum(0) - mean.square()
            slope, bend = torch.stack([slopes, bends]).mean(1, dtype=torch.float64).tolist()
            slope, bend = slope + linear + step * quadratic, bend + quadratic
            if trial == 0:
                least = SLOPE * -slope
                if not slope < 0:
                    break
            elif abs(slope) <= least:
                return step
            low, high = (step, high) if slope < 0 else (low, step)
            step = step - slope / bend if bend > 0 else math.inf
            if not low < step < high:
                step = (low + high) / 2 if high < math.inf else 2 * max(low, 1.0)
        return low

    def _head(self, w: Tensor) -> LinearHead:
        weight = w[:, :-1] * self.scale
        return LinearHead(weight, w[:, -1] - weight @ self.mean)

    def _parameters(self, head: LinearHead | None) -> Tensor:
        if head is None:
            return self.mean.new_zeros(self.num_classes, self.z.shape[1] + 1)
        raw = head.weight.to(self.mean)
        weight = raw * torch.where(self.scale > 0, 1 / self.scale, 0.0)
        return torch.cat([weight, (head.bias.to(self.mean) + raw @ self.mean)[:, None]], dim=1)


def _products(z: Tensor) -> Tensor:
    """``Z^T Z``, ``[D, D]``."""
    dim = z.shape[1]
    lower = z.new_zeros(dim, dim)
    with full_precision(z.device):
        for i in range(0, dim, BLOCK):
            lower[i:, i : i + BLOCK] = z[:, i:].T @ z[:, i : i + BLOCK]
    return lower.tril().add_(lower.tril(-1).T)
