"""A comparison as tables in the terminal: networks and their pairs, with as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tunnel_lightning.report.terminal import SHORT, WHOLE, Column, fitted
from tunnel_lightning.runs import Comparison

if TYPE_CHECKING:
    from rich.console import Console


class Shown(NamedTuple):
    """A column of a page's table that the terminal shows, too.

    Attributes:
        name: its head on the page.
        head: its head here.
        rank: 0 for a column that is always there; of the others the lowest get the room.
        digits: behind the point.
        legend: what the head means, where it does not say it.
    """

    name: str
    head: str
    rank: int
    digits: int = 0
    legend: str = ""


SHOWN = {
    "Networks": [
        Shown("run", "run", 0),
        Shown("group", "group", 1),
        Shown("network", "network", 3),
        Shown("layers", "layers", 2),
        Shown("accuracy %", "accuracy\n%", 0, 1),
    ],
    "Pairs of networks": [
        Shown("first", "first", 0),
        Shown("second", "second", 0),
        Shown("agreement %", "agree\n%", 0, 1),
        Shown("churn %", "churn\n%", 3, 1),
        Shown("mean CKA along depth", "CKA\nalong", 1, 3, "CKA along: mean along depth"),
        Shown("CKA of the last layers", "CKA\nlast", 2, 3, "CKA last: of the last layers"),
    ],
}
"""Tables of the page, and their columns that a terminal may show."""

_LAST = 3
"""Columns of this rank are there only beside whole names; for others the names of runs are shortened."""


def print_comparison(found: Comparison, console: Console | None = None) -> None:
    """Print networks and their pairs, what a reader must know, and where the rest is.

    Every number is printed whole: columns that don't fit are left out and named, long names of runs are shortened
    in the middle.

    Args:
        found: the comparison.
        console: default: standard output, 80 columns where it is no terminal.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    left_out: list[str] = []
    for table in found.summary["tables"]:
        if table["title"] in SHOWN:
            left_out += _print(table, console)
    if left_out:
        console.print(Text(f"no room here, but on the page: {', '.join(left_out)}", style="dim"))
    for note in found.summary["notes"]:
        console.print(Text(note, style="dim"))
    console.print(Text(f"comparison   {found.path / 'report.html'}"), soft_wrap=True)


def _print(table: Mapping[str, Any], console: Console) -> list[str]:
    """Print one table, and return the columns it had no room for."""
    from rich.text import Text

    picked = [each for each in SHOWN[table["title"]] if each.name in table["columns"]]
    columns = [
        _column(each, [row[table["columns"].index(each.name)] for row in table["rows"]]) for each in picked
    ]
    shown, without = fitted(columns, console, title=table["title"])
    left_out = [each.name for each in without]
    console.print(shown, crop=False)
    if legend := ", ".join(each.legend for each in picked if each.legend and each.name not in left_out):
        console.print(Text(legend, style="dim"))
    console.print()
    return left_out


def _column(picked: Shown, values: Sequence[Any]) -> Column:
    texts = any(isinstance(value, str) for value in values)
    cells = [_cell(value, picked.digits) for value in values]
    least = WHOLE if picked.rank >= _LAST else SHORT
    names = texts and not picked.rank
    return Column(picked.name, picked.head, cells, picked.rank, least, right=not texts, names=names)


def _cell(value: Any, digits: int) -> str:
    if value is None:
        return "-"
    return f"{value:.{digits}f}" if isinstance(value, float) else str(value)
