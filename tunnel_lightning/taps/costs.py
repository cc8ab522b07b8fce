"""What a forward costs, module by module."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from tunnel_lightning.taps.quiet import quiet


@contextmanager
def plain(model: nn.Module) -> Iterator[None]:
    """`quiet`, and every module runs as written: nothing compiled, no fused attention that skips modules."""
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with quiet(model), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def costs(model: nn.Module, example: Tensor) -> dict[str, int]:
    """FLOPs of one image in every module that ran, children included; a multiply-add counts as two.

    Matrix products, convolutions and attention are counted (torch's FLOP counter); element-wise work is not.

    Args:
        model: Any network.
        example: A batch of its input; the first image is used.

    Returns:
        FLOPs by module path; the whole network is `""`.

    Example:
        >>> costs(nn.Sequential(nn.Linear(10, 4), nn.ReLU()), torch.zeros(1, 10))["0"]
        80
    """
    model = getattr(model, "_orig_mod", model)
    counter = FlopCounterMode(display=False)
    with plain(model), counter:
        model(example[:1])
    root = type(model).__name__
    counts: dict[str, int] = {}
    for path, operations in counter.get_flop_counts().items():
        if path == root or path.startswith(root + "."):
            counts[path[len(root) + 1 :]] = sum(operations.values())
    return counts
