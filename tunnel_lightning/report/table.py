"""The profile of a run as a table in the terminal, one line per layer."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunnel_lightning.report.source import rows_of
from tunnel_lightning.report.style import RANK, RULE_LABELS, shorten
from tunnel_lightning.report.terminal import SHORT, SHORTEST, Column, drawn, fitted
from tunnel_lightning.runs import (
    INPUT,
    NETWORK,
    Curve,
    Row,
    Run,
    RunError,
    curve,
    network_accuracy,
    ood_datasets,
    probe_variant,
    tunnels,
)

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def profile_table(
    run: Run | Iterable[Row], name_width: int = 30, most_sets: int = 3, arrow: str = "◀"
) -> Table:
    """Return the profile at the end of a run as a rich table.

    One line per layer: index, name, dimension, ridge probe (where there is none another converged one, else the
    online probe) on the in-distribution set and on each out-of-distribution set in percent, numerical rank, and
    the rules by which the tunnel starts there. Line 0 is the raw pixels, the last the network's own accuracy. A
    dash stands for what was not measured.

    Args:
        run: a run, or rows of one.
        name_width: longer layer names are shortened in the middle.
        most_sets: more out-of-distribution sets than this are shown as their mean.
        arrow: the mark before a rule's name.

    Raises:
        RunError: there are no probes and no ranks to show.

    Example:
        >>> row = Row("mlp/version_0", 9, 1, -1, "val", "Glyphs", "l1", 1, "rank_cov", "rtol=1e-3", 12.0)
        >>> table = profile_table([row, row._replace(layer="l2", index=2, value=5.0)])
        >>> table.row_count, [column.header.plain for column in table.columns]
        (2, ['#', 'layer', 'dim', 'rank', 'tunnel starts'])
    """
    rows, own = rows_of(run)
    columns, look = _columns(rows, own, most_sets, arrow)
    return drawn(columns, name_width, **look)


def print_profile(run: Run, console: Console | None = None, folder: str = "run folder") -> None:
    """Print a run's profile: the table, what each rule says in words, and where to look further.

    Args:
        run: the run; one without probes and ranks gets the last part alone.
        console: default: standard output, 80 columns where it is no terminal.
        folder: what the run's folder is called.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = console or Console()
    rows, own = rows_of(run)
    probe, ood, rank = _curves(rows, own)
    shown = [c for c in (probe, *ood, rank) if c.layer]
    console.print()
    if shown:
        console.print(Text(f"{run.id}, epoch {shown[0].epoch}, step {shown[0].step}", style="bold"))
        table, left_out = _fitting(rows, own, console)
        console.print(table, crop=False)
        if left_out:
            console.print(Text(f"no room here: {', '.join(left_out)}", style="dim"))
        kind = probe_variant(rows)
        legend = [f"ID, OOD: {kind} probe on frozen features"] if probe.variant == kind or ood else []
        legend += (
            ["rank: covariance eigenvalues above 1e-3 of the largest"]
            if rank.layer and "rank" not in left_out
            else []
        )
        console.print(Text("; ".join(legend), style="dim"))
        words = Table.grid(padding=(0, 2))
        words.add_column(no_wrap=True, style="bold cyan")
        words.add_column(overflow="fold")
        for rule, found in tunnels(rows, own).items():
            words.add_row(Text(f"{RULE_LABELS[rule]} rule"), Text(found.note))
        if kept := _kept(rows, ood):
            text = f"of the best layer's transfer the last layer keeps: {', '.join(kept)}"
            words.add_row(Text("kept"), Text(text))
        console.print()
        console.print(words)
        console.print()
    # Commands and paths are never broken over lines: they are there to be copied.
    console.print(Text(f"{folder:<13}{run.path}"), soft_wrap=True)
    if any(Path(run.path).glob("events.out.tfevents.*")):
        command = f"tensorboard --logdir {shlex.quote(str(run.path))}"
        console.print(Text(f"TensorBoard  {command}"), soft_wrap=True)


def _curves(rows: list[Row], own: str | None) -> tuple[Curve, list[Curve], Curve]:
    """The in-distribution probe, the out-of-distribution probes and the rank."""
    probe = curve(rows, dataset=own)
    probe = probe if probe.layer else curve(rows, variant="online", dataset=own)
    ood = [c for name in ood_datasets(rows, own) if (c := curve(rows, dataset=name)).layer]
    return probe, ood, curve(rows, *RANK, own)


