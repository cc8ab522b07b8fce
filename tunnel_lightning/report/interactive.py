"""Drawing charts, maps and scatters for the page, as what plotly.js is given."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.canvas import thin
from tunnel_lightning.report.charts import Chart, Line, Map, Points, escape
from tunnel_lightning.report.lines import COLORS
from tunnel_lightning.report.style import GREY, INK, PALE, STYLE, shorten

FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif"
MARKERS = ("circle", "diamond", "square", "x")

WRITTEN = 16
"""Rows and columns up to which numbers have room in a map's cells."""

Spec = dict[str, Any]


def figure(item: Chart | Map | Points) -> Spec:
    """Return ``{"data": traces, "layout": layout}``, of plain lists and numbers."""
    if isinstance(item, Chart):
        return _chart(item)
    return _map(item) if isinstance(item, Map) else _points(item)


def _chart(chart: Chart) -> Spec:
    layout = _layout(_axis(chart.x), _axis(chart.y))
    x, y = layout["xaxis"], layout["yaxis"]
    traces = [_line(each) for each in chart.lines]
    layout["showlegend"] = len(chart.lines) > 1
    high = max((float(each.x[-1]) for each in chart.lines if len(each.x)), default=1.0)
    if chart.log_x:
        x |= {"type": "log", "range": [0, float(np.log10(max(high, 2)))], "dtick": 1}
    elif chart.relative:
        x |= {"range": [0, 1.02], "dtick": 0.25, "showgrid": False}
    else:
        last, ticks = int(high), chart.ticks or {}
        places = [k for k in thin(last + 1, 21) if k or 0 in ticks]
        x |= {"range": [-0.6 if 0 in ticks else 0.5, last + 0.5], "tickmode": "array", "showgrid": False}
        x |= {"tickvals": places, "ticktext": [ticks.get(k, str(k)) for k in places]}
    if chart.log_y:
        y |= {"type": "log"} | _log_ticks(chart)
    if chart.y_range:
        y["range"] = [float(v) for v in (np.log10(chart.y_range) if chart.log_y else chart.y_range)]
    if chart.right:
        right = _axis(chart.right) | {
            "overlaying": "y",
            "side": "right",
            "showgrid": False,
            "rangemode": "tozero",
        }
        color = next(each.color for each in chart.lines if each.right)
        # plotly.js 4 would put its ticks at the left axis's heights, at odd numbers
        layout["yaxis2"] = right | {"tickmode": "auto", "tickfont": {"color": color}}
        layout["yaxis2"]["title"]["font"] = {"color": color, "size": 13}
    if chart.ends:
        traces.append(_scale(chart.ends))
        layout["showlegend"] = False
    if chart.shade:
        start, label = chart.shade
        layout["shapes"].append(
            {
                "type": "rect", "xref": "x", "yref": "paper", "x0": start, "x1": x["range"][1], "y0": 0, "y1": 1,
                "fillcolor": STYLE["tunnel"]["color"], "line": {"width": 0}, "layer": "below",
            }
        )  # fmt: skip
        look = {"symbol": "square", "size": 14, "color": STYLE["tunnel"]["color"]}
        named = {"x": [None], "y": [None], "mode": "markers", "marker": look, "name": escape(label)}
        traces.append({"type": "scatter", "hoverinfo": "skip", **named})
    _marks(chart, layout, high)
    return {"data": traces, "layout": layout}


def _log_ticks(chart: Chart) -> Spec:
    """Labels of a logarithmic axis: 1, 2, 5, 10 ... over few decades, powers of ten over many."""
    values = np.concatenate([np.asarray(each.y, dtype=float) for each in chart.lines] or [np.ones(1)])
    values = values[np.isfinite(values) & (values > 0)]
    low, high = chart.y_range or (values.min(initial=1.0), values.max(initial=1e-300))
    first, last = int(np.floor(np.log10(low))), int(np.ceil(np.log10(max(high, low))))
    steps = (1, 2, 5) if last - first <= 3 else (1,)
    places = [step * 10.0**power for power in range(first, last + 1) for step in steps]
    names = [f"{v:g}" if 1e-3 <= v < 1e5 else f"10<sup>{int(np.log10(v))}</sup>" for v in places]
    return {"tickmode": "array", "tickvals": places, "ticktext": names}


