"""Charts of an ablation: what is left over depth, over checkpoints, over blocks and over cuts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from tunnel_lightning.report.ablation_words import chance_of, rule_words
from tunnel_lightning.report.charts import Chart, Line, Map, Mark, Table, escape
from tunnel_lightning.report.lines import COLORS, DASHES, line
from tunnel_lightning.report.source import read_source
from tunnel_lightning.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RULE_LABELS, SKY, VERMILION
from tunnel_lightning.report.words import interval, percent
from tunnel_lightning.runs import RunError, curve
from tunnel_lightning.runs.ablation import Ablation, Effect

ORIGINS = {
    "initial": ("its first weights", BLUE, "solid"),
    "drawn anew": ("weights drawn anew", ORANGE, "dash"),
}
"""Whence the weights of a reset are: in words, colour and dash."""


def _marks(found: Ablation, cut: bool = False) -> list[Mark]:
    """The tunnel's start by each rule; rules that agree share a mark. Of a cut, the layer before."""
    names: dict[int, list[str]] = {}
    for rule, start in ((found.summary.get("tunnel") or {}).get("starts") or {}).items():
        names.setdefault(int(start) - cut, []).append(rule)
    dashes = {"id95": "solid", "id98": "dash", "ood": "dot"}
    return [
        Mark(at, " · ".join(RULE_LABELS.get(rule, rule) for rule in rules), dashes.get(rules[0], "solid"))
        for at, rules in sorted(names.items())
    ]


def _said(row: Effect, what: str) -> str:
    value = f"{percent(row.value)} (95 % interval {interval(row.value, row.n)})"
    return f"<b>{escape(row.layers)}</b><br>{escape(what)}: {value}"


def _over(rows: Sequence[Effect], label: str, color: str | float, **look: Any) -> Line:
    """A line over the first layer of each row."""
    return Line(
        label,
        np.array([row.first for row in rows]),
        100 * np.array([row.value for row in rows]),
        [_said(row, label) for row in rows],
        color,
        **{"marker": "circle", **look},
    )


def _level(found: Ablation, last: int, first: int = 1) -> list[Line]:
    """The intact network's accuracy and chance, as lines across."""
    whole, chance = found.intact(found.main), chance_of(found)
    ends = np.array([first, last])
    lines = []
    if whole is not None:
        label = "as it is"
        lines.append(
            Line(label, ends, np.full(2, 100 * whole.value), [_said(whole, label)] * 2, INK, "dot", 1.3)
        )
    if chance:
        lines.append(
            Line(
                "chance", ends, np.full(2, 100 * chance), [f"chance: {percent(chance)}"] * 2, GREY, "dot", 1.0
            )
        )
    return lines


def _axis(found: Ablation) -> str:
    return "accuracy (%)" if found.main == "accuracy" else "answers as the intact network (%)"


def depth(found: Ablation, home: Path) -> list[Chart]:
    """Accuracy after the reset of each layer alone and of everything from it on, beside what a probe reads there."""
    lines: list[Line] = []
    variants = list(dict.fromkeys(row.variant for row in found.pick(found.main, kind="reset", scope="layer")))
    for variant in variants:
        name, color, dash = ORIGINS.get(variant, (variant, PURPLE, "dot"))
        shown = variant == variants[0]
        alone = found.pick(found.main, kind="reset", scope="layer", variant=variant)
        behind = found.pick(found.main, kind="reset", scope="from", variant=variant)
        lines.append(_over(alone, f"this layer alone to {name}", color, dash=dash, width=2.6, shown=shown))
        look = {"dash": dash, "marker": "square", "shown": shown}
        lines.append(_over(behind, f"it and all behind it to {name}", VERMILION if shown else PURPLE, **look))
        for rows, label, other in (
            (alone, "this layer alone", SKY),
            (behind, "it and all behind it", PURPLE),
        ):
            again = found.pick(
                found.main, kind="reset", scope=rows[0].scope, variant=variant, statistics="estimated"
            )
            if again:
                look = {"dash": "dashdot", "shown": False, "marker": "circle-open"}
                lines.append(_over(again, f"{label} to {name}, statistics estimated", other, **look))
    if not lines:
        return []
    last = max(int(each.x.max()) for each in lines)
    return [
        Chart(
            "ablation_reset",
            "Layers put back to what they were before training",
            [*lines, *_probe(home, last), *_level(found, last)],
            y=_axis(found),
            marks=_marks(found),
            note="No training afterwards; the head stays. Vertical: where the tunnel starts, by each rule.",
            wide=True,
        )
    ]


