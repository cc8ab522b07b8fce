"""The page of several runs laid over one another, and of a comparison folder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report import tables
from tunnel_lightning.report.charts import (
    Chart,
    Item,
    Line,
    Map,
    Number,
    Page,
    Points,
    Section,
    Table,
    escape,
)
from tunnel_lightning.report.lines import COLORS, DASHES, share
from tunnel_lightning.report.structure import similarity_map
from tunnel_lightning.report.style import RANK
from tunnel_lightning.report.words import kept_transfer, mean_transfer, number, percent
from tunnel_lightning.runs import (
    Comparison,
    Curve,
    Row,
    SimilarityMap,
    Tunnel,
    curve,
    network_accuracy,
    tunnels,
)
from tunnel_lightning.runs.comparison import ANALYSED, TRAINED


class Member(NamedTuple):
    """One of several runs.

    Attributes:
        run_id: its id.
        rows: its profile.
        own: the set the network was trained on; None without rows.
        group: the group of runs of its kind.
        source: where the rows are from.
    """

    run_id: str
    rows: list[Row]
    own: str | None
    group: str
    source: str = ""

    def tunnel(self) -> dict[str, Tunnel]:
        """Where its tunnel starts."""
        return tunnels(self.rows, self.own)

    def curve(self, measure: str = "probe_accuracy", variant: str | None = None) -> Curve:
        """A measure of the set the network was trained on."""
        return curve(self.rows, measure, variant, self.own)


def page_of_runs(members: Sequence[Member], notes: Sequence[str] = ()) -> Page:
    """Say what the page of several runs shows: their profiles over one another."""
    sections = [*_overlay(members), _layers(members)]
    if len(_groups(members)) < len(members):
        notes = [*notes, "runs of one name, set and layers count as seeds of one kind"]
    return Page(", ".join(_groups(members)), _headline(members), _said(members), [], sections, notes)


def page_of_comparison(found: Comparison) -> Page:
    """Say what the page of a comparison shows: similarity, profiles, and how the answers differ."""
    summary = found.summary
    titles = {g["key"]: str(g.get("name") or g["key"]) for g in summary.get("groups") or []}
    of = {each["run_id"]: titles.get(each.get("group"), "") for each in summary.get("runs") or []}
    source = {each["run_id"]: each.get("profile") or "" for each in summary.get("runs") or []}
    members = [
        Member(
            run.id,
            run.rows,
            run.id_dataset,
            of.get(run.id) or run.id.partition("/")[0],
            source.get(run.id, ""),
        )
        for run in found.runs
    ]
    maps = [_cross(name, each, titles, _blocks(summary)) for name, each in found.similarity.items()]
    listed = [_table(k, each) for k, each in enumerate(summary.get("tables") or [])]
    sizes = {g["key"]: len(g.get("run_ids") or []) for g in summary.get("groups") or []}
    several = {key: values for key, values in found.per_image.items() if sizes.get(key, 0) > 1}
    answers: list[Item] = [*scatters(several, titles), *listed]
    sections = [
        Section("similarity", "Similarity of layers across networks", maps),
        *_overlay(members),
        Section("predictions", "Networks and their answers", answers),
        _layers(members),
        Section("settings", "Settings and versions", tables.details({}, summary), folded=True),
    ]
    title = str(summary.get("title") or ", ".join(_groups(members)))
    notes = tables.notes(summary)
    return Page(title, _headline(members), _said(members), _figures(summary, titles), sections, notes)


def _layers(members: Sequence[Member]) -> Section:
    rows = [row for member in members for row in member.rows]
    owns = {member.own for member in members if member.rows}
    table = tables.all_layers(rows, owns.pop() if len(owns) == 1 else None, [], several_runs=True)
    return Section("layers", "All layers", table)


def _groups(members: Sequence[Member]) -> dict[str, list[Member]]:
    groups: dict[str, list[Member]] = {}
    for member in members:
        groups.setdefault(member.group, []).append(member)
    return groups


def _said(members: Sequence[Member]) -> str:
    return "  ·  ".join(f"{name}: {_count(len(each), 'network')}" for name, each in _groups(members).items())


def _count(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _headline(members: Sequence[Member]) -> str:
    parts = []
    for name, each in _groups(members).items():
        found = [member.tunnel()["id95"] for member in each]
        starts = sorted(rule.start for rule in found if rule.start is not None)
        known = [rule for rule in found if rule.extractor_length is not None]
        if not known:
            continue
        if not starts:
            where = "has no tunnel" if len(each) == 1 else "have no tunnel"
        else:
            span = f"{starts[0]}" if starts[0] == starts[-1] else f"{starts[0]} to {starts[-1]}"
            where = f"from layer {span}"
            where += f" in {len(starts)} of {len(known)}" if len(starts) < len(known) else ""
        parts.append(f"{name} {where}")
    counted = _count(len(members), "network")
    return f"{counted}. Tunnel by the 95 % rule: {'; '.join(parts)}" if parts else f"{counted} compared"


def _figures(summary: Mapping[str, Any], titles: Mapping[str, str]) -> list[Number]:
    """The accuracy of each kind of network."""
    found: dict[str, list[float]] = {}
    for each in summary.get("runs") or []:
        value = (each.get("accuracy") or {}).get("value")
        if value is not None:
            found.setdefault(titles.get(each.get("group"), each["run_id"]), []).append(value)
    images = (
        f" on {number(summary['images'])} {summary.get('split', '')} images" if summary.get("images") else ""
    )
    return [
        Number(
            percent(float(np.mean(values))),
            name,
            f"accuracy of the network{images}"
            if len(values) == 1
            else f"mean accuracy of {len(values)} networks{images}, {percent(min(values))} to {percent(max(values))}",
        )
        for name, values in found.items()
    ]


def _overlay(members: Sequence[Member]) -> list[Section]:
    """Profiles by layer index and by relative depth, one line per run, or per group with its spread."""
    picks: list[tuple[str, str, str, Callable[[Member], Curve | None]]] = [
        ("id", "Probe of the trained set", "accuracy (%)", Member.curve),
        ("ood", "Transfer, mean over the other sets", "accuracy (%)", _transfer),
        ("rank", "Numerical rank", "rank (rtol 1e-3)", lambda member: member.curve(*RANK)),
    ]
    charts: list[Chart] = []
    for key, title, label, pick in picks:
        found = [
            (member, c.layers_only()) for member in members if (c := pick(member)) and c.layers_only().layer
        ]
        for relative in (False, True):
            x = "relative depth" if relative else "layer"
            short = f"overlay_{key}_{'depth' if relative else 'layer'}"
            lines = _lines(found, relative, len(_sources(members)) > 1)
            charts.append(Chart(short, f"{title}, by {x}", lines, x=x, y=label, relative=relative))
    charts = [chart for chart in charts if chart.lines]
    text = _from(members)
    if any(line.low is not None for chart in charts for line in chart.lines):
        text += " Lines are means over the networks of a kind, bands one standard deviation to either side."
    return [Section("profiles", "Profiles over one another", [*charts, *_starts(members)], text.strip())]


def _sources(members: Sequence[Member]) -> list[str]:
    return list(dict.fromkeys(member.source for member in members if member.rows))


def _from(members: Sequence[Member]) -> str:
    """Say where the profiles are from."""
    match _sources(members):
        case [one]:
            return {
                ANALYSED: "Of the runs' analyses, on test images.",
                TRAINED: "The last profiles taken in training, on validation images.",
            }.get(one, "")
        case [_, _, *_]:
            return (
                "Profiles of analyses (test images) beside profiles taken in training (validation images), which "
                "are not of one kind: each line is one network."
            )
    return ""


def _images(split: str, source: str) -> str:
    """Name the images of a profile and where it is from."""
    name = {"val": "validation", "train": "training"}.get(split, split)
    return f"{name} images" + {ANALYSED: ", analysed", TRAINED: ", in training"}.get(source, "")


def _transfer(member: Member) -> Curve | None:
    rows, rule = member.rows, member.tunnel()["ood"]
    mean = mean_transfer(rows, rule)
    if not mean:
        return None
    base = curve(rows, dataset=rule.datasets[0], step=rule.step)
    kept = base.where(np.isin(base.index, list(mean)))
    return Curve(
        **{
            **vars(kept),
            "dataset": ", ".join(rule.datasets),
            "value": np.array([mean[i] for i in kept.index.tolist()]),
            "se": np.full(len(mean), np.nan),
        }
    )


def _lines(found: Sequence[tuple[Member, Curve]], relative: bool, apart: bool) -> list[Line]:
    """A line for each network; unless they stay apart, alike values of one group are one line with its spread."""
    lines = []
    groups: dict[str, list[tuple[Member, Curve]]] = {}
    for member, c in found:
        groups.setdefault(member.group, []).append((member, c))
    for k, (name, each) in enumerate(groups.items()):
        look: dict[str, Any] = {"color": COLORS[k % len(COLORS)], "marker": "circle"}
        scale = 100 if share(each[0][1].measure) else 1
        x = _depth(each[0][1], relative)
        same = len({(*c.layer, c.variant, c.dataset, c.split) for _, c in each}) == 1
        if len(each) > 1 and same and not apart:
            values = scale * np.stack([c.value for _, c in each])
            mean, spread = values.mean(0), values.std(0, ddof=1)
            texts = [f"{number(float(m))} ± {number(float(s))}" for m, s in zip(mean, spread, strict=True)]
            band = {"low": mean - spread, "high": mean + spread, "dash": DASHES[k % len(DASHES)]}
            lines.append(Line(name, x, mean, _hover(name, *each[0], texts), **look, **band))
            continue
        for j, (member, c) in enumerate(each):
            label = name if len(each) == 1 else member.run_id
            texts = [number(scale * float(v)) for v in c.value]
            # networks of one group share its colour
            look["dash"] = DASHES[(k if len(each) == 1 else j) % len(DASHES)]
            said = _hover(label, member, c, texts)
            lines.append(Line(label, _depth(c, relative), scale * c.value, said, **look))
    return lines


def _hover(label: str, member: Member, c: Curve, texts: Sequence[str]) -> list[str]:
    about = f"{c.dataset} {_images(c.split, member.source)}"
    return [
        f"<b>layer {i}: {escape(layer)}</b><br>{escape(label)}: {text}<br>{escape(about)}"
        for i, layer, text in zip(c.index, c.layer, texts, strict=True)
    ]


def _depth(c: Curve, relative: bool) -> NDArray[Any]:
    return c.index / c.index[-1] if relative else c.index


def _starts(members: Sequence[Member]) -> list[Table]:
    lines = []
    for member in members:
        found = member.tunnel()
        kept = 100 * kept_transfer(mean_transfer(member.rows, found["ood"]))
        rank = member.curve(*RANK).layers_only().finite()
        probe = member.curve()
        value = network_accuracy(member.rows, member.own, probe.split, probe.step)
        lines.append(
            [
                member.run_id, member.group, _images(probe.split, member.source) if probe.layer else None,
                probe.step if probe.layer else None, 100 * value, int(probe.index[-1]) if probe.layer else None,
                *(rule.start or ("none" if rule.extractor_length is not None else None) for rule in found.values()),
                kept, float(rank.value[-1]) if rank.layer else None,
            ]
        )  # fmt: skip
    heads = [
        "run",
        "kind",
        "profile on",
        "step",
        "accuracy there %",
        "layers",
        "95 % rule",
        "98 % rule",
        "OOD rule",
        "transfer kept %",
        "last rank",
    ]
    note = (
        "Accuracy there: of the network, on the images of its profile, which the rules go by. Rules: the layer where "
        "the tunnel starts. Kept: transfer of the last layer over that of the best."
    )
    return [Table("runs", "Where the tunnels start", heads, lines, note)] if lines else []


def _blocks(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Blocks within each network, by the names that layers have in a map of several networks."""
    stated = summary.get("blocks")
    found = [
        {end: f"{run['run_id']}:{block[end]}" for end in ("start", "end")}
        for run in summary.get("runs") or []
        for block in run.get("blocks") or []
    ]
    return {**stated, "found": found} if stated else None


