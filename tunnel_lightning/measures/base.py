"""The one pass over data that everything measured per layer goes through."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from tunnel_lightning.measures.layer import Accuracy, Value
from tunnel_lightning.measures.moments import Moments
from tunnel_lightning.measures.protocols import Factory, LayerValue, Measure, Observer, States
from tunnel_lightning.taps import Tap, Taps, quiet

GIB = 2**30


class _Unusable:
    """A measure of a layer with NaN, infinite or constant features: the same values, all NaN."""

    def __init__(self, measure: Measure) -> None:
        self._measure = measure

    def __getattr__(self, name: str) -> Any:
        return getattr(self._measure, name)

    def compute(self) -> list[Value]:
        return [value._replace(value=math.nan, se=math.nan) for value in self._measure.compute()]


class _Range:
    """Largest and smallest value of every column: tells constant and non-finite features, without a sync."""

    def __init__(self) -> None:
        self.high: Tensor | None = None
        self.low: Tensor | None = None

    def update(self, features: Tensor) -> None:
        if not len(features):
            return
        high, low = features.amax(0), features.amin(0)
        self.high = high if self.high is None else torch.maximum(self.high, high)
        self.low = low if self.low is None else torch.minimum(self.low, low)

    def problem(self, dim: int, device: torch.device, reduce: bool) -> str:
        if self.high is None or self.low is None:
            # The neutral element: a process without images changes nothing.
            both = torch.full((2, dim), -torch.inf, device=device)
        else:
            # NaN may be lost in a maximum over processes, infinity is not.
            both = torch.stack([self.high, -self.low]).float()
            both = torch.where(torch.isfinite(both), both, torch.inf)
        if reduce:
            dist.all_reduce(both, op=dist.ReduceOp.MAX)
        if bool((both == -torch.inf).all()):
            return "no samples"
        if not bool(torch.isfinite(both).all()):
            return "NaN or infinite features"
        return "constant features" if bool((both[0] == -both[1]).all()) else ""


def required_bytes(measures: Iterable[Measure | None]) -> int:
    """Bytes the states of these measures take, known before the first batch.

    Args:
        measures: states, freshly made; those without ``nbytes`` count as nothing.

    Example:
        >>> from tunnel_lightning.measures import MomentMeasures
        >>> required_bytes([MomentMeasures(dim=1000, num_classes=10)])
        12272440
    """
    return sum(
        Moments.nbytes(measure.dim, measure.num_classes)
        if isinstance(measure, Moments)
        else int(getattr(measure, "nbytes", 0))
        for measure in measures
    )


def accumulate(
    model: nn.Module,
    taps: Taps,
    loader: Iterable[Any],
    measures: Sequence[Factory],
    *,
    observers: Sequence[Observer] = (),
    unpack: Callable[[Any], tuple[Any, Tensor]] | None = None,
    device: torch.device | str | None = None,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    input: bool = True,
    network: bool = True,
    where: str = "",
    memory_limit: int = 8 * GIB,
) -> States:
    """Run the model once over ``loader``, quietly, and stream every layer's features into its measures.

    Quietly: evaluation mode, no gradients; training flags, BatchNorm statistics and all random states are as
    before. With ``torch.distributed`` initialised each process reads its own shard (the caller's loader holds
    no image twice) and all get the sums. Layers with NaN, infinite or constant features give NaN, with one
    warning each; a layer that nothing measures is not looked at.

    Taps with ``pool="gram"`` give Gram matrices, which only observers can read: no measures, no raw pixels.

    Args:
        model: what is called on the images; ``taps`` may watch a part of it.
        taps: its tapped layers.
        loader: batches.
        measures: each makes one measure for a tap, or ``None`` to leave this tap out.
        observers: each is given every layer of a batch at once, and the network's scores.
        unpack: ``batch -> (images, class indices)``; by default the first two items of a sequence, or of a
            dict's values.
        device: where to run; by default where the model is.
        context: makes the context of each forward pass, such as ``lambda: torch.autocast("cpu",
            torch.bfloat16)``.
        input: also measure the raw pixels, layer ``"input"``.
        network: also count the accuracy of the model's own output, layer ``"network"``; leave it out for a
            set with other classes. Skipped where the output holds no ``[B, C]`` scores.
        where: said in warnings, such as ``"step 120"``.
        memory_limit: bytes all measures together may take.

    Returns:
        For every layer, in order, one entry per item of ``measures``; for ``"network"`` a single accuracy.

    Raises:
        ValueError: the measures need more memory than ``memory_limit``; ``loader`` is empty and the taps do
            not know the layers yet; a batch cannot be unpacked; measures were asked of Gram matrices.

    Example:
        >>> from tunnel_lightning.measures import MomentMeasures
        >>> from tunnel_lightning.taps import tap
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> batches = [(torch.arange(8.0).view(2, 4), torch.tensor([0, 1]))]
        >>> taps = tap(model, batches[0][0])
        >>> states = accumulate(model, taps, batches, [lambda tap: MomentMeasures(tap.dim, 2)])
        >>> list(states)
        ['input', '0', 'network']
    """
    place = torch.device(device) if device is not None else _device_of(model)
    unpack = unpack or first_two
    if taps.spec.pool == "gram":
        if measures:
            raise ValueError(
                "taps.pool is 'gram', and Gram matrices have no features to measure: choose another pool, such as "
                "2x2, or give observers alone"
            )
        input = False
    reduce = dist.is_available() and dist.is_initialized()
    states: States | None = None
    ranges: dict[str, _Range] = {}
    own = Accuracy("network")
    with quiet(model):
        for batch in loader:
            x, target = apply_to_collection(unpack(batch), Tensor, _move, place)
            taps.arm()
            try:
                with context():
                    output = model(x)
                features = dict(taps.take())
            finally:
                taps.disarm()
            if input:
                features["input"] = taps.features_of_input(x)
            if states is None:
                states = check_memory(taps, measures, input=input, memory_limit=memory_limit)
                ranges = _ranges(states)
            # A layer the network skipped in this forward has no features.
            for name, seen in ranges.items():
                if name in features:
                    seen.update(features[name])
                    for measure in states[name]:
                        if measure is not None:
                            measure.update(features[name], target)
            scores = scores_of(output)
            for observer in observers:
                observer.update(features, target, scores)
            if network and scores is not None:
                own.update(scores, target)
    if states is None:
        if not taps.ready:
            raise ValueError(
                "the loader gave no batch, and only a first one tells the layers: check its length"
            )
        states = check_memory(taps, measures, input=input, memory_limit=memory_limit)
        ranges = _ranges(states)
    for tap in _places(taps, states):
        if tap.name not in ranges:
            continue
        found = states[tap.name]
        if reduce:
            for measure in found:
                if measure is not None:
                    # A process without images takes part in the sum, from the right device.
                    measure.update(*_nothing(tap.dim, place))
                    measure.all_reduce()
        problem = ranges[tap.name].problem(tap.dim, place, reduce)
        if problem:
            at = f" at {where}" if where else ""
            warnings.warn(f"layer {tap.name!r} has {problem}{at}: its values are NaN", stacklevel=2)
            states[tap.name] = [_unusable(measure) for measure in found]
    if reduce:
        for observer in observers:
            observer.all_reduce()
    if network:
        if reduce:
            own.update(*_nothing(1, place))
            own.all_reduce()
        if own.compute()[0].n:
            states["network"] = [own]
    return states


def _places(taps: Taps, states: Mapping[str, Any]) -> list[Tap]:
    """The taps in ``states``; the input's is known only once its features were asked for."""
    return [*([taps.input] if "input" in states else []), *taps.layers]


