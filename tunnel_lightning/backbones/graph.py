"""A network's graph, cut where one of its modules puts something out: what is not needed for that is not in it."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn

Way = tuple[Any, ...]
"""Keys that lead from what a module gives to a tensor in it; empty for a tensor."""

_IN_PLACE = {
    getattr(operator, name) for name in dir(operator) if name.startswith("i") and name[1:] in dir(operator)
}


class Place(NamedTuple):
    """One call of one module, in a forward that was made.

    Attributes:
        path: of the module, the first where it has several.
        call: which of its calls, from 1.
        way: to the first floating-point tensor in what it gave.
        value: that tensor.
    """

    path: str
    call: int
    way: Way
    value: Tensor


@contextmanager
def as_written(network: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients, nothing compiled or fused; flags as before on leaving.

    Example:
        >>> network = nn.Sequential(nn.Dropout())
        >>> with as_written(network):
        ...     network[0].training
        False
        >>> network[0].training
        True
    """
    flags = [(module, module.training) for module in network.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        for module, _ in flags:
            module.training = False
        with torch.no_grad(), torch.compiler.set_stance("force_eager"):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, training in flags:
            module.training = training


def find(network: nn.Module, layer: str, example: Tensor) -> Place:
    """What a layer puts out in one quiet forward.

    Args:
        network: any network.
        layer: a module's path; ``path#2`` is its second call in a forward.
        example: a batch of the network's input [B, ...].

    Raises:
        ValueError: no such layer (near names are given), one that does not run, runs several times with no call
            named, or gives no tensor.

    Example:
        >>> find(nn.Sequential(nn.Linear(2, 3), nn.ReLU()), "0", torch.zeros(5, 2)).value.shape
        torch.Size([5, 3])
    """
    path, mark, number = layer.rpartition("#")
    call = int(number) if mark and number.isdecimal() and int(number) else None
    path = path if call else layer
    names = dict(network.named_modules(remove_duplicate=False))
    if not path or path not in names:
        near = get_close_matches(path, filter(None, names), n=5, cutoff=0.5) or list(filter(None, names))[:5]
        raise ValueError(
            f"{layer!r} is no layer of {type(network).__name__}; near: {', '.join(near)}. (Residual additions, those "
            "of kind 'addition', are no modules: take the block.)"
        )
    module = names[path]
    outputs: list[Any] = []
    handle = module.register_forward_hook(lambda _, args, output: outputs.append(_kept(output)))
    try:
        with as_written(network):
            network(example)
    finally:
        handle.remove()
    if len(outputs) < (call or 1):
        runs = f"runs {len(outputs)} time(s) in a forward" if outputs else "does not run in a forward"
        raise ValueError(f"layer {layer}: {path} of {type(network).__name__} {runs}; choose another.")
    if call is None and len(outputs) > 1:
        raise ValueError(
            f"layer {layer}: {path} runs {len(outputs)} times in a forward; say which, {path}#1 to "
            f"{path}#{len(outputs)}."
        )
    output = outputs[(call or 1) - 1]
    way = _way(output)
    if way is None:
        raise ValueError(
            f"layer {layer}: {path} gives no floating-point tensor with the batch first; choose another."
        )
    first = next(name for name, each in network.named_modules() if each is module)
    return Place(first, call or 1, way, _follow(output, way))


def cut_graph(network: nn.Module, place: Place, example: Tensor) -> nn.Module:
    """The part of a network that leads to a place; the modules in it are the network's own, under their own paths.

    Only the modules around the place are opened (torch.fx); what runs in them behind it or beside it is left out, and
    so are its parameters; every other module stays whole, and so trains and evaluates as before. (A function of the
    opened modules that asks for their mode, as ``F.dropout`` does, stays in evaluation.) A network that torch.fx
    can't follow goes through torch.export, and then stays in evaluation mode as a whole.

    Args:
        network: takes one tensor.
        place: found by `find`.
        example: the batch it was found with.

    Raises:
        ValueError: neither can follow the network.

    Example:
        >>> network = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> x = torch.randn(5, 2)
        >>> body = cut_graph(network, find(network, "0", x), x)
        >>> torch.equal(body(x), network[0](x)), list(body.state_dict())
        (True, ['0.weight', '0.bias'])
    """
    reasons = []
    for way in (_by_fx, _by_export):
        try:
            with as_written(network):
                body = way(network, place, example)
                same = close(body(example), place.value)
        except Exception as error:  # a tracer runs anyone's code on stand-ins, and fails in any way
            reasons.append(next(iter(str(error).splitlines()), type(error).__name__))
            continue
        if same:
            own = set(network.modules())
            for module in body.modules():
                if module not in own:
                    module.training = network.training
            return body
        reasons.append("the cut graph gives other values")
    raise ValueError(
        f"{type(network).__name__} can't be cut at {place.path}: torch.fx can't follow it ({reasons[0]}), nor can "
        f"torch.export ({reasons[1]}); cut at a module with less around it, or rewrite what they stumble over."
    )


class Constant(nn.Module):
    """Gives a tensor that is part of the network and not of its state; a graph's own constants would join the state.

    Args:
        value: the tensor.
    """

    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value, persistent=False)

    def forward(self) -> Tensor:
        """The tensor."""
        return self.value


class _Tracer(fx.Tracer):
    """Goes into the modules around the place alone."""

    def __init__(self, opened: set[nn.Module]) -> None:
        super().__init__()
        self.opened = opened

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return m not in self.opened


