"""What came out, in one object: ``summary.json``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.store import Part
from tunnel_lightning.measures import (
    LayerValue,
    id_ood_alignment,
    id_ood_pearson,
    ood_retained,
    strength_bin,
)
from tunnel_lightning.measures.recipes import RECIPES
from tunnel_lightning.runs import (
    NETWORK,
    Curve,
    Row,
    curve,
    machine_info,
    network_accuracy,
    package_versions,
    tunnels,
    wilson,
)

VARIANTS = ("ridge", "logistic", *RECIPES)


def transfer_rows(context: Context, rows: Sequence[Row]) -> list[Row]:
    """The three measures of Harun et al. (2024, section 4.1) of each set and kind of probe."""
    found, layers, step = [], context.taps.layers, context.subject.step
    for images in context.others:
        for variant in VARIANTS:
            ood = _layers(rows, images.name, variant, step)
            own = _layers(rows, context.own.name, variant, step)
            if len(ood.layer) != len(layers):
                continue
            values = {"ood_retained": ood_retained(ood.value.tolist())}
            if len(own.layer) == len(layers):
                values["id_ood_pearson"] = id_ood_pearson(own.value.tolist(), ood.value.tolist())
                values["id_ood_alignment"] = id_ood_alignment(
                    own.value[-1], ood.value[-1], 1 / context.own.num_classes, 1 / images.num_classes
                )
            for measure, value in values.items():
                place = LayerValue(
                    NETWORK, len(layers) + 1, 0, measure, variant, float(value), math.nan, int(ood.n[-1])
                )
                found.append(context.row(place, images, "test"))
    return found


def summarise(context: Context, rows: Sequence[Row], parts: Sequence[Part], flops: int) -> dict[str, Any]:
    """The summary of an analysis, plain values; its keys are told in docs/analysis.md."""
    subject, own, layers = context.subject, context.own, context.taps.layers
    at = [row for row in rows if row.step == subject.step]
    accuracy = network_accuracy(at, own.name, "test", subject.step)
    n = next((r.n for r in at if r.layer == NETWORK and r.measure == "accuracy" and r.dataset == own.name), 0)
    low, high = wilson(accuracy, n)
    rank = curve(at, "rank_cov", "rtol=1e-3", own.name).layers_only()
    measured = {images.name: _transfer(at, images.name, subject.step) for images in context.others}
    transfer = {name: found for name, found in measured.items() if found}
    retained = [found["retained"] for found in transfer.values() if math.isfinite(found["retained"])]
    mean = sum(retained) / len(retained) if retained else math.nan
    return {
        "run_id": subject.run_id,
        "dataset": own.name,
        "title": subject.title,
        "network": {
            "name": subject.title,
            "config": subject.config,
            "parameters": sum(p.numel() for p in subject.network.parameters()),
            "layers": len(layers),
            "flops": flops,
        },
        "checkpoint": subject.checkpoint,
        "step": subject.step,
        "epoch": subject.epoch,
        "accuracy": (
            {"value": accuracy, "low": low, "high": high, "n": n, "dataset": own.name, "split": "test"}
            if math.isfinite(accuracy)
            else None
        ),
        "class_names": own.class_names,
        "tunnel": {rule: found._asdict() for rule, found in tunnels(at, own.name).items()},
        "rank": _rank(rank) if rank.layer else None,
        "transfer": transfer,
        "mean_retained": mean,
        "strength": strength_bin(mean),
        "blocks": next((part.extra["blocks"] for part in parts if "blocks" in part.extra), None),
        "penalty": {k: v for part in parts for k, v in part.extra.get("penalty", {}).items()},
        "settings": {
            **context.options.settings(),
            "precision": context.precision,
            "batch_size": own.batch_size,
        },
        "versions": package_versions(),
        "machine": {
            **machine_info(),
            "device": devices(context, parts),
            "processes": context.fabric.world_size,
        },
        "seconds": {what: round(value, 2) for part in parts for what, value in part.seconds.items()},
        "notes": [*subject.notes, *context.notes],
    }


def devices(context: Context, parts: Sequence[Part]) -> str:
    """Where the parts were measured, finished ones of earlier commands too: ``cpu``, or ``cpu, cuda:0``."""
    here = str(context.fabric.device)
    return ", ".join(dict.fromkeys(part.extra.get("device", here) for part in parts)) or here


def _layers(rows: Sequence[Row], dataset: str, variant: str, step: int) -> Curve:
    return curve(rows, "probe_accuracy", variant, dataset, "test", step).layers_only()


def _rank(rank: Curve) -> dict[str, Any]:
    best = int(np.nan_to_num(rank.value, nan=-1.0).argmax())
    return {
        "first": rank.value[0],
        "max": rank.value[best],
        "max_layer": rank.layer[best],
        "last": rank.value[-1],
        "cap": int(min(rank.n[-1] - 1, rank.dim[-1])),
    }


def _transfer(rows: Sequence[Row], name: str, step: int) -> dict[str, Any] | None:
    variant = next((v for v in VARIANTS if _layers(rows, name, v, step).layer), None)
    if variant is None:
        return None
    probe = _layers(rows, name, variant, step)
    measured = {
        r.measure: r.value for r in rows if r.layer == NETWORK and r.dataset == name and r.variant == variant
    }
    best = int(np.nan_to_num(probe.value, nan=-1.0).argmax())
    retained = measured.get("ood_retained", math.nan)
    return {
        "variant": variant,
        "retained": retained,
        "pearson": measured.get("id_ood_pearson", math.nan),
        "alignment": measured.get("id_ood_alignment", math.nan),
        "strength": strength_bin(retained),
        "best_layer": probe.layer[best],
        "best_index": int(probe.index[best]),
        "best": probe.value[best],
        "last": probe.value[-1],
    }
