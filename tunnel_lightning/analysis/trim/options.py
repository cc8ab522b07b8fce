"""What ``trim`` is asked: which cut to take, how its head is fitted, and what is measured of it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from tunnel_lightning.analysis import options as analysis
from tunnel_lightning.analysis.trim.choose import check_keep
from tunnel_lightning.taps import TapSpec

PROBES = {"best": ("ridge", "logistic"), "ridge": ("ridge",), "logistic": ("logistic",)}
"""Kinds of heads that are fitted, the first of them on other sets, too."""

KEEP = 0.99
"""Share of the accuracy that is kept unless asked otherwise."""


@dataclass(frozen=True)
class Options:
    """Settings of a trim.

    Attributes:
        taps: the layers that the network is cut behind, and how their outputs become features.
        keep: share of the whole network's validation accuracy that the cut one keeps at least, above 0 and up to 1;
            by default 0.99. Of the cuts that do, the one of fewest FLOPs is taken.
        for_set: written --for; take the cut that transfers best to this set, one of --ood, with a head for its
            classes.
        layer: cut behind this layer, by name or by number from 1.
        probe: how heads are fitted: ridge, in closed form on all training images, logistic, converged on a sample of
            them, or best, at every layer the one of both that answers more validation images right. Heads of other
            sets are ridge ones, unless logistic is asked for.
        latency: measure how long every cut takes for 1 and for 256 images.
        tune_epochs: train the cut network for so many epochs more, on the run's own training images.
        tune_lr: learning rate of that; by default a tenth of the one that the network was trained with.
        exits: make a network with heads at several layers, too, which easy images leave early: auto, or layers by
            name or number with commas between.
        raw_pixels: the exported graphs take pixels from 0 to 1 and normalise them, where they else take images as the
            data gives them.
        fit_images: training images of each set that heads are fitted on; None for all.
        eval_images: validation and test images of each set; None for all.
        sample: training images of the logistic heads at most.
        alpha: penalty of the ridge heads, relative to the number of images.
        memory_gb: GiB that sums, or held features, may take beside the network and its batches.
        seed: of the logistic heads' hold-out and of tuning.

    Raises:
        ValueError: settings out of their range, or that don't go together.

    Example:
        >>> Options(keep=0.98).share
        0.98
    """

    taps: TapSpec = field(default_factory=TapSpec)
    keep: float | None = None
    for_set: str | None = None
    layer: str | None = None
    probe: Literal["best", "ridge", "logistic"] = "best"
    latency: bool = True
    tune_epochs: int = 0
    tune_lr: float | None = None
    exits: str | None = None
    raw_pixels: bool = False
    fit_images: int | None = None
    eval_images: int | None = None
    sample: int | None = None
    alpha: float = 1e-2
    memory_gb: float = 4.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.keep is not None:
            check_keep(self.keep)
        if self.for_set is not None and self.keep is not None:
            raise ValueError(
                "--keep chooses by the network's own accuracy and --for by transfer to another set: give one of them"
            )
        if self.layer is not None and self.keep is not None:
            raise ValueError("--layer takes a cut by hand and --keep looks for one: give one of them")
        if self.probe not in PROBES:
            raise ValueError(f"no probe {self.probe!r}: choose {' or '.join(PROBES)}")
        if self.tune_epochs < 0:
            raise ValueError(f"tune_epochs must be at least 0, got {self.tune_epochs}")
        if self.tune_lr is not None and not self.tune_lr > 0:
            raise ValueError(f"tune_lr must be above 0, got {self.tune_lr}")
        if self.tune_lr is not None and not self.tune_epochs:
            raise ValueError(
                "--tune_lr says how to train the cut network: say for how long with --tune_epochs"
            )
        if self.tune_epochs and self.for_set is not None:
            raise ValueError(
                "--tune_epochs trains on the network's own images, and --for gives the cut one another set's "
                "classes: leave one of them out"
            )
        if self.exits is not None and self.for_set is not None:
            raise ValueError(
                "--exits keeps the network's own classes, and --for asks for another set's: leave one of them out"
            )
        if self.taps.pool == "gram":
            raise ValueError("taps.pool 'gram' has no features for a head: choose another pool, such as 2x2")
        self.measured  # noqa: B018 - says what is out of its range

    @property
    def share(self) -> float:
        """The share that is asked for, or the default."""
        return KEEP if self.keep is None else self.keep

    @property
    def measured(self) -> analysis.Options:
        """The same as settings of an analysis, whose passes and memory limit are used."""
        return analysis.Options(
            taps=self.taps,
            measures=PROBES[self.probe],
            fit_images=self.fit_images,
            eval_images=self.eval_images,
            sample=self.sample,
            alpha=self.alpha,
            memory_gb=self.memory_gb,
            seed=self.seed,
        )

    def settings(self) -> dict[str, Any]:
        """Every setting, flat and plain."""
        flat = {key: value for key, value in asdict(self).items() if key != "taps"}
        return {**{f"taps.{key}": value for key, value in asdict(self.taps).items()}, **flat}
