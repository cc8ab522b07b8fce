import json

import numpy as np
import pytest

from tunnel_lightning.runs import RunError
from tunnel_lightning.runs.summaries import write_summary
from tunnel_lightning.runs.trimming import load_trimming, trim_folder, write_curve

CURVE = {
    "index": [0, 1, 2, 3],
    "layer": ["input", "a,b", "c", "network"],
    "kind": ["", "Linear", "Linear", "MLP"],
    "head": ["ridge", "ridge", "logistic", ""],
    "dim": [4, 8, 8, None],
    "flops": [10, 20, 30, 40],
    "parameters": [1, 2, 3, 4],
    "val_accuracy": np.array([0.1, 0.8, 0.9, 0.9]),
    "accuracy": np.array([0.1, 0.7, np.nan, 1 / 3]),
    "transfer:Digits": np.array([0.5, 0.6, 0.7, np.nan]),
    "latency_ms_1": np.array([np.nan, 1.0, 2.0, 3.0]),
    "latency_ms_low_1": np.array([np.nan, 1.0, 2.0, 3.0]),
}
SUMMARY = {"run_id": "a/version_0", "whole": {"accuracy": 0.9}, "choice": {"layer": "a,b", "how": "keep"}}


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "trim"
    path.mkdir()
    write_curve(path, CURVE)
    write_summary(path / "trim.json", "trim", 1, SUMMARY)
    return path


def test_what_is_written_is_read(folder):
    assert trim_folder(folder) == trim_folder(folder.parent) == folder
    found = load_trimming(folder.parent)
    assert found.curve["layer"] == CURVE["layer"]
    assert found.curve["head"] == CURVE["head"]
    assert np.array_equal(found.curve["accuracy"], CURVE["accuracy"], equal_nan=True), "every digit"
    assert np.isnan(found.curve["dim"][3])
    assert found.summary == {"schema": 1, "kind": "trim", **SUMMARY}
    assert (found.chosen, found.sets, found.batches) == (1, ["Digits"], [1])
    assert found.cuts.tolist() == [False, True, True, False]
    assert np.isnan(found.at("nothing", 1))


def test_a_folder_without_one(tmp_path):
    assert trim_folder(tmp_path) is None
    with pytest.raises(RunError, match="no finished trim"):
        load_trimming(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("trim.json", "{", "not valid JSON"),
        ("trim.json", "[1]", "not the summary of a trim"),
        ("trim.json", json.dumps({"schema": 1}), "not the summary of a trim"),
        ("trim.json", json.dumps({"schema": 9, "kind": "trim"}), "has schema 9"),
        ("trim.json", json.dumps({"schema": 1, "kind": "trim", "choice": 3}), "'choice' is no object"),
        (
            "trim.json",
            json.dumps({"schema": 1, "kind": "trim", "choice": {"layer": "x"}}),
            "names the cut 'x'",
        ),
        ("curve.csv", "", "no column 'index'"),
        ("curve.csv", "index,layer\n1,a\n", "no column 'kind'"),
        ("curve.csv", "\0", "no column|can't be read"),
    ],
)
def test_damage_is_said(folder, name, text, said):
    (folder / name).write_text(text)
    with pytest.raises(RunError, match=said):
        load_trimming(folder)


def test_torn_lines_and_wrong_numbers(folder):
    path = folder / "curve.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], lines[2][:9]]))
    with pytest.raises(RunError, match=r"Line 3 of .* cells instead of 12"):
        load_trimming(folder)
    path.write_text("\n".join(lines).replace("0.7", "much"))
    with pytest.raises(RunError, match=r"'accuracy' .* holds no numbers"):
        load_trimming(folder)
    path.write_text("\n".join(lines[:-1]))
    with pytest.raises(RunError, match="does not end with the whole network"):
        load_trimming(folder)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RunError, match="can't be read"):
        load_trimming(folder)


def test_columns_of_several_lengths(folder):
    before = (folder / "curve.csv").read_bytes()
    with pytest.raises(ValueError, match="differ in length"):
        write_curve(folder, {"a": [1], "b": [1, 2]})
    assert (folder / "curve.csv").read_bytes() == before
