"""A comparison as tables in the terminal: networks and their pairs, with as many columns as there is room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tunnel_lightning.report.style import shorten
from tunnel_lightning.runs import Comparison

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class Column(NamedTuple):
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
        Column("run", "run", 0),
        Column("group", "group", 1),
        Column("network", "network", 3),
        Column("layers", "layers", 2),
        Column("accuracy %", "accuracy\n%", 0, 1),
    ],
    "Pairs of networks": [
        Column("first", "first", 0),
        Column("second", "second", 0),
        Column("agreement %", "agree\n%", 0, 1),
        Column("churn %", "churn\n%", 3, 1),
        Column("mean CKA along depth", "CKA\nalong", 1, 3, "CKA along: mean along depth"),
        Column("CKA of the last layers", "CKA\nlast", 2, 3, "CKA last: of the last layers"),
    ],
}
"""Tables of the page, and their columns that a terminal may show."""

_LAST = 3
"""Columns of this rank are there only beside whole names; for others the names of runs are shortened."""

_SHORT, _SHORTEST = 16, 8
"""Letters that are left of a run's name, for the sake of another column, and where there is no room at all."""


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

    columns = [each for each in SHOWN[table["title"]] if each.name in table["columns"]]
    values = {each: [row[table["columns"].index(each.name)] for row in table["rows"]] for each in columns}
    longest = max(
        (len(name) for each in columns if not each.rank for name in _texts(values[each])), default=0
    )

    def made(kept: Sequence[Column], letters: int) -> Table:
        return _table(table["title"], {each: values[each] for each in columns if each in kept}, letters)

    def over(shown: Table) -> int:
        every = console.options.update(width=10_000)
        return console.measure(shown, options=every).maximum - console.width

    kept, letters = [each for each in columns if not each.rank], longest
    for each in sorted((each for each in columns if each.rank), key=lambda each: each.rank):
        least = min(_SHORT, letters) if each.rank < _LAST else letters
        for fewer in range(letters, least - 1, -1):
            if over(made([*kept, each], fewer)) <= 0:
                kept, letters = [*kept, each], fewer
                break
    while letters > _SHORTEST and over(made(kept, letters)) > 0:
        letters -= 1
    shown = made(kept, letters)
    if (beyond := over(shown)) > 0:  # over the edge it goes: a number cut short is another number
        shown.width = console.width + beyond
    console.print(shown, crop=False)
    if legend := ", ".join(each.legend for each in columns if each in kept and each.legend):
        console.print(Text(legend, style="dim"))
    console.print()
    return [each.name for each in columns if each not in kept]


def _table(title: str, columns: Mapping[Column, list[Any]], letters: int) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    look: dict[str, Any] = {
        "box": box.SIMPLE_HEAD,
        "show_edge": False,
        "padding": (0, 1, 0, 0),
        "pad_edge": False,
    }
    shown = Table(title=title, title_justify="left", header_style="bold", **look)
    for column, values in columns.items():
        shown.add_column(Text(column.head), justify="left" if _texts(values) else "right", no_wrap=True)
    cells = [[_cell(value, column, letters) for value in values] for column, values in columns.items()]
    for line in zip(*cells, strict=True):
        shown.add_row(*map(Text, line))
    return shown


def _texts(values: Sequence[Any]) -> list[str]:
    return [value for value in values if isinstance(value, str)]


def _cell(value: Any, column: Column, letters: int) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.{column.digits}f}"
    return shorten(str(value), letters) if not column.rank else str(value)
