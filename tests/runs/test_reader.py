import sys

import numpy as np
import pytest

from tunnel_lightning.runs import (
    LayerInfo,
    ProfileTable,
    Run,
    RunError,
    load_run,
    write_layers,
    write_manifest,
)


@pytest.fixture
def folder(tmp_path, rows_of):
    folder = tmp_path / "mlp" / "version_3"
    table = ProfileTable(folder / "profile.csv")
    table.append(rows_of([0.1, 0.2, 0.2], 0.2, step=0))
    table.append(rows_of([0.2, 0.5, 0.5], 0.5, {"Digits": [0.9, 0.8, 0.7]}, raw=0.1, step=90))
    return folder


def test_run(folder):
    write_manifest(folder, seed=3)
    write_layers(folder, [LayerInfo(1, "layers.1", "Linear", "64", 64, 10, 20, "layer")])
    run = load_run(str(folder))
    assert (run.path, run.id, run.id_dataset) == (folder, "mlp/version_0", "Glyphs")
    assert run.steps == [0, 90]
    assert run.manifest == {"seed": 3}
    assert run.layers[0].kind == "Linear"
    np.testing.assert_array_equal(run.profile().value, [0.1, 0.2, 0.5, 0.5])
    np.testing.assert_array_equal(run.profile(step=0).value, [0.1, 0.2, 0.2])
    np.testing.assert_array_equal(run.profile(dataset="Digits").value, [0.9, 0.8, 0.7])
    assert {rule: t.start for rule, t in run.tunnel().items()} == {"id95": 2, "id98": 2, "ood": 2}


def test_a_run_without_the_other_files(folder):
    run = load_run(folder)
    assert (run.layers, run.manifest) == ([], {})


def test_id_of_an_empty_run_is_its_folder(tmp_path):
    assert Run(tmp_path / "mlp" / "version_3", []).id == "mlp/version_3"


def test_the_profile_is_that_of_the_probe_there_is(tmp_path, rows_of):
    run = Run(tmp_path, [row._replace(variant="nguyen") for row in rows_of([0.1, 0.2])])
    assert run.profile().variant == "nguyen"
    with pytest.raises(RunError, match="no rows of probe_accuracy, ridge"):
        run.profile(variant="ridge")
    with pytest.raises(RunError, match="no rows of probe_accuracy, nguyen, Digits"):
        run.profile(dataset="Digits")


def test_profile_of_what_was_not_measured(folder):
    with pytest.raises(
        RunError, match=r"no rows of rank_cov, rtol=torch at step 90\. It has: accuracy/network"
    ):
        load_run(folder).profile(step=90, measure="rank_cov", variant="rtol=torch")


def test_pandas(folder):
    pd = pytest.importorskip("pandas")
    run = load_run(folder)
    frame = run.to_pandas()
    assert len(frame) == len(run.rows)
    assert frame["index"].tolist() == [r.index for r in run.rows]
    assert pd.api.types.is_float_dtype(frame["value"])


def test_pandas_absent(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        load_run(folder).to_pandas()


def test_missing_folder(tmp_path):
    with pytest.raises(RunError, match=r"nowhere does not exist: give the folder of a run"):
        load_run(tmp_path / "nowhere")


def test_file_instead_of_folder(folder):
    with pytest.raises(RunError, match="is a file, not a folder"):
        load_run(folder / "profile.csv")


def test_folder_above_the_run(folder):
    with pytest.raises(RunError, match=r"holds no profile\.csv.*did you mean .*version_3\?"):
        load_run(folder.parent)


def test_folder_without_a_table(tmp_path):
    with pytest.raises(RunError, match="was it trained with the monitor on"):
        load_run(tmp_path)


def test_the_trained_set_that_is_told_counts_whatever_the_order(tmp_path, rows_of):
    rows = sorted(rows_of([0.3, 0.5], ood={"Digits": [0.9, 0.6]}), key=lambda row: row.dataset)
    assert Run(tmp_path, rows).id_dataset == "Digits", "nothing tells: the first"
    run = Run(tmp_path, rows, "Glyphs")
    assert run.rows[0].dataset == "Glyphs", "for functions of rows alone"
    run.rows = rows
    assert run.id_dataset == "Glyphs"
    assert run.tunnel()["ood"].datasets == ("Digits",)
    np.testing.assert_array_equal(run.profile().value, [0.3, 0.5])
