"""What a sequence of tasks did to every layer: by depth, over time, and to tasks still to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.charts import Chart, Item, Line, Map, Section, Table, escape
from tunnel_lightning.report.continual_maps import layer_map
from tunnel_lightning.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, VERMILION
from tunnel_lightning.report.words import interval, number, percent
from tunnel_lightning.runs import NETWORK
from tunnel_lightning.runs.continual import ContinualRun, at_end, forgetting_since_learnt, over_earlier

Array = NDArray[np.float64]

LOST: dict[str, dict[str, Any]] = {
    "drift": {"label": "fixed: fitted when learnt", "color": VERMILION},
    "online_forgetting": {"label": "online: trained along", "color": ORANGE, "dash": "dot"},
    "representation_forgetting": {"label": "refitted for the task", "color": BLUE, "dash": "dash"},
    "all_classes_lost": {"label": "refitted for all classes", "color": GREEN, "dash": "dashdot"},
}
"""What probes of each kind lost: names and looks of their lines, by column of `ContinualRun.layer_table`."""

LIKENESS: dict[str, dict[str, Any]] = {
    "cka": {"label": "CKA", "color": BLUE},
    "overlap": {"label": "overlap of principal subspaces", "color": GREEN, "dash": "dash"},
    "residual": {
        "label": "residual of the best linear map",
        "color": VERMILION,
        "dash": "dot",
        "right": True,
    },
}
"""How a layer resembles itself as it was: names and looks of their lines, likewise."""

NAMED = 7
"""More lines than this are coloured by their place in time, not each by a name."""

OF_EARLIER = "Averaged over the tasks before the last one."


def line(run: ContinualRun, label: str, values: Array, texts: Sequence[str], **look: Any) -> Line:
    """A line over the layers, with a text for each."""
    said = [
        f"<b>layer {index}: {escape(name)}</b><br>{escape(label)}: {text}"
        for (index, name), text in zip(run.layers.items(), texts, strict=True)
    ]
    return Line(label, np.array(list(run.layers)), values, said, **{"marker": "circle", **look})


def points(value: float) -> str:
    """Write a difference of fractions in percentage points, without a sign for what rounds to nothing.

    Example:
        >>> points(0.474), points(-1e-5), points(float("nan"))
        ('47.4 points', '0.0 points', 'no value')
    """
    return f"{round(100 * float(value), 1) + 0.0:.1f} points" if np.isfinite(value) else "no value"


def at_once(run: ContinualRun) -> bool:
    """Whether all tasks were learnt in one training: no layer has a task from before to be compared with."""
    return run.done > 1 and len(moments(run)) == 1


def moments(run: ContinualRun) -> list[int]:
    """How many tasks were learnt at each moment that was measured, from 1."""
    return sorted({row.experience + 1 for row in run.rows if row.layer == NETWORK and row.experience >= 0})


COMPARED = ("cka", "overlap", "residual")
"""Columns of `ContinualRun.layer_table` that compare a layer with itself as it was."""


def layer_table(run: ContinualRun, after: int | None = None) -> dict[str, Array]:
    """`ContinualRun.layer_table`, without likenesses where every layer is compared with itself at the same moment."""
    table = run.layer_table(after)
    if at_once(run):
        table |= {column: np.full_like(table[column], np.nan) for column in COMPARED}
    return table


def forgotten(run: ContinualRun) -> Section:
    """What is lost by depth, and how far each layer is from what it was."""
    if run.done < 2:
        return Section("forgetting", "Forgetting by depth", [])
    table = layer_table(run)
    charts = [*_lost(run, table), *_share(run, table), *_known(run), *_likeness(run, table)]
    text = (
        "Probes that are never fitted again suffer when features move, those fitted anew only when knowledge "
    )
    text += "is gone."
    return Section("forgetting", "Forgetting by depth", charts, text)


def _lost(run: ContinualRun, table: dict[str, Array]) -> list[Chart]:
    lines = []
    for column, look in LOST.items():
        if np.isfinite(table[column]).any():
            look = {"width": 2.6 if column == "drift" else 2.0, **look}
            label = look.pop("label")
            lines.append(line(run, label, 100 * table[column], list(map(points, table[column])), **look))
    if not lines:
        return []
    kind = "within" if run.single_head else "network"
    network = at_end(forgetting_since_learnt(run.network(kind)))
    if np.isfinite(network):
        text = f"the network{' within each task' if run.single_head else ''}: {points(network)}"
        ends = np.array([0.5, max(run.layers) + 0.5])
        lines.append(Line(text, ends, np.full(2, 100 * network), [text] * 2, INK, dash="dot", width=1.4))
    note = f"{OF_EARLIER} Fixed, online and refitted for the task: accuracy right after the task was learnt less "
    note += (
        "accuracy now. Refitted for all classes: the best there ever was less that now. Online probes answer "
    )
    note += "among all classes."
    return [
        Chart(
            "forgetting_by_depth",
            "What probes lost",
            lines,
            y="lost (percentage points)",
            note=note,
            wide=True,
        )
    ]


def _share(run: ContinualRun, table: dict[str, Array]) -> list[Chart]:
    relative, lost = table["relative_forgetting"], table["representation_forgetting"]
    lines = []
    if np.isfinite(lost).any():
        said = list(map(points, lost))
        lines.append(line(run, "of the accuracy, in points", 100 * lost, said, color=BLUE))
    if np.isfinite(relative).any():
        look = {"color": VERMILION, "dash": "dash", "marker": "square", "right": bool(lines)}
        lines.append(
            line(run, "of what was gained, in percent", 100 * relative, list(map(percent, relative)), **look)
        )
    if not lines:
        return []
    note = "Of probes refitted for the task. Little of the accuracy may still be much of what learning the task gave "
    note += (
        "to the layer (Hess et al., 2023); no share is given where that is under one point, or may be chance."
    )
    right = "of what was gained (%)" if any(each.right for each in lines) else ""
    y = "of the accuracy (points)" if not lines[0].label.startswith("of what") else "of what was gained (%)"
    return [Chart("relative_forgetting", "What is lost for good", lines, y=y, right=right, note=note)]


def _known(run: ContinualRun) -> list[Chart]:
    whole = run.of_all("refit_all")
    there = np.flatnonzero(np.isfinite(whole).any(axis=0))
    if len(there) < 2:
        return []
    lines = [
        line(
            run,
            f"after {run.tasks[k - 1]}" if k else "before any training",
            100 * whole[:, k],
            list(map(percent, whole[:, k])),
            color=GREY if not k else 1 - k / (run.done or 1),
            dash="dot" if not k else "solid",
            width=2.6 if k == there[-1] else 1.6,
        )
        for k in there
    ]
    note = "A probe fitted on training images of all tasks, also those to come. Dark lines are later."
    ends = (f"after {run.tasks[there[-1] - 1]}", "first") if len(there) > NAMED else None
    return [
        Chart(
            "all_classes",
            "What each layer knows of all classes",
            lines,
            y="accuracy (%)",
            ends=ends,
            note=note,
        )
    ]


def _likeness(run: ContinualRun, table: dict[str, Array]) -> list[Chart]:
    lines = []
    for column, look in LIKENESS.items():
        if np.isfinite(table[column]).any():
            texts = [number(round(float(value), 4)) for value in table[column]]
            label = look["label"]
            lines.append(
                line(run, label, table[column], texts, **{k: v for k, v in look.items() if k != "label"})
            )
    if not lines:
        return []
    if all(each.right for each in lines):
        lines = [
            line(
                run,
                LIKENESS["residual"]["label"],
                table["residual"],
                [number(float(v)) for v in table["residual"]],
            )
        ]
    right = LIKENESS["residual"]["label"] if any(each.right for each in lines) else ""
    y = "likeness to itself" if right or len(lines) > 1 else lines[0].label
    note = f"{OF_EARLIER} Features of a task's images now against those right after the task was learnt."
    return [Chart("likeness", "Each layer against itself as it was", lines, y=y, right=right, note=note)]


def over_time(run: ContinualRun) -> Section:
    """Maps of what is known of each layer after each task."""
    whole = 100 * run.of_all("refit_all")
    rank = _mean(run.of_tasks("rank"))
    before = np.full((len(run.layers), 1), np.nan)

    def earlier(kind: str) -> Array:
        return np.hstack([before, [over_earlier(found[1:]) for found in run.of_tasks(kind)] or before[:, :0]])

    lost = [forgetting_since_learnt(found) for found in run.of_tasks("fixed")]
    maps: list[Map] = [
        *layer_map(
            run, "time_all", "Probe of all classes", whole, "%", note="Fitted anew each time.", edge=True
        ),
        *layer_map(
            run,
            "time_rank",
            "Numerical rank",
            rank,
            note="Eigenvalues of the covariance above 1e-3 of the largest, mean over the images of all tasks.",
        ),
        *layer_map(
            run,
            "time_cka",
            "CKA to the layer as it was when the task was learnt",
            earlier("cka"),
            note=OF_EARLIER,
        ),
        *layer_map(
            run,
            "time_drift",
            "Drift: what fixed probes lost",
            100 * np.hstack([before, lost or before[:, :0]]),
            "pts",
            note=OF_EARLIER,
        ),
    ]
    return Section("layers", "Layers over time", maps)


def _mean(found: Array) -> Array:
    """Mean over the tasks that were measured, ``[L, T + 1]``."""
    known = np.isfinite(found)
    total = np.where(known, found, 0).sum(axis=2)
    return np.divide(total, known.sum(axis=2), out=np.full(total.shape, np.nan), where=known.any(axis=2))


def transfer(run: ContinualRun) -> Section:
    """What layers know of tasks that are still to come."""
    found = run.of_tasks("refit_task")
    items: list[Item] = [*_ahead(run, found), *_ahead_over_time(run, found)]
    text = (
        "Probes of a task fitted before the network learns it: which layers make it easier, and which harder?"
    )
    return Section("transfer", "Forward transfer", items, text)


def _ahead(run: ContinualRun, found: Array) -> list[Chart]:
    """Probes of a task before any training, right before and right after it is learnt; tasks from the second on."""
    tasks = range(1, min(run.done + 1, len(run.tasks)))
    stages = {
        "before any training": ([found[:, 0, j] for j in tasks], GREY, "dot"),
        "after the tasks before it": ([found[:, j, j] for j in tasks], PURPLE, "dash"),
        "after learning it": ([found[:, j + 1, j] for j in tasks if j < run.done], BLUE, "solid"),
    }
    lines = []
    for label, (values, color, dash) in stages.items():
        mean = np.mean(values, axis=0) if values else np.array([np.nan])
        if np.isfinite(mean).any():
            lines.append(line(run, label, 100 * mean, list(map(percent, mean)), color=color, dash=dash))
    if len(lines) < 2:
        return []
    note = (
        "Averaged over the tasks from the second on. Where the dashed line is above the dotted one, what was "
    )
    note += "learnt before helps with what comes next."
    return [
        Chart("forward_transfer", "Probes of a task, before and after", lines, y="accuracy (%)", note=note)
    ]


def _ahead_over_time(run: ContinualRun, found: Array) -> list[Map]:
    """What probes of tasks still to come gained since before any training, ``[L, T + 1]``."""
    count = len(run.tasks)
    gain = np.full(found.shape[:2], np.nan)
    for k in range(1, count):
        if len(found):
            gain[:, k] = (found[:, k, k:] - found[:, 0, k:]).mean(axis=1)
    note = (
        "Accuracy of probes refitted for tasks not learnt yet, less that before any training; mean over them."
    )
    return layer_map(run, "time_transfer", "Gain for tasks to come", 100 * gain, "pts", note=note)


TABLE = {
    "drift": ("drift %", 100),
    "representation_forgetting": ("representation forgetting %", 100),
    "relative_forgetting": ("relative forgetting %", 100),
    "online_forgetting": ("online probe lost %", 100),
    "all_classes": ("all classes %", 100),
    "all_classes_lost": ("of all classes lost %", 100),
    "unseen": ("gain for unseen tasks %", 100),
    "rank": ("rank", 1),
    "effective_rank": ("effective rank", 1),
    "cka": ("CKA", 1),
    "overlap": ("subspace overlap", 1),
    "residual": ("residual of linear map", 1),
}
"""Columns of the table of layers: heads and factors, by column of `ContinualRun.layer_table`."""


def layer_tables(run: ContinualRun) -> list[Table]:
    """Every layer at the end, and every layer after each task."""
    if not run.layers:
        return []
    table = layer_table(run)
    there = [column for column in TABLE if np.isfinite(table[column]).any()]
    heads = [TABLE[column][0] for column in there]
    lines = [
        [index, name, *(_plain(TABLE[column][1] * table[column][k]) for column in there)]
        for k, (index, name) in enumerate(run.layers.items())
    ]
    note = f"{OF_EARLIER} Losses and gains in percentage points; relative forgetting in percent of what was gained."
    end = Table("layers_at_end", "Every layer at the end", ["#", "layer", *heads], lines, note)
    steps = []
    for after in [run.done] if at_once(run) else range(1, run.done + 1):
        then = layer_table(run, after)
        steps += [
            [after, index, name, *(_plain(TABLE[column][1] * then[column][k]) for column in there)]
            for k, (index, name) in enumerate(run.layers.items())
        ]
    each = Table(
        "layers_over_time", "Every layer after each task", ["tasks", "#", "layer", *heads], steps, note
    )
    return [end, each] if run.done > 1 and not at_once(run) else [end]


def _plain(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def confidence(value: float, n: int) -> str:
    """Write an accuracy with its interval.

    Example:
        >>> confidence(0.5, 100)
        '50.0 % (95 % interval 40.4 to 59.6 %)'
    """
    span = interval(value, n)
    return percent(value) + (f" (95 % interval {span})" if span else "")
