"""What needs the features themselves: converged and trained probes, neighbours, sample similarities, pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.limits import LABELS, ROWS, held_groups, map_room, picture_room, pictured
from tunnel_lightning.analysis.options import FITTED, NEIGHBOURS, SAMPLE_MAPS
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part
from tunnel_lightning.analysis.streamed import Only, rows_of
from tunnel_lightning.measures import (
    FeatureSample,
    LinearHead,
    ProbeScores,
    Value,
)
from tunnel_lightning.measures.functional.logistic import logistic_all
from tunnel_lightning.measures.functional.neighbours import knn_accuracy
from tunnel_lightning.measures.functional.pairwise import pairwise
from tunnel_lightning.measures.recipes import RECIPES, train_heads
from tunnel_lightning.runs import Row

FEWEST = 10
"""Images of a picture, at least."""


def held_set(context: Context, images: ImageSet) -> Part:
    """Everything that is measured on held features of one set, layers in groups under the memory limit."""
    options, part = context.options, Part()
    own = images is context.own
    fits = options.wants(*FITTED)
    neighbours = own and options.wants("knn")
    for group in held_groups(context, images):
        train, test = hold(context, images, group, "train"), hold(context, images, group, "test")
        for fitted in fits:
            with context.timed(fitted):
                heads, penalties = fit_heads(context, fitted, train, images)
            part.extra.setdefault("penalty", {}).update(penalties)
            for split, sample in (("train", train), ("test", test)):
                for name, head in heads.items():
                    part.rows += score(context, head, fitted, name, sample, images, split)
        if neighbours:
            with context.timed("neighbours"):
                part.rows += rows_of(context, nearest(context, train, test), images)
        train.close()
        test.close()
    if own and (maps := options.wants(*SAMPLE_MAPS)):
        names = [tap.name for tap in [context.taps.input, *context.taps.layers]]
        room = min(map_room(context, kind) for kind in maps)
        sample = hold(context, images, names, "test", options.map_images, room)
        for kind in maps:
            with context.timed(kind):
                part.arrays |= all_pairs(context, kind, names, sample)
        sample.close()
    if own and options.wants("tsne") and (chosen := pictured(context)):
        sample = hold(context, images, chosen, "test", options.picture_images, picture_room(context))
        with context.timed("tsne"):
            part.arrays |= pictures(context, chosen, sample)
        sample.close()
    return part


def hold(
    context: Context,
    images: ImageSet,
    group: Sequence[str],
    split: str,
    most: int | None = None,
    room: int | None = None,
) -> FeatureSample:
    """The features of a group of layers, from one pass over a sample, spread evenly over the split.

    Args:
        context: the analysis.
        images: the set.
        group: names of the layers.
        split: of the set.
        most: images; by default as many as are held of this split.
        room: bytes they may take in memory, by default the memory limit; beyond it they lie on a disk.
    """
    options = context.options
    limit = options.held(split) if most is None else most
    sample = FeatureSample(images.size(split, limit), options.memory if room is None else room)
    context.run(images, split, limit, observers=[Only(group, sample)], what=f"{images.name} {split}, held")
    return sample


def fit_heads(
    context: Context, kind: str, sample: FeatureSample, images: ImageSet
) -> tuple[dict[str, LinearHead], dict[str, float]]:
    """The heads of one kind of probe, and the penalties that were chosen for them."""
    features, target, classes = sample.features, sample.target, images.num_classes
    count = len(features)
    what = f"{images.name}: {kind} probes"
    if kind == "logistic":
        done: list[str] = []

        def tell(name: str) -> None:
            done.append(name)
            context.progress(what, len(done), count)

        context.progress(what, 0, count)
        paths = logistic_all(features, target, classes, progress=tell, seed=context.options.seed)
        return (
            {name: path.fit.head for name, path in paths.items()},
            {f"{images.name}|{name}": path.penalty for name, path in paths.items()},
        )
    heads = train_heads(
        features,
        target,
        classes,
        RECIPES[kind],
        context.options.seed,
        lambda done, total: context.progress(what, done, total),
    )
    return heads, {}


def score(
    context: Context,
    head: LinearHead,
    variant: str,
    name: str,
    sample: FeatureSample,
    images: ImageSet,
    split: str,
) -> list[Row]:
    """Rows of a head's accuracy on held features."""
    scores = ProbeScores(head, variant, images.num_classes)
    for x, y in zip(sample.features[name].split(ROWS), sample.target.split(ROWS), strict=True):
        scores.update(x, y)
    return [row for value in scores.compute() for row in rows_of(context, {name: value}, images, split)]


def nearest(context: Context, train: FeatureSample, test: FeatureSample) -> dict[str, Value]:
    """Accuracy of the nearest neighbours in every layer of two samples."""
    found, k = {}, min(NEIGHBOURS, len(train.target))
    for done, name in enumerate(train.features):
        context.progress("nearest neighbours", done, len(train.features))
        accuracy = knn_accuracy(train.features[name], train.target, test.features[name], test.target, k)
        found[name] = Value("knn_accuracy", f"k={k}", *accuracy, len(test.target))
    context.progress("nearest neighbours", len(found), len(found))
    return found


def all_pairs(
    context: Context, kind: str, names: Sequence[str], sample: FeatureSample
) -> dict[str, np.ndarray]:
    """One similarity of all pairs of layers on the sample, as a map."""
    what = f"{kind} of all pairs"

    def layers() -> Iterator[Tensor]:
        for done, name in enumerate(names):
            context.progress(f"{kind}: layers", done, len(names))
            yield sample.features[name]
        context.progress(f"{kind}: layers", len(names), len(names))

    value = pairwise(kind, layers(), lambda done, total: context.progress(what, done, total)).numpy()
    return {
        f"{kind}/names": np.array(names),
        f"{kind}/value": value,
        f"{kind}/se": np.full_like(value, math.nan),
    }


def pictures(context: Context, names: Sequence[str], sample: FeatureSample) -> dict[str, np.ndarray]:
    """Places of images in two dimensions by t-SNE (van der Maaten & Hinton, 2008), perplexity 30 as the tunnel paper.

    The features' first 50 principal components stand for them, as is usual.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    found: dict[str, np.ndarray] = {}
    seed = context.options.seed
    if len(sample.target) < FEWEST:
        context.note(
            f"no pictures of layers: t-SNE needs {FEWEST} test images, and takes {len(sample.target)}"
        )
        return found
    for done, name in enumerate(names):
        context.progress("pictures", done, len(names))
        rows = sample.features[name].double().numpy()
        # t-SNE ends the process on a layer without variance; NaN is not above anything.
        if rows.shape[1] < 2 or not 0 < np.ptp(rows, 0).max() < math.inf:
            continue
        few = PCA(min(50, *rows.shape), random_state=seed).fit_transform(rows)
        perplexity = min(30.0, (len(rows) - 1) / 3)
        places = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(few)
        found[f"tsne/{name}"] = places.astype(np.float32)
    context.progress("pictures", len(names), len(names))
    if found:
        found[f"tsne/{LABELS}"] = sample.target.numpy().copy()
    return found
