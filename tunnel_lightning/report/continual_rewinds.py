"""What of the first task comes back with a block of layers as they were."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.charts import Map
from tunnel_lightning.report.continual_maps import drawn
from tunnel_lightning.report.words import percent
from tunnel_lightning.runs.continual import ContinualRun, Rewinds

LEAST_LOST = 0.02
"""A task that lost less has nothing that layers could bring back."""

ENOUGH = 0.9
"""The share of what a task lost that has to come back for layers to count as those that forgot."""


def doubt(then: float, now: float, n: int) -> float:
    """Standard error of the difference of two accuracies, as if they were of different images."""
    return float(np.sqrt(max(then * (1 - then) + now * (1 - now), 0.0) / n)) if n else 0.0


def lost(then: float, now: float, n: int) -> float:
    """What a task lost, where that is neither next to nothing nor perhaps chance nor unknown; else 0."""
    gone = float(then - now)
    return gone if gone >= max(LEAST_LOST, 2 * doubt(then, now, n)) else 0.0


def rewinds(run: ContinualRun) -> list[Map]:
    """What of the first task's loss comes back with each block of layers; its accuracy where little was lost."""
    found = run.rewinds()
    if found is None or found.value.size < 2:
        return []
    value, task = found.value, found.dataset
    swapped = {s.variant: s for s in run.sweeps() if s.dataset == task}
    then, now = (swapped[v].value[0] if v in swapped else np.nan for v in ("E1T1", "E2T2"))
    share = bool(lost(then, now, found.n))
    note = "Blocks of the last network put back to what they were after the task (Ramasesh et al., 2021)."
    if share:
        value = (value - now) / (then - now)
        note += _smallest(found, value)
    names = {index: f"{index}  {run.layers.get(index, '')}".strip() for index in [*found.first, *found.last]}
    made = Map(
        "rewinds",
        f"What of {task} comes back" if share else f"Accuracy on {task}, layers put back",
        [f"to layer {names[k]}" for k in found.last],
        [names[i] for i in found.first],
        100 * value,
        unit="%",
        x="last layer put back",
        y="first layer put back",
        limits=(0.0, 100.0),
        short=[str(k) for k in found.last],
        short_rows=[str(i) for i in found.first],
        written=True,
        note=note,
    )
    return [replace(made, draw=partial(drawn, made))]


def _smallest(found: Rewinds, share: NDArray[np.float64]) -> str:
    """Name the smallest block that brings a task back, and the single layer that brings back most.

    Nothing of a deep network whose blocks begin at every second, third, ... layer: smaller ones were not tried.
    """
    if np.diff(found.first).max(initial=1) > 1:
        return ""
    sized = [
        (int(last - first + 1), -float(share[i, k]), int(first), int(last))
        for i, first in enumerate(found.first)
        for k, last in enumerate(found.last)
        if np.isfinite(share[i, k])
    ]
    said = ""
    if enough := [each for each in sized if -each[1] >= ENOUGH]:
        _, value, first, last = min(enough)
        said = f" The smallest that brings {100 * ENOUGH:.0f} % back: {span(first, last)}, {back(-value)}."
    if single := [each for each in sized if each[0] == 1]:
        _, value, first, _ = min(single)
        said += f" Alone, layer {first} brings back most: {back(-value)}."
    return said


def span(first: int, last: int) -> str:
    """Name layers that follow one another.

    Example:
        >>> span(1, 1), span(1, 2), span(3, 8)
        ('layer 1', 'layers 1 and 2', 'layers 3 to 8')
    """
    if first == last:
        return f"layer {first}"
    return f"layers {first} {'and' if last == first + 1 else 'to'} {last}"


def back(share: float) -> str:
    """Say how much of a loss comes back.

    Example:
        >>> back(1.02), back(0.251), back(-0.1)
        ('all', '25 %', '0 %')
    """
    return "all" if share >= 1 else percent(max(share, 0.0), 0)
