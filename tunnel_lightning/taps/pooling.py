"""From a module's output to rows of features: layout, pooling, the fixed subset of columns.

Rules for the layout of an output, decided once from the first forward:

- [B, D]: features.
- [B, T, C]: tokens, unless the module is a 1-d convolution, pooling or batch norm ([B, C, L]).
- [B, ., ., .]: channels first; channels last where the module is a Linear or LayerNorm, or where the first
  two of the three sizes are equal and the last differs (Swin's square maps). Where sizes cannot tell, timm's
  `output_fmt` does.
- Class token: one if T - 1 is a square and T is not. Where the network has timm's `num_prefix_tokens`, that
  many, unless T is a square without them.
- A leading size k B (Swin's windows, tokens moved into the batch) is folded to B by averaging the k.

Averages are accumulated in float32 and returned in float32, also for half-precision maps. On a GPU nothing is
rounded in between (the reduction widens as it reads); on a CPU the average is rounded once to the map's own
type, since widening there means a float32 copy of the whole map, several times the cost of pooling it. What
is not averaged keeps its type.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import isqrt
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import (
    _AdaptiveAvgPoolNd,
    _AdaptiveMaxPoolNd,
    _AvgPoolNd,
    _MaxPoolNd,
)

from tunnel_lightning.taps.precision import full_precision
from tunnel_lightning.taps.spec import Pool

_CHANNELS_FIRST = (_ConvNd, _BatchNorm, _AvgPoolNd, _MaxPoolNd, _AdaptiveAvgPoolNd, _AdaptiveMaxPoolNd)
_WHOLE = ("flatten", "gram")
_POOLS: dict[int, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    1: (F.avg_pool1d, F.adaptive_avg_pool1d),
    2: (F.avg_pool2d, F.adaptive_avg_pool2d),
    3: (F.avg_pool3d, F.adaptive_avg_pool3d),
}


class Hints(NamedTuple):
    """What the network says of its own layout (timm's attributes)."""

    prefix_tokens: int | None = None
    channels_last: bool = False


class Layout(NamedTuple):
    """How to read one output: the meaning of its sizes, leading tokens, rows that belong to one image."""

    kind: Literal["features", "tokens", "first", "last"]
    prefix: int = 0
    fold: int = 1


def hints_of(model: nn.Module) -> Hints:
    """Read timm's `num_prefix_tokens` and `output_fmt` wherever the network carries them."""
    prefix, channels_last = None, False
    for module in model.modules():
        if prefix is None and isinstance(getattr(module, "num_prefix_tokens", None), int):
            prefix = int(module.num_prefix_tokens)  # type: ignore[arg-type]
        channels_last = channels_last or str(getattr(module, "output_fmt", "")).endswith("NHWC")
    return Hints(prefix, channels_last)


def layout_of(module: nn.Module, shape: tuple[int, ...], hints: Hints | None = None, fold: int = 1) -> Layout:
    """The layout of an output of `shape` (batch included) of `module`, by the rules at the top of this file.

    Example:
        >>> layout_of(nn.GELU(), (2, 197, 192)).prefix
        1
        >>> layout_of(nn.Identity(), (2, 14, 14, 96)).kind
        'last'
    """
    hints = hints or Hints()
    if len(shape) <= 2:
        return Layout("features", fold=fold)
    if isinstance(module, _CHANNELS_FIRST):
        return Layout("first", fold=fold)
    if len(shape) == 3:
        return Layout("tokens", _class_tokens(shape[1], hints) if fold == 1 else 0, fold)
    if isinstance(module, nn.Linear) or type(module) is nn.LayerNorm:
        return Layout("last", fold=fold)
    if len(shape) == 4:
        _, a, b, c = shape
        if a == b != c or (hints.channels_last and not a != b == c):
            return Layout("last", fold=fold)
    return Layout("first", fold=fold)


def _class_tokens(tokens: int, hints: Hints) -> int:
    prefix = 1 if hints.prefix_tokens is None else hints.prefix_tokens
    if tokens <= prefix:
        return 0
    with_it, without = (isqrt(n) ** 2 == n for n in (tokens - prefix, tokens))
    if hints.prefix_tokens is None:
        return int(with_it and not without)
    return 0 if without and not with_it else prefix


def pool(x: Tensor, layout: Layout, how: Pool, columns: Tensor | None = None) -> Tensor:
    """Rows of features [B, D] from an output of any layout; under `gram` the Gram matrix [B, B] of them all.

    Always a new tensor: an in-place operation that follows in the network cannot alter it.

    Args:
        x: The output, detached.
        layout: How to read it (`layout_of`).
        how: `2x2`, `flatten`, `avg`, `token` or `gram` (see `TapSpec`). In one dimension `2x2` gives two
            cells, in three eight; a size below two stays as it is.
        columns: Indices of the columns to keep, or None for all.

    Example:
        >>> x = torch.arange(16.0).view(1, 1, 4, 4)
        >>> pool(x, Layout("first"), "2x2")
        tensor([[ 2.5000,  4.5000, 10.5000, 12.5000]])
    """
    rows, averaged = _rows(x, layout, how)
    if layout.fold > 1:
        rows = rows.unflatten(0, (-1, layout.fold))
        if how in _WHOLE:
            rows = rows.flatten(1)
        else:
            rows, averaged = _mean(rows, (1,)), True
    if how == "gram":
        return gram(rows)
    if columns is not None:
        rows = rows.index_select(1, columns.to(rows.device))
    elif not averaged:
        rows = rows.clone()
    return rows.float() if averaged and rows.dtype in (torch.bfloat16, torch.float16) else rows


def _rows(x: Tensor, layout: Layout, how: Pool) -> tuple[Tensor, bool]:
    """Rows, and whether they are averages; otherwise they may share memory with `x`."""
    if layout.kind == "features":
        return (x if x.dim() == 2 else x.unsqueeze(1)), False
    if how in _WHOLE:
        return (x.movedim(-1, 1) if layout.kind == "last" else x).flatten(1), False
    if layout.kind == "tokens":
        if how == "token" and layout.fold == 1:
            return x[:, 0], False
        return _mean(x[:, layout.prefix :], (1,)), True
    if layout.kind == "last":
        x = x.movedim(-1, 1)
    if how != "2x2":
        return _mean(x, tuple(range(2, x.dim()))), True
    sizes = tuple(x.shape[2:])
    cells = tuple(min(2, size) for size in sizes)
    if cells == sizes:
        return x.flatten(1), False
    window = tuple(size // cell for size, cell in zip(sizes, cells, strict=True))
    average, adaptive = _POOLS[len(sizes)]
    if any(size % cell for size, cell in zip(sizes, cells, strict=True)):
        return adaptive(x, cells).flatten(1), True
    if x.is_cpu:
        return average(x, window).flatten(1), True
    # A reduction over a view reads a GPU's memory in order; its pooling kernels give each thread a whole
    # window.
    for i in reversed(range(len(sizes))):
        x = x.unflatten(2 + i, (cells[i], window[i]))
    return _mean(x, tuple(range(3, x.dim(), 2))).flatten(1), True


def gram(rows: Tensor) -> Tensor:
    """Inner products [B, B] of rows [B, D], centred over the batch first; float32, or float64 of float64 rows.

    Centring the rows and not the products keeps them right where the mean dwarfs the deviation.

    Example:
        >>> gram(torch.tensor([[1.0, 5.0], [3.0, 5.0]]))
        tensor([[ 1., -1.],
                [-1.,  1.]])
    """
    wide = rows if rows.dtype == torch.float64 else rows.float()
    with full_precision(rows.device):
        return products(wide - wide.mean(0))


def products(rows: Tensor) -> Tensor:
    """Inner products [B, B] of rows [B, D]; those below the diagonal are copied where that saves a product.

    Example:
        >>> products(torch.tensor([[1.0, 0.0], [1.0, 2.0]]))
        tensor([[1., 1.],
                [1., 5.]])
    """
    half = len(rows) // 2
    found = rows.new_empty(len(rows), len(rows))
    torch.mm(rows[:half], rows.T, out=found[:half])
    torch.mm(rows[half:], rows[half:].T, out=found[half:, half:])
    found[half:, :half] = found[:half, half:].T
    return found


def _mean(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    half = x.dtype in (torch.bfloat16, torch.float16)
    return x.mean(dims, dtype=torch.float32) if half and not x.is_cpu else x.mean(dims)


def choose_columns(dim: int, limit: int | None, seed: int, name: str) -> Tensor | None:
    """A fixed random subset of `limit` columns out of `dim`, sorted; None where all fit.

    Drawn from (seed, name) by an own generator: the same in every batch, run and process, and no random state
    moves.

    Example:
        >>> bool((choose_columns(100, 5, 0, "a") == choose_columns(100, 5, 0, "a")).all())
        True
        >>> choose_columns(5, 10, 0, "a") is None
        True
    """
    if limit is None or dim <= limit:
        return None
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
    return torch.randperm(dim, generator=generator)[:limit].sort().values
