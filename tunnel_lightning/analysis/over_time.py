"""How the profile came about: the same network at the other checkpoints of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.store import Part
from tunnel_lightning.analysis.streamed import Plan, fit, measured
from tunnel_lightning.measures import RANKS, LayerValue
from tunnel_lightning.runs import NETWORK, Row

IMAGES = 10_000
"""Most images of a split that are read at each checkpoint but the one analysed."""


def limited(options: Options) -> Options:
    """The options with at most ``IMAGES`` images of each split: it is the development that is looked for."""
    return replace(
        options,
        fit_images=min(options.fit_images or IMAGES, IMAGES),
        eval_images=min(options.eval_images or IMAGES, IMAGES),
    )


def at_checkpoint(context: Context) -> Part:
    """Ridge probes and ranks of the network as it is now, on the in-distribution set."""
    part, images, own = Part(), context.own, context.options
    ranks = tuple(name for name in RANKS if name != "rankme")  # which would take a second decomposition
    context.options, context.prefix = limited(own), f"step {context.subject.step}: "
    try:
        count = images.size("train", context.options.fit_images)
        plan = Plan(images, count, bool(own.wants("ridge")), scored=ranks if own.wants("ranks") else ())
        for number, group in enumerate(context.groups(plan.nbytes)):
            factories = plan.measures(group, fit(context, plan, group))
            states = context.run(images, "test", context.options.eval_images, factories)
            if number:
                states.pop(NETWORK, None)
            part.rows += measured(context, plan, states)
    finally:
        context.options, context.prefix = own, ""
    return part


def weights_of(context: Context) -> dict[str, Tensor]:
    """A copy of the network's weights."""
    return {name: p.detach().cpu().clone() for name, p in context.subject.network.named_parameters()}


def weight_changes(context: Context, before: Mapping[str, Tensor], after: Mapping[str, Tensor]) -> list[Row]:
    """How far each layer's weights moved between two checkpoints: ``|w' - w| / sqrt(n)``, as while training."""
    rows = []
    for tap in context.taps.layers:
        mine = [name for name in after if name.startswith(f"{tap.module}.")]
        if mine:
            moved = torch.cat([(after[name].double() - before[name].double()).flatten() for name in mine])
            change = moved.norm().item() / math.sqrt(len(moved))
            value = LayerValue(
                tap.name, tap.index, tap.dim, "weight_change", "l2_per_sqrt_n", change, math.nan, len(moved)
            )
            rows.append(context.row(value, context.own, "train"))
    return rows
