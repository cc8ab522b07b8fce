"""The shipped configs run end to end, and what a config names by class path arrives as it was written."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tunnel_lightning.__main__ import main
from tunnel_lightning.continual.command import parse, settings_of
from tunnel_lightning.runs import ProfileTable, read_manifest

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "continual").glob("*.yaml"))
TWO_TASKS = next(path for path in CONFIGS if path.stem == "tunnel_two_tasks")
TINY = [
    "--epochs", "1", "--device", "cpu", "--sweeps.tune_epochs", "0", "--data.batch_size", "16",
    "--meter.train_images", "8", "--meter.test_images", "8", "--meter.reference_images", "8",
]  # fmt: skip
NETWORKS = {
    "split_digits": ["--model.backbone.width", "8", "--data.samples_per_class", "8"],
    "split_glyphs": [
        "--model.backbone.width", "4", "--scenario.tasks", "2", "--data.classes", "4",
        "--data.samples_per_class", "8", "--data.test_samples_per_class", "8",
    ],
    "tunnel_two_tasks": ["--model.backbone.width", "4", "--sweeps.tune_epochs", "1"],
}  # fmt: skip


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A file of coloured pictures, 12 of each of ten classes."""
    rng = np.random.default_rng(0)
    x, y = rng.integers(0, 256, (120, 32, 32, 3), dtype=np.uint8), np.arange(120) % 10
    path = tmp_path_factory.mktemp("pictures") / "pictures.npz"
    np.savez(path, train_images=x, train_labels=y, test_images=x, test_labels=y)
    return str(path)


def small(path, pictures):
    """A config's own settings on few pictures, and a narrow network."""
    cifar = "CIFAR" in path.read_text()
    data = ["--data", "Arrays", "--data.path", pictures, "--data.val_fraction", "0.1"] if cifar else []
    network = NETWORKS.get(path.stem, ["--model.backbone.width", "4", "--scenario.tasks", "5"])
    return ["--config", str(path), *data, *TINY, *network]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_run_to_the_end(path, pictures, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["continual", *small(path, pictures)]) == 0
    folder = tmp_path / "runs" / path.stem / "version_0"
    section = read_manifest(folder)["continual"]
    assert section["finished"]
    assert (folder / "report.html").exists()
    rows = ProfileTable(folder / "profile.csv").rows
    assert max(row.experience for row in rows) == len(section["tasks"]) - 1
    tried = {row.variant for row in rows if row.measure == "swap_accuracy"}
    assert tried >= {"E1T2", "E2T1"} | ({"E2+T1 tuned"} if path == TWO_TASKS else set())


def test_a_schedule_from_a_config_turns_the_learning_rate_down(pictures, tmp_path):
    """The schedule of the shipped config, with its milestones at the first two of three epochs."""
    rates = []

    class Heard:
        def before_training_epoch(self, strategy, **kwargs):
            rates.append(strategy.optimizer.param_groups[0]["lr"])

    from tunnel_lightning.continual.run import TaskSequence

    schedule = (
        "[{class_path: avalanche.training.plugins.LRSchedulerPlugin, init_args: {scheduler: "
        "{class_path: torch.optim.lr_scheduler.MultiStepLR, init_args: {milestones: [1, 2], gamma: 0.1}}}}]"
    )
    arguments = [*small(TWO_TASKS, pictures), "--epochs", "3", "--plugins", schedule]
    settings = settings_of(*parse(arguments))
    settings.plugins.append(Heard())
    sequence = TaskSequence(settings, tmp_path, lambda what, done, total: None)
    sequence.loop.train(sequence.stream.benchmark.train_stream[0])
    sequence.close()
    assert rates == pytest.approx([0.1, 0.01, 0.001])


def test_class_paths_in_lists_and_arguments_are_plain_values(pictures):
    arguments = [
        *small(TWO_TASKS, pictures),
        "--trainer", "{callbacks: [{class_path: lightning.pytorch.callbacks.Timer}]}",
        "--strategy", "{class_path: SCR, init_args: {augmentations: {class_path: torch.nn.Flatten}}}",
    ]  # fmt: skip
    settings = settings_of(*parse(arguments))
    for value in (settings.trainer["callbacks"][0], settings.strategy["init_args"]["augmentations"]):
        assert type(value) is dict
        assert type(value.get("init_args", {})) is dict
    scheduler = settings.plugins[0]["init_args"]["scheduler"]
    assert type(scheduler) is dict
    assert scheduler["init_args"]["milestones"] == [80, 120]


def test_callbacks_and_loggers_of_the_trainer_by_class_path(pictures, tmp_path):
    digits = next(path for path in CONFIGS if path.stem == "split_digits")
    trainer = (
        "{callbacks: [{class_path: lightning.pytorch.callbacks.Timer}], logger: "
        "{class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: %s, name: csv}}, "
        "profiler: {class_path: lightning.pytorch.profilers.SimpleProfiler}}"
    )
    arguments = [
        *small(digits, pictures), "--scenario.tasks", "2", "--runs", str(tmp_path),
        "--trainer", trainer % (tmp_path / "logs"),
    ]  # fmt: skip
    assert main(["continual", *arguments]) == 0
    folder = tmp_path / "split_digits" / "version_0"
    assert read_manifest(folder)["continual"]["loop"] == "lightning"
    assert "train/loss" in (tmp_path / "logs" / "csv" / "version_0" / "metrics.csv").read_text()


def test_a_storage_policy_is_made_from_its_class_path(pictures, tmp_path):
    """What strategies and plugins are given by class path is an object, with its own arguments."""
    plugin = (
        "[{class_path: ReplayPlugin, init_args: {mem_size: 20, storage_policy: {class_path: "
        "avalanche.training.storage_policy.ReservoirSamplingBuffer, init_args: {max_size: 20}}}}]"
    )
    arguments = [*small(TWO_TASKS, pictures), "--plugins", plugin, "--sweeps", "{swap: false, rewind: false}"]
    assert main(["continual", *arguments, "--runs", str(tmp_path)]) == 0
    state = torch.load(tmp_path / "tunnel_two_tasks/version_0/snapshots/task_2.pt", weights_only=True)
    assert state
