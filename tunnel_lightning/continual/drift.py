"""Each layer beside itself as it was when a task was learnt, on that task's images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from tunnel_lightning.continual.stream import Task
from tunnel_lightning.measures import (
    Value,
    linear_cka,
    linear_map_residual,
    principal_directions,
    subspace_overlap,
)
from tunnel_lightning.taps import Tap
from tunnel_lightning.taps.pooling import choose_columns

DIRECTIONS = 10
"""Principal directions that are compared."""


class References:
    """Features of some test images of every task, as they were when it was learnt; float32, on the CPU.

    A layer with more than ``columns`` columns is kept, and compared, by a fixed random subset of them. The images are
    spread evenly over the task's test images.

    Args:
        layers: which layers.
        images: of each task.
        columns: of each layer.

    Example:
        >>> tap = Tap("a", "a", 1, 1, "Linear", (4,), 4, 20)
        >>> kept = References([tap], images=10)
        >>> kept.nbytes
        160
        >>> x = torch.randn(10, 4, generator=torch.Generator().manual_seed(0))
        >>> kept.keep(0, {"a": x})
        >>> [value.variant for value in kept.compare(0, {"a": 2 * x})["a"]]
        ['learnt', 'k=10', 'linear']
    """

    def __init__(self, layers: Sequence[Tap], images: int = 500, columns: int = 1024) -> None:
        self.images = images
        self._columns = {tap.name: choose_columns(tap.dim, columns, 0, tap.name) for tap in layers}
        self._width = sum(min(tap.dim, columns) for tap in layers)
        self._kept: dict[int, dict[str, Tensor]] = {}
        # Found when first needed, from what is kept.
        self._directions: dict[tuple[int, str], Tensor] = {}

    @property
    def nbytes(self) -> int:
        """Bytes that each task takes at most."""
        return 4 * self.images * self._width

    def __contains__(self, task: Task | int) -> bool:
        return (task if isinstance(task, int) else task.index) in self._kept

    def keep(self, index: int, features: Mapping[str, Tensor]) -> None:
        """Keep what a task's test images ``[N, D]`` look like in every layer now."""
        self._directions = {key: found for key, found in self._directions.items() if key[0] != index}
        self._kept[index] = {name: self._part(name, features[name]) for name in self._columns}

    def compare(self, index: int, features: Mapping[str, Tensor]) -> dict[str, list[Value]]:
        """Every layer now beside what was kept, by name.

        Args:
            index: of the task.
            features: of the same test images ``[N, D]``, now.

        Returns:
            ``cka/learnt`` (linear, unbiased), ``subspace_overlap/k=10`` and ``map_residual/linear`` (from the
            features now to those then); NaN where a layer's features are constant, NaN or infinite on either side.
        """
        found = {}
        for name, then in self._kept[index].items():
            now = self._part(name, features[name])
            if (index, name) not in self._directions:
                self._directions[index, name] = principal_directions(then, DIRECTIONS)
            directions = self._directions[index, name]
            values = {
                ("cka", "learnt"): linear_cka(now, then),
                ("subspace_overlap", f"k={DIRECTIONS}"): subspace_overlap(
                    now, None, DIRECTIONS, directions=directions
                ),
                ("map_residual", "linear"): linear_map_residual(now, then),
            }
            found[name] = [
                Value(*named, float(value), float("nan"), len(now)) for named, value in values.items()
            ]
        return found

    def state_dict(self) -> dict[int, dict[str, Tensor]]:
        """What was kept, by task and layer; not copies."""
        return {index: dict(layers) for index, layers in self._kept.items()}

    def load_state_dict(self, state: Mapping[int, Mapping[str, Tensor]]) -> None:
        """Take what `state_dict` returned."""
        self._directions = {}
        self._kept = {index: {name: x.cpu() for name, x in layers.items()} for index, layers in state.items()}

    def _part(self, name: str, x: Tensor) -> Tensor:
        images, columns = min(self.images, len(x)), self._columns[name]
        rows = torch.linspace(0, len(x) - 1, images, dtype=torch.float64).round().long()
        part = x[rows].float().cpu()
        return part if columns is None else part.index_select(1, columns)
