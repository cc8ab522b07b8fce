"""Strips of pictures: as HTML with the pixels within, and as a figure for files."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.canvas import canvas, title
from tunnel_lightning.report.charts import Pictures, Strip
from tunnel_lightning.report.style import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EXACT = 64
"""Pictures of at most so many pixels a side are on the page as they are; larger ones would make it heavy."""
SHOWN = 160
"""Pixels a side that larger ones are brought to."""


def uri(image: NDArray[np.uint8]) -> str:
    """A picture uint8 ``[H, W, 3]`` as an address that holds it: small ones exactly, large ones smaller and as JPEG.

    Example:
        >>> uri(np.zeros((2, 2, 3), np.uint8))[:22]
        'data:image/png;base64,'
    """
    from PIL import Image

    made, kind = Image.fromarray(image), "png"
    options: dict[str, Any] = {"optimize": True}
    if max(image.shape[:2]) > EXACT:
        made.thumbnail((SHOWN, SHOWN))
        kind, options = "jpeg", {"quality": 88}
    file = io.BytesIO()
    made.save(file, kind, **options)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def html_of(item: Pictures) -> str:
    """The strips as HTML, without title and note."""
    shade = item.shade[0] if item.shade else len(item.columns)
    wide = f' style="--columns:{len(item.columns)}"'
    chip = f'<p class="shade"><i></i>{escape(item.shade[1])}</p>' if item.shade else ""
    return (
        f'<div class="strips"{wide}>{chip}{"".join(_strip(item, each, shade) for each in item.strips)}</div>'
    )


def _strip(item: Pictures, strip: Strip, shade: int) -> str:
    lead = ""
    if strip.lead is not None:
        caption = f"<figcaption>{escape(strip.caption)}</figcaption>" if strip.caption else ""
        lead = (
            f'<figure class="lead">{_image(strip.lead, f"{strip.name}, {strip.caption}")}{caption}</figure>'
        )
    heads = "".join(
        f'<span class="column{_in(column, shade)}" title="{escape(name)}">{escape(head)}</span>'
        for column, (head, name) in enumerate(zip(item.columns, item.names or item.columns, strict=True))
    )
    rows = "".join(
        f'<span class="row">{escape(name)}</span>'
        + "".join(_cell(item, strip, row, column, _in(column, shade)) for column in range(len(item.columns)))
        for row, name in enumerate(item.rows)
    )
    return (
        f'<div class="strip">{lead}<div class="frames"><b>{escape(strip.name)}</b>'
        f'<div class="cells">{heads}{rows}</div></div></div>'
    )


def _cell(item: Pictures, strip: Strip, row: int, column: int, look: str) -> str:
    said = item.said(strip, row, column)
    caption = strip.captions[row][column] if strip.captions else ""
    under = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    picture = _image(strip.images[row, column], said)
    return f'<figure class="cell{look}" title="{escape(said)}">{picture}{under}</figure>'


def _in(column: int, shade: int) -> str:
    return " in" if column >= shade else ""


def _image(image: NDArray[np.uint8], said: str) -> str:
    crisp = ' class="crisp"' if max(image.shape[:2]) <= EXACT else ""
    return f'<img{crisp} src="{uri(image)}" alt="{escape(said)}" loading="lazy">'


def figure_of(item: Pictures) -> Figure:
    """The strips as a figure: every picture a square of side 1 in common axes."""
    made, axes = canvas()
    lead = any(strip.lead is not None for strip in item.strips)
    rows, columns = len(item.rows), len(item.columns)
    left = 2.2 if lead else 0.0
    gap, line = 0.12, 1.42 if any(strip.captions for strip in item.strips) else 1.12
    height = rows * line + 1.05
    for number, strip in enumerate(item.strips):
        top = number * height
        axes.text(left, top - 0.6, strip.name, va="bottom", fontsize=9, fontweight="bold")
        if strip.lead is not None:
            _draw(axes, strip.lead, 0.0, top, 2.0, strip.caption)
        for column, head in enumerate(item.columns):
            axes.text(left + column * (1 + gap) + 0.5, top - 0.08, head, ha="center", va="bottom", fontsize=8)
        for row in range(rows):
            for column in range(columns):
                caption = strip.captions[row][column] if strip.captions else ""
                place = left + column * (1 + gap), top + row * line
                _draw(axes, strip.images[row, column], *place, 1.0, caption)
            axes.text(
                left + columns * (1 + gap), top + row * line + 0.5, item.rows[row], va="center", fontsize=8
            )
    right = left + columns * (1 + gap)
    if item.shade:
        start = left + item.shade[0] * (1 + gap) - gap / 2
        axes.axvspan(start, right, **STYLE["tunnel"])
    words = max((len(each) for each in item.rows), default=0)
    axes.set_xlim(-0.1, right + 0.13 * words)
    axes.set_ylim(len(item.strips) * height - 0.7, -1.0)
    axes.set_aspect("equal")
    axes.set_axis_off()
    width = right + 0.13 * words
    scale = 9.0 / max(width, 9.0)
    made.set_size_inches(max(scale * width, 4.0), max(scale * (len(item.strips) * height + 1.0), 1.5) + 0.4)
    title(axes, item.title, _lines(item))
    return made


def _lines(item: Pictures) -> list[str]:
    return [f"shaded: {item.shade[1]}"] if item.shade else []


def _draw(axes: Axes, image: NDArray[np.uint8], x: float, y: float, side: float, caption: str) -> None:
    axes.imshow(image, extent=(x, x + side, y + side, y), interpolation="nearest", zorder=2)
    if caption:
        axes.text(x + side / 2, y + side + 0.06, caption, ha="center", va="top", fontsize=7)


def rgb(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Pictures ``[..., H, W, 1 or 3]`` in three channels.

    Example:
        >>> rgb(np.zeros((5, 8, 8, 1), np.uint8)).shape
        (5, 8, 8, 3)
    """
    return np.broadcast_to(images, (*images.shape[:-1], 3))


__all__: Sequence[str] = ("figure_of", "html_of", "rgb", "uri")
