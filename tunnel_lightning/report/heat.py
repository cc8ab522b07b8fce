"""The heat map: one measure over layers and training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.canvas import canvas, legend, thin, title
from tunnel_lightning.report.lines import measure_name
from tunnel_lightning.report.source import rows_of
from tunnel_lightning.report.style import STYLE, shorten
from tunnel_lightning.runs import Curve, Row, Run, RunError, curve, probe_variant, tunnel_start

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Grid(NamedTuple):
    """One measure over layers and profiles.

    Attributes:
        names: the layers, by index, ascending.
        curves: the profiles, by step, ascending.
        value: values, shape [layers, profiles]; percent for accuracies; NaN for none.
        start: of each profile the lower edge of the row where the tunnel starts (95 % rule); NaN for none.
    """

    names: dict[int, str]
    curves: list[Curve]
    value: NDArray[np.float64]
    start: NDArray[np.float64]


def grid(rows: Iterable[Row], own: str | None, measure: str, variant: str, dataset: str | None) -> Grid:
    """Gather one measure of a set over layers and profiles; ``own`` is the set that says where the tunnel starts.

    Raises:
        RunError: nothing of the kind was measured.
    """
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        by_step.setdefault(row.step, []).append(row)
    curves = [curve(by_step[s], measure, variant, dataset).layers_only() for s in sorted(by_step)]
    curves = [c for c in curves if c.layer]
    if not curves:
        raise RunError(f"Nothing to draw: no {measure} ({variant}) of {dataset} was measured.")
    names = dict(
        sorted({i: n for c in curves for i, n in zip(c.index.tolist(), c.layer, strict=True)}.items())
    )
    place = {index: k for k, index in enumerate(names)}
    values = np.full((len(names), len(curves)), np.nan)
    for column, c in enumerate(curves):
        values[[place[i] for i in c.index.tolist()], column] = c.value
    values = np.where(np.isfinite(values), values * (100 if measure.endswith("accuracy") else 1), np.nan)
    starts = [tunnel_start(by_step[c.step], "id95", own).start for c in curves]
    return Grid(names, curves, values, np.array([place[s] - 0.5 if s in place else np.nan for s in starts]))


def heat_map(
    rows: Run | Iterable[Row],
    measure: str = "probe_accuracy",
    variant: str | None = None,
    dataset: str | None = None,
    own: str | None = None,
    name: str | None = None,
) -> Figure:
    r"""Draw one measure over layers (upwards) and profiles (to the right), with the tunnel's start over time.

    Profiles are columns of equal width, whatever the steps between them: the early ones matter most. A
    layer without a value is hatched.

    Args:
        rows: a run, or rows of one.
        measure: as in `Row`.
        variant: as in `Row`; default: the probe that decides.
        dataset: default: the in-distribution set.
        own: the in-distribution set; default: as the run or its rows tell.
        name: what the figure is called; by default as the measure.

    Raises:
        RunError: nothing of the kind was measured.

    Example:
        >>> row = Row("mlp/version_0", 9, 1, -1, "val", "Glyphs", "l1", 1, "rank_cov", "rtol=1e-3", 12.0)
        >>> figure = heat_map([row, row._replace(step=18, epoch=2)], "rank_cov", "rtol=1e-3")
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()]
        ['9\n1', '18\n2']
    """
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch, Rectangle
    from matplotlib.patheffects import withStroke

    rows, own = rows_of(rows, own)
    variant = probe_variant(rows) if variant is None else variant
    names, curves, values, edges = grid(rows, own, measure, variant, dataset or own)
    percent = measure.endswith("accuracy")

    figure, axes = canvas()
    hatch = Rectangle((0, 0), 1, 1, transform=axes.transAxes, zorder=0, linewidth=0, **STYLE["missing"])
    axes.add_patch(hatch)
    x, y = np.arange(len(curves) + 1) - 0.5, np.arange(len(names) + 1) - 0.5
    shown_values = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(x, y, shown_values, cmap=STYLE["colormap"], zorder=1)
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, aspect=30)
    bar.set_label("%" if percent else measure.replace("_cov", "").replace("_", " "), **STYLE["label"])
    bar.outline.set_visible(False)
    bar.ax.tick_params(**STYLE["tick"])

    handles: list[Any] = []
    if np.isfinite(edges).any():
        line = {"path_effects": [withStroke(**STYLE["outline_edge"])], **STYLE["outline"]}
        axes.stairs(edges, np.arange(len(curves) + 1) - 0.5, baseline=None, zorder=3, **line)
        handles.append(Line2D([], [], label="the tunnel starts above (95 % rule)", **line))
    if np.isnan(values).any():
        handles.append(Patch(label="no value", linewidth=0, **STYLE["missing"]))

    shown = thin(len(curves), 14)
    axes.set_xticks(shown, [f"{curves[k].step}\n{curves[k].epoch}" for k in shown])
    shown = thin(len(names), 20)
    labels = [f"{shorten(n, 28)}  {i}" if len(names) <= 20 else str(i) for i, n in names.items()]
    axes.set_yticks(shown, [labels[k] for k in shown])
    axes.tick_params(length=0, **(STYLE["tick"]))
    axes.spines[:].set_visible(False)
    axes.set_xlabel("step, and epoch below it", **STYLE["label"])
    axes.set_ylabel("layer (deeper upwards)", **STYLE["label"])
    name = name or measure_name(measure, variant)
    title(axes, name, [f"{curves[-1].dataset} {curves[-1].split}  ·  {rows[0].run_id}"])
    legend(figure, handles)
    return figure
