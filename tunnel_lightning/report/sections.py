"""The page of one run: which sections it has, and the profile, transfer and probes among them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np

from tunnel_lightning.report import results, structure, tables
from tunnel_lightning.report.charts import Chart, Line, Mark, Page, Section, Table
from tunnel_lightning.report.figures import depth_profile
from tunnel_lightning.report.lines import DASHES, Wanted, hover, line, several
from tunnel_lightning.report.over_time import over_time
from tunnel_lightning.report.source import Source
from tunnel_lightning.report.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    OLIVE,
    ORANGE,
    PURPLE,
    RANK,
    RULE_LABELS,
    SKY,
    STYLE,
    VERMILION,
    WINE,
)
from tunnel_lightning.report.words import headline, mean_transfer, number, numbers, percent
from tunnel_lightning.runs import (
    PROBES,
    Row,
    curve,
    network_accuracy,
    ood_datasets,
    probe_variant,
    tunnels,
)

KINDS = {
    "ridge": ("ridge", BLUE, "solid"),
    "logistic": ("logistic", WINE, "dash"),
    "masarczyk": ("as Masarczyk et al.", OLIVE, "dot"),
    "harun": ("as Harun et al.", GREY, "dashdot"),
    "nguyen": ("as Nguyen et al.", ORANGE, "dash"),
}
"""Kinds of converged probes: name, colour and dash."""

ADDITION = "ridge@addition"
"""Variant of the ridge probes round residual additions, whose layers are places of their own."""


def kinds(rows: Sequence[Row]) -> dict[str, tuple[str, str, str]]:
    """The kinds of converged probes that were fitted, the one that decides first; unknown ones by their own name."""
    there = dict.fromkeys(row.variant for row in rows if row.measure == "probe_accuracy")
    known = {kind: KINDS[kind] for kind in PROBES if kind in there}
    others = [kind for kind in there if kind not in (*KINDS, "online", ADDITION)]
    looks = zip(others, cycle((PURPLE, "#332288")), cycle(DASHES), strict=False)
    return known | {kind: (kind, color, dash) for kind, color, dash in looks}


def page_of_run(source: Source) -> Page:
    """Say what the page of one run shows."""
    rows, own = source.rows, source.own
    summary = source.analysis.summary if source.analysis else {}
    similarity = source.analysis.similarity if source.analysis else {}
    sections = [
        Section("profile", "Depth profile", [*profile(rows, own), *rules(rows, own)]),
        Section("transfer", "Transfer", transfer(rows, own, summary)),
        Section("similarity", "Similarity of layers", structure.similarity(rows, own, similarity, summary)),
        Section("probes", "Probes", [*probes(rows, own, summary), *additions(rows, own)]),
        Section(
            "spectra", "Dimensions", [*structure.ranks(rows, own), *structure.spectra(rows, source.analysis)]
        ),
        Section("collapse", "Variance and collapse", structure.collapse(rows, own)),
        over_time(source.history, source.history_own, watched=source.watched),
        structure.pictures(source.analysis),
        *results.sections_of(source.home),
        Section("layers", "All layers", tables.all_layers(rows, own, source.layers)),
        Section("settings", "Settings and versions", tables.details(source.manifest, summary), folded=True),
    ]
    notes = list(dict.fromkeys([*tables.notes(summary), *results.notes_of(source.home)]))
    return Page(source.title, headline(rows, own), _subtitle(source), numbers(rows, own), sections, notes)


def _subtitle(source: Source) -> str:
    summary = source.analysis.summary if source.analysis else {}
    network = summary.get("network") or {}
    parameters = network.get("parameters") or sum(layer.parameters for layer in source.layers)
    last = max(source.rows, key=lambda row: row.step, default=None)
    return "  ·  ".join(
        [
            *[str(each) for each in (network.get("name"),) if each and each != source.title],
            *([source.run_id] if source.run_id != source.title else []),
            *([f"{_millions(parameters)} parameters"] if parameters else []),
            *[each for each in (source.own,) if each],
            *([f"checkpoint {Path(str(summary['checkpoint'])).name}"] if summary.get("checkpoint") else []),
            *([f"epoch {last.epoch}, step {number(last.step)}"] if last and last.step >= 0 else []),
            *([] if source.analysis else ["measured while training"]),
        ]
    )


def _millions(count: int) -> str:
    return f"{count / 1e6:.3g} million" if count >= 1e6 else number(count)


def profile(rows: Sequence[Row], own: str | None) -> list[Chart]:
    """What every layer knows, at the last step with converged probes: the page's form of `depth_profile`."""
    decides, looks = probe_variant(rows), kinds(rows)
    probe = curve(rows, dataset=own)
    lines: list[Line] = []
    for variant, (name, color, dash) in looks.items():
        found = curve(rows, variant=variant, dataset=own)
        if found.layer:
            look = {"dash": dash, "marker": "circle", "shown": not lines}
            label = f"{own} {name} (ID)"
            if variant == decides:
                layers = found.layers_only()
                look |= {"low": 100 * (layers.value - layers.se), "high": 100 * (layers.value + layers.se)}
                look["width"] = 2.6
            lines += _with_raw(line(found, label, color, **look), found)
    online = curve(rows, variant="online", dataset=own)
    if online.layer:
        lines.append(line(online, f"{own} online (ID)", SKY, width=1.4, shown=not probe.layer))
    ood = [found for name in ood_datasets(rows, own) if (found := curve(rows, dataset=name)).layer]
    colors = STYLE["ood_colors"][len(ood) > 1 :]  # the first is the mean's
    for k, found in enumerate(ood):
        look = {
            "dash": ("dash", "dot", "dashdot")[k % 3],
            "marker": "square",
            "width": 2.2 if len(ood) == 1 else 1.7,
        }
        made = line(found, f"{found.dataset} {looks[decides][0]} (OOD)", colors[k % len(colors)], **look)
        lines += _with_raw(made, found)
    if len(ood) > 1:
        lines += _mean(rows, own, len(ood))
    rank = curve(rows, *RANK, dataset=own)
    if not lines and not rank.layer:
        return []
    last = max(int(each.x[-1]) for each in [*lines, *([line(rank, "")] if rank.layer else [])] if len(each.x))
    value = network_accuracy(rows, own, probe.split or online.split, max(probe.step, online.step))
    if math.isfinite(value) and lines:
        text = f"network {percent(value)}"
        at = np.array([0.5, last + 0.5])
        lines.append(Line(text, at, np.full(2, 100 * value), [text] * 2, INK, dash="dot", width=1.4))
    accuracies = bool(lines)
    if rank.layer:
        lines.append(line(rank, "numerical rank", GREEN, dash="dashdot", right=accuracies))
    starts = tunnels(rows, own)
    first = starts["id95"].start
    at_zero = any(0 in each.x for each in lines)
    chart = Chart(
        "depth_profile",
        "What every layer knows",
        lines,
        y="linear probe accuracy (%)" if accuracies else "numerical rank (rtol 1e-3)",
        right="numerical rank (rtol 1e-3)" if rank.layer and accuracies else "",
        ticks={0: "raw"} if at_zero else None,
        marks=marks(starts),
        shade=(first, "tunnel (95 % rule)") if first else None,
        note=_profile_note(probe.layer != [], at_zero),
        wide=True,
        draw=partial(depth_profile, rows, own=own),
    )
    return [chart]