def _ranges(states: States) -> dict[str, _Range]:
    """For the layers with something to measure."""
    return {name: _Range() for name, found in states.items() if any(m is not None for m in found)}


def _nothing(dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    return torch.zeros(0, dim, device=device), torch.zeros(0, dtype=torch.int64, device=device)


def values_of(states: Mapping[str, Sequence[Measure | None]], taps: Taps) -> list[LayerValue]:
    """The values of what :func:`accumulate` gathered, in the order of the layers.

    Args:
        states: as returned by it, or a part of that.
        taps: the taps it was gathered with.

    Returns:
        One entry per value and layer.
    """
    places = {tap.name: (tap.index, tap.dim) for tap in _places(taps, states)}
    places["network"] = (len(taps.layers) + 1, taps.head.dim if taps.head else 0)
    return [
        LayerValue(name, *places[name], **value._asdict())
        for name, found in states.items()
        for measure in found
        if measure is not None
        for value in measure.compute()
    ]


def measure(
    model: nn.Module, taps: Taps, loader: Iterable[Any], measures: Sequence[Factory], **options: Any
) -> list[LayerValue]:
    """Measure every layer in one quiet pass over ``loader``.

    Args:
        model: see :func:`accumulate`.
        taps: see :func:`accumulate`.
        loader: see :func:`accumulate`.
        measures: see :func:`accumulate`.
        **options: the other arguments of :func:`accumulate`.

    Returns:
        One entry per value and layer, with ``"input"`` first and ``"network"`` last.

    Example:
        >>> from tunnel_lightning.measures import MomentMeasures
        >>> from tunnel_lightning.taps import tap
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2))
        >>> batches = [(torch.arange(12.0).view(3, 4) ** 2, torch.tensor([0, 1, 1]))]
        >>> ranks = [lambda tap: MomentMeasures(tap.dim, 2, which=["rank_cov"])]
        >>> rows = measure(model, tap(model, batches[0][0]), batches, ranks)
        >>> [(row.index, row.layer, row.measure) for row in rows if row.variant != "rtol=torch"]
        [(0, 'input', 'rank_cov'), (1, '0', 'rank_cov'), (2, 'network', 'accuracy')]
    """
    return values_of(accumulate(model, taps, loader, measures, **options), taps)


def first_two(batch: Any) -> tuple[Any, Tensor]:
    """Images and class indices of a batch: the first two items of a sequence, or of a dict's values.

    Raises:
        ValueError: it has fewer than two.

    Example:
        >>> first_two({"image": torch.zeros(2, 3), "label": torch.tensor([0, 1])})[1]
        tensor([0, 1])
    """
    items = list(batch.values()) if isinstance(batch, Mapping) else batch
    if not isinstance(items, Sequence) or len(items) < 2:
        raise ValueError(
            f"cannot tell images and labels of a batch of type {type(batch).__name__}: "
            "pass unpack=, a function batch -> (images, class indices)"
        )
    return items[0], items[1]


def check_memory(
    taps: Taps, measures: Sequence[Factory], *, input: bool = True, memory_limit: int = 8 * GIB
) -> States:
    """The fresh states of a pass, before anything is allocated, or a refusal.

    Args:
        taps: tapped layers, already known.
        measures: as for :func:`accumulate`.
        input: whether the raw pixels are measured too.
        memory_limit: bytes all measures together may take.

    Raises:
        ValueError: they need more than that; the sentence names the options that lower it.

    Example:
        >>> from tunnel_lightning.taps import tap
        >>> taps = tap(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), torch.zeros(1, 4))
        >>> list(check_memory(taps, [lambda tap: Moments(tap.dim, 2)]))
        ['input', '0']
    """
    layers = [*([taps.input] if input else []), *taps.layers]
    states: States = {tap.name: [make(tap) for make in measures] for tap in layers}
    needed = required_bytes(measure for found in states.values() for measure in found)
    if needed > memory_limit:
        widest = max(layers, key=lambda tap: tap.dim)
        raise ValueError(
            f"measuring {len(layers)} layers, the widest {widest.name!r} with {widest.dim} features, needs "
            f"{needed / GIB:.1f} GiB and memory_limit is {memory_limit / GIB:.1f} GiB: lower it with "
            "taps.pool=avg, a smaller taps.max_features, or fewer taps.layers"
        )
    return states


def _device_of(model: nn.Module) -> torch.device:
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def _move(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, non_blocking=True)


def scores_of(output: Any) -> Tensor | None:
    """The ``[B, C]`` scores of a model's output: itself, its ``logits``, or its first item."""
    if isinstance(output, Mapping):
        output = output.get("logits", next(iter(output.values()), None))
    elif not isinstance(output, Tensor):
        output = getattr(output, "logits", output[0] if isinstance(output, Sequence) and output else None)
    return output if isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1 else None


def _unusable(measure: Measure | None) -> Any:
    # Moments know by themselves, and what reads them needs them whole.
    return measure if measure is None or isinstance(measure, Moments) else _Unusable(measure)
