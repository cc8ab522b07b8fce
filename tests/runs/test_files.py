import json
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tunnel_lightning.runs import (
    RunError,
    machine_info,
    new_run_folder,
    package_versions,
    read_manifest,
    run_id_of,
    write_manifest,
)
from tunnel_lightning.runs.files import atomic, temporary


def test_numbering_is_the_highest_plus_one(tmp_path):
    parent = tmp_path / "mlp"
    for name in ("version_2", "version_10", "version_x", "version_", "other"):
        (parent / name).mkdir(parents=True)
    (parent / "version_11").write_text("a file takes the number too")
    assert new_run_folder(tmp_path, "mlp") == parent / "version_12"
    assert new_run_folder(tmp_path / "deep" / "root", "mlp").name == "version_0"


def test_numbers_as_lightnings_loggers_do(tmp_path):
    loggers = pytest.importorskip("lightning.pytorch.loggers")
    for name in ("version_0", "version_7"):
        (tmp_path / "mlp" / name).mkdir(parents=True)
    theirs = loggers.CSVLogger(tmp_path, name="mlp").version
    assert new_run_folder(tmp_path, "mlp").name == f"version_{theirs}"


def test_a_race_gives_every_one_its_own_folder(tmp_path):
    with ThreadPoolExecutor(16) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path, "mlp"), range(64)))
    assert len(set(folders)) == 64


def test_losing_the_race_takes_the_next_number(tmp_path, monkeypatch):
    real, lost = Path.mkdir, []

    def mkdir(self, *args, **kwargs):
        if self.name.startswith("version_") and not lost:
            lost.append(self)
            real(self)  # someone else was faster
        return real(self, *args, **kwargs)

    monkeypatch.setattr(Path, "mkdir", mkdir)
    assert new_run_folder(tmp_path, "mlp").name == "version_1"


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\\b"])
def test_bad_names(tmp_path, name):
    with pytest.raises(ValueError, match="name of one folder"):
        new_run_folder(tmp_path, name)


def test_run_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_id_of("runs/mlp/version_3") == "mlp/version_3"
    (tmp_path / "mlp" / "version_0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "mlp" / "version_0")
    assert run_id_of(".") == "mlp/version_0"


def test_manifest_merges(tmp_path):
    assert read_manifest(tmp_path) == {}
    write_manifest(tmp_path, seed=1, machine=machine_info())
    write_manifest(tmp_path, seed=2, folder=tmp_path)
    manifest = read_manifest(tmp_path)
    assert (manifest["seed"], manifest["folder"], manifest["machine"]) == (2, str(tmp_path), machine_info())


@pytest.mark.parametrize("text", ['{"seed": 1', "[1]"])
def test_broken_manifest_is_refused_and_kept(tmp_path, text):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(RunError, match=r"manifest\.json .*repair or delete"):
        write_manifest(tmp_path, seed=2)
    assert (tmp_path / "manifest.json").read_text() == text


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")

    def fail():
        with atomic(path) as file:
            file.write("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_the_old_file_stands_until_the_new_one_is_whole(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    with atomic(path) as file:
        file.write("new")
        file.flush()
        assert path.read_text() == "old"
        assert temporary(path).exists()
    assert path.read_text() == "new"
    assert not temporary(path).exists()


def test_machine_and_versions():
    machine = machine_info()
    assert machine["cores"] >= machine["cores_usable"] >= 1
    assert machine["processor"]
    assert json.loads(json.dumps(machine)) == machine
    versions = package_versions()
    assert versions["python"] == sys.version.split()[0].rstrip("+")
    assert set(versions) >= {"tunnel-lightning", "torch", "lightning", "torchvision", "torchmetrics", "numpy"}
    assert versions["avalanche-lib"]  # what a continual run goes on bit for bit with
    import numpy

    assert versions["numpy"] == numpy.__version__


def test_absent_package_is_none(monkeypatch):
    monkeypatch.setattr("tunnel_lightning.runs.files._PACKAGES", ("no-such-package-here",))
    assert package_versions()["no-such-package-here"] is None
