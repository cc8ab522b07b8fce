"""A run over tasks in the terminal: what was kept of each task, what became of each layer, and what that says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.continual_group import headline as headline_of_group
from tunnel_lightning.report.continual_layers import layer_table, moments
from tunnel_lightning.report.continual_words import headline
from tunnel_lightning.report.terminal import SHORT, Column, fitted
from tunnel_lightning.runs.continual import ContinualRun, average_accuracy, forgetting_since_learnt
from tunnel_lightning.runs.continual_group import ContinualGroup

if TYPE_CHECKING:
    from rich.console import Console

Array = NDArray[np.float64]

LAYERS = (
    ("drift", "drift", "drift", 100, 1, 0),
    ("all_classes", "all-class\nprobe %", "all-class probe", 100, 1, 1),
    ("representation_forgetting", "repr.\nforg.", "representation forgetting", 100, 1, 2),
    ("relative_forgetting", "rel.\nforg. %", "relative forgetting", 100, 0, 4),
    ("rank", "rank", "rank", 1, 0, 3),
    ("cka", "CKA", "CKA", 1, 2, 3),
)
"""Columns of the table of layers: column of `ContinualRun.layer_table`, head, name, factor, digits, rank."""

LEGEND = (
    ("drift", "drift: points lost by probes fitted when the task was learnt"),
    ("representation forgetting", "repr. forg.: points lost by refitted probes"),
    ("relative forgetting", "rel. forg.: that in percent of what was gained"),
    ("CKA", "CKA: to the layer as it was when the task was learnt"),
)
"""What heads mean, by name."""


def print_run(run: ContinualRun, console: Console | None = None) -> None:
    """Print the accuracy of each task after each, every layer at the end, and what that says.

    Every number is printed whole: where there is no room for a column it is left out and named; accuracies are whole
    percents where those with a decimal have no room. Layers are averaged over the tasks before the last one.

    Args:
        run: the run; of one that goes on what there is.
        console: default: standard output, 80 columns where it is no terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print()
    accuracy = run.network()[: run.done + 1]
    if np.isfinite(accuracy[1:]).any():
        console.print(Text("Accuracy (%) of each task, after each", style="bold"))
        _fitting(_tasks(run, accuracy, 1), console, _tasks(run, accuracy, 0))
        console.print()
    if run.done > 1 and run.layers:
        console.print(Text("Layers at the end", style="bold"))
        columns = _layers(run)
        left_out = _fitting(columns, console)
        shown = {column.name for column in columns} - set(left_out)
        if legend := "; ".join(text for name, text in LEGEND if name in shown):
            console.print(Text(legend, style="dim"))
        console.print()
    console.print(Text(_sentence(headline(run))))


def _sentence(said: str) -> str:
    # a terminal breaks its lines at every space
    return f"{said}.".replace(" %", "%").replace(" ± ", "±")


def _fitting(columns: list[Column], console: Console, shorter: list[Column] | None = None) -> list[str]:
    """Print as many columns as there is room for, of the shorter ones where that is more; the names of the others."""
    from rich.text import Text

    table, without = fitted(columns, console)
    if without and shorter is not None:
        table, without = fitted(shorter, console)
    console.print(table, crop=False)
    left_out = [each.name for each in without]
    if left_out:
        console.print(Text(f"no room here: {_spans(left_out)}", style="dim"))
    return left_out


def _spans(names: Sequence[str]) -> str:
    """Name columns; of many tasks the first and the last.

    Example:
        >>> _spans(["task 2", "task 3", "task 4", "rank"]), _spans(["task 2", "task 4"])
        ('task 2 to 4, rank', 'task 2, task 4')
    """
    spans: list[list[str]] = []
    for name in names:
        before, number = (spans[-1][-1] if spans else ""), name.removeprefix("task ")
        if number.isdigit() and before == f"task {int(number) - 1}":
            spans[-1].append(name)
        else:
            spans.append([name])
    return ", ".join(
        f"{each[0]} to {each[-1].removeprefix('task ')}" if len(each) > 2 else ", ".join(each)
        for each in spans
    )


