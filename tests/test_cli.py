"""The command line as a person uses it."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from tunnel_lightning.__main__ import COMMANDS, main
from tunnel_lightning.runs import ProfileTable, load_run

ROOT = Path(__file__).parent.parent
# Those of `continual` are parsed in tests/continual/test_command.py.
CONFIGS = sorted({*ROOT.glob("configs/*.yaml"), *ROOT.glob("configs/paper/*.yaml")})
SMALL = [
    "--data.samples_per_class=40",
    "--data.val_samples_per_class=20",
    "--data.test_samples_per_class=5",
    "--model.backbone.depth=3",
    "--model.backbone.width=32",
    "--trainer.enable_progress_bar=false",
    "--trainer.precision=32-true",
    "--trainer.log_every_n_steps=4",
]


def process(*arguments, **options):
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tunnel_lightning", *map(str, arguments)]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options
    )


def command(*arguments):
    child = process(*arguments)
    out, err = (text.decode() for text in child.communicate(timeout=240))
    return child.returncode, out, err


def fit(*arguments):
    """In this process, quicker than a new one."""
    return main(["fit", "--config", str(ROOT / "configs/mlp.yaml"), *SMALL, *map(str, arguments)])


def parsed(capsys, *arguments):
    """What `--print_config` prints, read."""
    with pytest.raises(SystemExit) as stop:
        main([*map(str, arguments), "--print_config"])
    assert stop.value.code in (0, None)
    return yaml.safe_load(capsys.readouterr().out)


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_need_no_torch(argument):
    code = f"""import sys
from tunnel_lightning.__main__ import main
main(["{argument}"])
print("torch" in sys.modules)"""
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.splitlines()[-1] == "False"
    if argument == "--help":
        assert all(name in out for name in COMMANDS)


def test_an_unknown_command_is_said(capsys):
    assert main(["fot"]) == 2
    assert "no command 'fot'" in capsys.readouterr().err


@pytest.mark.parametrize("name", [name for name, (_, home) in COMMANDS.items() if home is None])
def test_each_command_explains_itself(capsys, name):
    with pytest.raises(SystemExit):
        main([name, "--help"])
    out = capsys.readouterr().out
    for option in (
        "--config",
        "--monitor.taps",
        "--data",
        "--model.backbone",
        "--name",
        "--trainer.max_epochs",
    ):
        assert option in out
    assert ("--resume" in out) == (name == "fit")
    assert ("--out" in out) == (name == "predict")


@pytest.mark.parametrize("config", CONFIGS, ids=lambda path: str(path.relative_to(ROOT / "configs")))
def test_each_config_parses_and_is_short(capsys, config):
    found = parsed(capsys, "fit", "--config", config)
    assert found["name"] == config.stem
    assert len(config.read_text().splitlines()) < 50


def test_everything_can_be_overridden(capsys, tmp_path):
    more = tmp_path / "more.yaml"
    more.write_text("trainer: {max_epochs: 3}\nname: other\n")
    found = parsed(
        capsys,
        *("fit", "--config", ROOT / "configs/resnet.yaml", "--config", more),
        *("--data", "CIFAR10", "--model.backbone", "VGG", "--model.backbone.depth", "19"),
        *("--monitor.taps.layers", "block", "--monitor.probes.lr", "0.01", "--monitor.ranks", "null"),
    )
    assert found["data"]["class_path"].endswith(".CIFAR10")
    assert found["model"]["backbone"]["class_path"].endswith(".VGG")
    assert found["model"]["backbone"]["init_args"]["depth"] == 19
    assert found["monitor"]["taps"]["layers"] == "block"
    assert found["monitor"]["probes"]["lr"] == 0.01
    assert found["monitor"]["ranks"] is None
    assert (found["trainer"]["max_epochs"], found["name"]) == (3, "other")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A small run of two epochs."""
    runs = tmp_path_factory.mktemp("runs")
    assert fit("--runs", runs, "--trainer.max_epochs=2", "--name=small") == 0
    return runs / "small" / "version_0"


