"""The command line over Lightning: parse and dispatch."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Any

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
from tunnel_lightning.callbacks.run_folder import prepare_resume
from tunnel_lightning.module import Classifier
from tunnel_lightning.runs import load_run, new_run_folder

FOLDER_VARIABLE = "TUNNEL_RUN_FOLDER"


class Resume(argparse.Action):
    """``--resume RUN``: take the config of a run folder, and go on from its last checkpoint in the same folder."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Apply RUN/config.yaml where the option stands; later options override it."""
        config = Path(values) / "config.yaml"
        if config.is_file():
            ActionConfigFile.apply_config(parser, namespace, "config", str(config))
        setattr(namespace, self.dest, values)


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
            callbacks.append(RichProgressBar())
        if self.subcommand == "fit" and not config.fast_dev_run:
            self.folder = Path(resume) if resume else self._new_folder()
            if config.logger in (None, True):
                kwargs["logger"] = TensorBoardLogger(
                    self.folder.parent.parent,
                    self.folder.parent.name,
                    self.folder.name,
                    default_hp_metric=False,
                )
            callbacks.append(
                RunFolder(self.folder, self._config_text(), self._get(self.config, "seed_everything"))
            )
            if config.enable_checkpointing is not False:
                callbacks.append(
                    ModelCheckpoint(
                        self.folder / "checkpoints",
                        "best",
                        monitor="val/accuracy",
                        mode="max",
                        save_last=True,
                        save_on_train_epoch_end=True,
                        enable_version_counter=False,
                    )
                )
        return super().instantiate_trainer(callbacks=callbacks, **kwargs)

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

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Train, from a checkpoint of the run folder with ``--resume``."""
        if self.checkpoint is not None:
            kwargs["ckpt_path"] = self.checkpoint
        self.trainer.fit(model, datamodule=datamodule, **{"weights_only": True, **kwargs})

    def after_fit(self) -> None:
        """Print the last profile, where the run is, and how to look at it."""
        if self.folder is not None:
            print_run(self.folder)


@rank_zero_only
def print_run(folder: Path) -> None:
    """Print the last profile of a run folder."""
    from tunnel_lightning.report import print_profile

    print_profile(load_run(folder))


def run(argv: list[str]) -> None:
    """Run one of Lightning's commands."""
    sys.argv[1:] = argv
    # what Lightning tells of devices and offers; warnings stay
    logging.getLogger("lightning.pytorch.utilities.rank_zero").setLevel(logging.WARNING)
    logging.getLogger("lightning.fabric.utilities.seed").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", "`isinstance\\(treespec, LeafSpec\\)` is deprecated")
    warnings.filterwarnings("ignore", ".*does not have many workers")
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    TunnelCLI(
        Classifier,
        LightningDataModule,
        subclass_mode_data=True,
        save_config_callback=None,
        trainer_defaults={"enable_model_summary": False},
        seed_everything_default=0,
        auto_configure_optimizers=False,
    )
