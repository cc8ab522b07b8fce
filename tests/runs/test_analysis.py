import json
import pickle
import sys

import numpy as np
import pytest

from tunnel_lightning.runs import (
    LayerInfo,
    ProfileTable,
    RunError,
    SimilarityMap,
    load_analysis,
    load_comparison,
    load_run,
    write_analysis,
)
from tunnel_lightning.runs.analysis import write_arrays

LAYERS = [LayerInfo(1, "layers.1", "Linear", "64", 64, 10, 20, "layer")]
MAP = SimilarityMap(["a/b", "<b>"], np.array([[1.0, np.nan], [np.nan, 1.0]]), np.full((2, 2), 0.01))
SUMMARY = {
    "title": "net", "accuracy": {"value": np.float32(0.5), "high": float("nan")}, "n": np.int64(3),
    "shape": (1, 2), "worst": [float("inf")],
}  # fmt: skip


@pytest.fixture
def run(tmp_path, rows_of):
    run = tmp_path / "mlp" / "version_0"
    ProfileTable(run / "profile.csv").append(rows_of([0.1, 0.2], 0.2))
    write_analysis(
        run / "analysis",
        rows_of([0.3, 0.5], 0.5),
        LAYERS,
        {"cka": MAP, "cka_all": MAP},
        {"Glyphs|test|layers|1": np.array([3.0, 1.0])},
        {"labels": np.array([0, 1]), "layers/1": np.zeros((2, 2))},
        SUMMARY,
    )
    return run


def test_what_is_written_is_read(run, rows_of):
    found = load_analysis(run)
    assert found.path == run / "analysis"
    assert found.run.rows == rows_of([0.3, 0.5], 0.5)
    assert found.run.layers == LAYERS
    assert found.summary == {
        "schema": 1, "title": "net", "accuracy": {"value": 0.5, "high": None}, "n": 3, "shape": [1, 2],
        "worst": [None],
    }  # fmt: skip
    assert list(found.similarity) == ["cka", "cka_all"]
    assert found.similarity["cka"].names == MAP.names
    np.testing.assert_array_equal(found.similarity["cka"].value, MAP.value)
    np.testing.assert_array_equal(found.similarity["cka"].se, MAP.se)
    assert list(found.spectrum) == ["Glyphs|test|layers|1"]
    np.testing.assert_array_equal(found.spectrum["Glyphs|test|layers|1"], [3.0, 1.0])
    assert sorted(found.embeddings) == ["labels", "layers/1"]
    assert not list((run / "analysis").glob("*.tmp"))


def test_it_is_found_from_the_run_and_by_its_own_folder(run, tmp_path, rows_of):
    assert load_analysis(run / "analysis").path == run / "analysis"
    assert load_run(run).analysis.summary["title"] == "net"
    assert [row.value for row in load_run(run).rows] == [row.value for row in rows_of([0.1, 0.2], 0.2)]
    bare = tmp_path / "bare"
    ProfileTable(bare / "profile.csv").append(rows_of([0.1], 0.2))
    assert load_run(bare).analysis is None


def test_what_was_not_measured_may_be_absent(run, rows_of):
    write_analysis(run / "analysis", rows_of([0.3], 0.5))
    found = load_analysis(run)
    assert (found.similarity, found.spectrum, found.embeddings, found.run.layers) == ({}, {}, {}, [])
    names = {path.name for path in (run / "analysis").iterdir()}
    assert names == {"profile.csv", "layers.csv", "summary.json"}, "a former analysis leaves nothing behind"


def test_an_analysis_that_was_interrupted_has_no_summary(run, rows_of):
    def rows():
        yield rows_of([0.3], 0.5)[0]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_analysis(run / "analysis", rows())
    with pytest.raises(RunError, match="no finished analysis"):
        load_analysis(run)


def write(name, data):
    def change(folder):
        (folder / name).write_bytes(data if isinstance(data, bytes) else data.encode())

    return change


