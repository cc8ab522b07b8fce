"""Linear probes on every layer: online while the network trains, closed-form at each profile."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from tunnel_lightning.callbacks.base import LayerCallback
from tunnel_lightning.callbacks.batches import Target
from tunnel_lightning.callbacks.requests import Profile, Request, States
from tunnel_lightning.callbacks.schedule import Schedule
from tunnel_lightning.measures import Moments, ProbeAccuracy, ProbeBank, ridge_from_moments
from tunnel_lightning.taps import Tap, TapSpec


@dataclass
class ProbeOptions:
    """Options of :class:`OnlineProbes`.

    Args:
        lr: learning rate of the online probes (Adam).
        every_n_steps: train the online probes on the batches of every n-th optimizer step.
        fit_images: training images the closed-form ridge probes are fitted on at each profile; 0 for none.
        eval_images: validation images all probes are scored on; ``null`` for all.
        alpha: ridge penalty, relative to the number of images (features are standardised).
    """

    lr: float = 1e-3
    every_n_steps: int = 1
    fit_images: int = 10_000
    eval_images: int | None = 10_000
    alpha: float = 1e-3

    def __post_init__(self) -> None:
        images = self.eval_images is None or self.eval_images >= 1
        if self.every_n_steps < 1 or self.fit_images < 0 or not images or self.lr <= 0 or self.alpha <= 0:
            raise ValueError(
                "probes: every_n_steps and eval_images must be 1 or more, fit_images 0 or more, lr and alpha above "
                f"0, got {self}"
            )


class OnlineProbes(LayerCallback):
    """A linear probe on every layer, trained beside the network on detached features.

    At each profile the probes are scored on the validation images, next to closed-form ridge probes fitted on
    ``fit_images`` training images at the current weights. Nothing here reaches the network: its weights are
    bitwise those of a run without this callback.

    Args:
        lr: learning rate of the online probes (Adam).
        every_n_steps: train the online probes on the batches of every n-th optimizer step.
        fit_images: training images of the ridge probes; 0 for none.
        eval_images: validation images all probes are scored on; ``None`` for all.
        alpha: ridge penalty, relative to the number of images.
        taps: see :class:`LayerCallback`.
        profile: see :class:`LayerCallback`.
        target: see :class:`LayerCallback`.
        num_classes: see :class:`LayerCallback`.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[OnlineProbes(lr=1e-2)], logger=False)
    """

    def __init__(
        self,
        lr: float = ProbeOptions.lr,
        every_n_steps: int = ProbeOptions.every_n_steps,
        fit_images: int = ProbeOptions.fit_images,
        eval_images: int | None = ProbeOptions.eval_images,
        alpha: float = ProbeOptions.alpha,
        taps: TapSpec | None = None,
        profile: Schedule | None = None,
        target: Target = None,
        num_classes: int | None = None,
    ) -> None:
        super().__init__(taps, profile, target, num_classes)
        self.options = ProbeOptions(lr, every_n_steps, fit_images, eval_images, alpha)
        self.bank: ProbeBank | None = None

    def begin(self) -> None:
        """Build one head a layer; they start at zero, so no random number is drawn."""
        watch, dims = self.watch, {tap.name: tap.dim for tap in self.watch.taps.layers}
        device = watch.module.device
        if self.bank is None or self.bank.dims != dims or self.bank.num_classes != watch.num_classes:
            # else the Trainer fits once more: the probes go on with the network
            self.bank = ProbeBank(dims, watch.num_classes, lr=self.options.lr)
        self.bank.to(device)
        self._sums = torch.zeros(2, len(dims), device=device)
        self._count, self._sent_at = 0, -1
        if self._pending:
            self.bank.load_state_dict(self._pending["bank"])
            self._sums = self._pending["sums"].to(device)
            self._count, self._sent_at = self._pending["count"], self._pending["sent_at"]
            self._pending = {}

    def state_dict(self) -> dict[str, Any]:
        """The heads, their optimizer and the running means since the last flush, as tensors and ints."""
        if self.bank is None:
            return self._pending
        return {
            "bank": self.bank.state_dict(),
            "sums": self._sums,
            "count": self._count,
            "sent_at": self._sent_at,
        }

    def reads_step(self, step: int) -> bool:
        """Every ``every_n_steps``-th step."""
        return step % self.options.every_n_steps == 0

    def on_features(self, features: dict[str, Tensor], target: Tensor) -> None:
        """One step of all heads; their mean loss and accuracy go to the loggers every ``log_every_n_steps``."""
        assert self.bank is not None
        loss, accuracy = self.bank.step(features, target)
        self._sums += torch.stack([loss, accuracy])
        self._count += 1
        every, step = self.watch.trainer.log_every_n_steps, self.watch.step  # type: ignore[attr-defined]
        # with accumulated gradients several batches share a step, and only the first that sees it sends
        if every and step % every == 0 and step not in (0, self._sent_at):
            self._sent_at = step
            means = (self._sums / self._count).tolist()
            self.watch.publisher.layers(
                {"online_loss": means[0], "online_accuracy": means[1]},
                self.watch.taps.layers,
                self.watch.step,
            )
            self._sums.zero_()
            self._count = 0

    def measure_layers(self) -> Profile:
        """Fit the ridge probes on training images, then score them and the online probes on validation images."""
        watch, options = self.watch, self.options
        evaluation = watch.val_source(options.eval_images)
        if evaluation is None:
            return []
        heads: dict[str, Any] = {}
        if options.fit_images:
            fitted = yield Request(
                watch.train_source(options.fit_images), [lambda tap: Moments(tap.dim, watch.num_classes)]
            )
            heads = ridge_heads(fitted, options.alpha)
            del fitted  # the next pass needs the memory
        states = yield Request(evaluation, [partial(self._ridge, heads), self._online])
        return watch.rows_of(evaluation, states)

    @staticmethod
    def _ridge(heads: dict[str, Any], tap: Tap) -> ProbeAccuracy | None:
        return ProbeAccuracy(heads[tap.name], "ridge") if tap.name in heads else None

    def _online(self, tap: Tap) -> ProbeAccuracy | None:
        assert self.bank is not None
        return ProbeAccuracy(self.bank.head(tap.name), "online", loss=True) if tap.role == "layer" else None


def ridge_heads(states: States, alpha: float) -> dict[str, Any]:
    """A closed-form probe for every layer with its own moments in ``states``."""
    return {
        name: ridge_from_moments(moments, alpha)
        for name, measures in states.items()
        for moments in measures
        if isinstance(moments, Moments)
    }
