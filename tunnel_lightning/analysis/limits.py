"""What is refused before the first pass: too few images for what is asked, unknown layers, too little memory."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING

from tunnel_lightning.analysis.options import FITTED, NEIGHBOURS, SAMPLE_MAPS, Options
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.measures import FirstComponents, LayerSimilarity
from tunnel_lightning.measures.functional.logistic import logistic_bytes
from tunnel_lightning.measures.functional.neighbours import knn_bytes
from tunnel_lightning.measures.functional.pairwise import KINDS, pairwise_bytes
from tunnel_lightning.measures.recipes import RECIPES
from tunnel_lightning.measures.sample import gib
from tunnel_lightning.taps import Taps, TapSpec

if TYPE_CHECKING:
    from tunnel_lightning.analysis.context import Context

FEWEST = {"cka": 4, "blocks": 5, **{name: kind.images for name, kind in KINDS.items()}}
"""Test images of a batch, or of a sample, below which a similarity is not defined."""
FEWEST_FITTED = 3
"""Training images of which a fifth can be held out."""
ROWS = 1024
"""Held images that are scored at once."""
LABELS = "labels"
"""What the classes are called among the pictures."""


def check_images(images: ImageSet, options: Options, own: bool) -> list[str]:
    """Refuse a set with too few images for what is measured on it.

    Args:
        images: the set.
        options: what is measured.
        own: whether it is the in-distribution set, on which more is measured.

    Returns:
        Notes for the reader, as of :meth:`ImageSet.check`.

    Raises:
        ValueError: too few images; the sentence names what sets their number.
    """
    notes = images.check(options.fit_images)
    held = options.held("train")
    kinds = [*options.wants(*FITTED), *(options.wants("knn") if own else ())]
    if kinds and held < images.size("train", options.fit_images):
        notes += images.check(held, "--sample")
    count = images.size("train", held) if options.wants(*FITTED) else FEWEST_FITTED
    if count < FEWEST_FITTED:
        raise ValueError(
            f"{images.name}: probes are trained on at least {FEWEST_FITTED} images and it gives {count}: give more "
            "images, or raise --sample and --fit_images"
        )
    for measure, fewest in FEWEST.items() if own else ():
        if options.wants(measure) and (count := compared(images, options, measure)) < fewest:
            raise ValueError(
                f"{measure} needs at least {fewest} test images at once and takes {count} of {images.name}: give "
                f"more images, or leave {measure} out of --measures"
            )
    return list(dict.fromkeys(notes))


def compared(images: ImageSet, options: Options, measure: str) -> int:
    """Test images that a similarity compares at once: those of a batch, or of the sample."""
    limit = {"cka": options.eval_images, "blocks": options.every_output_images}.get(
        measure, options.map_images
    )
    count = images.size("test", limit)
    return count if measure in SAMPLE_MAPS else min(images.batch_size, count)


def check_layers(context: Context) -> None:
    """Refuse layers that are not there, and what does not fit into the memory limit.

    Raises:
        ValueError: one of these; the sentence says what to do.
    """
    check_pictures(context)
    for images in (context.own, *context.others):
        held_groups(context, images)
    for kind in context.options.wants(*SAMPLE_MAPS):
        map_room(context, kind)
    if context.options.wants("tsne"):
        picture_room(context)
    if context.options.wants("cka"):
        check_cka(context)
    if context.options.wants("blocks"):
        check_blocks(context)


def check_pictures(context: Context) -> None:
    """Refuse a picture of a layer that is not there.

    Raises:
        ValueError: it names near ones.
    """
    known = [tap.name for tap in (context.taps.input, *context.taps.layers)]
    for name in context.options.pictures:
        if name not in known:
            near = get_close_matches(name, known, n=5, cutoff=0.5)
            hint = f"near: {', '.join(near)}" if near else f"there are {', '.join(known[:5])}"
            raise ValueError(f"pictures: {name!r} is none of the layers that are measured; {hint}")
        if name == LABELS:
            raise ValueError(
                f"pictures: a layer called {LABELS!r} can't be drawn, the classes are kept under this name: choose "
                "other layers"
            )


def pictured(context: Context) -> list[str]:
    """The layers of which there is a picture: those asked for, else the first, the one in the middle, the last."""
    names = [tap.name for tap in context.taps.layers]
    middle = [names[0], names[len(names) // 2], names[-1]]
    chosen = context.options.pictures or [name for name in middle if name != LABELS]
    return list(dict.fromkeys(chosen))


def held_groups(context: Context, images: ImageSet) -> list[list[str]]:
    """The layers, in groups whose held features fit into the memory limit with what is computed from them.

    None where nothing is measured on held features of single layers.

    Raises:
        ValueError: a single layer does not fit; the sentence names the options that lower it.
    """
    options, classes = context.options, images.num_classes
    kinds = options.wants(*FITTED)
    neighbours = images is context.own and bool(options.wants("knn"))
    if not kinds and not neighbours:
        return []
    train, test = (images.size(split, options.held(split)) for split in ("train", "test"))

    def held(dim: int) -> int:
        # All layers' heads, of one kind of probe and of the one before it; recipes train them all at once.
        trained = max([RECIPES[kind].nbytes(dim, classes) for kind in kinds if kind in RECIPES], default=0)
        return 4 * dim * (train + test) + 16 * classes * (dim + 1) * bool(kinds) + trained

    def working(dim: int) -> int:
        steps = [8 * min(ROWS, max(train, test)) * (dim + 8 * classes)] if kinds else []
        if "logistic" in kinds:
            steps.append(logistic_bytes(train, dim, classes))
        if neighbours:
            steps.append(knn_bytes(dim, test, NEIGHBOURS))
        return 8 * (train + test) + max(steps)

    cure = "raise --memory_gb, or lower it with a smaller --sample, --taps.pool=avg or a smaller --taps.max_features"
    return context.groups(held, working=working, cure=cure)


def map_room(context: Context, kind: str) -> int:
    """Bytes of the memory limit that a similarity of whole matrices leaves to the features it is made of.

    Raises:
        ValueError: it needs more than there is.
    """
    dims = [tap.dim for tap in (context.taps.input, *context.taps.layers)]
    count = compared(context.own, context.options, kind)
    return room(
        context,
        f"{kind} of {len(dims)} layers on {count:,} images",
        pairwise_bytes(kind, count, dims),
        f"take a smaller --sample or fewer --taps.layers, or leave {kind} out of --measures",
    )


def picture_room(context: Context) -> int:
    """Bytes of the memory limit that drawing leaves to the features that are drawn.

    The principal components of one layer at a time are found in double precision, with some copies of it.

    Raises:
        ValueError: it needs more than there is.
    """
    options, names = context.options, pictured(context)
    count = context.own.size("test", options.picture_images)
    widest = max([context.place(name).dim for name in names], default=0)
    return room(
        context,
        f"a picture of a layer with {widest} features on {count:,} images",
        40 * count * widest,
        "take a smaller --sample, or leave tsne out of --measures",
    )


def check_cka(context: Context) -> None:
    """Refuse a similarity of all layers that does not fit into the memory limit."""
    layers, batch = len(context.taps.layers) + 1, compared(context.own, context.options, "cka")
    what = f"cka of {layers} layers in batches of {batch} images"
    room(context, what, cka_bytes(context), "take fewer --taps.layers, or leave cka out of --measures")


def cka_bytes(context: Context) -> int:
    """Bytes of the similarity of all layers and the raw pixels."""
    layers = len(context.taps.layers) + 1
    return LayerSimilarity.nbytes(layers, compared(context.own, context.options, "cka"))


def every_output(context: Context) -> Taps:
    """Taps on every output of the network, unpooled; the classifier's too, which "all" leaves out."""
    head = context.taps.head
    return context.tap(TapSpec(["all", *([head.name] if head else [])], "gram"))


def check_blocks(context: Context) -> None:
    """Refuse a map over every output of the network that does not fit into the memory limit."""
    batch = compared(context.own, context.options, "blocks")
    taps = every_output(context)
    taps.remove()
    layers = len(taps.layers)
    # The Gram matrices as the hooks make them, beside what is computed from them.
    needed = 4 * layers * batch**2 + FirstComponents.nbytes(layers, batch)
    what = f"blocks over {layers} outputs in batches of {batch} images"
    room(context, what, needed, "or leave blocks out of --measures")


def room(context: Context, what: str, needed: int, cure: str) -> int:
    """What is left of the memory limit.

    Raises:
        ValueError: more is needed than there is.
    """
    limit = context.options.memory
    if needed > limit:
        raise ValueError(
            f"{what} needs {gib(needed)} and the limit is {gib(limit)}: raise --memory_gb, {cure}"
        )
    return limit - needed