def _marks(chart: Chart, layout: Spec, width: float) -> None:
    """Vertical lines with labels above; one too near its neighbour goes a line up."""
    ends: list[float] = []
    for mark in chart.marks:
        line = {"color": INK, "width": 1, "dash": mark.dash}
        place = {"xref": "x", "x0": mark.x, "x1": mark.x, "yref": "paper", "y0": 0, "y1": 1}
        layout["shapes"].append({"type": "line", "line": line, **place})
        half = width * (0.022 + 0.0095 * len(mark.label))  # of a phone, where letters are widest
        level = next((k for k, end in enumerate(ends) if mark.x - half > end), len(ends))
        ends[level : level + 1] = [mark.x + half]
        layout["annotations"].append(
            {
                "x": mark.x, "xref": "x", "y": 1, "yref": "paper", "yanchor": "bottom", "showarrow": False,
                "text": escape(mark.label), "yshift": 2 + 15 * level, "font": {"size": 12, "color": INK},
            }
        )  # fmt: skip
    layout["margin"]["t"] = 14 + 15 * len(ends)


def _line(each: Line) -> Spec:
    color = _color(each.color)
    trace: Spec = {
        "type": "scatter",
        "name": escape(each.label),
        "legendgroup": escape(each.label),
        "showlegend": each.legend,
        "x": _list(each.x),
        "y": _list(each.y),
        "hovertext": list(each.hover),
        "hoverinfo": "text" if len(each.hover) else "skip",
        "mode": "+".join(["lines"] * (each.width > 0) + ["markers"] * bool(each.marker)),
        "line": {"color": color, "width": each.width, "dash": each.dash},
        "marker": {
            "color": color,
            "symbol": each.marker or "circle",
            "size": 8 if "open" in each.marker else 6,
        },
    }
    if each.right:
        trace["yaxis"] = "y2"
    if not each.shown:
        trace["visible"] = "legendonly"
    if each.low is not None and each.high is not None:
        trace["band"] = {"low": _list(each.low), "high": _list(each.high)}
    return trace


def _color(color: str | float) -> str:
    if isinstance(color, str):
        return color
    from plotly.colors import sample_colorscale

    return str(sample_colorscale(STYLE["colormap"], [color])[0])


def _scale(ends: tuple[str, str]) -> Spec:
    """An invisible trace that carries a colour bar with the first and the last layer's names."""
    names = [escape(shorten(name, 16)) for name in ends]
    bar = {"tickvals": [0, 1], "ticktext": names, "ticklabelposition": "inside", "thickness": 12, "len": 0.9}
    bar |= {"tickfont": {"size": 11}, "outlinewidth": 0, "ticklabelposition": "outside"}
    marker = {
        "color": [0, 1],
        "cmin": 0,
        "cmax": 1,
        "colorscale": "Cividis",
        "showscale": True,
        "colorbar": bar,
    }
    return {
        "type": "scatter",
        "x": [None, None],
        "y": [None, None],
        "mode": "markers",
        "marker": marker,
        "hoverinfo": "skip",
    }


def _map(found: Map) -> Spec:
    rows, columns = found.value.shape
    x = (
        _axis(found.x)
        | _names(found.ticks(found.short or found.columns, 10))
        | {"range": [-0.5, columns - 0.5]}
    )
    y = _axis(found.y) | _names(found.ticks(found.rows, 16)) | {"range": [-0.5, rows - 0.5]}
    if not found.edge_label:
        y |= {"scaleanchor": "x", "constrain": "domain", "constraintoward": "top"}
        x |= {"constrain": "domain"}
    if found.columns == found.rows and not found.breaks:
        x["showticklabels"] = False  # as on the other axis; cells say it too
    layout = _layout(x, y)
    there = found.value[np.isfinite(found.value)]
    low, high = found.limits or ((float(there.min()), float(there.max())) if there.size else (0.0, 1.0))
    heat: Spec = {
        "type": "heatmap",
        "z": [_list(line) for line in found.value],
        "zmin": low,
        "zmax": high,
        "colorscale": "Cividis",
        "colorbar": {
            "thickness": 12,
            "outlinewidth": 0,
            "tickfont": {"size": 11},
            "ticksuffix": found.unit and f" {found.unit}",
        },
        "hoverinfo": "text",
        "hoverongaps": False,
        # the page makes the texts of the cells: written out here they would be most of the file
        "cells": {
            "rows": [escape(name) for name in found.rows],
            "columns": [escape(name) for name in found.columns],
            "short": found.short_rows and [escape(name) for name in found.short_rows],
            "unit": found.unit,
            "se": None if found.se is None else [_list(line) for line in found.se],
        },
    }
    if found.written and max(rows, columns) <= WRITTEN:
        # No colour: plotly takes the one that is seen on the cell's own.
        heat |= {"texttemplate": "%{z:.0f}", "textfont": {"size": 12 if columns <= 8 else 9}}
    traces = [heat]
    white = {"color": "white", "width": 2}
    for first, last, label in found.blocks:
        square = {"x0": first - 0.5, "x1": last + 0.5, "y0": first - 0.5, "y1": last + 0.5}
        layout["shapes"] += [
            {"type": "rect", **square, "line": {"color": "black", "width": 4}},
            {"type": "rect", **square, "line": white, "name": escape(label)},
        ]
    for at, _ in found.breaks[1:]:
        for axis, other in (("x", "y"), ("y", "x")):
            span = {f"{axis}0": at - 0.5, f"{axis}1": at - 0.5, f"{other}0": -0.5, f"{other}1": columns - 0.5}
            layout["shapes"].append({"type": "line", **span, "line": white})
    if found.edge is not None and np.isfinite(found.edge).any():
        traces += _edge(found.edge, found.edge_label)
    return {"data": traces, "layout": layout}


