"""A callback that command-line tests name by its path."""

import os
import time
from pathlib import Path

import torch
from lightning.pytorch import Callback


class SaveProbes(Callback):
    """Keeps each process's probe heads."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer, pl_module) -> None:
        bank = next(cb for cb in trainer.callbacks if hasattr(cb, "bundle")).bundle[0].bank
        torch.save([p.detach() for p in bank.parameters()], self.folder / f"rank{trainer.global_rank}.pt")


class Linger(Callback):
    """Says which step training has reached, and waits a little in each, so that a test can kill it there."""

    def __init__(self, file: str, seconds: float) -> None:
        self.file, self.seconds = Path(file), seconds

    def on_train_batch_end(self, trainer, pl_module, *args) -> None:
        beside = self.file.with_suffix(".tmp")
        beside.write_text(str(trainer.global_step))
        os.replace(beside, self.file)
        time.sleep(self.seconds)
