"""The page: one file that opens offline, from a description of what it shows."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from html import escape as escape_html
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from tunnel_lightning.report.charts import Chart, Item, Map, Page, Pictures, Section, Table
from tunnel_lightning.report.interactive import figure
from tunnel_lightning.report.pictures import html_of
from tunnel_lightning.report.words import number
from tunnel_lightning.runs import package_versions

_HERE = Path(__file__).parent

_NAMES = ("set", "run", "rule", "starts at", "best layer")
"""Columns that hold names, which stay in one line; "layer" also stays in sight."""


def html(page: Page) -> str:
    """Write a page as HTML, plotly.js and all data within.

    Example:
        >>> page = Page("mlp", "A tunnel", "", [], [Section("t", "All", [Table("a", "T", ["x"], [[1]])])])
        >>> "<h1>A tunnel</h1>" in html(page)
        True
    """
    from plotly.offline import get_plotlyjs

    sections = [section for section in page.sections if section.items]
    figures: dict[str, Any] = {}
    parts = [_section(section, figures) for section in sections]
    numbers = [
        f'<div class="number"><b>{escape(n.value)}</b><span>{escape(n.label)}</span>'
        f"<small>{escape(n.detail)}</small></div>"
        for n in page.numbers
    ]
    notes = "".join(f"<li>{escape(note)}</li>" for note in page.notes)
    links = [f'<a href="#{section.key}">{escape(section.title)}</a>' for section in sections]
    # < never stands in a script: a name could otherwise end it
    data = json.dumps(figures, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    return Template(_file("page.html")).substitute(
        title=escape(page.title),
        headline=escape(page.headline),
        subtitle=escape(page.subtitle),
        notes=f'<ul class="notes">{notes}</ul>' if notes else "",
        numbers="".join(numbers),
        links="".join(links),
        sections="\n".join(parts),
        figures=data,
        plotly=get_plotlyjs(),
        style=_file("page.css"),
        script=_file("page.js"),
        version=escape(package_versions()["tunnel-lightning"] or ""),
    )


def escape(text: str) -> str:
    """Plain text as HTML; a number stays in one line with its percent sign."""
    return escape_html(text).replace(" %", "&nbsp;%")


def _file(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _section(section: Section, figures: dict[str, Any]) -> str:
    text = f"<p>{escape(section.text)}</p>" if section.text else ""
    chips = "".join(
        f'<li><i style="background:{color}"></i>{escape(name)}</li>' for name, color in section.chips
    )
    text += f'<ul class="chips">{chips}</ul>' if chips else ""
    items = "".join(_item(item, figures) for item in section.items)
    grid = f'<div class="grid {section.key}">{items}</div>'
    if section.folded:
        return f'<details id="{section.key}"><summary>{escape(section.title)}</summary>{text}{grid}</details>'
    return f'<section id="{section.key}"><h2>{escape(section.title)}</h2>{text}{grid}</section>'


def _item(item: Item, figures: dict[str, Any]) -> str:
    note = f'<p class="note">{escape(item.note)}</p>' if item.note else ""
    title = escape(item.title)
    if isinstance(item, Table):
        wide = " wide" if len(item.columns) > 2 else ""
        button = f'<button data-csv="{escape(item.key)}">download CSV</button>'
        return f'<div class="card{wide}"><div class="head"><h3>{title}</h3>{button}</div>{_table(item)}{note}</div>'
    if isinstance(item, Pictures):
        return f'<div class="card wide"><h3>{title}</h3>{html_of(item)}{note}</div>'
    key = f"f{len(figures)}"
    figures[key] = figure(item)
    wide = (
        " wide" if (isinstance(item, Chart) and item.wide) or (isinstance(item, Map) and item.breaks) else ""
    )
    kind = type(item).__name__.lower()
    plot = f'<div class="plot {kind}" data-figure="{key}" role="img" aria-label="{title}"></div>'
    return f'<div class="card{wide}"><h3>{title}</h3>{plot}{note}</div>'


def _table(table: Table) -> str:
    numeric = [_numeric([row[k] for row in table.rows]) for k in range(len(table.columns))]
    heads = "".join(
        f'<th{" class=key" if name == "layer" else _class(n)}><button title="sort">{escape(name)}</button></th>'
        for name, n in zip(table.columns, numeric, strict=True)
    )
    rows = "".join(
        "<tr>"
        + "".join(_cell(v, name, n) for v, name, n in zip(row, table.columns, numeric, strict=True))
        + "</tr>"
        for row in table.rows
    )
    return f'<div class="table"><table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'


def _class(numeric: bool) -> str:
    return ' class="n"' if numeric else ""


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)


def _numeric(values: Sequence[Any]) -> bool:
    return all(value is None or _is_number(value) for value in values)


def _cell(value: Any, column: str, numeric: bool) -> str:
    if value is None or (_is_number(value) and not math.isfinite(value)):
        return f'<td{_class(numeric)} data-v="">–</td>'
    if not _is_number(value):
        name = {"layer": ' class="name key"'}.get(column, ' class="name"' if column in _NAMES else "")
        return f"<td{name}>{escape(str(value))}</td>"
    value = value.item() if isinstance(value, np.generic) else value
    shown = f"{value:.1f}" if column.endswith("%") else number(value)
    return f'<td{_class(numeric)} data-v="{value!r}">{shown}</td>'
