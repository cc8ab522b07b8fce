"""First and second moments of one layer's features, streamed."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.taps.precision import full_precision

# Rows gathered before one product is taken: the float64 accumulator (8 D^2 bytes) is read and written once
# per block of rows, so the fewer the better; above this the product itself dominates.
ROWS = 1024
# Columns of one block of the symmetric product. Only blocks on and above the diagonal are computed.
BLOCK = 256


def empty_state(dim: int, num_classes: int, device: torch.device | str | None = None) -> dict[str, Tensor]:
    """Zero sums, the state of :class:`Moments`; see there for what each is."""
    shapes: dict[str, tuple[int, ...]] = {
        "count": (),
        "sum": (dim,),
        "second": (dim, dim),
        "class_count": (num_classes,),
        "class_sum": (num_classes, dim),
        "class_square": (num_classes,),
        "class_unit": (num_classes, dim),
        "class_unit_square": (num_classes,),
    }
    return {
        name: torch.zeros(
            shape, dtype=torch.int64 if name in ("count", "class_count") else torch.float64, device=device
        )
        for name, shape in shapes.items()
    }


@torch.no_grad()
def add_batch(state: Mapping[str, Tensor], features: Tensor, target: Tensor) -> None:
    """Add one batch to the sums, in place.

    Args:
        state: as :func:`empty_state` makes it.
        features: ``[B, D]`` float32, on the state's device.
        target: class indices ``[B]``; one outside ``0..C-1`` counts for no class.
    """
    size, dim = features.shape
    num_classes = len(state["class_count"])
    with full_precision(features.device):
        x = features.double()
        norm = torch.linalg.vector_norm(x, dim=1)
        unit = torch.where(norm == 0, 0.0, 1 / norm)
        member = target == torch.arange(num_classes, device=target.device)[:, None]
        one_hot = member.double()
        # Sums of x and of x / |x| per class, and over all, in one pass over x.
        sums = torch.cat([one_hot, one_hot * unit, torch.ones_like(norm)[None]]) @ x
        squares = one_hot @ torch.stack([norm.square(), (norm * unit).square()], dim=1)
        total = sums[-1]
        mean = total / size
        centred = (x - mean).float()

        state["count"].add_(size)
        state["sum"].add_(total)
        state["class_count"].add_(member.sum(1))
        state["class_sum"].add_(sums[:num_classes])
        state["class_unit"].add_(sums[num_classes:-1])
        state["class_square"].add_(squares[:, 0])
        state["class_unit_square"].add_(squares[:, 1])
        for i in range(0, dim, BLOCK):
            block = state["second"][i : i + BLOCK, i:]
            block.add_(centred[:, i : i + BLOCK].T @ centred[:, i:])
            block.addr_(mean[i : i + BLOCK], total[i:])


class Moments:
    """Count, sum and second moment of a layer's features, and per class what variances and probes need.

    Every state is a plain sum over samples, so it streams, merges and reduces over processes by addition:

    - ``count``, ``sum`` [D];
    - ``second`` [D, D] = sum of ``x x^T``: each block of up to 1024 rows adds its scatter about its own mean
      (float32 product, float64 accumulator) and ``n m m^T`` in float64, so that it stays right where the mean
      dwarfs the deviation (blocks on and above the diagonal only, read it through the properties);
    - per class ``class_count`` [C], ``class_sum`` [C, D], ``class_square`` [C] (squared norms), and of
      L2-normalised features ``class_unit`` [C, D] and ``class_unit_square`` [C] (a zero vector stays zero).

    Sums are float64. NaN, infinite and constant features raise nothing: :attr:`problem` names them. It is a
    ``Measure`` without values of its own; :class:`MomentMeasures` and :func:`ridge_from_moments` read it.

    Args:
        dim: D.
        num_classes: C; labels outside ``0..C-1`` are an error once the moments are read.
        device: where the sums live; by default where the first features are.

    Example:
        >>> moments = Moments(dim=2, num_classes=2)
        >>> moments.update(torch.tensor([[1.0, 0.0], [3.0, 4.0]]), torch.tensor([0, 1]))
        >>> moments.n, moments.mean.tolist()
        (2, [2.0, 2.0])
        >>> moments.covariance
        tensor([[2., 4.],
                [4., 8.]], dtype=torch.float64)
    """

    def __init__(self, dim: int, num_classes: int, device: torch.device | str | None = None) -> None:
        if dim < 1 or num_classes < 1:
            raise ValueError(f"Moments needs dim and num_classes of at least 1, got {dim} and {num_classes}")
        self.dim = dim
        self.num_classes = num_classes
        self.device = None if device is None else torch.device(device)
        self._filled = 0

    @staticmethod
    def nbytes(dim: int, num_classes: int) -> int:
        """Bytes of the state of one layer, whatever the number of samples; allocated at the first update."""
        return 8 * (dim * dim + dim * (2 * num_classes + 1) + 3 * num_classes + 1) + ROWS * (4 * dim + 8)

    @cached_property
    def _state(self) -> dict[str, Tensor]:
        return empty_state(self.dim, self.num_classes, self.device)

    @cached_property
    def _rows(self) -> tuple[Tensor, Tensor]:
        """Features and labels that wait for their block to fill; copies, so no caller's buffer is held."""
        return (
            torch.empty(ROWS, self.dim, device=self.device),
            torch.empty(ROWS, dtype=torch.int64, device=self.device),
        )

    @torch.no_grad()
    def update(self, features: Tensor, target: Tensor) -> None:
        """Add samples.

        Args:
            features: ``[B, D]``, any floating type; summed from float32.
            target: class indices ``[B]``.

        Raises:
            ValueError: other shapes.
        """
        if features.shape != (len(target), self.dim) or target.ndim != 1:
            raise ValueError(
                f"Moments of {self.dim} dimensions needs features [B, {self.dim}] and class indices [B], got "
                f"{list(features.shape)} and {list(target.shape)}"
            )
        if self.device is None:
            # Apple's GPUs have no float64.
            self.device = torch.device("cpu") if features.device.type == "mps" else features.device
        done = 0
        while done < len(features):
            size = min(ROWS - self._filled, len(features) - done)
            into = slice(self._filled, self._filled + size)
            self._rows[0][into] = features[done : done + size]
            self._rows[1][into] = target[done : done + size]
            self._filled += size
            done += size
            if self._filled == ROWS:
                self._flush()

    def _flush(self) -> dict[str, Tensor]:
        if self._filled:
            features, target = (rows[: self._filled] for rows in self._rows)
            add_batch(self._state, features, target)
            self._filled = 0
        return self._state

    def merge(self, other: Moments) -> None:
        """Add the sums of ``other``, which stays as it is.

        Raises:
            ValueError: other dimensions or classes.
        """
        if (self.dim, self.num_classes) != (other.dim, other.num_classes):
            raise ValueError(
                f"cannot merge moments of {other.dim} dimensions and {other.num_classes} classes "
                f"into moments of {self.dim} and {self.num_classes}"
            )
        self.device = self.device or other.device
        mine = self._flush()
        for name, state in other._flush().items():
            mine[name].add_(state.to(mine[name].device))

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over the processes of ``group``; afterwards all hold the moments of all samples."""
        for state in self._flush().values():
            dist.all_reduce(state, group=group)

    def compute(self) -> list[Any]:
        """No values of its own."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """The sums, as tensors; not copies."""
        return dict(self._flush())

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Take the sums of :meth:`state_dict`, and forget what was added before.

        Raises:
            ValueError: sums of other names or shapes.
        """
        mine = self._state
        shapes = {name: tuple(tensor.shape) for name, tensor in mine.items()}
        given = {name: tuple(tensor.shape) for name, tensor in state.items()}
        if given != shapes:
            raise ValueError(f"the saved moments have shapes {given}, these need {shapes}")
        self._filled = 0
        for name, tensor in mine.items():
            tensor.copy_(state[name])

    @property
    def n(self) -> int:
        """Samples."""
        return int(self._flush()["count"])

    @property
    def class_count(self) -> Tensor:
        """Samples per class ``[C]``, int64.

        Raises:
            ValueError: labels outside ``0..C-1`` were given.
        """
        state = self._flush()
        outside = int(state["count"] - state["class_count"].sum())
        if outside:
            raise ValueError(
                f"{outside} of {self.n} labels are not in 0..{self.num_classes - 1}: "
                f"num_classes={self.num_classes} does not fit this set"
            )
        return state["class_count"]

    @property
    def class_sum(self) -> Tensor:
        """Sum of features per class ``[C, D]``."""
        return self._flush()["class_sum"]

    @property
    def class_square(self) -> Tensor:
        """Sum of squared norms per class ``[C]``."""
        return self._flush()["class_square"]

    @property
    def class_unit(self) -> Tensor:
        """Sum of L2-normalised features per class ``[C, D]``."""
        return self._flush()["class_unit"]

    @property
    def class_unit_square(self) -> Tensor:
        """Sum of squared norms of the L2-normalised features per class ``[C]``: samples that are not zero."""
        return self._flush()["class_unit_square"]

    @property
    def mean(self) -> Tensor:
        """Mean ``[D]``; NaN without samples."""
        state = self._flush()
        return state["sum"] / state["count"]

    @property
    def second_moment(self) -> Tensor:
        """Uncentred second moment ``E[x x^T]``, ``[D, D]``; NaN without samples."""
        return self._second().div_(self.n or torch.nan)

    @property
    def scatter(self) -> Tensor:
        """``sum (x - mean)(x - mean)^T``, ``[D, D]``; zero for a constant column, NaN without samples."""
        second, mean = self._second(), self.mean
        scale = second.diagonal().clone()
        scatter = second.addr_(mean, self._state["sum"], alpha=-1)
        # What is left of a constant column is the rounding of the difference of two equal numbers.
        constant = scatter.diagonal() <= 1e-14 * scale
        return scatter.masked_fill_(constant, 0).masked_fill_(constant[:, None], 0)

    @property
    def covariance(self) -> Tensor:
        """Sample covariance ``[D, D]``, by N - 1; NaN for fewer than two samples."""
        return self.scatter.div_(self.n - 1 if self.n > 1 else torch.nan)

    @property
    def problem(self) -> str:
        """Why nothing can be measured here (no samples, NaN, infinite or constant features), or ``""``."""
        state = self._flush()
        if self.n == 0:
            return "no samples"
        second = state["second"].diagonal()
        if not torch.isfinite(second).all():
            return "NaN or infinite features"
        mean = self.mean
        if (second - mean * state["sum"] <= 1e-14 * second).all():
            return "constant features"
        return ""

    def _second(self) -> Tensor:
        upper = self._flush()["second"].triu()
        return upper + upper.triu(1).T
