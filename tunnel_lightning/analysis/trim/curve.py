"""Every cut of a network: what it knows, what it costs, how fast it is; finished parts are kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.parts import Task, finish
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part, Store, fingerprint
from tunnel_lightning.analysis.trim.choose import pareto
from tunnel_lightning.analysis.trim.heads import Right, Scored, heads_of
from tunnel_lightning.analysis.trim.latency import BATCHES, conditions, latencies, speedups, spread
from tunnel_lightning.backbones import Backbone
from tunnel_lightning.measures import LinearHead
from tunnel_lightning.runs import INPUT, NETWORK
from tunnel_lightning.runs.trimming import Columns
from tunnel_lightning.surgery.cut import costs_of, cut
from tunnel_lightning.taps import Tap, quiet
from tunnel_lightning.taps.pooling import choose_columns

SHOWN = 64
"""Images that a cut network is tried on when it is made."""


@dataclass
class Found:
    """What was found of every cut.

    Attributes:
        own: the heads for the network's own classes.
        others: those for the classes of each other set.
        costs: FLOPs of one image and parameters, by layer; of the whole network as ``network``.
        times: seconds of a forward by batch size and layer, as :func:`latencies` gives them; empty where they are
            not measured.
        conditions: where latencies were measured.
        seconds: how long each part took.
    """

    own: Scored
    others: dict[str, Scored]
    costs: dict[str, tuple[int, int]]
    times: dict[int, dict[str, Any]] = field(default_factory=dict)
    conditions: dict[str, Any] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)


def find(context: Context, store: Store, latency: bool) -> Found:
    """Fit and score heads on every set, count costs, and measure latencies; what was finished before is read."""
    parts: list[Part] = []

    def done(name: str, title: str, images: ImageSet, make: Callable[[], Part]) -> Part:
        parts.append(finish(context, store, Task(name, title, images, context.options.measures, make)))
        return parts[-1]

    scored = {}
    for images in (context.own, *context.others):
        title = f"{images.name}: a head at every layer"
        scored[images.name] = Scored.of(
            done(f"heads-{images.name}", title, images, partial(_heads, context, images))
        )
    own = scored.pop(context.own.name)
    cuts = _Cuts(context, own)
    costs = done("costs", "costs of every cut", context.own, partial(_costs, context, cuts))
    found = Found(own, scored, {name: tuple(each) for name, each in costs.extra["costs"].items()})
    if latency:
        found.conditions = conditions(context.fabric.device)
        for size in BATCHES:
            name = f"latency-{size}-{fingerprint(found.conditions)}"
            title = f"latency of every cut, {size} image{'s' * (size > 1)} at once"
            kept = done(name, title, context.own, partial(_latency, context, cuts, size))
            found.times[size] = kept.arrays
    found.seconds = {what: seconds for part in parts for what, seconds in part.seconds.items()}
    return found


def network_at(context: Context, tap: Tap, head: LinearHead, images: ImageSet | None = None) -> nn.Module:
    """The network cut behind a layer, with that head, in evaluation mode; the network itself stays as it is.

    Args:
        context: the network.
        tap: the layer.
        head: on its features, float64.
        images: the set whose images it is shown; by default the network's own.
    """
    subject, spec, device = context.subject, context.options.taps, context.fabric.device
    # A library's network is tapped without the Backbone around it, which alone a checkpoint can keep.
    within = next((name for name, each in subject.model.named_modules() if each is subject.network), "")
    inside = bool(within) and isinstance(subject.model, Backbone)
    if inside:  # which columns were drawn goes by the layer's name
        head, spec = _whole_width(context, tap, head), replace(spec, max_features=None)
    x, _ = next(iter((images or context.own).batches("train", SHOWN)))
    assert spec.pool != "gram", "refused by the options"
    return cut(
        subject.model if inside else subject.network,
        f"{within}.{tap.name}" if inside else tap.name,
        head.weight,
        head.bias,
        x.to(device),
        spec.pool,
        spec.max_features,
        spec.seed,
    )


def _whole_width(context: Context, tap: Tap, head: LinearHead) -> LinearHead:
    """The head on all columns of a layer's features: those that were left out of its fit have weight zero."""
    spec = context.options.taps
    if spec.max_features is None:
        return head
    with context.tap(replace(spec, max_features=None)) as taps:
        dim = next(each.dim for each in taps.layers if each.name == tap.name)
    columns = choose_columns(dim, spec.max_features, spec.seed, f"{tap.module}#{tap.call}")
    if columns is None:
        return head
    weight = head.weight.new_zeros(len(head.bias), dim)
    weight[:, columns] = head.weight
    return LinearHead(weight, head.bias)


