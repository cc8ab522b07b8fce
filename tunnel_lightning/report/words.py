"""What a profile says in words: the headline, the key numbers, and how numbers are written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tunnel_lightning.report.charts import Number
from tunnel_lightning.report.style import RANK
from tunnel_lightning.runs import (
    Row,
    Tunnel,
    curve,
    network_accuracy,
    tunnels,
    wilson,
)


def percent(fraction: float, digits: int = 1) -> str:
    """Write a fraction in percent.

    Example:
        >>> percent(0.5513), percent(float("nan"))
        ('55.1 %', 'no value')
    """
    return f"{100 * fraction:.{digits}f} %" if math.isfinite(fraction) else "no value"


def number(value: Any) -> str:
    """Write a number short: whole ones in groups of three digits, others with four digits.

    Example:
        >>> number(11173962), number(0.123456), number(float("nan")), number(30.0)
        ('11,173,962', '0.1235', 'no value', '30')
    """
    if isinstance(value, int | np.integer):
        return f"{value:,}"
    if not math.isfinite(value):
        return "no value"
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:.4g}"


def interval(value: float, n: int) -> str:
    """Write the 95 % Wilson interval of an accuracy over n images; empty where that is not known.

    Example:
        >>> interval(0.5, 100)
        '40.4 to 59.6 %'
    """
    if n < 1 or not 0 <= value <= 1:
        return ""
    low, high = (float(each) for each in wilson(value, n))
    return f"{100 * low:.1f} to {100 * high:.1f} %"


def headline(rows: Sequence[Row], own: str | None = None) -> str:
    """Say in a sentence where the tunnel starts and what becomes of transfer.

    Args:
        rows: rows of one run.
        own: the set the network was trained on; default: see `tunnel_lightning.runs.id_dataset`.

    Example:
        >>> row = Row("mlp", 9, 1, -1, "test", "A", "network", 3, "accuracy", "network", 0.5)
        >>> probes = [
        ...     row._replace(layer=f"l{i}", index=i, measure="probe_accuracy", variant="ridge", value=v)
        ...     for i, v in ((1, 0.3), (2, 0.49), (3, 0.5))
        ... ]
        >>> headline([row, *probes])
        'A tunnel from layer 2 of 3: the probe there reaches 98.0 % of the final accuracy'
    """
    found = tunnels(rows, own)
    parts = [said for said in (_trained(rows, found["id95"]), _transfer(rows, found["ood"])) if said]
    if not parts:
        said = "unknown: no probe was measured on held-out images"
        if any(row.measure == "probe_accuracy" and row.split != "train" for row in rows):
            said = found["id95"].note
        return f"Where the tunnel starts is {said}"
    text = "; ".join(parts)
    return text[0].upper() + text[1:]


def _trained(rows: Sequence[Row], rule: Tunnel) -> str:
    if rule.extractor_length is None:
        return ""
    probe = curve(rows, dataset=rule.datasets[0], split=rule.split, step=rule.step).finite()
    layers = probe.layers_only()
    last = int(layers.index[-1])
    known = math.isfinite(network_accuracy(rows, rule.datasets[0], rule.split, rule.step))
    whose = "the final accuracy" if known else "the last probe's accuracy"

    def share(index: int) -> str:
        return f"{percent(float(probe.value[probe.index == index][0]) / rule.reference)} of {whose}"

    if rule.start is not None:
        where = f"a tunnel from layer {rule.start} of {last}"
        if rule.start == last:
            where = f"the tunnel is the last layer alone, {last} of {last}"
        return f"{where}: the probe there reaches {share(rule.start)}"
    if rule.extractor_length == 0:
        raw = bool((probe.value[probe.index == 0] >= rule.threshold - 1e-12).any())
        place = "on the raw pixels" if raw else "of layer 1"
        return f"no extractor, hence no tunnel: the probe {place} already reaches {share(0 if raw else 1)}"
    best = int(layers.index[np.argmax(layers.value)])
    return f"no tunnel: the best probe, at layer {best} of {last}, reaches only {share(best)}"


def _transfer(rows: Sequence[Row], rule: Tunnel) -> str:
    if rule.extractor_length is None:
        return ""
    sets = rule.datasets[0] if len(rule.datasets) == 1 else f"{len(rule.datasets)} other sets"
    mean = mean_transfer(rows, rule)
    best = max(mean, key=lambda index: mean[index])
    last = max(mean)
    if best == last:
        return f"transfer to {sets} is best at the last layer"
    where = f"at layer {best}" if best else "from the raw pixels"
    lost = 100 * (1 - mean[last] / mean[best])
    much = f"{lost:.0f} %" if lost >= 0.5 else "next to nothing"
    return f"transfer to {sets} is best {where} and loses {much} by the end"


def mean_transfer(rows: Sequence[Row], rule: Tunnel) -> dict[int, float]:
    """Accuracy of the probe by layer index, averaged over the sets of the OOD rule; 0 is the raw pixels.

    Only layers that every set has a value for; empty where the rule found nothing.
    """
    held_out = [r for r in rows if r.split != "train"]
    curves = [curve(held_out, dataset=name, step=rule.step).finite() for name in rule.datasets]
    tables = [dict(zip(c.index.tolist(), c.value.tolist(), strict=True)) for c in curves]
    if not tables:
        return {}
    common = set.intersection(*(set(table) for table in tables))
    return {index: float(np.mean([table[index] for table in tables])) for index in sorted(common)}


def kept_transfer(mean: Mapping[int, float]) -> float:
    """Accuracy of the last layer over that of the best, from those by layer index; NaN where no layer transfers.

    Example:
        >>> kept_transfer({0: 0.9, 1: 0.8, 2: 0.4}), kept_transfer({1: 0.0})
        (0.5, nan)
    """
    layers = {index: value for index, value in mean.items() if index}
    best = max(layers.values(), default=0.0)
    return layers[max(layers)] / best if best > 0 else math.nan


def numbers(rows: Sequence[Row], own: str | None) -> list[Number]:
    """The key figures, as far as they are known: accuracy, the tunnel's start, rank, and what is kept of transfer."""
    found = tunnels(rows, own)
    return [
        figure
        for figure in (_accuracy(rows, own), _start(rows, found), _rank(rows, own), _kept(rows, found["ood"]))
        if figure
    ]


