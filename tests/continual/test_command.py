"""The command: a run from its config to its page, gone on with after an interruption, and mistakes in a sentence."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunnel_lightning.__main__ import main
from tunnel_lightning.continual import run as module
from tunnel_lightning.continual.command import parse, settings_of
from tunnel_lightning.runs import ProfileTable, read_layers, read_manifest, write_manifest
from tunnel_lightning.runs.continual import load_continual

CONFIGS = sorted((Path(__file__).parents[2] / "configs" / "continual").glob("*.yaml"))
SMALL = [
    "--data", "Digits", "--data.samples_per_class", "12", "--data.batch_size", "8",
    "--model.backbone", "MLP", "--model.backbone.depth", "3", "--model.backbone.width", "16",
    "--meter.train_images", "24", "--meter.test_images", "24", "--scenario.tasks", "3",
    "--data.classes", "6", "--device", "cpu",
]  # fmt: skip
MOMENTUM = "{class_path: torch.optim.SGD, init_args: {lr: 0.05, momentum: 0.9}}"


def continual(*arguments, runs, code=0):
    """Run the command in this process; the folder of the run."""
    assert main(["continual", *SMALL, "--runs", str(runs), "--name", "small", *arguments]) == code
    return runs / "small" / "version_0"


def table(folder):
    """Everything that was measured, without the run's own name."""
    return [row._replace(run_id="") for row in ProfileTable(folder / "profile.csv").rows]


def same(a, b):
    return len(a) == len(b) and all(
        x[:10] == y[:10] and np.array_equal([x.value, x.se], [y.value, y.se], equal_nan=True)
        for x, y in zip(a, b, strict=True)
    )


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_read(path):
    parser, config = parse(["--config", str(path)])
    settings = settings_of(parser, config)
    assert settings.model["backbone"]["class_path"].startswith("tunnel_lightning.backbones")
    assert settings.batch_size == settings.data["init_args"]["batch_size"]