def answers(
    context: Context, network: nn.Module, images: ImageSet, split: str, what: str = "the cut network"
) -> Right:
    """Whether a network is right about each image of a split, shape [N], in the order of the heads' answers."""
    limit, device = context.options.eval_images, context.fabric.device
    total = -(-images.size(split, limit) // images.batch_size)
    right = []
    with quiet(network):
        for done, (x, y) in enumerate(images.batches(split, limit)):
            context.progress(f"{what}: {images.name} {split}", done, total)
            right.append((network(x.to(device)).argmax(1).cpu() == y).numpy())
    context.progress(f"{what}: {images.name} {split}", total, total)
    return np.concatenate(right)


def _heads(context: Context, images: ImageSet) -> Part:
    return heads_of(context, images).part()


class _Cuts:
    """Every cut of the network that a head was fitted for, built when it is first needed."""

    def __init__(self, context: Context, own: Scored) -> None:
        self.context, self.own = context, own
        self._made: dict[str, nn.Module] = {}

    def __call__(self) -> dict[str, nn.Module]:
        """The networks by layer, on the whole one's own weights."""
        context, own = self.context, self.own
        whole = context.model if isinstance(context.model, Backbone) else context.subject.network
        taps = [tap for tap in context.taps.layers if tap.name in own.heads]
        for done, tap in enumerate(taps):
            if tap.name not in self._made:
                context.progress("cutting behind every layer", done, len(taps))
                self._made[tap.name] = _sharing(network_at(context, tap, own.heads[tap.name]), whole)
        context.progress("cutting behind every layer", len(taps), len(taps))
        return self._made


def _costs(context: Context, cuts: _Cuts) -> Part:
    """FLOPs and parameters of the networks themselves: what is cut away inside a block is not run, nor counted."""
    found = {NETWORK: costs_of(context.model, context.example)}
    found |= {name: costs_of(network, context.example) for name, network in cuts().items()}
    return Part(extra={"costs": {name: list(each) for name, each in found.items()}})


def _latency(context: Context, cuts: _Cuts, size: int) -> Part:
    networks = cuts()
    x = context.example[:1].repeat(size, *[1] * (context.example.ndim - 1)).contiguous()
    context.taps.disarm()
    told = partial(context.progress, f"latency, {size} image{'s' * (size > 1)} at once")
    return Part(arrays=dict(latencies(context.model, networks, x, told=told)))


def _sharing(made: nn.Module, whole: nn.Module) -> nn.Module:
    """The cut network on the whole one's own weights, so that all cuts together take little more memory than one."""
    own = dict(whole.named_parameters(remove_duplicate=False))
    body = made.body
    assert isinstance(body, nn.Module)
    for path, module in body.named_modules():
        for name in list(module._parameters):
            twin = own.get(f"{path}.{name}" if path else name)
            if twin is not None and module._parameters[name] is not None:
                module._parameters[name] = twin
    return made


def columns_of(context: Context, found: Found) -> Columns:
    """The columns of ``curve.csv``: the raw pixels, every layer, the whole network."""
    layers = context.taps.layers
    names = [INPUT, *(tap.name for tap in layers), NETWORK]
    own, pixels, classes = found.own, context.taps.input.dim, context.own.num_classes
    raw = (2 * pixels * classes, (pixels + 1) * classes)  # a linear classifier of them
    nothing = (math.nan, math.nan)
    costs = np.array([raw, *(found.costs.get(name, nothing) for name in names[1:])], dtype=float)
    accuracy = np.array([own.accuracy("test", name) for name in names])
    columns: Columns = {
        "index": list(range(len(names))),
        "layer": names,
        "kind": ["", *(tap.kind for tap in layers), type(context.subject.network).__name__],
        "head": [own.kinds.get(name, "") for name in names],
        "dim": [pixels, *(tap.dim for tap in layers), context.taps.head.dim if context.taps.head else None],
        "flops": _whole(costs[:, 0]),
        "parameters": _whole(costs[:, 1]),
        "val_accuracy": np.array([own.accuracy("val", name) for name in names]),
        "accuracy": accuracy,
        "se": np.array([_se(own, name) for name in names]),
        "ece": np.array([own.ece.get(name, math.nan) for name in names]),
        "temperature": np.array([own.temperature.get(name, math.nan) for name in names]),
        # The raw pixels are no cut of the network, so they don't stand in a cut's way.
        "front": [0, *pareto(costs[1:, 0], accuracy[1:]).astype(int).tolist()],
    }
    for size, times in found.times.items():
        columns |= _timed(names, accuracy, times, size)
    for name, scored in found.others.items():
        columns[f"transfer:{name}"] = np.array([scored.accuracy("test", each) for each in names])
        columns[f"transfer_se:{name}"] = np.array([_se(scored, each) for each in names])
        columns[f"transfer_val:{name}"] = np.array([scored.accuracy("val", each) for each in names])
    return columns


def _timed(names: Sequence[str], accuracy: np.ndarray, pairs: Mapping[str, Any], size: int) -> Columns:
    nothing = (math.nan, math.nan, math.nan)
    whole = np.concatenate([each[:, 1] for each in pairs.values()])
    own = {name: each[:, 0] for name, each in pairs.items()} | {NETWORK: whole}
    taken = np.array([spread(1e3 * own[name]) if name in own else nothing for name in names])
    faster = [speedups(pairs[name]) if name in pairs else nothing for name in names[:-1]]
    ratios = np.array([*faster, (1.0, 1.0, 1.0)])
    ends = ("", "_low", "_high")
    return {
        **{f"latency_ms{end}_{size}": taken[:, k] for k, end in enumerate(ends)},
        **{f"speedup{end}_{size}": ratios[:, k] for k, end in enumerate(ends)},
        f"front_latency_{size}": [0, *pareto(taken[1:, 0], accuracy[1:]).astype(int).tolist()],
    }


def _whole(values: np.ndarray) -> list[int | None]:
    return [int(value) if math.isfinite(value) else None for value in values]


def _se(scored: Scored, name: str) -> float:
    """The binomial standard error of a test accuracy."""
    accuracy, n = scored.accuracy("test", name), len(scored.test.get(name, ()))
    return math.sqrt(accuracy * (1 - accuracy) / n) if n else math.nan
