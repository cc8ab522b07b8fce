"""What a run over tasks says in words: which layers forget, which transfer, and whether extractor or tunnel."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.charts import Number
from tunnel_lightning.report.continual_layers import points
from tunnel_lightning.report.continual_maps import KEPT
from tunnel_lightning.report.continual_rewinds import ENOUGH, back, span
from tunnel_lightning.report.continual_tunnel import Verdict, verdict
from tunnel_lightning.report.style import RULE_LABELS
from tunnel_lightning.report.words import percent
from tunnel_lightning.runs.continual import (
    ContinualRun,
    at_end,
    average_accuracy,
    backward_transfer,
    forgetting,
    forgetting_since_learnt,
)

Array = NDArray[np.float64]

LITTLE = 0.02
"""Losses up to this count as none."""

LEAST = 0.005
"""Gains and losses of tasks still to come from here on count, where they are no chance."""


def headline(run: ContinualRun) -> str:
    """Say in a few sentences which layers forget, which transfer, and what it is that forgets.

    Example:
        >>> from pathlib import Path
        >>> headline(ContinualRun(Path("runs/naive/version_0"), [], {}))
        'Nothing is measured yet'
    """
    if not run.done:
        return "Nothing is measured yet"
    if run.done < 2:
        learnt = at_end(average_accuracy(run.network()))
        of = f" of {len(run.tasks)}" if len(run.tasks) > 1 else ""
        return f"One task{of} is learnt, to {percent(learnt)}; there is nothing to forget yet"
    found = verdict(run)
    parts = [decides(found) if found else forgets(run), transfers(run)]
    said = [part for part in parts if part] or [part for part in [knows(run)] if part]
    nothing = "No layer was measured after each task" if run.layers else "No layer was measured"
    return ". ".join(part[0].upper() + part[1:] for part in said) or nothing


def decides(found: Verdict) -> str:
    """Say whether it is the extractor or the tunnel that forgets.

    Example:
        >>> decides(Verdict("A", 0.21, 1, 2, "", 0.97, 0.25)).partition(": ")[2]
        'layer 1 as it was brings back 97 % of what A lost, layer 2 instead 25 %'
        >>> decides(Verdict("A", 0.21, 2, 8, "", 1.0, 1.0)).partition(": ")[2]
        'layers 1 and 2 as they were bring back all of what A lost, and so do layers 3 to 8 instead'
    """
    lower, upper = span(1, found.cut), span(found.cut + 1, found.layers)
    low, high = back(found.extractor), back(found.tunnel)
    what = f"of what {found.task} lost"
    below = f"{lower} {_as_they_were(found.cut)} {low} {what}, {upper} instead {high}"
    above = f"{upper} {_as_they_were(found.layers - found.cut)} {high} {what}, {lower} instead {low}"
    too = f"and so {'does' if found.layers == found.cut + 1 else 'do'} {upper} instead"
    also = f"{lower} {_as_they_were(found.cut)} {low} {what}, {too}" if low == high else below
    return {
        "either": f"extractor and tunnel forget only together: {also}",
        "extractor": f"the extractor forgets, not the tunnel: {below}",
        "tunnel": f"the tunnel forgets, not the extractor: {above}",
        "both": f"extractor and tunnel forget: {below}",
        "all": f"forgetting is spread over all layers: {below if found.extractor >= found.tunnel else above}",
    }[found.who]


def _as_they_were(count: int) -> str:
    return "as it was brings back" if count == 1 else "as they were bring back"


def forgets(run: ContinualRun) -> str:
    """Say which layers forget, by probes fitted when a task was learnt and by those fitted anew; empty if unknown."""
    table = run.layer_table()
    moved, gone = table["drift"], table["representation_forgetting"]
    known = np.flatnonzero(np.isfinite(moved))
    if not len(known):
        return ""
    said = _drifts(moved[known], [list(run.layers)[k] for k in known])
    if moved[known].max() > LITTLE and np.isfinite(gone).any():
        said += f", refitted ones at most {points(max(float(np.nanmax(gone)), 0.0))}"
    return said


def knows(run: ContinualRun) -> str:
    """Say what becomes of all classes with depth; empty if unknown."""
    whole, index = run.layer_table()["all_classes"], list(run.layers)
    known = np.flatnonzero(np.isfinite(whole))
    if len(known) < 2:
        return ""
    last, best = known[-1], known[np.argmax(whole[known])]
    if whole[last] >= KEPT * whole[best]:
        return f"of all classes the last layer knows {percent(whole[last])}, the best {percent(whole[best])}"
    end = f"layer {index[last]} {percent(whole[last])}"
    return f"of all classes layer {index[best]} knows {percent(whole[best])}, {end}"


def _drifts(moved: Array, index: list[int]) -> str:
    worst, least = int(np.argmax(moved)), int(np.argmin(moved))
    if moved[worst] <= LITTLE:
        return f"no layer forgets: probes fitted when a task was learnt lose at most {points(max(moved[worst], 0.0))}"
    third = max(len(moved) // 3, 1)
    early, late = float(moved[:third].mean()), float(moved[-third:].mean())
    who = "all layers forget alike"
    if abs(late - early) > LITTLE and max(late, early) > 1.5 * min(late, early):
        who = "deep layers forget most" if late > early else "early layers forget most"
    gained = points(-moved[least]) if moved[least] < 0 and points(-moved[least]) != points(0.0) else ""
    ends = f"lose {points(moved[least]).split()[0]} to {points(moved[worst])}"
    if gained:
        ends = f"lose at most {points(moved[worst])}"
    if len(moved) > 1 and who != "all layers forget alike":
        ends = f"lose {points(moved[least])} at layer {index[least]}, "
        ends += f"{100 * moved[worst]:.1f} at layer {index[worst]}"
        if gained:
            ends = f"lose {points(moved[worst])} at layer {index[worst]} and gain {gained} at layer {index[least]}"
    return f"{who}: probes fitted when a task was learnt {ends}"


def transfers(run: ContinualRun) -> str:
    """Say which layers help with tasks still to come."""
    gain, index = run.layer_table()["unseen"], np.array(list(run.layers))
    if not np.isfinite(gain).any():
        return ""
    clear = np.maximum(LEAST, 2 * np.nan_to_num(run.doubt("refit_task")))
    up, down = index[gain >= clear], index[gain <= -clear]
    if not len(up) and not len(down):
        return "for tasks to come no layer is clearly better or worse than untrained"
    parts = [f"{_some(each)} {what}" for each, what in ((up, "better"), (down, "worse")) if len(each)]
    return f"for tasks to come {', '.join(parts)} than untrained"


def _some(index: Array) -> str:
    """Name layers, in spans, with their verb.

    Example:
        >>> _some(np.array([1, 2, 3, 7])), _some(np.array([4]))
        ('layers 1 to 3 and 7 are', 'layer 4 is')
    """
    spans: list[list[int]] = []
    for each in index.tolist():
        if spans and each == spans[-1][1] + 1:
            spans[-1][1] = each
        else:
            spans.append([each, each])
    if len(spans) > 3:
        return f"{len(index)} layers are"
    texts = [text for a, b in spans for text in ([f"{a} to {b}"] if b > a + 1 else map(str, range(a, b + 1)))]
    named = ", ".join(texts[:-1]) + (" and " if len(texts) > 1 else "") + texts[-1]
    return f"layer {named} is" if len(index) == 1 else f"layers {named} are"


def numbers(run: ContinualRun) -> list[Number]:
    """The key figures, as far as they are known."""
    found = [_accuracy(run), _forgotten(run), _worst(run), _brought_back(run) or _classes(run)]
    return [figure for figure in found if figure]


def _last(values: Array, run: ContinualRun) -> float:
    """The value after the task learnt last, NaN where there is none: an earlier one would be another network's."""
    return float(values[run.done - 1]) if run.done else float("nan")


