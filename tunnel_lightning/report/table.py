"""The profile of a run as a table in the terminal, one line per layer."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from tunnel_lightning.report.style import RANK, RULE_LABELS, shorten
from tunnel_lightning.runs import (
    INPUT,
    NETWORK,
    Curve,
    Row,
    Run,
    RunError,
    curve,
    id_dataset,
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
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = run.rows if isinstance(run, Run) else list(run)
    own = id_dataset(rows)
    probe, ood, rank = _curves(rows)
    if not (probe.layer or ood or rank.layer):
        raise RunError("There is no profile to show: the rows hold no probes and no numerical ranks.")
    marks: dict[int | None, list[str]] = {}
    for rule, found in tunnels(rows).items():
        marks.setdefault(found.start, []).append(RULE_LABELS[rule])
    marks.pop(None, None)

    columns: list[tuple[str, dict[int, str]]] = []
    if probe.layer:
        columns.append((f"{own}\n{'online' if probe.variant == 'online' else 'ID'} %", _percents(probe)))
    if len(ood) > most_sets:
        columns.append((f"{len(ood)} sets\nOOD %", _means(ood)))
    else:
        columns += [(f"{shorten(c.dataset, 12)}\nOOD %", _percents(c)) for c in ood]
    if rank.layer:
        columns.append(("rank", {i: _whole(v) for i, v in zip(rank.index, rank.value, strict=True)}))

    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold", show_edge=False
    )
    table.add_column(Text("#"), justify="right", style="dim")
    table.add_column(Text("layer"), no_wrap=True)
    table.add_column(Text("dim"), justify="right", style="dim")
    for header, _ in columns:
        table.add_column(Text(header), justify="right")
    table.add_column(Text("tunnel starts"), no_wrap=True, style="bold cyan")

    layers = {i: (n, d) for c in (rank, probe, *ood) for i, n, d in zip(c.index, c.layer, c.dim, strict=True)}
    for index in sorted(layers):
        name, dim = layers[index]
        name = "raw pixels" if name == INPUT else shorten(name, name_width)
        cells = [values.get(int(index), "-") for _, values in columns]
        mark = f"{arrow} {', '.join(marks[index])}" if index in marks else ""
        # Text, not str: a layer's name may hold brackets, which are markup in rich.
        table.add_row(
            *(Text(c) for c in (str(index), name, str(dim) if dim else "-", *cells, mark)),
            style="dim" if index == 0 else None,
            end_section=index == max(layers),
        )
    network = network_accuracy(rows, own, probe.split, probe.step)
    if np.isfinite(network):
        cells = [f"{100 * network:.1f}" if not k else "" for k in range(len(columns))]
        table.add_row(*(Text(c) for c in ("", NETWORK, "", *cells, "")), style="bold")
    return table


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
    rows = run.rows
    probe, ood, rank = _curves(rows)
    shown = [c for c in (probe, *ood, rank) if c.layer]
    console.print()
    if shown:
        console.print(Text(f"{run.id}, epoch {shown[0].epoch}, step {shown[0].step}", style="bold"))
        console.print(_fitting(rows, console))
        kind = probe_variant(rows)
        legend = [f"ID, OOD: {kind} probe on frozen features"] if probe.variant == kind or ood else []
        legend += ["rank: covariance eigenvalues above 1e-3 of the largest"] if rank.layer else []
        console.print(Text("; ".join(legend), style="dim"))
        words = Table.grid(padding=(0, 2))
        words.add_column(no_wrap=True, style="bold cyan")
        words.add_column()
        for rule, found in tunnels(rows).items():
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


def _curves(rows: list[Row]) -> tuple[Curve, list[Curve], Curve]:
    """The in-distribution probe, the out-of-distribution probes and the rank."""
    probe = curve(rows)
    probe = probe if probe.layer else curve(rows, variant="online")
    ood = [c for name in ood_datasets(rows) if (c := curve(rows, dataset=name)).layer]
    return probe, ood, curve(rows, *RANK)


def _kept(rows: list[Row], ood: list[Curve]) -> list[str]:
    at = {(c.dataset, c.step) for c in ood}
    kind = ("ood_retained", probe_variant(rows))
    return [
        f"{r.dataset} {r.value:.0f} %"  # a percentage, as in Harun et al.
        for r in rows
        if (r.measure, r.variant) == kind and (r.dataset, r.step) in at and np.isfinite(r.value)
    ]


def _fitting(rows: list[Row], console: Console) -> Table:
    """Make the table fit the console: shorter names, and where those would be unreadable, fewer sets."""
    arrow = "<" if console.options.ascii_only else "◀"
    longest = max((len(r.layer) for r in rows), default=0)
    for most_sets in (3, 2, 1):
        table = profile_table(rows, longest, most_sets, arrow)
        over = console.measure(table, options=console.options.update(width=10_000)).maximum - console.width
        width = longest - max(over, 0)
        if width >= min(longest, 16):
            break
    return profile_table(rows, max(width, 10), most_sets, arrow) if over > 0 else table


def _percents(c: Curve) -> dict[int, str]:
    return {int(i): f"{100 * v:.1f}" for i, v in zip(c.index, c.value, strict=True)}


def _means(curves: list[Curve]) -> dict[int, str]:
    common = set.intersection(*(set(c.index.tolist()) for c in curves))
    values = {i: np.mean([c.value[c.index == i][0] for c in curves]) for i in common}
    return {i: f"{100 * v:.1f}" for i, v in values.items()}


def _whole(value: float) -> str:
    return f"{value:.0f}"