def _cross(
    name: str, each: SimilarityMap, titles: Mapping[str, str], blocks: Mapping[str, Any] | None
) -> Map:
    """A map over the layers of several networks, with lines between the networks."""
    owners = [layer.partition(":")[0] for layer in each.names]
    breaks = [(k, titles.get(o, o)) for k, o in enumerate(owners) if not k or o != owners[k - 1]]
    return similarity_map(name, each, blocks, breaks=breaks)


def scatters(per_image: Mapping[str, NDArray[np.float64]], titles: Mapping[str, str]) -> list[Points]:
    """Of each pair of groups, how often they are right about each image; equal places are one larger point.

    For groups of two networks or more: a single one is right or wrong, which the tables say shorter.
    """
    keys = list(per_image)
    points = []
    for i, a in enumerate(keys):
        for b in keys[i + 1 :]:
            places, counts = np.unique(
                100 * np.stack([per_image[a], per_image[b]], 1), axis=0, return_counts=True
            )
            names = [titles.get(key, key) for key in (a, b)]
            said = [
                f"{_count(int(n), 'image')}<br>{escape(names[0])}: {x:.0f} %<br>{escape(names[1])}: {y:.0f} %"
                for (x, y), n in zip(places, counts, strict=True)
            ]
            points.append(
                Points(
                    f"images_{a}_{b}", f"{names[0]} against {names[1]}, image by image", places,
                    hover=said, size=4 + 32 * np.sqrt(counts / counts.max()),
                    x=f"{names[0]}: networks that are right (%)", y=f"{names[1]}: networks that are right (%)",
                    diagonal=True, note="The larger a point, the more images lie there.",
                )
            )  # fmt: skip
    return points


def _table(number_: int, each: Mapping[str, Any]) -> Table:
    columns = [str(name) for name in each.get("columns") or []]
    rows = [list(row.values()) if isinstance(row, Mapping) else list(row) for row in each.get("rows") or []]
    return Table(f"table_{number_}", str(each.get("title", "")), columns, rows, str(each.get("note") or ""))
