"""The cut network as files, with a card that says what the trim found of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.subject import read_config
from tunnel_lightning.analysis.trim.card import Card
from tunnel_lightning.analysis.trim.export import (
    CARD_FILE,
    CHECKPOINT_FILE,
    GRAPH_FILE,
    ONNX_FILE,
    WEIGHTS_FILE,
    write_network,
)
from tunnel_lightning.analysis.trim.taken import Taken
from tunnel_lightning.report.trimming_words import certificate, headline, tuned
from tunnel_lightning.runs.trimming import Trimming

TRIED_ON = 256
"""Images that exported graphs are compared with PyTorch on."""

ABOUT = {
    CHECKPOINT_FILE: "the cut network, for Classifier.load_from_checkpoint and as a plain nn.Module",
    WEIGHTS_FILE: "the cut network's weights",
    GRAPH_FILE: "the same as a graph of torch.export, any number of images",
    ONNX_FILE: "the same as ONNX, any number of images",
    "config.yaml": "settings with the cut network in them: this folder is a run folder",
    "manifest.json": "versions, machine, and what it was cut of",
    CARD_FILE: "what it is, what it keeps, how to load it",
}
"""What each file is."""


def write_taken(
    context: Context, taken: Taken, found: Trimming, config: bool, raw_pixels: bool = False
) -> tuple[dict[str, str], list[str]]:
    """Write the cut network into the folder of a trim.

    Args:
        context: the trim.
        taken: the network.
        found: what the card says of it.
        config: whether the run's config holds for it: it tells the classes of the run's own data.
        raw_pixels: whether the exported graphs take pixels and normalise them.

    Returns:
        What each file is, by name, and notes on what is not written.
    """
    subject, folder = context.subject, found.path
    images = torch.cat([x for x, _ in taken.images.batches("test", TRIED_ON)])
    done = write_network(
        folder,
        taken.network,  # type: ignore[arg-type]
        images,
        card_of(context, taken, found),
        read_config(subject.run) if config and subject.run is not None else None,
        subject.step,
        subject.epoch,
        normalise=raw_pixels,
    )
    names = [path.relative_to(folder).as_posix() for path in done.files]
    return {name: ABOUT[name] for name in names}, done.notes


def card_of(context: Context, taken: Taken, found: Trimming) -> Card:
    """What the model card says that the files do not."""
    subject, summary = context.subject, found.summary
    line = found.chosen
    assert line is not None, "a network is written where a cut was taken"
    said = headline(found)
    why = " ".join(filter(None, (f"{said[0].upper()}{said[1:]}.", certificate(found), tuned(found))))
    return Card(
        title=f"{subject.title} on {context.own.name}",
        layer=taken.layer,
        index=line,
        layers=len(context.taps.layers),
        why=why,
        data=taken.images.name,
        class_names=taken.images.class_names,
        run_id=subject.run_id if subject.run is not None else "",
        checkpoint=subject.checkpoint,
        figures=_figures(found, taken, line),
        machine=_machine(summary),
        mean=tuple(getattr(subject.data, "mean", None) or ()),
        std=tuple(getattr(subject.data, "std", None) or ()),
        notes=[str(note)[0].upper() + str(note)[1:] + "." for note in summary["notes"]],
    )


def _figures(found: Trimming, taken: Taken, line: int) -> list[dict[str, str]]:
    """The cut network, and the whole one beside it."""
    whole, cut = found.summary["whole"], found.summary["cut"]
    other = found.summary["transfer"].get(taken.images.name)
    rows = {
        "cut": (line, cut["accuracy"], cut["flops"], cut["parameters"]),
        "whole network" if other is None else "whole network, with such a head on its last layer": (
            -1,
            other["last"] if other else whole["accuracy"],
            whole["flops"],
            whole["parameters"],
        ),
    }
    made = []
    for name, (at, accuracy, flops, parameters) in rows.items():
        row = {
            "": name,
            f"test accuracy on {taken.images.name}": f"{100 * accuracy:.1f} %",
            "MFLOPs of one image": f"{flops / 1e6:.3g}",
            "parameters": f"{parameters:,}",
        }
        for size in found.batches:
            middle, low, high = (found.at(f"latency_ms{end}_{size}", at) for end in ("", "_low", "_high"))
            if math.isfinite(middle):
                row[f"ms for {size} (quartiles)"] = f"{middle:.3g} ({low:.3g} to {high:.3g})"
        made.append(row)
    return made


def _machine(summary: Mapping[str, Any]) -> str:
    stated = summary["latency"]["conditions"]
    if not stated:
        return ""
    where = stated["device_name"] or stated["processor"]
    return f"{where}, {stated['device']}, {stated['threads']} threads, PyTorch eager"
