"""How accuracy, transfer, rank and weights change from profile to profile: maps of layers over steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from tunnel_lightning.report.charts import Map, Section
from tunnel_lightning.report.heat import Grid, grid, heat_map
from tunnel_lightning.report.lines import measure_name
from tunnel_lightning.report.style import RANK
from tunnel_lightning.report.words import number, percent
from tunnel_lightning.runs import Row, curve, ood_datasets, probe_variant


def over_time(rows: Sequence[Row], own: str | None, watched: bool) -> Section:
    """Show a map of each measure that several profiles have.

    Args:
        rows: rows of several profiles of one run.
        own: the set the network was trained on.
        watched: whether they were measured while training.
    """
    probe = ("probe_accuracy", probe_variant(rows))
    maps = [
        *_map(rows, own, *probe, own),
        *_transfer(rows, own),
        *_map(rows, own, *RANK, own),
        *_map(rows, own, "weight_change", "l2_per_sqrt_n", own),
    ]
    text = (
        "Measured while training, with the settings of the monitor."
        if watched
        else "Measured at each checkpoint."
    )
    return Section("over_time", "Over time", maps, text)


def _map(
    rows: Sequence[Row], own: str | None, measure: str, variant: str, dataset: str | None, **more: Any
) -> list[Map]:
    """One measure of a set; nothing where fewer than two profiles have it."""
    if len({r.step for r in rows if (r.measure, r.variant, r.dataset) == (measure, variant, dataset)}) < 2:
        return []
    found = grid(rows, own, measure, variant, dataset)
    fields: dict[str, Any] = {
        "key": f"over_time_{measure}",
        "title": measure_name(measure, variant),
        "draw": partial(heat_map, rows, measure, variant, dataset, own),
    }
    return [
        Map(
            columns=[f"step {c.step:,}, epoch {c.epoch}" for c in found.curves],
            rows=list(found.names.values()),
            value=found.value,
            unit="%" if measure.endswith("accuracy") else "",
            x="step",
            short=[f"{c.step:,}" for c in found.curves],
            y="layer (deeper upwards)",
            edge=found.start,
            edge_label="the tunnel starts here (95 % rule)",
            **fields | more,
        )
    ]


def _transfer(rows: Sequence[Row], own: str | None) -> list[Map]:
    """Transfer, averaged over the sets it was last measured on."""
    mean, sets = mean_over_sets(rows, own)
    if not mean:
        return []
    kind = mean[0].measure, mean[0].variant, mean[0].dataset
    rows = [*(row for row in rows if (row.measure, row.variant, row.dataset) != kind), *mean]
    probe = measure_name(*kind[:2])
    name = f"Transfer: {probe[:1].lower()}{probe[1:]}"
    of = (
        f"Probes of {sets[0]}"
        if len(sets) == 1
        else f"Mean of probes of {', '.join(sets[:-1])} and {sets[-1]}"
    )
    return _map(
        rows,
        own,
        *kind,
        key="over_time_transfer",
        title=f"{name}, {kind[2]}",
        note=f"{of}, which the network was not trained on. {_said(grid(rows, own, *kind))}",
        draw=partial(heat_map, rows, *kind, own, name),
    )


def mean_over_sets(rows: Sequence[Row], own: str | None) -> tuple[list[Row], list[str]]:
    """Average transfer over the sets of the last profile that has any, at each step at which all of them were probed.

    Args:
        rows: rows of several profiles of one run.
        own: the set the network was trained on.

    Returns:
        Rows of a set called ``mean of K sets`` (a single one keeps its name), of the layers where each of the K has
        a finite value, and the sets' names.

    Example:
        >>> row = Row("mlp", 0, 0, -1, "test", "A", "l1", 1, "probe_accuracy", "ridge", 0.5)
        >>> rows = [row, row._replace(dataset="B", value=0.75), row._replace(dataset="C", value=1.0)]
        >>> [(mean.dataset, mean.value) for mean in mean_over_sets(rows, "C")[0]]
        [('mean of 2 sets', 0.625)]
    """
    kind, names = ("probe_accuracy", probe_variant(rows)), ood_datasets(rows, own)
    by_step: dict[int, list[Row]] = {}
    for row in rows:
        if (row.measure, row.variant) == kind and row.dataset in names and row.split != "train":
            by_step.setdefault(row.step, []).append(row)
    there = {row.dataset for row in by_step[max(by_step)]} if by_step else set()
    sets = [name for name in names if name in there]
    name = sets[0] if len(sets) == 1 else f"mean of {len(sets)} sets"
    mean = []
    for step in sorted(by_step):
        curves = [curve(by_step[step], *kind, dataset).layers_only().finite() for dataset in sets]
        common = set.intersection(*(set(c.index.tolist()) for c in curves))
        values = np.mean([c.where(np.isin(c.index, list(common))).value for c in curves], axis=0)
        split = curves[0].split
        of_first = {row.index: row for row in by_step[step] if (row.dataset, row.split) == (sets[0], split)}
        mean += [
            of_first[index]._replace(dataset=name, value=float(value), se=float("nan"))
            for index, value in zip(sorted(common), values, strict=True)
        ]
    return mean, sets


def _said(found: Grid) -> str:
    """Say where transfer was best and what the last layer kept of it, at first and in the end."""
    first, last = (_best(found, column) for column in (0, -1))
    return f"{first[:1].upper()}{first[1:]}; {last}."


def _best(found: Grid, column: int) -> str:
    values = found.value[:, column]
    known = np.flatnonzero(np.isfinite(values))
    best, end = known[np.argmax(values[known])], known[-1]
    step, layer = number(found.curves[column].step), list(found.names)[best]
    said = f"at step {step} layer {layer} transfers best ({percent(values[best] / 100)})"
    if best == end or not values[best] > 0:
        return said
    return f"{said} and the last layer keeps {percent(values[end] / values[best], 0)} of that"
