"""What streams: one pass over a set's training images fits the probes, one over its test images scores them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.analysis.context import Context, of
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part
from tunnel_lightning.measures import (
    COLLAPSE,
    RANKS,
    VARIANCES,
    Agreement,
    FeatureSample,
    LayerSimilarity,
    LayerValue,
    LinearHead,
    MomentMeasures,
    Moments,
    ProbeAccuracy,
    ProbeScores,
    Value,
    nearest_mean_head,
    ridge,
    ridge_from_moments,
)
from tunnel_lightning.measures.base import Factory, Observer
from tunnel_lightning.measures.change import L1Change
from tunnel_lightning.runs import Row
from tunnel_lightning.taps import Tap, Taps


@dataclass
class Only:
    """Shows an observer some of the layers."""

    names: Sequence[str]
    observer: Observer

    def update(self, features: Mapping[str, Tensor], target: Tensor, output: Tensor | None) -> None:
        """Add a batch, of these layers."""
        self.observer.update({k: v for k, v in features.items() if k in self.names}, target, output)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Sum over processes."""
        self.observer.all_reduce(group)


@dataclass
class Fitted:
    """What a pass over training images gives.

    Attributes:
        ridge: the ridge probe of each layer.
        means: the nearest class mean of each layer, as a head, where its moments were taken.
        rows: rows of what was measured on the way.
    """

    ridge: dict[str, LinearHead] = field(default_factory=dict)
    means: dict[str, LinearHead] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


def own_set(context: Context) -> Part:
    """The in-distribution set: probes, ranks, variances, collapse, and the similarity of the layers."""
    options, images, part = context.options, context.own, Part()
    similarity = LayerSimilarity() if options.wants("cka") else None
    change = L1Change(context.taps.layers) if options.wants("cka") else None
    ranks = [
        *(RANKS if options.wants("ranks") else ()),
        *(["pc1_fraction"] if options.wants("ranks") else []),
    ]
    which = (*ranks, *(VARIANCES if options.wants("variance") else ()))
    for number, group in enumerate(context.groups(moment_bytes(images.num_classes))):
        fitted = fit(context, images, group, COLLAPSE if options.wants("collapse") else ())
        part.rows += fitted.rows
        factories: list[Factory] = score_factories(fitted, images, options.wants("collapse") != [])
        if which:
            factories.append(of(group, lambda tap: MomentMeasures(tap.dim, images.num_classes, which)))
        agreement = Agreement(fitted.means)
        observers: list[Observer] = [agreement] if fitted.means and context.subject.matches else []
        if not number:  # once is enough for what sees all layers
            observers += [each for each in (similarity, change) if each is not None]
        states = context.run(images, "test", options.eval_images, factories, observers)
        with context.timed("eigenvalues"):
            for name in group:
                spectrum = getattr(states[name][-1], "spectrum", None) if ranks else None
                if spectrum is not None:
                    part.arrays[f"{images.name}|test|{name}"] = spectrum.cpu().numpy()
        # The network's own accuracy comes with every group: once is enough.
        if number:
            states.pop("network", None)
        part.rows += context.rows(states, images, "test")
        if agreement in observers:
            part.rows += rows_of(context, agreement.values(), images)
    if change is not None and similarity is not None:
        part.rows += rows_of(context, change.values(), images)
        found = similarity.compute()
        part.arrays["cka/names"] = np.array(found.names)
        part.arrays["cka/value"], part.arrays["cka/se"] = found.value.numpy(), found.se.numpy()
    return part


def other_set(context: Context, images: ImageSet) -> Part:
    """An out-of-distribution set: ridge probes on the frozen layers, fitted on its training images."""
    part = Part()
    if not context.options.wants("ridge"):
        return part
    for group in context.groups(moment_bytes(images.num_classes)):
        fitted = fit(context, images, group, ())
        states = context.run(
            images, "test", context.options.eval_images, score_factories(fitted, images, means=False)
        )
        part.rows += context.rows(states, images, "test")
    return part


def fit(
    context: Context,
    images: ImageSet,
    group: Sequence[str],
    collapse: tuple[str, ...],
    taps: Taps | None = None,
) -> Fitted:
    """Probes of a group of layers from one pass over the training images.

    Layers with more columns than there are images are solved by the dual, from their features.
    """
    taps, options = taps or context.taps, context.options
    count = images.size("train", options.fit_images)
    dims = {tap.name: tap.dim for tap in [taps.input, *taps.layers] if tap.name in group}
    dual = [name for name, dim in dims.items() if dim > count]
    primal = [name for name in dims if name not in dual]
    if not options.wants("ridge", "additions") and not collapse:
        return Fitted()
    sample = FeatureSample(count, options.memory)
    states = context.run(
        images,
        "train",
        options.fit_images,
        [of(primal, lambda tap: MomentMeasures(tap.dim, images.num_classes, collapse))],
        [Only(dual, sample)] if dual else [],
        taps,
    )
    states.pop("network", None)
    found = Fitted()
    with context.timed("solving"):
        for name in group:
            if name in dual:
                found.ridge[name] = ridge(
                    sample.features[name], sample.target, images.num_classes, options.alpha
                )
                continue
            moments = moments_of(states[name][0])
            found.ridge[name] = ridge_from_moments(moments, options.alpha)
            if collapse:
                found.means[name] = nearest_mean_head(moments)
        if collapse:
            found.rows = context.rows(states, images, "train", taps)
    sample.close()
    return found


def score_factories(fitted: Fitted, images: ImageSet, means: bool, variant: str = "ridge") -> list[Factory]:
    """Measures that score what was fitted."""

    def probe(tap: Tap) -> ProbeScores | None:
        head = fitted.ridge.get(tap.name)
        return None if head is None else ProbeScores(head, variant, images.num_classes)

    def nearest(tap: Tap) -> ProbeAccuracy | None:
        head = fitted.means.get(tap.name)
        return None if head is None else ProbeAccuracy(head, "fit means", measure="ncm_accuracy")

    return [probe, nearest] if means else [probe]


def moments_of(measure: object) -> Moments:
    """The moments inside a measure, also inside one that was found unusable."""
    return measure.moments  # type: ignore[attr-defined]


def moment_bytes(num_classes: int) -> Callable[[int], int]:
    """The function from a layer's width to the bytes its moments take."""
    return lambda dim: Moments.nbytes(dim, num_classes)


def rows_of(
    context: Context, values: Mapping[str, Value], images: ImageSet, split: str = "test"
) -> list[Row]:
    """Rows of one value for each of some layers."""
    rows = []
    for name, value in values.items():
        tap = context.place(name)
        rows.append(context.row(LayerValue(name, tap.index, tap.dim, **value._asdict()), images, split))
    return rows
