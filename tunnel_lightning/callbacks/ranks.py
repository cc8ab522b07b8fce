"""Ranks and class variances of every layer, at each profile."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from tunnel_lightning.callbacks.base import LayerCallback
from tunnel_lightning.callbacks.batches import Target
from tunnel_lightning.callbacks.requests import Profile, Request
from tunnel_lightning.callbacks.schedule import Schedule
from tunnel_lightning.measures import RANKS, VARIANCES, MomentMeasures
from tunnel_lightning.taps import Tap, TapSpec

ALL = RANKS + VARIANCES


@dataclass
class RankOptions:
    """Options of :class:`RankMonitor`.

    Args:
        images: validation images the moments are taken of; ``null`` for all. A rank can't exceed this less one.
        which: of ``rank_cov``, ``effective_rank``, ``stable_rank``, ``participation_ratio``, ``rankme``,
            ``variance_inter``, ``variance_intra``, ``variance_ratio``. RankMe alone needs a second eigenvalue
            decomposition.
    """

    images: int | None = 10_000
    which: list[str] = field(default_factory=lambda: list(ALL))

    def __post_init__(self) -> None:
        if not self.which or set(self.which) - set(ALL) or (self.images is not None and self.images < 2):
            raise ValueError(
                f"ranks: images must be 2 or more and which some of {', '.join(ALL)}, got {self}"
            )


class RankMonitor(LayerCallback):
    """Numerical rank (both tolerances), effective and stable rank, participation ratio, RankMe of every layer.

    All of them, and the class variances, come from one pass over the validation images (Masarczyk et al. 2023
    use 10,000 test images).

    Args:
        images: validation images the moments are taken of; ``None`` for all.
        which: the measures to take; by default all of them, class variances included.
        taps: see :class:`LayerCallback`.
        profile: see :class:`LayerCallback`.
        target: see :class:`LayerCallback`.
        num_classes: see :class:`LayerCallback`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[RankMonitor(images=2_000)], logger=False)
    """

    def __init__(
        self,
        images: int | None = RankOptions.images,
        which: Sequence[str] = ALL,
        taps: TapSpec | None = None,
        profile: Schedule | None = None,
        target: Target = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(taps, profile, target, num_classes)
        self.options = RankOptions(images, list(which))

    def measure_layers(self) -> Profile:
        """One pass over the validation images."""
        source = self.watch.val_source(self.options.images)
        if source is None:
            return []
        states = yield Request(source, [self._moments])
        return self.watch.rows_of(source, states)

    def _moments(self, tap: Tap) -> MomentMeasures | None:
        if tap.role != "layer":
            return None
        return MomentMeasures(tap.dim, self.watch.num_classes, which=self.options.which)
