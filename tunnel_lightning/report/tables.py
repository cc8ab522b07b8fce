"""Tables of the page: every value of every layer, and what the figures rest on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tunnel_lightning.report.charts import Table
from tunnel_lightning.report.lines import measure_name, share
from tunnel_lightning.report.style import TITLES, kind_of
from tunnel_lightning.runs import LayerInfo, Row

APART = ("gram256", "ridge@addition")
"""Variants measured at places of their own, not at the layers."""

OF_CURVES = ("ood_retained", "id_ood_pearson", "id_ood_alignment")
"""Measures of all layers together, which have a table of their own."""


def all_layers(
    rows: Sequence[Row], own: str | None, layers: Sequence[LayerInfo], several_runs: bool = False
) -> list[Table]:
    """Every layer with every measure at the last step it was measured; nothing without rows.

    Args:
        rows: rows of one run, or of several.
        own: the set the network was trained on, which columns leave unsaid; None for networks of several.
        layers: lines of ``layers.csv``, in columns of their own where there are any.
        several_runs: whether a column says of which run a line is.
    """
    rows = [row for row in rows if row.variant not in APART and row.measure not in OF_CURVES]
    last: dict[tuple[Any, ...], int] = {}
    for row in rows:
        last[_kind(row)] = max(row.step, last.get(_kind(row), -1))
    values: dict[tuple[str, int, str], dict[str, float]] = {}
    columns: dict[str, tuple[Any, ...]] = {}
    known = list(TITLES)
    for row in rows:
        if row.step == last[_kind(row)]:
            name = _column(row, own)
            kind = kind_of(row.measure, row.variant)
            columns[name] = (
                row.dataset != own,
                known.index(kind) if kind in known else len(known),
                row.split,
            )
            scale = 100 if share(row.measure) else 1
            values.setdefault((row.run_id, row.index, row.layer), {})[name] = scale * row.value
    order = sorted(columns, key=lambda name: columns[name])
    of = {layer.name: layer for layer in layers}
    about = [name for name in ("kind", "shape", "parameters", "flops") if layers]
    dims = {(row.run_id, row.index, row.layer): row.dim for row in rows if row.dim}
    lines = []
    for place in sorted(values):
        run_id, index, name = place
        info = of.get(name)
        lines.append(
            [
                *([run_id] if several_runs else []), index, name,
                *(values[place].get(column) for column in order), dims.get(place),
                *(getattr(info, each) if info else None for each in about),
            ]
        )  # fmt: skip
    heads = [*(["run"] if several_runs else []), "#", "layer", *order, "dim", *about]
    note = "At the last step of each measure. Layer 0 is the raw pixels; network is the network's own output."
    return [Table("all_layers", "Every measure of every layer", heads, lines, note)] if lines else []


def _kind(row: Row) -> tuple[Any, ...]:
    return (row.run_id, row.measure, row.variant, row.dataset, row.split)


def _column(row: Row, own: str | None) -> str:
    where = row.split if row.dataset == own else f"{row.dataset} {row.split}"
    return f"{measure_name(row.measure, row.variant)}, {where}" + (" %" if share(row.measure) else "")


def details(manifest: Mapping[str, Any], summary: Mapping[str, Any]) -> list[Table]:
    """Settings, versions, machine, the time each part took, and notes; of the analysis, else of the run."""
    parts: list[tuple[str, str, Any]] = [
        ("notes", "Notes", dict(enumerate(notes(summary), 1))),
        ("settings", "Settings", summary.get("settings") or manifest.get("taps")),
        ("penalty", "Penalty of each logistic probe", summary.get("penalty")),
        ("network", "Network", summary.get("network")),
        ("versions", "Versions", summary.get("versions") or manifest.get("versions")),
        ("machine", "Machine", summary.get("machine") or manifest.get("machine")),
        ("seconds", "Seconds", summary.get("seconds")),
    ]
    return [
        Table(key, title, ["what", "value"], [[str(k), _text(v)] for k, v in _flat(found)])
        for key, title, found in parts
        if isinstance(found, Mapping) and found
    ]


def notes(summary: Mapping[str, Any]) -> list[str]:
    """What a reader must know, as that a set was shown at another size."""
    return [str(note) for note in summary.get("notes") or []]


def _flat(found: Mapping[Any, Any], path: str = "") -> list[tuple[str, Any]]:
    lines: list[tuple[str, Any]] = []
    for key, value in found.items():
        name = f"{path}.{key}" if path else str(key)
        lines += _flat(value, name) if isinstance(value, Mapping) and value else [(name, value)]
    return lines


def _text(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return (
        value
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
        else str(value)
    )
