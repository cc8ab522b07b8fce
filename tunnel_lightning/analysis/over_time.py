"""How the profile came about: the same network at the other checkpoints of its run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.store import Part
from tunnel_lightning.analysis.streamed import Plan, fit, measured
from tunnel_lightning.analysis.weights import BEST
from tunnel_lightning.measures import RANKS, LayerValue
from tunnel_lightning.runs import NETWORK, Row


def taken(checkpoints: Sequence[Path], analysed: Path) -> list[Path]:
    """The checkpoints between which the development is told: those kept every so many epochs, and the last one.

    The best one falls somewhere between them, and how far weights moved over fewer epochs is no sign of rest: it is
    left out, unless it is the one that is analysed or there are no two others.

    Args:
        checkpoints: of a run, in the order of their steps.
        analysed: the one the analysis is of.

    Example:
        >>> found = [Path("epoch=5.ckpt"), Path("best.ckpt"), Path("last.ckpt")]
        >>> [path.name for path in taken(found, found[-1])], len(taken(found[1:], found[-1]))
        (['epoch=5.ckpt', 'last.ckpt'], 2)
    """
    kept = [path for path in checkpoints if path.name != BEST or path == analysed]
    return kept if len(kept) > 1 else list(checkpoints)


def spacing(steps: Sequence[int]) -> str | None:
    """What a reader must know of checkpoints that are not evenly spaced.

    Example:
        >>> spacing([71, 142, 213]), spacing([71, 142, 150])
        (None, 'the checkpoints are 8 to 71 steps apart: that weights move less over fewer is no sign of rest')
    """
    gaps = {after - before for before, after in pairwise(sorted(steps))}
    if len(gaps) < 2:
        return None
    apart = f"{min(gaps)} to {max(gaps)} steps apart"
    return f"the checkpoints are {apart}: that weights move less over fewer is no sign of rest"


def cost(context: Context, checkpoints: int) -> str:
    """What the development takes, in words, to be said before it starts."""
    ridge = context.options.wants("ridge")
    sets = " and ".join(images.name for images in (context.own, *(context.others if ridge else ())))
    passes = "two passes over" if ridge else "a pass over the test images of"
    return f"over time: {checkpoints} more checkpoint{'s' * (checkpoints != 1)}, for each {passes} {sets}"


def at_checkpoint(context: Context) -> Part:
    """Ridge probes and ranks of the network as it is now, on the in-distribution set."""
    part, images, options = Part(), context.own, context.options
    ranks = tuple(name for name in RANKS if name != "rankme")  # which would take a second decomposition
    count = images.size("train", options.fit_images)
    plan = Plan(images, count, bool(options.wants("ridge")), scored=ranks if options.wants("ranks") else ())
    for number, group in enumerate(context.groups(plan.nbytes, working=plan.working)):
        factories = plan.measures(group, fit(context, plan, group))
        states = context.run(images, "test", options.eval_images, factories)
        if number:
            states.pop(NETWORK, None)
        part.rows += measured(context, plan, states)
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
