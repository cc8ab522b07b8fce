"""What an ablation says in words, and how its figures are written."""

from __future__ import annotations

import math
from collections.abc import Sequence

from tunnel_lightning.report.charts import Number
from tunnel_lightning.report.style import RULE_LABELS
from tunnel_lightning.report.words import interval, number, percent
from tunnel_lightning.runs.ablation import Ablation, Effect

LITTLE = 0.01
"""What a network loses by a layer that it can do without: at most this fraction of the images."""

MUCH = 0.5
"""The share of what it knows beyond chance that it loses by a layer that it can't do without."""

QUANTITIES = ("accuracy", "nll", "ece", "agreement", "rank", "cka")
HEADS = {
    "accuracy": "accuracy %", "nll": "NLL", "ece": "ECE", "agreement": "agree %",
    "rank": "rank", "cka": "CKA",
}  # fmt: skip
SHARES = ("accuracy", "agreement")
"""Quantities that are fractions of images, shown in percent."""


def about(found: Ablation) -> str:
    """What the figures are, in two sentences."""
    summary = found.summary
    text = (
        f"Scored on {number(summary.get('images', 0))} test images of {summary.get('dataset')}; nothing is "
    )
    text += (
        "trained again unless it says so. Rank (rtol 1e-3) and CKA with the intact network are of what the "
    )
    text += "head takes in."
    if any(row.statistics == "estimated" for row in found.rows):
        text += " Estimated: statistics of normalisation layers estimated anew on training images after the surgery."
    return text


def headline(found: Ablation) -> str:
    """Say in a sentence what the network can't do without, and what it can.

    Example:
        >>> from pathlib import Path
        >>> row = Effect("intact", "", "", 0, 0, "", "kept", "accuracy", 0.9, 0.01, 100)
        >>> reset = row._replace(kind="reset", scope="layer", variant="initial")
        >>> rows = [row, reset._replace(layers="a", first=1, value=0.1), reset._replace(layers="b", first=2)]
        >>> headline(Ablation(Path(), rows, {"classes": 10}))
        'Half of it or more is lost at 1 of 2 layers reset alone, a point or less at 1'
    """
    whole, chance = found.intact(found.main), chance_of(found)
    if whole is None:
        return "Nothing was measured"
    said = []
    for row in put_back(found, "reset")[:1]:
        where = f"layer {row.first}" if row.first == row.last else f"layers {row.first} to {row.last}"
        said.append(
            f"resetting the tunnel ({where}) takes {found.main} from {percent(whole.value)} to {percent(row.value)}"
        )
    if alone := _alone(found, "reset"):
        said.append(_of_many(alone, whole, chance, "layers", "reset alone"))
    if blocks := found.pick(found.main, kind="delete", scope="block"):
        said.append(_of_many(blocks, whole, chance, "residual blocks", "deleted"))
    if not said and (swapped := _middle(found)):
        said.append(swapped)
    if again := _again(found):
        said.append(again)
    if not said:
        said.append(f"the intact network has {percent(whole.value)}")
    text = "; ".join(said)
    return text[0].upper() + text[1:]


def _of_many(rows: Sequence[Effect], whole: Effect, chance: float, what: str, done: str) -> str:
    lost = [whole.value - row.value for row in rows]
    # Rounding must not decide: in floats .9 - .89 is a hair above .01.
    free = sum(each <= LITTLE + 1e-9 for each in lost)
    vital = sum(each >= MUCH * (whole.value - chance) - 1e-9 for each in lost)
    if vital == len(rows):
        return f"none of {len(rows)} {what} can be {done} (half of it is lost, or more)"
    return (
        f"half of it or more is lost at {vital or 'none'} of {len(rows)} {what} {done}, a point or less at "
        f"{free or 'none'}"
    )


def _middle(found: Ablation) -> str:
    swapped = [row for row in found.pick(found.main, kind="swap", scope="cut") if row.variant == "E1T2"]
    if not swapped:
        return ""
    best = max(swapped[:-1] or swapped, key=lambda row: row.value)
    return f"under the tunnel of the other run this one's extractor has at best {percent(best.value)}, {best.layers}"


def _again(found: Ablation) -> str:
    rows = {
        row.variant.partition("; ")[0]: percent(row.value) for row in found.pick(found.main, kind="retrain")
    }
    parts = [
        f"{what} {rows[name]}"
        for name, what in (
            ("tunnel and head anew", "tunnel and head learnt again on the frozen extractor give"),
            ("head alone", "the head alone, on a tunnel left untrained,"),
        )
        if name in rows
    ]
    return ", ".join(parts)


def chance_of(found: Ablation) -> float:
    """What guessing has; 0 where the main quantity is agreement."""
    classes = found.summary.get("classes") or 0
    return 1 / classes if classes and found.main == "accuracy" else 0.0


def _alone(found: Ablation, kind: str) -> list[Effect]:
    """Each layer alone, from the first kind of weights there is."""
    rows = found.pick(found.main, kind=kind, scope="layer")
    return [row for row in rows if row.variant == rows[0].variant]


def put_back(found: Ablation, kind: str, scope: str = "tunnel") -> list[Effect]:
    """Those put back as a whole, the one by the 95 % rule first."""
    rows = found.pick(found.main, kind=kind, scope=scope)
    known = list(RULE_LABELS)
    first = {row.variant: row.variant.rpartition("; ")[2].split(",")[0] for row in rows}
    return sorted(rows, key=lambda row: known.index(first[row.variant]) if first[row.variant] in known else 9)


def rule_words(variant: str) -> str:
    """The rules a variant ends with, as figures call them."""
    names = variant.rpartition("; ")[2].split(",")
    if names == ["asked"]:
        return "as asked"
    return " and ".join(RULE_LABELS.get(name, name) for name in names) + f" rule{'s' * (len(names) > 1)}"


def numbers(found: Ablation) -> list[Number]:
    """The key figures."""
    whole = found.intact(found.main)
    if whole is None:
        return []
    result = [
        Number(
            percent(whole.value), f"{found.main} as it is", f"95 % interval {interval(whole.value, whole.n)}"
        )
    ]
    for row in put_back(found, "reset")[:1]:
        result.append(
            Number(percent(row.value), "with the tunnel reset", f"{row.layers}, {rule_words(row.variant)}")
        )
    return result


def cell(row: Effect | None) -> float | None:
    """A figure as a table has it, shares in percent; None where there is none."""
    if row is None or not math.isfinite(row.value):
        return None
    return 100 * row.value if row.quantity in SHARES else row.value


def short(variant: str) -> str:
    """A variant with the names of rules as figures have them."""
    name, _, rules = variant.rpartition("; ")
    return (
        f"{name} ({', '.join(RULE_LABELS.get(rule, rule) for rule in rules.split(','))})" if name else variant
    )