def _tasks(run: ContinualRun, accuracy: Array, digits: int) -> list[Column]:
    """After each measured task what is known of each, the averages, and of one head those within tasks."""
    rows = moments(run)
    then = [k - 1 for k in rows]
    before = np.isfinite(accuracy[0]).any()
    start = ["before"] if before else []
    columns = [
        Column(
            "after",
            "after",
            [*start, *(run.tasks[k - 1] for k in rows)],
            right=False,
            names=True,
            least=SHORT,
        )
    ]

    def add(
        name: str, head: str, first: Sequence[float], values: Array, rank: int, style: str | None = None
    ) -> None:
        cells = [_cell(value, digits) for value in (*(first if before else ()), *values)]
        columns.append(Column(name, head, cells, rank, style=style))

    recent = len(run.tasks)
    for j, task in enumerate(run.tasks[: run.done]):
        # the first task tells most of forgetting, then the later ones
        rank = 2 if j == 0 else 3 + recent - j
        head = task.replace(" ", "\n") if digits else task.removeprefix("task ")
        add(task, head, [100 * accuracy[0, j]], 100 * accuracy[rows, j], rank)
    add("average", "mean", [np.nan], 100 * average_accuracy(run.network())[then], 0, "bold")
    within = average_accuracy(run.network("within"))[then]
    if run.single_head and np.isfinite(within).any():
        add("within tasks", "within\ntasks", [np.nan], 100 * within, 1)
    lost = forgetting_since_learnt(run.network())[then]
    if np.isfinite(lost).any():
        add("forgotten", "forgot-\nten" if digits else "lost", [np.nan], 100 * lost, 2)
    return columns


def _layers(run: ContinualRun) -> list[Column]:
    table = layer_table(run)
    columns = [
        Column("#", "#", [str(index) for index in run.layers], style="dim"),
        Column("layer", "layer", list(run.layers.values()), right=False, names=True),
    ]
    for column, head, name, factor, digits, rank in LAYERS:
        if np.isfinite(table[column]).any():
            cells = [_cell(factor * value, digits) for value in table[column]]
            columns.append(Column(name, head, cells, rank))
    return columns


def _cell(value: float, digits: int) -> str:
    # without a sign for what rounds to nothing
    return f"{round(value, digits) + 0.0:.{digits}f}" if np.isfinite(value) else "-"


def print_group(group: ContinualGroup, console: Console | None = None) -> None:
    """Print accuracy and forgetting of each depth, as means and deviations over seeds, and what that says.

    Args:
        group: the runs.
        console: default: standard output, 80 columns where it is no terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print()
    if group.members:
        console.print(Text("After the last task: mean and deviation over seeds", style="bold"))
        _fitting(_depths(group), console)
        console.print()
        console.print(Text(_sentence(headline_of_group(group))))
    for note in group.notes:
        console.print(Text(note, style="dim"))


def _depths(group: ContinualGroup) -> list[Column]:
    names = {
        "accuracy": ("accuracy\n%", 0),
        "forgetting": ("forgotten\npoints", 1),
        "within": ("within\ntasks %", 2),
        "within_forgetting": ("forgotten\nwithin", 3),
    }
    columns = [
        Column("depth", "depth", [str(depth) for depth in group.depths]),
        Column("runs", "runs", [str(len(each)) for each in group.depths.values()], 4),
    ]
    for key, (mean, deviation) in group.against_depth().items():
        if np.isfinite(mean).any() and (group.members[0].run.single_head or not key.startswith("within")):
            cells = [
                _cell(100 * m, 1) + (f" ± {_cell(100 * s, 1)}" if np.isfinite(s) else "")
                for m, s in zip(mean, deviation, strict=True)
            ]
            head, rank = names[key]
            columns.append(Column(head.replace("\n", " "), head, cells, rank))
    return columns
