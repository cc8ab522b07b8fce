"""The folder of an inversion: written, found and read, and what is said of a damaged one."""

import json

import numpy as np
import pytest

from tunnel_lightning.runs import Row, RunError
from tunnel_lightning.runs.inversion import inversion_folder, load_inversion, verdicts, write_inversion

SUMMARY = {"layers": [{"name": "a", "index": 1}], "images": {"Digits": []}, "networks": {"trained": ""}}


@pytest.fixture
def folder(tmp_path):
    row = Row(
        "mlp/version_0", 9, 1, -1, "test", "Digits", "a", 1, "inversion_psnr", "adam@trained", 12.5, 0.5, 2
    )
    curves = {"psnr/Digits/trained": np.array([[[10.0, 12.0], [14.0, 14.0]]])}
    pictures = {"original/Digits": np.zeros((2, 4, 4, 1), np.uint8)}
    return write_inversion(tmp_path / "run" / "invert", [row], pictures, curves, SUMMARY)


def test_what_is_written_is_read(folder):
    for place in (folder, folder.parent):
        assert inversion_folder(place) == folder
        found = load_inversion(place)
        assert (found.rows[0].value, found.sets, found.networks) == (12.5, ["Digits"], ["trained"])
        assert found.pictures["original/Digits"].shape == (2, 4, 4, 1)
    mean, deviation = found.values("psnr", "Digits", "trained")
    assert (mean.tolist(), deviation.tolist()) == ([12.5], [pytest.approx(3 / 2**0.5)]), (
        "starts averaged first"
    )
    mean, deviation = found.values("ssim", "Digits", "trained")
    assert np.isnan([*mean, *deviation]).all()


def test_a_folder_without_one_has_none(tmp_path):
    assert inversion_folder(tmp_path) is None
    with pytest.raises(RunError, match="has no finished inversion"):
        load_inversion(tmp_path)
    (tmp_path / "summary.json").write_text('{"schema": 1, "run_id": "an analysis"}')
    assert inversion_folder(tmp_path) is None


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "inversion.json").write_text("{"), "is not valid JSON"),
        (lambda f: (f / "inversion.json").write_text("[]"), "is not the summary of an inversion"),
        (lambda f: rewrite(f, networks=None), "lacks networks"),
        (lambda f: rewrite(f, schema=99), "has schema 99, this tunnel_lightning reads schema 1"),
        (lambda f: (f / "table.csv").unlink(), "has a summary but no table.csv"),
        (lambda f: (f / "curves.npz").write_bytes(b"no archive"), "can't be read as arrays"),
    ],
)
def test_damage_is_said(folder, damage, said):
    damage(folder)
    with pytest.raises(RunError, match=said):
        _ = load_inversion(folder.parent).curves


def rewrite(folder, **changes):
    summary = json.loads((folder / "inversion.json").read_text()) | changes
    (folder / "inversion.json").write_text(json.dumps({k: v for k, v in summary.items() if v is not None}))


@pytest.mark.parametrize(
    ("psnr", "diverged", "test", "plateau", "layer", "said"),
    [
        (20, 0, 0, 0, 9, "recovered"),
        (19.9, 1, 0, 0, 9, "diverged"),
        (9, 0.5, 0.6, 0, 0.5, "not unique"),
        (9, 0, 0.5, 0.6, 0.5, "not unique"),
        (9, 0, 0.5, 0.5, 1.1, "not reached"),
        (9, 0, 0.5, 0.5, np.inf, "not reached"),
        (9, 0, 0.5, 0.5, 1.0, "in part"),
        (np.nan, 0, 0, 0, np.nan, "not reached"),
    ],
)
def test_verdicts(psnr, diverged, test, plateau, layer, said):
    values = {
        "psnr": psnr,
        "diverged": diverged,
        "non_unique": test,
        "plateau": plateau,
        "embedding_ratio": layer,
    }
    curves = {f"{name}/A/trained": np.full((1, 2, 2), value, float) for name, value in values.items()}
    assert verdicts(curves, "A", "trained") == [said]
