"""What every part of an analysis works with: the network, its taps, the images, and one way to pass them through."""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from types import TracebackType
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from tunnel_lightning.analysis.base import cannot_run
from tunnel_lightning.analysis.limits import check_images, check_layers
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.sets import ImageSet, shard
from tunnel_lightning.analysis.subject import Subject
from tunnel_lightning.measures import LayerValue, accumulate, values_of
from tunnel_lightning.measures.base import Factory, Observer, States
from tunnel_lightning.measures.sample import groups
from tunnel_lightning.runs import Row
from tunnel_lightning.taps import Tap, Taps, TapSpec, quiet

Progress = Callable[[str, int, int], None]
"""Told ``(what, done, in all)`` while a pass runs, and lines that stay with 0 in all."""

CURE = "raise --memory_gb, or lower it with --taps.pool=avg or a smaller --taps.max_features"
"""What to do where a layer does not fit into the memory limit."""

DEVICES = ("auto", "cpu", "cuda", "mps")
PRECISIONS = ("32-true", "bf16-mixed", "16-mixed")


def check_machine(device: str, precision: str) -> None:
    """Refuse what is no device or precision, before anything is read.

    Raises:
        ValueError: it names those there are.
    """
    for name, value, known in (("device", device, DEVICES), ("precision", precision, PRECISIONS)):
        if value not in known:
            raise ValueError(f"no {name} {value!r}: choose one of {', '.join(known)}")


def fabric_of(device: str, precision: str, processes: int = 1) -> Fabric:
    """The machine that is asked for.

    Raises:
        ValueError: there is no such device here, or not so many.
    """
    check_machine(device, precision)
    try:
        return Fabric(
            accelerator=device,
            devices=processes,
            strategy="ddp" if processes > 1 else "auto",
            precision=precision,  # type: ignore[arg-type]
        )
    except Exception as error:  # Lightning's own, of several kinds
        raise ValueError(" ".join(str(error).split())) from error


def together(warned: Sequence[str]) -> list[str]:
    """What warnings say of layers, one sentence for all layers of which they say the same.

    Example:
        >>> together(["layer 'a' has NaN: its values are NaN", "layer 'b' has NaN: its values are NaN", "other"])
        ["2 layers have NaN: their values are NaN ('a', 'b')"]
    """
    layers: dict[str, list[str]] = {}
    for text in warned:
        if found := re.fullmatch(r"layer ('.*') has (.*)", text, re.DOTALL):
            layers.setdefault(found[2], []).append(found[1])
    said = []
    for what, names in layers.items():
        some = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        several = f"{len(names)} layers have {what.replace('its values', 'their values')} ({some})"
        said.append(several if len(names) > 1 else f"layer {some} has {what}")
    return said