def _profile_note(band: bool, raw: bool) -> str:
    parts = ["Probes are fitted on frozen features and scored on held-out images."]
    if band:
        parts.append("The band is one standard error.")
    if raw:
        parts.append("Hollow marks: probes on raw pixels.")
    return " ".join([*parts, "A tap on a name in the legend shows or hides its line."])


def _with_raw(made: Line, found: Any) -> list[Line]:
    """The line, and the raw pixels as a hollow mark that is not joined to it."""
    raw = found.where(found.index == 0)
    if not raw.layer:
        return [made]
    mark = f"{made.marker or 'circle'}-open"
    said = hover(raw, made.label)
    return [
        made,
        Line(
            made.label, raw.index, 100 * raw.value, said, made.color,
            width=0, marker=mark, shown=made.shown, legend=False,
        ),
    ]  # fmt: skip


def _mean(rows: Sequence[Row], own: str | None, count: int) -> list[Line]:
    mean = {i: v for i, v in mean_transfer(rows, tunnels(rows, own)["ood"]).items() if i}
    text = f"mean of {count} OOD sets"
    said = [f"<b>layer {i}</b><br>{text}: {percent(v)}" for i, v in mean.items()]
    x, y = np.array(list(mean)), 100 * np.array(list(mean.values()))
    return [Line(text, x, y, said, VERMILION, dash="dash", width=2.6)] if mean else []


def marks(starts: dict[str, Any]) -> list[Mark]:
    """The tunnel's start by each rule; rules that agree share a mark."""
    names: dict[int, list[str]] = {}
    for rule, found in starts.items():
        if found.start is not None:
            names.setdefault(found.start, []).append(rule)
    dashes = {"id95": "solid", "id98": "dash", "ood": "dot"}
    return [
        Mark(start, " · ".join(RULE_LABELS[rule] for rule in rules), dashes[rules[0]])
        for start, rules in sorted(names.items())
    ]


def rules(rows: Sequence[Row], own: str | None) -> list[Table]:
    """Where the tunnel starts by each rule, in words."""
    found = tunnels(rows, own)
    if all(rule.extractor_length is None for rule in found.values()):
        return []
    table = Table(
        "rules",
        "Where the tunnel starts",
        ["rule", "starts at", "extractor", "in words", "layer"],
        [
            [f"{RULE_LABELS[name]} rule", rule.start or "none", rule.extractor_length, rule.note, rule.layer]
            for name, rule in found.items()
        ],
        "95 and 98 % rule: the first layer whose probe reaches that share of the network's accuracy (Masarczyk et "
        "al., 2023). OOD rule: behind the layer that transfers best, the extractor's last.",
    )
    return [table]