def _kept(rows: list[Row], ood: list[Curve]) -> list[str]:
    at = {(c.dataset, c.step) for c in ood}
    kind = ("ood_retained", probe_variant(rows))
    return [
        f"{r.dataset} {r.value:.0f} %"  # a percentage, as in Harun et al.
        for r in rows
        if (r.measure, r.variant) == kind and (r.dataset, r.step) in at and np.isfinite(r.value)
    ]


def _fitting(rows: list[Row], own: str | None, console: Console) -> tuple[Table, list[str]]:
    """Draw what fits the console, and name the columns that don't; one column for all other sets makes room."""
    arrow = "<" if console.options.ascii_only else "◀"
    columns, look = _columns(rows, own, 3, arrow)
    table, left_out = fitted(columns, console, **look)
    if any(each.rank < _DIM for each in left_out):
        columns, look = _columns(rows, own, 1, arrow)
        table, left_out = fitted(columns, console, **look)
    return table, [each.name for each in left_out]


_OOD, _RANK, _STARTS, _DIM = 1, 2, 3, 4
"""Ranks of columns that are left out where there is no room, the last first."""


def _columns(
    rows: list[Row], own: str | None, most_sets: int, arrow: str
) -> tuple[list[Column], dict[str, Any]]:
    """The columns of the table, and how its lines look."""
    probe, ood, rank = _curves(rows, own)
    if not (probe.layer or ood or rank.layer):
        raise RunError("There is no profile to show: the rows hold no probes and no numerical ranks.")
    layers = {i: (n, d) for c in (rank, probe, *ood) for i, n, d in zip(c.index, c.layer, c.dim, strict=True)}
    order = sorted(int(i) for i in layers)
    network = network_accuracy(rows, own, probe.split, probe.step)
    below = [f"{100 * network:.1f}"] if np.isfinite(network) else []  # under the first column of numbers
    last = [""] * len(below)
    marks: dict[int | None, list[str]] = {}
    for rule, found in tunnels(rows, own).items():
        marks.setdefault(found.start, []).append(RULE_LABELS[rule])

    columns = [
        Column("#", "#", [*map(str, order), *last], style="dim"),
        Column(
            "layer", "layer",
            [*("raw pixels" if layers[i][0] == INPUT else layers[i][0] for i in order), *[NETWORK] * len(last)],
            right=False, names=True,
        ),
        Column("dim", "dim", [*(str(layers[i][1] or "-") for i in order), *last], _DIM, SHORT, style="dim"),
    ]  # fmt: skip

    def add(name: str, head: str, values: dict[int, str], rank: int, least: int = SHORTEST) -> None:
        under = last if len(columns) > 3 else below
        columns.append(Column(name, head, [*(values.get(i, "-") for i in order), *under], rank, least))

    if probe.layer:
        kind = "online" if probe.variant == "online" else "ID"
        add(f"{kind} %", f"{shorten(str(own), 12)}\n{kind} %", _percents(probe), 0)
    if len(ood) > most_sets:
        add("OOD %", f"{len(ood)} sets\nOOD %", _means(ood), _OOD)
    for c in ood if len(ood) <= most_sets else ():
        least = SHORTEST if len(ood) == 1 else SHORT
        add(f"{c.dataset} OOD %", f"{shorten(c.dataset, 12)}\nOOD %", _percents(c), _OOD, least)
    if rank.layer:
        add("rank", "rank", {int(i): _whole(v) for i, v in zip(rank.index, rank.value, strict=True)}, _RANK)
    said = [f"{arrow} {', '.join(marks[i])}" if i in marks else "" for i in order]
    starts = "tunnel starts"
    columns.append(Column(starts, starts, [*said, *last], _STARTS, right=False, style="bold cyan"))
    styles = ["dim" if i == 0 else None for i in order] + ["bold"] * len(last)
    return columns, {"styles": styles, "ends": {len(order) - 1}}


def _percents(c: Curve) -> dict[int, str]:
    return {int(i): f"{100 * v:.1f}" for i, v in zip(c.index, c.value, strict=True)}


def _means(curves: list[Curve]) -> dict[int, str]:
    common = set.intersection(*(set(c.index.tolist()) for c in curves))
    values = {i: np.mean([c.value[c.index == i][0] for c in curves]) for i in common}
    return {i: f"{100 * v:.1f}" for i, v in values.items()}


def _whole(value: float) -> str:
    return f"{value:.0f}"
