"""The page of several runs over one sequence of tasks: seeds of one network, and networks of several depths."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.charts import Chart, Line, Number, Page, Section, Table, escape
from tunnel_lightning.report.continual_layers import OF_EARLIER, TABLE
from tunnel_lightning.report.continual_maps import in_whole_steps
from tunnel_lightning.report.continual_page import details, subtitle
from tunnel_lightning.report.lines import COLORS, DASHES
from tunnel_lightning.report.style import BLUE, ORANGE
from tunnel_lightning.report.words import number, percent
from tunnel_lightning.runs.continual import (
    SECTION,
    ContinualRun,
    at_end,
    average_accuracy,
    forgetting_since_learnt,
)
from tunnel_lightning.runs.continual_group import ContinualGroup

Array = NDArray[np.float64]

CURVES = {
    "drift": ("Drift: what fixed probes lost", "lost (percentage points)", 100),
    "representation_forgetting": ("What refitted probes lost", "lost (percentage points)", 100),
    "all_classes": ("What each layer knows of all classes at the end", "accuracy (%)", 100),
    "unseen": ("Gain for tasks not learnt yet", "gain (percentage points)", 100),
    "cka": ("CKA to the layer as it was", "CKA", 1),
    "rank": ("Numerical rank at the end", "rank (rtol 1e-3)", 1),
}
"""Charts by depth: titles, labels and factors, by column of `ContinualRun.layer_table`."""

LITTLE = 0.01
"""A difference between depths up to this is none."""


def page_of_group(group: ContinualGroup) -> Page:
    """Say what the page of several runs shows: means over the runs that learnt all tasks, and how far they part."""
    if not group.members:
        return Page(group.id, "No run has learnt all its tasks yet", "", [], [], group.notes)
    common = _common(group)
    curves = _curves(group)
    text = (
        "Lines are means over seeds, bands one standard deviation to either side." if _several(group) else ""
    )
    sections = [
        Section("depth", "Depth against forgetting", _against_depth(group)),
        Section("layers", "Layers", curves, text),
        Section("runs", "Runs", [*_depths(group), *_members(group)]),
        Section("table", "All layers", _layers(group)),
        Section("settings", "Settings and versions", details(common), folded=True),
    ]
    sections = [in_whole_steps(section) for section in sections]
    said = subtitle(common)
    return Page(
        group.id,
        headline(group),
        f"{said}  ·  {_count(group)}",
        _numbers(group),
        sections,
        group.notes,
    )


def _common(group: ContinualGroup) -> ContinualRun:
    """The first run without what others have otherwise: seed and depth."""
    first = group.members[0].run
    about = {key: value for key, value in first.about.items() if key != "seed"}
    backbone = about.get("backbone")
    if len(group.depths) > 1 and isinstance(backbone, dict):
        plain = {k: v for k, v in (backbone.get("init_args") or {}).items() if k != "depth"}
        about["backbone"] = {**backbone, "init_args": plain}
    return replace(first, manifest={**first.manifest, SECTION: about})


def _several(group: ContinualGroup) -> bool:
    return any(len(each) > 1 for each in group.depths.values())


def _count(group: ContinualGroup) -> str:
    runs = f"{len(group.members)} run{'s' * (len(group.members) > 1)}"
    return f"{runs}, depths {', '.join(map(str, group.depths))}" if len(group.depths) > 1 else runs


def headline(group: ContinualGroup) -> str:
    """Say what depth does to forgetting, or how far seeds part."""
    kind = _telling(group)
    accuracy, lost = (group.against_depth()[k] for k in kind)
    within = " within each task" if kind[0] == "within" else ""
    depths = list(group.depths)
    if len(depths) == 1:
        said = f"Average accuracy{within} {_spread(accuracy, 0)}"
        return f"{said}, forgotten {_spread(lost, 0)} points, over {len(group.members)} seeds"
    least, most = int(np.argmin(lost[0])), int(np.argmax(lost[0]))
    apart = float(np.hypot(*np.nan_to_num(lost[1][[least, most]])))
    if not lost[0][most] - lost[0][least] > max(LITTLE, apart):
        least, most, who = 0, -1, "Depth hardly matters to forgetting"
    else:
        who = f"Networks of depth {depths[least]} forget least{within}"
    ends = " and ".join(f"{_spread(lost, k)} points at depth {depths[k]}" for k in (least, most))
    return (
        f"{who}: {ends}; average accuracy{within} {_spread(accuracy, least)} and {_spread(accuracy, most)} %"
    )


def _telling(group: ContinualGroup) -> tuple[str, str]:
    """The accuracies that tell depths apart: where one head forgets everything at any depth those within tasks do."""
    found = group.against_depth()
    spread = max(np.ptp(found[k][0]) for k in ("accuracy", "forgetting"))
    known = np.isfinite(found["within"][0]).all() and group.members[0].run.single_head
    return ("within", "within_forgetting") if known and not spread > LITTLE else ("accuracy", "forgetting")


def _spread(found: tuple[Array, Array], k: int) -> str:
    """Mean and deviation in percent, or points."""
    mean, deviation = 100 * found[0][k], 100 * found[1][k]
    return f"{mean:.1f} ± {deviation:.1f}" if np.isfinite(deviation) else f"{mean:.1f}"


def _numbers(group: ContinualGroup) -> list[Number]:
    found = group.against_depth()
    names = {
        "accuracy": "average accuracy",
        "within": "average accuracy within each task",
        "forgetting": "forgotten since learnt",
    }
    if not group.members[0].run.single_head:
        del names["within"]
    cards = []
    for key, label in names.items():
        if np.isfinite(found[key][0]).any():
            unit = " points" if key == "forgetting" else " %"
            at = [f"depth {d}: {_spread(found[key], k)}" for k, d in enumerate(group.depths)]
            value = _spread(found[key], 0) + unit
            if len(at) > 1:
                value = (
                    f"{100 * found[key][0][0]:.1f} \N{RIGHTWARDS ARROW} {100 * found[key][0][-1]:.1f}{unit}"
                )
                label += ", shallowest to deepest"
            cards.append(
                Number(value, label, ", ".join(at) if len(at) > 1 else f"{len(group.members)} seeds")
            )
    return cards


def _against_depth(group: ContinualGroup) -> list[Chart]:
    """Accuracy and forgetting over depth, deviations as bars; nothing for a single depth."""
    if len(group.depths) < 2:
        return []
    found = group.against_depth()
    pairs = {
        "depth_accuracy": ("Accuracy and depth", "average accuracy (%)", "accuracy", "within"),
        "depth_forgetting": (
            "Forgetting and depth",
            "forgotten (percentage points)",
            "forgetting",
            "within_forgetting",
        ),
    }
    note = (
        "After the last task; bars are one standard deviation over seeds."
        if _several(group)
        else "After the last task."
    )
    charts = []
    for key, (title, y, whole, within) in pairs.items():
        lines = _with_bars(group, "of the network", *found[whole], color=BLUE)
        if group.members[0].run.single_head:
            lines += _with_bars(group, "within each task", *found[within], color=ORANGE, dash="dash")
        if lines:
            charts.append(Chart(key, title, lines, "depth (layers)", y, note=note))
    return charts


def _with_bars(group: ContinualGroup, label: str, mean: Array, deviation: Array, **look: Any) -> list[Line]:
    if not np.isfinite(mean).any():
        return []
    depths = np.array(list(group.depths))
    said = [
        f"<b>depth {d}</b><br>{label}: {percent(float(m))}"
        + (f" ± {100 * s:.1f}, {len(group.depths[d])} seeds" if np.isfinite(s) else "")
        for d, m, s in zip(depths.tolist(), mean, deviation, strict=True)
    ]
    lines = [Line(label, depths, 100 * mean, said, marker="circle", **look)]
    for d, m, s in zip(depths, 100 * mean, 100 * deviation, strict=True):
        if np.isfinite(s):
            bar = {**look, "dash": "solid", "width": 1.4, "legend": False}
            lines.append(Line(label, np.array([d, d]), np.array([m - s, m + s]), **bar))
    return lines


def _curves(group: ContinualGroup) -> list[Chart]:
    """Means over seeds by layer, a line for each depth."""
    tables = {depth: group.layer_tables(depth) for depth in group.depths}
    charts = []
    for column, (title, y, scale) in CURVES.items():
        lines = []
        for k, depth in enumerate(group.depths):
            mean, deviation = (scale * each for each in tables[depth][column])
            if np.isfinite(mean).any():
                label = f"depth {depth}" if len(group.depths) > 1 else "mean"
                lines.append(_curve(group, depth, label, mean, deviation, k))
        note = OF_EARLIER if column not in ("all_classes", "unseen") else ""
        if lines:
            charts.append(Chart(f"layers_{column}", title, lines, y=y, note=note))
    return charts


def _curve(group: ContinualGroup, depth: int, label: str, mean: Array, deviation: Array, k: int) -> Line:
    layers = group.depths[depth][0].run.layers
    spread = np.isfinite(deviation).all()
    said = [
        f"<b>layer {i}: {escape(layer)}</b><br>{label}: {number(float(m))}"
        + (f" ± {number(float(s))}, {len(group.depths[depth])} seeds" if spread else "")
        for (i, layer), m, s in zip(layers.items(), mean, deviation, strict=True)
    ]
    band: dict[str, Any] = {"low": mean - deviation, "high": mean + deviation} if spread else {}
    look: dict[str, Any] = {
        "color": COLORS[k % len(COLORS)],
        "dash": DASHES[k % len(DASHES)],
        "marker": "circle",
    }
    return Line(label, np.array(list(layers)), mean, said, **look, **band)


def _depths(group: ContinualGroup) -> list[Table]:
    if len(group.depths) < 2 and not _several(group):
        return []
    found = {k: v for k, v in group.against_depth().items() if np.isfinite(v[0]).any()}
    names = {
        "accuracy": "accuracy %",
        "forgetting": "forgotten %",
        "within": "within tasks %",
        "within_forgetting": "forgotten within %",
    }
    heads = ["depth", "runs", *(head for key in found for head in (names[key], f"± {names[key]}"))]
    lines = [
        [depth, len(each), *(float(100 * part[k]) for pair in found.values() for part in pair)]
        for k, (depth, each) in enumerate(group.depths.items())
    ]
    note = "Means and standard deviations over seeds, after the last task."
    return [Table("by_depth", "By depth", heads, lines, note)]


def _members(group: ContinualGroup) -> list[Table]:
    lines = []
    for member in group.members:
        network, within = member.run.network(), member.run.network("within")
        values = [
            f(accuracy) for accuracy in (network, within) for f in (average_accuracy, forgetting_since_learnt)
        ]
        moved = member.run.layer_table()["drift"]
        worst = float(np.nanmax(moved)) if np.isfinite(moved).any() else float("nan")
        lines.append(
            [member.run.id, member.depth, member.seed, *(100 * at_end(v) for v in values), 100 * worst]
        )
    heads = [
        "run",
        "depth",
        "seed",
        "accuracy %",
        "forgotten %",
        "within tasks %",
        "forgotten within %",
        "most drift %",
    ]
    return [Table("members", "Each run", heads, lines)]


def _layers(group: ContinualGroup) -> list[Table]:
    """Means and deviations of every layer at every depth."""
    tables = {depth: group.layer_tables(depth) for depth in group.depths}
    there = [k for k in TABLE if any(np.isfinite(table[k][0]).any() for table in tables.values())]
    if not there:
        return []
    spread = _several(group)
    lines = []
    for depth, table in tables.items():
        for k, (index, layer) in enumerate(group.depths[depth][0].run.layers.items()):
            values = (TABLE[c][1] * part[k] for c in there for part in table[c][: 1 + spread])
            lines.append([depth, index, layer, *(float(v) if np.isfinite(v) else None for v in values)])
    heads = [head for c in there for head in ([TABLE[c][0], f"± {TABLE[c][0]}"] if spread else [TABLE[c][0]])]
    note = f"{OF_EARLIER} Losses and gains in percentage points; ± one standard deviation over seeds."
    return [Table("all_layers", "Every layer at the end", ["depth", "#", "layer", *heads], lines, note)]
