"""Extractor or tunnel: networks put together of layers as they were and as they are; and leaving early."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from tunnel_lightning.report.charts import Chart, Item, Line, Mark, Section, Table, escape
from tunnel_lightning.report.continual_layers import confidence
from tunnel_lightning.report.continual_rewinds import ENOUGH, doubt, lost, rewinds
from tunnel_lightning.report.style import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RULE_LABELS, SKY, VERMILION
from tunnel_lightning.report.words import percent
from tunnel_lightning.runs import RULES, Row, tunnels
from tunnel_lightning.runs.continual import ContinualRun, Sweep

SWAPS: dict[str, dict[str, Any]] = {
    "E1T1": {"color": INK, "dash": "dot", "marker": ""},
    "E1T2": {"color": BLUE, "width": 2.6},
    "E2T1": {"color": VERMILION, "dash": "dash", "width": 2.6, "marker": "square"},
    "E2T2": {"color": GREY, "dash": "dashdot", "marker": ""},
    "E2+T1 tuned": {"color": PURPLE, "width": 0, "marker": "square-open"},
    "E2 tuned": {"color": GREEN, "width": 0, "marker": "circle-open"},
}
"""Looks of the lines of a swap sweep."""

CROSSED = ("E1T1", "E1T2", "E2T1", "E2T2")
"""Extractor and tunnel of two networks, each with each."""


class Verdict(NamedTuple):
    """What brings the first task back.

    Attributes:
        task: its name.
        lost: what it lost, a fraction.
        cut: layers of the extractor.
        layers: of the network.
        rule: by which rule the tunnel starts behind the cut; empty where the cut was chosen by what comes back.
        extractor: share of the loss that comes back with the extractor as it was.
        tunnel: with the tunnel as it was.
        doubt: standard error of the difference of these two shares.
    """

    task: str
    lost: float
    cut: int
    layers: int
    rule: str
    extractor: float
    tunnel: float
    doubt: float = 0.0

    @property
    def who(self) -> str:
        """What forgets.

        ``either`` where each of the two brings 90 % back: it takes both to forget; ``extractor`` or ``tunnel`` where
        that brings back at least half, twice the other and by more than chance; ``all`` where the cut was chosen and
        its block, from the input or from the output, has more than three quarters of the layers; else
        ``both``.
        """
        if min(self.extractor, self.tunnel) >= ENOUGH:
            return "either"
        block = self.cut if self.extractor >= self.tunnel else self.layers - self.cut
        if not self.rule and block > 0.75 * self.layers:
            return "all"
        low, high = sorted((self.extractor, self.tunnel))
        if high < max(0.5, 2 * low) or high - low <= 2 * self.doubt:
            return "both"
        return "extractor" if self.extractor == high else "tunnel"


def verdict(run: ContinualRun) -> Verdict | None:
    """Say whether it is the extractor or the tunnel that forgot the first task.

    At the cut in front of the tunnel, where the 95 or 98 % rule finds one after the first task. Else at that of the
    smallest block, from the input or from the output, that brings 90 % of the loss back; in the middle where none
    does. None without a swap sweep, or where next to nothing was lost, or no more than by chance.
    """
    sweeps = {s.variant: s for s in run.sweeps() if s.dataset in run.tasks[:1]}
    if not set(CROSSED) <= set(sweeps):
        return None
    found = {v: dict(zip(sweeps[v].cut.tolist(), sweeps[v].value, strict=True)) for v in CROSSED}
    last = max(run.layers, default=max(found["E1T1"]))
    cuts = sorted(set.intersection(*(set(of) for of in found.values())) - {last})
    if not cuts:
        return None
    then, now = found["E1T1"][cuts[0]], found["E2T2"][cuts[0]]
    n = int(sweeps["E1T1"].n[0])
    gone = lost(then, now, n)
    if not gone:
        return None
    first, second = ({k: float((found[v][k] - now) / gone) for k in cuts} for v in ("E1T2", "E2T1"))
    by_rule = {rule: cut for rule, cut in starts(run).items() if rule != "ood" and cut in cuts}
    rule = next(iter(by_rule), "")
    blocks = [(k, k) for k in cuts if first[k] >= ENOUGH] + [
        (last - k, k) for k in cuts if second[k] >= ENOUGH
    ]
    cut = by_rule[rule] if rule else min(blocks, default=(0, cuts[(len(cuts) - 1) // 2]))[1]
    return Verdict(run.tasks[0], gone, cut, last, rule, first[cut], second[cut], doubt(then, now, n) / gone)


def starts(run: ContinualRun) -> dict[str, int]:
    """Layers of the extractor after the first task, by each rule that finds a tunnel; later tasks are other sets."""
    if stated := (run.manifest.get("tunnel") or {}).get("cuts"):
        return {rule: int(stated[rule]) for rule in RULES if rule in stated}
    if not run.tasks:
        return {}
    first = [r for r in run.rows if r.experience == 0 and r.dataset in run.tasks]
    rows = [
        r._replace(variant="ridge") if r.variant == "refit_task" else r
        for r in first
        if (r.measure, r.variant) in (("probe_accuracy", "refit_task"), ("accuracy", "network"))
    ]
    return {
        rule: tunnel.start - 1
        for rule, tunnel in tunnels(rows, run.tasks[0]).items()
        if tunnel.start is not None and tunnel.start > 1
    }


def swaps(run: ContinualRun) -> Section:
    """Charts of swaps, of layers put back and of layers frozen, and the swaps' table."""
    found = run.sweeps()
    items: list[Item] = [
        chart
        for k, task in enumerate(run.tasks)
        for chart in _swap_chart(run, [s for s in found if s.dataset == task], task, k)
    ]
    items += [*rewinds(run), *_frozen(run), *_table(found)]
    text = "Layers up to the cut are the extractor E, those behind it the tunnel T. 1: as they were after the first "
    text += "task; 2: as they are after the last. Each task is answered by its head as it was learnt."
    return Section("swaps", "Extractor or tunnel", items, text)


