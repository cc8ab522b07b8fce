"""`analyze` from the command line: interrupted, asked for what can't be, and on a full disk."""

import errno
import os
import pickle
import shutil
import signal
import time

import pytest
import torch
from toys_analysis import FAST, files, python

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis import parts

# -- interruption -----------------------------------------------------------------------------------------


def test_ctrl_c_keeps_what_is_finished_and_says_how_to_go_on(run):
    options = [
        "analyze",
        str(run),
        "--device=cpu",
        "--measures=ridge,pwcca,masarczyk,nguyen",
        "--taps.layers=all",
    ]
    started = python(*options)
    folder = run / "analysis/parts"
    while started.poll() is None and not (folder / "transfer-Glyphs.npz").exists():
        time.sleep(0.05)
    started.send_signal(signal.SIGINT)
    _, err = started.communicate(timeout=240)
    assert started.returncode == 130, err
    assert f"interrupted: finished parts are kept in {folder}, and the same command goes on" in " ".join(
        err.split()
    )
    assert "Traceback" not in err
    assert not (run / "analysis/summary.json").exists()
    assert sorted(path.name for path in folder.iterdir()) == ["profile-Digits.npz", "transfer-Glyphs.npz"]


def test_ctrl_c_before_anything_is_finished_leaves_nothing(run, monkeypatch, capsys):
    def interrupted(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "own_set", interrupted)
    assert main(["analyze", str(run), *FAST]) == 130
    assert capsys.readouterr().err.splitlines()[-1] == "interrupted"
    assert not (run / "analysis").exists()


# -- mistakes ---------------------------------------------------------------------------------------------


def refused(capsys, *arguments, code=2):
    """The one sentence a command is refused with."""
    assert main(["analyze", *arguments]) == code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if not line.startswith(("analysing", "   "))]
    assert (len(lines), out) == (1, ""), err
    assert lines[0].startswith("error: ")
    return lines[0].removeprefix("error: ")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either a run folder"),
        (["RUN", "--model=torchvision:resnet18"], "give either a run folder"),
        (["--model=torchvision:resnet18"], "needs the images it is shown: for example --data CIFAR10"),
        (["--model=torchvision:resnet18", "--ckpt=best", "--data=Digits"], "--ckpt goes with a run"),
        (["RUN", "--pretrained=true"], "--weights and --pretrained go with --model"),
        (["RUN", "--weights=a.pt"], "--weights and --pretrained go with --model"),
        (["--model=torchvision:resnet1", "--data=Digits"], "resnet1"),
        (["--model=nothing_there:net", "--data=Digits"], "nothing_there"),
        (["RUN", "--measures=ridge,foo"], "no measure 'foo': choose among ridge,"),
        (["RUN", "--protocol=foo"], "no protocol 'foo': choose one of masarczyk, harun, nguyen"),
        (["RUN", "--protocol=harun", "--measures=ridge"], "leave out --measures, or the protocol"),
        (
            ["RUN", "--protocol=masarczyk", "--taps.pool=2x2", "--taps.max_features=9"],
            "--protocol masarczyk sets measures, taps.pool, taps.max_features itself: leave out --taps.pool and "
            "--taps.max_features, or the protocol",
        ),
        (["RUN", "--config=harun.yaml"], "leave out --taps.pool, or the protocol"),
        (["RUN", "--formats=png,gif"], "gif"),
        (["RUN", "--taps.layers=blub*"], "taps.layers: 'blub*' matches no module of MLP"),
        (["RUN", "--taps.pool=foo"], "--taps.pool: give 2x2, flatten, avg, token or gram, not foo"),
        (["RUN", "--ckpt=epoch=7.ckpt"], "there is no checkpoint epoch=7.ckpt"),
        (["RUN", "--processes=0"], "processes must be at least 1, got 0"),
        (["RUN", "--device=tpu"], "no device 'tpu': choose one of auto, cpu, cuda, mps"),
        (["RUN", "--precision=8"], "no precision '8': choose one of 32-true"),
        (["RUN", "--fit_images=5"], "5 training images are fewer than its 10 classes"),
        (["RUN", "--memory_gb=1e-6"], "layer 'input' with 64 features needs"),
        (["RUN", "--blub=1"], "unrecognized arguments: --blub=1"),
        (["RUN", "--fit_images=many"], "--fit_images: give a whole number, not many"),
        (
            ["RUN", "--data=Foo"],
            "--data: there is no Foo: give a name, such as Digits or MLP, or a class path",
        ),
        (["RUN", "--out=RUN"], "is a run folder: choose another place"),
        (["RUN", "--out=RUN/config.yaml"], "config.yaml is a file: give the analysis a folder of its own"),
        (["RUN", "--out=RUN/checkpoints"], "checkpoints holds something else than an analysis"),
        (["nowhere"], "nowhere is no run folder: it has no config.yaml"),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(run, capsys, monkeypatch, tmp_path, arguments, said):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "harun.yaml").write_text("protocol: harun\ntaps:\n  pool: avg\n")
    before = files(tmp_path)
    asked = [each.replace("RUN", str(run)) for each in arguments]
    sentence = refused(capsys, *asked)
    assert said in sentence
    assert files(tmp_path) == before
    assert not (run / "analysis").exists()
    assert not any(path.name not in ("tiny",) for path in (tmp_path / "runs").iterdir())


