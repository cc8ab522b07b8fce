"""Passes with other taps: probes round each residual addition, and the map over every output of the network."""

from __future__ import annotations

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.limits import every_output
from tunnel_lightning.analysis.store import Part
from tunnel_lightning.analysis.streamed import Plan, fit, map_arrays, measured
from tunnel_lightning.measures import FirstComponents, LayerValue
from tunnel_lightning.measures.functional.blocks import contiguous_blocks
from tunnel_lightning.taps import NoAdditions, TapSpec
from tunnel_lightning.taps.additions import is_compiled

BLOCK_THRESHOLD = 0.9
"""Smallest CKA between any two layers of a block; Nguyen et al. (2021) give no number."""


def additions(context: Context) -> Part:
    """Ridge probes before and after each residual addition (Nguyen et al., 2021, section on linear probes).

    In a block structure the branch reads worse than what it is added to, and the sum hardly better.
    """
    part, images, options, spec = Part(), context.own, context.options, context.options.taps
    try:
        taps = context.tap(TapSpec("addition", spec.pool, spec.max_features, spec.seed))
    except NoAdditions:
        if is_compiled(context.model):
            why = "is compiled, which hides its residual additions"
        else:
            why = "shows no residual additions (sums of what its modules give)"
        context.note(f"the network {why}, so there are no probes round them")
        return part
    try:
        plan = Plan(images, images.size("train", options.fit_images))
        for group in context.groups(plan.nbytes, taps, plan.working):
            factories = plan.measures(group, fit(context, plan, group, taps), variant="ridge@addition")
            what = f"{images.name} test, round additions"
            states = context.run(images, "test", options.eval_images, factories, taps=taps, what=what)
            part.rows += measured(context, plan, states, taps)
    finally:
        taps.remove()
    return part


def blocks(context: Context) -> Part:
    """Similarity of every output of the network, unpooled, its block structure and first components."""
    part, images = Part(), context.own
    taps = every_output(context)
    components = FirstComponents(grams=True)
    limit = context.options.every_output_images
    try:
        names = {tap.name: tap for tap in taps.layers}
        grams = sum(2 * images.batch_size * tap.dim for tap in taps.layers)
        forward = max(taps.costs(context.example).get("", 0), 1)
        context.progress(
            f"every output: {len(names)} layers, {images.size('test', limit):,} images, some "
            f"{1 + grams / forward:.1f} times a forward pass over them",
            0,
            0,
        )
        context.run(images, "test", limit, observers=[components], taps=taps, what="every output")
    finally:
        taps.remove()
    found = components.compute()
    for key, each in (
        ("cka_all", found.cka),
        ("cka_all_no_pc1", found.without_first),
        ("cka_all_no_dominant", found.without_dominant),
        ("pc1_cosine", found.cosine),
    ):
        part.arrays |= map_arrays(key, each)
    shares = zip(found.names, found.fraction.tolist(), found.fraction_se.tolist(), strict=True)
    n = images.size("test", limit)
    part.rows = [
        context.row(
            LayerValue(name, names[name].index, names[name].dim, "pc1_fraction", "gram256", value, se, n),
            images,
            "test",
        )
        for name, value, se in shares
    ]
    part.extra["blocks"] = {
        "map": "cka_all",
        "threshold": BLOCK_THRESHOLD,
        "found": [
            {
                "start": found.cka.names[block.start],
                "end": found.cka.names[block.end],
                "start_index": names[found.cka.names[block.start]].index,
                "end_index": names[found.cka.names[block.end]].index,
                "size": block.size,
                "min_cka": block.min_cka,
            }
            for block in contiguous_blocks(found.cka.value, BLOCK_THRESHOLD)
        ],
    }
    return part
