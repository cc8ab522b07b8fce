"""What is done to the network, and what is measured of it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from tunnel_lightning.runs.lists import listed
from tunnel_lightning.taps import TapSpec

KINDS = ("delete", "reset", "rewind", "swap", "retrain")
"""The kinds of intervention."""

BINS = 15
"""Bins of the expected calibration error, of equal width (Guo et al., 2017)."""


@dataclass(frozen=True)
class Options:
    """Settings of an ablation.

    Attributes:
        only: kinds of intervention, a list or with commas between: delete (residual blocks), reset (layers back to
            what they were before training), rewind (to earlier checkpoints), swap and retrain; by default all that
            apply without training, and those that --swap and --retrain_epochs ask for.
        taps: which layers are reset, rewound and swapped, each with all that runs up to the next one.
        images: test images everything is scored on; None for all.
        tunnel: index of the tunnel's first layer, from 2, in the place of what the rules say.
        swap: another run of the same architecture, whose layers take the places of this one's.
        swap_ckpt: which of its checkpoints: best, last or a path.
        retrain_epochs: epochs for which parts of the network are trained again, from their first weights, while the
            others are frozen; 0 for none.
        bn_images: training images on which the statistics of normalisation layers are estimated anew after each
            intervention; everything is then scored with the statistics as they are and with these. 0 for none.
        fit_images: training images of ridge probes, which are fitted only where no profile tells where the tunnel
            starts; None for all.
        seed: of weights that are drawn anew, and of the order of images in training.

    Raises:
        ValueError: an unknown kind, one that lacks what it needs, or a number out of its range.

    Example:
        >>> Options(only="reset,rewind").wants("reset"), Options(only="reset").wants("delete")
        (True, False)
        >>> Options().wants("swap"), Options(swap="runs/b/version_0").wants("swap")
        (False, True)
    """

    only: str | Sequence[str] = ()
    taps: TapSpec = field(default_factory=TapSpec)
    images: int | None = 2_000
    tunnel: int | None = None
    swap: str | None = None
    swap_ckpt: str = "last"
    retrain_epochs: int = 0
    bn_images: int = 0
    fit_images: int | None = 10_000
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "only", listed(self.only))
        unknown = [kind for kind in self.only if kind not in KINDS]
        if unknown:
            raise ValueError(f"only: no intervention {unknown[0]!r}: choose among {', '.join(KINDS)}")
        for name, low in (("images", 8), ("fit_images", 2), ("tunnel", 2)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name} must be at least {low}, got {value}")
        for name in ("retrain_epochs", "bn_images", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        needs = (
            ("swap", self.swap, "--swap RUN2, the other run"),
            ("retrain", self.retrain_epochs, "--retrain_epochs N"),
        )
        for kind, given, cure in needs:
            if kind in self.only and not given:
                raise ValueError(f"only: {kind} needs to be told more: give {cure}")
            if given and self.only and kind not in self.only:
                raise ValueError(f"only: {kind} is asked for and left out of --only: name it there too")

    def wants(self, kind: str) -> bool:
        """Whether a kind of intervention is asked for, where it applies."""
        if self.only:
            return kind in self.only
        return {"swap": bool(self.swap), "retrain": self.retrain_epochs > 0}.get(kind, True)

    @property
    def retrains(self) -> bool:
        """Whether anything is trained."""
        return self.wants("retrain")

    def settings(self) -> dict[str, Any]:
        """Everything that decides a figure, flat and plain; the layers apart."""
        flat = {key: value for key, value in asdict(self).items() if key not in ("taps", "only")}
        return {"layers": list(self.taps.patterns), "bins": BINS, **flat}