def test_a_folder_of_something_else_is_refused_before_anything_is_read(run, capsys, monkeypatch, tmp_path):
    def read(*args, **settings):
        raise AssertionError("read before the folder was looked at")

    monkeypatch.setattr("tunnel_lightning.analysis.asked.load_run_subject", read)
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["analyze", str(run), f"--out={tmp_path}"]) == 2
    assert "holds something else than an analysis" in capsys.readouterr().err
    (run / "analysis").mkdir()
    (run / "analysis/notes.txt").write_text("mine")
    assert main(["analyze", str(run)]) == 2
    assert "holds something else than an analysis" in capsys.readouterr().err


def test_nothing_is_analysed_of_a_layer_that_is_not_there(run, capsys):
    assert main(["analyze", str(run), "--device=cpu", "--taps.layers=blub"]) == 2
    assert "analysing" not in capsys.readouterr().err


def test_runs_and_checkpoints_that_cannot_be_analysed(run, capsys):
    last = run / "checkpoints/last.ckpt"
    whole = last.read_bytes()

    class Evil:
        def __reduce__(self):
            return (os.mkdir, (str(run / "made"),))

    last.write_bytes(pickle.dumps(Evil()))
    assert "is refused" in refused(capsys, str(run))
    torch.save({"state_dict": {}, "evil": Evil()}, last)
    assert "is refused" in refused(capsys, str(run))
    assert not (run / "made").exists()
    last.write_bytes(whole[:1000])
    assert "last.ckpt" in refused(capsys, str(run))
    last.write_bytes(whole)
    config = run / "config.yaml"
    config.write_text(config.read_text().replace("width: 16", "width: 17"))
    assert "config.yaml" in refused(capsys, str(run))
    shutil.rmtree(run / "checkpoints")
    assert "has no checkpoint yet" in refused(capsys, str(run))
    assert not (run / "analysis").exists()


@pytest.mark.parametrize(
    ("where", "kept"), [("parts/profile-Digits.npz", False), ("summary.json", True), ("report.html", True)]
)
def test_a_full_disk_is_a_sentence_and_another_code(run, capsys, monkeypatch, where, kept):
    replace = os.replace

    def full(source, target):
        if str(target).endswith(where):
            raise OSError(errno.ENOSPC, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    sentence = refused(capsys, str(run), *FAST, code=1)
    assert sentence.startswith(f"{run}/analysis/")
    assert sentence.endswith(f"{where}: No space left on device")
    assert (run / "analysis").exists() == kept
    assert not (run / "analysis/parts/.new").exists()
    assert not (run / "analysis/summary.json").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_can_not_be_written(run, capsys):
    run.chmod(0o555)
    try:
        assert "Permission denied" in refused(capsys, str(run), *FAST)
    finally:
        run.chmod(0o755)


def test_an_unexpected_error_is_not_hidden(run, monkeypatch):
    def broken(*args):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(parts, "own_set", broken)
    with pytest.raises(ZeroDivisionError):
        main(["analyze", str(run), *FAST])


@pytest.mark.slow
def test_a_mistake_is_said_by_one_of_two_processes(run):
    done = python("analyze", str(run), "--processes=2", "--taps.layers=blub", "--device=cpu")
    out, err = done.communicate(timeout=240)
    assert (done.returncode, out) == (2, "")
    assert err.count("error:") == 1
    assert "Traceback" not in err
    assert not (run / "analysis").exists()
