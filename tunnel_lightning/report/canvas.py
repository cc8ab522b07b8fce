"""What every figure shares: the canvas, its title and legend, and turning it into a file or pixels.

Matplotlib is imported when the first figure is drawn; pyplot, which keeps every figure alive and picks a
window system, never.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.style import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as the kind of file its name ends in; a file of that name is replaced when it is whole.

    Example:
        >>> import tempfile
        >>> figure, _ = canvas()
        >>> save(figure, Path(tempfile.mkdtemp()) / "profile.png").name
        'profile.png'
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(path.name + ".tmp")
    try:
        figure.savefig(beside, format=path.suffix.lstrip(".") or "png")
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def to_image(figure: Figure) -> NDArray[np.uint8]:
    """Render a figure to pixels, shape [height, width, 3], for loggers that take images.

    TensorBoard's own ``add_figure`` would import pyplot.

    Example:
        >>> figure, _ = canvas()
        >>> to_image(figure).shape
        (624, 1080, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    agg = FigureCanvasAgg(figure)
    agg.draw()
    return np.asarray(agg.buffer_rgba())[..., :3].copy()


def canvas() -> tuple[Figure, Axes]:
    """Return an empty figure of the common size, and its axes."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=STYLE["size"], dpi=STYLE["dpi"], layout="constrained", facecolor="white")
    figure.get_layout_engine().set(w_pad=0.14, h_pad=0.12)  # type: ignore[union-attr,call-arg]
    return figure, figure.add_subplot()


def title(axes: Axes, text: str, lines: list[str], above: int = 0) -> None:
    """Write a title and lines under it, all of it `above` points clear of the axes."""
    axes.annotate(
        "\n".join(lines),
        (0, 1),
        xycoords="axes fraction",
        xytext=(0, above + 8),
        textcoords="offset points",
        va="bottom",
        linespacing=1.25,
        **STYLE["subtitle"],
    )
    height = 1.43 * STYLE["subtitle"]["fontsize"] * len(lines)
    axes.set_title(text, loc="left", pad=above + 12 + height, **STYLE["title"])


def legend(figure: Figure, handles: list[Any]) -> None:
    """Put the legend under the axes, in as few and as even rows as its texts allow."""
    if not handles:
        return
    labels = [len(str(h.get_label())) for h in handles]
    for columns in range(len(handles), 0, -1):
        widths = [max(part) for part in np.array_split(labels, columns)]  # as matplotlib fills them
        # In inches: a letter, and a handle with the space round it.
        if sum(0.075 * w + 0.72 for w in widths) <= STYLE["size"][0] - 0.4:
            break
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, **STYLE["legend"])


def thin(count: int, most: int) -> list[int]:
    """Positions to label on an axis: all of a few, else every 2nd, 5th, 10th, ...

    Example:
        >>> thin(5, 10), thin(33, 10)
        ([0, 1, 2, 3, 4], [0, 5, 10, 15, 20, 25, 30])
    """
    every = next(e for e in (1, 2, 5, 10, 20, 50, 100, 200, 500, count) if count <= e * most)
    return list(range(0, count, every))
