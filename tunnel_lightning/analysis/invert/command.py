"""``invert RUN``: what each layer still knows of its input."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.text import Text

from tunnel_lightning.analysis.asked import Asked, parse, watched
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.invert.extras import generated, neighbours, noise_network
from tunnel_lightning.analysis.invert.live import write_events
from tunnel_lightning.analysis.invert.options import Options
from tunnel_lightning.analysis.invert.targets import (
    Targets,
    file_targets,
    noise_targets,
    pixels_of,
    set_targets,
    spread,
)
from tunnel_lightning.analysis.invert.tasks import (
    TRAINED,
    UNTRAINED,
    Net,
    Work,
    pictures,
    recovered,
    rows_of,
)
from tunnel_lightning.analysis.places import PARTS_FOLDER, alone, check_place, resumable
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Store
from tunnel_lightning.analysis.twins import untrained
from tunnel_lightning.callbacks.places import all_places
from tunnel_lightning.report import write_report
from tunnel_lightning.report.inversion import print_inversion
from tunnel_lightning.report.progress import Bars
from tunnel_lightning.runs import RunError, machine_info, package_versions
from tunnel_lightning.runs.analysis import analysis_folder, load_analysis
from tunnel_lightning.runs.inversion import (
    DIVERGED,
    NOT_REACHED,
    inversion_folder,
    load_inversion,
    verdicts,
    write_inversion,
)
from tunnel_lightning.runs.schema import Row
from tunnel_lightning.taps import Tap, Taps, TapSpec
from tunnel_lightning.taps.costs import plain

COMMAND = "invert"
DESCRIPTION = (
    "Recover images from what each layer of a network makes of them, by descent from noise: of a run that `fit` "
    "made (RUN), or of any network (--model with --data). Writes a table, pictures and curves into RUN/invert. "
    "Started again after an interruption it goes on."
)


def invert_network(asked: Asked, options: Options) -> Path:
    """Invert the layers of a network, and write what came of it.

    Args:
        asked: which network, on which machine, and where the result goes.
        options: which layers and images, and how.

    Returns:
        The folder of the result.

    Raises:
        ValueError: a mistake in what was asked, in one sentence.
        FileNotFoundError: no such run, checkpoint, file of weights or image.
        OSError: the result can't be written.
        KeyboardInterrupt: with what to do to go on.
    """
    if asked.ood and not options.others:
        raise ValueError(
            "--ood names sets whose images are recovered with --others true: add it, or leave out --ood"
        )
    if not options.others:
        asked = replace(asked, ood=[])  # reading sets takes time
    if asked.out or asked.run:
        check_place(Path(asked.out or Path(str(asked.run)) / COMMAND), "an inversion", is_ours, COMMAND)
    fabric = asked.fabric()
    folder: Path | None = None
    with resumable(lambda: folder), Bars() as bars:
        subject = asked.subject()
        own, others = subject.sets()
        shape = own.image_shape
        pixels = pixels_of(subject.data, own)
        notes = [*subject.notes, pixels.note]
        targets = [_targets(own, options, pixels)]
        if options.others:
            targets += [
                set_targets(each, len(targets[0].names), options.seed, pixels, own=False) for each in others
            ]
            targets.append(noise_targets(len(targets[0].names), shape, options.seed))
        subject.network.to(fabric.device)
        subject.model.to(fabric.device)
        taps = _taps(subject, own, asked.run, options)
        layers = _layers(taps, asked.run, options)
        model = None if subject.model is subject.network else subject.model
        nets = [Net(TRAINED, subject.network, subject.checkpoint or subject.title, model)]
        if options.untrained:
            nets.append(_untrained(subject, own, layers, options, fabric.device))
        folder = asked.place(subject, COMMAND)
        check_place(folder, "an inversion", is_ours, COMMAND)
        with alone(folder, "an inversion"):
            store = Store(folder / PARTS_FOLDER)
            work = Work(subject, own, options, pixels, layers, fabric, store, bars)
            for note in notes:
                work.note(note)
            bars(f"inverting {len(layers)} layers of {subject.title} with {options.how}", 0, 0)
            _write(folder, work, taps, _done(work, nets, targets))
    return folder


def _targets(own: ImageSet, options: Options, pixels: Any) -> Targets:
    if options.paths:
        return file_targets(options.paths, own.image_shape)
    return set_targets(own, options.images, options.seed, pixels)


def _taps(subject: Subject, own: ImageSet, run: str | None, options: Options) -> Taps:
    """The layers that are asked for, or those the run watched; the hooks are off again."""
    watch = watched(run) if run else {}
    patterns: Any = list(options.patterns) or watch.get("taps.layers", "default")
    taps = Taps(subject.network, TapSpec(patterns))
    example = own.example.to(next((p.device for p in subject.model.parameters()), torch.device("cpu")))
    try:
        with plain(subject.model):
            taps.arm()
            subject.model(example)
            taps.take()
            taps.features_of_input(example)
    except RuntimeError as error:
        raise ValueError(f"{subject.title}: {error}") from error
    finally:
        taps.remove()
    return taps


def _layers(taps: Taps, run: str | None, options: Options) -> list[Tap]:
    """Of the layers those that are inverted."""
    if options.patterns:
        return taps.layers
    return spread(taps.layers, options.most_layers, list(tunnel_layers(run).values()))


def tunnel_layers(run: str | None) -> dict[str, str]:
    """Names of the layers at which the tunnel of an analysed run starts, by rule; none where that is not known."""
    if run is None or analysis_folder(run) is None:
        return {}
    try:
        found = load_analysis(run).run.tunnel()
    except RunError:
        return {}
    return {rule: each.layer for rule, each in found.items() if each.layer}


def _untrained(
    subject: Subject, own: ImageSet, layers: Sequence[Tap], options: Options, device: torch.device
) -> Net:
    twin, origin = untrained(subject, options.seed)
    return Net(UNTRAINED, twin.to(device), origin)


def _done(work: Work, nets: list[Net], targets: Sequence[Targets]) -> dict[str, Any]:
    """All that is asked for: rows, pictures, curves, and what the summary says of them."""
    options, shape = work.options, work.own.image_shape
    if options.noise_network:
        nets = [*nets, noise_network(work, shape)]
    rows: list[Row] = []
    images: dict[str, NDArray[Any]] = {}
    curves: dict[str, NDArray[Any]] = {}
    for of in targets:
        images[f"original/{of.name}"] = pictures(of.pixels.numpy())
        for net in nets:
            found = recovered(work, net, of)
            made = found.pop(f"images/{of.name}/{net.name}")
            images[f"recovered/{of.name}/{net.name}"] = pictures(made)
            if options.neighbours and (of is targets[0] or net.name == TRAINED):
                near = neighbours(work, net, of, made)
                images |= {key: value for key, value in near.items() if key.startswith("pictures_")}
                found |= {key: value for key, value in near.items() if not key.startswith("pictures_")}
            rows += rows_of(work, found, of, [net])
            curves |= found
    classes = _classes(work, targets[0]) if options.generate else []
    for net in nets if options.generate else ():
        if net.name != "noise":
            made_of = generated(work, net, classes, shape)
            images |= {key: value for key, value in made_of.items() if key.startswith("generated/")}
            curves |= {key: value for key, value in made_of.items() if not key.startswith("generated/")}
    return {
        "rows": rows,
        "pictures": images,
        "curves": curves,
        "images": {of.name: of.described() for of in targets},
        "networks": {net.name: net.origin for net in nets},
        "generated": [work.own.class_names[k] for k in classes],
    }


def _classes(work: Work, targets: Targets) -> list[int]:
    """Classes that images are made of: those of the targets, and where they have none the first ones."""
    found = [label for label in dict.fromkeys(targets.classes) if label >= 0]
    return found or list(range(min(len(targets.names), work.own.num_classes)))


def _write(folder: Path, work: Work, taps: Taps, done: dict[str, Any]) -> None:
    """Write the files, what TensorBoard shows, and the page."""
    subject, options = work.subject, work.options
    told = {of: {net: verdicts(done["curves"], of, net) for net in done["networks"]} for of in done["images"]}
    work.note(_far(next(iter(told.values()))[TRAINED], options))
    summary = {
        "run_id": subject.run_id,
        "dataset": work.own.name,
        "title": subject.title,
        "checkpoint": subject.checkpoint,
        "step": subject.step,
        "epoch": subject.epoch,
        "layers": [
            {"name": each.name, "index": each.index, "kind": each.kind, "shape": list(each.shape)}
            for each in work.layers
        ],
        "all_layers": [each.name for each in all_places(taps)],
        "tunnel": tunnel_layers(str(subject.run) if subject.run else None),
        "input": list(work.own.image_shape),
        "images": done["images"],
        "class_names": work.own.class_names,
        "networks": done["networks"],
        "generated": done["generated"],
        "verdicts": told,
        "recipe": str(options.how),
        "settings": options.settings(),
        "versions": package_versions(),
        "machine": {**machine_info(), "device": str(work.fabric.device)},
        "seconds": {what: round(value, 2) for what, value in work.seconds.items()},
        "notes": work.notes,
    }
    write_inversion(folder, done["rows"], done["pictures"], done["curves"], summary)
    found = load_inversion(folder)
    write_events(found, folder)


def _far(found: Sequence[str], options: Options) -> str:
    """What to do where most descents did not come near; empty where they did."""
    far = sum(verdict in (DIVERGED, NOT_REACHED) for verdict in found)
    if 2 * far <= len(found):
        return ""
    others = "--recipe adam, " if options.recipe != "adam" else ""
    return (
        f"at {far} of {len(found)} layers the descents of {options.how} did not come near the images' outputs, which "
        f"tells of the recipe and not of the layers: try {others}a smaller --lr or more --steps"
    )


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a finished inversion."""
    return inversion_folder(folder) == folder


def command(argv: Sequence[str]) -> None:
    """Run the command with the arguments behind its name.

    Raises:
        ValueError: a mistake in what was asked; see :func:`invert_network`.
    """
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    start = time.perf_counter()
    asked, options = parse(argv, COMMAND, DESCRIPTION, Options, taps=False)
    folder = invert_network(asked, options)
    console = Console()
    print_inversion(load_inversion(folder), console)
    console.print(Text(f"inversion    {folder}"), soft_wrap=True)
    console.print(Text(f"report       {write_report(folder)}"), soft_wrap=True)
    seconds = time.perf_counter() - start
    console.print(Text(f"time         {seconds // 60:.0f} min {seconds % 60:.0f} s"))
