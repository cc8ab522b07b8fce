"""What layers still know of their input: the sections of the page, and the table in the terminal."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from tunnel_lightning.report.charts import Item, Section, Table
from tunnel_lightning.report.inversion_charts import NETWORKS, by_depth, by_step, networks, starts_of
from tunnel_lightning.report.inversion_pictures import all_starts, films, made, near, others
from tunnel_lightning.report.terminal import SHORT, Column, fitted
from tunnel_lightning.runs.inversion import (
    ALIKE,
    DIVERGED,
    NOT_REACHED,
    RECOVERED,
    Inversion,
    inversion_folder,
    load_inversion,
)

if TYPE_CHECKING:
    from rich.console import Console

_NEAR = (
    "For each image the training image whose output at the layer is nearest to its own, and the one nearest to that "
    "of what was recovered. Where both are the same, the layer takes the two for alike, even where one of them is "
    "noise to the eye."
)
_MADE = (
    "From noise, the likelihood of a class at a layer's linear probe is raised by the same recipe: what the layer "
    "takes for a picture of the class. Below each: how many of the starts the network itself names so."
)
_OTHERS = "The same descents on images that the network was not trained on."


def sections_of(home: Path) -> list[Section]:
    """The sections of a run's page on its inversion; none where there is no finished one.

    Args:
        home: the run folder, or the folder of the inversion.

    Raises:
        RunError: a file of it can't be read.
    """
    folder = inversion_folder(home)
    if folder is None:
        return []
    found = load_inversion(folder)
    starts = starts_of(found)
    own = found.sets[0]
    main: list[Item] = [films(found, own, starts), *by_depth(found, own, starts), _table(found, own)]
    sections = [
        Section("inversion", "What layers give back of their input", main, _said(found)),
        Section("inversion_steps", "Descents, step by step", by_step(found, own), folded=True),
        Section("inversion_starts", "Every start", all_starts(found, own, starts), folded=True),
        Section("inversion_near", "Nearest training images", near(found, starts), _NEAR),
        Section("inversion_made", "Images made of classes", made(found, starts), _MADE),
        Section("inversion_others", "Other images inverted", others(found, starts), _OTHERS),
    ]
    return [section for section in sections if section.items]


# -- words ------------------------------------------------------------------------------------------------


def headline_of(found: Inversion) -> str:
    """Say up to which layer images come back, after training and before."""
    said: dict[str, str] = {}
    verdicts = found.summary["verdicts"][found.sets[0]]["trained"]
    if all(verdict in (NOT_REACHED, DIVERGED) for verdict in verdicts):
        recipe = found.summary.get("recipe", "this recipe")
        return f"No descent of {recipe} came near a layer's output, which tells nothing of the layers"
    for network in ("trained", "untrained"):
        if network in found.networks:
            verdicts = found.summary["verdicts"][found.sets[0]][network]
            said[network] = _up_to([verdict == RECOVERED for verdict in verdicts], found)
    after = f"After training images come back {said['trained']}"
    return after + (f"; before training {said['untrained']}" if "untrained" in said else "")


def _up_to(recovered: list[bool], found: Inversion) -> str:
    numbers = [layer["index"] for layer in found.summary["layers"]]
    if all(recovered):
        return "from every layer"
    count = sum(recovered)
    if count == 0:
        return "from no layer"
    those = [number for number, back in zip(numbers, recovered, strict=True) if back]
    if count == 1:
        return f"from layer {those[0]} alone"
    if all(recovered[:count]):
        return f"from layers {those[0]} to {those[-1]}"
    return f"from layers {', '.join(map(str, those[:-1]))} and {those[-1]} only"


def _said(found: Inversion) -> str:
    summary = found.summary
    count, layers = len(summary["images"][found.sets[0]]), len(summary["layers"])
    starts = (summary.get("settings") or {}).get("starts") or 1
    return (
        f"{headline_of(found)}. Each of {count} images was recovered {starts} times at each of {layers} layers: from "
        f"noise, pixels descend until the layer's output is that of the image (recipe {summary['recipe']}; Badger, "
        "Depth and Representation in Vision Models, 2022). What the layer does not tell apart does not come back."
    )


# -- tables ---------------------------------------------------------------------------------------------

_SHOWN = (
    ("psnr", "PSNR", 1, 1),
    ("ssim", "SSIM", 1, 2),
    ("input_ratio", "image / ref.", 1, 2),
    ("embedding_ratio", "layer / ref.", 1, 2),
    ("non_unique", "test passed %", 100, 1),
    ("outside", "outside %", 100, 1),
)
"""Quantities of the table, their heads, what they are multiplied by, and digits behind the point."""


def _table(found: Inversion, dataset: str) -> Table:
    """Every layer of every network, with its verdict."""
    rows = []
    for net in networks(found):
        values = {name: found.values(name, dataset, net) for name, *_ in _SHOWN}
        verdicts = found.summary["verdicts"][dataset][net]
        for k, layer in enumerate(found.summary["layers"]):
            cells: list[Any] = []
            for name, _, scale, digits in _SHOWN:
                mean, deviation = (_short(scale * each[k], digits) for each in values[name])
                cells += [mean, *([deviation] if name in ("psnr", "ssim") else [])]
            rows.append([layer["index"], layer["name"], NETWORKS[net][0], verdicts[k], *cells])
    heads = []
    for name, head, *_ in _SHOWN:
        heads += [head, *([f"{head} ±"] if name in ("psnr", "ssim") else [])]
    count = len(found.summary["images"][dataset])
    note = (
        f"Means over {count} images; ± is their standard deviation. Recovered: most descents have a PSNR of at least "
        f"{ALIKE:g} dB. Image / ref.: distance of the recovered image over that of the image with slight noise, and "
        "layer / ref. the same of the layer's outputs. Test passed: nearer in the layer and further in the image, so "
        "that the layer does not tell them apart; where that holds of most, the verdict is not unique. Not reached: "
        "the descent came not even as near in the layer, and tells nothing of it. Outside: pixels beyond black and "
        "white."
    )
    return Table("inversion_table", "Verdicts", ["#", "layer", "network", "verdict", *heads], rows, note)


def _short(value: float, digits: int) -> float | None:
    if not np.isfinite(value):
        return None
    return round(float(value), digits) if abs(value) < 1000 else float(f"{value:.3g}")


# -- terminal ---------------------------------------------------------------------------------------------


def print_inversion(found: Inversion, console: Console | None = None) -> None:
    """Print what each layer gives back, in 80 columns where there are no more, and what a reader must know."""
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    own, layers = found.sets[0], found.summary["layers"]
    console.print()
    console.print(Text(f"{found.summary['run_id']}: {found.summary['recipe']}", style="bold"))
    columns = [
        Column("#", "#", [str(layer["index"]) for layer in layers], style="dim"),
        Column("layer", "layer", [layer["name"] for layer in layers], right=False, names=True),
    ]
    for rank, net in enumerate(net for net in ("trained", "untrained", "noise") if net in found.networks):
        verdicts = found.summary["verdicts"][own][net]
        head = NETWORKS[net][0].replace(" training", "\ntraining").replace(" on noise", "\non noise")
        for quantity, name, digits, under in (
            ("psnr", "PSNR", 1, 0), ("input_ratio", "image", 2, 6), ("embedding_ratio", "layer", 2, 6),
        ):  # fmt: skip
            mean, _ = found.values(quantity, own, net)
            cells = [f"{value:.{digits}f}" if np.isfinite(value) else "-" for value in mean]
            columns.append(
                Column(f"{name} {NETWORKS[net][0]}", f"{head}\n{name}", cells, 2 * rank + under, SHORT)
            )
        columns.append(
            Column(
                f"verdict {NETWORKS[net][0]}", f"{head}\nverdict", verdicts, 2 * rank + 1, SHORT, right=False
            )
        )
    columns[2] = columns[2]._replace(rank=0)
    table, left_out = fitted(columns, console)
    console.print(table, crop=False)
    if left_out:
        console.print(Text(f"no room here: {', '.join(each.name for each in left_out)}", style="dim"))
    legend = "PSNR in dB; image, layer: distance over that of the image with slight noise"
    console.print(Text(legend, style="dim"))
    console.print()
    console.print(Text(headline_of(found)))
    for note in found.summary.get("notes") or []:
        console.print(Text(f"note: {note}", style="dim"))
