"""The command line over Lightning: parse and dispatch."""

from __future__ import annotations

import argparse
import csv
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import ActionConfigFile, set_parsing_settings
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only

# imported for their names: `--data CIFAR10` and `--model.backbone VGG` resolve among the classes known here
import tunnel_lightning.backbones
import tunnel_lightning.data  # noqa: F401
from tunnel_lightning.callbacks import LayerMonitor, RunFolder
from tunnel_lightning.callbacks.publish import hyperparameters
from tunnel_lightning.callbacks.run_folder import prepare_resume
from tunnel_lightning.module import Classifier
from tunnel_lightning.runs import PROFILE_FILE, load_run, new_run_folder

FOLDER_VARIABLE = "TUNNEL_RUN_FOLDER"


class Resume(argparse.Action):
    """``--resume RUN``: take the config of a run folder, and go on from its last checkpoint in the same folder."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Apply RUN/config.yaml where the option stands; later options override it."""
        config = Path(values) / "config.yaml"
        if config.is_file():
            ActionConfigFile.apply_config(parser, namespace, "config", str(config))
        setattr(namespace, self.dest, values)


class ProgressBar(RichProgressBar):
    """Without the version number: the run folder is named at the end, in full."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the bar shows beside the rate."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class Parser(LightningArgumentParser):
    """Says what is wrong in a line or two; LightningCLI's usage is 200 lines long."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error alone and exit with 2."""
        print(f"error: {message}\n(all options: python -m tunnel_lightning COMMAND --help)", file=sys.stderr)
        sys.exit(2)