def test_help_does_not_import_avalanche():
    code = (
        "import sys, contextlib, io\nfrom tunnel_lightning.__main__ import main\n"
        "with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "    main(['continual', '--help'])\n"
        "assert '--strategy' in out.getvalue()\nassert 'avalanche' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_run_leaves_everything(tmp_path, capsys):
    folder = continual("--strategy", "Replay", "--meter.reference_images", "20", runs=tmp_path)
    said = capsys.readouterr().out
    assert "report.html" in said
    rows = table(folder)
    assert {row.experience for row in rows} == {-1, 0, 1, 2}
    assert {row.variant for row in rows if row.measure == "probe_accuracy"} == {
        "fixed", "online", "refit_all", "refit_task",
    }  # fmt: skip
    assert {row.variant for row in rows if row.measure == "swap_accuracy"} == {"E1T1", "E1T2", "E2T1", "E2T2"}
    assert [layer.name for layer in read_layers(folder)] == [f"layers.{i}.linear" for i in range(3)]
    section = read_manifest(folder)["continual"]
    assert section["finished"]
    assert section["loop"] == "native"
    assert section["resumable"] is None
    assert [task["classes"] for task in section["tasks"]] == [["0", "1"], ["2", "3"], ["4", "5"]]
    assert (folder / "report.html").stat().st_size > 10_000
    shown = EventAccumulator(str(folder), size_guidance={"images": 0})
    shown.Reload()
    assert len(list(folder.glob("events.out.tfevents.*"))) == 1
    scalars = set(shown.Tags()["scalars"])
    assert {"train/loss", "accuracy/task_1", "accuracy/average", "accuracy/forgetting"} <= scalars
    assert "layers/probe_accuracy_refit_all/03_layers.2.linear" in scalars
    assert {"tasks/task_accuracy", "tasks/time_all", "tasks/swaps_1"} <= set(shown.Tags()["images"])
    accuracy = {row.step: row.value for row in rows if row.layer == "network" and row.dataset == "task 1"
                and (row.measure, row.variant) == ("accuracy", "network")}  # fmt: skip
    assert {event.step: event.value for event in shown.Scalars("accuracy/task_1")} == pytest.approx(accuracy)


@pytest.mark.parametrize("stop", [0, 1])
def test_a_run_gone_on_with_equals_one_that_was_not_stopped(tmp_path, monkeypatch, stop):
    arguments = ("--strategy", "Replay", "--model.optimizer", MOMENTUM, "--epochs", "2")
    whole = continual(*arguments, runs=tmp_path / "whole")

    class Killed(Exception):
        pass

    keep = module.TaskSequence._keep

    def killed(self, index, rows):
        if index == stop + 1:
            self.table.append(rows)  # as far as a killed process may have come
            raise Killed
        keep(self, index, rows)

    with monkeypatch.context() as patch:
        patch.setattr(module.TaskSequence, "_keep", killed)
        with pytest.raises(Killed):
            continual(*arguments, runs=tmp_path / "cut")
    cut = tmp_path / "cut" / "small" / "version_0"
    assert not read_manifest(cut)["continual"].get("finished")
    assert main(["continual", "--resume", str(cut)]) == 0
    assert same(table(cut), table(whole))
    one, other = (torch.load(each / "snapshots/task_3.pt", weights_only=True) for each in (cut, whole))
    assert all(torch.equal(one[name], other[name]) for name in other)
    assert (cut / "config.yaml").read_text().replace("cut", "whole") == (whole / "config.yaml").read_text()


def test_a_network_that_grows_a_column_for_each_task_is_measured_as_it_grows(tmp_path, capsys):
    folder = continual("--strategy", "PNNStrategy", "--scenario.kind", "task_incremental", runs=tmp_path)
    layers = [layer.name for layer in read_layers(folder)]
    assert layers  # of the network that the strategy brings
    rows = table(folder)
    probes = {row.layer for row in rows if row.measure == "probe_accuracy" and row.variant == "refit_task"}
    assert set(layers) <= probes
    assert not [row for row in rows if row.measure == "swap_accuracy"]
    assert "new layers with each task" in capsys.readouterr().err


def test_a_finished_run_is_not_learnt_again(tmp_path, monkeypatch):
    folder = continual("--scenario.tasks", "2", runs=tmp_path)
    before = (folder / "profile.csv").read_bytes()
    monkeypatch.setattr(module.TaskSequence, "learn_all", None)
    assert main(["continual", "--resume", str(folder)]) == 0
    assert (folder / "profile.csv").read_bytes() == before


def test_task_incremental_with_everything_tried_afterwards(tmp_path):
    folder = continual(
        "--scenario.kind", "task_incremental", "--scenario.tasks", "2", "--sweeps.tune_epochs", "1",
        "--sweeps.freeze", "true", runs=tmp_path,
    )  # fmt: skip
    rows = table(folder)
    tried = {(row.measure, row.variant) for row in rows if row.experience == 1 and "_accuracy" in row.measure}
    assert {("swap_accuracy", "E2+T1 tuned"), ("swap_accuracy", "E2 tuned"), ("freeze_accuracy", "1..k"),
            *(("rewind_accuracy", f"{k}..k") for k in (1, 2, 3))} <= tried  # fmt: skip
    own = {row.dataset: row.value for row in rows if row.layer == "network" and row.experience == 1
           and (row.measure, row.variant) == ("accuracy", "network")}  # fmt: skip
    swaps = {
        (row.dataset, row.index, row.variant): row.value for row in rows if row.measure == "swap_accuracy"
    }
    assert swaps["task 2", 1, "E2T2"] == own["task 2"]
    # All layers frozen for the last task: what the first task's head says of the first task has not moved.
    frozen = [row for row in rows if row.measure == "freeze_accuracy" and row.dataset == "task 1"]
    assert frozen[-1].value == swaps["task 1", 1, "E1T1"]
    assert read_manifest(folder)["tunnel"]["layers"] == 3


def test_exits_are_trained_and_measured(tmp_path):
    plain = continual("--scenario.tasks", "2", runs=tmp_path / "plain")
    folder = continual("--scenario.tasks", "2", "--exits.layers", "default", runs=tmp_path / "exits")
    rows = table(folder)
    found = [row for row in rows if row.measure == "exit_accuracy" and row.experience == 1]
    assert {row.layer for row in found} == {f"layers.{i}.linear" for i in range(3)}
    assert {row.variant for row in rows if row.measure == "early_exit_accuracy"} >= {
        "threshold=0.9",
        "most confident",
    }
    few = continual(
        "--scenario.tasks", "2", "--exits.layers", "[layers.0.linear, layers.2.linear]",
        "--taps.layers", "[layers.1.linear, layers.2.linear]", runs=tmp_path / "few",
    )  # fmt: skip
    number = {layer.name: layer.index for layer in read_layers(few)}
    at = {row.layer: row.index for row in table(few) if row.measure == "exit_accuracy"}
    assert at["layers.2.linear"] == number["layers.2.linear"]
    # Detached exits leave the network's weights as they were.
    one, other = (torch.load(each / "snapshots/task_2.pt", weights_only=True) for each in (folder, plain))
    assert all(torch.equal(one[f"backbone.{name}"], other[name]) for name in other)


def test_seeds_and_depths_make_members(tmp_path):
    folder = continual("--seeds", "2", "--depths", "[2, 3]", "--scenario.tasks", "2", runs=tmp_path)
    members = json.loads((folder / "sweep.json").read_text())["members"]
    assert [member["folder"] for member in members] == [
        "depth=2-seed=0", "depth=2-seed=1", "depth=3-seed=0", "depth=3-seed=1",
    ]  # fmt: skip
    assert [len(read_layers(folder / member["folder"])) for member in members] == [2, 2, 3, 3]
    assert (folder / "report.html").exists()
    first = ProfileTable(folder / "depth=2-seed=0" / "profile.csv").path.stat().st_mtime_ns
    assert main(["continual", "--resume", str(folder)]) == 0
    assert (folder / "depth=2-seed=0" / "profile.csv").stat().st_mtime_ns == first


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--strategy", "Reply"], "Replay"),
        (["--scenario.tasks", "7"], "7 tasks"),
        (["--epochs", "0"], "epochs"),
        (["--strategy", "EWC"], "ewc_lambda"),
        (["--exits.layers", "default", "--strategy", "LaMAML"], "exits"),
        (["--device", "warp9"], "--device warp9: there is no such device here, give auto"),
        (["--meter.test_images", "3"], "meter.test_images is 3; give at least 4"),
        (["--meter.reference_images", "2"], "meter.reference_images is 2; give at least 4"),
        (["--epochs", "two"], "--epochs: give a whole number, not two"),
        (["--taps.layers", "nothing.*"], "nothing"),
        (["--model.backbone", "nobody.Knows"], "nobody"),
        (["--trainer", "{accumulate_grad_batches: 2}"], "accumulate_grad_batches"),
        (["--classic", "avalanche.benchmarks.SplitMNIST"], "not both"),
        (["--seeds", "0"], "seeds"),
        (["--data", "Nope"], "--data: there is no Nope"),
        (["--data.foo", "3"], "Option 'foo'"),
        (["--model.backbone", "Nope"], "--model.backbone: there is no Nope"),
        (["--depths", "[2, 2]"], "once"),
        (["--depths", "[0]"], "depth"),
        (["--num_workers", "-1"], "num_workers"),
        (["--seed_everything", "-1"], "seed_everything"),
        (["--sweeps.tune_epochs", "-1"], "tune_epochs"),
        (["--exits", "{weight: -1}"], "weight"),
        (["--exits", "{thresholds: [2.0]}"], "thresholds"),
        (["--model.optimizer", "torch.optim.LBFGS"], "LBFGS"),
        (["--model.label_smoothing", "7"], "model.label_smoothing is 7"),
        (
            ["--strategy", "{class_path: Replay, init_args: {mem_size: -3}}"],
            "Replay: mem_size is -3; give a whole",
        ),
        (
            ["--strategy", "{class_path: Replay, init_args: {mem_size: x}}"],
            "Replay: mem_size is 'x'; give a whole",
        ),
        (
            ["--strategy", "{class_path: EWC, init_args: {ewc_lambda: x}}"],
            "EWC: ewc_lambda is 'x'; give a number",
        ),
        (
            ["--plugins", "[{class_path: ReplayPlugin, init_args: {mem_size: 0}}]"],
            "ReplayPlugin: mem_size is 0",
        ),
        (
            ["--strategy", "NCMOracle"],
            "put it under plugins; it needs a strategy that answers by class means",
        ),
        (["--strategy", "CoPEPlugin"], "take strategy CoPE"),
        (["--trainer", "{limit_train_batches: 0}"], "limit_train_batches is 0; give how many batches"),
        (["--trainer", "{limit_train_batches: 1.5}"], "limit_train_batches is 1.5"),
        (["--trainer", "{gradient_clip_val: -1}"], "gradient_clip_val is -1; give a number above 0"),
        (["--trainer", "{log_every_n_steps: x}"], "log_every_n_steps is x"),
        (["--exits.layers", "nope"], "exits.layers: "),
        (["--exits", "{}", "--strategy", "FeatureReplay"], "FeatureReplay takes the network apart"),
        (["--exits", "{}", "--strategy", "CWRStar"], "exits"),
        (["--exits.layers", "[]"], "exits.layers"),
        (
            ["--exits.layers", "head", "--scenario.kind", "task_incremental"],
            "exits.layers: head names the classifier",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(tmp_path, capsys, arguments, said):
    folder = continual(*arguments, runs=tmp_path, code=2)
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert said in message
    assert not folder.exists()


@pytest.mark.parametrize("strategy", ["JointTraining", "ICaRL", "GDumb"])
def test_strategies_that_differ_run_to_the_end(tmp_path, strategy):
    arguments = {"ICaRL": ["--strategy", "{class_path: ICaRL, init_args: {memory_size: 20}}"]}
    folder = continual(
        *arguments.get(strategy, ["--strategy", strategy]), "--scenario.tasks", "2", runs=tmp_path
    )
    assert read_manifest(folder)["continual"]["finished"]
    assert (folder / "report.html").exists()


def test_the_trainer_is_taken_where_the_config_asks_for_it(tmp_path):
    folder = continual(
        "--scenario.tasks", "2", "--trainer", "{gradient_clip_val: 1.0}", "--sweeps.swap", "false",
        "--sweeps.rewind", "false", runs=tmp_path,
    )  # fmt: skip
    assert read_manifest(folder)["continual"]["loop"] == "lightning"


def test_joint_exits_train_the_network_too(tmp_path):
    plain = continual("--scenario.tasks", "2", runs=tmp_path / "plain")
    folder = continual("--scenario.tasks", "2", "--exits", "{joint: true}", runs=tmp_path / "joint")
    one, other = (torch.load(each / "snapshots/task_2.pt", weights_only=True) for each in (folder, plain))
    assert not torch.equal(one["backbone.layers.0.linear.weight"], other["layers.0.linear.weight"])


def test_a_run_killed_before_its_first_state_begins_again(tmp_path):
    whole = continual("--scenario.tasks", "2", runs=tmp_path / "whole")
    cut = continual("--scenario.tasks", "2", runs=tmp_path / "cut")
    section = read_manifest(cut)["continual"]
    write_manifest(cut, continual={**section, "finished": False})
    (cut / "state.pt").unlink()
    assert main(["continual", "--resume", str(cut)]) == 0
    assert same(table(cut), table(whole))


def test_a_killed_process_loses_at_most_the_task_at_hand(tmp_path):
    arguments = ["--strategy", "Replay", "--epochs", "40", "--scenario.tasks", "3"]
    whole = continual(*arguments, runs=tmp_path / "whole")
    process = subprocess.Popen(
        [sys.executable, "-m", "tunnel_lightning", "continual", *SMALL, *arguments,
         "--runs", str(tmp_path / "cut"), "--name", "small"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    cut = tmp_path / "cut" / "small" / "version_0"
    while not (cut / "snapshots" / "task_1.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.kill()
    process.wait()
    assert not read_manifest(cut)["continual"].get("finished")
    assert main(["continual", "--resume", str(cut)]) == 0
    assert same(table(cut), table(whole))


def test_settings_of_a_run_that_goes_on_stay_and_its_table_is_whole(tmp_path, capsys):
    folder = continual("--scenario.tasks", "2", runs=tmp_path)
    assert main(["continual", "--resume", str(folder), "--epochs", "3"]) == 2
    assert "alone" in capsys.readouterr().err
    section = read_manifest(folder)["continual"]
    write_manifest(folder, continual={**section, "finished": False})
    whole = ProfileTable(folder / "profile.csv")
    whole.write(whole.rows[:20])
    assert main(["continual", "--resume", str(folder)]) == 2
    assert "20 rows" in capsys.readouterr().err
    (folder / "manifest.json").unlink()
    assert main(["continual", "--resume", str(folder)]) == 2
    assert "manifest.json" in capsys.readouterr().err


def test_a_folder_that_is_no_run_and_a_broken_state_are_refused(tmp_path, capsys):
    assert main(["continual", "--resume", str(tmp_path)]) == 2
    assert "config.yaml" in capsys.readouterr().err
    folder = continual("--scenario.tasks", "2", runs=tmp_path)
    section = read_manifest(folder)["continual"]
    write_manifest(folder, continual={**section, "finished": False})
    for broken in (b"nothing", b"abc", b""):
        (folder / "state.pt").write_bytes(broken)
        assert main(["continual", "--resume", str(folder)]) == 2
        assert "state.pt is damaged" in capsys.readouterr().err
    torch.save({"done": 1}, folder / "state.pt")
    assert main(["continual", "--resume", str(folder)]) == 2
    assert "state.pt is no state" in capsys.readouterr().err


def test_a_lost_snapshot_is_said_where_networks_are_put_together(tmp_path, capsys):
    folder = continual("--scenario.tasks", "2", runs=tmp_path)
    section = read_manifest(folder)["continual"]
    snapshot = folder / "snapshots" / "task_1.pt"
    for loss, said in ((snapshot.unlink, "is missing"), (lambda: snapshot.write_bytes(b"abc"), "is damaged")):
        write_manifest(folder, continual={**section, "finished": False})
        loss()
        assert main(["continual", "--resume", str(folder)]) == 2
        assert f"task_1.pt {said}" in capsys.readouterr().err
        assert not read_manifest(folder)["continual"]["finished"]


@pytest.mark.parametrize(("benchmark", "single"), [("split", True), ("heads", False), ("shifted", False)])
def test_a_classic_stream_with_one_head_is_shown_within_its_tasks(tmp_path, capsys, benchmark, single):
    arguments = ["--data", "null", "--classic", f"continual.classics.{benchmark}", "--sweeps.swap", "false"]
    small = [
        each for pair in zip(SMALL[::2], SMALL[1::2], strict=True) if "data" not in pair[0] for each in pair
    ]
    code = main(["continual", *small, *arguments, "--sweeps.rewind", "false", "--runs", str(tmp_path)])
    assert code == 0
    folder = tmp_path / "continual" / "version_0"
    assert load_continual(folder).single_head is single
    assert ("within" in capsys.readouterr().out) is single


def test_a_scenario_offers_only_kinds_it_takes(capsys):
    assert main(["continual", *SMALL, "--scenario.kind", "foo"]) == 2
    said = capsys.readouterr().err
    assert "class_incremental" in said
    assert "classic" not in said
