"""The tunnel on real images. Slow, and only where TUNNEL_DATA names a folder with cifar10.npz.

TUNNEL_DATA=data pytest -m slow tests/test_real_data.py
"""

import os
from pathlib import Path

import numpy as np
import pytest

from tunnel_lightning.__main__ import main
from tunnel_lightning.runs import load_run

DATA = Path(os.environ.get("TUNNEL_DATA", "")) / "cifar10.npz"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_file(), reason="TUNNEL_DATA names no folder with cifar10.npz")
def test_the_mlps_representation_collapses_on_cifar10(tmp_path):
    """Masarczyk et al. 2023, figure 1: the rank of the last layers falls to about the number of classes.

    Some ten minutes on two cores. Layers are looked at after their activation.
    """
    code = main(
        [
            "fit",
            *("--name", "cifar10", "--runs", str(tmp_path), "--data", "Arrays", "--data.path", str(DATA)),
            *("--model.backbone", "MLP", "--model.backbone.depth", "12", "--model.backbone.width", "1024"),
            *("--model.optimizer", "SGD", "--model.optimizer.lr", "0.05"),
            *("--model.optimizer.momentum", "0.9"),
            *("--monitor.taps.layers", "activation", "--monitor.profile.every_n_epochs", "0"),
            *("--monitor.probes.fit_images", "20000"),
            *("--trainer.max_epochs", "30", "--trainer.precision", "bf16-mixed"),
            "--trainer.enable_progress_bar=false",
        ]
    )
    assert code == 0
    run = load_run(tmp_path / "cifar10" / "version_0")
    last = max(run.steps)
    rank = run.profile(last, "rank_cov", "rtol=1e-3")
    assert len(rank.value) == 12
    assert rank.value[-1] <= 64
    assert rank.value[-1] <= rank.value.max() / 10
    probe = run.profile(last).layers_only()
    network = next(row.value for row in run.rows if row.step == last and row.measure == "accuracy")
    assert network > 0.5
    # accuracy stays through the tunnel while the rank falls
    assert np.abs(probe.value[-4:] - network).max() < 0.04
    assert 2 <= run.tunnel()["id95"].start <= 6
