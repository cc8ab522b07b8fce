"""The subject of an analysis: a network and the images it is shown, made to fit each other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import nn

from tunnel_lightning.analysis.sets import ImageSet, distinct
from tunnel_lightning.data import Digits, Glyphs
from tunnel_lightning.measures.base import scores_of
from tunnel_lightning.taps import quiet

Shape = tuple[int, ...]

LINKED = ("num_classes", "input_shape")
"""Arguments of a backbone that the data gives; a run's config leaves them out."""


@dataclass
class Subject:
    """A network under analysis and the sets it is shown.

    Attributes:
        model: what is called on images [B, C, H, W] and gives scores.
        network: what is tapped, ``model`` itself or a part of it, so that layers have the names they have in
            the network.
        title: what it is, for a headline.
        config: class path and arguments of its backbone, or empty.
        data: the in-distribution set, or None for plain loaders.
        ood: the sets its transfer is measured on.
        run: its run folder, or None.
        run_id: the run, as ``name/version_N``; else the title.
        checkpoint: where its weights are from, relative to the run folder; empty where no file is.
        step: optimizer steps done at the checkpoint.
        epoch: epochs done at the checkpoint.
        matches: its outputs are trained for the classes of ``data``, so its own accuracy means something.
        notes: what a reader must know.
    """

    model: nn.Module = field(repr=False)
    network: nn.Module = field(repr=False)
    title: str
    config: dict[str, Any] = field(default_factory=dict)
    data: LightningDataModule | None = None
    ood: list[LightningDataModule] = field(default_factory=list)
    run: Path | None = None
    run_id: str = ""
    checkpoint: str = ""
    step: int = 0
    epoch: int = 0
    matches: bool = True
    notes: list[str] = field(default_factory=list)

    def sets(self, batch_size: int = 256) -> tuple[ImageSet, list[ImageSet]]:
        """The in-distribution set and the others, ready to be read, each under a name of its own.

        Raises:
            ValueError: there is no datamodule, or a set gives images of another shape than the first.
        """
        if self.data is None:
            raise ValueError(f"{self.title} came without a datamodule: give the images it is shown")
        own, *others = distinct([ImageSet.of(each, batch_size) for each in (self.data, *self.ood)])
        for each in others:
            if each.image_shape != own.image_shape:
                raise ValueError(
                    f"the transfer set {each.name} gives images {list(each.image_shape)} and the network takes "
                    f"{list(own.image_shape)}: resize them in its datamodule (the package's own sets do that)"
                )
        return own, others


def title_of(config: Mapping[str, Any]) -> str:
    """A backbone's class and arguments in words.

    Example:
        >>> from tunnel_lightning.backbones import MLP, ResNet
        >>> title_of(MLP(depth=3, width=16).config), title_of(ResNet(8, width=16).config)
        ('MLP (depth 3, width 16)', 'ResNet (depth 8, width 16, residual)')
    """
    arguments = {key: value for key, value in config["init_args"].items() if key not in LINKED}
    name = arguments.pop("name", config["class_path"].rpartition(".")[2])
    told = [
        key.replace("_", " ") if value is True else f"{key.replace('_', ' ')} {value}"
        for key, value in arguments.items()
        if isinstance(value, (int, float, str)) and value is not False
    ]
    return f"{name} ({', '.join(told)})" if told else str(name)


def name_of(data: LightningDataModule) -> str:
    """A set's name in tables."""
    return getattr(data, "name", None) or type(data).__name__


def show(subject: Subject, data: LightningDataModule, shape: Shape, like: object) -> None:
    """Show a set at a network's image size, channels and normalisation, and say so in the subject's notes.

    A set that can't be adapted stays as it is.

    Args:
        subject: takes the note.
        data: the set; it stays adapted.
        shape: ``(C, H, W)`` of the network's images.
        like: what says ``mean`` and ``std``; where it does not, the set keeps its own.
    """
    if not hasattr(data, "adapt"):
        return
    before = tuple(getattr(data, "input_shape", shape))
    mean, std = getattr(like, "mean", None), getattr(like, "std", None)
    data.adapt(shape, mean=mean, std=std)
    resized = f"shown at {_words(shape)} instead of {_words(before)}" if before != shape else ""
    normalised = (
        f"normalised as {getattr(like, 'name', None) or type(like).__name__}" if mean is not None else ""
    )
    if resized or normalised:
        subject.notes.append(f"{name_of(data)} is {', '.join(filter(None, (resized, normalised)))}")


