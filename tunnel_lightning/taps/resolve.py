"""Candidates for taps, from a `TapSpec` and a network's module tree alone (nothing runs here).

Whether a candidate runs at all, how often and in which order, the first forward tells (capture.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase

from torch import nn
from torch.nn.modules.conv import _ConvNd

from tunnel_lightning.taps.spec import TapSpec

ADDITION = "addition"
KINDS = ("default", "block", "activation", "all", ADDITION)
_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
# Names of projections beside a residual branch, lower case without underscores.
_SHORTCUTS = frozenset(
    [
        "shortcut",
        "downsample",
        "skip",
        "skipconnection",
        "skipconv",
        "convskip",
        "shortcutconv",
        "convshortcut",
        "residualconv",
    ]
)
# Squeeze-and-excitation computes a gate for the main path and is not on it.
_GATES = frozenset(["SqueezeExcitation", "SqueezeExcite", "SEModule", "SELayer", "EffectiveSEModule"])
_NOT_ACTIVATIONS = (nn.MultiheadAttention, nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin)


@dataclass
class Candidate:
    """A module that may become a tap.

    Attributes:
        path: Its path in the network.
        module: The module.
        by_kind: A kind asked for it.
        branch: Kind `addition` asks for those of its calls whose output is added to another tensor.
        globs: The globs that asked for it, with the call each wants (None: every call).
    """

    path: str
    module: nn.Module
    by_kind: bool = False
    branch: bool = False
    globs: list[tuple[str, int | None]] = field(default_factory=list)

    def wants(self, call: int) -> bool:
        """Whether a glob asks for this call (from 1)."""
        return any(number in (None, call) for _, number in self.globs)


def is_weighted(module: nn.Module) -> bool:
    """A convolution (any dimension, transposed too) or a linear module."""
    return isinstance(module, (_ConvNd, nn.Linear))


def candidates(model: nn.Module, spec: TapSpec) -> list[Candidate]:
    """The modules that `spec` asks for, in the order of registration.

    Raises:
        ValueError: A kind or glob finds no module; the message names near ones.

    Example:
        >>> from torchvision.models import resnet18
        >>> [c.path for c in candidates(resnet18(), TapSpec("block"))][:3]
        ['layer1.0', 'layer1.1', 'layer2.0']
    """
    found: dict[int, Candidate] = {}
    # One module may be registered under several paths: all can be named, the first is its name.
    aliases: dict[int, list[str]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        if path:
            aliases.setdefault(id(module), []).append(path)
    modules = {path: module for path, module in model.named_modules() if path}

    def candidate(path: str) -> Candidate:
        return found.setdefault(id(modules[path]), Candidate(path, modules[path]))

    for pattern in spec.patterns:
        if pattern in KINDS:
            paths = _of_kind(model, pattern)
            for path in paths:
                if pattern == ADDITION:
                    candidate(path).branch = True
                else:
                    candidate(path).by_kind = True
            if not paths:
                raise ValueError(
                    f"taps.layers: kind {pattern!r} finds no layer in {type(model).__name__}; choose another "
                    f"kind ({', '.join(KINDS)}) or a glob over its modules, such as {_some(modules)}."
                )
            continue
        glob, call = _split(pattern)
        paths = [path for path in modules if any(fnmatchcase(a, glob) for a in aliases[id(modules[path])])]
        for path in paths:
            candidate(path).globs.append((pattern, call))
        if not paths:
            near = get_close_matches(glob, [*modules, *KINDS], n=5, cutoff=0.5)
            hint = f"near: {', '.join(near)}" if near else f"there are {_some(modules)}"
            raise ValueError(f"taps.layers: {pattern!r} matches no module of {type(model).__name__}; {hint}.")
    order = {id(module): i for i, module in enumerate(modules.values())}
    return sorted(found.values(), key=lambda c: order[id(c.module)])


def _split(pattern: str) -> tuple[str, int | None]:
    glob, mark, call = pattern.rpartition("#")
    return (glob, int(call)) if mark and call.isdecimal() else (pattern, None)


def _some(modules: dict[str, nn.Module]) -> str:
    return ", ".join(list(modules)[:5])


def _of_kind(model: nn.Module, kind: str) -> list[str]:
    modules = {path: module for path, module in model.named_modules() if path}
    if kind == "default":
        return [p for p, m in modules.items() if is_weighted(m) and not _beside_main_path(model, p)]
    if kind == "activation":
        return [p for p, m in modules.items() if _is_activation(m) and not _beside_main_path(model, p)]
    if kind == ADDITION:
        # What a gate puts out is on the main path; what it computes inside is not.
        return [p for p in modules if not _beside_main_path(model, p, gates=False)]
    blocks = list(_blocks(model, "", False))
    if kind == "block":
        return blocks
    return [p for p, m in modules.items() if p in set(blocks) or not any(m.children())]


def _is_activation(module: nn.Module) -> bool:
    # timm and transformers define theirs in modules named like torch's.
    home = type(module).__module__.rpartition(".")[2]
    return (
        home.startswith("activation")
        and not isinstance(module, _NOT_ACTIVATIONS)
        and not any(module.children())
    )


def _beside_main_path(model: nn.Module, path: str, gates: bool = True) -> bool:
    """On a shortcut, or inside a gate: a component of the path tells by its name, class and siblings.

    With `gates` a gate counts as inside itself.
    """
    parent, parts = model, path.split(".")
    for depth, part in enumerate(parts, 1):
        module = parent.get_submodule(part)
        if (type(module).__name__ in _GATES or part == "se") and (gates or depth < len(parts)):
            return True
        name = part.lower().replace("_", "")
        siblings = dict(parent.named_children())
        del siblings[part]
        # torchvision's RegNet: `proj` beside the branch `f`; elsewhere `proj` is on the main path.
        if (name in _SHORTCUTS or (part == "proj" and "f" in siblings)) and any(
            _is_branch(sibling) for sibling in siblings.values()
        ):
            return True
        parent = module
    return False


def _is_branch(module: nn.Module) -> bool:
    """Whether a module can be the residual branch beside a shortcut, and is not a container of whole blocks.

    It tells a ResNet block's `downsample` (beside `conv1`) from that of a ConvNeXt or Swin stage (beside
    `blocks`), which is on the main path.
    """
    if type(module) in _CONTAINERS:
        return any(is_weighted(child) for child in module.children())
    return _weighted_below(module) > 0


def _weighted_below(module: nn.Module) -> int:
    """Number of convolution and linear modules in it (itself too), gates left out."""
    if is_weighted(module):
        return 1
    if type(module).__name__ in _GATES:
        return 0
    return sum(_weighted_below(child) for child in module.children())


def _is_container(module: nn.Module) -> bool:
    """A container, or a subclass of one that only chains blocks (RegNet's `AnyStage`)."""
    if type(module) in _CONTAINERS:
        return True
    inherits = any(isinstance(module, c) and type(module).forward is c.forward for c in _CONTAINERS)
    return inherits and all(_weighted_below(child) > 1 for child in module.children())


def _blocks(module: nn.Module, path: str, inside: bool) -> Iterator[str]:
    """Paths of the topmost modules in containers that hold a convolution or linear module.

    A stage that wraps a container of blocks (timm's ConvNeXt) gives its blocks; a block of
    conv-norm-activation units (MobileNet's) is taken whole: what counts as an inner block holds at least two
    convolution or linear modules.
    """
    for name, child in module.named_children():
        below = f"{path}.{name}" if path else name
        if _is_container(child):
            yield from _blocks(child, below, True)
        elif inside and not is_weighted(child) and _weighted_below(child):
            inner = [p for p in _blocks(child, "", False) if _weighted_below(child.get_submodule(p)) > 1]
            yield from [f"{below}.{p}" for p in inner] or [below]
        elif not inside:
            yield from _blocks(child, below, False)
