"""The depth profile: what every layer knows at one step. The other figures are re-exported here."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np

from tunnel_lightning.report.canvas import canvas, legend, save, title, to_image
from tunnel_lightning.report.heat import heat_map
from tunnel_lightning.report.source import rows_of
from tunnel_lightning.report.style import RANK, RULE_LABELS, STYLE
from tunnel_lightning.runs import (
    Curve,
    Row,
    Run,
    RunError,
    Tunnel,
    curve,
    network_accuracy,
    ood_datasets,
    probe_variant,
    tunnels,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["depth_profile", "heat_map", "save", "to_image"]


def depth_profile(rows: Run | Iterable[Row], step: int | None = None, own: str | None = None) -> Figure:
    """Draw what every layer knows: probe accuracies on the left axis, numerical rank on the right.

    Solid: the in-distribution probe (ridge, else another converged one, which is then named), with a band of one
    standard error; thin: the online probe; dashed: one line per out-of-distribution set, and their mean where there
    are several; dotted: the network's own accuracy; hollow markers: probes on raw pixels. The tunnel is shaded from
    its start by the 95 % rule, and vertical lines mark its start by each rule (as figure 1 of Masarczyk et al.,
    2023, arXiv:2305.19753). What was not measured is left out.

    Args:
        rows: a run, or rows of one.
        step: which profile; default: the last with such probes, else with ranks, else at all.
        own: the set the network was trained on; default: as the run or its rows tell.

    Raises:
        RunError: there is nothing to draw at that step.

    Example:
        >>> row = Row("mlp/version_0", 9, 1, -1, "val", "Glyphs", "l1", 1, "rank_cov", "rtol=1e-3", 12.0)
        >>> figure = depth_profile([row, row._replace(layer="l2", index=2, value=5.0)])
        >>> figure.axes[0].get_ylabel()
        'numerical rank (rtol 1e-3)'
    """
    rows, own = rows_of(rows, own)
    kind = probe_variant(rows)
    at, step = _profile_at(rows, kind, step)
    probe = curve(at, variant=kind, dataset=own)
    online = curve(at, variant="online", dataset=own, split=probe.split or None)
    if not online.layer:
        online = curve(at, variant="online", dataset=own)
    ood = [c for name in ood_datasets(at, own) if (c := curve(at, variant=kind, dataset=name)).layer]
    rank = curve(at, *RANK, dataset=own).layers_only()
    accuracies = [c for c in (probe, online, *ood) if c.layer]
    if not accuracies and not rank.layer:
        raise RunError(f"Nothing to draw at step {step}: no probe and no numerical rank was measured there.")

    figure, axes = canvas()
    starts = tunnels(at, own)
    last = max(int(c.index[-1]) for c in (*accuracies, rank) if c.layer)
    lines = []
    if accuracies:
        lines += _draw_accuracies(axes, probe, online, ood)
        lines += _draw_network(axes, at, own, probe.split or online.split, step)
        _style_axes(axes, "linear probe accuracy (%)")
        _accuracy_limits(axes)
    if rank.layer:
        right = axes.twinx() if accuracies else axes
        lines += right.plot(rank.index, rank.value, label="rank", **_with_marker(STYLE["rank"], rank))
        _style_axes(right, "numerical rank (rtol 1e-3)", color=STYLE["rank"]["color"], grid=right is axes)
        right.set_ylim(0, 1.08 * rank.finite().value.max(initial=1.0))
    _layer_axis(axes, any(0 in c.index for c in accuracies), last)
    patches, levels = _draw_tunnel(axes, starts, last)
    title(axes, at[0].run_id, _subtitle(at, probe, ood, starts, step), above=12 * levels)
    legend(figure, [*lines, *patches])
    return figure


def _profile_at(rows: list[Row], kind: str, step: int | None) -> tuple[list[Row], int]:
    if step is None:
        wanted = [
            [r.step for r in rows if (r.measure, r.variant) == ("probe_accuracy", kind)],
            [r.step for r in rows if (r.measure, r.variant) == RANK],
            [r.step for r in rows],
        ]
        step = next((max(steps) for steps in wanted if steps), -1)
    return [r for r in rows if r.step == step], step


def _draw_accuracies(axes: Axes, probe: Curve, online: Curve, ood: list[Curve]) -> list[Any]:
    lines = []
    name = "probe" if probe.variant == "ridge" else f"{probe.variant} probe"
    if probe.layer:
        lines.append(_draw_curve(axes, probe, STYLE["id"], f"{probe.dataset} {name} (ID)"))
    if online.layer:
        label = f"{online.dataset} online probe"
        if probe.layer and online.split != probe.split:
            label += f" ({online.split})"
        lines.append(_draw_curve(axes, online, STYLE["online"], label))
    colors = STYLE["ood_colors"][len(ood) > 1 :]  # the first is the mean's
    for k, c in enumerate(ood):
        look = STYLE["ood"] | {
            "color": colors[k % len(colors)],
            "linestyle": STYLE["ood_dashes"][k % len(STYLE["ood_dashes"])],
        }
        if len(ood) == 1:
            look |= {"marker": "s", "linewidth": STYLE["ood_mean"]["linewidth"]}
        lines.append(_draw_curve(axes, c, look, f"{c.dataset} {name} (OOD)"))
    if len(ood) > 1:
        common = sorted(set.intersection(*(set(c.layers_only().index.tolist()) for c in ood)))
        values = [c.where(np.isin(c.index, common)).value for c in ood]
        lines += axes.plot(
            common, 100 * np.mean(values, axis=0), label=f"mean of {len(ood)} OOD sets", **STYLE["ood_mean"]
        )
    return lines


def _draw_curve(axes: Axes, c: Curve, look: dict[str, Any], label: str) -> Any:
    layers = c.layers_only()
    (line,) = axes.plot(layers.index, 100 * layers.value, label=label, **_with_marker(look, layers))
    if look is STYLE["id"]:
        low, high = 100 * (layers.value - layers.se), 100 * (layers.value + layers.se)
        axes.fill_between(layers.index, low, high, color=look["color"], **STYLE["error_band"])
    raw = 100 * c.value[c.index == 0]
    # The raw pixels are no layer: a hollow mark, not joined to the line.
    mark = look.get("marker") or "o"
    axes.plot(
        [0] * len(raw),
        raw,
        linestyle="",
        marker=mark,
        markersize=6,
        markerfacecolor="white",
        color=look["color"],
        markeredgewidth=1.6,
        zorder=6,
    )
    return line


def _with_marker(look: dict[str, Any], c: Curve) -> dict[str, Any]:
    """Marks shrink with depth; a curve of one point would be invisible without one."""
    if len(c.index) == 1:
        return look | {"marker": look.get("marker") or "o", "markersize": 7}
    if len(c.index) > 20 and look["linestyle"] != "-":  # many marks hide the dashes
        return look | {"marker": ""}
    return look | {"markersize": 5 if len(c.index) <= 20 else 3}


def _draw_network(axes: Axes, rows: list[Row], own: str | None, split: str, step: int) -> list[Any]:
    value = network_accuracy(rows, own, split, step)
    if not np.isfinite(value):
        return []
    return [axes.axhline(100 * value, label=f"network {100 * value:.1f} %", **STYLE["network"])]


def _draw_tunnel(axes: Axes, starts: dict[str, Tunnel], last: int) -> tuple[list[Any], int]:
    """Shade the tunnel and mark its starts; return what the legend needs and how many lines of marks."""
    patches: list[Any] = []
    right = axes.get_xlim()[1]
    if (start := starts["id95"].start) is not None:
        patches.append(axes.axvspan(start, right, label="tunnel (95 % rule)", **STYLE["tunnel"]))
    marks: dict[int, list[str]] = {}
    for rule, found in starts.items():
        if found.start is not None:
            axes.axvline(found.start, linestyle=STYLE["rule_dashes"][rule], **STYLE["rule"])
            marks.setdefault(found.start, []).append(RULE_LABELS[rule])
    # Labels too near one another go to the next line up. A label is about 8 % of the axis wide, a pair 12 %.
    width = right - axes.get_xlim()[0]
    ends: list[float] = []
    for start, labels in sorted(marks.items()):
        half = width * (0.021 + 0.021 * len(labels))
        level = next((k for k, end in enumerate(ends) if start - half > end), len(ends))
        ends[level : level + 1] = [start + half]
        axes.annotate(
            " · ".join(labels) + " rule",
            (start, 1),
            xycoords=("data", "axes fraction"),
            xytext=(0, 4 + 12 * level),
            textcoords="offset points",
            ha="center",
            **STYLE["rule_label"],
        )
    return patches, len(ends)


def _subtitle(
    rows: list[Row], probe: Curve, ood: list[Curve], starts: dict[str, Tunnel], step: int
) -> list[str]:
    sets = [f"{probe.dataset} {probe.split}".strip()]
    if ood:
        names = ", ".join(c.dataset for c in ood) if len(ood) <= 3 else f"{len(ood)} sets"
        sets.append(f"transfer to {names}")
    lines = textwrap.wrap("  ·  ".join([*sets, f"epoch {rows[0].epoch}, step {step}"]), 120)
    # A tunnel that is not drawn is explained; where 95 % has no start, 98 % would only say it again.
    told = ["id95" if starts["id95"].start is None else "id98", "ood"]
    for found in (starts[rule] for rule in told):
        if found.start is None and found.extractor_length is not None:
            lines += textwrap.wrap(f"{RULE_LABELS[found.rule]} rule: {found.note}", 120)
    return lines


def _style_axes(axes: Axes, label: str, color: str | None = None, grid: bool = True) -> None:
    look = {"color": color} if color else {}
    axes.set_ylabel(label, **(STYLE["label"] | look))
    axes.tick_params(axis="y", length=0, **(STYLE["tick"] | ({"labelcolor": color} if color else {})))
    axes.spines[:].set_visible(False)
    axes.spines["bottom"].set(visible=True, color=STYLE["grid"]["color"])
    axes.set_axisbelow(True)
    if grid:
        axes.grid(axis="y", **STYLE["grid"])


def _accuracy_limits(axes: Axes) -> None:
    low, high = axes.get_ylim()
    low = max(0.0, 10 * np.floor(low / 10))
    high = min(100.0, 10 * np.ceil(high / 10))
    high = max(high, low + 10)
    # Markers at the edge stay whole.
    axes.set_ylim(low - 0.01 * (high - low), high + 0.015 * (high - low))


def _layer_axis(axes: Axes, raw: bool, last: int) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_xlim(-0.6 if raw else 0.4, last + 0.6)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=18, integer=True, steps=[1, 2, 5, 10]))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: "raw\npixels" if x == 0 else f"{x:.0f}"))
    axes.tick_params(axis="x", **STYLE["tick"])
    axes.set_xlabel("layer", labelpad=-7 if raw else 4, **STYLE["label"])  # beside the label of two lines
