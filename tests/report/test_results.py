"""Where what `invert`, `ablate` and `trim` found is shown: on the page of the run, or on one of their own."""

import pytest

from tunnel_lightning.report import write_report
from tunnel_lightning.report.results import home_of, notes_of, sections_of
from tunnel_lightning.runs import ProfileTable, Row, RunError
from tunnel_lightning.runs.ablation import Effect, write_ablation

INTACT = Effect("intact", "", "", 0, 0, "", "kept", "accuracy", 0.9, 0.01, 100)
SUMMARY = {
    "run_id": "mlp/version_0",
    "title": "MLP",
    "dataset": "Digits",
    "notes": ["few images", "few images"],
}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "mlp" / "version_0"
    row = Row("mlp/version_0", 9, 1, -1, "val", "Digits", "l1", 1, "rank_cov", "rtol=1e-3", 12.0)
    folder.mkdir(parents=True)
    ProfileTable(folder / "profile.csv").append([row, row._replace(layer="l2", index=2, value=5.0)])
    write_ablation(folder / "ablate", [INTACT], SUMMARY)
    return folder


@pytest.mark.parametrize("place", [".", "ablate"])
def test_a_run_has_one_page_for_all(run, place):
    path = write_report(run / place)
    assert path == run / "report.html"
    text = path.read_text()
    assert "Depth profile" in text
    assert "What a layer is needed for" in text
    assert text.count("<li>few images</li>") == 1


def test_a_network_without_a_profile_has_a_page_of_what_there_is(run):
    (run / "profile.csv").unlink()
    text = write_report(run).read_text()
    assert "Depth profile" not in text
    assert "What a layer is needed for" in text
    assert "90.0" in text  # the key figure


def test_a_result_elsewhere_has_its_page_beside_it(tmp_path):
    folder = write_ablation(tmp_path / "mine", [INTACT], SUMMARY)
    assert home_of(folder) == folder
    assert write_report(folder) == folder / "report.html"


def test_a_folder_without_results_has_none(tmp_path):
    assert home_of(tmp_path) is None
    assert (sections_of(tmp_path), notes_of(tmp_path)) == ([], [])
    with pytest.raises(RunError, match=r"holds no profile\.csv"):
        write_report(tmp_path)


def test_a_damaged_result_is_said(run):
    (run / "ablate" / "ablation.json").write_text("{")
    with pytest.raises(RunError, match=r"ablation\.json is not valid JSON .*: run ablate again"):
        write_report(run)


def test_a_section_says_which_weights_it_is_of(run):
    write_ablation(run / "ablate", [INTACT], {**SUMMARY, "checkpoint": "checkpoints/last.ckpt", "epoch": 20})
    (section,) = sections_of(run)
    assert section.text.endswith("Weights: last.ckpt, epoch 20.")
