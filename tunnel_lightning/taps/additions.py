"""Residual additions, which are no modules: seen as torch functions while the taps are armed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from tunnel_lightning.taps.hooks import Hook, State
from tunnel_lightning.taps.pooling import Hints
from tunnel_lightning.taps.resolve import Candidate

_ADD = frozenset((torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__))


class NoAdditions(ValueError):
    """A network has no residual addition, or none that can be seen."""


class Add(nn.Module):
    """Stands where a tap of an addition needs a module: it is none of the network's."""


class Additions(TorchFunctionMode):
    """Hands every residual addition of a forward to a hook of its own.

    An addition is residual if it adds two tensors of one shape, [B, D] or larger, of which one is a branch: what
    a module on the main path put out and no module took in since (as one did with the block's input). If both
    are, the branch is the later. The sum is known by the module that holds the branch, and by its number there.

    Args:
        state: What the hooks share; it tells of every output from now on.
        hooks: All hooks; those of sums are appended.
        hints: The network's layout.
    """

    def __init__(self, state: State, hooks: list[Hook], hints: Hints) -> None:
        super().__init__()
        self.sums: dict[str, Hook] = {}
        self._state, self._hooks, self._hints = state, hooks, hints
        self._active = False
        # Tensor: when it was put out, by which hook's module, in which of its calls.
        self._outputs: Any = WeakTensorKeyDictionary()
        self._clock = count()
        state.track = self._track

    def start(self) -> None:
        """See additions from now on."""
        if not self._active:
            self.__enter__()
            self._active = True

    def stop(self) -> None:
        """See none from now on."""
        if self._active:
            self.__exit__(None, None, None)
            self._active = False
            self._outputs.clear()

    def __torch_function__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in _ADD:
            self._see([x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)], result)
        return result

    def _track(self, hook: Hook, args: Any, output: Tensor | None) -> None:
        """A module that hands on what another put out (a container, a dropout in evaluation) takes its place."""
        for x in args:
            if isinstance(x, Tensor):
                self._outputs.pop(x, None)
        if output is not None and hook.candidate.branch:
            self._outputs[output] = (next(self._clock), hook, len(hook.out) - 1)

    def _see(self, operands: list[Tensor], result: Tensor) -> None:
        if len(operands) != 2 or operands[0].shape != operands[1].shape or operands[0].dim() < 2:
            return
        found = [(*self._outputs[x], x) for x in operands if x in self._outputs]
        if found:
            _, branch, call, x = max(found, key=lambda output: output[0])
            # Once only; and a sum in place is the branch's output no more.
            self._outputs.pop(x)
            self._outputs.pop(result, None)
            self._state.branches.add((branch.number, call))
            hook = self._sum(branch)
            hook(hook.candidate.module, (), result)

    def _sum(self, branch: Hook) -> Hook:
        owner = branch.candidate.path.rpartition(".")[0]
        if owner not in self.sums:
            candidate = Candidate(f"{owner}.add" if owner else "add", Add(), by_kind=True)
            number, like = len(self._hooks), branch.candidate.module
            self.sums[owner] = Hook(number, candidate, self._state, True, self._hints, like)
            self._hooks.append(self.sums[owner])
        return self.sums[owner]


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile holds the network or a part of it, as far as its modules tell."""
    return any(
        "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None
        for module in model.modules()
    )
