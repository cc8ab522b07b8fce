"""Two tasks of real images. Slow, and only where TUNNEL_DATA names a folder with cifar10.npz.

TUNNEL_DATA=data pytest -m slow tests/continual/test_real_data.py
"""

import os
from pathlib import Path

import pytest

from tunnel_lightning.__main__ import main
from tunnel_lightning.runs import ProfileTable, read_manifest

DATA = Path(os.environ.get("TUNNEL_DATA", "")) / "cifar10.npz"
CONFIG = Path(__file__).parents[2] / "configs" / "continual" / "tunnel_two_tasks.yaml"


@pytest.mark.slow
@pytest.mark.skipif(not DATA.is_file(), reason="TUNNEL_DATA names no folder with cifar10.npz")
def test_extractors_and_tunnels_of_two_halves_of_cifar10(tmp_path):
    """Some three minutes on two cores. Which side forgets is reported, not asserted: the papers disagree."""
    code = main(
        [
            *(
                "continual",
                "--config",
                str(CONFIG),
                "--runs",
                str(tmp_path),
                "--epochs",
                "4",
            ),
            *(
                "--data",
                "Arrays",
                "--data.path",
                str(DATA),
                "--data.batch_size",
                "128",
                "--data.augment",
                "true",
            ),
            *("--model.backbone", "VGG", "--model.backbone.depth", "13", "--model.backbone.width", "16"),
            *("--model.optimizer", "{class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}"),
            *("--sweeps.tune_epochs", "1", "--meter.test_images", "2000"),
        ]
    )
    assert code == 0
    folder = tmp_path / "tunnel_two_tasks" / "version_0"
    rows = ProfileTable(folder / "profile.csv").rows
    swaps = {
        (row.dataset, row.variant, row.index): row.value for row in rows if row.measure == "swap_accuracy"
    }
    layers = read_manifest(folder)["tunnel"]["layers"]
    for cut in range(1, layers + 1):
        print(cut, *(f"{swaps['task 1', pair, cut]:.3f}" for pair in ("E1T1", "E1T2", "E2T1", "E2T2")))
    learnt, forgot = swaps["task 1", "E1T1", 1], swaps["task 1", "E2T2", 1]
    assert learnt > 0.7
    assert learnt - forgot > 0.1
    # The whole network but its head put back is the network as it was.
    assert swaps["task 1", "E1T2", layers] == learnt
    assert swaps["task 2", "E2T2", 1] > 0.7
