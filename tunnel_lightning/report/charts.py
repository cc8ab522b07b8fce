"""What is shown, said once: charts, maps, scatters, tables; plotly draws them on the page, matplotlib in files.

Titles, labels and names are plain text; whoever draws escapes them. `Line.hover` and `Points.hover` are the page's
own markup, in which names must have gone through `escape`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.canvas import thin
from tunnel_lightning.report.style import BLUE, shorten

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    Draw = Callable[[], Figure]


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart.

    Attributes:
        label: its name in the legend.
        x: places, shape [n].
        y: values, shape [n]; NaN is a gap.
        hover: what is said of each point, n texts.
        color: a colour, or a place on the common colour map: 0 for the first layer, 1 for the last.
        dash: ``solid``, ``dash``, ``dot`` or ``dashdot``.
        width: in points; 0 for marks alone.
        marker: ``circle``, ``square``, ``circle-open`` ... ; empty for none.
        low: lower edge of a band, shape [n], or None.
        high: its upper edge.
        right: whether it belongs to the axis on the right.
        shown: whether it is drawn; if not it waits in the legend of the page.
        legend: whether it is named in the legend; a line without goes with the one whose label it shares.
    """

    label: str
    x: NDArray[Any]
    y: NDArray[Any]
    hover: Sequence[str] = ()
    color: str | float = BLUE
    dash: str = "solid"
    width: float = 2.0
    marker: str = ""
    low: NDArray[Any] | None = None
    high: NDArray[Any] | None = None
    right: bool = False
    shown: bool = True
    legend: bool = True


@dataclass(frozen=True)
class Mark:
    """A vertical line at ``x`` with a label above it."""

    x: float
    label: str
    dash: str = "solid"


@dataclass(frozen=True, eq=False)
class Chart:
    """Lines over a common axis.

    Attributes:
        key: name of its file and of its place on the page.
        title: what it is called.
        lines: what is drawn.
        x: label of the horizontal axis.
        y: label of the left axis.
        right: label of the right axis.
        log_x: whether the horizontal axis is logarithmic.
        log_y: whether the left one is.
        y_range: ends of the left axis; by default those of the values.
        relative: whether the horizontal axis is a depth from 0 to 1, not layers from 1 on.
        ticks: labels of layers on the horizontal axis, in the place of their numbers.
        marks: vertical lines.
        shade: where a shaded range begins that goes on to the right end, and its name.
        ends: names of the colour map's two ends, which take the place of the legend.
        note: a line of explanation.
        wide: whether it takes the whole width of the page.
        draw: makes the figure for files where that is drawn by hand.
    """

    key: str
    title: str
    lines: list[Line]
    x: str = "layer"
    y: str = ""
    right: str = ""
    log_x: bool = False
    log_y: bool = False
    y_range: tuple[float, float] | None = None
    relative: bool = False
    ticks: dict[int, str] | None = None
    marks: list[Mark] = field(default_factory=list)
    shade: tuple[float, str] | None = None
    ends: tuple[str, str] | None = None
    note: str = ""
    wide: bool = False
    draw: Draw | None = None


@dataclass(frozen=True, eq=False)
class Map:
    """Coloured cells, the first row at the bottom.

    Attributes:
        key: as in `Chart`.
        title: as in `Chart`.
        columns: what each column is called.
        rows: what each row is called.
        value: values, shape [rows, columns]; NaN cells stay empty.
        se: their standard errors, of the same shape, or None.
        unit: what stands behind a value, as ``%``.
        x: label of the horizontal axis.
        y: label of the vertical axis.
        limits: values at the two ends of the colour map; by default those there are.
        blocks: ranges of rows and columns outlined as squares: first and last position, and a name.
        breaks: positions at which another network begins, with its name; the first is 0.
        short: what columns are called on the axis; by default as in ``columns``.
        short_rows: what rows are called on a phone, in a few letters; by default they have no labels there.
        edge: a height for each column, drawn as a line of steps; NaN for none.
        edge_label: what that line is.
        written: whether the page writes whole numbers into the cells, where there are few enough.
        note: as in `Chart`.
        draw: as in `Chart`.
    """

    key: str
    title: str
    columns: list[str]
    rows: list[str]
    value: NDArray[np.float64]
    se: NDArray[np.float64] | None = None
    unit: str = ""
    x: str = ""
    y: str = ""
    limits: tuple[float, float] | None = None
    blocks: list[tuple[int, int, str]] = field(default_factory=list)
    breaks: list[tuple[int, str]] = field(default_factory=list)
    short: list[str] | None = None
    short_rows: list[str] | None = None
    edge: NDArray[np.float64] | None = None
    edge_label: str = ""
    written: bool = False
    note: str = ""
    draw: Draw | None = None

    def ticks(self, names: Sequence[str], most: int) -> tuple[list[float], list[str]]:
        """Where rows or columns of these names are labelled, and how: by network, else all, or every 2nd, 5th, ..."""
        if self.breaks:
            edges = [*(at for at, _ in self.breaks), len(names)]
            return [(a + b - 1) / 2 for a, b in pairwise(edges)], [
                shorten(name, 22) for _, name in self.breaks
            ]
        shown = thin(len(names), most)
        return [float(k) for k in shown], [shorten(names[k], 22) for k in shown]


