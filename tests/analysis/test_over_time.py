"""The profile at every checkpoint of a run."""

import os
import re
from pathlib import Path

import pytest
import torch

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis.over_time import spacing, taken
from tunnel_lightning.analysis.weights import checkpoints_of, torn_in
from tunnel_lightning.runs.analysis import load_analysis

FEW = ["--device=cpu", "--measures=ridge,ranks", "--ood=[]", "--fit_images=200", "--eval_images=100"]


@pytest.mark.parametrize("measure", ["probe_accuracy", "rank_cov"])
def test_the_raw_pixels_tell_the_same_at_every_checkpoint(run, measure):
    assert main(["analyze", str(run), "--ckpt=all", *FEW]) == 0
    found = {}
    for row in load_analysis(run).run.rows:
        if (row.measure, row.split) == (measure, "test"):
            found.setdefault((row.layer, row.variant), {})[row.step] = row.value
    pixels = [values for (layer, _), values in found.items() if layer == "input"]
    layers = [values for (layer, _), values in found.items() if layer != "input"]
    assert pixels
    for values in pixels:
        assert len(values) > 2
        assert len(set(values.values())) == 1
    assert any(len(set(values.values())) > 1 for values in layers), "the network has learnt"


SMALL = ["--device=cpu", "--measures=ridge", "--fit_images=100", "--eval_images=60"]


def over_time(run, *options):
    """The rows of an analysis at every checkpoint, and its notes."""
    assert main(["analyze", str(run), "--ckpt=all", *SMALL, *options]) == 0
    found = load_analysis(run)
    return found.run.rows, found.summary["notes"]


def steps_of(run):
    """The step of each checkpoint by its name."""
    paths = (run / "checkpoints").glob("*.ckpt")
    return {path.name: torch.load(path, weights_only=True)["global_step"] for path in paths}


def put(run, name, step):
    """A checkpoint of another step: the last one, said to be earlier or later."""
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    torch.save({**state, "global_step": step}, run / "checkpoints" / name)


def test_transfer_at_a_checkpoint_is_a_part_of_its_own(run, capsys):
    rows, _ = over_time(run)
    steps = sorted({row.step for row in rows})
    first, second = steps[:2]
    folder = run / "analysis/parts"
    names = sorted(path.name for path in folder.glob("step_*"))
    assert names == sorted(
        f"step_{s}{what}.npz" for s in (first, second) for what in ("", "_transfer-Glyphs")
    )
    told = " ".join(capsys.readouterr().err.split())
    assert f"over time: {len(steps) - 1} more checkpoints, for each two passes over Digits and Glyphs" in told
    for name in names[1:]:  # those of an analysis that was interrupted, or that did not measure transfer yet
        (folder / name).unlink()
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    again, _ = over_time(run)
    assert list(map(str, again)) == list(map(str, rows))
    assert {path: path.stat().st_mtime_ns for path in before} == before, "nothing else is measured again"
    assert sorted(path.name for path in folder.glob("step_*")) == names


def test_without_ridge_probes_there_is_no_transfer_at_a_checkpoint(run):
    rows, _ = over_time(run, "--measures=ranks")
    assert {row.dataset for row in rows} == {"Digits"}
    assert not list((run / "analysis/parts").glob("step_*transfer*"))


def test_the_best_checkpoint_does_not_come_between_the_kept_ones(run):
    there = steps_of(run)
    put(run, "best.ckpt", there["epoch=4.ckpt"] - 3)
    rows, notes = over_time(run)
    kept = sorted({step for name, step in there.items() if name != "best.ckpt"})
    assert sorted({row.step for row in rows}) == kept
    assert sorted({row.step for row in rows if row.measure == "weight_change"}) == kept[1:]
    epoch = there["epoch=2.ckpt"] // 2
    said = f"the checkpoints are {epoch} to {2 * epoch} steps apart: that weights move less over fewer"
    assert [note for note in notes if "steps apart" in note] == [f"{said} is no sign of rest"]


def test_the_best_checkpoint_where_there_is_nothing_else(run):
    for path in (run / "checkpoints").glob("epoch=*"):
        path.unlink()
    put(run, "best.ckpt", 5)
    rows, notes = over_time(run)
    assert sorted({row.step for row in rows}) == [5, steps_of(run)["last.ckpt"]]
    assert not [note for note in notes if "apart" in note]


def test_the_best_checkpoint_where_it_is_the_one_analysed():
    paths = [Path(name) for name in ("epoch=2.ckpt", "best.ckpt", "epoch=4.ckpt", "last.ckpt")]
    assert taken(paths, paths[1]) == paths
    assert taken(paths, paths[-1]) == [paths[0], *paths[2:]]


def test_of_one_step_the_kept_checkpoint_counts(run):
    put(run, "best.ckpt", steps_of(run)["epoch=2.ckpt"])
    assert [path.name for path in checkpoints_of(run)] == ["epoch=2.ckpt", "epoch=4.ckpt", "last.ckpt"]


@pytest.mark.parametrize("steps", [[4, 8, 12], [8, 4, 12], [4, 12], [4]])
def test_even_spacing_is_not_spoken_of(steps):
    assert spacing(steps) is None


@pytest.mark.parametrize("left", [0, 4000])
def test_a_torn_checkpoint_is_left_out_and_named(run, left):
    path = run / "checkpoints/epoch=2.ckpt"
    os.truncate(path, left)
    assert torn_in(run) == [path]
    rows, notes = over_time(run)
    there = {torch.load(p, weights_only=True)["global_step"] for p in checkpoints_of(run)}
    assert {row.step for row in rows} == there
    assert len(there) == 2
    (note,) = [note for note in notes if "can't be read" in note]
    assert note.startswith("checkpoints/epoch=2.ckpt can't be read as a checkpoint and is left out")


def test_where_no_checkpoint_can_be_read_that_is_said(run):
    for path in (run / "checkpoints").iterdir():
        os.truncate(path, 100)
    with pytest.raises(ValueError, match="can't be read as a checkpoint"):
        checkpoints_of(run)


class Hostile:
    def __reduce__(self):
        return (open, (os.environ["TUNNEL_HOSTILE"], "w"))


def test_a_hostile_checkpoint_refuses_all(run, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("TUNNEL_HOSTILE", str(tmp_path / "trace"))
    torch.save({"state_dict": {}, "global_step": 1, "x": Hostile()}, run / "checkpoints/epoch=2.ckpt")
    os.truncate(run / "checkpoints/epoch=4.ckpt", 100)
    assert main(["analyze", str(run), "--ckpt=all", *SMALL]) == 2
    assert re.search(r"epoch=2\.ckpt is refused", " ".join(capsys.readouterr().err.split()))
    assert not (tmp_path / "trace").exists()
    assert not (run / "analysis").exists()