def test_a_run_folder_holds_everything(run):
    assert {"config.yaml", "manifest.json", "layers.csv", "profile.csv", "profile.png", "checkpoints"} <= {
        path.name for path in run.iterdir()
    }
    assert list(run.glob("events.out.tfevents.*"))
    assert {path.name for path in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt"}
    torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    found = load_run(run)
    assert found.manifest["seed"] == 0
    assert found.manifest["versions"]["torch"] == torch.__version__.split("+")[0]
    assert found.manifest["taps"]["hook_points"] == [f"layers.{i}.linear" for i in range(3)]
    assert [(layer.index, layer.role) for layer in found.layers] == [
        (0, "input"),
        (1, "layer"),
        (2, "layer"),
        (3, "layer"),
        (4, "head"),
    ]
    assert found.layers[1].flops == 2 * 256 * 32
    assert set(found.tunnel()) == {"id95", "id98", "ood"}
    assert {row.run_id for row in found.rows} == {"small/version_0"}


def test_the_table_is_printed(tmp_path):
    code, out, err = command(
        *("fit", "--config", ROOT / "configs/mlp.yaml", *SMALL, "--runs", tmp_path, "--trainer.max_epochs=1")
    )
    assert code == 0, err
    for text in (
        "raw pixels",
        "layers.2.linear",
        "Digits",
        "95 % rule",
        "98 % rule",
        "OOD rule",
        "run folder",
    ):
        assert text in out
    assert f"tensorboard --logdir {tmp_path / 'mlp' / 'version_0'}" in out.replace("\n", "")
    assert not err.strip(), "no warnings for a plain run"


def test_evaluation_commands(run, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    checkpoint = ["--config", str(run / "config.yaml"), "--ckpt_path", str(run / "checkpoints/best.ckpt")]
    assert main(["validate", *checkpoint]) == 0
    assert "val/accuracy" in capsys.readouterr().out
    assert main(["test", *checkpoint]) == 0
    assert "test/accuracy" in capsys.readouterr().out
    assert main(["predict", *checkpoint, "--out", "table.csv"]) == 0
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]
    header, *rows = csv.reader(Path("table.csv").read_text().splitlines())
    assert header[:4] == ["image", "label", "A", "B"]
    assert len(rows) == 26 * 5
    assert sum(map(float, rows[0][2:])) == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--monitor.taps.layers=layers.*.linaer"], "near: layers."),
        (["--data=Arrays", "--data.path=nowhere.npz"], "nowhere.npz"),
        (["--data=CIFAR10", "--data.root=nowhere"], "nowhere"),
        (["--model.backbone=Named", "--model.backbone.name=timm:resnet81"], "resnet"),
        (["--name=a/b"], "a/b"),
        (["--resume=nowhere"], "nowhere"),
        (["--data.samples_per_class=0"], "samples_per_class"),
        (["--trainer.limit_train_batches=2.5"], "limit_train_batches"),
        ([f"--runs={ROOT / 'pyproject.toml'}"], "pyproject.toml"),
        (["--ckpt_path=nowhere.ckpt"], "no checkpoint nowhere.ckpt"),
        ([f"--ckpt_path={ROOT / 'pyproject.toml'}"], "pyproject.toml can't be read as a checkpoint"),
    ],
)
def test_a_mistake_gets_one_sentence_and_leaves_nothing(tmp_path, arguments, said, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = str(ROOT / "configs/mlp.yaml")
    try:
        code = main(["fit", "--config", config, "--trainer.enable_progress_bar=false", *arguments])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert said in err
    assert "Traceback" not in err
    assert not list(tmp_path.glob("runs/*")), "a run that never began leaves no folder"


def mistake(capsys, *arguments):
    """What is said of a mistake: an exit status and a sentence."""
    try:
        code = main([*map(str, arguments)])
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    assert code in (1, 2)
    assert "Traceback" not in err
    assert len(err.splitlines()) <= 2
    return err


def test_resume_of_a_broken_folder_names_what_is_broken(run, tmp_path, capsys):
    folder = tmp_path / "copy"
    assert "is no run folder" in mistake(capsys, "fit", "--resume", folder)
    shutil.copytree(run, folder)
    config, last = folder / "config.yaml", folder / "checkpoints/last.ckpt"
    for text in ("trainer: [", "just words", "seed_everything: x"):
        config.write_text(text)
        assert f"{config} can't be read" in mistake(capsys, "fit", "--resume", folder), text
    shutil.copy(run / "config.yaml", config)
    last.write_bytes(last.read_bytes()[:5000])
    said = mistake(capsys, "fit", "--resume", folder)
    assert str(last) in said
    assert "copy best.ckpt" in said
    last.unlink()
    said = mistake(capsys, "fit", "--resume", folder)
    assert "is no run folder" in said
    assert "last.ckpt is missing" in said


def test_evaluation_says_what_is_wrong_with_its_files(run, tmp_path, capsys):
    config, best = ["--config", run / "config.yaml"], run / "checkpoints/best.ckpt"
    for name in ("validate", "test", "predict"):
        assert "give the checkpoint" in mistake(capsys, name, *config).replace("\n", " ")
    out = tmp_path / "nodir" / "table.csv"
    assert str(out) in mistake(capsys, "predict", *config, "--ckpt_path", best, "--out", out)
    said = mistake(capsys, "test", *config, "--ckpt_path", best, "--model.backbone.width=16")
    assert f"{best} is of another network" in said
    assert "size mismatch" in said


def test_a_pretrained_network_needs_no_checkpoint(monkeypatch, capsys):
    class Built(Exception):
        pass

    def build(cli):
        raise Built

    monkeypatch.setattr("tunnel_lightning.cli.TunnelCLI.before_instantiate_classes", build)
    backbone = (
        "--model.backbone=Named",
        "--model.backbone.name=resnet18",
        "--model.backbone.pretrained=true",
    )
    with pytest.raises(Built):
        main(["test", "--data=Glyphs", *backbone])


@pytest.mark.parametrize("epoch", [0, 1])
def test_an_interrupted_run_says_how_to_go_on(epoch, tmp_path, capsys, monkeypatch):
    def stop(self, trainer, pl_module):
        if trainer.current_epoch == epoch:
            raise KeyboardInterrupt

    monkeypatch.setattr("tunnel_lightning.callbacks.RunFolder.on_train_epoch_start", stop)
    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fit("--runs", tmp_path, "--trainer.max_epochs=3", "--monitor.profile.steps=[]")
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones
    err = capsys.readouterr().err
    assert "interrupted" in err
    if epoch:
        assert f"fit --resume {tmp_path / 'mlp' / 'version_0'}\n" in err
    else:
        assert "no checkpoint to go on from" in err
        assert not list(tmp_path.iterdir())


def test_resume_of_a_finished_run_says_so_and_goes_on_when_asked(run, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "runs" / "copy" / "version_0"
    shutil.copytree(run, folder)
    before = ProfileTable(folder / "profile.csv").rows
    assert main(["fit", "--resume", str(folder)]) == 0
    assert "nothing was left to train" in capsys.readouterr().out
    assert len(ProfileTable(folder / "profile.csv").rows) == len(before)
    assert main(["fit", "--resume", str(folder), "--trainer.max_epochs=4"]) == 0
    assert "nothing was left to train" not in capsys.readouterr().out
    assert load_run(folder).steps[-1] == 4 * (26 * 40 // 128)
    config = (folder / "config.yaml").read_text()
    assert config == (run / "config.yaml").read_text().replace("max_epochs: 2", "max_epochs: 4")
    assert "size mismatch" in mistake(capsys, "fit", "--resume", folder, "--model.backbone.width=16")
    monkeypatch.chdir(folder)
    for more in ([], ["--trainer.max_epochs=3"]):
        assert main(["fit", "--resume", ".", *more]) == 0
        out = capsys.readouterr().out
        assert "nothing was left to train" in out
        assert f"run folder   {folder}" in out
        assert (folder / "config.yaml").read_text() == config


def values(folder):
    rows = ProfileTable(folder / "profile.csv").rows
    return [row._replace(run_id="", value=0, se=0) for row in rows], np.array([(r.value, r.se) for r in rows])


def weights(folder):
    return torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["state_dict"]


def steps_in_events(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    return {tag: [e.step for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_killed_in_mid_epoch_it_goes_on_and_ends_as_if_uninterrupted(tmp_path):
    epochs = ["--trainer.max_epochs=4", "--data.augment=true"]
    assert fit("--runs", tmp_path, "--name=whole", *epochs) == 0
    step = tmp_path / "step"
    child = process(
        *("fit", "--config", ROOT / "configs/mlp.yaml", *SMALL, "--runs", tmp_path, "--name=parts", *epochs),
        "--trainer.callbacks=toys_callbacks.Linger",
        f"--trainer.callbacks.file={step}",
        "--trainer.callbacks.seconds=0.05",
    )
    whole, parts = tmp_path / "whole/version_0", tmp_path / "parts/version_0"
    per_epoch = 26 * 40 // 128
    deadline = time.time() + 120
    while not step.exists() or int(step.read_text()) < 2 * per_epoch + 3:
        assert child.poll() is None, child.communicate()
        assert time.time() < deadline
        time.sleep(0.02)
    child.send_signal(signal.SIGKILL)
    child.communicate()
    config = (parts / "config.yaml").read_text().replace("seconds: 0.05", "seconds: 0.0")
    (parts / "config.yaml").write_text(config)
    code, _, err = command("fit", "--resume", parts)
    assert code == 0, err
    assert weights(whole).keys() == weights(parts).keys()
    for key, value in weights(whole).items():
        assert torch.equal(value, weights(parts)[key]), key
    expected, found = values(whole), values(parts)
    assert expected[0] == found[0]
    np.testing.assert_array_equal(expected[1], found[1])
    assert steps_in_events(whole) == steps_in_events(parts)
    assert (parts / "config.yaml").read_text() == config
    assert [path.name for path in (tmp_path / "parts").iterdir()] == ["version_0"]


def test_two_processes_equal_one(tmp_path):
    shared = ["--trainer.max_epochs=1", "--monitor.profile.steps=[2]"]
    assert fit("--runs", tmp_path, "--name=one", "--data.batch_size=64", *shared) == 0
    code, _, err = command(
        *("fit", "--config", ROOT / "configs/mlp.yaml", *SMALL, "--runs", tmp_path, "--name=two", *shared),
        *(
            "--data.batch_size=32",
            "--trainer.accelerator=cpu",
            "--trainer.devices=2",
            "--trainer.strategy=ddp",
        ),
        *("--trainer.callbacks=toys_callbacks.SaveProbes", f"--trainer.callbacks.folder={tmp_path}"),
    )
    assert code == 0, err
    one, two = (ProfileTable(tmp_path / name / "version_0/profile.csv").rows for name in ("one", "two"))
    assert [row[1:10] + row[12:] for row in one] == [row[1:10] + row[12:] for row in two], "layers and counts"
    for a, b in zip(one, two, strict=True):
        if a.step == 0:  # equal weights: only the float32 products are cut at other places
            assert a.value == pytest.approx(b.value, rel=1e-6, nan_ok=True), a
        if a.measure == "rank_cov":
            assert a.value == b.value
        # training itself rounds differently on two processes
        assert a.value == pytest.approx(b.value, rel=0.02, abs=0.01, nan_ok=True), a
    heads = [torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert all(torch.equal(a, b) for a, b in zip(*heads, strict=True))
    assert heads[0][0].abs().sum() > 0
    assert [path.name for path in (tmp_path / "two").iterdir()] == ["version_0"]
