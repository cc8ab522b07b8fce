"""Run a network for a look without leaving a trace in it or in any random state."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn


@contextmanager
def untouched_rng() -> Iterator[None]:
    """Whatever is drawn inside, the random states of python, numpy, torch and CUDA end as they began.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> with untouched_rng():
        ...     inside = torch.rand(1)
        >>> bool(torch.rand(1) == inside)
        True
    """
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)
        torch.set_rng_state(cpu)
        if cuda:
            torch.cuda.set_rng_state_all(cuda)


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, and everything as before on leaving, also after an exception.

    Every module gets its own train/eval flag back (`model.train()` would thaw those that were put in eval),
    and all random states are restored. The flags are set directly, so a module's own `train()` method is not
    called.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2), nn.Dropout())
        >>> _ = model[0].eval()
        >>> with quiet(model):
        ...     model[1].training
        False
        >>> model[0].training, model[1].training
        (False, True)
    """
    flags = [(module, module.training) for module in model.modules()]
    try:
        with untouched_rng(), torch.no_grad():
            for module, _ in flags:
                module.training = False
            yield
    finally:
        for module, training in flags:
            module.training = training
