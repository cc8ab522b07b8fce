"""What layers still know of their input: charts by depth and by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.report.charts import Chart, Item, Line, Mark, escape
from tunnel_lightning.report.source import read_source
from tunnel_lightning.report.style import BLUE, GREY, ORANGE, RULE_LABELS, VERMILION
from tunnel_lightning.report.words import number
from tunnel_lightning.runs import RunError, tunnels
from tunnel_lightning.runs.inversion import Inversion

NETWORKS = {
    "untrained": ("before training", ORANGE, "dash"),
    "trained": ("after training", BLUE, "solid"),
    "noise": ("trained on noise", VERMILION, "dot"),
}
"""Of each network its name in words, its colour and its dash, in the order of the pictures' rows."""


def starts_of(found: Inversion) -> dict[str, int]:
    """Numbers of the layers at which the run's tunnel starts, by rule, as far as that is known.

    It is the run's as its files have it now, else what was known when its layers were inverted.
    """
    try:
        source = read_source(found.path.parent)
        layers = {rule: each.layer for rule, each in tunnels(source.rows, source.own).items()}
    except RunError:
        layers = {}
    names = found.summary.get("all_layers") or []
    known = layers if any(layers.values()) else found.summary.get("tunnel") or {}
    return {rule: names.index(layer) for rule, layer in known.items() if layer in names}


def marks(starts: Mapping[str, int]) -> list[Mark]:
    """The tunnel's start by each rule; rules that agree share a mark."""
    places: dict[int, list[str]] = {}
    for rule, at in starts.items():
        places.setdefault(at, []).append(rule)
    dashes = {"id95": "solid", "id98": "dash", "ood": "dot"}
    return [
        Mark(at, " · ".join(RULE_LABELS[rule] for rule in rules), dashes[rules[0]])
        for at, rules in sorted(places.items())
    ]


def columns(found: Inversion, starts: Mapping[str, int]) -> dict[str, Any]:
    """Columns of pictures: the layers, those in the tunnel shaded."""
    layers = found.summary["layers"]
    first = starts.get("id95")
    inside = [k for k, layer in enumerate(layers) if first is not None and layer["index"] >= first]
    return {
        "columns": [str(layer["index"]) for layer in layers],
        "names": [f"layer {layer['index']}: {layer['name']}" for layer in layers],
        "shade": (inside[0], "tunnel (95 % rule)") if inside else None,
    }


def networks(found: Inversion) -> list[str]:
    """The networks that were inverted, in the order of the pictures' rows."""
    return [name for name in NETWORKS if name in found.networks]


BAND = "Means over images, of their starts. The band is one standard deviation of the images."


def line_of(
    found: Inversion,
    label: str,
    mean: NDArray[np.float64],
    deviation: NDArray[np.float64],
    color: str,
    dash: str = "solid",
    band: bool = True,
    limits: tuple[float, float] = (-np.inf, np.inf),
) -> list[Line]:
    """A line over the layers, or none where nothing is known; its band stays in the limits."""
    if not np.isfinite(mean).any():
        return []
    layers = found.summary["layers"]
    x = np.array([layer["index"] for layer in layers])
    said = [
        f"<b>layer {layer['index']}: {escape(layer['name'])}</b><br>{escape(label)}: {number(float(m))}"
        + (f" ± {number(float(d))}" if np.isfinite(d) else "")
        for layer, m, d in zip(layers, mean, deviation, strict=True)
    ]
    look: dict[str, Any] = {"dash": dash, "marker": "circle"}
    if band and np.isfinite(deviation).all():
        look |= {"low": np.clip(mean - deviation, *limits), "high": np.clip(mean + deviation, *limits)}
    return [Line(label, x, mean, said, color, **look)]


def by_depth(found: Inversion, dataset: str, starts: Mapping[str, int]) -> list[Item]:
    """Quality and distances against depth."""
    items: list[Item] = []
    for quantity, title, label, note in (
        ("psnr", "How close the recovered image comes", "PSNR (dB)", "Higher is nearer."),
        ("ssim", "How close its structure comes", "SSIM", "1 is the very image."),
    ):
        lines = [
            line
            for net in networks(found)
            for line in line_of(
                found, NETWORKS[net][0], *found.values(quantity, dataset, net), *NETWORKS[net][1:]
            )
        ]
        if lines:
            about = f"{note} {BAND}"
            items.append(
                Chart(f"inversion_{quantity}", title, lines, y=label, marks=marks(starts), note=about)
            )
    for quantity, title, of, note in (
        (
            "embedding", "Distance in the layer", "image's output",
            "Below the dotted line the layer sees a smaller difference than to an image with slight noise.",
        ),
        (
            "input", "Distance in the image", "image",
            "Above the dotted line the picture differs by more than slight noise. Below in the layer and above in "
            "the image at once: the layer does not tell them apart.",
        ),
    ):  # fmt: skip
        lines = []
        for net in networks(found):
            name, color, dash = NETWORKS[net]
            mean, deviation = found.values(f"{quantity}_share", dataset, net)
            lines += line_of(found, name, mean, deviation, color, dash, limits=(1e-6, np.inf))
            if quantity == "embedding" or net == "trained":
                reference, _ = found.values(f"reference_{quantity}_share", dataset, net)
                label = f"reference, {name}" if quantity == "embedding" else "reference"
                tint = color if quantity == "embedding" else GREY
                lines += line_of(found, label, reference, np.full(len(reference), np.nan), tint, "dot", False)
        sigma = (found.summary.get("settings") or {}).get("sigma", 0.0)
        about = f"{note} Relative to the {of}'s norm; reference: noise of deviation {sigma:.2g}. {BAND}"
        items.append(
            Chart(
                f"inversion_{quantity}",
                title,
                lines,
                y=f"share of the {of}",
                log_y=True,
                marks=marks(starts),
                note=about,
            )
        )
    return items


def by_step(found: Inversion, dataset: str) -> list[Item]:
    """Both distances over the descent, a line for each layer."""
    layers = found.summary["layers"]
    ends = (layers[0]["name"], layers[-1]["name"])
    items: list[Item] = []
    for net in reversed(networks(found)):
        for quantity, title in (("embedding", "Distance in the layer"), ("input", "Distance in the image")):
            curves = found.curves[f"{quantity}_curve/{dataset}/{net}"].astype(np.float64).mean((1, 2))
            lines = []
            for k, (layer, curve) in enumerate(zip(layers, curves, strict=True)):
                place = f"<b>layer {layer['index']}: {escape(layer['name'])}</b><br>"
                said = [
                    f"{place}step {s}: {number(float(v))}"
                    for s, v in zip(found.curves["steps"], curve, strict=True)
                ]
                values = np.where(curve > 0, curve, np.nan)
                lines.append(
                    Line(
                        layer["name"],
                        found.curves["steps"],
                        values,
                        said,
                        k / max(len(layers) - 1, 1),
                        width=1.7,
                    )
                )
            items.append(
                Chart(
                    f"inversion_steps_{quantity}_{net}",
                    f"{title}, {NETWORKS[net][0]}",
                    lines,
                    x="step of the descent",
                    y="share of the original",
                    log_y=True,
                    ends=ends,
                    note="Mean over images and starts.",
                )
            )
    return items
