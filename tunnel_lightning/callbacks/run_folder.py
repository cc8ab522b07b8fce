"""The run folder of the command line: its config, its manifest, and going on in it."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.summary.writer.record_writer import RecordWriter

from tunnel_lightning.runs import ProfileTable, machine_info, package_versions, write_manifest
from tunnel_lightning.runs.files import atomic

INITIAL_FILE = "initial.pt"
"""In a run folder: the weights training began with, in the form of a checkpoint's ``state_dict``."""


class RunFolder(Callback):
    """Writes a run's config, manifest and first weights, and carries the random state over a resume.

    Lightning stores no random state. This callback puts python's, numpy's and torch's into each checkpoint and
    sets them before the first batch of a resumed run, so that dropout and shuffling go on as if uninterrupted.
    (In distributed runs the state stored is that of rank 0.)

    Args:
        path: the folder.
        config: text of the config to keep in it.
        seed: the seed, for the manifest.
    """

    is_run_folder = True

    def __init__(self, path: str | Path, config: str = "", seed: int | None = None) -> None:
        self.path = Path(path)
        self.config = config
        self.seed = seed
        self._random: dict[str, Any] | None = None

    @rank_zero_only
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Write config and manifest of a new run."""
        if stage != "fit" or (self.path / "config.yaml").exists():
            return
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(self.config)
        write_manifest(self.path, versions=package_versions(), machine=machine_info(), seed=self.seed)

    @rank_zero_only
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what a resume changed in the config; not before, for the checkpoint may not fit the change."""
        path = self.path / "config.yaml"
        if self.config and self.config != path.read_text():
            with atomic(path) as file:
                file.write(self.config)

    def state_dict(self) -> dict[str, Any]:
        """Random states, as tensors and plain numbers."""
        return random_state()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keep the random states until training starts."""
        self._random = state_dict

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the first weights, and set the random states: right after this the loader draws its first seed."""
        if not trainer.ckpt_path and trainer.is_global_zero and not (self.path / INITIAL_FILE).exists():
            with atomic(self.path / INITIAL_FILE, "wb") as file:
                torch.save({"state_dict": pl_module.state_dict()}, file)
        if self._random is not None:
            set_random_state(self._random)
            self._random = None


def random_state() -> dict[str, Any]:
    """State of python's, numpy's and torch's global generators, loadable with ``weights_only=True``.

    Example:
        >>> state = random_state()
        >>> first = torch.rand(())
        >>> set_random_state(state)
        >>> bool(first == torch.rand(()))
        True
    """
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state()
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "kind": kind,
            "keys": torch.from_numpy(np.asarray(keys, dtype=np.int64)),
            "position": position,
            "has_gauss": has_gauss,
            "cached": cached,
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: dict[str, Any]) -> None:
    """Set what :func:`random_state` returned."""
    python, numpy = state["python"], state["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state((numpy["kind"], keys, numpy["position"], numpy["has_gauss"], numpy["cached"]))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all([cuda.cpu() for cuda in state["cuda"]])


def checkpoint_of(folder: str | Path) -> Path:
    """The checkpoint that a run folder goes on from.

    Raises:
        FileNotFoundError: for a folder without config or without a checkpoint.
    """
    folder = Path(folder)
    if not (folder / "config.yaml").is_file():
        raise FileNotFoundError(f"{folder} is no run folder: it has no config.yaml; give one that `fit` made")
    checkpoint = folder / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"{folder} is no run folder to go on in: {checkpoint} is missing; start again with "
            f"`fit --config {folder / 'config.yaml'}`"
        )
    return checkpoint


def read_checkpoint(path: str | Path, hint: str = "give one that `fit` made") -> dict[str, Any]:
    """Open a checkpoint.

    Args:
        path: the checkpoint.
        hint: what to do about one that can't be read.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it can't be read, or is something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"there is no checkpoint {path}: {hint}")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, pickle.UnpicklingError, OSError, ValueError) as error:
        why = next(iter(str(error).splitlines()), "")
        raise ValueError(f"{path} can't be read as a checkpoint: {hint} ({why})") from error
    if not isinstance(state, dict) or not {"state_dict", "global_step"} <= state.keys():
        raise ValueError(f"{path} is no checkpoint of a training run: {hint}")
    return state


def prepare_resume(folder: str | Path) -> Path:
    """Make a run folder ready to go on from its last checkpoint.

    Table rows and TensorBoard events past the checkpoint's step are dropped: training will make them again.

    Args:
        folder: the run folder.

    Returns:
        The checkpoint.

    Raises:
        FileNotFoundError: for a folder without config or without a checkpoint; nothing is changed then.
        ValueError: for a checkpoint that can't be read, holds weights alone, or was taken in mid-epoch with a loader
            that can't go on from there.
    """
    folder, checkpoint = Path(folder), checkpoint_of(folder)
    state = read_checkpoint(checkpoint, "to go on from the best epoch, copy best.ckpt beside it over it")
    if "loops" not in state:
        raise ValueError(
            f"{checkpoint} holds weights alone, as `trim` writes them, and no training to go on with: train it with "
            f"`fit --config {folder / 'config.yaml'}` from new weights, or in Python with "
            "Trainer().fit(Classifier.load_from_checkpoint(path))"
        )
    refuse_mid_epoch(state, checkpoint)
    ProfileTable(folder / "profile.csv").truncate(state["global_step"])
    for events in sorted(folder.glob("events.out.tfevents.*")):
        drop_events(events, state["global_step"])
    return checkpoint


def refuse_mid_epoch(state: dict[str, Any], checkpoint: Path) -> None:
    """Refuse a checkpoint taken in mid-epoch unless its loader kept its place."""
    loop = state["loops"]["fit_loop"]
    done = loop["epoch_loop.batch_progress"]
    if (
        not done["is_last_batch"]
        and done["current"]["ready"] > 0
        and not loop["state_dict"].get("combined_loader")
    ):
        raise ValueError(
            f"{checkpoint} was taken after batch {done['current']['ready']} of an epoch, and a torch DataLoader "
            "can't go on from there: resume from a checkpoint taken at the end of an epoch, or train with "
            "--data.loader device, which keeps its place"
        )


def drop_events(path: Path, step: int) -> int:
    """Rewrite a TensorBoard event file without the events after ``step``, and return how many those were."""
    kept, dropped = [], 0
    for record in RawEventFileLoader(str(path)).Load():
        if Event.FromString(record).step <= step:
            kept.append(record)
        else:
            dropped += 1
    if dropped:
        beside = path.with_name(f"tmp-{path.name}")
        with beside.open("wb") as file:
            writer = RecordWriter(file)
            for record in kept:
                writer.write(record)
            writer.flush()
        beside.replace(path)
    return dropped
