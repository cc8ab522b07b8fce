"""What early exits give: charts and a table for the page of a run that was trimmed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tunnel_lightning.report.charts import Chart, Item, Line, Mark, Table, escape
from tunnel_lightning.report.style import BLUE, GREEN, GREY, INK, VERMILION
from tunnel_lightning.report.words import number, percent
from tunnel_lightning.runs.trimming import load_trimming, trim_folder
from tunnel_lightning.runs.trimming_exits import EarlyExits, exits_folder, load_exits

END = "the whole network"


def exit_items(home: str | Path) -> list[Item]:
    """Accuracy against mean cost with the single cuts beside, and where images leave; none without early exits.

    Args:
        home: the run folder, or the folder of the trim.

    Raises:
        RunError: a file can't be read.

    Example:
        >>> import tempfile
        >>> exit_items(tempfile.mkdtemp())
        []
    """
    if exits_folder(home) is None:
        return []
    found = load_exits(home)
    return [_against_cost(found, Path(home)), _leaving(found), _table(found)]


def exits_words(found: EarlyExits) -> str:
    """What the network with early exits keeps and saves, in a sentence or two.

    Args:
        found: as it was measured.
    """
    said, kept, chosen = found.summary, found.summary["certificate"], found.summary["chosen"]
    speeds = {size: each["speedup"][0] for size, each in (said.get("latency") or {}).items()}
    faster = " and ".join(
        f"{speed:.2f} times as fast for {'one image' if size == '1' else f'{size} at once'}"
        for size, speed in speeds.items()
    )
    cost = f"{percent(chosen['flops_share'])} of the FLOPs on average" + (
        f", {faster} as the whole network" if faster else ""
    )
    end = ", at the last of them in any case" if said["ends"] else ""
    text = (
        f"Early exits at {', '.join(said['layers'])}: an image leaves at the first that is more than "
        f"{100 * said['threshold']:.1f} % sure{end}. {percent(kept['value'])} of the accuracy (95 % interval "
        f"{_span(kept)}) at {cost}."
    )
    if kept.get("verdict") == "failed":
        text += f" Less than the {100 * said['keep']:.4g} % asked for, though validation images promised it."
    elif kept.get("verdict") == "likely":
        text += f" The interval reaches below the {100 * said['keep']:.4g} % asked for."
    lost = said["overthinking"]["overthinking"]
    return f"{text} Of {percent(lost)} of the images some exit is right and the network itself is not."


def _span(kept: dict[str, Any]) -> str:
    return f"{100 * kept['low']:.1f} to {100 * kept['high']:.1f}"


def _against_cost(found: EarlyExits, home: Path) -> Chart:
    """The thresholds as a line; the single cuts of the same trim as points."""
    said, curve = found.summary, found.curve
    whole = said["whole"]["flops"]
    lines = []
    for ends, label, dash in (
        (0, "early exits", "solid"),
        (1, "early exits, cut away behind the last", "dash"),
    ):
        here = np.flatnonzero(curve["ends"] == ends)
        order = here[np.argsort(curve["flops"][here], kind="stable")]
        x, y = curve["flops"][order] / whole, 100 * curve["accuracy"][order]
        hover = [
            f"<b>threshold {t:.4f}</b><br>{a:.1f} % right at {100 * f:.1f} % of the FLOPs"
            for t, a, f in zip(curve["threshold"][order], y, x, strict=True)
        ]
        lines.append(Line(label, x, y, hover, VERMILION, dash, 2.0))
    if (folder := trim_folder(home)) is not None:
        cuts = load_trimming(folder)
        share, accuracy = cuts.curve["flops"] / whole, 100 * cuts.curve["accuracy"]
        shown = np.flatnonzero(cuts.cuts & np.isfinite(accuracy) & (share <= 1.02))
        names = [
            f"<b>cut behind {escape(cuts.curve['layer'][k])}</b><br>{accuracy[k]:.1f} % right at "
            f"{100 * share[k]:.1f} % of the FLOPs"
            for k in shown
        ]
        lines.append(
            Line("a single cut", share[shown], accuracy[shown], names, BLUE, width=0, marker="circle")
        )
    chosen = said["chosen"]
    at = np.array([chosen["flops_share"]]), np.array([100 * chosen["accuracy"]])
    lines.append(
        Line(
            "the threshold taken",
            *at,
            [f"threshold {said['threshold']:.4f}"],
            VERMILION,
            width=0,
            marker="square",
        )
    )
    best = 100 * said["whole"]["accuracy"]
    lines.append(Line(END, np.ones(1), np.array([best]), [END], INK, width=0, marker="square-open"))
    text = f"{100 * said['keep']:.4g} % of the whole network's"
    lines.append(
        Line(text, np.array([0.0, 1.02]), np.full(2, said["keep"] * best), [text] * 2, GREY, "dot", 1.4)
    )
    return Chart(
        "trim_exits",
        "Early exits: accuracy against mean cost",
        lines,
        x="mean FLOPs of an image, share of the whole network's",
        y="test accuracy (%)",
        relative=True,
        marks=[Mark(chosen["flops_share"], f"threshold {said['threshold']:.3f}")],
        note=exits_words(found)
        + " Layers and threshold were chosen on validation images, the lines are of test images.",
        wide=True,
    )


def _leaving(found: EarlyExits) -> Chart:
    """Share of the images that leave at each exit, and how many of them are answered right."""
    said = found.summary
    names = [*said["layers"], END]
    places = np.arange(1, len(names) + 1)
    share = 100 * np.array(said["leaving"], dtype=float)
    right = np.array([math.nan if value is None else 100 * value for value in said["right_at"]])
    hover = [f"<b>{escape(name)}</b><br>{s:.1f} % leave here" for name, s in zip(names, share, strict=True)]
    told = [
        f"<b>{escape(name)}</b><br>{r:.1f} % of those are right" for name, r in zip(names, right, strict=True)
    ]
    return Chart(
        "trim_exits_leaving",
        "Where images leave",
        [
            Line("share of the images", places, share, hover, BLUE, "solid", 2.0, "circle"),
            Line("right among them", places, right, told, GREEN, "dash", 1.6, "square"),
        ],
        x=f"exit ({', '.join(f'{k} {name}' for k, name in enumerate(names, 1))})",
        y="%",
        y_range=(0.0, 100.0),
        ticks=dict(enumerate(names, 1)),
        note="Exits from the first to the end of the network; right: of the images that leave there.",
    )


def _table(found: EarlyExits) -> Table:
    """Every exit with every figure."""
    said, unique = found.summary, [*found.summary["overthinking"]["unique"], None]
    lines = []
    for k, name in enumerate([*said["layers"], END]):
        cost, right, alone = said["costs"][k], said["right_at"][k], unique[k]
        scale = said.get("temperature", {}).get("network" if name == END else name)
        lines.append(
            [
                name, cost / 1e6, 100 * cost / said["whole"]["flops"], 100 * said["leaving"][k],
                None if right is None else 100 * right, 100 * said["accuracy_at"][k],
                None if alone is None else 100 * alone, scale,
            ]
        )  # fmt: skip
    heads = [
        "exit",
        "MFLOPs",
        "FLOPs %",
        "leave here %",
        "right of these %",
        "right of all %",
        "it alone is right %",
        "temperature",
    ]
    note = (
        f"On {number(said['images']['test'])} test images. FLOPs count the exits that were asked on the way, so the "
        "last line is above 100 %. Right of all: were every image answered there. Temperature: what scores are "
        "divided by, so that their softmax is a probability (Guo et al., 2017)."
    )
    return Table("trim_exits_table", "The exits", heads, lines, note)