def _probe(home: Path, last: int) -> list[Line]:
    """The depth profile's probe, where the run has one of the same layers."""
    try:
        source = read_source(home)
    except RunError:
        return []
    found = curve(source.rows, dataset=source.own)
    if not found.layer or int(found.index.max()) > last + 1:
        return []
    return [line(found, "linear probe on this layer (nothing reset)", GREEN, dash="dash", marker="")]


def rewinds(found: Ablation) -> list[Map | Chart]:
    """Layers against checkpoints, and tunnel and extractor over checkpoints."""
    alone = found.pick(found.main, kind="rewind", scope="layer")
    first = found.pick(found.main, kind="reset", scope="layer")
    if not alone:
        return []
    columns = list(dict.fromkeys(row.variant for row in [*first, *alone]))
    layers = {row.first: row.layers for row in [*first, *alone]}
    value = np.full((len(layers), len(columns)), np.nan)
    for row in [*first, *alone]:
        value[list(layers).index(row.first), columns.index(row.variant)] = 100 * row.value
    whole = found.intact(found.main)
    result: list[Map | Chart] = [
        Map(
            "ablation_rewind",
            "Each layer alone, put back to a checkpoint",
            columns,
            [f"{index}: {name}" for index, name in layers.items()],
            value,
            unit=" %",
            x="put back to",
            y="layer",
            limits=(0.0, float(np.nanmax([100 * whole.value if whole else 0.0, *value.flat]))),
            note="Accuracy after putting one layer back, nothing else changed (Zhang et al., Are all layers created "
            "equal, 2019). Bright to the left: the layer need not have been trained.",
        )
    ]
    lines = []
    wholes = [*found.pick(found.main, kind="reset"), *found.pick(found.main, kind="rewind")]
    kinds = [
        ("tunnel", (VERMILION, ORANGE, PURPLE), "solid", "square"),
        ("extractor", (BLUE, SKY, GREEN), "dash", "circle"),
    ]
    for scope, colors, dash, marker in kinds:
        inside = [row for row in wholes if row.scope == scope]
        rules = dict.fromkeys(row.variant.rpartition("; ")[2] for row in inside)
        for k, rule in enumerate(rules):
            rows = [row for row in inside if row.variant.rpartition("; ")[2] == rule]
            x = np.array([columns.index(row.variant.rpartition("; ")[0]) for row in rows])
            label = f"{scope} ({rows[0].layers}), {rule_words(rule)}"
            y = 100 * np.array([row.value for row in rows])
            said = [_said(row, row.variant) for row in rows]
            lines.append(Line(label, x, y, said, colors[k % 3], dash, marker=marker))
    if lines:
        result.append(
            Chart(
                "ablation_rewind_whole",
                "The tunnel or the extractor as a whole, put back to a checkpoint",
                [*lines, *_level(found, len(columns) - 1, 0)],
                x="put back to",
                y=_axis(found),
                ticks=dict(enumerate(columns)),
                note="How soon a part has found what the rest of the last network works with.",
            )
        )
    return result


def blocks(found: Ablation) -> list[Chart]:
    """What each residual block costs, beside how much it changes."""
    rows = found.pick(found.main, kind="delete", scope="block")
    if not rows:
        return []
    lines = [_over(rows, "without this block", BLUE, width=2.6)]
    if again := found.pick(found.main, kind="delete", scope="block", statistics="estimated"):
        lines.append(
            _over(again, "without it, statistics estimated", SKY, dash="dashdot", marker="circle-open")
        )
    known = {block["index"]: block for block in found.summary.get("blocks") or []}
    cka = [known.get(row.first, {}).get("cka") for row in rows]
    values = np.array([math.nan if each is None else 1 - float(each) for each in cka])
    if np.isfinite(values).any():
        said = [
            f"<b>{escape(row.layers)}</b><br>1 - CKA: {value:.3f}"
            for row, value in zip(rows, values, strict=True)
        ]
        x = np.array([row.first for row in rows])
        lines.append(
            Line(
                "how much it changes, 1 - CKA (right)",
                x,
                values,
                said,
                GREEN,
                "dash",
                marker="square",
                right=True,
            )
        )
    breaks = [
        Mark(row.first - 0.5, row.variant, "dot")
        for before, row in pairwise(rows)
        if before.variant != row.variant
    ]
    note = "The branch is deleted and the skip path stays, a projection where the shape changes; no training."
    structure = found.summary.get("structure") or {}
    if structure.get("sentence"):
        note += f" {structure['sentence'][0].upper()}{structure['sentence'][1:]}."
    return [
        Chart(
            "ablation_blocks", "Residual blocks deleted one by one", [*lines, *_level(found, rows[-1].first)],
            x="residual block", y=_axis(found), right="1 - CKA", marks=breaks, note=note,
        )
    ]  # fmt: skip