class Context:
    """One analysis under way: leaving it takes the hooks off the network and puts it back where it was.

    Args:
        subject: the network.
        own: the in-distribution set.
        others: the out-of-distribution sets.
        options: what is measured.
        fabric: device, precision and processes; by default the CPU in float32.
        progress: told how far the pass at hand is.

    Attributes:
        taps: the layers that are measured.
        notes: what a reader must know.
        seconds: how long the steps of the part at hand took.

    Raises:
        ValueError: too few images, no layer of that name, too little memory, or the network can't run the images.
    """

    def __init__(
        self,
        subject: Subject,
        own: ImageSet,
        others: Sequence[ImageSet],
        options: Options,
        fabric: Fabric | None = None,
        progress: Progress | None = None,
    ) -> None:
        self.subject, self.own, self.others, self.options = subject, own, list(others), options
        self.fabric = fabric or Fabric(accelerator="cpu", devices=1)
        self.progress = progress or (lambda what, done, total: None)
        self.seconds: dict[str, float] = {}
        self.prefix = ""  # before what is told of a pass, such as a checkpoint's step
        for each in others:
            if each.image_shape != own.image_shape:
                raise ValueError(
                    f"{each.name} gives images {list(each.image_shape)} and {own.name} {list(own.image_shape)}: give "
                    "them at one size"
                )
        self.notes = [
            note for images in (own, *others) for note in check_images(images, options, images is own)
        ]
        self.model: nn.Module = subject.model
        self._home = next((tensor.device for tensor in self.model.parameters()), None)
        self.model.to(self.fabric.device)
        self.example = own.example.to(self.fabric.device)
        try:
            self.taps = self.tap(options.taps)
            try:
                check_layers(self)
            except BaseException:
                self.taps.remove()
                raise
        except BaseException:
            self._go_home()
            raise

    @property
    def precision(self) -> str:
        """That of the forward passes, as Lightning names it."""
        return str(self.fabric.strategy.precision.precision)

    def __enter__(self) -> Context:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.taps.remove()
        self._go_home()

    def _go_home(self) -> None:
        if self._home is not None:
            self.model.to(self._home)

    def tap(self, spec: TapSpec) -> Taps:
        """Taps on the network, with the layers learnt from two images run through the model.

        Raises:
            ValueError: the network can't run these images, or was compiled and called before.
        """
        taps = Taps(self.subject.network, spec)
        x = self.example
        taps.arm()
        try:
            with quiet(self.model), self.fabric.autocast():
                self._call(x)
                taps.take()
        except BaseException as error:
            taps.remove()
            if isinstance(error, RuntimeError):  # of the taps: no layer ran
                raise ValueError(f"{self.subject.title}: {error}") from error
            raise
        finally:
            taps.disarm()
        taps.features_of_input(x)
        return taps

    def _call(self, x: Tensor) -> None:
        try:
            self.model(x)
        except RuntimeError as error:
            raise ValueError(
                cannot_run(
                    self.subject.title, self.own, error, self.model, by_command=self.subject.data is not None
                )
            ) from error

    def run(
        self,
        images: ImageSet,
        split: str,
        limit: int | None,
        measures: Sequence[Factory] = (),
        observers: Sequence[Observer] = (),
        taps: Taps | None = None,
        what: str = "",
    ) -> States:
        """One quiet pass of the network over a set, summed over all processes; each batch goes to one of them."""
        taps = taps or self.taps
        fabric, own = self.fabric, images is self.own
        batches = shard(images.batches(split, limit), fabric.global_rank, fabric.world_size)
        total = -(-images.size(split, limit) // (images.batch_size * fabric.world_size))
        with warnings.catch_warnings(record=True) as raised:
            warnings.simplefilter("always")
            states = accumulate(
                self.model,
                taps,
                self._told(batches, total, self.prefix + (what or f"{images.name} {split}")),
                measures,
                observers=observers,
                device=fabric.device,
                context=fabric.autocast,
                input=taps is self.taps,
                network=own and self.subject.matches and taps is self.taps,
                where=f"{images.name} {split}",
                memory_limit=self.options.memory,  # groups have seen to it
            )
        for each in raised:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
        for text in together([str(each.message) for each in raised]):
            self.note(text)
        return states

    def note(self, text: str) -> None:
        """Add what a reader must know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def _told(self, batches: Iterable[Any], total: int, what: str) -> Iterator[Any]:
        for done, batch in enumerate(batches):
            self.progress(what, done, total)
            yield batch
        self.progress(what, total, total)

    def groups(
        self,
        nbytes: Callable[[int], int],
        taps: Taps | None = None,
        working: Callable[[int], int] | None = None,
        cure: str = CURE,
    ) -> list[list[str]]:
        """The layers, the raw pixels first, in groups whose states fit into the memory limit together.

        Args:
            nbytes: from a layer's width to what its states take.
            taps: the layers; by default those that are measured.
            working: from a layer's width to what is taken beside for one layer at a time; by default nothing.
            cure: what to do where a single layer does not fit.

        Raises:
            ValueError: a single layer does not fit; the sentence names the options that lower it.
        """
        taps = taps or self.taps
        places = [taps.input, *taps.layers] if taps is self.taps else taps.layers
        return groups({t.name: t.dim for t in places}, nbytes, self.options.memory, working, cure)

    def rows(self, states: States, images: ImageSet, split: str, taps: Taps | None = None) -> list[Row]:
        """The table's rows of what a pass measured."""
        return [self.row(value, images, split) for value in values_of(states, taps or self.taps)]

    def row(self, value: LayerValue, images: ImageSet, split: str) -> Row:
        """One row of the table, at the checkpoint's step."""
        subject = self.subject
        return Row(subject.run_id, subject.step, subject.epoch, -1, split, images.name, **value._asdict())

    def place(self, name: str, taps: Taps | None = None) -> Tap:
        """The tap of that name."""
        taps = taps or self.taps
        return next(tap for tap in [taps.input, *taps.layers] if tap.name == name)

    @contextmanager
    def timed(self, what: str) -> Iterator[None]:
        """Add the time a block takes to ``seconds``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if self.fabric.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds[what] = self.seconds.get(what, 0.0) + time.perf_counter() - start
