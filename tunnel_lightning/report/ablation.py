"""What a layer is needed for: the sections of an ablation on the page, and its tables in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunnel_lightning.report import ablation_charts as charts
from tunnel_lightning.report.ablation_printed import print_ablation
from tunnel_lightning.report.ablation_words import HEADS, QUANTITIES, about, cell, headline, numbers
from tunnel_lightning.report.charts import Item, Section, Table
from tunnel_lightning.runs.ablation import Ablation, Effect, ablation_folder, load_ablation

__all__ = ["headline", "numbers", "print_ablation", "sections_of"]


def sections_of(home: Path) -> list[Section]:
    """The sections of a run's ablation; none where there is none.

    Args:
        home: the run folder, or the folder of the ablation.

    Raises:
        RunError: a file of it can't be read.
    """
    folder = ablation_folder(home)
    if folder is None:
        return []
    found = load_ablation(folder)
    items: list[Item] = [
        *charts.depth(found, folder.parent),
        *charts.rewinds(found),
        *charts.blocks(found),
        *charts.stages(found),
        *charts.swaps(found),
        *charts.retrained(found),
        _table(found),
    ]
    text = f"{headline(found)}. {about(found)}"
    return [Section("ablation", "What a layer is needed for", items, text)]


def _table(found: Ablation) -> Table:
    """Every intervention, a line each."""
    quantities = [each for each in QUANTITIES if any(row.quantity == each for row in found.rows)]
    values: dict[tuple[Any, ...], dict[str, Effect]] = {}
    for row in found.rows:
        values.setdefault((*row[:6], row.statistics), {})[row.quantity] = row
    whole = found.intact(found.main)
    lines = []
    for place, of in values.items():
        kind, scope, layers, first, last, variant, statistics = place
        main = of.get(found.main)
        lost = 100 * (whole.value - main.value) if whole and main else None
        index = f"{first}" if first == last else f"{first} to {last}"
        said = f"{variant}, statistics estimated" if statistics == "estimated" else variant
        figures = [cell(of.get(quantity)) for quantity in quantities]
        lines.append([kind, scope, index if first else "", said, *figures, lost, layers])
    columns = [
        "intervention",
        "of",
        "index",
        "variant",
        *(HEADS[each] for each in quantities),
        "lost %",
        "layers",
    ]
    note = "ECE: expected calibration error, 15 bins. NLL: mean cross-entropy in nats. Lost: points of "
    note += f"{found.main} against the intact network."
    return Table("ablation_table", "Every intervention", columns, lines, note)