def _accuracy(rows: Sequence[Row], own: str | None) -> Number | None:
    known = [r for r in rows if (r.measure, r.variant, r.dataset) == ("accuracy", "network", own)]
    for split in ("test", "val"):
        for row in reversed([r for r in known if r.split == split and math.isfinite(r.value)]):
            images = f", {number(row.n)} images" if row.n else ""
            span = interval(row.value, row.n)
            detail = f"{own} {split}{images}" + (f", 95 % interval {span}" if span else "")
            return Number(percent(row.value), "accuracy of the network", detail)
    return None


def _start(rows: Sequence[Row], found: dict[str, Tunnel]) -> Number | None:
    first = found["id95"]
    if first.extractor_length is None:
        return None
    last = int(curve(rows, dataset=first.datasets[0], split=first.split, step=first.step).index[-1])
    value = f"layer {first.start} of {last}" if first.start else "none"
    others = {"98 % rule": found["id98"], "OOD rule": found["ood"]}
    said = [
        f"{name}: {f'layer {rule.start}' if rule.start else 'none'}"
        for name, rule in others.items()
        if rule.extractor_length is not None
    ]
    return Number(value, "start of the tunnel, 95 % rule", ", ".join(said))


def _rank(rows: Sequence[Row], own: str | None) -> Number | None:
    rank = curve(rows, *RANK, own).layers_only().finite()
    if not rank.layer:
        return None
    top = int(np.argmax(rank.value))
    cap = [min(int(n) - 1, int(d)) for n, d in zip(rank.n, rank.dim, strict=True)]
    detail = f"highest at layer {rank.index[top]}"
    if cap[top] > 0:
        detail += f", where {number(cap[top])} is the most possible"
    return Number(
        f"{rank.value[top]:.0f} \N{RIGHTWARDS ARROW} {rank.value[-1]:.0f}",
        "numerical rank, highest to last layer",
        detail,
    )


def _kept(rows: Sequence[Row], rule: Tunnel) -> Number | None:
    if rule.extractor_length is None:
        return None
    mean = mean_transfer(rows, rule)
    layers = {index: value for index, value in mean.items() if index}
    kept = kept_transfer(layers)
    if math.isnan(kept):
        return None
    sets = rule.datasets[0] if len(rule.datasets) == 1 else f"{len(rule.datasets)} sets"
    best = max(layers, key=lambda index: layers[index])
    detail = f"best at layer {best}: {percent(layers[best])}; at the end {percent(layers[max(layers)])}"
    return Number(percent(kept, 0), f"of the transfer to {sets} is kept", detail)
