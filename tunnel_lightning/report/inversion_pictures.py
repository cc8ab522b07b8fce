"""What layers still know of their input: films of pictures over the layers."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tunnel_lightning.report.charts import Chart, Item, Pictures, Strip
from tunnel_lightning.report.inversion_charts import BAND, NETWORKS, columns, line_of, marks, networks
from tunnel_lightning.report.lines import COLORS
from tunnel_lightning.report.pictures import rgb
from tunnel_lightning.runs.inversion import Inversion

MOST = 10
"""Images shown; the others are in ``pictures.npz`` alone."""


def films(
    found: Inversion, dataset: str, starts: Mapping[str, int], title: str = "", most: int = MOST
) -> Pictures:
    """For each image a film over the layers: recovered before training, and after; the first start of each."""
    nets = networks(found)
    strips = []
    for k, image in enumerate(found.summary["images"][dataset][:most]):
        frames = np.stack([found.pictures[f"recovered/{dataset}/{net}"][:, k, 0] for net in nets])
        captions = [_decibels(found, dataset, net, k, 0) for net in nets]
        strips.append(
            Strip(
                image["name"],
                rgb(frames),
                captions,
                rgb(found.pictures[f"original/{dataset}"][k]),
                "original",
            )
        )
    note = "Layers from left to right, by their number; below each picture its PSNR in dB."
    if (left := len(found.summary["images"][dataset]) - most) > 0:
        note += f" {left} more images are in pictures.npz."
    return Pictures(
        f"inversion_{dataset}",
        title or "What each layer gives back",
        strips,
        [NETWORKS[net][0] for net in nets],
        note=note,
        **columns(found, starts),
    )


def _decibels(found: Inversion, dataset: str, network: str, image: int, start: int) -> list[str]:
    values = found.curves[f"psnr/{dataset}/{network}"][:, image, start]
    return [f"{value:.1f}" if np.isfinite(value) else "–" for value in values]


def all_starts(found: Inversion, dataset: str, starts: Mapping[str, int]) -> list[Item]:
    """What came of each start; nothing where there was one."""
    nets = networks(found)
    count = found.pictures[f"recovered/{dataset}/{nets[0]}"].shape[2]
    if count < 2:
        return []
    strips = []
    for k, image in enumerate(found.summary["images"][dataset][:MOST]):
        each = [(net, start) for net in nets for start in range(count)]
        frames = np.stack([found.pictures[f"recovered/{dataset}/{net}"][:, k, start] for net, start in each])
        captions = [_decibels(found, dataset, net, k, start) for net, start in each]
        strips.append(Strip(image["name"], rgb(frames), captions))
    rows = [f"{NETWORKS[net][0]}, start {start + 1}" for net in nets for start in range(count)]
    note = "Where starts end in different pictures, the layer fits all of them."
    return [
        Pictures("inversion_starts", "From every start", strips, rows, note=note, **columns(found, starts))
    ]


def near(found: Inversion, starts: Mapping[str, int]) -> list[Item]:
    """The nearest training images by layer, and how often they are of the image's class."""
    own = found.sets[0]
    if f"pictures_near/{own}/trained" not in found.pictures:
        return []
    names = found.summary.get("class_names") or []
    strips = []
    for k, image in enumerate(found.summary["images"][own][:MOST]):
        frames, captions = [], []
        for kind in ("near", "near_recovered"):
            frames.append(found.pictures[f"pictures_{kind}/{own}/trained"][:, k, 0])
            captions.append([names[int(at)] for at in found.curves[f"label_{kind}/{own}/trained"][:, k, 0]])
        original = rgb(found.pictures[f"original/{own}"][k])
        strips.append(Strip(image["name"], rgb(np.stack(frames)), captions, original, "original"))
    rows = ["nearest to the image", "nearest to what was recovered"]
    items: list[Item] = [
        Pictures(
            "inversion_near",
            "Nearest training images, after training",
            strips,
            rows,
            **columns(found, starts),
        )
    ]
    lines = []
    for kind, said in (("near", "the image"), ("near_recovered", "what was recovered")):
        for net in networks(found) if kind == "near" else ["trained"]:
            name, color, dash = NETWORKS[net]
            dash = "dashdot" if kind == "near_recovered" else dash
            mean, deviation = found.values(f"class_{kind}", own, net)
            values = 100 * mean, 100 * deviation
            label, band = f"of {said}, {name}", kind == "near"
            lines += line_of(found, label, *values, color, dash, band, limits=(0, 100))
    if lines:
        count = found.curves[f"near/{own}/trained"].shape[2]
        note = f"Of the {count} nearest training images. {BAND}"
        items.append(
            Chart(
                "inversion_near_class",
                "Neighbours of the image's class",
                lines,
                y="share (%)",
                y_range=(0, 105),
                marks=marks(starts),
                note=note,
            )
        )
    return items


def made(found: Inversion, starts: Mapping[str, int]) -> list[Item]:
    """Images made of classes, by layer."""
    nets = [net for net in networks(found) if f"generated/{net}" in found.pictures]
    if not nets:
        return []
    strips = []
    for k, name in enumerate(found.summary["generated"]):
        frames = np.stack([found.pictures[f"generated/{net}"][:, k, 0] for net in nets])
        count = found.pictures[f"generated/{nets[0]}"].shape[2]
        captions = [
            [
                f"{round(count * share)} of {count}"
                for share in found.curves[f"generated_class/{net}"][:, k, 0]
            ]
            for net in nets
        ]
        strips.append(Strip(name, rgb(frames), captions))
    rows = [NETWORKS[net][0] for net in nets]
    return [
        Pictures("inversion_made", "Made of noise, class by class", strips, rows, **columns(found, starts))
    ]


def others(found: Inversion, starts: Mapping[str, int]) -> list[Item]:
    """Images of the other sets and of noise, and a line for each set."""
    others = found.sets[1:]
    items: list[Item] = [
        films(found, name, starts, f"{name}: what each layer gives back", most=3) for name in others
    ]
    if others:
        lines = []
        for name, color in zip(found.sets, COLORS, strict=False):
            mean, deviation = found.values("psnr", name, "trained")
            lines += line_of(
                found, name, mean, deviation, color, "solid" if name == found.sets[0] else "dash"
            )
        items.append(
            Chart(
                "inversion_sets",
                "By set, after training",
                lines,
                y="PSNR (dB)",
                marks=marks(starts),
                note=BAND,
            )
        )
    return items
