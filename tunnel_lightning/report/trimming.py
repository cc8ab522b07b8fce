"""What ``trim`` found: sections of the page, and a table and a sentence in the terminal."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunnel_lightning.report.charts import Chart, Item, Line, Mark, Section, Table, escape
from tunnel_lightning.report.style import BLUE, GREEN, GREY, INK, ORANGE, STYLE, VERMILION
from tunnel_lightning.report.terminal import SHORT, Column, fitted
from tunnel_lightning.report.trimming_exits import exit_items, exits_words
from tunnel_lightning.report.trimming_words import certificate, headline, share_of, times_faster, tuned
from tunnel_lightning.report.words import interval, percent
from tunnel_lightning.runs.trimming import Trimming, load_trimming, trim_folder
from tunnel_lightning.runs.trimming_exits import exits_folder, load_exits

if TYPE_CHECKING:
    from rich.console import Console

LOOKS = ((BLUE, "solid"), (ORANGE, "dash"))
"""Of latencies, by size of batch."""


def sections_of(home: str | Path) -> list[Section]:
    """The sections of a run's page on its trim; none where there is no finished one.

    Args:
        home: the run folder, or the folder of the trim.

    Raises:
        RunError: a file of it can't be read.

    Example:
        >>> import tempfile
        >>> sections_of(tempfile.mkdtemp())
        []
    """
    if trim_folder(home) is None:
        return []
    found = load_trimming(home)
    said = headline(found)
    text = " ".join(
        filter(None, (said[0].upper() + said[1:] + ".", certificate(found), tuned(found), _about(found)))
    )
    costs = against_cost(found)
    items: list[Item] = [*costs[:1], *over_depth(found), *costs[1:], *latency(found), *exit_items(found.path)]
    items += cuts(found)
    return [Section("trim", "Cutting the tunnel away", items, text)]


def against_cost(found: Trimming) -> list[Chart]:
    """Accuracy against FLOPs, and against time where it was measured, with what no other cut beats."""
    charts = [_cost_chart(found, "flops", "front", "trim_flops", "FLOPs")]
    for size in found.batches[-1:]:
        what = f"time for {size} images"
        charts.append(_cost_chart(found, f"latency_ms_{size}", f"front_latency_{size}", "trim_time", what))
    return [chart for chart in charts if chart.lines]


def _cost_chart(found: Trimming, column: str, front: str, key: str, what: str) -> Chart:
    accuracy, cost = 100 * found.curve["accuracy"], found.curve[column]
    share = cost / cost[-1]
    lines = []
    shown = np.flatnonzero(np.isfinite(accuracy) & np.isfinite(share) & (share <= 1.02) & found.cuts)
    best = np.array(
        [k for k in np.flatnonzero(found.curve.get(front, 0) == 1) if math.isfinite(accuracy[k])], dtype=int
    )
    best = best[np.argsort(share[best])]
    if not len(shown):
        return Chart(key, "", [])
    if len(best) > 1:
        lines.append(
            Line(
                "best for its cost (Pareto front)",
                share[best],
                accuracy[best],
                _hover(found, best),
                GREEN,
                "solid",
                2.0,
            )
        )
    lines.append(
        Line("a cut", share[shown], accuracy[shown], _hover(found, shown), BLUE, width=0, marker="circle")
    )
    last = len(accuracy) - 1
    if math.isfinite(accuracy[last]):
        at = np.array([last])
        lines.append(
            Line(
                "the whole network",
                share[at],
                accuracy[at],
                _hover(found, at),
                INK,
                width=0,
                marker="square-open",
            )
        )
    marks = []
    if (line := found.chosen) is not None and share[line] <= 1.02:
        at = np.array([line])
        lines.append(
            Line(
                "the cut taken",
                share[at],
                accuracy[at],
                _hover(found, at),
                VERMILION,
                width=0,
                marker="square-open",
            )
        )
        marks.append(Mark(float(share[line]), f"layer {line}"))
    lines += _asked(found, np.array([0.0, 1.02]))
    return Chart(
        key,
        f"Accuracy against {what}",
        lines,
        x=f"{what}, share of the whole network's",
        y="test accuracy (%)",
        relative=True,
        marks=marks,
        note="Each point is the real network cut behind one layer, with a head there. "
        + (
            "FLOPs are counted in that network."
            if column == "flops"
            else "Times are medians over interleaved turns."
        ),
        wide=column == "flops",
    )


def _asked(found: Trimming, x: np.ndarray) -> list[Line]:
    """The accuracy that was asked for, as a dotted line."""
    kept, whole = found.summary.get("certificate") or {}, found.summary.get("whole") or {}
    keep = kept.get("keep") or (found.summary.get("choice") or {}).get("keep")
    if keep is None or whole.get("accuracy") is None:
        return []
    text = f"{100 * keep:.4g} % of the whole network's"
    return [Line(text, x, np.full(2, 100 * keep * whole["accuracy"]), [text] * 2, GREY, "dot", 1.4)]


def over_depth(found: Trimming) -> list[Chart]:
    """Accuracy and transfer over depth, beside what the cut there costs."""
    cuts = np.flatnonzero(found.cuts)
    lines = []
    for k, (name, column) in enumerate(
        [("own classes", "accuracy"), *((n, f"transfer:{n}") for n in found.sets)]
    ):
        values = 100 * found.curve[column][cuts]
        if not np.isfinite(values).any():
            continue
        se = 100 * found.curve["se" if column == "accuracy" else f"transfer_se:{name}"][cuts]
        color = BLUE if not k else STYLE["ood_colors"][(k - 1) % len(STYLE["ood_colors"])]
        label = f"{found.summary.get('dataset') or name}" if not k else f"transfer to {name}"
        lines.append(
            Line(
                label,
                cuts,
                values,
                _hover(found, cuts, column, label),
                color,
                ("solid", "dash", "dot", "dashdot")[min(k, 3)],
                2.4 if not k else 1.8,
                "circle" if not k else "square",
                low=values - se,
                high=values + se,
            )
        )
    if not lines:
        return []
    cost = 100 * found.curve["flops"][cuts] / found.curve["flops"][-1]
    lines.append(Line("FLOPs of the cut", cuts, cost, _hover(found, cuts), GREEN, "dashdot", 1.6, right=True))
    lines += _asked(found, np.array([0.5, len(cuts) + 0.5]))
    line = found.chosen
    return [
        Chart(
            "trim_depth",
            "What a cut behind each layer knows, and what it costs",
            lines,
            x="layer that the network is cut behind",
            y="test accuracy (%)",
            right="FLOPs, % of the whole network's",
            marks=[Mark(line, "cut")] if line is not None else [],
            shade=(line + 0.5, "cut away") if line is not None else None,
            note="Heads are fitted on training images; the band is one standard error.",
            wide=True,
        )
    ]


def latency(found: Trimming) -> list[Chart]:
    """How many times faster each cut is, with the quartiles of the paired turns."""
    cuts = np.flatnonzero(found.cuts)
    lines = []
    for (color, dash), size in zip(LOOKS, found.batches, strict=False):
        values = found.curve[f"speedup_{size}"][cuts]
        said = [
            "<br>".join(
                [
                    f"<b>layer {k}: {escape(found.curve['layer'][k])}</b>",
                    f"batch {size}: {times_faster(value)} (quartiles {found.at(f'speedup_low_{size}', k):.2f} to "
                    f"{found.at(f'speedup_high_{size}', k):.2f})",
                    f"{_ms(found.at(f'latency_ms_{size}', k))}, the whole network "
                    f"{_ms(found.at(f'latency_ms_{size}', -1))}",
                ]
            )
            for k, value in zip(map(int, cuts), values, strict=True)
        ]
        low, high = (found.curve[f"speedup_{end}_{size}"][cuts] for end in ("low", "high"))
        lines.append(Line(f"batch {size}", cuts, values, said, color, dash, 2.0, "circle", low, high))
    if not lines:
        return []
    text = "as fast as the whole network"
    ends = np.array([0.5, len(cuts) + 0.5])
    lines.append(Line(text, ends, np.ones(2), [text] * 2, INK, "dot", 1.4))
    line = found.chosen
    return [
        Chart(
            "trim_latency",
            "How much faster",
            lines,
            x="layer that the network is cut behind",
            y="times faster than the whole network",
            log_y=True,
            marks=[Mark(line, "cut")] if line is not None else [],
            note=f"Measured, not computed: {_conditions(found)}. The band lies between the quartiles.",
        )
    ]


def _conditions(found: Trimming) -> str:
    stated = found.summary.get("latency") or {}
    machine = stated.get("conditions") or {}
    where = machine.get("device_name") or machine.get("processor") or "this machine"
    threads = machine.get("threads")
    turns = ", ".join(f"{n} turns of {size}" for size, n in (stated.get("turns") or {}).items())
    return (
        f"{where}, {machine.get('device', 'cpu')}"
        + (f", {threads} threads" if threads else "")
        + f", {turns} images"
    )


def cuts(found: Trimming) -> list[Table]:
    """Every cut with every figure."""
    sizes, sets, last = found.batches, found.sets, len(found.curve["layer"]) - 1
    heads = ["#", "layer", "cut", "FLOPs %", "accuracy %", "kept %", *(f"{name} %" for name in sets)]
    heads += [f"times faster, batch {size}" for size in sizes] + [f"ms, batch {size}" for size in sizes]
    heads += ["95 % interval", "validation %", "ECE %", "MFLOPs", "parameters", "head"]
    whole = (found.summary.get("whole") or {}).get("accuracy") or math.nan
    n = found.summary.get("test_images") or 0
    lines = []
    for k, name in enumerate(found.curve["layer"]):
        accuracy = found.at("accuracy", k)
        cell = {0: "raw pixels", last: "the whole network"}.get(k, name)
        best = "best for its cost" if 0 < k < last and found.at("front", k) == 1 else None
        lines.append(
            [
                k, cell, "taken" if k == found.chosen else best,
                100 * found.at("flops", k) / found.at("flops", -1), 100 * accuracy, 100 * accuracy / whole,
                *(100 * found.at(f"transfer:{each}", k) for each in sets),
                *(found.at(f"speedup_{size}", k) for size in sizes),
                *(found.at(f"latency_ms_{size}", k) for size in sizes),
                interval(accuracy, n) or None, 100 * found.at("val_accuracy", k), 100 * found.at("ece", k),
                found.at("flops", k) / 1e6, _whole(found.at("parameters", k)), found.curve["head"][k] or None,
            ]
        )  # fmt: skip
    note = (
        "Line 0 is a linear classifier of the raw pixels. Kept: test accuracy over that of the whole network. Best "
        "for its cost: no cut of fewer FLOPs is as accurate on test images. ECE: calibration error in 15 bins, "
        "heads scaled by one temperature each (Guo et al., 2017)."
    )
    return [Table("trim_cuts", "Every cut", heads, lines, note)]


def _about(found: Trimming) -> str:
    """What is written."""
    files = found.summary.get("files") or {}
    there = [name for name in ("checkpoints/last.ckpt", "weights.pt", "cut.pt2", "cut.onnx") if name in files]
    if not there:
        return ""
    card = "; MODEL_CARD.md says how to load them" if "MODEL_CARD.md" in files else ""
    return f"Written into {found.path.name}/: {', '.join(there)}{card}."


def print_trimming(found: Trimming, console: Console | None = None) -> None:
    """Print the cuts as a table, what was taken, what it keeps, and where the files are.

    Args:
        found: the trim.
        console: default: standard output, 80 columns where it is no terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print()
    console.print(Text(f"{found.summary.get('run_id')}: every cut, on test images", style="bold"))
    styles = ["dim" if not k else None for k in range(len(found.curve["layer"]))]
    styles[-1] = "bold"
    if found.chosen is not None:
        styles[found.chosen] = "bold cyan"
    table, left_out = fitted(_columns(found), console, styles=styles, ends={len(styles) - 2})
    console.print(table, crop=False)
    if left_out:
        console.print(
            Text(f"no room here, but on the page: {', '.join(c.name for c in left_out)}", style="dim")
        )
    console.print()
    exits = exits_words(load_exits(found.path)) if exits_folder(found.path) else ""
    for said in filter(None, (headline(found), certificate(found), tuned(found), exits)):
        console.print(Text(said))
        console.print()
    for name, what in (("table", "curve.csv"), *((name, name) for name in found.summary.get("files") or {})):
        console.print(Text(f"{name if name == 'table' else '':<13}{found.path / what}"), soft_wrap=True)
    for note in found.summary.get("notes") or []:
        console.print(Text(f"note: {note}", style="dim"))


