"""The base of every layer callback."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from tunnel_lightning.callbacks.batches import Target
from tunnel_lightning.callbacks.requests import Profile
from tunnel_lightning.callbacks.schedule import Schedule
from tunnel_lightning.callbacks.watch import Watch
from tunnel_lightning.runs import Row
from tunnel_lightning.taps import TapSpec


class LayerCallback(Callback):
    """Watches the layers of a network while a Trainer trains it, and changes nothing.

    Subclasses say what they measure in three methods: :meth:`begin`, :meth:`on_features` (each training step)
    and :meth:`measure_layers` (each profile). Everything else is shared by all layer callbacks of a Trainer.

    Args:
        taps: which layers, and how their outputs are pooled; all layer callbacks of a Trainer share one.
        profile: when this callback's profiles are taken.
        target: where the labels are in a batch: an index, a key or a function; by default the usual places.
        num_classes: classes of the in-distribution set; by default the datamodule's or the module's attribute.
    """

    needs_classes = True  # whether it measures anything by class

    def __init__(
        self,
        taps: TapSpec | None = None,
        profile: Schedule | None = None,
        target: Target = None,
        num_classes: int | None = None,
    ) -> None:
        self.taps = taps or TapSpec()
        self.profile = profile or Schedule()
        self.target = target
        self.num_classes = num_classes
        self._watch: Watch | None = None
        self._pending: dict[str, Any] = {}

    @property
    def watch(self) -> Watch:
        """What the layer callbacks of this Trainer share.

        Raises:
            RuntimeError: before ``Trainer.fit``.
        """
        if self._watch is None:
            raise RuntimeError(f"{type(self).__name__} watches nothing yet: it starts with Trainer.fit")
        return self._watch

    # -- what a subclass says --------------------------------------------------------------------------------

    def begin(self) -> None:
        """Layers are known: build what depends on them, and restore what a checkpoint brought (``_pending``)."""

    def reads_step(self, step: int) -> bool:
        """Whether :meth:`on_features` wants this training step."""
        return False

    def on_features(self, features: dict[str, Tensor], target: Tensor) -> None:
        """One training step: the layers' pooled, detached outputs [B, D] and the labels [B]."""

    def measure_layers(self) -> Profile:
        """One profile, as a generator: yield the passes wanted, be sent what they found, return the rows."""
        return []
        yield

    def summarise(self, rows: list[Row]) -> list[Row]:
        """Rows that follow from a whole profile, ``rows``, of all callbacks."""
        return []

    # -- Lightning's hooks: only the leader acts -------------------------------------------------------------

    @property
    def _leads(self) -> bool:
        return self._watch is not None and self._watch.parts[0] is self

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Join the other layer callbacks of this Trainer and register the hooks."""
        if stage == "fit":
            self._watch = Watch.join(self, trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Profile the untrained network, if asked to."""
        if self._leads:
            self.watch.on_train_start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Arm the hooks."""
        if self._leads:
            self.watch.on_train_batch_start()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Take what the hooks captured, before activation checkpointing computes it again."""
        if self._leads:
            self.watch.on_before_backward()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Use what the hooks captured."""
        if self._leads:
            self.watch.on_train_batch_end(batch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Profile, by the period in epochs."""
        if self._leads:
            self.watch.on_train_epoch_end()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Profile what training ended with."""
        if self._leads:
            self.watch.on_train_end()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Remove the hooks."""
        if self._leads:
            self.watch.close()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove the hooks."""
        self.teardown(trainer, pl_module, "fit")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep a checkpoint's state until the layers are known."""
        self._pending = state_dict
