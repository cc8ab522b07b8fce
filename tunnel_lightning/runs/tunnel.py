"""Where the tunnel starts, by each of three rules, from the rows of a profile table.

The tunnel is the run of deep layers that add nothing to what a linear probe reads of the trained task, and
only compress; the layers before it are the extractor (Masarczyk et al., 2023, arXiv:2305.19753).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.runs.curves import (
    Curve,
    curve,
    id_dataset,
    network_accuracy,
    ood_datasets,
    probe_variant,
)
from tunnel_lightning.runs.schema import Row

RULES = ("id95", "id98", "ood")
"""The three rules, in the order every report shows them."""

_SHARE = {"id95": 0.95, "id98": 0.98}


class Tunnel(NamedTuple):
    """Where the tunnel starts by one rule, and what that rests on.

    Attributes:
        rule: ``id95``, ``id98`` or ``ood``.
        start: index of the tunnel's first layer, from 1; None where there is no tunnel or no extractor.
        layer: that layer's name.
        extractor_length: layers before the tunnel: 0 where there is no extractor, all of them where there is
            no tunnel, None where the rows do not tell.
        reference: ``id95``, ``id98``: accuracy of the network, or of the last probe where the network has
            none; ``ood``: accuracy at the peak of transfer. A fraction, NaN where unknown.
        threshold: ``id95``, ``id98``: the accuracy to reach; ``ood``: the same as `reference`.
        step: the step the rows are of, -1 where unknown.
        datasets: the sets the rule looked at.
        split: their split.
        note: all of it in one sentence.
    """

    rule: str
    start: int | None
    layer: str | None
    extractor_length: int | None
    reference: float
    threshold: float
    step: int
    datasets: tuple[str, ...]
    split: str
    note: str


def tunnels(rows: Iterable[Row], own: str | None = None) -> dict[str, Tunnel]:
    """Apply all three rules; see `tunnel_start`."""
    rows = list(rows)
    return {rule: tunnel_start(rows, rule, own) for rule in RULES}


def tunnel_start(rows: Iterable[Row], rule: str = "id95", own: str | None = None) -> Tunnel:
    """Find where the tunnel starts, by one of three rules.

    - ``id95``, ``id98``: the first layer whose in-distribution probe reaches 95 or 98 % of the
      network's accuracy (of the last layer's probe where the network's own was not measured). Masarczyk et
      al. use 95 %, in places 98 %.
    - ``ood``: the layer after the one where the probe's accuracy, averaged over the out-of-distribution
      sets, peaks: that one is the extractor's last (Masarczyk et al., 2023). Harun et al. (2024,
      arXiv:2405.15018), who go by transfer alone, count the tunnel from the peak itself, one layer earlier.

    The probe is the ridge probe, or where none was fitted another converged one, see `probe_variant`; the note
    then names it. The last step at which the probes in question were measured counts; of the in-distribution set
    ``test`` before ``val``, never ``train``. Layers whose value is NaN are passed over. Where the raw pixels or the
    first layer already do it there is no extractor, hence no tunnel: `Tunnel.start` is None and the note says
    so, as it does where no layer reaches the threshold, or transfer peaks at the last layer. Where nothing is ever
    right, nothing can be told.

    Args:
        rows: rows of one run.
        rule: ``id95``, ``id98`` or ``ood``.
        own: the in-distribution set; default: see `id_dataset`.

    Raises:
        ValueError: no such rule, or rows of several runs.

    Example:
        The curve of a 12-layer MLP on CIFAR-10:

        >>> probe = [0.385, 0.510, 0.534, 0.551, 0.562, 0.567]
        >>> row = Row("mlp", 9, 1, -1, "test", "CIFAR10", "network", 7, "accuracy", "network", 0.567)
        >>> rows = [row] + [
        ...     row._replace(layer=f"layers.{i}", index=i, measure="probe_accuracy", variant="ridge", value=v)
        ...     for i, v in enumerate(probe, 1)
        ... ]
        >>> [tunnel_start(rows, rule).start for rule in ("id95", "id98")]
        [4, 5]
        >>> print(tunnel_start(rows, "id95").note)
        layer 4 is the first whose CIFAR10 test probe (55.1 %) reaches 95 % of the network's 56.7 %
    """
    rows = list(rows)
    if rule not in RULES:
        raise ValueError(f"No tunnel rule {rule!r}: choose one of {', '.join(RULES)}.")
    if len(runs := {r.run_id for r in rows}) > 1:
        raise ValueError(
            f"The rows are of {len(runs)} runs ({', '.join(sorted(runs)[:3])}): give those of one."
        )
    own = own or id_dataset(rows)
    return _ood(rows, own) if rule == "ood" else _in_distribution(rows, rule, own)


def _in_distribution(rows: Sequence[Row], rule: str, dataset: str | None) -> Tunnel:
    held_out = [r for r in rows if r.split != "train"]
    probe = curve(held_out, dataset=dataset)
    if np.isnan(network_accuracy(rows, dataset, probe.split, probe.step)):
        val = curve(held_out, dataset=dataset, split="val", step=probe.step)
        if np.isfinite(network_accuracy(rows, dataset, "val", probe.step)) and val.layer:
            probe = val  # a probe is compared with the network on the same images
    if not probe.layer:
        return _unknown(
            rule,
            f"unknown: no {probe.variant} probe of the in-distribution set on test or val was measured",
        )
    layers = probe.layers_only().finite()
    where = f"{probe.dataset} {probe.split} {_kind(probe.variant)}probe"
    if not layers.layer:
        return _unknown(rule, f"unknown: the {where} has no finite value in any layer")

    reference = network_accuracy(rows, probe.dataset, probe.split, probe.step)
    whose = f"the network's {_percent(reference)}"
    if not np.isfinite(reference):
        reference = float(layers.value[-1])
        whose = f"the last probe's {_percent(reference)} (the network's own accuracy was not measured)"
    if not reference > 0:
        return _unknown(rule, f"unknown: {whose} leave the probes nothing to reach")
    share = _SHARE[rule]
    threshold = share * reference
    goal = f"{100 * share:.0f} % of {whose}"

    def result(start: int | None, extractor: int, note: str) -> Tunnel:
        name = reached.layer[0] if start else None
        return Tunnel(
            rule,
            start,
            name,
            extractor,
            reference,
            threshold,
            probe.step,
            (probe.dataset,),
            probe.split,
            note,
        )

    # Rounding must not decide: in floats .98 * .46 is a hair above .4508.
    reached = probe.where(probe.value >= threshold - 1e-12)  # false for NaN
    last = int(layers.index[-1])
    if not reached.layer:
        best = _percent(layers.value.max())
        return result(None, last, f"no tunnel: no layer's {where} reaches {goal}; the best has {best}")
    start = int(reached.index[0])
    value = float(reached.value[0])
    if start == 0:
        separable = value < reference
        why = "the set is all but linearly separable" if separable else "the network is no better than that"
        return result(
            None, 0, f"no extractor: the {where} on raw pixels ({_percent(value)}) reaches {goal}: {why}"
        )
    if start == 1:
        return result(None, 0, f"no extractor: layer 1's {where} ({_percent(value)}) already reaches {goal}")
    note = f"layer {start} is the first whose {where} ({_percent(value)}) reaches {goal}"
    behind = int((layers.index > start).sum())
    below = behind - int((reached.index > start).sum())
    if not behind:
        note += "; it is the last layer, so the tunnel is that layer alone"
    elif below:
        note += f"; {below} of the {behind} layers behind it {'is' if below == 1 else 'are'} below that again"
    return result(start, start - 1, note)


def _ood(rows: Sequence[Row], own: str | None) -> Tunnel:
    held_out = [r for r in rows if r.split != "train"]
    sets_measured = [curve(held_out, dataset=name) for name in ood_datasets(rows, own)]
    latest = max((c.step for c in sets_measured), default=-1)
    curves = [c for c in sets_measured if c.step == latest and np.isfinite(c.value).any()]
    if not curves:
        kind = probe_variant(rows)
        return _unknown("ood", f"unknown: no {kind} probe of an out-of-distribution set was measured")
    names = tuple(c.dataset for c in curves)
    sets = names[0] if len(names) == 1 else f"{len(names)} sets ({', '.join(names)})"
    kind = _kind(curves[0].variant)
    sets += f" by the {kind}probe" if kind else ""
    # Only layers every set has: a mean over fewer sets would jump by which set is missing.
    common = sorted(set.intersection(*(set(c.finite().index.tolist()) for c in curves)))
    layers = [i for i in common if i > 0]
    if not layers:
        return _unknown("ood", f"unknown: no layer has a finite probe accuracy on {sets}")
    table = [dict(zip(c.index.tolist(), zip(c.value, _errors(c), strict=True), strict=True)) for c in curves]
    mean = {i: float(np.mean([t[i][0] for t in table])) for i in common}
    error = {i: float(np.sqrt(np.sum([t[i][1] ** 2 for t in table])) / len(table)) for i in common}

    peak = max(layers, key=lambda i: mean[i])  # of equals the first
    last = layers[-1]
    if not max(mean.values()) > 0:
        return _unknown("ood", f"unknown: no probe is right about any image of {sets}")
    every = {i: name for c in curves for i, name in zip(c.index.tolist(), c.layer, strict=True)}

    def result(start: int | None, extractor: int, note: str) -> Tunnel:
        name = every.get(start) if start else None
        return Tunnel(
            "ood", start, name, extractor, mean[peak], mean[peak], latest, names, curves[0].split, note
        )

    top = _percent(mean[peak])
    if mean.get(0, -np.inf) > mean[peak]:
        return result(
            None,
            0,
            f"no extractor: transfer to {sets} is best from raw pixels ({_percent(mean[0])}), "
            f"the best layer has {top}",
        )
    if peak == last:
        return result(None, last, f"no tunnel: transfer to {sets} is best from the last layer ({top})")
    note = (
        f"transfer to {sets} peaks at layer {peak} ({top}), the tunnel starts behind it; "
        f"the last layer has {_percent(mean[last])}"
    )
    if mean[peak] - mean[last] < 2 * np.hypot(error[peak], error[last]):
        note += ", a fall within two standard errors"
    return result(peak + 1, peak, note)


def _kind(variant: str) -> str:
    """The name of a kind of probe, with a space, where it is not the usual one."""
    return "" if variant == "ridge" else f"{variant} "


def _errors(c: Curve) -> NDArray[np.float64]:
    """Standard errors, shape [L]; that of 0 or 100 % is not 0: it is estimated from (k + 1) / (n + 2)."""
    n = np.where(c.n > 0, c.n, np.nan)
    share = (c.value * n + 1) / (n + 2)
    return np.where(c.se == 0, np.sqrt(share * (1 - share) / n), c.se)


def _unknown(rule: str, note: str) -> Tunnel:
    nan = float("nan")
    return Tunnel(rule, None, None, None, nan, nan, -1, (), "", note)


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"
