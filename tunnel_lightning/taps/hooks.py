"""The hook on one module: pool and detach on the spot, or do nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.taps.pooling import Hints, Layout, layout_of, pool
from tunnel_lightning.taps.resolve import Candidate
from tunnel_lightning.taps.spec import Pool

# The backward pass this thread is in, -1 for none; recomputation under activation checkpointing is in one.
_backward_id = getattr(torch._C, "_current_graph_task_id", lambda: -1)


class Inert:
    """What a hook becomes in a copy of the network (moving average, teacher, saved model)."""

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Do nothing."""


class State:
    """What the hooks of one `Taps` share.

    Attributes:
        how: How features are pooled.
        armed: Whether to capture.
        discovering: Whether the first forward is still awaited.
        calls: That forward, in order: the hook's number and the shape of the output, () if it is of no use.
        batch: Batch size of that forward; 0 until the first output tells.
        track: Told what each module took and put out, where residual additions are looked for.
        branches: Hooks' numbers and calls whose outputs that forward added to another tensor.
    """

    def __init__(self, how: Pool) -> None:
        self.how: Pool = how
        self.armed = False
        self.discovering = True
        self.calls: list[tuple[int, tuple[int, ...]]] = []
        self.batch = 0
        self.track: Callable[[Hook, Any, Tensor | None], None] | None = None
        self.branches: set[tuple[int, int]] = set()


class Hook:
    """Captures one module's outputs.

    Everything it reads while capturing is plain attributes and lists, which torch.compile traces and guards.
    Each hook appends to its own list: a block compiled by itself sees the same state wherever it stands.

    Attributes:
        like: The module whose kind of output it captures.
        plans: One per known call in a forward: the layout and the columns to keep; None for a call not
            wanted. Calls beyond them are ignored.
        out: What the calls since arming gave.
    """

    def __init__(
        self,
        number: int,
        candidate: Candidate,
        state: State,
        wanted: bool,
        hints: Hints,
        like: nn.Module | None = None,
    ) -> None:
        self.number = number
        self.candidate = candidate
        self.state = state
        self.wanted = wanted
        self.hints = hints
        self.like = candidate.module if like is None else like
        self.plans: list[tuple[Layout, Tensor | None] | None] = []
        self.out: list[Tensor | None] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Capture this call, if armed and wanted."""
        state = self.state
        if not state.armed or (not torch.compiler.is_compiling() and _backward_id() != -1):
            return
        if state.discovering:
            self._discover(args, output)
        elif len(self.out) < len(self.plans):
            plan = self.plans[len(self.out)]
            x = None if plan is None else first_tensor(output)
            if plan is None or x is None:
                self.out.append(None)
            else:
                self.out.append(pool(x.detach(), plan[0], state.how, plan[1]))
                if state.track is not None:
                    state.track(self, args, x)

    def layout(self, shape: tuple[int, ...]) -> Layout:
        """How to read an output of this shape, batch included."""
        return layout_of(self.like, shape, self.hints, shape[0] // self.state.batch)

    def _discover(self, args: Any, output: Any) -> None:
        state, x = self.state, first_tensor(output)
        shape = () if x is None else tuple(x.shape)
        if shape and not state.batch:
            state.batch = shape[0]
        if shape and shape[0] % state.batch:
            shape = ()
        state.calls.append((self.number, shape))
        if x is None or not shape or not self.wanted:
            self.out.append(None)
        else:
            self.out.append(pool(x.detach(), self.layout(shape), state.how))
        if state.track is not None:
            state.track(self, args, x if shape else None)

    def __deepcopy__(self, memo: dict[int, Any]) -> Inert:
        return Inert()

    def __reduce__(self) -> tuple[type[Inert], tuple[()]]:
        return Inert, ()


def first_tensor(output: Any) -> Tensor | None:
    """The first floating-point tensor with a batch dimension in an output, searched depth first in its order.

    None where a tensor, tuple, list or dict holds none, and for any other object.
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.dim() > 0 else None
    if isinstance(output, Mapping):
        output = tuple(output.values())
    if isinstance(output, (tuple, list)):
        for item in output:
            x = first_tensor(item)
            if x is not None:
                return x
    return None