def other_map(folder):
    write_arrays(folder / "similarity.npz", {"cka/names": ["a"], "cka/value": np.eye(2), "cka/se": np.eye(2)})


class Hostile:
    def __reduce__(self):
        return (sys.exit, ("a pickle was run",))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (write("summary.json", "{"), r"summary\.json is not valid JSON"),
        (write("summary.json", b"\xff\xfe"), r"summary\.json is not valid JSON"),
        (write("summary.json", "[]"), "holds no JSON object"),
        (
            write("summary.json", json.dumps({"schema": 2})),
            "has schema 2, this tunnel_lightning reads schema 1",
        ),
        (write("similarity.npz", "PK\x03\x04 no more"), r"similarity\.npz can't be read as arrays"),
        (write("similarity.npz", ""), r"similarity\.npz can't be read as arrays"),
        (write("similarity.npz", pickle.dumps(Hostile())), r"similarity\.npz can't be read as arrays"),
        (other_map, r"cka in .*similarity\.npz has 1 names, values \[2, 2\]"),
        (lambda folder: (folder / "profile.csv").unlink(), r"no profile\.csv: run analyze again"),
        (write("profile.csv", "a,b\n"), "is no profile table"),
    ],
)
def test_broken_files_are_said(run, change, said):
    change(run / "analysis")
    with pytest.raises(RunError, match=said):
        _ = load_analysis(run).similarity


def test_no_analysis(tmp_path):
    with pytest.raises(RunError, match="nowhere does not exist: give the folder of a run"):
        load_analysis(tmp_path / "nowhere")
    with pytest.raises(RunError, match=r"has no finished analysis \(no analysis/summary\.json\): make one"):
        load_analysis(tmp_path)


@pytest.fixture
def compared(tmp_path, rows_of):
    rows = [row._replace(run_id=f"mlp/version_{k}") for k in (1, 0) for row in rows_of([0.3, 0.5], 0.5)]
    ProfileTable(tmp_path / "profile.csv").append(rows)
    summary = {"schema": 1, "runs": [{"run_id": "mlp/version_0"}, {"run_id": "mlp/version_1"}]}
    (tmp_path / "comparison.json").write_text(json.dumps(summary))
    (tmp_path / "predictions.csv").write_text("image,label,accuracy_a,accuracy_b\n0,cat,0.5,1\n1,dog,1,0\n")
    return tmp_path


def test_comparison(compared):
    found = load_comparison(compared)
    assert [run.id for run in found.runs] == ["mlp/version_0", "mlp/version_1"], (
        "in the order they were given"
    )
    assert all(len(run.rows) == 3 for run in found.runs)
    assert {k: v.tolist() for k, v in found.per_image.items()} == {"a": [0.5, 1], "b": [1, 0]}
    assert found.similarity == {}
    (compared / "predictions.csv").unlink()
    assert load_comparison(compared).per_image == {}


def test_comparison_errors(compared, tmp_path):
    (compared / "predictions.csv").write_text("image,label,accuracy_a\n0,cat\n")
    with pytest.raises(RunError, match=r"predictions\.csv can't be read as a table"):
        _ = load_comparison(compared).per_image
    with pytest.raises(RunError, match=r"holds no comparison\.json"):
        load_comparison(tmp_path / "nowhere")


def test_the_summary_says_which_set_is_the_trained_one(tmp_path, rows_of):
    rows = sorted(rows_of([0.3, 0.5], ood={"Digits": [0.9, 0.6]}), key=lambda row: row.dataset)
    unsaid = load_analysis(write_analysis(tmp_path / "a", rows)).run
    assert unsaid.id_dataset == "Digits", "nothing tells: the first"
    run = load_analysis(write_analysis(tmp_path / "b", rows, summary={"dataset": "Glyphs"})).run
    assert run.id_dataset == "Glyphs"
    assert run.tunnel()["ood"].datasets == ("Digits",)
    np.testing.assert_array_equal(run.profile().value, [0.3, 0.5])
    assert sorted(run.rows) == sorted(unsaid.rows)
