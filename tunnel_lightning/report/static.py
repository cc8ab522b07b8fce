"""Drawing charts, maps and scatters with matplotlib, for papers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunnel_lightning.report.canvas import canvas, legend, save, title
from tunnel_lightning.report.charts import Chart, Item, Line, Map, Pictures, Points, Table
from tunnel_lightning.report.lines import COLORS
from tunnel_lightning.report.pictures import figure_of
from tunnel_lightning.report.style import INK, PALE, STYLE, shorten
from tunnel_lightning.runs.lists import listed

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

FORMATS = ("png", "svg", "pdf")

_DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1.2, 1.6)), "dashdot": (0, (5, 1.4, 1, 1.4))}
_MARKERS = {"": "", "circle": "o", "square": "s", "circle-open": "o", "square-open": "s"}


def parse_formats(given: str | Sequence[str]) -> list[str]:
    """Read a choice of figure formats: a text with commas, or a list.

    Returns:
        Each format once, in the order given.

    Raises:
        ValueError: an unknown format, or none.

    Example:
        >>> parse_formats("png, svg"), parse_formats(["pdf"])
        (['png', 'svg'], ['pdf'])
    """
    found = list(listed(given))
    unknown = [name for name in found if name not in FORMATS]
    if unknown or not found:
        raise ValueError(
            f"No figure format {', '.join(unknown) or 'given'}: choose among {', '.join(FORMATS)}."
        )
    return found


def write_figures(
    items: Iterable[Item], folder: str | Path, formats: str | Sequence[str] = FORMATS
) -> list[Path]:
    """Write every item but tables to a file of its own in each of the formats; return the paths.

    Raises:
        ValueError: an unknown format.
    """
    formats = parse_formats(formats)
    paths = []
    for item in items:
        if not isinstance(item, Table):
            made = figure(item)
            name = re.sub(r"[^\w.=-]+", "_", item.key)
            paths += [save(made, Path(folder) / f"{name}.{kind}") for kind in formats]
    return paths


def figure(item: Chart | Map | Points | Pictures) -> Figure:
    """Draw one of them.

    Example:
        >>> chart = Chart("a", "Ranks", [Line("rank", np.arange(1, 4), np.array([3.0, 2, 1]))], y="rank")
        >>> figure(chart).axes[0].get_ylabel()
        'rank'
    """
    if isinstance(item, Chart | Map) and item.draw is not None:
        return item.draw()
    if isinstance(item, Pictures):
        return figure_of(item)
    if isinstance(item, Chart):
        return _chart(item)
    return _map(item) if isinstance(item, Map) else _points(item)


def _chart(chart: Chart) -> Figure:
    made, axes = canvas()
    right = axes.twinx() if chart.right else axes
    _style(axes, chart.x, chart.y)
    handles = []
    for each in (each for each in chart.lines if each.shown):
        drawn = _line(right if each.right else axes, each)
        if each.legend:
            handles.append(drawn)
    if chart.right:
        right.set_ylabel(chart.right, **STYLE["label"])
        right.spines[:].set_visible(False)
    if chart.log_x:
        axes.set_xscale("log")
    if chart.log_y:
        axes.set_yscale("log")
    if chart.y_range:
        axes.set_ylim(*chart.y_range)
    if chart.ticks:
        places = {float(x) for each in chart.lines for x in each.x}
        if places <= set(chart.ticks):  # every place has a name
            axes.set_xticks(list(chart.ticks), [shorten(name, 22) for name in chart.ticks.values()])
        else:
            axes.set_xticks(sorted({*axes.get_xticks(), *chart.ticks}))
    for mark in chart.marks:
        axes.axvline(mark.x, color=INK, linewidth=1, linestyle=_DASHES[mark.dash], zorder=1)
        axes.annotate(
            mark.label,
            (mark.x, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4),
            textcoords="offset points",
            ha="center",
            **STYLE["rule_label"],
        )
    title(axes, chart.title, [], above=14 * bool(chart.marks))
    if chart.ends:
        _scale(made, axes, chart.ends)
    else:
        legend(made, handles if len(handles) > 1 else [])
    return made


def _line(axes: Axes, each: Line) -> Any:
    color: Any = each.color
    if not isinstance(color, str):
        from matplotlib import colormaps

        color = colormaps[STYLE["colormap"]](color)
    face = "white" if "open" in each.marker else color
    look: dict[str, Any] = {
        "linestyle": _DASHES[each.dash] if each.width else "",
        "marker": _MARKERS[each.marker],
        "markersize": 4.5,
    }
    (drawn,) = axes.plot(
        each.x, each.y, label=each.label, color=color, linewidth=each.width, markerfacecolor=face, **look
    )
    if each.low is not None and each.high is not None:
        axes.fill_between(each.x, each.low, each.high, color=color, **STYLE["error_band"])
    return drawn


def _scale(made: Figure, axes: Axes, ends: tuple[str, str]) -> None:
    from matplotlib.cm import ScalarMappable

    bar = made.colorbar(ScalarMappable(cmap=STYLE["colormap"]), ax=axes, pad=0.02, aspect=30, ticks=[0, 1])
    bar.ax.set_yticklabels([shorten(name, 22) for name in ends])
    bar.outline.set_visible(False)


def _style(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x, **STYLE["label"])
    axes.set_ylabel(y, **STYLE["label"])
    axes.tick_params(length=0, **STYLE["tick"])
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=PALE)
    axes.set_axisbelow(True)
    axes.grid(axis="y", **STYLE["grid"])


def _map(found: Map) -> Figure:
    from matplotlib.patches import Rectangle

    made, axes = canvas()
    made.set_size_inches(7.2, 6.4)
    low, high = found.limits or (None, None)
    value = np.ma.masked_invalid(found.value)
    mesh = axes.imshow(
        value, origin="lower", vmin=low, vmax=high, cmap=STYLE["colormap"], interpolation="nearest"
    )
    bar = made.colorbar(mesh, ax=axes, pad=0.02, aspect=30)
    bar.outline.set_visible(False)
    bar.ax.tick_params(**STYLE["tick"])
    for first, last, _ in found.blocks:
        size = last - first + 1
        for color, width in (("black", 3.6), ("white", 1.6)):
            axes.add_patch(
                Rectangle(
                    (first - 0.5, first - 0.5), size, size, fill=False, edgecolor=color, linewidth=width
                )
            )
    for at, _ in found.breaks[1:]:
        axes.axhline(at - 0.5, color="white", linewidth=1.4)
        axes.axvline(at - 0.5, color="white", linewidth=1.4)
    places, names = found.ticks(found.short or found.columns, 25)
    axes.set_xticks(places, names, rotation=0 if found.breaks else 90)
    axes.set_yticks(*found.ticks(found.rows, 25))
    axes.tick_params(length=0, **STYLE["tick"])
    axes.spines[:].set_visible(False)
    # over the whole figure: a map of few columns is narrower than its title
    made.suptitle(found.title, x=0.02, ha="left", **STYLE["title"])
    return made


def _points(points: Points) -> Figure:
    made, axes = canvas()
    made.set_size_inches(6.0, 6.0)
    color = [COLORS[0]] if points.kind is None else [COLORS[k % len(COLORS)] for k in points.kind]
    size = 6.0 if points.size is None else points.size**2 / 2
    axes.scatter(points.place[:, 0], points.place[:, 1], s=size, c=color, alpha=0.7, linewidths=0)
    if points.diagonal:
        ends = [float(np.nanmin(points.place)), float(np.nanmax(points.place))]
        axes.plot(ends, ends, color=INK, linewidth=1, linestyle=_DASHES["dot"], zorder=0)
    _style(axes, points.x, points.y)
    if not points.x:
        axes.set_axis_off()
    title(axes, points.title, [])
    return made
