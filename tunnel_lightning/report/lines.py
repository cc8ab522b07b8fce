"""From a `Curve` to a `Line`: looks, scales, and what is said of each point."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunnel_lightning.report.charts import Line, escape
from tunnel_lightning.report.style import (
    BLUE,
    GREEN,
    GREY,
    NEIGHBOURS,
    OLIVE,
    ORANGE,
    PURPLE,
    SKY,
    TITLES,
    VERMILION,
    WINE,
    kind_of,
)
from tunnel_lightning.report.words import interval, number, percent
from tunnel_lightning.runs import INPUT, Curve, Row, curve

COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, WINE, OLIVE, GREY, "#332288")
"""Colours of lines that have no colour of their own."""

DASHES = ("solid", "dash", "dot", "dashdot")

Wanted = tuple[str, str, str]
"""Measure, variant, and what its line is called."""


def share(measure: str) -> bool:
    """Whether the values of a measure are fractions of 1 that are shown in percent.

    Example:
        >>> share("knn_accuracy"), share("rank_cov")
        (True, False)
    """
    return measure.endswith(("accuracy", "disagreement"))


def line(found: Curve, label: str, color: str | float = BLUE, **look: Any) -> Line:
    """Draw a curve over its layers, without the raw pixels; fractions in percent."""
    layers = found.layers_only()
    scale = 100 if share(found.measure) else 1
    return Line(label, layers.index, scale * layers.value, hover(layers, label), color, **look)


def hover(found: Curve, label: str) -> list[str]:
    """Say of each layer its name, the value with its interval, and what that rests on."""
    return [
        "<br>".join(
            [
                f"<b>{_where(index, name)}</b>",
                f"{escape(label)}: {_value(found.measure, value, se, int(n))}",
                *_basis(int(n), int(dim)),
            ]
        )
        for index, name, value, se, n, dim in zip(
            found.index, found.layer, found.value, found.se, found.n, found.dim, strict=True
        )
    ]


def _where(index: int, name: str) -> str:
    return "raw pixels" if name == INPUT else f"layer {index}: {escape(name)}"


def _value(measure: str, value: float, se: float, n: int) -> str:
    if measure.endswith("accuracy"):
        span = interval(value, n)
        return percent(value) + (f" (95 % interval {span})" if span else "")
    if share(measure):
        return percent(value)
    return number(value) + (f" ± {number(se)}" if math.isfinite(se) else "")


def _basis(n: int, dim: int) -> list[str]:
    parts = [f"{number(dim)} columns"] * bool(dim) + [f"{number(n)} images"] * bool(n)
    return [", ".join(parts)] if parts else []


def several(rows: Sequence[Row], wanted: Sequence[Wanted], dataset: str | None, **pick: Any) -> list[Line]:
    """Draw those of the wanted measures that there are, each in a colour and a dash of its own."""
    lines = []
    for k, (measure, variant, label) in enumerate(wanted):
        found = curve(rows, measure, variant, dataset, **pick)
        if np.isfinite(found.layers_only().value).any():
            lines.append(
                line(found, label, COLORS[k % len(COLORS)], dash=DASHES[k % len(DASHES)], marker="circle")
            )
    return lines


def measure_name(measure: str, variant: str) -> str:
    """Name a measure for a person.

    Example:
        >>> measure_name("rank_cov", "rtol=1e-3"), measure_name("made_up", "x")
        ('Numerical rank (rtol 1e-3)', 'Made up (x)')
        >>> measure_name("knn_accuracy", "k=12")
        'Accuracy of the 12 nearest neighbours'
    """
    kind = kind_of(measure, variant)
    if kind not in TITLES:
        return f"{measure.replace('_', ' ').capitalize()} ({variant})"
    title = TITLES[kind]
    return title.replace(" K ", f" {variant.removeprefix(NEIGHBOURS)} ") if NEIGHBOURS in kind else title