def stages(found: Ablation) -> list[Chart]:
    """The last blocks of each stage deleted, one more at a time."""
    rows = found.pick(found.main, kind="delete", scope="stage")
    lines = []
    for k, stage in enumerate(dict.fromkeys(row.variant for row in rows)):
        inside = [row for row in rows if row.variant == stage]
        x = np.array([row.last - row.first + 1 for row in inside])
        said = [_said(row, f"{stage}, {n} deleted") for row, n in zip(inside, x, strict=True)]
        y = 100 * np.array([row.value for row in inside])
        lines.append(Line(stage, x, y, said, COLORS[k % 10], DASHES[k % 4], marker="circle"))
    if not lines:
        return []
    last = max(int(each.x.max()) for each in lines)
    note = "From the end of each stage, the block that changes the shape last (Nguyen et al., 2021)."
    return [
        Chart(
            "ablation_stages", "The last blocks of a stage deleted", [*lines, *_level(found, last)],
            x="blocks deleted", y=_axis(found), note=note,
        )
    ]  # fmt: skip


def swaps(found: Ablation) -> list[Chart]:
    """Two runs cut and put together crosswise, and single layers of the other."""
    cuts = found.pick(found.main, kind="swap", scope="cut")
    if not cuts:
        return []
    looks = {"E1T2": ("this extractor under the other tunnel", BLUE, "solid", "circle"),
             "E2T1": ("the other extractor under this tunnel", VERMILION, "dash", "square")}  # fmt: skip
    lines = [
        _over([row for row in cuts if row.variant == variant], label, color, dash=dash, marker=marker)
        for variant, (label, color, dash, marker) in looks.items()
    ]
    alone = found.pick(found.main, kind="swap", scope="layer")
    lines.append(
        _over(alone, "this network with one layer of the other", GREEN, dash="dot", marker="circle-open")
    )
    for variant, (label, color, _, _) in looks.items():
        if again := found.pick(found.main, kind="swap", scope="cut", variant=variant, statistics="estimated"):
            look = {"dash": "dashdot", "shown": False, "marker": "circle-open"}
            lines.append(_over(again, f"{label}, statistics estimated", color, **look))
    last = max(row.first for row in cuts)
    other = alone[0].variant if alone else "the other run"
    return [
        Chart(
            "ablation_swaps", f"Layers swapped with {other}", [*lines, *_level(found, last)],
            x="cut behind layer (of one layer: that layer)", y=_axis(found), marks=_marks(found, cut=True),
            note="The head goes with the tunnel. Vertical: the cut in front of the tunnel, by each rule.",
        )
    ]  # fmt: skip


def retrained(found: Ablation) -> list[Table]:
    """What parts of the network reach when they learn again."""
    rows = found.pick(found.main, kind="retrain")
    if not rows:
        return []
    epochs = (found.summary.get("settings") or {}).get("retrain_epochs")
    asks = found.summary.get("retrained") or {}
    columns = ["training", f"{found.main} %", "±", "learns", "what for"]
    lines: list[list[Any]] = []
    for row in rows:
        name = row.variant.rpartition("; ")[0]
        lines.append([name, 100 * row.value, 100 * row.se, row.layers, asks.get(name)])
    return [
        Table(
            "ablation_retrain", f"Parts trained again for {epochs} epochs", columns, lines,
            f"With the run's own optimizer and schedule; the tunnel by {rule_words(rows[0].variant)}.",
        )
    ]  # fmt: skip
