"""What streams: one pass over a set's training images fits the probes, one over its test images scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.limits import cka_bytes
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
from tunnel_lightning.measures.base import Factory, Observer, States
from tunnel_lightning.measures.change import L1Change
from tunnel_lightning.measures.similarity import SimilarityMap
from tunnel_lightning.runs import NETWORK, Row
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
        means: the nearest class mean of each layer, as a head, where collapse is measured.
        rows: rows of what was measured on the way.
    """

    ridge: dict[str, LinearHead] = field(default_factory=dict)
    means: dict[str, LinearHead] = field(default_factory=dict)
    rows: list[Row] = field(default_factory=list)


@dataclass(frozen=True)
class Plan:
    """What is measured of each layer in the two passes over a set, and what that takes.

    Attributes:
        images: the set.
        count: training images the probes are fitted on.
        ridge: fit and score ridge probes.
        collapse: measures of neural collapse, on the training images.
        scored: measures of moments, on the test images.
    """

    images: ImageSet
    count: int
    ridge: bool = True
    collapse: Sequence[str] = ()
    scored: Sequence[str] = ()

    @property
    def fits(self) -> bool:
        """Whether the training images are read at all."""
        return self.ridge or bool(self.collapse)

    def dual(self, dim: int) -> bool:
        """Whether a layer has more columns than there are images: its probe is solved from held features."""
        return self.ridge and dim > self.count

    def needs_moments(self, dim: int) -> bool:
        """Whether the pass over the training images takes moments of a layer."""
        return bool(self.collapse) or (self.ridge and not self.dual(dim))

    def nbytes(self, dim: int) -> int:
        """Bytes that a layer of that width takes while the images pass."""
        moments = Moments.nbytes(dim, self.images.num_classes)
        held = 4 * dim * self.count if self.dual(dim) else 0
        return max(moments * self.needs_moments(dim) + held, moments * bool(self.scored))

    def working(self, dim: int) -> int:
        """Bytes that solving for a layer's probe, or for its eigenvalues, takes beside, one layer at a time.

        The matrix that is decomposed and its factor, in double precision; of held features also a copy.
        """
        if self.dual(dim):
            return 8 * dim * self.count + 16 * self.count**2
        return 16 * dim * dim * (self.needs_moments(dim) or bool(self.scored))

    def measures(self, group: Sequence[str], fitted: Fitted, variant: str = "ridge") -> list[Factory]:
        """What a pass over the test images measures of a group of layers."""
        classes = self.images.num_classes

        def probe(tap: Tap) -> ProbeScores | None:
            head = fitted.ridge.get(tap.name)
            return None if head is None else ProbeScores(head, variant, classes)

        def nearest(tap: Tap) -> ProbeAccuracy | None:
            head = fitted.means.get(tap.name)
            return None if head is None else ProbeAccuracy(head, "fit means", measure="ncm_accuracy")

        def moments(tap: Tap) -> MomentMeasures | None:
            wanted = self.scored and tap.name in group
            return MomentMeasures(tap.dim, classes, self.scored) if wanted else None

        return [probe, nearest, moments]


def own_set(context: Context) -> Part:
    """The in-distribution set: probes, ranks, variances, collapse, and the similarity of the layers."""
    options, images, part = context.options, context.own, Part()
    ranks = (*RANKS, "pc1_fraction") if options.wants("ranks") else ()
    plan = Plan(
        images,
        images.size("train", options.fit_images),
        bool(options.wants("ridge")),
        COLLAPSE if options.wants("collapse") else (),
        (*ranks, *(VARIANCES if options.wants("variance") else ())),
    )
    similarity = LayerSimilarity()
    change = L1Change(context.taps.layers)
    seen = cka_bytes(context) if options.wants("cka") else 0
    for number, group in enumerate(context.groups(plan.nbytes, working=lambda dim: seen + plan.working(dim))):
        fitted = fit(context, plan, group)
        agreement = Agreement(fitted.means)
        observers: list[Observer] = [agreement] if fitted.means and context.subject.matches else []
        if options.wants("cka") and not number:  # they see all layers, and once is enough
            observers += [similarity, change]
        states = context.run(images, "test", options.eval_images, plan.measures(group, fitted), observers)
        if number:  # the network's own accuracy comes with every pass
            states.pop(NETWORK, None)
        part.rows += fitted.rows + measured(context, plan, states)
        if agreement in observers:
            part.rows += rows_of(context, agreement.values(), images)
        for name in group if ranks else ():
            moments = moment_measures(states[name])
            if moments.spectrum is not None:
                part.arrays[f"{images.name}|test|{name}"] = moments.spectrum.cpu().numpy()
    if options.wants("cka"):
        part.rows += rows_of(context, change.values(), images)
        part.arrays |= map_arrays("cka", similarity.compute())
    return part


