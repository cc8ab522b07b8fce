"""A small run, shared by the tests of this room, and modules of someone's own."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tunnel_lightning.__main__ import main

FIT = [
    "fit",
    *("--data=Digits", "--model.backbone=MLP", "--model.backbone.depth=3", "--model.backbone.width=16"),
    *("--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--keep_every=2", "--name=tiny"),
    *("--monitor.probes=null", "--monitor.ranks=null", "--monitor.profile.start=false"),
]


@pytest.fixture(scope="session")
def fit() -> Callable[..., Path]:
    """Train a tiny MLP on Digits into RUNS and return its first run folder."""

    def train(runs: Path, *options: str) -> Path:
        assert main([*FIT, "--runs", str(runs), *options]) == 0
        return runs / "tiny" / "version_0"

    return train


@pytest.fixture(scope="session")
def trained(fit: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of five epochs that keeps every second checkpoint; not to be changed."""
    return fit(tmp_path_factory.mktemp("runs"), "--trainer.max_epochs=5")


@pytest.fixture
def run(trained: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(trained, tmp_path / "runs" / "tiny" / "version_0"))


MODULE = """
import torch
from torch import nn
from tunnel_lightning.backbones import MLP
from tunnel_lightning.data import Digits

class Wide(MLP):
    pass

class Mine(Digits):
    pass

network = nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def needs(width):
    return None

number = 3
"""


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A module in the current folder, under a name of its own."""
    name = f"mine_{abs(hash(tmp_path))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path not in ("", os.getcwd())])
    yield name
    sys.modules.pop(name, None)
