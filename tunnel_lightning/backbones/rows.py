"""From a layer's output to rows of features, as a module: what taps do inside their hooks, for a network cut there.

The rules and the numbers are those of ``tunnel_lightning.taps.pooling`` (a test holds them equal); here they can be
exported, with any number of images in a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isqrt
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd, _AvgPoolNd, _MaxPoolNd

Pooled = Literal["2x2", "avg", "flatten", "token"]
Kind = Literal["features", "tokens", "first", "last"]
_CHANNELS_FIRST = (_ConvNd, _BatchNorm, _AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_WINDOWS = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)
_CELLS: tuple[Any, ...] = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)


class Rows(nn.Module):
    """Rows of features [B, D] from a layer's output; see ``TapSpec.pool`` for the ways.

    Averages keep the type of the output (the taps widen those of half-precision maps to float32).

    Args:
        pool: ``2x2``, ``avg``, ``flatten`` or ``token``.
        kind: what the sizes of the output mean: ``features`` [B, D], ``tokens`` [B, T, C], channels ``first``
            [B, C, ...] or ``last`` [B, ..., C].
        prefix: leading tokens that are no patches.
        fold: rows of the output that belong to one image.
        columns: which of the features to keep; None for all.

    Attributes:
        pool: as given.

    Raises:
        ValueError: another ``pool``.

    Example:
        >>> Rows("2x2", "first")(torch.arange(16.0).view(1, 1, 4, 4))
        tensor([[ 2.5000,  4.5000, 10.5000, 12.5000]])
    """

    columns: Tensor | None

    def __init__(
        self,
        pool: Pooled,
        kind: Kind,
        prefix: int = 0,
        fold: int = 1,
        columns: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        if pool not in get_args(Pooled):
            raise ValueError(f"pool is {pool!r}; choose one of {', '.join(get_args(Pooled))}.")
        self.pool, self.kind, self.prefix, self.fold = pool, kind, prefix, fold
        # Not in the state: whoever makes the module again gives them again.
        kept = None if columns is None else torch.tensor(columns, dtype=torch.int64)
        self.register_buffer("columns", kept, persistent=False)

    @classmethod
    def of(
        cls,
        pool: Pooled,
        network: nn.Module,
        module: nn.Module,
        shape: Sequence[int],
        images: int,
        columns: Sequence[int] | None = None,
    ) -> Rows:
        """The module for what a layer of a network puts out.

        Args:
            pool: as above.
            network: what the layer is part of; timm's say of their layout.
            module: the layer.
            shape: of its output for a batch, the batch included.
            images: in that batch.
            columns: as above.

        Raises:
            ValueError: another ``pool``, columns that are not there, or an output that holds no whole number of rows
                for each image.
        """
        fold, rest = divmod(shape[0], images)
        if rest or not fold:
            raise ValueError(
                f"the layer puts out {list(shape)} for {images} images, which are no rows of theirs; choose another "
                "layer."
            )
        kind, prefix = _meaning(module, tuple(shape), network, fold)
        rows = cls(pool, kind, prefix, fold)
        width = rows(torch.empty(tuple(shape), device="meta")).shape[1]
        if columns is not None:
            wrong = [column for column in columns if not 0 <= column < width]
            if wrong or not columns:
                raise ValueError(
                    f"columns must name some of the layer's {width} features, got {wrong[:3] or 'none'}."
                )
            rows = cls(pool, kind, prefix, fold, columns)
        return rows

    def forward(self, x: Tensor) -> Tensor:
        """Features [B, D] of a layer's output."""
        rows = self._pooled(x)
        if self.fold > 1:
            rows = rows.unflatten(0, (-1, self.fold))
            rows = rows.flatten(1) if self.pool == "flatten" else rows.mean(1)
        return rows if self.columns is None else rows.index_select(1, self.columns)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.kind == "features":
            return x if x.dim() == 2 else x.unsqueeze(1)
        if self.pool == "flatten":
            return (x.movedim(-1, 1) if self.kind == "last" else x).flatten(1)
        if self.kind == "tokens":
            if self.pool == "token" and self.fold == 1:
                return x[:, 0]
            return x[:, self.prefix :].mean(1)
        if self.kind == "last":
            x = x.movedim(-1, 1)
        if self.pool != "2x2":
            return x.mean(tuple(range(2, x.dim())))
        sizes = tuple(x.shape[2:])
        cells = tuple(min(2, size) for size in sizes)
        if cells == sizes:
            return x.flatten(1)
        if any(size % cell for size, cell in zip(sizes, cells, strict=True)):
            return _CELLS[len(sizes) - 1](x, cells).flatten(1)
        window = tuple(size // cell for size, cell in zip(sizes, cells, strict=True))
        return _WINDOWS[len(sizes) - 1](x, window).flatten(1)

    def extra_repr(self) -> str:
        """What it does, in a printed network."""
        kept = "" if self.columns is None else f", {len(self.columns)} columns"
        return f"{self.pool}, {self.kind}{kept}"


def _meaning(module: nn.Module, shape: tuple[int, ...], network: nn.Module, fold: int) -> tuple[Kind, int]:
    """What the sizes of an output mean, and its leading tokens: the rules at the top of taps/pooling.py."""
    if len(shape) <= 2:
        return "features", 0
    if isinstance(module, _CHANNELS_FIRST):
        return "first", 0
    if len(shape) == 3:
        return "tokens", _leading(shape[1], network) if fold == 1 else 0
    if isinstance(module, nn.Linear) or type(module) is nn.LayerNorm:
        return "last", 0
    if len(shape) == 4:
        _, a, b, c = shape
        said = any(str(getattr(each, "output_fmt", "")).endswith("NHWC") for each in network.modules())
        if a == b != c or (said and not a != b == c):
            return "last", 0
    return "first", 0


def _leading(tokens: int, network: nn.Module) -> int:
    said = (getattr(each, "num_prefix_tokens", None) for each in network.modules())
    known = next((number for number in said if isinstance(number, int)), None)
    prefix = 1 if known is None else known
    if tokens <= prefix:
        return 0
    with_it, without = (isqrt(n) ** 2 == n for n in (tokens - prefix, tokens))
    if known is None:
        return int(with_it and not without)
    return 0 if without and not with_it else prefix
