"""Tables in the terminal: as many columns as there is room for, and never a number cut short."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from tunnel_lightning.report.style import shorten

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

WHOLE, SHORT, SHORTEST = 1_000, 16, 8
"""Letters that are left of a name: all, as many as it takes to tell it from others, and where there is no room."""


class Column(NamedTuple):
    """A column of a table in the terminal.

    Attributes:
        name: what it is called where there is no room for it.
        head: its head.
        cells: a text for each line.
        rank: 0 for a column that is always there; of the others the lowest get the room.
        least: letters that names keep for its sake: it is left out before they are shorter.
        right: whether its cells end at the right.
        names: whether its cells are names, which may be shortened in the middle.
        style: rich's, as ``bold``.
    """

    name: str
    head: str
    cells: Sequence[str]
    rank: int = 0
    least: int = SHORTEST
    right: bool = True
    names: bool = False
    style: str | None = None


def drawn(
    columns: Sequence[Column],
    letters: int = WHOLE,
    title: str | None = None,
    styles: Sequence[str | None] = (),
    ends: Collection[int] = (),
) -> Table:
    """Return the columns as a rich table.

    Args:
        columns: at least one.
        letters: longer names are shortened to so many.
        title: what stands above it.
        styles: rich's style of each line; by default none.
        ends: numbers of the lines, from 0, that a section ends with.

    Example:
        >>> table = drawn([Column("rank", "rank", ["12", "5"])])
        >>> table.row_count
        2
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    look: dict[str, Any] = {
        "box": box.SIMPLE_HEAD,
        "show_edge": False,
        "padding": (0, 1, 0, 0),
        "pad_edge": False,
    }
    made = Table(title=title, title_justify="left", header_style="bold", **look)
    for each in columns:
        made.add_column(
            Text(each.head), justify="right" if each.right else "left", no_wrap=True, style=each.style
        )
    cells = [told_apart(each.cells, letters) if each.names else each.cells for each in columns]
    for k, line in enumerate(zip(*cells, strict=True)):
        # Text, not str: a layer's name may hold brackets, which are markup in rich.
        made.add_row(*map(Text, line), style=styles[k] if styles else None, end_section=k in ends)
    return made


def told_apart(names: Sequence[str], letters: int) -> list[str]:
    """Shorten names to so many letters, and to different ones: without the end that they share, where it takes that.

    Example:
        >>> told_apart(["layers.0.linear", "layers.11.linear"], 14), told_apart(["layers.0", "layers.1"], 8)
        (['layers.0', 'layers.11'], ['layers.0', 'layers.1'])
    """
    short = [shorten(name, letters) for name in names]
    if len(set(short)) == len(set(names)):
        return short
    parts = [name.split(".") for name in names]
    most = min(map(len, parts)) - 1
    same = next((k for k in range(most) if len({each[-1 - k] for each in parts}) > 1), most)
    bare = [shorten(".".join(each[: len(each) - same]), letters) for each in parts]
    return bare if len(set(bare)) > len(set(short)) else short


def fitted(columns: Sequence[Column], console: Console, **look: Any) -> tuple[Table, list[Column]]:
    """Draw as many of the columns as the console has room for.

    Columns get room by rank, and names are shortened for their sake down to `Column.least`. Where even those of
    rank 0 have no room, the table goes over the edge: a number cut short is another number. Print it with
    ``crop=False``.

    Args:
        columns: at least one of rank 0.
        console: where it is going to be printed.
        **look: as in `drawn`.

    Returns:
        The table, and the columns that are not in it.

    Example:
        >>> from rich.console import Console
        >>> columns = [Column("layer", "layer", ["a"]), Column("rank", "rank", ["12345"], rank=1)]
        >>> [[each.name for each in fitted(columns, Console(width=width))[1]] for width in (20, 10)]
        [[], ['rank']]
    """
    every = console.options.update(width=10_000)

    def made(kept: Collection[Column], letters: int) -> Table:
        return drawn([each for each in columns if each in kept], letters, **look)

    def over(table: Table) -> int:
        return console.measure(table, options=every).maximum - console.width

    kept = [each for each in columns if not each.rank]
    letters = max((len(cell) for each in columns if each.names for cell in each.cells), default=0)
    for each in sorted((each for each in columns if each.rank), key=lambda each: each.rank):
        for fewer in range(letters, min(each.least, letters) - 1, -1):
            if over(made([*kept, each], fewer)) <= 0:
                kept, letters = [*kept, each], fewer
                break
    while letters > SHORTEST and over(made(kept, letters)) > 0:
        letters -= 1
    shown = made(kept, letters)
    if (beyond := over(shown)) > 0:
        shown.width = console.width + beyond
    return shown, [each for each in columns if each not in kept]
