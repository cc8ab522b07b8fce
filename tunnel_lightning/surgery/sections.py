"""A network's parameters and buffers in sections, one for each tapped layer, in the order they run."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.backbones import Backbone
from tunnel_lightning.taps import Tap, Taps, TapSpec
from tunnel_lightning.taps.costs import plain
from tunnel_lightning.taps.resolve import ADDITION, KINDS, is_weighted

State = Mapping[str, Any]
"""A network's state: tensors by the names of its ``state_dict``."""


@dataclass(frozen=True)
class Section:
    """What belongs to one tapped layer.

    Attributes:
        index: position in the order of execution, from 1; the head's follows the last layer's.
        name: of the tap, as the profile table has it; paths count from the ``Backbone`` where there is one.
        path: of the tapped module in the network; of the head, of the module that holds all of it; empty for a
            network without a head.
        call: which of that module's calls in one forward, from 1.
        modules: paths of the modules without children that first run here.
        entries: names in the network's ``state_dict``.
    """

    index: int
    name: str
    path: str
    call: int
    modules: tuple[str, ...]
    entries: tuple[str, ...]


@dataclass(frozen=True)
class Sections:
    """All sections of a network.

    Attributes:
        layers: in the order of execution; ``layers[0]`` is section 1.
        head: the classifier, or all of them, and whatever stands outside the backbone.
    """

    layers: tuple[Section, ...]
    head: Section

    def __len__(self) -> int:
        """Number of layers, L; the head is not counted."""
        return len(self.layers)

    def __getitem__(self, index: int) -> Section:
        """Section 1 to L, or the head as L + 1.

        Raises:
            ValueError: no such section.
        """
        if not 1 <= index <= len(self) + 1:
            raise ValueError(
                f"There is no section {index}: the layers are 1 to {len(self)} and the head is {len(self) + 1}."
            )
        return (*self.layers, self.head)[index - 1]

    def entries(self, which: Iterable[int]) -> list[str]:
        """Names in the ``state_dict`` of several sections, given by index; the head is L + 1.

        Raises:
            ValueError: no such section.
        """
        return [entry for index in which for entry in self[index].entries]

    def head_of(self, state: State) -> dict[str, Any]:
        """What belongs to no layer in a state, also one with more or larger heads than the network had."""
        layers = set(self.entries(range(1, len(self) + 1)))
        return {key: value for key, value in state.items() if key not in layers}


def sections(
    model: nn.Module,
    example: Tensor,
    layers: str | list[str] = "default",
    forward: Callable[[Tensor], Any] | None = None,
) -> Sections:
    """Divide a network's parameters and buffers among its tapped layers.

    To a tapped layer belongs whatever runs from there up to the next one: the normalisation behind a convolution,
    with its statistics, and a shortcut convolution that runs in between. What runs before the first belongs to
    the first. A tapped module that has no convolution or linear module of its own, such as an activation, or
    that holds other tapped ones, closes its section in place of opening it. A module that runs several times
    belongs to its first run, a parameter of a module with children (class token, position embedding, layer
    scale) to where the first of these runs, and a shared parameter to the first of its owners. What does not run goes
    with the module that holds it. The head, and in a network that holds a ``Backbone`` everything outside of that,
    is a section apart.

    Nothing is changed: the network runs once, quietly, in evaluation mode.

    Args:
        model: the network; with several heads, the module that holds them all.
        example: a batch of its input [B, ...].
        layers: as in `TapSpec`; globs count from the ``Backbone`` where there is one.
        forward: runs the network where ``model(example)`` does not, for instance because it needs a task label.

    Raises:
        ValueError: layers that are not there, or kind ``addition``, whose taps are no modules.

    Example:
        >>> from tunnel_lightning.backbones import ResNet
        >>> network = ResNet(depth=8, width=4, num_classes=10, input_shape=(1, 8, 8))
        >>> found = sections(network, torch.zeros(1, 1, 8, 8))
        >>> len(found), found[5].name
        (7, 'stages.1.0.conv2')
        >>> found[5].modules[:3]
        ('stages.1.0.conv2', 'stages.1.0.norm2', 'stages.1.0.shortcut.conv')
        >>> found.head.entries
        ('head.weight', 'head.bias')
    """
    patterns = [layers] if isinstance(layers, str) else list(layers)
    if ADDITION in patterns:
        raise ValueError(
            "sections: the taps of kind 'addition' are no modules, so no weights belong to them; take 'block'."
        )
    home = _home(model)
    patterns = [p if p in KINDS or not home else f"{home}.{p}" for p in patterns]
    own = _own_head(model, home)
    taps, head, calls = _run(model, example, patterns, forward)
    if head is not None and own is not None and _below(head.module, home) and not _below(head.module, own):
        # The backbone's head was taken out, or did not run: its last linear module that did is a layer.
        if {"default", "all"}.intersection(patterns):
            taps, _, calls = _run(model, example, [*patterns, head.module], forward)
        head = None
    where = _whole_head(model, head, calls) if head else own or ""
    outside = [path for path in (where, own) if path]
    taps = [tap for tap in taps if not any(_below(tap.module, path) for path in outside)]
    if not taps:
        raise ValueError(f"sections: {', '.join(patterns)} names the classifier alone; name a layer before.")
    return _divide(model, home, taps, where, calls)


