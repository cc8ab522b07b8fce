"""What a command's summary must be to be read."""

import json

import pytest

from tunnel_lightning.runs import RunError
from tunnel_lightning.runs.summaries import read_summary, write_summary


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "trim.json"
    write_summary(path, "trim", 2, {"share": float("inf"), "layers": ("a", "b")})
    found = read_summary(path, "trim", 2, "trim", ["layers"])
    assert found == {"schema": 2, "kind": "trim", "share": None, "layers": ["a", "b"]}
    assert [each.name for each in tmp_path.iterdir()] == ["trim.json"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not valid JSON"),
        ("[]", "is not the summary of an ablation"),
        (json.dumps({"schema": 1, "kind": "trim"}), "is not the summary of an ablation"),
        (json.dumps({"schema": 9, "kind": "ablation"}), "has schema 9, this tunnel_lightning reads schema 1"),
        (json.dumps({"schema": 1, "kind": "ablation", "a": 1}), "lacks b: run ablate again"),
    ],
)
def test_what_is_not_one_is_said(tmp_path, text, said):
    (tmp_path / "ablation.json").write_text(text)
    with pytest.raises(RunError, match=said):
        read_summary(tmp_path / "ablation.json", "ablation", 1, "ablate", ["a", "b"])
