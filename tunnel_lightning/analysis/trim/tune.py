"""A short training of the cut network: what it gains is measured, and weights that are no better are not kept."""

from __future__ import annotations

import logging
import shutil
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.optim import SGD, Optimizer

from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.weights import read_run_checkpoint
from tunnel_lightning.backbones import Backbone
from tunnel_lightning.backbones.base import imported_class
from tunnel_lightning.module import CHECKPOINT_KEY, Classifier, WarmupCosine
from tunnel_lightning.surgery import snapshot
from tunnel_lightning.taps import untouched_rng

SMALLER = 0.1
"""The learning rate of tuning over the one that the network was trained with."""
USUAL = 0.01
"""That of a network whose training is not known, before it is made smaller."""
LAST, BEST = "last.ckpt", "best.ckpt"


class Recipe(NamedTuple):
    """How a cut network is trained.

    Attributes:
        optimizer: makes the optimizer of parameters.
        name: what it is called.
        lr: its learning rate at the start; it falls to 0 along half a cosine.
        note: what a reader must know; empty for nothing.
    """

    optimizer: Callable[..., Optimizer]
    name: str
    lr: float
    note: str = ""


def recipe_of(subject: Subject, lr: float | None = None) -> Recipe:
    """The optimizer of the run at a tenth of its learning rate; SGD with momentum where it is not known.

    Args:
        subject: the network.
        lr: another learning rate.
    """
    kept: Any = None
    if subject.run is not None:
        path = subject.run / subject.checkpoint
        kept = (read_run_checkpoint(path).get(CHECKPOINT_KEY) or {}).get("optimizer")
    note = ""
    if isinstance(kept, dict) and "class_path" in kept:
        try:
            made = imported_class(kept["class_path"], Optimizer)
            given = dict(kept.get("init_args") or {})
            rate = lr or SMALLER * float(given.get("lr", USUAL))
            return Recipe(partial(made, **{**given, "lr": rate}), made.__name__, rate)
        except (ValueError, TypeError) as error:
            note = (
                f"the cut network is tuned with SGD, since the run's optimizer can't be made again ({error})"
            )
    rate = lr or SMALLER * USUAL
    return Recipe(partial(SGD, lr=rate, momentum=0.9), "SGD", rate, note)


class Told(Callback):
    """Tells how many epochs are done."""

    def __init__(self, told: Callable[[str, int, int], None]) -> None:
        self.told = told

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tell it."""
        self.told("tuning the cut network, epochs", trainer.current_epoch, trainer.max_epochs or 0)


def tune(
    network: Backbone,
    images: ImageSet,
    recipe: Recipe,
    epochs: int,
    folder: Path,
    device: torch.device,
    seed: int = 0,
    told: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> dict[str, Tensor]:
    """Train a network on a set's training images, as its owner shuffles and augments them.

    After every epoch a checkpoint is written into the folder; where one lies there the training goes on from it. The
    network's weights end as they were.

    Args:
        network: the cut network.
        images: the set; validation images say which epoch was best.
        recipe: how.
        epochs: how many.
        folder: for checkpoints, of this training alone.
        device: where.
        seed: of what the training draws; the global random state is not changed.
        told: given ``(what, done, in all)``.

    Returns:
        The state of the best epoch.
    """
    before = snapshot(network)
    classifier = Classifier(network, optimizer=recipe.optimizer, lr_scheduler=WarmupCosine)
    keeper = ModelCheckpoint(
        folder, "best", monitor="val/accuracy", mode="max", save_last=True, enable_version_counter=False
    )
    # Lightning tells which device it takes and which callbacks there are.
    quiet = logging.getLogger("lightning.pytorch")
    level = quiet.level
    try:
        quiet.setLevel(logging.ERROR)
        with untouched_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.manual_seed(seed)
            trainer = Trainer(
                max_epochs=epochs,
                accelerator="gpu" if device.type == "cuda" else device.type,
                devices=1,
                logger=False,
                callbacks=[keeper, Told(told)],
                enable_progress_bar=False,
                enable_model_summary=False,
                num_sanity_val_steps=0,
                default_root_dir=folder,
            )
            last = folder / LAST
            trainer.fit(
                classifier,
                images.loader("train"),
                images.loader("val"),
                ckpt_path=last if last.is_file() else None,
                weights_only=True,
            )
        state = read_run_checkpoint(folder / BEST)["state_dict"]
        told("tuning the cut network, epochs", epochs, epochs)
        return {
            key.removeprefix("backbone."): value
            for key, value in state.items()
            if key.startswith("backbone.")
        }
    except SystemExit as stop:
        if isinstance(stop.__context__, KeyboardInterrupt):  # Lightning makes an exit of Ctrl-C
            raise KeyboardInterrupt from None
        raise
    finally:
        quiet.setLevel(level)
        network.load_state_dict(before)
        network.to(device)


def forget(folder: Path) -> None:
    """Remove the checkpoints of a training that is over."""
    shutil.rmtree(folder, ignore_errors=True)
