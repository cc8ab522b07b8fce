"""The bundle behind the command line's ``monitor:`` section."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import LightningModule, Trainer

from tunnel_lightning.callbacks.base import LayerCallback
from tunnel_lightning.callbacks.probes import OnlineProbes, ProbeOptions
from tunnel_lightning.callbacks.ranks import RankMonitor, RankOptions
from tunnel_lightning.callbacks.schedule import Schedule
from tunnel_lightning.callbacks.transfer import TransferMonitor, TransferOptions
from tunnel_lightning.callbacks.weights import WeightChange, WeightOptions
from tunnel_lightning.taps import TapSpec


class LayerMonitor(LayerCallback):
    """Online probes, ranks, transfer and weight change of every layer, in one callback.

    Each section set to ``None`` is off; with all of them off nothing is hooked at all.

    Args:
        taps: which layers, and how their outputs are pooled.
        profile: when profiles are taken.
        probes: options of :class:`OnlineProbes`.
        ranks: options of :class:`RankMonitor`.
        transfer: options of :class:`TransferMonitor`; off while it names no data set.
        weights: options of :class:`WeightChange`.
        target: where the labels are in a batch, an index or key; by default the usual places.
        num_classes: classes of the in-distribution set; by default the datamodule's or the module's attribute.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[LayerMonitor(ranks=None)], logger=False)
    """

    needs_classes = False  # its parts say

    def __init__(
        self,
        taps: TapSpec = TapSpec(),  # noqa: B008 - read only; jsonargparse takes the section's defaults from it
        profile: Schedule = Schedule(),  # noqa: B008
        probes: ProbeOptions | None = ProbeOptions(),  # noqa: B008
        ranks: RankOptions | None = RankOptions(),  # noqa: B008
        transfer: TransferOptions | None = TransferOptions(),  # noqa: B008
        weights: WeightOptions | None = WeightOptions(),  # noqa: B008
        target: int | str | None = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(taps, profile, target, num_classes)
        shared: dict[str, Any] = {
            "taps": self.taps,
            "profile": self.profile,
            "target": target,
            "num_classes": num_classes,
        }
        self.bundle: list[LayerCallback] = []
        if probes is not None:
            self.bundle.append(OnlineProbes(**vars(probes), **shared))
        if ranks is not None:
            self.bundle.append(RankMonitor(**vars(ranks), **shared))
        if transfer is not None and transfer.ood:
            self.bundle.append(TransferMonitor(**vars(transfer), **shared))
        if weights is not None:
            self.bundle.append(WeightChange(**shared))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join first, to lead, then let the parts join."""
        if self.bundle:
            super().setup(trainer, pl_module, stage)
            for part in self.bundle:
                part.setup(trainer, pl_module, stage)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the parts get ready, then profile the untrained network."""
        for part in self.bundle:
            part.on_train_start(trainer, pl_module)
        super().on_train_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The parts' states by class name."""
        return {type(part).__name__: part.state_dict() for part in self.bundle}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Give each part its own; a part that was off when the checkpoint was written starts afresh."""
        for part in self.bundle:
            part.load_state_dict(state_dict.get(type(part).__name__, {}))
