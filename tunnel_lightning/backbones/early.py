"""A network with a classifier at several layers, which an image leaves at the first one that is sure."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils.flop_counter import FlopCounterMode
from typing_extensions import Self

from .base import Backbone, rebuild
from .graph import as_written
from .named import Named
from .rows import Pooled, Rows


class EarlyExit(Backbone):
    """A network with linear classifiers (exits) at some layers, where sure answers end the computation.

    In evaluation mode the network runs from exit to exit. At each, the images whose confidence, the largest softmax
    probability, exceeds the threshold leave with that exit's scores, and only the others are computed further; those
    that reach the end get the network's own (as in Teerapittayanon et al., "BranchyNet", ICPR 2016, with confidence
    in the place of entropy). The answers are those of computing all exits and choosing then, up to the rounding of
    other batch sizes, and do not depend on the other images of a batch.

    In training mode all images go through the whole network and forward gives its scores alone; those of the exits
    are in `last`, and their loss is the caller's to add.

    The network is traced by torch.fx, in evaluation mode: branches that depend on an image's values cannot be traced,
    and dropout that is no module does not happen.

    Args:
        network: ``class_path`` and ``init_args`` of the network, a ``Backbone`` that is imported; its
            ``num_classes`` and ``input_shape`` are replaced by those below.
        layers: modules whose outputs the exits read, ``path`` or, for one that runs several times, ``path#call``.
        pool: how an output becomes features, as in ``TapSpec``: 2x2, avg, flatten or token.
        threshold: the confidence to exceed, in [0, 1], one for all exits or one for each as they run; at 1 no image
            leaves there, at 0 all do.
        num_classes: number of outputs.
        input_shape: channels, height and width of one image.

    Attributes:
        network: the network itself.
        heads: a linear module for each exit.
        temperature: what the network's own scores are divided by, so that its confidence means what the exits' does
            (their temperatures are in their weights); a buffer, at first 1.
        layers: where the exits are, in the order of execution.
        exit_names: the same with ``network``, its own end, last.
        trunk: floating-point operations of one image up to each exit, without the exits, and of the whole; E + 1.
        costs: the same with the exits that were asked on the way.
        taken: where each image of the last forward in evaluation mode left, int64 ``[B]``: 0 to E - 1, and E for the
            whole network; None before it.
        last: scores of the last forward in training mode, E + 1 of ``[B, C]``, the network's own last.

    Raises:
        ValueError: no such network, layer or pool; a network that torch.fx cannot trace or that does not give scores
            [B, C]; a threshold outside [0, 1].

    Example:
        >>> mlp = {"class_path": "tunnel_lightning.backbones.mlp.MLP", "init_args": {"depth": 3, "width": 8}}
        >>> network = EarlyExit(mlp, ["layers.0.act", "layers.1.act"], threshold=0.0, input_shape=(1, 4, 4))
        >>> network.eval()(torch.zeros(5, 1, 4, 4)).shape, network.taken
        (torch.Size([5, 10]), tensor([0, 0, 0, 0, 0]))
        >>> network.costs, network.mean_flops()
        ((416, 704, 992), 416.0)
    """

    def __init__(
        self,
        network: dict[str, Any],
        layers: list[str],
        pool: Pooled = "2x2",
        threshold: float | list[float] = 0.9,
        num_classes: int = 10,
        input_shape: tuple[int, int, int] = (3, 32, 32),
    ) -> None:
        super().__init__(num_classes, input_shape)
        each = threshold if isinstance(threshold, list | tuple) else [threshold] * len(layers)
        if len(each) != len(layers) or not all(0 <= value <= 1 for value in each):
            raise ValueError(
                f"EarlyExit: threshold is {threshold}; give a confidence between 0 and 1, or one for each exit."
            )
        if not isinstance(network, Mapping) or not {"class_path", "init_args"} <= set(network):
            raise ValueError("EarlyExit: give the network as {class_path: ..., init_args: {...}}.")
        given = {**network["init_args"], "num_classes": num_classes, "input_shape": list(self.input_shape)}
        self.network = rebuild({"class_path": network["class_path"], "init_args": given})
        self.threshold = threshold
        self.pool: Pooled = pool
        places, self._parts = _parts_of(self.network, layers)
        self.layers = tuple(places)
        self.exit_names = (*self.layers, "network")
        self.rows = nn.ModuleList()
        self._divides: list[tuple[_Divide, ...]] = []
        widths, self.trunk = self._look(pool)
        self.heads = nn.ModuleList(nn.Linear(width, num_classes) for width in widths)
        self.register_buffer("temperature", torch.ones(()))
        asked = [2 * width * num_classes for width in widths]
        self.costs = tuple(trunk + sum(asked[: number + 1]) for number, trunk in enumerate(self.trunk))
        self.taken: Tensor | None = None
        self.last: list[Tensor] = []

    temperature: Tensor

    @property
    def head(self) -> nn.Linear:  # type: ignore[override]
        """The network's own final layer."""
        return self.network.head

    def features(self, x: Tensor) -> Tensor:
        """What the network's own head reads, of images that all stay to the end."""
        return self.network.features(x)

    def forward(self, x: Tensor) -> Tensor:
        """Scores [B, num_classes] of images [B, C, H, W]; the rows stand as the images do."""
        if self.training:
            self.last = self.all_scores(x)
            return self.last[-1]
        return self._leaving(x)

    def all_scores(self, x: Tensor) -> list[Tensor]:
        """Scores of every exit and, last, of the network, E + 1 of [B, C] float32; no image leaves.

        Args:
            x: images [B, C, H, W].
        """
        values: tuple[Any, ...] = (x,)
        scores = []
        for number, part in enumerate(self._parts[:-1]):
            tapped, *rest = part(*values)
            scores.append(self._asked(number, tapped))
            values = tuple(rest)
        return [*scores, self._parts[-1](*values).float() / self.temperature]

    def mean_flops(self) -> float:
        """Floating-point operations that an image of the last forward in evaluation mode took, on average.

        Raises:
            RuntimeError: there was none.
        """
        if self.taken is None:
            raise RuntimeError("EarlyExit.mean_flops: no images yet; run some in evaluation mode first.")
        return float(torch.tensor(self.costs, dtype=torch.float64)[self.taken.cpu()].mean())

    def _leaving(self, x: Tensor) -> Tensor:
        end = len(self.heads)
        given = self.threshold
        thresholds = list(given) if isinstance(given, list | tuple) else [given] * end
        self.taken = torch.full((len(x),), end, device=x.device)
        answer = torch.empty(len(x), self.num_classes, device=x.device)
        inside = torch.arange(len(x), device=x.device)
        values: tuple[Any, ...] = (x,)
        for number, part in enumerate(self._parts[:-1]):
            tapped, *rest = part(*values)
            scores, values = self._asked(number, tapped), tuple(rest)
            sure = scores.softmax(1).amax(1) > thresholds[number]
            if not bool(sure.any()):
                continue
            answer[inside[sure]] = scores[sure]
            self.taken[inside[sure]] = number
            stay = (~sure).nonzero()[:, 0]
            if not len(stay):
                return answer
            values = tuple(
                divide(value, stay, len(inside))
                for divide, value in zip(self._divides[number], values, strict=True)
            )
            inside = inside[stay]
        answer[inside] = self._parts[-1](*values).float() / self.temperature
        return answer

    def _asked(self, number: int, tapped: Tensor) -> Tensor:
        """Scores of an exit, in float32 whatever the network computes in."""
        head = self.heads[number]
        if tapped.requires_grad:
            tapped = tapped.clone()  # the network may change it in place, and its gradient needs it as it was
        with torch.autocast(tapped.device.type, enabled=False):
            return head(self.rows[number](tapped).to(head.weight)).float()

    def _look(self, pool: Pooled) -> tuple[list[int], tuple[int, ...]]:
        """Learn from blank images how to pool and divide what passes each exit; widths and costs of all exits."""
        widths = []
        with as_written(self.network):
            three, two = (self._outputs(torch.zeros(size, *self.input_shape)) for size in (3, 2))
            for name, (more, _), (output, _) in zip(self.layers, three, two, strict=False):
                tapped = output[0]
                if not isinstance(tapped, Tensor) or not tapped.is_floating_point() or not tapped.ndim:
                    raise ValueError(f"EarlyExit: {name} gives no tensor, so no exit can be there.")
                module = self.network.get_submodule(name.partition("#")[0])
                self.rows.append(Rows.of(pool, self.network, module, tapped.shape, 2))
                widths.append(self.rows[-1](tapped).shape[1])
                self._divides.append(
                    tuple(_divide_of(name, a, b) for a, b in zip(more[1:], output[1:], strict=True))
                )
        scores = two[-1][0]
        if not isinstance(scores, Tensor) or scores.shape != (2, self.num_classes):
            raise ValueError(
                f"EarlyExit: {type(self.network).__name__} gives no scores [B, {self.num_classes}]."
            )
        return widths, tuple(flops // 2 for _, flops in two)

    def _outputs(self, x: Tensor) -> list[tuple[Any, int]]:
        """What each part gives, and the operations up to there."""
        found: list[tuple[Any, int]] = []
        values: tuple[Any, ...] = (x,)
        with FlopCounterMode(display=False) as counter:
            for part in self._parts:
                output = part(*values)
                found.append((output, counter.get_total_flops()))
                values = output[1:] if part is not self._parts[-1] else ()
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        # Buffers that the network's code reads are new tensors then, and the parts hold the old ones.
        for part in self._parts:
            for node in part.graph.find_nodes(op="get_attr"):
                owner, _, name = str(node.target).rpartition(".")
                value = getattr(_root_of(self.network)[0].get_submodule(owner), name)
                setattr(part.get_submodule(owner), name, value)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Without what the last forward left: it may hang on a graph, which cannot be copied."""
        return {**self.__dict__, "last": [], "taken": None}


_Divide = Callable[[Any, Tensor, int], Any]
"""From a value of ``n`` images, and the numbers of those that stay, to the value of these."""


def _divide_of(name: str, three: Any, two: Any) -> _Divide:
    """How to divide a value that passes an exit, told from what it is for three images and for two."""
    if isinstance(two, Tensor):
        if three.shape == two.shape:
            return _same
        if two.ndim and two.shape[1:] == three.shape[1:] and two.shape[0] * 3 == three.shape[0] * 2:
            return _rows
    elif isinstance(two, tuple | list):
        inner = [_divide_of(name, a, b) for a, b in zip(three, two, strict=True)]
        kind = tuple if isinstance(two, torch.Size) else type(two)
        return _Each(kind, inner)
    elif three == two:
        return _same
    elif isinstance(two, int) and two * 3 == three * 2:
        return _number
    raise ValueError(
        f"EarlyExit: what passes {name} cannot be divided by images (a {type(two).__name__}); put the exit elsewhere."
    )


def _same(value: Any, stay: Tensor, count: int) -> Any:
    return value


def _number(value: int, stay: Tensor, count: int) -> int:
    return value // count * len(stay)


def _rows(value: Tensor, stay: Tensor, count: int) -> Tensor:
    """Rows of the images that stay; an image may have several rows in a row (windows of attention)."""
    if len(value) == count:
        return value.index_select(0, stay)
    return value.unflatten(0, (count, -1)).index_select(0, stay).flatten(0, 1)


class _Each:
    """Divides the members of a sequence, each in its way."""

    def __init__(self, kind: type, inner: Sequence[_Divide]) -> None:
        self.kind, self.inner = kind, inner

    def __call__(self, value: Any, stay: Tensor, count: int) -> Any:
        return self.kind(divide(v, stay, count) for divide, v in zip(self.inner, value, strict=True))


class _Tracer(fx.Tracer):
    """Also keeps which node each call of a module put out."""

    def __init__(self) -> None:
        super().__init__()
        self.outputs: dict[str, list[Any]] = {}

    def call_module(
        self, m: nn.Module, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call it, and keep what it gave."""
        output = super().call_module(m, forward, args, kwargs)
        self.outputs.setdefault(self.path_of_module(m), []).append(output)
        return output


def _parts_of(network: Backbone, layers: Sequence[str]) -> tuple[list[str], list[fx.GraphModule]]:
    """The layers in the order they run, and the network in parts that end there; the last is what remains.

    A part takes what passes the exit before it, and gives its layer's output and, behind it, what passes that exit.
    """
    root, prefix = _root_of(network)
    tracer = _Tracer()
    # What a forward may be given beside the images is fixed at its default.
    others = list(inspect.signature(root.forward).parameters.values())[1:]
    fixed = {each.name: each.default for each in others if each.default is not inspect.Parameter.empty}
    try:
        with as_written(root):
            graph = tracer.trace(root, fixed)
    except Exception as error:  # whatever the network's own code raises on meeting a stand-in for a tensor
        why = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(
            f"EarlyExit: torch.fx cannot trace {type(network).__name__} ({why}); exits need a network whose code "
            "takes the same way for all images."
        ) from error
    order = {node: number for number, node in enumerate(graph.nodes)}
    ends = {name: _end(name, prefix, network, tracer) for name in layers}
    if not ends or len(ends) < len(layers):
        raise ValueError("EarlyExit: layers is empty or names one twice; name each layer with an exit once.")
    places = sorted(ends, key=lambda name: order[ends[name]])
    nodes = [node for node in graph.nodes if node.op not in ("placeholder", "get_attr", "output")]
    given = [node for node in graph.nodes if node.op == "placeholder"][:1]
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    cuts = [-1, *(order[ends[name]] for name in places), len(order)]
    parts, incoming = [], given
    for number, (start, stop) in enumerate(pairwise(cuts)):
        passing = [
            node
            for node in order
            if order[node] <= stop
            and node.op not in ("get_attr", "output")
            and any(order[user] > stop for user in node.users)
            and (node.op != "placeholder" or node in given)
        ]
        inner = [node for node in nodes if start < order[node] <= stop]
        wanted = result if number == len(places) else (ends[places[number]], *passing)
        parts.append(_part(root, inner, incoming, wanted))
        incoming = passing
    return places, parts


def _root_of(network: Backbone) -> tuple[nn.Module, str]:
    """What is traced, and what its paths begin with in the network."""
    # `Named` asks whether what its network gives is a tensor, and while tracing nothing is.
    return (network.net, "net.") if isinstance(network, Named) else (network, "")


def _end(name: str, prefix: str, network: nn.Module, tracer: _Tracer) -> fx.Node:
    """The node that a layer puts out."""
    path, _, call = name.partition("#")
    calls = tracer.outputs.get(path.removeprefix(prefix), []) if path.startswith(prefix) else []
    number = int(call) if call.isdecimal() else 1
    if not 1 <= number <= len(calls) or not isinstance(calls[number - 1], fx.Proxy):
        known = [prefix + path for path in tracer.outputs]
        some = ", ".join(known[:5])
        raise ValueError(
            f"EarlyExit: {name!r} is no module of {type(network).__name__} that runs and gives a tensor; there are "
            f"{some}, ..."
        )
    return calls[number - 1].node


def _part(
    root: nn.Module, inner: Sequence[fx.Node], incoming: Sequence[fx.Node], wanted: Any
) -> fx.GraphModule:
    """Nodes as a module of their own, which shares the network's."""
    graph, known = fx.Graph(), {}
    for number, node in enumerate(incoming):
        known[node] = graph.placeholder(f"value_{number}")

    def lookup(node: fx.Node) -> Any:
        if node not in known and node.op == "placeholder":
            return node.args[0] if node.args else None
        if node not in known and node.op == "get_attr":
            known[node] = graph.node_copy(node)
        return known[node]

    for node in inner:
        for (
            used
        ) in node.all_input_nodes:  # parameters first, so that they do not stand inside a node's own copy
            lookup(used)
        known[node] = graph.node_copy(node, lookup)
    graph.output(fx.node.map_arg(wanted, lookup))
    return fx.GraphModule(root, graph)
