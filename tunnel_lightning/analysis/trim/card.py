"""The model card of a cut network: what it is, what it costs, how to load it, what it can't do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from tunnel_lightning.backbones import Cut
from tunnel_lightning.module import CHECKPOINT_KEY

CHECKPOINT_FILE, GRAPH_FILE, ONNX_FILE = "checkpoints/last.ckpt", "cut.pt2", "cut.onnx"
CLASSES_SHOWN = 12


@dataclass
class Card:
    """What the card says that the files do not.

    Attributes:
        title: the whole network, and what it was trained on.
        run_id: its run; empty where there is none.
        checkpoint: where its weights are from.
        layer: where it was cut.
        index: number of that layer, from 1.
        layers: how many there are.
        why: how the layer was chosen, in whole sentences.
        figures: rows of one table, each with the same columns; the first column names the row. Accuracy with its
            interval, operations, parameters, latency.
        machine: what latency was measured on.
        data: name of the set whose classes it tells apart.
        class_names: in the order of the outputs.
        mean: of each channel, of pixels in 0..1, that the images are normalised by; empty where it isn't known.
        std: likewise.
        scores: what the softmax of the scores is, behind "the largest is the answer, ".
        notes: further limits, in whole sentences.
    """

    title: str
    layer: str
    index: int
    layers: int
    why: str
    data: str
    class_names: Sequence[str]
    run_id: str = ""
    checkpoint: str = ""
    figures: Sequence[Mapping[str, str]] = ()
    machine: str = ""
    mean: Sequence[float] = ()
    std: Sequence[float] = ()
    scores: str = "their softmax the probabilities"
    notes: Sequence[str] = field(default_factory=list)


def card_text(
    card: Card,
    input_shape: Sequence[int],
    loading: Mapping[str, str],
    checked: Sequence[str],
    versions: Mapping[str, str | None],
    normalise: bool = False,
) -> str:
    """The card in Markdown.

    Args:
        card: what to say.
        input_shape: of one image.
        loading: code by what it loads; it runs in the card's folder, with ``images`` at hand.
        checked: what was compared, in whole sentences.
        versions: of packages.
        normalise: whether the exported graphs take pixels.

    Example:
        >>> card = Card("MLP on Digits", "layers.0", 1, 3, "It was asked for.", "Digits", ["0", "1"])
        >>> print(card_text(card, (1, 8, 8), {}, [], {})[:27])
        # MLP on Digits, cut at lay
    """
    origin = " of ".join(
        filter(None, (card.checkpoint and f"`{card.checkpoint}`", card.run_id and f"`{card.run_id}`"))
    )
    parts = [
        f"# {card.title}, cut at {card.layer}",
        f"The network up to layer {card.index} of {card.layers}, `{card.layer}`, pooled, with a linear head there in "
        f"the place of what followed.{f' Its weights are from {origin}.' if origin else ''} {card.why}".strip(),
    ]
    if card.figures:
        parts += ["## Figures", _table(card.figures)]
        if card.machine:
            parts.append(f"Latency was measured on: {card.machine}.")
    parts += ["## Input and output", _lines(_input(card, input_shape, normalise))]
    if loading:
        parts.append("## Loading")
        parts.append(
            f"In this folder, with `images` as a float32 tensor `[N, {', '.join(map(str, input_shape))}]`:"
        )
        parts += [f"{what}:\n\n```python\n{code}\n```" for what, code in loading.items()]
    if checked:
        parts += ["## Checked", _lines(checked)]
    limits = [
        f"It tells apart the classes of {card.data} and no others, and gives one of them for any image.",
        "The figures hold for images like those they were measured on; others (lighting, sizes, sources) can cost "
        "accuracy.",
        "The exported graphs are in evaluation mode and can't be trained further; the checkpoint can.",
        *card.notes,
    ]
    parts += ["## Limits", _lines(limits)]
    known = [f"{name} {version}" for name, version in versions.items() if version]
    if known:
        parts += ["## Versions", ", ".join(known)]
    return "\n\n".join(parts) + "\n"


def _input(card: Card, shape: Sequence[int], normalise: bool) -> list[str]:
    size = ", ".join(map(str, shape))
    lines = [f"Images: float32 `[N, {size}]`, any number of them."]
    if card.mean:
        mean, std = (", ".join(f"{value:.6g}" for value in each) for each in (card.mean, card.std))
        lines.append(
            f"Pixels in 0..1, each channel less its mean ({mean}) and over its deviation ({std}): "
            "`(pixels - mean) / std`."
        )
        if normalise:
            lines.append("`cut.pt2` and `cut.onnx` do this themselves: they take pixels in 0..1 as they are.")
    names = [str(name).replace("\n", " ") for name in card.class_names]
    shown = ", ".join(names[:CLASSES_SHOWN]) + (", ..." if len(names) > CLASSES_SHOWN else "")
    lines.append(
        f"Output: scores `[N, {len(names)}]`, one for each class of {card.data} ({shown}); the largest is "
        f"the answer, {card.scores}."
    )
    return lines


def _lines(lines: Sequence[str]) -> str:
    return "\n".join(f"- {line}" for line in lines)


def _table(rows: Sequence[Mapping[str, str]]) -> str:
    columns = list(rows[0])
    cells = [columns, ["---"] * len(columns), *([str(row.get(each, "")) for each in columns] for row in rows)]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in cells)


def loading_code(folder: Path, network: nn.Module) -> dict[str, str]:
    """What loads each file that is there, by what it gives; it runs in that folder, with ``images`` at hand.

    Args:
        folder: with the files.
        network: what they are of.
    """
    code: dict[str, str] = {}
    if isinstance(network, Cut):
        home = _home_of(network)
        more = f"import {home}  # so that the class is known\n" if home else ""
        code["As a `LightningModule`, to train, test or predict with"] = (
            f"{more}from tunnel_lightning import Classifier\n\n"
            f'network = Classifier.load_from_checkpoint("{CHECKPOINT_FILE}").eval()\n'
            "scores = network(images)"
        )
        code["As a plain `nn.Module`"] = (
            f"import torch\n{more}from tunnel_lightning.backbones import Cut\n\n"
            f'checkpoint = torch.load("{CHECKPOINT_FILE}", weights_only=True)\n'
            f'network = Cut(**checkpoint["{CHECKPOINT_KEY}"]["backbone"]["init_args"]).eval()\n'
            'state = checkpoint["state_dict"]\n'
            'network.load_state_dict({name.removeprefix("backbone."): value for name, value in state.items()})\n'
            "scores = network(images)"
        )
    if (folder / GRAPH_FILE).exists():
        code["As a graph of torch.export, which needs torch alone"] = (
            f'import torch\n\nnetwork = torch.export.load("{GRAPH_FILE}").module()\nscores = network(images)'
        )
    if (folder / ONNX_FILE).exists():
        code["As ONNX, which needs no torch"] = (
            f'import onnxruntime\n\nsession = onnxruntime.InferenceSession("{ONNX_FILE}")\n'
            'scores = session.run(["scores"], {"images": images.numpy()})[0]'
        )
    return code


def _home_of(network: Cut) -> str:
    """The module to import for the network that was cut, where it is not the package's."""
    config: Any = network.config
    while "network" in config["init_args"]:
        config = config["init_args"]["network"]
    module = str(config["class_path"]).rpartition(".")[0]
    return "" if module.split(".")[0] == "tunnel_lightning" else module