def add_transfer(
    subject: Subject,
    ood: Sequence[LightningDataModule] | None,
    shape: Shape,
    like: LightningDataModule | None,
) -> None:
    """Give the subject the sets its transfer is measured on, shown as the network takes its images.

    Args:
        subject: the network, with its own set.
        ood: the sets; None for Glyphs, or Digits where Glyphs is the network's own set.
        shape: ``(C, H, W)`` of the network's images.
        like: the set whose normalisation the network is used to; None leaves each its own.
    """
    if ood is None and (len(shape) != 3 or shape[0] not in (1, 3)):
        subject.notes.append(f"no transfer set by default can be shown at {_words(shape)}: name one")
    elif ood is None:
        ood = [Digits() if isinstance(subject.data, Glyphs) else Glyphs()]
    subject.ood = list(ood or [])
    for data in subject.ood:
        data.prepare_data()
        show(subject, data, shape, like)


def compare_outputs(subject: Subject, outputs: int, images: ImageSet) -> None:
    """Note where a network's outputs are not the classes of its images."""
    if outputs != images.num_classes:
        subject.matches = False
        subject.notes.append(
            f"the network has {outputs} outputs and {images.name} has {images.num_classes} classes, so its own "
            "accuracy is not measured"
        )


def try_on(subject: Subject, images: ImageSet) -> None:
    """Run two images through the network, and note where its outputs are not their classes.

    Raises:
        ValueError: it can't take them.
    """
    x = images.example
    for tensor in subject.model.parameters():
        x = x.to(tensor.device)
        break
    try:
        with quiet(subject.model):
            # Not through a compiled one: taps have to be made before its first call.
            output = getattr(subject.model, "_orig_mod", subject.model)(x)
    except (RuntimeError, ValueError, TypeError, AssertionError) as error:
        raise ValueError(
            cannot_run(subject.title, images, error, subject.model, by_command=subject.data is not None)
        ) from error
    scores = scores_of(output)
    if scores is not None:
        compare_outputs(subject, scores.shape[1], images)
    else:
        subject.matches = False
        subject.notes.append("the network gives no scores [B, classes], so its own accuracy is not measured")


def cannot_run(
    title: str,
    images: ImageSet,
    error: Exception,
    model: nn.Module | None = None,
    by_command: bool = True,
) -> str:
    """The sentence on a network that can't take these images.

    Args:
        title: the network's.
        images: they are float32.
        error: what it raised.
        model: the network, where it is made.
        by_command: the images are named on the command line; else they are at hand, as in a notebook.
    """
    why = next(iter(str(error).splitlines()), type(error).__name__)
    said = f"{title} can't run images {list(images.image_shape)} of {images.name} ({why})"
    weights = {p.dtype for p in model.parameters() if p.is_floating_point()} if model is not None else set()
    if "type" in str(error) and (other := weights - {torch.float32}):
        kinds = " and ".join(sorted(str(dtype).removeprefix("torch.") for dtype in other))
        return f"{said}: it has {kinds} weights and the images are float32; convert it with .float()"
    channels = re.search(r"expected input.* to have (\d+) channels, but got (\d+) channels", str(error))
    if channels and int(channels[2]) == images.image_shape[0]:
        more = f"set --data.channels={channels[1]}, or choose other --data"
        cure = more if by_command else f"give images with {channels[1]}"
        return f"{said}: it takes {channels[1]} channels and the images have {channels[2]}; {cure}"
    cure = (
        "choose another size with --data.image_size, or other --data"
        if by_command
        else "give images of the shape it was made for"
    )
    return f"{said}: {cure}"


def _words(shape: Shape) -> str:
    if len(shape) != 3:
        return f"{'x'.join(map(str, shape))} values"
    channels, height, width = shape
    return f"{height}x{width} with {channels} channel{'s' * (channels != 1)}"
