"""What a pass over data feeds: measures of one layer, observers of all layers together; and a value of a layer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.measures.layer import Value
from tunnel_lightning.taps import Tap


class Measure(Protocol):
    """The streaming state of one measure on one layer: a new measure is a class with these four methods.

    An attribute ``nbytes``, where there is one, says how much memory the state takes, before it takes it.
    """

    def update(self, features: Tensor, target: Tensor) -> None:
        """Add features ``[B, D]`` and class indices ``[B]``; never wait for the device here."""

    def compute(self) -> list[Value]:
        """The values so far; NaN where undefined, never an exception because of the features."""

    def merge(self, other: Any) -> None:
        """Add the samples of another state of the same kind."""

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over the processes of ``group``."""


class Observer(Protocol):
    """The streaming state of what needs several layers at once, or a layer and the network's output.

    What it found it says in its own way; :func:`~tunnel_lightning.measures.accumulate` only feeds it.

    Example:
        >>> import torch
        >>> class Images:
        ...     '''Counts the images that passed through each layer.'''
        ...     def __init__(self):
        ...         self.count = {}
        ...     def update(self, features, target, output):
        ...         for name, rows in features.items():
        ...             self.count[name] = self.count.get(name, 0) + len(rows)
        ...     def all_reduce(self, group=None):
        ...         pass  # one process
        >>> from tunnel_lightning.measures import accumulate
        >>> from tunnel_lightning.taps import tap
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> batches = [(torch.arange(8.0).view(2, 4), torch.tensor([0, 1]))]
        >>> images = Images()
        >>> _ = accumulate(model, tap(model, batches[0][0]), batches, [], observers=[images])
        >>> images.count
        {'0': 2, 'input': 2}
    """

    def update(self, features: Mapping[str, Tensor], target: Tensor, output: Tensor | None) -> None:
        """Add one batch; never wait for the device here.

        Args:
            features: ``[B, D]`` of every layer that ran, by name; ``"input"`` too where it is measured. With
                ``pool="gram"`` the layers' Gram matrices ``[B, B]``.
            target: class indices ``[B]``.
            output: the network's scores ``[B, C]``; None where its output holds none.
        """

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum (or gather) over the processes of ``group``; also called on one that got no batch."""


class LayerValue(NamedTuple):
    """One value of one layer.

    Attributes:
        layer: name: ``"input"``, a tap's name, or ``"network"`` for the model's own output.
        index: 0 for the input, then in execution order; layers + 1 for the network.
        dim: width of the features; classes for the network.
        measure: what was measured.
        variant: how.
        value: NaN where undefined.
        se: standard error, NaN where there is none.
        n: samples.
    """

    layer: str
    index: int  # type: ignore[assignment]
    dim: int
    measure: str
    variant: str
    value: float
    se: float
    n: int


Factory = Callable[[Tap], "Measure | None"]
States = dict[str, "list[Measure | None]"]