def transfer(rows: Sequence[Row], own: str | None, summary: dict[str, Any]) -> list[Table | Chart]:
    """How well layers transfer to each other set: a table, and a chart where probes of several kinds were fitted."""
    stated = summary.get("transfer") or {}
    lines, charts = [], []
    for name in ood_datasets(rows, own):
        for variant, (probe, _, _) in kinds(rows).items():
            found = curve(rows, variant=variant, dataset=name).layers_only().finite()
            if found.layer:
                best = int(np.argmax(found.value))
                where, accuracy = f"{found.index[best]}: {found.layer[best]}", 100 * found.value[[best, -1]]
                values = (_last(rows, measure, variant, name) for measure in tables.OF_CURVES)
                said = stated.get(name) or {}
                strength = said.get("strength") if said.get("variant", "ridge") == variant else None
                lines.append([name, probe, where, *accuracy, *values, *([strength] if stated else [])])
        if len(drawn := _kinds(rows, name)) > 1:
            about = _fitted_on(rows, summary)
            charts.append(Chart(f"transfer_{name}", f"Probes of {name}", drawn, y="accuracy (%)", note=about))
    heads = ["set", "probe", "best layer", "best %", "last layer %", "kept %", "Pearson", "alignment"]
    note = "Kept: accuracy of the last layer over that of the best. Pearson: correlation of the trained set's curve "
    note += (
        "with this one. Alignment: product of both accuracies above chance, at the end (Harun et al., 2024)."
    )
    if stated:
        heads.append("tunnel effect")
        note += " Tunnel effect by what is kept: from 95 % negligible, from 90 % weak, from 80 % medium, else strong."
    return [Table("transfer", "Transfer to other sets", heads, lines, note), *charts] if lines else []


def _last(rows: Sequence[Row], measure: str, variant: str, dataset: str) -> float | None:
    found = [r for r in rows if (r.measure, r.variant, r.dataset) == (measure, variant, dataset)]
    return max(found, key=lambda r: r.step).value if found else None


def _kinds(rows: Sequence[Row], dataset: str | None) -> list[Line]:
    lines = []
    for variant, (name, color, dash) in kinds(rows).items():
        found = curve(rows, variant=variant, dataset=dataset)
        if np.isfinite(found.value).any():
            lines.append(line(found, name, color, dash=dash, marker="circle"))
    return lines


def _fitted_on(rows: Sequence[Row], summary: Mapping[str, Any]) -> str:
    """How many training images the ridge probes saw, and how many the others; empty where that is not known."""
    settings = summary.get("settings") or {}
    sample, cap = settings.get("sample"), settings.get("fit_images")
    if sample is None or "ridge" not in kinds(rows):
        return ""
    most = "all" if cap is None else f"up to {number(cap)}"
    return f"Ridge probes are fitted on {most} training images, the others on up to {number(sample)} of them."


def probes(rows: Sequence[Row], own: str | None, summary: Mapping[str, Any]) -> list[Chart]:
    """Other kinds and other scores of the trained set's probes."""
    decides = probe_variant(rows)
    charts = [
        Chart(
            "probes",
            f"Probes of {own} by how they are fitted",
            _kinds(rows, own),
            y="accuracy (%)",
            marks=marks(tunnels(rows, own)),
            note=_fitted_on(rows, summary),
        )
    ]
    scores: list[Wanted] = [
        ("probe_accuracy", decides, "accuracy"),
        ("probe_balanced_accuracy", decides, "balanced accuracy"),
        ("probe_top5_accuracy", decides, "top-5 accuracy"),
    ]
    drawn = several(rows, scores, own)
    charts.append(
        Chart("probe_scores", f"{decides.capitalize()} probe by how it is scored", drawn, y="accuracy (%)")
    )
    return [chart for chart in charts if len(chart.lines) > 1]


def additions(rows: Sequence[Row], own: str | None) -> list[Chart]:
    """Probes before and after each residual addition."""
    found = curve(rows, variant=ADDITION, dataset=own)
    after = np.array([name.rpartition(".")[2].partition("#")[0] == "add" for name in found.layer], dtype=bool)
    if not after.any():
        return []
    before = found.where(np.append(after[1:], False) & ~after)
    return [
        Chart(
            "additions",
            "Before and after each residual addition",
            [
                line(found.where(after), "after the addition", BLUE, marker="circle"),
                line(before, "before it", VERMILION, dash="dash", marker="square"),
            ],
            x="place, in execution order",
            y="accuracy (%)",
            note="Where a block only compresses, the sum knows no more than what went into it (Nguyen et al., 2021).",
        )
    ]
