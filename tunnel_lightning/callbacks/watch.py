"""What the layer callbacks of one Trainer share: the hooks, the passes over the data, the table."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from tunnel_lightning.callbacks.batches import Target, first_of, fixed_batches, images_of, target_of
from tunnel_lightning.callbacks.places import flops_by_path, sole_child, write_places
from tunnel_lightning.callbacks.publish import Publisher
from tunnel_lightning.callbacks.requests import Factory, Request, Source, States
from tunnel_lightning.measures import LayerValue, Moments, accumulate, check_memory, values_of
from tunnel_lightning.runs import ProfileTable, Row, run_id_of
from tunnel_lightning.taps import Taps, TapSpec, quiet, untouched_rng

if TYPE_CHECKING:
    from tunnel_lightning.callbacks.base import LayerCallback


class Watch:
    """The shared part of all layer callbacks of one Trainer.

    The callbacks join in ``setup``; the first to join leads, and only the leader passes Lightning's hooks on.
    Hooks on the network are registered once, before any ``torch.compile``. Order and width of the layers are
    known after the first forward pass; then every part begins.
    """

    _of: ClassVar[WeakKeyDictionary[Trainer, Watch]] = WeakKeyDictionary()

    def __init__(self, trainer: Trainer, module: LightningModule, spec: TapSpec, target: Target) -> None:
        self.trainer, self.module, self.spec, self.target = trainer, module, spec, target
        self.network = sole_child(module)
        # What a profile calls on images: the module, which may prepare them; without a forward, the network in it.
        self.model = module if type(module).forward is not LightningModule.forward else self.network
        if self.model is module and type(module).forward is LightningModule.forward:
            raise ValueError(
                f"{type(module).__name__} has no forward: a profile calls it on images, define forward(x) to return "
                "the class scores"
            )
        self.taps = Taps(self.network, spec)
        if "torch._dynamo" in sys.modules:
            # torch does not guard on hooks: what was compiled for an unwatched network of the same classes,
            # earlier in this process, would serve this one too and pass its hooks by.
            torch.compiler.reset()
        self.parts: list[LayerCallback] = []
        self.begun = False
        self.profiled_at = -1
        self.memory: list[Row] = []
        self._table: ProfileTable | None = None
        self._epoch = 0
        self._readers: list[LayerCallback] = []
        self._features: dict[str, Tensor] | None = None
        self._step_before = 0
        self._labels_seen = False
        self._input_rows: dict[tuple[str, ...], Row] = {}
        self._input_known: set[LayerCallback] = set()
        self.publisher = Publisher(trainer)

    @classmethod
    def join(cls, part: LayerCallback, trainer: Trainer, module: LightningModule) -> Watch:
        """The Trainer's watch, made by the first part that joins."""
        watch = cls._of.get(trainer)
        if watch is None:
            watch = cls._of[trainer] = cls(trainer, module, part.taps, part.target)
        elif watch.spec != part.taps:
            raise ValueError(
                f"{type(part).__name__} asks for {part.taps} and {type(watch.parts[0]).__name__} for {watch.spec}: "
                "the layer callbacks of one Trainer share one set of hooks, give them the same taps="
            )
        watch.parts.append(part)
        watch.target = watch.target if watch.target is not None else part.target
        return watch

    def close(self) -> None:
        """Remove the hooks and forget the Trainer."""
        self.taps.remove()
        self._of.pop(self.trainer, None)

    # -- where we are ---------------------------------------------------------------------------------------

    @property
    def step(self) -> int:
        """Optimizer steps taken so far."""
        return self.trainer.global_step

    @property
    def folder(self) -> Path | None:
        """The run folder: the one the command line made, else where the first logger writes."""
        made = next((cb.path for cb in self.trainer.callbacks if hasattr(cb, "is_run_folder")), None)  # type: ignore[attr-defined]
        if made is not None:
            return Path(made)
        for logger in self.trainer.loggers:
            if getattr(logger, "log_dir", None):
                return Path(logger.log_dir)  # type: ignore[arg-type]
            if logger.save_dir and logger.name and logger.version is not None:
                # others write all runs to one folder
                return Path(logger.save_dir) / str(logger.name) / str(logger.version)
        return None

    @property
    def num_classes(self) -> int:
        """Classes of the in-distribution set: from an argument, the datamodule or the module, in this order."""
        places = (*self.parts, self.trainer.datamodule, self.module, self.module.hparams)  # type: ignore[attr-defined]
        for place in places:
            found = (
                place.get("num_classes") if isinstance(place, dict) else getattr(place, "num_classes", None)
            )
            if found is not None:
                return int(found)
        raise ValueError(
            f"{type(self.parts[0]).__name__} needs the number of classes: pass num_classes=..., or give the "
            "datamodule or the LightningModule an attribute of that name"
        )

    # -- in-distribution data -------------------------------------------------------------------------------

    @property
    def dataset(self) -> str:
        """Name of the in-distribution set in the table."""
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if datamodule is not None:
            return getattr(datamodule, "name", None) or type(datamodule).__name__
        loader = first_of(self.trainer.train_dataloader)
        return type(getattr(loader, "dataset", loader)).__name__

    def train_source(self, limit: int | None) -> Source:
        """The training images, unaugmented where the loader can tell, in a fixed order."""
        return Source(self.dataset, "train", limit, lambda: first_of(self.trainer.train_dataloader))

    def val_source(self, limit: int | None) -> Source | None:
        """The validation images, or ``None`` with one warning where there are none."""
        if self._val_loader() is None:
            rank_zero_warn("no validation loader: the layers get no validation probes and no ranks")
            return None
        return Source(self.dataset, "val", limit, self._val_loader)

    def _val_loader(self) -> Any:
        trainer = self.trainer
        if trainer.val_dataloaders is None and trainer.limit_val_batches and trainer.enable_validation:
            trainer.validating = True
            trainer.fit_loop.epoch_loop.val_loop.setup_data()
            trainer.training = True
        return first_of(trainer.val_dataloaders)

    # -- driven by the leader -------------------------------------------------------------------------------

    def on_train_start(self) -> None:
        """Profile the untrained network with the parts that want it."""
        if any(part.needs_classes for part in self.parts):
            self.num_classes  # noqa: B018 - refuse before training, not after the first batch
        self.publisher.start(self.folder)
        if self.folder is not None and self.trainer.is_global_zero:
            self._table = ProfileTable(self.folder / "profile.csv")
            self.memory = list(self._table.rows)
        self._first_forward()
        if self.step == 0 and self.begun:
            self.profile([part for part in self.parts if part.profile.start])

    def on_train_batch_start(self) -> None:
        """Arm the hooks where a part reads this step's features."""
        self._features, self._step_before = None, self.step
        self._readers = [part for part in self.parts if part.reads_step(self.step)]
        if self._readers or not self.begun:
            self.taps.arm()

    def on_before_backward(self) -> None:
        """Take the features of the forward: what activation checkpointing computes again is not looked at."""
        if self._features is None and (self._readers or not self.begun):
            self._features = self.taps.take()
            self.taps.disarm()

    def on_train_batch_end(self, batch: Any) -> None:
        """Hand the step's features to the parts that read it; profile where one is due."""
        if self._features is not None:
            self.begin(images_of(batch))
            if self._readers:
                target = target_of(batch, self.target)
                if not self._labels_seen:
                    self._check_labels(target)
                for part in self._readers:
                    part.on_features(self._features, target)
            self._features = None
        self.taps.disarm()
        if self.profiled_at != self.step:
            self.profile(
                [part for part in self.parts if part.profile.due_within(self._step_before, self.step)]
            )

    def _check_labels(self, target: Tensor) -> None:
        """Once, on the first batch: on a GPU a wrong label would end the process without a word."""
        self._labels_seen = True
        whole = target.ndim == 1 and not target.is_floating_point()
        if not whole or not 0 <= int(target.min()) <= int(target.max()) < self.num_classes:
            found = f"{target.dtype} {list(target.shape)}"
            raise ValueError(
                f"labels must be class indices [B] from 0 to {self.num_classes - 1}, these are {found} from "
                f"{target.min().item()} to {target.max().item()}: see num_classes= and target="
            )

    def on_train_epoch_end(self) -> None:
        """Profile by the period in epochs, and where this epoch is the last."""
        trainer, done = self.trainer, self.trainer.current_epoch + 1
        last = (
            done == trainer.max_epochs
            or (trainer.max_steps != -1 and self.step >= trainer.max_steps)
            or trainer.should_stop
        )
        self.profile([part for part in self.parts if last or part.profile.due_at_epoch(done)], epoch=done)

    def on_train_end(self) -> None:
        """Profile once more where training ended between two profiles, and publish what is final."""
        self.profile(self.parts)
        self.publisher.finish(self.memory)

    def begin(self, images: Tensor) -> None:
        """Start the parts, once the layers are known."""
        if self.begun:
            return
        self.begun = True
        self.taps.features_of_input(images[:1])
        if any(part.needs_classes for part in self.parts):
            # each of their passes streams moments: too many are refused here, not after hours of training
            check_memory(self.taps, [lambda tap: Moments(tap.dim, self.num_classes)])
        with untouched_rng():  # other sets are loaded and looked at
            for part in self.parts:
                part.begin()
        if self.folder is not None:
            flops = flops_by_path(self.model, self.network, images[:1])
            if self.trainer.is_global_zero:
                write_places(self.folder, self.taps, flops)

    # -- profiles -------------------------------------------------------------------------------------------

    def profile(self, parts: Sequence[LayerCallback], epoch: int | None = None) -> list[Row]:
        """Take one profile: each part asks for passes over the data, equal passes are read once.

        Args:
            parts: the parts whose profile is due.
            epoch: completed epochs, for the table; by default the current one.
        """
        if not parts or self.profiled_at == self.step:
            return []
        with untouched_rng():  # other people's data sets and loaders draw from the global generators
            return self._profile(parts, epoch)

    def _profile(self, parts: Sequence[LayerCallback], epoch: int | None) -> list[Row]:
        self.profiled_at = self.step
        self._epoch = self.trainer.current_epoch if epoch is None else epoch
        rows: dict[LayerCallback, list[Row]] = {}
        running = {part: part.measure_layers() for part in parts}
        waiting: dict[LayerCallback, Request] = {}

        def advance(part: LayerCallback, states: States | None) -> None:
            try:
                waiting[part] = next(running[part]) if states is None else running[part].send(states)
            except StopIteration as stop:
                rows[part] = stop.value
                waiting.pop(part, None)

        for part in parts:
            advance(part, None)
        while waiting:
            # Training images first: probes fitted on them are scored in the pass over the validation images,
            # which then serves every part at once.
            source = min(waiting.values(), key=lambda request: request.source.split != "train").source
            served = {part: request for part, request in waiting.items() if request.source == source}
            states = self._pass(
                source,
                [factory for request in served.values() for factory in request.factories],
                input=any(part not in self._input_known for part in served),
            )
            at = 0
            for part, request in served.items():
                share = {name: found[at : at + len(request.factories)] for name, found in states.items()}
                at += len(request.factories)
                advance(part, share)
            del states, share  # before the next pass takes as much again
        return self._keep(parts, [row for part in parts for row in rows[part]])

    def _pass(self, source: Source, factories: Sequence[Factory], input: bool) -> States:
        """One quiet pass of the network over the images of ``source``, summed over all processes."""
        trainer, own = self.trainer, source.dataset == self.dataset
        batches = fixed_batches(source.loader(), source.limit, trainer.global_rank, trainer.world_size)
        return accumulate(
            self.model,
            self.taps,
            batches,
            factories,
            unpack=self._unpack if own else self._unpack_other,
            device=self.module.device,
            context=trainer.precision_plugin.forward_context,
            input=input,
            network=own,
            where=f"step {self.step}, {source.dataset} {source.split}",
        )

    def _unpack(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images and labels as the network gets them, through the hooks that move and prepare batches."""
        trainer = self.trainer
        batch = trainer.precision_plugin.convert_input(batch)
        # The hooks of one's own that augment ask the trainer whether it trains.
        trainer.validating = True
        try:
            batch = self.module._on_before_batch_transfer(batch, dataloader_idx=0)
            batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
        finally:
            trainer.training = True
        return images_of(batch), target_of(batch, self.target)

    def _unpack_other(self, batch: Any) -> tuple[Tensor, Tensor]:
        """Images and labels of another set, which knows nothing of this module's hooks."""
        batch = self.trainer.precision_plugin.convert_input(batch)
        return images_of(batch), target_of(batch)

    def _first_forward(self) -> None:
        """Learn the order and width of the layers from two training images; from the first batch of a stream."""
        with untouched_rng():
            batch = self._two_images()
            if batch is None:
                return
            images = self._unpack(batch)[0]
        self.taps.arm()
        try:
            with quiet(self.model), self.trainer.precision_plugin.forward_context():
                self.model(images)
                self.taps.take()
        finally:
            self.taps.disarm()
        self.begin(images)

    def _two_images(self) -> Any:
        """A batch of two, of the first loader that can be read by index."""
        for loader in (first_of(self.trainer.train_dataloader), self._val_loader()):
            try:
                batches = fixed_batches(loader, 2)
            except ValueError:  # a stream
                continue
            return next(iter(batches))
        return None

    def rows_of(self, source: Source, states: States) -> list[Row]:
        """The table's rows of what one pass measured."""
        return [self.row(value, source.dataset, source.split) for value in values_of(states, self.taps)]

    def row(self, value: LayerValue, dataset: str, split: str) -> Row:
        """One row of the table, at this step."""
        if self.memory:  # a resumed run keeps its name, wherever its folder has been moved
            run_id = self.memory[0].run_id
        else:
            run_id = run_id_of(self.folder) if self.folder is not None else ""
        return Row(
            run_id=run_id,
            step=self.step,
            epoch=self._epoch,
            experience=-1,
            split=split,
            dataset=dataset,
            **value._asdict(),
        )

    def _keep(self, parts: Sequence[LayerCallback], found: list[Row]) -> list[Row]:
        """Add the rows of one profile to the table and show them."""

        def key(row: Row) -> tuple[str, ...]:
            return row.dataset, row.split, row.layer, row.measure, row.variant

        rows = {
            key(row): row for row in found
        }  # parts that share a pass both report the network's own accuracy
        # Pixels do not change while the network trains: they are measured once and repeated.
        self._input_rows.update({key(row): row for row in found if row.index == 0})
        self._input_known.update(parts)
        for at, row in self._input_rows.items():
            rows.setdefault(at, row._replace(step=self.step, epoch=self._epoch))
        for part in parts:
            rows.update({key(row): row for row in part.summarise(list(rows.values()))})
        found = sorted(
            rows.values(), key=lambda row: (row.dataset, row.split, row.measure, row.variant, row.index)
        )
        self.memory += found
        if self._table is not None:
            self._table.append(found)
        self.publisher.profile(self.memory, found)
        return found
