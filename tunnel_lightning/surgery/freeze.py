"""Sections that do not learn."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from tunnel_lightning.surgery.sections import Sections


class _StayInEval:
    """Puts a normalisation layer in evaluation mode right before it runs, whoever called ``train()``.

    Copies of the network (teachers, strategies that start over) share it, so that they thaw too.
    """

    def __init__(self) -> None:
        self.active = True

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.active:
            module.training = False

    def __deepcopy__(self, memo: dict[int, Any]) -> _StayInEval:
        return self

    def __reduce__(self) -> tuple[type[_Thawed], tuple[()]]:
        return _Thawed, ()


class _Thawed:
    """What becomes of it in a saved model."""

    def __call__(self, module: nn.Module, args: Any) -> None:
        """Do nothing."""


@contextmanager
def frozen(model: nn.Module, parts: Sections, which: Iterable[int]) -> Iterator[None]:
    """Sections keep their parameters and the statistics of their normalisation layers, whatever trains inside.

    Their parameters need no gradient and have none, so that no optimizer moves them, not by weight decay or
    momentum either, also one that is given all parameters (Avalanche's strategies do so). Their normalisation
    layers stay in evaluation mode, also after ``model.train()``. On leaving everything is as before.

    Args:
        model: the network that `parts` are of.
        parts: its sections.
        which: sections, from 1; L + 1 is the head.

    Raises:
        ValueError: no such section.

    Example:
        >>> import torch
        >>> from tunnel_lightning.surgery import sections
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> with frozen(model, sections(model, torch.zeros(1, 2)), [1]):
        ...     [p.requires_grad for p in model.parameters()]
        [False, False, True, True]
    """
    entries = set(parts.entries(which))
    named = model.named_parameters(remove_duplicate=False)
    parameters = {id(p): (p, p.requires_grad, p.grad) for key, p in named if key in entries}.values()
    norms = [
        (module, module.training)
        for path, module in model.named_modules()
        if isinstance(module, _NormBase)
        and entries.intersection(
            f"{path}.{name}" if path else name for name in (*module._parameters, *module._buffers)
        )
    ]
    stay = _StayInEval()
    handles = [module.register_forward_pre_hook(stay) for module, _ in norms]
    try:
        for module, _ in norms:
            module.training = False
        for parameter, _, _ in parameters:
            parameter.requires_grad_(False)
            # What an earlier step left there would be stepped along.
            parameter.grad = None
        yield
    finally:
        stay.active = False
        for handle in handles:
            handle.remove()
        for module, training in norms:
            module.training = training
        for parameter, needs_grad, grad in parameters:
            parameter.requires_grad_(needs_grad)
            parameter.grad = grad