class _Calls:
    """When modules began and ended, in one forward.

    Attributes:
        began, ended: counts by path, one for each call.
    """

    def __init__(self) -> None:
        self.clock = count()
        self.began: dict[str, list[int]] = {}
        self.ended: dict[str, list[int]] = {}

    @contextmanager
    def of(self, model: nn.Module) -> Iterator[None]:
        handles = []
        for path, module in model.named_modules():
            began, ended = self.began.setdefault(path, []), self.ended.setdefault(path, [])
            handles += [
                module.register_forward_pre_hook(lambda *_, times=began: times.append(next(self.clock))),
                module.register_forward_hook(lambda *_, times=ended: times.append(next(self.clock))),
            ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _run(
    model: nn.Module, example: Tensor, patterns: list[str], forward: Callable[[Tensor], Any] | None
) -> tuple[list[Tap], Tap | None, _Calls]:
    # Two images: a leading size of one could not be told from a batch.
    two = example[:2] if len(example) > 1 else torch.cat([example, example])
    calls = _Calls()
    with Taps(model, TapSpec(patterns, "avg")) as taps, calls.of(model), plain(model):
        taps.arm()
        (forward or model)(two)
        taps.take()
        return taps.layers, taps.head, calls


def _home(model: nn.Module) -> str:
    """Path of the backbone inside a network; empty where the network is one, or has none."""
    return next((path for path, module in model.named_modules() if isinstance(module, Backbone)), "")


def _below(path: str, parent: str) -> bool:
    return not parent or path == parent or path.startswith(f"{parent}.")


def _own_head(model: nn.Module, home: str) -> str | None:
    """Path of a backbone's own head; None where there is no backbone."""
    backbone = model.get_submodule(home)
    if not isinstance(backbone, Backbone):
        return None
    return next((path for path, module in model.named_modules() if module is backbone.head), None)


def _whole_head(model: nn.Module, head: Tap, calls: _Calls) -> str:
    """Path of the topmost module that holds the head and nothing else that ran."""
    path = head.module
    while parent := path.rpartition(".")[0]:
        holds_more = any(
            calls.began[inner] and not _below(inner, path)
            for inner, module in model.named_modules()
            if inner != parent and _below(inner, parent) and _is_leaf(module)
        )
        if holds_more:
            break
        path = parent
    return path


def _holders(path: str) -> Iterator[str]:
    """The path and those of the modules around it, the network's own last."""
    while path:
        yield path
        path = path.rpartition(".")[0]
    yield ""


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _divide(model: nn.Module, home: str, taps: list[Tap], head: str, calls: _Calls) -> Sections:
    modules = dict(model.named_modules())
    # From which time on each section runs. A tap that closes its section begins it where the one before ended.
    starts: list[int] = []
    previous = -1
    for tap in taps:
        inside = any(other.module != tap.module and _below(other.module, tap.module) for other in taps)
        opens = not inside and any(is_weighted(module) for module in modules[tap.module].modules())
        starts.append(calls.began[tap.module][tap.call - 1] if opens else previous + 1)
        previous = calls.ended[tap.module][tap.call - 1]

    def section_at(time: int) -> int:
        return max(bisect_right(starts, time), 1)

    began: dict[str, int] = {}
    for path, module in modules.items():
        if _is_leaf(module) and calls.began[path]:
            for holder in _holders(path):
                began[holder] = min(began.get(holder, calls.began[path][0]), calls.began[path][0])
    for path, times in calls.began.items():
        if times:
            began.setdefault(path, times[0])
    runs = {path: section_at(time) for path, time in began.items()}
    first_path = {id(module): path for path, module in modules.items()}
    names = model.named_modules(remove_duplicate=False)
    aliases = {alias: first_path[id(module)] for alias, module in names}

    def section_of(key: str) -> int:
        """Of an entry; 0 for the head."""
        owner = key.rpartition(".")[0]
        owner = aliases.get(owner, owner)
        if (head and _below(owner, head)) or not _below(owner, home):
            return 0
        return next((runs[holder] for holder in _holders(owner) if holder in runs), 1)

    state = model.state_dict(keep_vars=True)
    shared: dict[int, int] = {}
    for key, value in state.items():
        if isinstance(value, Tensor):
            shared[id(value)] = min(shared.get(id(value), len(taps)), section_of(key))
    entries: list[list[str]] = [[] for _ in range(len(taps) + 1)]
    for key, value in state.items():
        entries[shared[id(value)] if isinstance(value, Tensor) else section_of(key)].append(key)
    leaves = [(times[0], path) for path, times in calls.began.items() if times and _is_leaf(modules[path])]
    ran: list[list[str]] = [[] for _ in range(len(taps) + 1)]
    for _, path in sorted(leaves):
        ran[0 if (head and _below(path, head)) or not _below(path, home) else runs[path]].append(path)

    def short(path: str) -> str:
        return path[len(home) + 1 :] if home and _below(path, home) else path

    found = [
        Section(i, short(tap.name), tap.module, tap.call, tuple(ran[i]), tuple(entries[i]))
        for i, tap in enumerate(taps, 1)
    ]
    return Sections(
        tuple(found),
        Section(len(taps) + 1, short(head), head, 1, tuple(ran[0]), tuple(entries[0])),
    )
