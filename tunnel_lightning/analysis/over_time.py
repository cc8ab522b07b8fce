"""How the profile came about: the same network at the other checkpoints of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.store import Part
from tunnel_lightning.analysis.streamed import Plan, fit, measured
from tunnel_lightning.measures import RANKS, LayerValue
from tunnel_lightning.runs import NETWORK, Row


def at_checkpoint(context: Context) -> Part:
    """Ridge probes and ranks of the network as it is now, on the in-distribution set."""
    part, images, options = Part(), context.own, context.options
    ranks = tuple(name for name in RANKS if name != "rankme")  # which would take a second decomposition
    context.prefix = f"step {context.subject.step}: "
    try:
        count = images.size("train", options.fit_images)
        plan = Plan(
            images, count, bool(options.wants("ridge")), scored=ranks if options.wants("ranks") else ()
        )
        for number, group in enumerate(context.groups(plan.nbytes, working=plan.working)):
            factories = plan.measures(group, fit(context, plan, group))
            states = context.run(images, "test", options.eval_images, factories)
            if number:
                states.pop(NETWORK, None)
            part.rows += measured(context, plan, states)
    finally:
        context.prefix = ""
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
