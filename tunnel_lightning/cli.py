"""The command line over Lightning: parse and dispatch."""

from __future__ import annotations

import argparse
import contextlib
import csv
import logging
import os
import shlex
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from jsonargparse import ActionConfigFile, set_parsing_settings
from jsonargparse.typing import NonNegativeInt
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor

# imported for their names: `--data CIFAR10` and `--model.backbone VGG` resolve among the classes known here
import tunnel_lightning.backbones
import tunnel_lightning.data  # noqa: F401
from tunnel_lightning.callbacks import LayerMonitor, RunFolder
from tunnel_lightning.callbacks.publish import hyperparameters
from tunnel_lightning.callbacks.run_folder import checkpoint_of, prepare_resume, read_checkpoint
from tunnel_lightning.module import Classifier
from tunnel_lightning.runs import PROFILE_FILE, load_run, new_run_folder

FOLDER_VARIABLE = "TUNNEL_RUN_FOLDER"


class Resume(argparse.Action):
    """``--resume RUN``: take the config of a run folder, and go on from its last checkpoint in the same folder."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        """Apply RUN/config.yaml where the option stands; later options override it."""
        checkpoint_of(values)
        config = str(Path(values) / "config.yaml")
        parser.reading = config  # for the parser names a key, but not the file
        ActionConfigFile.apply_config(parser, namespace, "config", config)
        parser.reading = None
        # the run's name is in the path, and `.` has none
        setattr(namespace, self.dest, os.path.abspath(values))


class ProgressBar(RichProgressBar):
    """Without the version number: the run folder is named at the end, in full."""

    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        """What the bar shows beside the rate."""
        metrics: dict[str, Any] = super().get_metrics(trainer, pl_module)
        metrics.pop("v_num", None)
        return metrics


class KeptCheckpoints(ModelCheckpoint):
    """Checkpoints that stay, numbered as the profile table counts: ``epoch=1`` is after the first epoch.

    A class of its own, since Lightning tells the states of checkpoint callbacks apart by class and period.
    """

    def format_checkpoint_name(self, metrics: Mapping[str, Tensor], *args: Any, **options: Any) -> str:
        """Path of a checkpoint."""
        return super().format_checkpoint_name({**metrics, "epoch": metrics["epoch"] + 1}, *args, **options)


class Parser(LightningArgumentParser):
    """Says what is wrong in a line or two; LightningCLI's usage is 200 lines long."""

    reading: str | None = None  # the config of a run folder, while it is read

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print the error alone and exit with 2."""
        if self.reading:
            message = f"{self.reading} can't be read: {' '.join(message.split())}"
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
        parser.add_argument(
            "--keep_every",
            type=NonNegativeInt,
            default=0,
            help="Keep a checkpoint every so many epochs, too, for `analyze --ckpt all`; 0 keeps none.",
        )
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

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        """Parse, and look at the files that are named before anything is built."""
        super().parse_arguments(parser, args)
        config = self.config[self.config.subcommand]
        checkpoint = config.get("ckpt_path")
        if checkpoint is None:
            if self.config.subcommand != "fit" and not config.get("model.backbone.init_args.pretrained"):
                raise ValueError(
                    f"`{self.config.subcommand}` without --ckpt_path would score random weights: give the "
                    "checkpoint of a run, for example --ckpt_path RUN/checkpoints/best.ckpt"
                )
        elif checkpoint not in ("best", "last", "hpc") and "://" not in checkpoint:
            read_checkpoint(checkpoint)
        if out := config.get("out"):
            if not Path(out).parent.is_dir():
                raise FileNotFoundError(f"--out {out}: there is no folder {Path(out).parent}; make it first")
            if Path(out).is_dir():
                raise ValueError(f"--out {out} is a folder: give the name of a file")

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
        except BaseException:
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
        found = [ModelCheckpoint(filename="last", **common)]
        if validates:
            found.insert(0, ModelCheckpoint(filename="best", monitor="val/accuracy", mode="max", **common))
        if every := self._get(self.config, "keep_every"):
            # after the last one, so that a run that is killed here goes on from this epoch at the earliest
            found.append(KeptCheckpoints(filename="{epoch}", save_top_k=-1, every_n_epochs=every, **common))
        return found

    def _new_folder(self) -> Path:
        # processes that Lightning starts for the other devices run this line too: they find the first one's folder
        if FOLDER_VARIABLE not in os.environ or "LOCAL_RANK" not in os.environ:
            folder = new_run_folder(self._get(self.config, "runs"), self._get(self.config, "name"))
            os.environ[FOLDER_VARIABLE] = str(folder)
        return Path(os.environ[FOLDER_VARIABLE])

    def _config_text(self) -> str:
        parser, config = self._parser(self.subcommand), self.config[self.subcommand].clone()
        resume = config.pop("resume", None)
        text = str(parser.dump(config, skip_none=False))
        if resume:
            path = Path(resume) / "config.yaml"
            kept = parser.parse_path(path, defaults=True)
            kept.pop("resume", None)
            if parser.dump(kept, skip_none=False) == text:
                return path.read_text()  # nothing was overridden: a file edited by hand stays as it is
        return text

    def _forget_folder(self) -> None:
        """Leave nothing of a new run that did not get as far as its first step."""
        if self.folder is not None and self.checkpoint is None:
            shutil.rmtree(self.folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # where there are other runs of this name
                self.folder.parent.rmdir()

    def _say_interrupted(self) -> None:
        if self.folder is None:
            said = "interrupted"
        elif (self.folder / "checkpoints" / "last.ckpt").is_file():
            said = (
                "interrupted; go on with: "
                f"python -m tunnel_lightning fit --resume {shlex.quote(str(self.folder))}"
            )
        elif self.trainer.current_epoch == 0:
            self._forget_folder()
            said = "interrupted before the end of the first epoch: there is no checkpoint to go on from"
        else:
            said = f"interrupted; {self.folder} has no checkpoint to go on from"
        rank_zero_only(print)(said, file=sys.stderr)

    def _run_subcommand(self, subcommand: str) -> None:
        try:
            super()._run_subcommand(subcommand)
        except RuntimeError as error:
            head, *details = str(error).split("\n\t")
            if "loading state_dict" not in head or not details:
                raise
            path = self.checkpoint or self._get(self.config, "ckpt_path")
            raise ValueError(
                f"{path} is of another network or other classes: {details[0].strip()}"
            ) from error

    def fit(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Train, from a checkpoint of the run folder with ``--resume``."""
        resumed_at = None
        if self.checkpoint is not None:
            kwargs["ckpt_path"] = self.checkpoint
            resumed_at = torch.load(self.checkpoint, weights_only=True, mmap=True)["global_step"]
        finished = False
        try:
            for logger in self.trainer.loggers:
                logger.log_hyperparams(hyperparameters(self.config[self.subcommand].as_dict()))
            self.trainer.fit(model, datamodule=datamodule, **{"weights_only": True, **kwargs})
        except (KeyboardInterrupt, SystemExit):  # the second is what Lightning makes of Ctrl-C
            self._say_interrupted()
            raise
        except Exception as error:
            # trained further than max_epochs; what Lightning says to an exact match is nothing
            finished = (
                resumed_at is not None
                and isinstance(error, MisconfigurationException)
                and "You restored a checkpoint with current_epoch" in str(error)
            )
            if not finished:
                if self.trainer.global_step == 0:
                    self._forget_folder()
                raise
        if self.folder is not None:
            print_run(self.folder)
        if finished or self.trainer.global_step == resumed_at:
            print(
                "nothing was left to train: the run had reached its end "
                f"(max_epochs {self.trainer.max_epochs}, max_steps {self.trainer.max_steps}); "
                "raise it to go on, for example with --trainer.max_epochs"
            )

    def predict(self, model: LightningModule, datamodule: LightningDataModule, **kwargs: Any) -> None:
        """Write the class probabilities of the test images to a table."""
        batches = self.trainer.predict(model, datamodule=datamodule, **{**kwargs, "return_predictions": True})
        write_predictions(
            batches or [],
            getattr(datamodule, "class_names", None),
            self._get(self.config, "out"),
            getattr(getattr(model, "backbone", None), "exit_names", ()),
        )