def _swap_chart(run: ContinualRun, found: Sequence[Sweep], task: str, number: int) -> list[Chart]:
    lines = [_cuts(each, each.variant, SWAPS.get(each.variant, {"color": SKY})) for each in _ordered(found)]
    if not lines:
        return []
    note = "E1T2: extractor as it was under the tunnel as it is. E2T1: the other way round."
    if any("tuned" in each.variant for each in found):
        note += " Hollow marks: the last extractor, trained on this task again, with its tunnel and alone."
    if marks := _marks(run):
        note += " Vertical: the cut in front of the tunnel after the first task, by each rule; OOD: by other tasks."
    return [
        Chart(
            f"swaps_{number + 1}",
            f"Accuracy on {task}, by the cut",
            lines,
            "cut behind layer",
            "accuracy (%)",
            marks=marks,
            note=note,
        )
    ]


def _ordered(found: Sequence[Sweep]) -> list[Sweep]:
    known = list(SWAPS)
    return sorted(found, key=lambda each: known.index(each.variant) if each.variant in known else len(known))


def _cuts(each: Sweep, label: str, look: dict[str, Any]) -> Line:
    said = [
        f"<b>cut behind layer {cut}: {escape(name)}</b><br>{escape(label)}: {confidence(float(value), int(n))}"
        for cut, name, value, n in zip(each.cut, each.layer, each.value, each.n, strict=True)
    ]
    return Line(label, each.cut, 100 * each.value, said, **{"marker": "circle", **look})


def _marks(run: ContinualRun) -> list[Mark]:
    """The cut in front of the tunnel by each rule; rules that agree share a mark."""
    names: dict[int, list[str]] = {}
    for rule, cut in starts(run).items():
        names.setdefault(cut, []).append(rule)
    dashes = {"id95": "solid", "id98": "dash", "ood": "dot"}
    return [
        Mark(cut, " · ".join(RULE_LABELS[rule] for rule in rules), dashes[rules[0]])
        for cut, rules in sorted(names.items())
    ]


