"""The page of a run over a sequence of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report import tables
from tunnel_lightning.report.charts import Chart, Item, Line, Page, Section, Table, escape
from tunnel_lightning.report.continual_layers import (
    NAMED,
    confidence,
    forgotten,
    layer_tables,
    over_time,
    transfer,
)
from tunnel_lightning.report.continual_maps import in_whole_steps, task_map
from tunnel_lightning.report.continual_tunnel import exits, swaps
from tunnel_lightning.report.continual_words import forgets, headline, knows, numbers
from tunnel_lightning.report.lines import COLORS, DASHES
from tunnel_lightning.report.style import INK
from tunnel_lightning.report.words import percent
from tunnel_lightning.runs import NETWORK
from tunnel_lightning.runs.continual import (
    NETWORK_KINDS,
    ContinualRun,
    average_accuracy,
    forgetting,
    forgetting_since_learnt,
    forward_transfer,
)

KINDS = {
    "class_incremental": "class-incremental",
    "task_incremental": "task-incremental",
    "domain_incremental": "domain-incremental",
    "permuted": "permuted inputs",
    "rotated": "rotated inputs",
}
"""How the tasks differ, for a person."""


def page_of_continual(run: ContinualRun) -> Page:
    """Say what the page of a run over tasks shows; of one that goes on, what there is."""
    lost = forgotten(run)
    sections = [
        Section("tasks", "Tasks", [*_matrices(run), *_courses(run), *task_tables(run)]),
        replace(lost, text=" ".join([*_sentences(forgets(run), knows(run)), lost.text])),
        swaps(run),
        over_time(run),
        transfer(run),
        exits(run),
        Section("all", "All layers", layer_tables(run)),
        Section("settings", "Settings and versions", details(run), folded=True),
    ]
    sections = [in_whole_steps(section) for section in sections]
    return Page(run.id, headline(run), subtitle(run), numbers(run), sections, notes(run))


def _sentences(*said: str) -> list[str]:
    return [f"{each[0].upper()}{each[1:]}." for each in said if each]


def subtitle(run: ContinualRun) -> str:
    """What was learnt, and how."""
    about = run.about
    kind = str(about.get("kind") or "")
    parts = [
        str(about.get("data") or ""),
        f"{len(run.tasks)} tasks" + (f", {KINDS.get(kind, kind)}" if kind else ""),
        name(about.get("strategy")),
        name(about.get("backbone")),
        f"{about['epochs']} epoch{'s' * (about['epochs'] != 1)} each" if about.get("epochs") else "",
        "a head for each task" if about.get("multi_head") else "",
        f"seed {about['seed']}" if about.get("seed") is not None else "",
    ]
    return "  ·  ".join(part for part in parts if part)


def name(given: Any) -> str:
    """A class by the last part of its path, with its plain arguments.

    Example:
        >>> name({"class_path": "pack.MLP", "init_args": {"depth": 8, "num_classes": 2, "layers": ["a"]}})
        'MLP (depth 8)'
    """
    if not isinstance(given, Mapping):
        return str(given or "")
    arguments = {k: v for k, v in (given.get("init_args") or {}).items() if k != "num_classes"}
    plain = {k: v for k, v in arguments.items() if isinstance(v, int | float | str)}
    said = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in plain.items())
    title = str(given.get("class_path") or "").rpartition(".")[2]
    return f"{title} ({said})" if said else title


def notes(run: ContinualRun) -> list[str]:
    """What a reader must know."""
    found = []
    if not run.finished:
        found.append(
            f"The run goes on or was ended: {run.done} of {len(run.tasks)} tasks are learnt and measured."
        )
        if reason := run.about.get("resumable"):
            found.append(f"It can't be gone on with: {reason}.")
    sick = [r for r in run.rows if (r.layer, r.measure, r.variant) == (NETWORK, *NETWORK_KINDS["network"])]
    if sick := [r for r in sick if np.isnan(r.value)]:
        first = min(r.experience for r in sick)
        when = f"after {run.tasks[first]}" if first >= 0 else "before the first task"
        found.append(f"The network's scores are NaN or infinite {when}: it has no accuracy there.")
    return found


def _matrices(run: ContinualRun) -> list[Item]:
    note = (
        "Among all outputs of the network."
        if not run.about.get("multi_head")
        else "By the head of each task."
    )
    found: list[Item] = [*task_map(run, "network", "task_accuracy", "Accuracy of each task", note)]
    if run.single_head:
        note = "Among the outputs of the task's own classes: what is left when the network is told the task."
        found += task_map(run, "within", "within_accuracy", "Accuracy within each task", note)
    return found


def _courses(run: ContinualRun) -> list[Chart]:
    """Each task's accuracy from when it was learnt, and the average."""
    charts = []
    kinds = {"network": "Accuracy over the tasks"}
    if run.single_head:
        kinds["within"] = "Accuracy within tasks, over the tasks"
    for kind, title in kinds.items():
        accuracy = run.network(kind)
        if run.done < 2 or not np.isfinite(accuracy[1:]).any():
            continue
        many = len(run.tasks) >= NAMED
        lines = [_course(run, kind, accuracy, j, many) for j in range(run.done)]
        average = average_accuracy(accuracy)[: run.done]
        x = np.arange(1, run.done + 1)
        said = [
            f"<b>after {escape(run.tasks[k - 1])}</b><br>average of {k}: {percent(average[k - 1])}" for k in x
        ]
        lines.append(Line("average", x, 100 * average, said, INK, width=3.2))
        note = "From when each task was learnt. Dark: the average of the tasks learnt so far."
        ends = (run.tasks[0], run.tasks[run.done - 1]) if many else None
        charts.append(
            Chart(f"course_{kind}", title, lines, "tasks learnt", "accuracy (%)", ends=ends, note=note)
        )
    return charts


