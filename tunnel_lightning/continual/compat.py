"""Avalanche, imported when it is first needed, with what it does to the rest of the program taken back.

`avalanche()` is the one door: nothing else imports the library before it was called. What it contains and mends:

- ``import avalanche`` takes seconds and a gigabyte, so it happens inside functions only.
- It replaces ``torch.utils.data.Dataset.__add__`` for everyone. Its replacement lets ``plain + avalanche`` fall
  through to ``AvalancheDataset.__radd__``, which calls ``plain.concat``, a method that no plain data set has: the
  library itself can't need it, so torch's own comes back and such a sum is a ``ConcatDataset`` as before.
- It may draw from random states and leave warning filters; both end as they began. Its own deprecated functions would
  put a filter of theirs before the user's at every call, hence a line after every task: they may only warn.
- What broke with newer versions of torch, and Synaptic Intelligence on the CPU, is mended by `Shim`s, each applied
  only where it is needed.
"""

from __future__ import annotations

import importlib
import inspect
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import MultiStepLR
from torch.utils.data import Dataset

from tunnel_lightning.taps.quiet import untouched_rng

MISSING = "Continual learning needs the library Avalanche, which is not installed: pip install avalanche-lib."


@dataclass(frozen=True)
class Shim:
    """A repair of Avalanche.

    Attributes:
        name: what it mends.
        why: what goes wrong without it.
        needed: whether the installed versions go wrong; asked after the import. What is mended
            needs no mending.
        apply: mends, and returns what takes the repair back.
    """

    name: str
    why: str
    needed: Callable[[], bool]
    apply: Callable[[], Callable[[], None]]


_applied: dict[str, Callable[[], None]] = {}


@cache
def avalanche() -> ModuleType:
    """The library, imported with its side effects contained and mended where today's torch needs it.

    Afterwards ``from avalanche.xxx import yyy`` inside a function is an ordinary import.

    Raises:
        ImportError: it is not installed.

    Example:
        >>> avalanche().__name__
        'avalanche'
    """
    with untouched_rng(), warnings.catch_warnings():
        # jaxopt, pulled in by a solver of GEM, announces the end of its maintenance.
        warnings.simplefilter("ignore")
        try:
            module = importlib.import_module("avalanche")
        except ModuleNotFoundError as error:
            if error.name != "avalanche":
                raise ImportError(
                    f"Avalanche is installed, but not {error.name}, which it imports: pip install avalanche-lib."
                ) from error
            raise ImportError(MISSING) from None
        torch_add = getattr(module, "_dataset_add", None)  # where the library keeps what it replaced
        if torch_add is not None:
            Dataset.__add__ = torch_add  # type: ignore[method-assign]
        importlib.import_module("avalanche._annotations").warnings = _Warnings  # type: ignore[attr-defined]
        for shim in shims():
            if shim.name not in _applied and shim.needed():
                _applied[shim.name] = shim.apply()
    return module


class _Warnings:
    """The module `warnings` without a say in the filters."""

    warn = staticmethod(warnings.warn)

    @staticmethod
    def simplefilter(*args: Any, **kwargs: Any) -> None:
        """Leave the filters alone."""


def shims() -> tuple[Shim, ...]:
    """All repairs, needed or not."""
    return (
        Shim(
            "BiC",
            "BiC passes verbose to MultiStepLR, which no longer takes it",
            _schedule_rejects_verbose,
            _accept_verbose,
        ),
        Shim(
            "several heads under autocast",
            "scores of a head in bfloat16 do not go into a float32 tensor",
            _heads_fail_under_autocast,
            _float_scores,
        ),
        Shim(
            "save_checkpoint",
            "torch.optim hides its submodules, so dill can't name the optimizers' classes and pickles them by value",
            lambda: bool(_hidden_submodules()),
            _show_submodules,
        ),
        Shim(
            "SynapticIntelligence",
            "on the CPU it keeps views of the weights, not copies: nothing ever seems to change, and it equals Naive",
            _keeps_views,
            _keep_copies,
        ),
    )


# BiC ------------------------------------------------------------------------------------------------------


class _PatientMultiStepLR(MultiStepLR):
    """MultiStepLR that still takes ``verbose``, without effect."""

    def __init__(self, *args: Any, verbose: Any = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)


def _schedule_rejects_verbose() -> bool:
    from avalanche.training.plugins import bic

    takes = inspect.signature(bic.MultiStepLR.__init__).parameters
    return "verbose" not in takes and "verbose" in inspect.getsource(bic)


def _accept_verbose() -> Callable[[], None]:
    from avalanche.training.plugins import bic

    original = bic.MultiStepLR
    bic.MultiStepLR = _PatientMultiStepLR
    return lambda: setattr(bic, "MultiStepLR", original)


# Several heads under autocast -------------------------------------------------------------------------------


def _heads_fail_under_autocast() -> bool:
    from avalanche.models import MultiHeadClassifier

    with untouched_rng(), torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        try:
            MultiHeadClassifier(2)(torch.zeros(1, 2), torch.zeros(1, dtype=torch.int64))
        except RuntimeError:
            return True
    return False


def _float_scores() -> Callable[[], None]:
    from avalanche.models import MultiHeadClassifier

    original = MultiHeadClassifier.forward_single_task

    def forward_single_task(self: Any, x: Tensor, task_label: int) -> Tensor:
        scores = original(self, x, task_label)
        return scores.float() if torch.is_autocast_enabled(scores.device.type) else scores

    MultiHeadClassifier.forward_single_task = forward_single_task
    return lambda: setattr(MultiHeadClassifier, "forward_single_task", original)


# save_checkpoint ----------------------------------------------------------------------------------------------


def _hidden_submodules() -> dict[str, ModuleType]:
    """Modules of torch's optimizers that are not attributes of torch.optim."""
    prefix = "torch.optim."
    classes = [each for each in vars(torch.optim).values() if isinstance(each, type)]
    names = {each.__module__ for each in classes if each.__module__.startswith(prefix)}
    found = {name.removeprefix(prefix): sys.modules[name] for name in names}
    return {name: module for name, module in found.items() if not hasattr(torch.optim, name)}


def _show_submodules() -> Callable[[], None]:
    hidden = _hidden_submodules()
    for name, module in hidden.items():
        setattr(torch.optim, name, module)

    def hide() -> None:
        for name in hidden:
            delattr(torch.optim, name)

    return hide


# Synaptic Intelligence ----------------------------------------------------------------------------------------


def _keeps_views() -> bool:
    from avalanche.training.plugins import SynapticIntelligencePlugin

    with untouched_rng():
        layer = nn.Linear(1, 1, bias=False)
    kept = SimpleNamespace(data=None)
    SynapticIntelligencePlugin.extract_weights(layer, {"weight": kept}, set())
    assert isinstance(kept.data, Tensor)
    return kept.data.data_ptr() == layer.weight.data_ptr()


def _keep_copies() -> Callable[[], None]:
    from avalanche.training.plugins import SynapticIntelligencePlugin as Plugin

    original = Plugin.extract_weights

    def extract_weights(model: nn.Module, target: dict[str, Any], excluded_parameters: set[str]) -> None:
        original(model, target, excluded_parameters)
        for kept in target.values():
            kept.data = kept.data.clone()

    Plugin.extract_weights = staticmethod(extract_weights)
    return lambda: setattr(Plugin, "extract_weights", staticmethod(original))
