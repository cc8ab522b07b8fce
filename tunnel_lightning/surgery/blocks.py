"""Residual blocks, found by their additions, and a network without some of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.taps import NoAdditions, Tap, Taps, TapSpec
from tunnel_lightning.taps.additions import is_compiled
from tunnel_lightning.taps.costs import plain
from tunnel_lightning.taps.hooks import first_tensor
from tunnel_lightning.taps.resolve import ADDITION, candidates

_SUM = "add"


@dataclass(frozen=True)
class Block:
    """A residual block: one or more branches, each added to what goes past it.

    Attributes:
        index: position in the order of execution, from 1.
        name: path of the module that is the block; of an addition outside any, of its branch.
        stage: which stage it is in, from 1: a stage begins with a block that changes the shape.
        branches: names of the taps of kind ``addition`` that are the branches.
        sums: names of the taps of the sums, in the same order.
        calls: of each branch, its module's path and which of its calls in a forward, from 1.
        shape: of the last sum, for one image.
        projected: what goes past the branch changes the shape (a down-sampling block), so it is a projection or a
            pooling, which stays when the block is deleted.
    """

    index: int
    name: str
    stage: int
    branches: tuple[str, ...]
    sums: tuple[str, ...]
    calls: tuple[tuple[str, int], ...]
    shape: tuple[int, ...]
    projected: bool


def residual_blocks(
    model: nn.Module, example: Tensor, forward: Callable[[Tensor], Any] | None = None
) -> list[Block]:
    """Find the residual blocks of a network by what it adds, whoever wrote it.

    An addition counts as in ``TapSpec("addition")``: two tensors of one shape, of which one is what a module on the
    main path put out and nothing took in since, the branch. Additions in one block (``TapSpec("block")``; attention
    and MLP of a transformer's) are one block; one outside any stands for itself. So ResNets of basic and bottleneck
    blocks, ConvNeXts, MobileNets, EfficientNets and transformers of torchvision and timm are read as they are.
    Networks that concatenate (DenseNet) have none.

    Nothing is changed: the network runs once, quietly, in evaluation mode.

    Args:
        model: any network.
        example: a batch of its input [B, ...].
        forward: runs the network where ``model(example)`` does not.

    Returns:
        The blocks in the order of execution; none where there are no residual additions.

    Raises:
        ValueError: the network is compiled, which hides its additions.

    Example:
        >>> from tunnel_lightning.backbones import MLP, ResNet
        >>> network = ResNet(depth=14, width=4, num_classes=10, input_shape=(1, 8, 8))
        >>> found = residual_blocks(network, torch.zeros(1, 1, 8, 8))
        >>> [(block.name, block.stage, block.projected) for block in found][1:4]
        [('stages.0.1', 1, False), ('stages.1.0', 2, True), ('stages.1.1', 2, False)]
        >>> residual_blocks(MLP(depth=2, width=8, input_shape=(1, 8, 8)), torch.zeros(1, 1, 8, 8))
        []
    """
    if is_compiled(model):
        raise ValueError(
            f"{type(model).__name__} is compiled, which hides its residual additions: give it uncompiled"
        )
    homes = _block_paths(model)
    two = example[:2] if len(example) > 1 else torch.cat([example, example])
    modules = dict(model.named_modules())
    taken: dict[str, tuple[int, ...]] = {}  # the shape of what each module was given last

    def watch(path: str) -> Any:
        def hook(module: nn.Module, args: Any, kwargs: Any) -> None:
            found = first_tensor((*args, *kwargs.values()))
            taken[path] = () if found is None else tuple(found.shape[1:])

        return hook

    with Taps(model, TapSpec(ADDITION, "avg")) as taps, plain(model):
        handles = [
            module.register_forward_pre_hook(watch(path), with_kwargs=True)
            for path, module in modules.items()
        ]
        try:
            taps.arm()
            (forward or model)(two)
            taps.take()
        except NoAdditions:
            return []
        finally:
            for handle in handles:
                handle.remove()
        pairs = _pairs(taps.layers)
    grouped: dict[str, list[tuple[Tap, Tap]]] = {}
    owners = [branch.module.rpartition(".")[0] for branch, _ in pairs]
    inside_one = {p for owner in owners for p in homes if owner == p or owner.startswith(f"{p}.")}
    homes = inside_one | {owner for owner in owners if owner and owners.count(owner) == 1}
    for owner, (branch, total) in zip(owners, pairs, strict=True):
        around = [p for p in inside_one if owner == p or owner.startswith(f"{p}.")]
        home = max(around, key=len, default=owner if owner in homes else "")
        grouped.setdefault(home or branch.name, []).append((branch, total))
    found: list[Block] = []
    for name, inside in grouped.items():
        shape = inside[-1][1].shape
        source = taken.get(name if name in homes else inside[0][0].module, shape)
        projected = name in homes and source != shape
        same = bool(found) and found[-1].shape == shape and not projected
        stage = found[-1].stage + (not same) if found else 1
        found.append(
            Block(
                len(found) + 1,
                name,
                stage,
                tuple(branch.name for branch, _ in inside),
                tuple(total.name for _, total in inside),
                tuple((branch.module, branch.call) for branch, _ in inside),
                shape,
                projected,
            )
        )
    return found


def _block_paths(model: nn.Module) -> set[str]:
    try:
        return {each.path for each in candidates(model, TapSpec("block"))}
    except ValueError:  # no blocks: every addition stands for itself
        return set()


def _pairs(layers: list[Tap]) -> list[tuple[Tap, Tap]]:
    """Each sum with its branch: the last one before it that the same module holds."""
    waiting: dict[str, list[Tap]] = {}
    found = []
    for tap in layers:
        if tap.kind != "Add":
            waiting.setdefault(tap.module.rpartition(".")[0], []).append(tap)
            continue
        owner = tap.module.removesuffix(_SUM).removesuffix(".")
        if waiting.get(owner):
            found.append((waiting[owner].pop(), tap))
    return found


@contextmanager
def without(model: nn.Module, blocks: Iterable[Block]) -> Iterator[None]:
    """The network runs without the branches of some residual blocks: what goes past them goes on alone.

    After the deletion of Nguyen, Raghu & Kornblith, "Do Wide and Deep Networks Learn the Same Things?", ICLR 2021:
    nothing is trained again. What the branches put out is replaced by zeros, so the skip path, a projection where
    the shape changes, and the activation behind the addition stay. No weight is touched: on leaving the network is
    as it was, bit for bit, also after an exception.

    Args:
        model: the network the blocks are of.
        blocks: of :func:`residual_blocks`.

    Raises:
        ValueError: a block of another network, or, in the forward, a branch that gives no tensor.

    Example:
        >>> from tunnel_lightning.backbones import ResNet
        >>> network = ResNet(depth=14, width=4, num_classes=10, input_shape=(1, 8, 8)).eval()
        >>> x = torch.randn(2, 1, 8, 8)
        >>> second = residual_blocks(network, x)[1]
        >>> with without(network, [second]):
        ...     shorter = network(x)
        >>> network.stages[0][1] = nn.Identity()
        >>> torch.equal(shorter, network(x))
        True
    """
    modules = dict(model.named_modules())
    wanted: dict[str, set[int]] = {}
    for block in blocks:
        for path, call in block.calls:
            if path not in modules:
                raise ValueError(f"{type(model).__name__} has no {path}: the block is of another network")
            wanted.setdefault(path, set()).add(call)
    done: dict[str, int] = {}

    def silence(path: str) -> Any:
        def hook(module: nn.Module, args: Any, output: Any) -> Any:
            done[path] = done.get(path, 0) + 1
            return _silent(output, path) if done[path] in wanted[path] else None

        return hook

    handles = [model.register_forward_pre_hook(lambda *_: done.clear())]
    try:
        handles += [modules[path].register_forward_hook(silence(path)) for path in wanted]
        yield
    finally:
        for handle in handles:
            handle.remove()


def _silent(output: Any, path: str) -> Any:
    """The same output with zeros in the place of its first tensor."""
    if isinstance(output, Tensor):
        return torch.zeros_like(output)
    if isinstance(output, (tuple, list)) and output and isinstance(output[0], Tensor):
        rest = (torch.zeros_like(output[0]), *output[1:])
        return rest if type(output) is tuple else type(output)(rest)
    raise ValueError(f"{path} gives a {type(output).__name__} and no tensor, so its branch can't be deleted")
