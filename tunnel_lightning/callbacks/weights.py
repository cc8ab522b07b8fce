"""How far every layer's weights moved between two profiles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from tunnel_lightning.callbacks.base import LayerCallback
from tunnel_lightning.callbacks.requests import Profile
from tunnel_lightning.measures import LayerValue


@dataclass
class WeightOptions:
    """Options of :class:`WeightChange`: none, so ``{}`` turns it on and ``null`` off."""


class WeightChange(LayerCallback):
    r"""Change of each layer's weights since the last profile, :math:`\|\theta_t - \theta_{t-1}\|_2 / \sqrt{n}`.

    n is the number of the layer's parameters (Masarczyk et al. 2023: tunnel layers move early, then much less
    than those of the extractor). A layer without parameters has no row.

    Args:
        taps: see :class:`LayerCallback`.
        profile: see :class:`LayerCallback`.
        target: see :class:`LayerCallback`.
        num_classes: see :class:`LayerCallback`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[WeightChange()], logger=False)
    """

    needs_classes = False
    _last: dict[str, Tensor] | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the weights a checkpoint remembered, before the first step moves them."""
        if self._pending.get("last"):
            self._last = {
                name: weights.to(pl_module.device) for name, weights in self._pending["last"].items()
            }
        elif self._pending.get("at_checkpoint"):
            self._last = self._weights()
        self._pending = {}
        super().on_train_start(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        """The weights at the last profile; where that was at this very step the checkpoint's own weights say it."""
        if self._last is None:
            return self._pending
        if self.watch.profiled_at == self.watch.step:
            return {"at_checkpoint": True}
        return {"last": self._last}

    def _weights(self) -> dict[str, Tensor]:
        return {name: p.detach().clone() for name, p in self.watch.network.named_parameters()}

    def measure_layers(self) -> Profile:
        """Compare with the weights of the last profile."""
        now, last, rows = self._weights(), self._last, []
        self._last = now
        for tap in self.watch.taps.layers if last else []:
            own = [name for name in now if name.startswith(f"{tap.module}.")]
            if own:
                assert last is not None
                moved = torch.cat([(now[name].double() - last[name].double()).flatten() for name in own])
                change = moved.norm().item() / math.sqrt(len(moved))
                value = LayerValue(
                    tap.name,
                    tap.index,
                    tap.dim,
                    "weight_change",
                    "l2_per_sqrt_n",
                    change,
                    math.nan,
                    len(moved),
                )
                rows.append(self.watch.row(value, self.watch.dataset, "train"))
        return rows
        yield  # a profile is a generator, also one that needs no pass over data