def _columns(found: Trimming) -> list[Column]:
    curve, last = found.curve, len(found.curve["layer"]) - 1
    names = ["raw pixels", *curve["layer"][1:last], "network"]
    marks = ["taken" if k == found.chosen else "" for k in range(last + 1)]
    flops = 100 * curve["flops"] / curve["flops"][-1]
    whole = (found.summary.get("whole") or {}).get("accuracy") or math.nan
    columns = [
        Column("#", "#", [*(str(k) for k in range(last)), ""]),
        Column("layer", "layer", names, right=False, names=True),
        Column("FLOPs %", "FLOPs\n%", _cells(flops), 0),
        Column("accuracy %", "accuracy\n%", _cells(100 * curve["accuracy"]), 0),
        Column("kept %", "kept\n%", _cells(100 * curve["accuracy"] / whole), 1),
    ]
    for size in reversed(found.batches):
        head = f"faster\nb={size}"
        columns.append(
            Column(
                f"times faster at batch {size}",
                head,
                _cells(curve[f"speedup_{size}"], 2),
                3 if size > 1 else 5,
            )
        )
    for k, name in enumerate(found.sets):
        head = f"{name[:10]}\n%"
        columns.append(
            Column(
                f"{name} %",
                head,
                _cells(100 * curve[f"transfer:{name}"]),
                2 if not k else 6,
                SHORT if k else 8,
            )
        )
    if any(marks):
        columns.append(Column("taken", "", marks, 4, right=False))
    return columns


def _cells(values: Sequence[float] | np.ndarray, digits: int = 1) -> list[str]:
    return [f"{value:.{digits}f}" if math.isfinite(value) else "-" for value in values]


def _hover(
    found: Trimming, lines: np.ndarray, column: str = "accuracy", label: str = "test accuracy"
) -> list[str]:
    last = len(found.curve["layer"]) - 1
    said = []
    for k in lines:
        name = "the whole network" if k == last else f"layer {k}: {escape(found.curve['layer'][k])}"
        parts = [
            f"<b>{name}</b>",
            f"{escape(label)}: {percent(found.at(column, k))}",
            f"{share_of(found, k, 'flops')} of the FLOPs",
        ]
        for size in found.batches:
            parts.append(f"batch {size}: {_ms(found.at(f'latency_ms_{size}', k))}")
        said.append("<br>".join(parts))
    return said


def _ms(value: float) -> str:
    return f"{value:.3g} ms" if math.isfinite(value) else "not measured"


def _whole(value: float) -> int | None:
    return int(value) if math.isfinite(value) else None
