"""A network's state taken, put in, put together from two, and put back."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.surgery.sections import Sections, State


def snapshot(model: nn.Module, device: str | torch.device | None = "cpu") -> dict[str, Any]:
    """Copies of a network's parameters and buffers.

    Args:
        model: any network.
        device: where the copies go; None leaves them where they are.

    Returns:
        What ``state_dict`` gives, detached from the network.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> taken = snapshot(model)
        >>> _ = nn.init.zeros_(model.weight)
        >>> bool(taken["weight"].any())
        True
    """
    return {
        key: value.detach().to(device or value.device, copy=True)
        if isinstance(value, Tensor)
        else copy.deepcopy(value)
        for key, value in model.state_dict().items()
    }


def compose(
    first: State, second: State, parts: Sections, cut: int, head: State | None = None
) -> dict[str, Any]:
    """The extractor of one state under the tunnel of another.

    Masarczyk et al., "The Tunnel Effect", 2023, section 4: E1 T2 is ``compose(first, second, ...)``. Statistics of
    normalisation layers go with their section.

    Args:
        first: gives sections 1 to `cut`.
        second: gives the rest.
        parts: of the network both are of.
        cut: the last section of the extractor, 0 to L.
        head: gives the head; by default `second`.

    Returns:
        The state; its tensors are those of the states given, not copies.

    Raises:
        ValueError: no such cut, or a state of another network.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> from tunnel_lightning.surgery import sections
        >>> parts = sections(model, torch.zeros(1, 2))
        >>> ones = {key: torch.ones_like(value) for key, value in snapshot(model).items()}
        >>> mixed = compose(ones, snapshot(model), parts, cut=1)
        >>> bool(mixed["0.weight"].eq(1).all()), bool(mixed["2.weight"].eq(1).all())
        (True, False)
    """
    if not 0 <= cut <= len(parts):
        raise ValueError(f"compose: cut is {cut}; give 0 to {len(parts)}, the number of layers.")
    state = rewind(second, first, parts, range(1, cut + 1))
    for key in parts.entries(range(cut + 1, len(parts) + 1)):
        _entry(second, key)
    return state if head is None else {**state, **parts.head_of(head)}


def rewind(now: State, then: State, parts: Sections, which: Iterable[int]) -> dict[str, Any]:
    """Put sections back to what they were.

    The reset of Ramasesh, Dyer & Raghu, "Anatomy of Catastrophic Forgetting", 2021 (arXiv 2007.07400), who put back
    a contiguous block.

    Args:
        now: the state to change; it is left as it is.
        then: what the sections are put back to.
        parts: of the network both are of.
        which: sections, from 1; L + 1 is the head.

    Returns:
        The state; its tensors are those of the states given, not copies.

    Raises:
        ValueError: no such section, or a state of another network.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
        >>> from tunnel_lightning.surgery import sections
        >>> parts = sections(model, torch.zeros(1, 2))
        >>> zeros = {key: torch.zeros_like(value) for key, value in snapshot(model).items()}
        >>> back = rewind(snapshot(model), zeros, parts, [2])
        >>> bool(back["0.weight"].any()), bool(back["2.weight"].any())
        (True, False)
    """
    state = dict(now)
    for index in which:
        if index == len(parts) + 1:
            state.update(parts.head_of(then))
        else:
            state.update((key, _entry(then, key)) for key in parts[index].entries)
    return state


def _entry(state: State, key: str) -> Any:
    if key not in state:
        raise ValueError(f"A state has no {key!r}: it is not of the network that the sections are of.")
    return state[key]


@contextmanager
def restored(model: nn.Module) -> Iterator[None]:
    """Whatever is done to the network inside, it ends as it began, bit for bit, also after an exception.

    Back come parameters, buffers, modules put in or taken out, gradients, what needs them, and train/eval flags.
    Gradients are empty inside. Optimizers keep working: tensors stay the same objects.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = snapshot(model)
        >>> with restored(model):
        ...     _ = nn.init.zeros_(model.weight)
        >>> torch.equal(model.weight, before["weight"])
        True
    """
    modules = list(model.modules())
    members = [
        (module, module.training, [dict(getattr(module, kind)) for kind in _KINDS]) for module in modules
    ]
    tensors = [*model.parameters(), *model.buffers()]
    kept = [(tensor, tensor.detach().clone(), tensor.requires_grad, tensor.grad) for tensor in tensors]
    extra = [
        (module, copy.deepcopy(module.get_extra_state()))
        for module in modules
        if type(module).get_extra_state is not nn.Module.get_extra_state
    ]
    for tensor in tensors:
        tensor.grad = None
    try:
        yield
    finally:
        for module, training, found in members:
            module.training = training
            for kind, was in zip(_KINDS, found, strict=True):
                getattr(module, kind).clear()
                getattr(module, kind).update(was)
        with torch.no_grad():
            for tensor, value, needs_grad, grad in kept:
                if (tensor.shape, tensor.dtype, tensor.device) != (value.shape, value.dtype, value.device):
                    tensor.data = value
                else:
                    tensor.copy_(value)
                tensor.requires_grad_(needs_grad)
                tensor.grad = grad
        for module, state in extra:
            module.set_extra_state(state)


_KINDS = ("_parameters", "_buffers", "_modules")


@contextmanager
def loaded(model: nn.Module, state: State) -> Iterator[None]:
    """The network has another state inside, and its own again afterwards, as by `restored`.

    Raises:
        ValueError: a state of another network, or of other sizes.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> before = snapshot(model)
        >>> with loaded(model, {"weight": torch.eye(2), "bias": torch.zeros(2)}):
        ...     model(torch.ones(1, 2)).tolist()
        [[1.0, 1.0]]
        >>> torch.equal(model.weight, before["weight"])
        True
    """
    with restored(model):
        try:
            model.load_state_dict(dict(state))
        except RuntimeError as error:
            reason = " ".join(str(error).split())
            raise ValueError(f"The state does not fit {type(model).__name__}: {reason}") from None
        yield
