"""What ``trim`` found, in sentences: the headline, the certificate, and what tuning gained."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tunnel_lightning.report.words import number, percent
from tunnel_lightning.runs.trimming import Trimming


def headline(found: Trimming) -> str:
    """Say in a sentence what the cut is, what it keeps, what it saves, and how it transfers."""
    choice = found.summary.get("choice") or {}
    line = found.chosen
    if line is None:
        return f"no tunnel to cut: {choice.get('why') or 'no cut was taken'}"
    last = int(found.cuts.sum())
    where = f"cut behind layer {line} of {last} ({found.curve['layer'][line]})"
    parts = [f"at {share_of(found, line, 'flops')} of the FLOPs"]
    sizes = [size for size in found.batches if math.isfinite(found.at(f"speedup_{size}", line))]
    if sizes:
        size = max(sizes)
        parts.append(f"{times_faster(found.at(f'speedup_{size}', line))} at batch {size}")
    kept = found.summary.get("certificate")
    transfer = {name: each for name, each in (found.summary.get("transfer") or {}).items() if each}
    if choice.get("how") == "for" and choice.get("set") in transfer:
        name = choice["set"]
        each = transfer.pop(name)
        said = f"{where}, for {name}: {percent(each['cut'])} right instead of {percent(each['last'])}"
    elif kept:
        said = f"{where}: {percent(kept['value'])} of the accuracy (interval {_span(kept)})"
    else:
        said = where
    told = [
        f"{name} {percent(each['cut'])} instead of {percent(each['last'])}" for name, each in transfer.items()
    ]
    more = f"; transfer to {', '.join(told[:3])}" if told else ""
    return f"{said} {', '.join(parts)}{more}"


def certificate(found: Trimming) -> str:
    """Say plainly whether test images bear out what was chosen on validation images; empty where nothing was cut."""
    kept, choice = found.summary.get("certificate"), found.summary.get("choice") or {}
    if found.chosen is None:
        return ""
    whole = found.summary.get("whole") or {}
    of = "the accuracy" if whole.get("reference") == "network" else "the accuracy of the last layer's head"
    if choice.get("how") == "for":
        each = (found.summary.get("transfer") or {}).get(choice.get("set")) or {}
        if not each:
            return ""
        more = f"{_gain(each)}, 95 % interval {_gains(each)}"
        sure = (
            "better than a head on the last layer"
            if each["low"] > 0
            else "not certain to be better than a head on the last layer"
        )
        return f"Certificate: on {number(each['n'])} test images of {choice['set']} it is {sure} ({more})."
    if not kept:
        return ""
    said = f"on {number(kept['n'])} test images it keeps {percent(kept['value'])} of {of}"
    said += f" (95 % interval {_span(kept)} %)"
    asked, verdict = kept.get("keep"), kept.get("verdict")
    if asked is None:
        return f"Certificate: {said}."
    share = f"{100 * asked:.4g} %"
    if verdict == "kept":
        return f"Certificate: {said}, and the interval lies above the {share} asked for."
    if verdict == "likely":
        return (
            f"Certificate, not certain: {said}; that is the {share} asked for, but the interval reaches below. More "
            "test images would narrow it."
        )
    return (
        f"The certificate fails: {said}, less than the {share} asked for, though on validation images it kept them. "
        "A higher --keep leaves room."
    )


def tuned(found: Trimming) -> str:
    """Say what a short training of the cut network gained; empty where there was none."""
    each = found.summary.get("tuned")
    if not each:
        return ""
    how = f"{each['epochs']} epoch{'s' * (each['epochs'] != 1)} of {each['optimizer']} at lr {each['lr']:g}"
    gain = f"{_gain(each)} on test images (95 % interval {_gains(each)})"
    if each["taken"]:
        return f"Tuned for {how}: {gain}; the network that is written has these weights."
    return (
        f"Tuned for {how}: no better on validation images ({percent(each['val_after'])} after "
        f"{percent(each['val_before'])}), so the untuned weights are written."
    )


def share_of(found: Trimming, line: int, column: str) -> str:
    """A figure of a cut over that of the whole network, in percent."""
    share = 100 * found.at(column, line) / found.at(column, -1)
    return f"{share:.0f} %" if share >= 10 else f"{share:.1f} %"


def times_faster(value: float) -> str:
    """A ratio of times in words.

    Example:
        >>> times_faster(2.04), times_faster(0.5)
        ('2.0x faster', '2.0x slower')
    """
    return f"{value:.1f}x faster" if value >= 1 else f"{1 / value:.1f}x slower"


def _span(each: Mapping[str, Any]) -> str:
    return f"{100 * each['low']:.1f} to {100 * each['high']:.1f}"


def _gain(each: Mapping[str, Any]) -> str:
    return f"{100 * each['gain']:+.1f} points"


def _gains(each: Mapping[str, Any]) -> str:
    return f"{100 * each['low']:+.1f} to {100 * each['high']:+.1f}"
