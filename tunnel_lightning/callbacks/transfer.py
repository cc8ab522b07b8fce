"""Transfer of every layer to other data sets, at each profile."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from tunnel_lightning.callbacks.base import LayerCallback
from tunnel_lightning.callbacks.batches import Target, first_of, fixed_batches, images_of
from tunnel_lightning.callbacks.probes import ridge_heads
from tunnel_lightning.callbacks.requests import Profile, Request, Source
from tunnel_lightning.callbacks.schedule import Schedule
from tunnel_lightning.measures import (
    LayerValue,
    Moments,
    ProbeAccuracy,
    id_ood_alignment,
    id_ood_pearson,
    ood_retained,
)
from tunnel_lightning.runs import NETWORK, Row
from tunnel_lightning.taps import Tap, TapSpec, untouched_rng


@dataclass
class TransferOptions:
    """Options of :class:`TransferMonitor`.

    Args:
        ood: the other data sets, as datamodules; each is shown at the network's image size and channels.
        fit_images: training images of each set the ridge probes are fitted on.
        eval_images: test images of each set they are scored on; ``null`` for all.
        alpha: ridge penalty, relative to the number of images.
    """

    ood: list[LightningDataModule] = field(default_factory=list)
    fit_images: int = 10_000
    eval_images: int | None = 10_000
    alpha: float = 1e-3

    def __post_init__(self) -> None:
        images = self.eval_images is None or self.eval_images >= 1
        if self.fit_images < 1 or not images or self.alpha <= 0:
            raise ValueError(
                "transfer: fit_images and eval_images must be 1 or more and alpha above 0, got "
                f"fit_images={self.fit_images}, eval_images={self.eval_images}, alpha={self.alpha}"
            )


class TransferMonitor(LayerCallback):
    """The live out-of-distribution curve: how well each layer's features serve other data sets.

    On each set a ridge probe per layer is fitted on frozen features of its training images and scored on its
    test images (Masarczyk et al. 2023; Harun et al. 2024).

    Args:
        ood: the other data sets, as datamodules with ``num_classes``.
        fit_images: training images of each set the probes are fitted on.
        eval_images: test images of each set they are scored on; ``None`` for all.
        alpha: ridge penalty, relative to the number of images.
        taps: see :class:`LayerCallback`.
        profile: see :class:`LayerCallback`.
        target: see :class:`LayerCallback`.
        num_classes: see :class:`LayerCallback`.

    Raises:
        ValueError: without a data set, or for one that does not say its number of classes.

    Example:
        >>> from tunnel_lightning.data import Digits  # doctest: +SKIP
        >>> TransferMonitor(ood=[Digits()])  # doctest: +SKIP
    """

    def __init__(
        self,
        ood: Sequence[LightningDataModule],
        fit_images: int = TransferOptions.fit_images,
        eval_images: int | None = TransferOptions.eval_images,
        alpha: float = TransferOptions.alpha,
        taps: TapSpec | None = None,
        profile: Schedule | None = None,
        target: Target = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(taps, profile, target, num_classes)
        if not ood:
            raise ValueError("TransferMonitor needs at least one data set: ood=[Digits()]")
        for data in ood:
            if getattr(data, "num_classes", None) is None:
                raise ValueError(f"the transfer set {type(data).__name__} does not say its num_classes")
        self.options = TransferOptions(list(ood), fit_images, eval_images, alpha)
        self._loaders: dict[str, tuple[Any, Any]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the other callbacks, and get the sets ready so that a missing one stops the run at its start."""
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        if trainer.is_global_zero:
            with untouched_rng():
                for data in self.options.ood:
                    data.prepare_data()
        trainer.strategy.barrier("transfer sets are there")

    def begin(self) -> None:
        """Show the sets as the network takes its input, and make their loaders."""
        watch = self.watch
        self._loaders = {}
        network_data = watch.trainer.datamodule  # type: ignore[attr-defined]
        for data in self.options.ood:
            if hasattr(data, "adapt"):
                data.adapt(
                    watch.taps.input.shape,
                    mean=getattr(network_data, "mean", None),
                    std=getattr(network_data, "std", None),
                )
            data.setup("fit")
            data.setup("test")
            name = getattr(data, "name", None) or type(data).__name__
            if name == watch.dataset or name in self._loaders:
                name = (
                    f"{name}-{1 + sum(known.startswith(name) for known in [*self._loaders, watch.dataset])}"
                )
            self._loaders[name] = first_of(data.train_dataloader()), first_of(data.test_dataloader())
            shape = tuple(images_of(next(iter(fixed_batches(self._loaders[name][1], 1)))).shape[1:])
            if shape != watch.taps.input.shape:
                raise ValueError(
                    f"the transfer set {name} gives images {list(shape)} and the network takes "
                    f"{list(watch.taps.input.shape)}: resize them in its datamodule (the package's own sets do that)"
                )

    def measure_layers(self) -> Profile:
        """On each set: fit on its training images, score on its test images."""
        watch, options, rows = self.watch, self.options, []
        for (name, (train, test)), data in zip(self._loaders.items(), options.ood, strict=True):
            factory = partial(self._moments, int(data.num_classes))  # type: ignore[attr-defined]
            fitted = yield Request(
                Source(name, "train", options.fit_images, partial(first_of, train)), [factory]
            )
            heads = ridge_heads(fitted, options.alpha)
            del fitted  # the next pass needs the memory
            source = Source(name, "test", options.eval_images, partial(first_of, test))
            states = yield Request(source, [partial(self._probe, heads)])
            rows += watch.rows_of(source, states)
        return rows

    def summarise(self, rows: list[Row]) -> list[Row]:
        """The three measures of Harun et al. (2024, section 4.1) of each set, where its curve was just measured.

        Percentage of OOD performance retained; Pearson correlation of the in-distribution and the OOD curve
        and their alignment, where in-distribution ridge probes were fitted too.
        """
        watch, found = self.watch, []
        layers = watch.taps.layers
        for name, data in zip(self._loaders, self.options.ood, strict=True):
            ood = {row.index: row for row in rows if row.dataset == name and row.variant == "ridge"}
            own = {
                row.index: row.value
                for row in rows
                if (row.dataset, row.measure, row.variant) == (watch.dataset, "probe_accuracy", "ridge")
            }
            if not all(tap.index in ood for tap in layers):
                continue
            curve = [ood[tap.index].value for tap in layers]
            values = {"ood_retained": ood_retained(curve)}
            if all(tap.index in own for tap in layers):
                own_curve = [own[tap.index] for tap in layers]
                values["id_ood_pearson"] = id_ood_pearson(own_curve, curve)
                chance = 1 / watch.num_classes, 1 / int(data.num_classes)  # type: ignore[attr-defined]
                values["id_ood_alignment"] = id_ood_alignment(own_curve[-1], curve[-1], *chance)
            for measure, value in values.items():
                n = ood[layers[-1].index].n
                entry = LayerValue(NETWORK, len(layers) + 1, 0, measure, "ridge", value, math.nan, n)
                found.append(watch.row(entry, name, "test"))
        return found

    @staticmethod
    def _moments(num_classes: int, tap: Tap) -> Moments:
        return Moments(tap.dim, num_classes)

    @staticmethod
    def _probe(heads: dict[str, Any], tap: Tap) -> ProbeAccuracy | None:
        return ProbeAccuracy(heads[tap.name], "ridge") if tap.name in heads else None