@dataclass(frozen=True, eq=False)
class Points:
    """Places in the plane.

    Attributes:
        key: as in `Chart`.
        title: as in `Chart`.
        place: shape [n, 2].
        kind: which of ``names`` each is of, shape [n]; or None.
        names: names of the kinds.
        hover: n texts.
        size: diameter of each in pixels, shape [n]; or None.
        x: label of the horizontal axis; without one the axes have no ticks.
        y: label of the vertical axis.
        diagonal: whether the line of equal values is drawn.
        note: as in `Chart`.
    """

    key: str
    title: str
    place: NDArray[np.float64]
    kind: NDArray[np.int64] | None = None
    names: Sequence[str] = ()
    hover: Sequence[str] = ()
    size: NDArray[np.float64] | None = None
    x: str = ""
    y: str = ""
    diagonal: bool = False
    note: str = ""


@dataclass(frozen=True)
class Table:
    """A table to sort and to download.

    Attributes:
        key: as in `Chart`.
        title: as in `Chart`.
        columns: heads; numbers under one that ends in ``%`` are shown with one decimal.
        rows: numbers, texts, or None for what is not there.
        note: as in `Chart`.
    """

    key: str
    title: str
    columns: list[str]
    rows: list[list[Any]]
    note: str = ""


@dataclass(frozen=True, eq=False)
class Strip:
    """Small pictures side by side, in one row or several, and at most one large one before them.

    Attributes:
        name: what they are of.
        images: uint8 ``[R, C, H, W, 3]``.
        captions: a text under each, R lists of C; empty for none.
        lead: the large one, uint8 ``[H, W, 3]``, such as an original; or None.
        caption: what stands under that.
    """

    name: str
    images: NDArray[np.uint8]
    captions: Sequence[Sequence[str]] = ()
    lead: NDArray[np.uint8] | None = None
    caption: str = ""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Strips of pictures with common rows and columns, one below the other: as films, with the depth as their time.

    Attributes:
        key: as in `Chart`.
        title: as in `Chart`.
        strips: what is shown.
        rows: what each row is.
        columns: heads, short ones, as numbers of layers.
        names: what the columns are called where there is room: when pointed at, and for those who hear the page.
        shade: the first column of a range that goes on to the last one, from 0, and its name.
        note: as in `Chart`.
    """

    key: str
    title: str
    strips: Sequence[Strip]
    rows: Sequence[str]
    columns: Sequence[str]
    names: Sequence[str] = ()
    shade: tuple[int, str] | None = None
    note: str = ""

    def __post_init__(self) -> None:
        for strip in self.strips:
            rows, columns = strip.images.shape[:2]
            if (rows, columns) != (len(self.rows), len(self.columns)):
                raise ValueError(
                    f"{self.title}: {strip.name} has {rows} x {columns} pictures, and there are {len(self.rows)} "
                    f"rows and {len(self.columns)} columns"
                )

    def said(self, strip: Strip, row: int, column: int) -> str:
        """All that is known of a picture, in a line."""
        name = (self.names or self.columns)[column]
        caption = strip.captions[row][column] if strip.captions else ""
        return ", ".join(each for each in (strip.name, self.rows[row], name, caption) if each)


Item = Chart | Map | Points | Table | Pictures


@dataclass(frozen=True)
class Section:
    """A part of the page; one without items is left out. Chips are names with the colours that stand for them."""

    key: str
    title: str
    items: Sequence[Item]
    text: str = ""
    folded: bool = False
    chips: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True)
class Number:
    """A key figure: the number, what it is, and a line under it."""

    value: str
    label: str
    detail: str = ""


@dataclass(frozen=True)
class Page:
    """All that a page shows; notes are what a reader must know, in small print under the headline."""

    title: str
    headline: str
    subtitle: str
    numbers: list[Number]
    sections: list[Section]
    notes: Sequence[str] = ()


def escape(text: str) -> str:
    """Make plain text safe inside plotly's markup, which knows tags, entities and ``%{...}``.

    Example:
        >>> escape("a<b>&%{x}")
        'a&lt;b&gt;&amp;%&#8203;{x}'
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("%{", "%&#8203;{")
