"""A small run gets early exits: what is written answers as what was measured, and the page shows it."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis import streamed
from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.subject import load_run_subject
from tunnel_lightning.analysis.trim.exits import fit_exits
from tunnel_lightning.backbones.early import EarlyExit
from tunnel_lightning.module import Classifier
from tunnel_lightning.report.charts import Chart
from tunnel_lightning.report.trimming_exits import exit_items, exits_words
from tunnel_lightning.runs import RunError
from tunnel_lightning.runs.trimming_exits import load_exits
from tunnel_lightning.taps import TapSpec

KEEP = 1.0


def made(run, layers="auto", spec=None, keep=0.95):
    subject = load_run_subject(run, "last", [], None)
    own, _ = subject.sets()
    options = Options(taps=spec or TapSpec("activation"), measures=("ridge",))
    with Context(subject, own, [], options) as context:
        names = [tap.name for tap in context.taps.layers]
        heads = streamed.fit(context, streamed.Plan(own, own.size("train")), names).ridge
        before = {name: value.clone() for name, value in subject.model.state_dict().items()}
        summary = fit_exits(context, heads, run / "trim", layers, keep, latency=False)
        after = subject.model.state_dict()
        assert all(torch.equal(after[name], value) for name, value in before.items())
    return summary, own


@pytest.fixture(scope="module")
def exits(fit, tmp_path_factory):
    """Of a network that knows more at its end than in its first layer, so that not all images leave at once."""
    longer = ("--trainer.max_epochs=15", "--model.optimizer=Adam", "--model.optimizer.lr=0.01")
    run = fit(tmp_path_factory.mktemp("exits"), *longer, "--keep_every=0")
    summary, own = made(run, "layers.0.act,2", keep=KEEP)
    return run, summary, own


def test_the_checkpoint_answers_as_was_measured(exits):
    run, summary, own = exits
    network = Classifier.load_from_checkpoint(
        run / "trim" / "exits" / "checkpoints" / "last.ckpt"
    ).backbone.eval()
    assert isinstance(network, EarlyExit)
    assert list(network.layers) == ["layers.0.act", "layers.1.act"] == summary["layers"]
    assert float(network.temperature) == pytest.approx(summary["temperature"]["network"])
    limit = summary["threshold"]
    assert network.threshold == ([limit, 0.0] if summary["ends"] else limit)
    right, taken = [], []
    with torch.no_grad():
        for x, y in own.batches("test"):
            right.append(network(x).argmax(1) == y)
            taken.append(network.taken)
    right, taken = torch.cat(right), torch.cat(taken)
    assert float(right.double().mean()) == pytest.approx(summary["chosen"]["accuracy"])
    assert [float((taken == k).double().mean()) for k in range(3)] == pytest.approx(summary["leaving"])
    cost = torch.tensor(summary["costs"], dtype=torch.float64)[taken].mean()
    assert float(cost) == pytest.approx(summary["chosen"]["flops"])
    assert sum(share > 0 for share in summary["leaving"]) > 1  # or this shows nothing
    assert summary["chosen"]["flops"] < summary["costs"][-1]


def test_the_threshold_is_the_cheapest_that_keeps_the_accuracy(exits):
    run, summary, _ = exits
    curve = load_exits(run).curve
    here = (curve["threshold"] == summary["threshold"]) & (curve["ends"] == summary["ends"])
    line = int(np.flatnonzero(here)[0])
    enough = curve["val_accuracy"] >= KEEP * summary["whole"]["val_accuracy"] - 1e-9
    assert enough[line]
    assert curve["val_flops"][line] == curve["val_flops"][enough].min()
    assert summary["chosen"]["val_accuracy"] == curve["val_accuracy"][line]
    assert summary["chosen"]["accuracy"] == pytest.approx(curve["accuracy"][line])
    kept = summary["certificate"]
    assert kept["value"] == pytest.approx(summary["chosen"]["accuracy"] / summary["whole"]["accuracy"])
    assert kept["low"] < kept["value"] < kept["high"]


def test_predict_uses_the_exits(exits, tmp_path, monkeypatch, capsys):
    run, summary, _ = exits
    monkeypatch.chdir(tmp_path)
    folder = run / "trim" / "exits"
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["trainer"]["precision"] == "32-true"
    argv = [
        "predict",
        "--config",
        folder / "config.yaml",
        "--ckpt_path",
        folder / "checkpoints" / "last.ckpt",
    ]
    assert main([*map(str, argv), "--out", "found.csv"]) == 0
    rows = list(csv.DictReader((tmp_path / "found.csv").open()))
    left = [row["exit"] for row in rows]
    names = [*summary["layers"], "network"]
    assert [left.count(name) / len(rows) for name in names] == pytest.approx(summary["leaving"])
    said = capsys.readouterr().out
    assert "left at layers.0.act" in said
    assert "MFLOPs an image" in said


def test_the_page_shows_curve_and_exits(exits):
    run, summary, _ = exits
    against, leaving, table = exit_items(run)
    assert isinstance(against, Chart)
    lines = {line.label: line for line in against.lines}
    taken = lines["the threshold taken"]
    assert (taken.x[0], taken.y[0]) == (summary["chosen"]["flops_share"], 100 * summary["chosen"]["accuracy"])
    curve, whole = load_exits(run).curve, summary["whole"]["flops"]
    for ends, label in enumerate(("early exits", "early exits, cut away behind the last")):
        assert lines[label].x.tolist() == sorted(curve["flops"][curve["ends"] == ends] / whole)
    assert leaving.lines[0].y.sum() == pytest.approx(100)
    assert [row[0] for row in table.rows] == [*summary["layers"], "the whole network"]
    assert "of the FLOPs on average" in exits_words(load_exits(run))


def test_damaged_files_are_said(exits, tmp_path):
    run, _, _ = exits
    shutil.copytree(run / "trim" / "exits", tmp_path / "exits")
    (tmp_path / "exits" / "curve.csv").write_text("threshold\nx\n")
    with pytest.raises(RunError, match=r"curve\.csv can't be read"):
        load_exits(tmp_path)
    summary = json.loads((tmp_path / "exits" / "summary.json").read_text())
    (tmp_path / "exits" / "summary.json").write_text(json.dumps({**summary, "schema": 99}))
    with pytest.raises(RunError, match="schema 99"):
        load_exits(tmp_path)
    with pytest.raises(RunError, match="no early exits"):
        load_exits(tmp_path / "exits" / "checkpoints")


def test_left_out_columns_get_no_weight(run):
    """Heads on some columns of the features are written as heads on all of them."""
    summary, _ = made(run, spec=TapSpec("activation", max_features=5))
    network = Classifier.load_from_checkpoint(run / "trim" / "exits" / "checkpoints" / "last.ckpt").backbone
    for head in network.heads:
        assert (head.weight != 0).any(0).sum() <= 5
    assert summary["notes"] == []  # the network leaves where the heads on tapped features do
    assert summary["how"] == "auto"


@pytest.mark.parametrize(
    ("layers", "said"),
    [("layers.9.act", "none of the 3 layers"), ("1,1", "one twice"), ("", "none of the 3 layers")],
)
def test_wrong_layers_are_said_and_nothing_is_written(run, layers, said):
    with pytest.raises(ValueError, match=said):
        made(run, layers)
    assert not (run / "trim" / "exits").exists()