def _frozen(run: ContinualRun) -> list[Chart]:
    looks: list[dict[str, Any]] = [{"color": BLUE}, {"color": ORANGE, "dash": "dash", "marker": "square"}]
    found = run.sweeps("freeze_accuracy")
    lines = [_cuts(each, f"on {each.dataset}", looks[k % 2]) for k, each in enumerate(found)]
    note = "The last task learnt again with layers 1 to k held as they were before it."
    return [Chart("frozen", "Layers frozen", lines, "layer k", "accuracy (%)", note=note)] if lines else []


def _table(found: Sequence[Sweep]) -> list[Table]:
    if not found:
        return []
    variants = [v for v in SWAPS if any(s.variant == v for s in found)]
    variants += sorted({s.variant for s in found} - set(variants))
    lines = []
    for task in dict.fromkeys(s.dataset for s in found):
        of = {
            s.variant: dict(zip(s.cut.tolist(), s.value.tolist(), strict=True))
            for s in found
            if s.dataset == task
        }
        names = {cut: name for s in found for cut, name in zip(s.cut.tolist(), s.layer, strict=True)}
        for cut in sorted({cut for values in of.values() for cut in values}):
            values = (of.get(v, {}).get(cut) for v in variants)
            lines.append([task, cut, names[cut], *(None if v is None else 100 * v for v in values)])
    heads = ["evaluated on", "cut", "layer", *(f"{v} %" for v in variants)]
    return [Table("swaps", "All swaps", heads, lines, "The cut is behind the layer of that number.")]


_THRESHOLD = re.compile(r"threshold=([\d.]+)")

MOST = "most confident"
"""Variant of leaving by the exit that is most confident, whatever it costs."""


def exits(run: ContinualRun) -> Section:
    """Auxiliary classifiers: accuracy and cost of each, and of leaving at the first that is sure enough."""
    rows = _last_exits(run)
    single, early = _of_exits(rows, "exit_accuracy"), _early(rows)
    items: list[Item] = [*_exit_chart(run, single), *_cost_chart(rows, single, early), *_exit_table(early)]
    over = [r.value for r in rows if r.measure == "overthinking"]
    text = "A classifier at each of several layers; an image leaves at the first that is sure of its answer."
    if over and np.isfinite(np.mean(over)):
        text += (
            f" On {percent(float(np.mean(over)))} of the images an exit is right where the network is not: "
        )
        text += "overthinking."
    return Section("exits", "Early exits", items, text)


def _last_exits(run: ContinualRun) -> list[Row]:
    """Rows of exits after the last task, on tasks that are learnt."""
    rows = [r for r in run.rows if r.measure.startswith(("exit_", "early_exit_", "overthinking"))]
    last = max((r.experience for r in rows), default=-1)
    return [r for r in rows if r.experience == last and r.dataset in run.tasks[: last + 1]]


Place = tuple[int, str]
"""Where an exit is: number and name of its layer. Two may have one number, as behind a layer and its activation."""


def _of_exits(rows: Sequence[Row], measure: str) -> dict[str, dict[Place, float]]:
    """Values of a measure by task and place, in the order of the layers."""
    found: dict[str, dict[Place, float]] = {}
    for row in sorted(rows, key=lambda row: row.index):
        if row.measure == measure:
            found.setdefault(row.dataset, {})[row.index, row.layer] = row.value
    return found


def _early(rows: Sequence[Row]) -> dict[str, tuple[float, float]]:
    """Accuracy and cost of leaving early, means over tasks, by confidence, ascending."""
    values: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.measure in ("early_exit_accuracy", "early_exit_flops"):
            values.setdefault(row.variant, {}).setdefault(row.measure, []).append(row.value)

    def sure(variant: str) -> float:
        found = _THRESHOLD.match(variant)
        return float(found[1]) if found else np.inf

    nan = [np.nan]
    return {
        variant.removeprefix("threshold="): (
            float(np.mean(values[variant].get("early_exit_accuracy", nan))),
            float(np.mean(values[variant].get("early_exit_flops", nan))),
        )
        for variant in sorted(values, key=sure)
    }