def _by_fx(network: nn.Module, place: Place, example: Tensor) -> nn.Module:
    target = network.get_submodule(place.path)
    opened = {each for each in network.modules() if each is not target and target in set(each.modules())}
    # What has a default keeps it.
    defaults = {
        name: given.default
        for name, given in list(inspect.signature(network.forward).parameters.items())[1:]
        if given.default is not inspect.Parameter.empty
    }
    graph = _Tracer(opened).trace(network, defaults or None)
    calls = [node for node in graph.nodes if node.op == "call_module" and node.target == place.path]
    node = calls[place.call - 1]
    for key in place.way:
        with graph.inserting_after(node):
            node = graph.call_function(operator.getitem, (node, key))
    _end_at(graph, node, network)
    return _made(graph, network, network)


class _Upto(nn.Module):
    """Gives what the place puts out; the forward runs to its end, for torch.export to see that nobody needs it."""

    def __init__(self, network: nn.Module, place: Place) -> None:
        super().__init__()
        self.network = network
        self.place = place._replace(value=torch.empty(0))

    def forward(self, x: Tensor) -> Tensor:
        outputs: list[Any] = []
        module = self.network.get_submodule(self.place.path)
        handle = module.register_forward_hook(lambda _, args, output: outputs.append(_kept(output)))
        try:
            self.network(x)
        finally:
            handle.remove()
        return _follow(outputs[self.place.call - 1], self.place.way)


def _by_export(network: nn.Module, place: Place, example: Tensor) -> nn.Module:
    program = torch.export.export(
        _Upto(network, place), (example,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},), strict=False
    )
    found = program.module()
    assert isinstance(found, fx.GraphModule)
    graph = found.graph
    graph.set_codegen(fx.graph.CodeGen())
    result = graph.output_node().args[0]
    while isinstance(result, tuple | list):
        result = result[0]
    assert isinstance(result, fx.Node)
    _end_at(graph, result, found)
    return _made(graph, found, network, prefix="network.")


def _made(graph: fx.Graph, root: nn.Module, network: nn.Module, prefix: str = "") -> fx.GraphModule:
    """The module of a graph whose names are of `root`: with the network's names, and what it holds and no more."""
    state = network.state_dict(keep_vars=True)
    held: dict[str, Any] = {}
    graph.owning_module = None  # else a module that only this one will have is missed in it
    for node in list(graph.nodes):
        if node.op == "call_module":
            held[node.target] = root.get_submodule(node.target)
        elif node.op == "get_attr":
            owner, _, name = node.target.rpartition(".")
            value = getattr(root.get_submodule(owner), name)
            path = node.target.removeprefix(prefix)
            if path in state:
                node.target = path
                held[path] = value
                continue
            path = f"constant_{node.target.replace('.', '_')}"
            held[path] = Constant(value)
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_module(path))
            graph.erase_node(node)
    graph._tracer_cls = None  # which pickle would ask for: a plain one does to read the code again
    return fx.GraphModule(held, graph, type(network).__name__)


def _end_at(graph: fx.Graph, result: fx.Node, root: nn.Module) -> None:
    """Let the graph give this node, and take out what it does not need."""
    graph.erase_node(graph.output_node())
    order = list(graph.nodes)
    before = order[: order.index(result) + 1]
    needed: set[fx.Node] = {before[0]}  # the images, also where nothing reads them
    waiting = [result]
    while waiting:
        while waiting:
            node = waiting.pop()
            if node not in needed:
                needed.add(node)
                waiting.extend(node.all_input_nodes)
        # What changes a needed tensor in its place is needed, though nobody reads what it gives.
        waiting = [
            node
            for node in before
            if node not in needed and _in_place(node, root) and set(node.all_input_nodes[:1]) & needed
        ]
    for node in reversed(order):
        if node not in needed:
            graph.erase_node(node)
    with graph.inserting_after(result):
        graph.output(result)


def _in_place(node: fx.Node, root: nn.Module) -> bool:
    if node.op == "call_module":
        return bool(getattr(root.get_submodule(str(node.target)), "inplace", False))
    if node.kwargs.get("inplace") is True:
        return True
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_method":
        return name.endswith("_") and not name.endswith("__")
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.is_mutable
    return node.op == "call_function" and (node.target in _IN_PLACE or node.target is operator.setitem)


def _kept(output: Any) -> Any:
    """The output with copies of its tensors: what follows in the network may change them in place."""
    if isinstance(output, Tensor):
        return output.clone()
    if isinstance(output, Mapping):
        return {key: _kept(value) for key, value in output.items()}
    if isinstance(output, tuple | list):
        return [_kept(value) for value in output]
    return output


def _way(output: Any) -> Way | None:
    """To the first floating-point tensor with a batch dimension, searched depth first, as the taps do."""
    if isinstance(output, Tensor):
        return () if output.is_floating_point() and output.dim() > 0 else None
    items = (
        output.items()
        if isinstance(output, Mapping)
        else enumerate(output)
        if isinstance(output, list)
        else ()
    )
    for key, value in items:
        inner = _way(value)
        if inner is not None:
            return (key, *inner)
    return None


def _follow(output: Any, way: Way) -> Tensor:
    for key in way:
        output = output[key]
    return output


def close(found: Tensor, wanted: Tensor) -> bool:
    """Whether tensors are equal but for the rounding of another order of sums.

    Example:
        >>> close(torch.ones(2) + 1e-6, torch.ones(2)), close(torch.zeros(2), torch.ones(2))
        (True, False)
    """
    if found.shape != wanted.shape:
        return False
    size = float(wanted.abs().nan_to_num(0, 0, 0).amax()) if wanted.numel() else 0.0
    return torch.allclose(found, wanted, rtol=1e-4, atol=1e-5 * size, equal_nan=True)