class TunnelCLI(LightningCLI):
    """LightningCLI with a ``monitor:`` section, a run folder and ``--resume``."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Add what is ours, and tell the backbone about the data."""
        parser.add_lightning_class_args(LayerMonitor, "monitor")
        parser.add_argument(
            "--name", type=str, default="run", help="Name of the run: its folder is RUNS/NAME/version_N."
        )
        parser.add_argument("--runs", type=str, default="runs", help="Folder of all runs.")
        for name in ("num_classes", "input_shape"):
            parser.link_arguments(f"data.{name}", f"model.backbone.init_args.{name}", apply_on="instantiate")

    def _prepare_subcommand_parser(
        self, klass: type, subcommand: str, **kwargs: Any
    ) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "predict":
            parser.add_argument("--out", type=str, default="predictions.csv", help="The table to write.")
        if subcommand == "fit":
            parser.add_argument(
                "--resume", action=Resume, help="A run folder to go on in, with its own config."
            )
        return parser

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Give a training run its folder, logger, progress bar and checkpoints."""
        config = self._get(self.config_init, "trainer")
        resume = self._get(self.config, "resume")
        self.folder: Path | None = None
        self.checkpoint = prepare_resume(resume) if resume else None
        callbacks = list(config.callbacks or [])
        if config.enable_progress_bar is not False and not config.barebones:
            callbacks.append(ProgressBar())
        if self.subcommand == "fit" and not config.fast_dev_run:
            self.folder = Path(resume) if resume else self._new_folder()
            if config.logger in (None, True):
                runs, name = self.folder.parent.parent, self.folder.parent.name
                kwargs["logger"] = TensorBoardLogger(runs, name, self.folder.name, default_hp_metric=False)
            seed = self._get(self.config, "seed_everything")
            callbacks.append(RunFolder(self.folder, self._config_text(), seed))
            if config.enable_checkpointing is not False:
                callbacks += self._checkpoints(validates=config.limit_val_batches != 0)
        elif config.logger is None:
            kwargs["logger"] = False  # else Lightning would make a folder of its own for a single number
        try:
            return super().instantiate_trainer(callbacks=callbacks, **kwargs)
        except Exception:
            self._forget_folder()
            raise

    def _checkpoints(self, validates: bool) -> list[ModelCheckpoint]:
        assert self.folder is not None
        common: dict[str, Any] = {
            "dirpath": self.folder / "checkpoints",
            "save_on_train_epoch_end": True,
            "enable_version_counter": False,
        }
        # Two, since with save_last=True Lightning writes the last one only where the best one changes.
        last = ModelCheckpoint(filename="last", **common)
        return [ModelCheckpoint(filename="best", monitor="val/accuracy", mode="max", **common), last][
            not validates :
        ]

    def _new_folder(self) -> Path:
        # processes that Lightning starts for the other devices run this line too: they find the first one's folder
        if FOLDER_VARIABLE not in os.environ or "LOCAL_RANK" not in os.environ:
            folder = new_run_folder(self._get(self.config, "runs"), self._get(self.config, "name"))
            os.environ[FOLDER_VARIABLE] = str(folder)
        return Path(os.environ[FOLDER_VARIABLE])

    def _config_text(self) -> str:
        parser, config = self._parser(self.subcommand), self.config[self.subcommand].clone()
        config.pop("resume", None)
        return parser.dump(config, skip_none=False)

    def _forget_folder(self) -> None:
        """Leave nothing of a new run that did not get as far as its first step."""
        if self.folder is not None and self.checkpoint is None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Train, from a checkpoint of the run folder with ``--resume``."""
        resumed_at = None
        if self.checkpoint is not None:
            kwargs["ckpt_path"] = self.checkpoint
            resumed_at = torch.load(self.checkpoint, weights_only=True, mmap=True)["global_step"]
        for logger in self.trainer.loggers:
            logger.log_hyperparams(hyperparameters(self.config[self.subcommand].as_dict()))
        try:
            self.trainer.fit(model, datamodule=datamodule, **{"weights_only": True, **kwargs})
        except Exception:
            if self.trainer.global_step == 0:
                self._forget_folder()
            raise
        if self.folder is not None:
            print_run(self.folder)
        if self.trainer.global_step == resumed_at:
            print(
                "nothing was left to train: the run had reached its end "
                f"(max_epochs {self.trainer.max_epochs}, max_steps {self.trainer.max_steps}); "
                "raise it to go on, for example with --trainer.max_epochs"
            )

    def predict(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Write the class probabilities of the test images to a table."""
        batches = self.trainer.predict(model, datamodule=datamodule, **{**kwargs, "return_predictions": True})
        write_predictions(
            batches or [], getattr(datamodule, "class_names", None), self._get(self.config, "out")
        )


@rank_zero_only
def print_run(folder: Path) -> None:
    """Print the last profile of a run folder."""
    from tunnel_lightning.report import print_profile

    if (folder / PROFILE_FILE).exists():
        print_profile(load_run(folder))
    else:
        print(f"run folder   {folder} (nothing was watched)")


def write_predictions(batches: Sequence[Any], class_names: Sequence[str] | None, out: str) -> None:
    """Write one line per image: its number, the likeliest class and every class's probability."""
    if not batches:
        raise ValueError("there is nothing to predict: the set has no test images")
    probabilities = torch.cat([batch["probabilities"] for batch in batches])
    names = list(class_names or map(str, range(probabilities.shape[1])))
    beside = Path(f"{out}.tmp")
    with beside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", *names])
        for number, row in enumerate(probabilities.tolist()):
            table.writerow([number, names[row.index(max(row))], *(f"{value:.6f}" for value in row)])
    beside.replace(out)
    print(f"{len(probabilities)} predictions in {out}")


def run(argv: list[str]) -> None:
    """Run one of Lightning's commands."""
    sys.argv[1:] = argv
    # what Lightning tells of devices and offers; warnings stay
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
    warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    TunnelCLI(
        Classifier,
        LightningDataModule,
        subclass_mode_data=True,
        parser_class=Parser,
        save_config_callback=None,
        trainer_defaults={"enable_model_summary": False},
        seed_everything_default=0,
        auto_configure_optimizers=False,
    )