@rank_zero_only
def print_run(folder: Path) -> None:
    """Print the last profile of a run folder."""
    from tunnel_lightning.report import print_profile

    if (folder / PROFILE_FILE).exists():
        print_profile(load_run(folder))
    else:
        print(f"run folder   {folder} (nothing was watched)")


def write_predictions(
    batches: Sequence[Any], class_names: Sequence[str] | None, out: str, exits: Sequence[str] = ()
) -> None:
    """Write one line per image: its number, the likeliest class and every class's probability.

    Of a network with early exits a column ``exit`` says at which layer each image left, and the last line that is
    printed what that saved.

    Args:
        batches: what `Classifier.predict_step` gave.
        class_names: by label; None for numbers.
        out: the file.
        exits: names of the layers with an exit, and of the network's own end, last.
    """
    if not batches:
        raise ValueError("there is nothing to predict: the set has no test images")
    probabilities = torch.cat([batch["probabilities"] for batch in batches])
    names = list(class_names or map(str, range(probabilities.shape[1])))
    left = torch.cat([batch["exit"] for batch in batches]).tolist() if "exit" in batches[0] else None
    beside = Path(f"{out}.tmp")
    with beside.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "label", *(["exit"] if left else []), *names])
        for number, row in enumerate(probabilities.tolist()):
            where = [exits[left[number]]] if left else []
            table.writerow([number, names[row.index(max(row))], *where, *(f"{value:.6f}" for value in row)])
    beside.replace(out)
    print(f"{len(probabilities)} predictions in {out}")
    if left:
        shares = [f"{name} {100 * left.count(k) / len(left):.0f} %" for k, name in enumerate(exits)]
        flops = torch.cat([batch["flops"] for batch in batches]).double().mean()
        print(f"left at {', '.join(shares)}; {flops / 1e6:.3g} MFLOPs an image on average")


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
