"""An ablation in the terminal: short tables, and what they say."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tunnel_lightning.report.ablation_words import HEADS, QUANTITIES, SHARES, cell, headline, put_back, short
from tunnel_lightning.report.terminal import SHORT, Column, fitted
from tunnel_lightning.report.words import number, percent
from tunnel_lightning.runs.ablation import Ablation, Effect

if TYPE_CHECKING:
    from rich.console import Console

MOST_LINES = 12
"""Of a table on the tunnel or the extractor; with more, the first rule alone is told."""


def print_ablation(found: Ablation, console: Console | None = None) -> None:
    """Print short tables of an ablation, what they say in a sentence, and what a reader must know.

    Args:
        found: the ablation.
        console: default: standard output, 80 columns where it is no terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    console.print()
    whole = found.intact(found.main)
    what = f"{found.main} on {number(found.summary.get('images', 0))} test images of {found.summary.get('dataset')}"
    value = f": {percent(whole.value)} as it is" if whole else ""
    console.print(Text(f"{found.summary.get('run_id')}, {what}{value}", style="bold"))
    for title, columns in _printed(found):
        table, left_out = fitted(columns, console, title=title)
        console.print(table, crop=False)
        if left_out:
            console.print(Text(f"no room here: {', '.join(each.name for each in left_out)}", style="dim"))
        console.print()
    console.print(Text(headline(found)))
    if sentence := (found.summary.get("structure") or {}).get("sentence"):
        console.print(Text(f"{sentence[0].upper()}{sentence[1:]}"))
    for note in found.summary.get("notes") or []:
        console.print(Text(f"note: {note}", style="dim"))


def _printed(found: Ablation) -> list[tuple[str, list[Column]]]:
    """The tables: layers, tunnels, blocks, cuts, trainings; those without lines are left out."""
    layers = _lines(found, ("reset", "rewind", "swap"), "layer")
    tables = [("Layers, one by one (accuracy %)".replace("accuracy", found.main), layers)]
    for scope, title in (("tunnel", "The tunnel as a whole"), ("extractor", "The extractor as a whole")):
        rows = [row for kind in ("reset", "rewind") for row in put_back(found, kind, scope)]
        if len(rows) > MOST_LINES:  # the page has those of the other rules
            rule = rows[0].variant.rpartition("; ")[2]
            rows = [row for row in rows if row.variant.rpartition("; ")[2] == rule]
        tables.append((title, _plainly(found, rows, "put back to")))
    tables.append(
        ("Residual blocks deleted", _plainly(found, found.pick(found.main, kind="delete", scope="block"), ""))
    )
    tables.append(("Two networks at a cut (1: this, 2: the other)", _lines(found, ("swap",), "cut")))
    tables.append(("Trained again", _plainly(found, found.pick(found.main, kind="retrain"), "training")))
    return [(title, columns) for title, columns in tables if columns and columns[0].cells]


def _lines(found: Ablation, kinds: Sequence[str], scope: str) -> list[Column]:
    """A line for each layer, a column for each variant."""
    rows = [
        row
        for statistics in ("kept", "estimated")
        for kind in kinds
        for row in found.pick(found.main, kind=kind, scope=scope, statistics=statistics)
    ]
    if not rows:
        return []
    layers = {row.first: row.layers for row in rows}
    columns = [
        Column("#", "#", [str(index) for index in layers], style="dim"),
        Column(
            "layer",
            "layer",
            [name.removeprefix("cut behind ") for name in layers.values()],
            right=False,
            names=True,
        ),
    ]
    for rank, place in enumerate(dict.fromkeys((row.kind, row.variant, row.statistics) for row in rows)):
        kind, variant, statistics = place
        values = {row.first: row.value for row in rows if (row.kind, row.variant, row.statistics) == place}
        cells = [f"{100 * values[index]:.1f}" if index in values else "-" for index in layers]
        name = variant if scope == "cut" else f"{kind}\n{variant}"
        name += "\nestimated" * (statistics == "estimated")
        columns.append(Column(name.replace("\n", " "), name, cells, min(rank, 9), SHORT))
    return columns


def _plainly(found: Ablation, rows: Sequence[Effect], variant: str) -> list[Column]:
    """A line for each intervention, a column for each quantity."""
    if not rows:
        return []

    def of(quantity: str, statistics: str = "kept") -> list[str]:
        values = {row[:6]: row for row in found.pick(quantity, statistics=statistics)}
        cells = (cell(values.get(row[:6])) for row in rows)
        digits = 1 if quantity in SHARES else 0 if quantity == "rank" else 3
        return ["-" if cell is None else f"{cell:.{digits}f}" for cell in cells]

    if variant:  # of several layers their numbers: names from one to another have no room
        spans = [f"{row.first}" if row.first == row.last else f"{row.first} to {row.last}" for row in rows]
        columns = [Column("layers", "layers", spans)]
    else:
        columns = [Column("block", "block", [row.layers for row in rows], right=False, names=True)]
    if variant:
        columns.insert(0, Column(variant, variant, [short(row.variant) for row in rows], right=False))
    heads = {
        "accuracy": "acc. %",
        "nll": "NLL",
        "ece": "ECE",
        "agreement": "agree\n%",
        "rank": "rank",
        "cka": "CKA",
    }
    there = [each for each in (found.main, *QUANTITIES) if found.pick(each)]
    for rank, quantity in enumerate(dict.fromkeys(there)):
        columns.append(Column(HEADS[quantity], heads[quantity], of(quantity), rank))
        if quantity == found.main and any(row.statistics == "estimated" for row in found.rows):
            columns.append(Column("estimated %", "esti-\nmated", of(quantity, "estimated"), 0))
    return columns
