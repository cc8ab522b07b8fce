"""Several runs and their checkpoints."""

import shutil

import pytest

from tunnel_lightning.analysis.compare import compare
from tunnel_lightning.analysis.together import check_memory, gather


@pytest.fixture(scope="module")
def pair(trained, tmp_path_factory):
    """Two copies of a run of five epochs, side by side."""
    home = tmp_path_factory.mktemp("pair")
    return [shutil.copytree(trained, home / f"version_{number}") for number in range(2)]


def kept(run):
    return sorted(path.name for path in (run / "checkpoints").iterdir() if path.name.startswith("epoch"))[0]


@pytest.mark.parametrize("folder", ["", "checkpoints/"])
def test_a_path_starts_in_each_run(pair, folder, monkeypatch, tmp_path):
    name = kept(pair[0])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for path in (tmp_path / name, tmp_path / "checkpoints" / name):
        path.write_text("something else of this name, here")
    members = gather(pair, ckpt=folder + name)
    assert [member.subject.checkpoint for member in members] == [f"checkpoints/{name}"] * 2
    last = gather(pair)[0].subject.step
    assert all(member.subject.step < last for member in members)


def test_a_comparison_says_which_was_asked_for(pair, tmp_path):
    asked = f"checkpoints/{kept(pair[0])}"
    found = compare(pair, ckpt=asked, images=32, device="cpu", out=tmp_path / "out")
    assert found.summary["checkpoint"] == found.summary["settings"]["checkpoint"] == asked
    assert {run["checkpoint"] for run in found.summary["runs"]} == {asked}


@pytest.mark.parametrize("where", ["{run}/checkpoints/last.ckpt", "../version_0/checkpoints/last.ckpt"])
def test_one_checkpoint_for_all_is_refused(pair, where):
    with pytest.raises(
        ValueError, match="would be one file for all runs: give best, last, or a path in each"
    ):
        gather(pair, ckpt=where.format(run=pair[0]))


def test_a_checkpoint_that_one_run_lacks(pair, tmp_path):
    name = kept(pair[0])
    other = shutil.copytree(pair[1], tmp_path / "version_2")
    (other / "checkpoints" / name).unlink()
    with pytest.raises(
        FileNotFoundError, match=f"there is no checkpoint {other}/{name}: .* choose one"
    ) as caught:
        gather([pair[0], other], ckpt=name)
    assert "last.ckpt" in str(caught.value)


def test_little_memory_is_not_told_as_none(pair):
    with pytest.raises(ValueError, match=r"needs 0\.\d*[1-9]\d* GiB") as caught:
        check_memory(gather(pair), 32, 1000)
    assert " 0.00 " not in str(caught.value)
    assert "the limit (memory_gb) is 9.3e-07 GiB" in str(caught.value)
