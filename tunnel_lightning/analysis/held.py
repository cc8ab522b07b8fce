"""What needs the features themselves: converged and trained probes, neighbours, sample similarities, pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.options import SAMPLE_MAPS
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
from tunnel_lightning.measures.functional.similarity import pairwise
from tunnel_lightning.measures.recipes import RECIPES, train_heads
from tunnel_lightning.runs import Row

FITTED = ("logistic", *RECIPES)
"""Probes that are trained; the others are solved in closed form."""
PICTURED = 1_000
"""Images of a picture: t-SNE takes time with their square, and more would hide each other."""
FEWEST = 10
MAPPED = 2_000
"""Images of a similarity of two whole matrices: memory takes their square."""
NEIGHBOURS = 20


def held_set(context: Context, images: ImageSet) -> Part:
    """Everything that is measured on held features of one set, layers in groups under the memory limit."""
    options, part = context.options, Part()
    own = images is context.own
    fits = options.wants(*FITTED)
    neighbours = own and options.wants("knn")
    both = sum(images.size(split, limit_of(context, split)) for split in ("train", "test"))
    for group in context.groups(lambda dim: 4 * dim * both) if fits or neighbours else ():
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
        sample = hold(context, images, names, "test", MAPPED)
        for kind in maps:
            with context.timed(kind):
                part.arrays |= all_pairs(context, kind, {name: sample.features[name] for name in names})
        sample.close()
    if own and options.wants("tsne"):
        sample = hold(context, images, pictured(context), "test", PICTURED)
        with context.timed("tsne"):
            part.arrays |= pictures(context, sample)
        sample.close()
    return part


def limit_of(context: Context, split: str) -> int:
    """How many images of a split are held."""
    options = context.options
    asked = options.fit_images if split == "train" else options.eval_images
    return min(options.sample, asked or options.sample)


def hold(
    context: Context, images: ImageSet, group: Sequence[str], split: str, most: int | None = None
) -> FeatureSample:
    """The features of a group of layers, from one pass over a sample, spread evenly over the split."""
    limit = min(limit_of(context, split), most or context.options.sample)
    sample = FeatureSample(images.size(split, limit), context.options.memory)
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
    scores.update(sample.features[name], sample.target)
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


def all_pairs(context: Context, kind: str, features: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """One similarity of all pairs of layers on the sample, as a map."""
    names, what = list(features), f"{kind} of all pairs"
    context.progress(what, 0, len(names))
    value = pairwise(
        kind, list(features.values()), lambda done, total: context.progress(what, done, total)
    ).numpy()
    return {
        f"{kind}/names": np.array(names),
        f"{kind}/value": value,
        f"{kind}/se": np.full_like(value, math.nan),
    }


def pictured(context: Context) -> list[str]:
    """The layers of which there is a picture: the first, the last, and the one in the middle."""
    names = [tap.name for tap in context.taps.layers]
    return list(dict.fromkeys([names[0], names[len(names) // 2], names[-1]]))


def pictures(context: Context, sample: FeatureSample) -> dict[str, np.ndarray]:
    """Places of images in two dimensions by t-SNE (van der Maaten & Hinton, 2008), perplexity 30 as the tunnel paper.

    The features' first 50 principal components stand for them, as is usual.
    """
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    found: dict[str, np.ndarray] = {}
    seed, layers = context.options.seed, sample.features
    for done, (name, x) in enumerate(layers.items()):
        context.progress("pictures", done, len(layers))
        rows = x.double().numpy()
        # t-SNE ends the process on a layer without variance; NaN is not above anything.
        if len(rows) < FEWEST or rows.shape[1] < 2 or not 0 < np.ptp(rows, 0).max() < math.inf:
            continue
        few = PCA(min(50, *rows.shape), random_state=seed).fit_transform(rows)
        perplexity = min(30.0, (len(rows) - 1) / 3)
        places = TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(few)
        found[f"tsne/{name}"] = places.astype(np.float32)
    context.progress("pictures", len(layers), len(layers))
    if found:
        found["tsne/labels"] = sample.target.numpy().copy()
    return found
