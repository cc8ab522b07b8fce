"""Heat maps of a run over tasks: accuracies of each task, and measures of each layer, against the tasks learnt."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.canvas import canvas, legend, thin, title
from tunnel_lightning.report.charts import Chart, Item, Map, Section
from tunnel_lightning.report.static import figure
from tunnel_lightning.report.style import STYLE, shorten
from tunnel_lightning.runs.continual import ContinualRun

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BEFORE = "before the first task"

KEPT = 0.95
"""The share of the best layer's probe below which a deeper one counts as behind."""

_WRITTEN = 225
"""Cells of a figure that have their number written in them, at the most."""


def task_map(run: ContinualRun, kind: str, key: str, name: str, note: str) -> list[Map]:
    """The accuracy matrix, time downwards, as far as the run is; nothing where it was not measured."""
    accuracy = run.network(kind)[: run.done + 1]
    measured = [k for k, row in enumerate(accuracy) if np.isfinite(row).any()]
    if not any(measured):
        return []
    rows = [f"after {run.tasks[k - 1]}" if k else BEFORE for k in measured]
    columns = [
        f"{task} ({classes})" if classes else task
        for task, classes in zip(run.tasks, run.classes, strict=True)
    ]
    found = Map(
        key,
        name,
        columns,
        rows[::-1],
        100 * accuracy[measured][::-1],
        unit="%",
        x="accuracy on",
        y="tasks learnt (downwards)",
        limits=(0.0, 100.0),
        short=run.tasks if len(run.tasks) <= 8 else [str(k) for k in range(1, len(run.tasks) + 1)],
        short_rows=[str(k) for k in measured[::-1]],
        written=True,
        note=note,
    )
    return [replace(found, draw=partial(drawn, found))]


def layer_map(
    run: ContinualRun,
    key: str,
    name: str,
    value: NDArray[np.float64],
    unit: str = "",
    limits: tuple[float, float] | None = None,
    note: str = "",
    edge: bool = False,
) -> list[Map]:
    """One measure over layers, deeper upwards, and time.

    Args:
        run: the run.
        key: as in `Map`.
        name: as in `Map`.
        value: shape ``[L, T + 1]``: before any training, and after each task.
        unit: as in `Map`.
        limits: as in `Map`.
        note: as in `Map`.
        edge: whether to draw above which layer a probe of all classes knows less.

    Returns:
        The map, of the times at which there is any value; none where there are fewer than two.
    """
    there = np.flatnonzero(np.isfinite(value).any(axis=0))
    if len(there) < 2:
        return []
    heights = behind(run.of_all("refit_all"))[there] if edge else np.full(len(there), np.nan)
    found = Map(
        key,
        name,
        [f"after {run.tasks[k - 1]}" if k else BEFORE for k in there],
        list(run.layers.values()),
        value[:, there],
        unit=unit,
        x="tasks learnt",
        y="layer (deeper upwards)",
        limits=limits,
        short=[str(k) for k in there],
        short_rows=[str(index) for index in run.layers],
        edge=heights,
        edge_label=f"above: under {100 * KEPT:.0f} % of the best layer",
        note=note,
    )
    return [replace(found, draw=partial(drawn, found))]


def behind(whole: NDArray[np.float64]) -> NDArray[np.float64]:
    """Where the deep layers begin that know less of all classes than the best one, at each time.

    Args:
        whole: accuracies of probes of all classes, shape ``[L, N]``.

    Returns:
        Shape ``[N]``: the lower edge of the first of them, in positions from 0; NaN where there are none.

    Example:
        >>> behind(np.array([[0.9, 0.9], [0.95, 0.8], [0.94, 0.7]]))
        array([nan, 0.5])
    """
    edges = np.full(whole.shape[1], np.nan)
    for k, values in enumerate(whole.T):
        enough = np.flatnonzero(values >= KEPT * np.nanmax(values, initial=0.0))
        if len(enough) and enough[-1] + 1 < len(values):
            edges[k] = enough[-1] + 0.5
    return edges


def in_whole_steps(section: Section) -> Section:
    """The section, its charts over layers, tasks and depths with whole numbers alone on that axis, in files, too."""
    items: list[Item] = [
        replace(item, draw=partial(_whole, item)) if isinstance(item, Chart) and not item.relative else item
        for item in section.items
    ]
    return replace(section, items=items)


def _whole(chart: Chart) -> Figure:
    from matplotlib.ticker import MaxNLocator

    made = figure(chart)
    made.axes[0].xaxis.set_major_locator(MaxNLocator(integer=True))
    return made


def drawn(found: Map) -> Figure:
    """Draw a map with matplotlib, its cells as wide as they come, with their numbers where there are few."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.patheffects import withStroke

    made, axes = canvas()
    rows, columns = found.value.shape
    axes.add_patch(
        Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=0, linewidth=0, **STYLE["missing"])
    )
    low, high = found.limits or (None, None)
    x, y = np.arange(columns + 1) - 0.5, np.arange(rows + 1) - 0.5
    value = np.ma.masked_invalid(found.value)
    mesh = axes.pcolormesh(x, y, value, cmap=STYLE["colormap"], vmin=low, vmax=high, zorder=1)
    bar = made.colorbar(mesh, ax=axes, pad=0.02, aspect=30)
    bar.set_label(found.unit, **STYLE["label"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(**STYLE["tick"])
    if found.value.size <= _WRITTEN:
        _write(axes, found, mesh)
    handles: list[Any] = []
    if found.edge is not None and np.isfinite(found.edge).any():
        line = {"path_effects": [withStroke(**STYLE["outline_edge"])], **STYLE["outline"]}
        axes.stairs(found.edge, x, baseline=None, zorder=3, **line)
        handles.append(Line2D([], [], label=found.edge_label, **line))
    if np.isnan(found.value).any():
        handles.append(Patch(label="no value", linewidth=0, **STYLE["missing"]))
    _ticks(axes, found)
    title(axes, found.title, [])
    legend(made, handles)
    return made


def _write(axes: Any, found: Map, mesh: Any) -> None:
    digits = _digits(found.value)
    for (i, j), each in np.ndenumerate(found.value):
        if np.isfinite(each):
            dark = mesh.norm(each) < 0.55
            look = {"ha": "center", "va": "center", "fontsize": 8.5, "color": "white" if dark else "black"}
            axes.text(j, i, f"{each:.{digits}f}", zorder=4, **look)


def _digits(value: NDArray[np.float64]) -> int:
    """Digits behind the point that tell cells apart.

    Example:
        >>> _digits(np.array([[250.0, 3.0]])), _digits(np.array([[99.5, 3.0]])), _digits(np.array([[0.5]]))
        (0, 1, 2)
    """
    top = np.nanmax(np.abs(value), initial=0.0)
    return 0 if top > 100 or (value[np.isfinite(value)] % 1 == 0).all() else 1 if top > 1.5 else 2


def _ticks(axes: Any, found: Map) -> None:
    columns: Sequence[str] = found.short or found.columns
    across, up = thin(len(columns), 16), thin(len(found.rows), 20)
    axes.set_xticks(across, [columns[k] for k in across])
    axes.set_yticks(up, [shorten(found.rows[k], 28) for k in up])
    axes.tick_params(length=0, **STYLE["tick"])
    axes.spines[:].set_visible(False)
    axes.set_xlabel(found.x, **STYLE["label"])
    axes.set_ylabel(found.y, **STYLE["label"])