def _exit_chart(run: ContinualRun, single: dict[str, dict[Place, float]]) -> list[Chart]:
    last = run.tasks[run.done - 1] if run.done else ""
    accuracy = dict(zip(run.tasks, run.network()[run.done], strict=True)) if run.done else {}
    looks: dict[str, dict[str, Any]] = {
        "tasks before the last": {"color": BLUE},
        "the last task": {"color": ORANGE, "dash": "dash", "marker": "square"},
    }
    lines = []
    for label, look in looks.items():
        tasks = [task for task in single if (task == last) == (label == "the last task")]
        if tasks:
            places = [at for at in single[tasks[0]] if all(at in single[task] for task in tasks)]
            index = [k for k, _ in places]
            mean = np.array([np.mean([single[task][at] for task in tasks]) for at in places])
            said = [
                f"<b>exit at layer {k}: {escape(name)}</b><br>{label}: {percent(float(v))}"
                for (k, name), v in zip(places, mean, strict=True)
            ]
            lines.append(Line(label, np.array(index), 100 * mean, said, **{"marker": "circle", **look}))
            network = float(np.mean([accuracy.get(task, np.nan) for task in tasks]))
            if np.isfinite(network):
                text = f"the network on {label}: {percent(network)}"
                ends = np.array([0.5, index[-1] + 0.5])
                lines.append(
                    Line(text, ends, np.full(2, 100 * network), [text] * 2, look["color"], "dot", 1.4)
                )
    note = "Where an early exit beats later ones on tasks of before, deep layers forgot more."
    return [Chart("exits", "Accuracy of each exit", lines, y="accuracy (%)", note=note)] if lines else []


def _cost_chart(
    rows: Sequence[Row], single: dict[str, dict[Place, float]], early: dict[str, tuple[float, float]]
) -> list[Chart]:
    share = {at: v for of in _of_exits(rows, "exit_flops_share").values() for at, v in of.items()}
    places = [at for at in share if single and all(at in of for of in single.values())]
    lines = []
    if places:
        found = [
            (
                share[at],
                float(np.mean([of[at] for of in single.values()])),
                f"always the exit at layer {at[0]}",
            )
            for at in places
        ]
        lines.append(_costs("always the same exit", found, {"color": GREY, "dash": "dot"}))
    sure = [(c, a, f"leaves when {percent(float(t), 0)} sure") for t, (a, c) in early.items() if t != MOST]
    if sure:
        lines.append(_costs("the first that is sure", sure, {"color": BLUE, "marker": "square"}))
    if MOST in early:
        accuracy, cost = early[MOST]
        look = {"color": VERMILION, "marker": "circle-open", "width": 0}
        lines.append(_costs("the most confident", [(cost, accuracy, "the most confident exit")], look))
    x = "cost (share of the whole network's operations)"
    chart = Chart(
        "exit_costs", "Accuracy and cost", lines, x, "accuracy (%)", relative=True, note="Mean over tasks."
    )
    return [chart] if lines else []


def _costs(label: str, found: Sequence[tuple[float, float, str]], look: dict[str, Any]) -> Line:
    found = sorted(found)
    said = [f"<b>{text}</b><br>{percent(a)} at {percent(c, 0)} of the operations" for c, a, text in found]
    cost, accuracy, _ = (np.array(each) for each in zip(*found, strict=True))
    return Line(label, cost, 100 * accuracy, said, **{"marker": "circle", **look})


def _exit_table(early: dict[str, tuple[float, float]]) -> list[Table]:
    lines: list[list[Any]] = [[at, 100 * accuracy, 100 * cost] for at, (accuracy, cost) in early.items()]
    heads = ["leaves at confidence", "accuracy %", "operations %"]
    return [Table("early_exits", "Leaving early", heads, lines)] if lines else []