def other_set(context: Context, images: ImageSet) -> Part:
    """An out-of-distribution set: ridge probes on the frozen layers, fitted on its training images."""
    part, options = Part(), context.options
    plan = Plan(images, images.size("train", options.fit_images))
    for group in context.groups(plan.nbytes, working=plan.working) if options.wants("ridge") else ():
        factories = plan.measures(group, fit(context, plan, group))
        part.rows += measured(context, plan, context.run(images, "test", options.eval_images, factories))
    return part


def fit(context: Context, plan: Plan, group: Sequence[str], taps: Taps | None = None) -> Fitted:
    """Probes and class means of a group of layers from one pass over the training images."""
    taps, images, options, found = taps or context.taps, plan.images, context.options, Fitted()
    if not plan.fits:
        return found
    dims = {tap.name: tap.dim for tap in [taps.input, *taps.layers] if tap.name in group}
    dual = [name for name, dim in dims.items() if plan.dual(dim)]
    sample = FeatureSample(plan.count, options.memory)

    def moments(tap: Tap) -> MomentMeasures | None:
        wanted = tap.name in group and plan.needs_moments(tap.dim)
        return MomentMeasures(tap.dim, images.num_classes, plan.collapse) if wanted else None

    held = [Only(dual, sample)] if dual else []
    states = context.run(images, "train", options.fit_images, [moments], held, taps)
    states.pop(NETWORK, None)
    what = f"{images.name}: probes"
    with context.timed("solving"):
        for done, name in enumerate(group):
            context.progress(what, done, len(group))
            state = moment_measures(states[name])
            if plan.collapse:
                found.means[name] = nearest_mean_head(moments_of(state))
            if name in dual:
                rows, target = sample.features[name], sample.target
                found.ridge[name] = ridge(rows, target, images.num_classes, options.alpha)
            elif plan.ridge:
                found.ridge[name] = ridge_from_moments(moments_of(state), options.alpha)
        context.progress(what, len(group), len(group))
        found.rows = context.rows(states, images, "train", taps)
    sample.close()
    return found


def measured(context: Context, plan: Plan, states: States, taps: Taps | None = None) -> list[Row]:
    """Rows of a pass over the test images; eigenvalues, which take long, are told layer by layer."""
    if not plan.scored:
        return context.rows(states, plan.images, "test", taps)
    rows, what = [], f"{plan.images.name}: eigenvalues"
    with context.timed("eigenvalues"):
        for done, (name, found) in enumerate(states.items()):
            context.progress(what, done, len(states))
            rows += context.rows({name: found}, plan.images, "test", taps)
    context.progress(what, len(states), len(states))
    return rows


def moment_measures(found: Sequence[Any]) -> Any:
    """Those of a layer's measures that come from its moments, also where they were found unusable; else None."""
    return next((each for each in found if hasattr(each, "moments")), None)


def moments_of(measure: Any) -> Moments:
    """The moments inside a measure, also inside one that was found unusable."""
    return measure.moments


def map_arrays(key: str, found: SimilarityMap) -> dict[str, NDArray[Any]]:
    """A map of similarities as arrays."""
    return {
        f"{key}/names": np.array(found.names),
        f"{key}/value": found.value.numpy(),
        f"{key}/se": found.se.numpy(),
    }


def rows_of(
    context: Context, values: Mapping[str, Value], images: ImageSet, split: str = "test"
) -> list[Row]:
    """Rows of one value for each of some layers."""
    rows = []
    for name, value in values.items():
        tap = context.place(name)
        rows.append(context.row(LayerValue(name, tap.index, tap.dim, **value._asdict()), images, split))
    return rows
