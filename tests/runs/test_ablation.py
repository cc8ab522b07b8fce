"""The folder of an ablation: written, read, and refused where it is damaged."""

import json
import math

import pytest

from tunnel_lightning.runs import RunError
from tunnel_lightning.runs.ablation import Effect, ablation_folder, load_ablation, write_ablation

ROW = Effect("reset", "layer", "a, b", 1, 1, "initial", "kept", "accuracy", 1 / 3, 0.1, 25)


@pytest.fixture
def run(tmp_path):
    rows = [
        ROW,
        ROW._replace(quantity="cka", value=math.nan, se=math.nan),
        ROW._replace(statistics="estimated"),
    ]
    write_ablation(tmp_path / "ablate", rows, {"run_id": "mlp/version_0", "tunnel": {"starts": {"id95": 2}}})
    return tmp_path


def test_what_is_written_is_read(run):
    for place in (run, run / "ablate"):
        found = load_ablation(place)
        assert found.path == run / "ablate"
        assert found.rows[0] == ROW
        assert math.isnan(found.rows[1].value)
        assert found.summary["tunnel"] == {"starts": {"id95": 2}}
    assert found.pick() == [ROW]
    assert found.pick(statistics="estimated") == [ROW._replace(statistics="estimated")]
    assert found.intact() is None
    assert found.main == "agreement"


def test_one_that_is_not_whole_is_none(run):
    assert ablation_folder(run / "elsewhere") is None
    (run / "ablate" / "ablation.json").unlink()
    assert ablation_folder(run) is None
    with pytest.raises(RunError, match="has no finished ablation"):
        load_ablation(run)


def test_a_former_one_is_replaced(run):
    write_ablation(run / "ablate", [ROW], {})
    assert load_ablation(run).rows == [ROW]
    assert sorted(path.name for path in (run / "ablate").iterdir()) == ["ablation.json", "table.csv"]


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("ablation.json", "{", "is not valid JSON"),
        ("ablation.json", "[]", "is not the summary of an ablation"),
        ("ablation.json", json.dumps({"schema": 1, "kind": "analysis"}), "is not the summary of an ablation"),
        ("ablation.json", json.dumps({"schema": 9, "kind": "ablation"}), "has schema 9"),
        ("table.csv", "", "can't be read as a table"),
        ("table.csv", "a,b\n1,2\n", "has the columns a, b"),
        ("table.csv", ",".join(Effect._fields) + "\n1,2\n", "Line 2 of .* can't be read"),
        ("table.csv", ",".join(Effect._fields) + "\nreset,layer,a,x,1,,kept,accuracy,1,1,1\n", "Line 2 of"),
    ],
)
def test_damage_is_said(run, name, text, said):
    (run / "ablate" / name).write_text(text)
    with pytest.raises(RunError, match=said) as error:
        load_ablation(run)
    assert "run ablate again" in str(error.value)