def _course(run: ContinualRun, kind: str, accuracy: NDArray[np.float64], j: int, many: bool) -> Line:
    x = np.arange(j + 1, run.done + 1)
    value = accuracy[x, j]
    n = _images(run, kind, j)
    said = [
        f"<b>after {escape(run.tasks[k - 1])}</b><br>{escape(run.tasks[j])}: {confidence(float(v), n)}"
        for k, v in zip(x, value, strict=True)
    ]
    color: Any = j / max(run.done - 1, 1) if many else COLORS[j % len(COLORS)]
    dash = "solid" if many else DASHES[j % len(DASHES)]
    return Line(run.tasks[j], x, 100 * value, said, color, dash, 1.6, "circle")


def _images(run: ContinualRun, kind: str, j: int) -> int:
    key = (NETWORK, run.tasks[j], *NETWORK_KINDS[kind])
    return next((r.n for r in run.rows if (r.layer, r.dataset, r.measure, r.variant) == key), 0)


def task_tables(run: ContinualRun) -> list[Table]:
    """The accuracy matrix as a table, with averages and forgetting; within tasks, too, where that differs."""
    found: list[Table] = []
    titles = {"network": "Accuracies after each task"}
    if run.single_head:
        titles["within"] = "Accuracies within tasks, after each task"
    for kind, title in titles.items():
        accuracy = run.network(kind)
        if not np.isfinite(accuracy).any():
            continue
        after = {
            "average %": average_accuracy(accuracy),
            "forgotten %": forgetting_since_learnt(accuracy),
            "of the best %": forgetting(accuracy),
        }
        if not run.single_head:  # a single head never answers with classes it was not shown
            after["forward transfer %"] = forward_transfer(accuracy)
        after = {head: of for head, of in after.items() if np.isfinite(of).any()}
        lines = [
            [
                f"after {run.tasks[k - 1]}" if k else "before",
                *(100 * value for value in accuracy[k]),
                *(100 * of[k - 1] if k else None for of in after.values()),
            ]
            for k in range(run.done + 1)
            if np.isfinite(accuracy[k]).any()
        ]
        heads = ["tasks learnt", *(f"{task} %" for task in run.tasks), *after]
        note = "Average: of the tasks learnt so far. Forgotten: accuracy right after a task was learnt less that "
        note += "now, mean over the tasks before the last one (backward transfer with the other sign). Of the best: "
        note += "the best there was less that now (Chaudhry et al., 2018)."
        if "forward transfer %" in after:
            note += " Forward transfer: accuracy before a task is learnt less that before any training."
        note = "" if found else note  # the first one has said it
        found.append(Table(f"accuracies_{kind}", title, heads, lines, note))
    return found


def details(run: ContinualRun) -> list[Table]:
    """Tasks, settings, versions and machine."""
    about = run.about
    stated = about.get("tasks") or []
    lines: Sequence[list[Any]] = [
        [each.get("name"), ", ".join(map(str, each.get("classes") or [])), each.get("label")]
        for each in stated
    ]
    found = [Table("tasks", "Tasks", ["task", "classes", "label"], list(lines))] if stated else []
    settings = {key: value for key, value in about.items() if key not in ("tasks", "backbone")}
    summary = {"settings": {**settings, "taps": run.manifest.get("taps")}, "network": about.get("backbone")}
    return [*found, *tables.details(run.manifest, summary)]