def _edge(edge: NDArray[np.float64], label: str) -> list[Spec]:
    x = np.repeat(np.arange(len(edge) + 1) - 0.5, 2)[1:-1]
    place: Spec = {"type": "scatter", "mode": "lines", "x": _list(x), "y": _list(np.repeat(edge, 2))}
    place |= {"hoverinfo": "skip", "legendgroup": "edge"}
    return [
        {**place, "line": {"color": "black", "width": 4}, "name": escape(label)},
        {**place, "line": {"color": "white", "width": 2}, "showlegend": False},
    ]


def _names(ticks: tuple[list[float], list[str]]) -> Spec:
    places, names = ticks
    return {
        "tickmode": "array", "tickvals": places, "ticktext": [escape(name) for name in names],
        "showgrid": False, "ticks": "", "tickfont": {"size": 11},
    }  # fmt: skip


def _points(points: Points) -> Spec:
    bare = not points.x
    axes = [_axis(points.x), _axis(points.y)]
    if bare:
        axes = [axis | {"visible": False} for axis in axes]
    layout = _layout(*axes)
    layout["showlegend"] = False
    if points.diagonal:
        layout["yaxis"] |= {"scaleanchor": "x", "constrain": "domain"}
        layout["xaxis"]["constrain"] = "domain"
        low, high = float(np.nanmin(points.place)), float(np.nanmax(points.place))
        line = {"color": GREY, "width": 1, "dash": "dot"}
        layout["shapes"].append(
            {"type": "line", "x0": low, "y0": low, "x1": high, "y1": high, "line": line, "layer": "below"}
        )
    marker: Spec = {
        "size": 4 if points.size is None else _list(points.size),
        "opacity": 0.7,
        "line": {"width": 0},
    }
    kind = points.kind
    marker["color"] = COLORS[0] if kind is None else [COLORS[k % len(COLORS)] for k in kind]
    if kind is not None:
        marker["symbol"] = [MARKERS[k // len(COLORS) % len(MARKERS)] for k in kind]
    x, y = (_list(points.place[:, k]) for k in (0, 1))
    trace = {"type": "scatter", "mode": "markers", "x": x, "y": y, "marker": marker}
    return {"data": [{**trace, "hovertext": list(points.hover), "hoverinfo": "text"}], "layout": layout}


def _axis(label: str) -> Spec:
    return {
        "title": {"text": escape(label), "font": {"size": 13}, "standoff": 8},
        "automargin": True,
        "gridcolor": PALE,
        "linecolor": PALE,
        "zeroline": False,
        "fixedrange": False,
    }


def _layout(x: Spec, y: Spec) -> Spec:
    return {
        "font": {"family": FONT, "size": 12, "color": INK},
        "paper_bgcolor": "white",
        "plot_bgcolor": "white",
        "modebar": {"bgcolor": "rgba(255,255,255,0.8)", "color": GREY, "activecolor": COLORS[0]},
        "margin": {"l": 8, "r": 8, "t": 12, "b": 8},
        "autosize": True,
        "hovermode": "closest",
        "hoverlabel": {
            "bgcolor": "white",
            "bordercolor": GREY,
            "align": "left",
            "font": {"family": FONT, "color": INK},
        },
        "legend": {
            "orientation": "h",
            "yref": "container",
            "yanchor": "bottom",
            "y": 0,
            "x": 0,
            "font": {"size": 12},
        },
        "shapes": [],
        "annotations": [],
        "xaxis": x,
        "yaxis": y,
    }


def _list(values: NDArray[Any]) -> list[Any]:
    """Plain numbers, short: four significant digits are finer than a screen; null for what is not finite."""
    if np.issubdtype(np.asarray(values).dtype, np.integer):
        return [int(v) for v in values]
    return [float(f"{v:.5g}") if np.isfinite(v) else None for v in np.asarray(values, dtype=float)]