def _accuracy(run: ContinualRun) -> Number | None:
    value = _last(average_accuracy(run.network()), run)
    if not np.isfinite(value):
        return None
    within = at_end(average_accuracy(run.network("within")))
    detail = (
        f"among each task's own classes {percent(within)}" if run.single_head and np.isfinite(within) else ""
    )
    what = f"average accuracy of {run.done} tasks" if run.done > 1 else "accuracy of the first task"
    return Number(percent(value), what, detail)


def _forgotten(run: ContinualRun) -> Number | None:
    value = _last(forgetting_since_learnt(run.network()), run)
    if not np.isfinite(value):
        return None
    best, back = at_end(forgetting(run.network())), at_end(backward_transfer(run.network()))
    detail = f"of the best there was {points(best)}; backward transfer {points(back)}"
    return Number(points(value), "forgotten since learnt", detail)


def _worst(run: ContinualRun) -> Number | None:
    table = run.layer_table()
    moved, gone = table["drift"], table["representation_forgetting"]
    if not np.isfinite(moved).any():
        return None
    worst = int(np.nanargmax(moved))
    detail = f"layer {next(iter(run.layers))}: {points(moved[0])}"
    if np.isfinite(gone[worst]):
        what = "lost" if gone[worst] >= 0 else "gained"
        detail += f"; refitted, layer {list(run.layers)[worst]} {what} {points(abs(gone[worst]))}"
    return Number(points(moved[worst]), f"drift of layer {list(run.layers)[worst]}, the most", detail)


def _classes(run: ContinualRun) -> Number | None:
    whole = run.layer_table()["all_classes"]
    if not np.isfinite(whole).any():
        return None
    best, index = int(np.nanargmax(whole)), list(run.layers)
    value = f"{100 * whole[best]:.1f} \N{RIGHTWARDS ARROW} {percent(whole[-1])}"
    return Number(value, "probe of all classes, best to last layer", f"best at layer {index[best]}")


def _brought_back(run: ContinualRun) -> Number | None:
    found = verdict(run)
    if found is None:
        return None
    blocks = [(found.extractor, 1, found.cut), (found.tunnel, found.cut + 1, found.layers)]
    if not found.rule:  # the block that chose the cut comes first, though the other may bring back more
        blocks.sort(key=lambda block: (block[0] < ENOUGH, block[2] - block[1]))
    if found.rule or blocks[0][0] < ENOUGH:
        blocks.sort(key=lambda block: -block[0])
    (more, *block), (less, *_) = blocks
    where = f"the tunnel starts there by the {RULE_LABELS[found.rule]} rule" if found.rule else ""
    where = where or f"the smallest block from either end that brings {100 * ENOUGH:.0f} % back"
    if not found.rule and more < ENOUGH:
        where = f"no block from either end brings {100 * ENOUGH:.0f} % back: cut in the middle"
    they = "it was" if block[0] == block[1] else "they were"
    what = f"of what {found.task} lost is back with {span(*block)} as {they}"
    return Number(back(more), what, f"with the others {back(less)}; {where}")
