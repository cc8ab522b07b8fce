"""`analyze` from the command line: runs, networks by name, checkpoints over time, processes."""

import json
import shutil
from html import unescape

import numpy as np
import pytest
import torch
from toys_analysis import FAST, FEW, files, python, values

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis import asked, command, parts
from tunnel_lightning.analysis.command import parse
from tunnel_lightning.analysis.profile import Profile
from tunnel_lightning.analysis.subject import checkpoints_of, load_run_subject
from tunnel_lightning.report import write_report
from tunnel_lightning.report.words import headline
from tunnel_lightning.runs import load_analysis
from tunnel_lightning.taps import TapSpec

# -- a run ------------------------------------------------------------------------------------------------


def test_a_run_from_end_to_end(run, capsys):
    live = (run / "profile.csv").read_bytes()
    assert main(["analyze", str(run), *FEW]) == 0
    out, err = capsys.readouterr()
    folder = run / "analysis"
    assert {path.name for path in folder.iterdir()} == {
        *(
            "profile.csv",
            "layers.csv",
            "similarity.npz",
            "spectrum.npz",
            "summary.json",
            "report.html",
            "parts",
        )
    }
    assert (run / "profile.csv").read_bytes() == live
    found = load_analysis(run)
    summary = found.summary
    assert summary["run_id"] == "tiny/version_0"
    assert (summary["title"], summary["checkpoint"]) == ("MLP (depth 3, width 16)", "checkpoints/last.ckpt")
    assert (summary["step"], summary["epoch"]) == (found.run.rows[0].step, 5)
    assert summary["accuracy"]["n"] == 60
    assert set(summary["transfer"]) == {"Glyphs"}
    assert summary["network"]["flops"] > 0
    assert summary["machine"]["processes"] == 1
    assert any("shown at 8x8" in note for note in summary["notes"])
    for line in (
        "tiny/version_0, epoch 5",
        "95 % rule",
        f"analysis     {folder}",
        f"report       {folder}",
        "note ",
    ):
        assert line in out
    assert "analysing MLP (depth 3, width 16) on Digits" in err
    assert "s  Digits: ridge, ranks, variance, collapse, cka" in err
    assert "Glyphs: logistic" in err
    assert "Traceback" not in err
    assert "Warning" not in err

    before = files(folder / "parts")
    assert main(["analyze", str(run), *FEW]) == 0
    assert files(folder / "parts") == before
    assert "kept  Digits: ridge, ranks" in capsys.readouterr().err


def test_the_page_is_that_of_the_files_in_their_places(run, tmp_path):
    assert main(["analyze", str(run), *FAST]) == 0
    again = write_report(run, tmp_path / "again.html")
    assert (run / "analysis/report.html").read_text() == again.read_text(), "with what the run recorded"


def test_the_layers_a_run_watched_unless_others_are_named(fit, tmp_path):
    watched = ["--monitor.taps.layers=activation", "--monitor.taps.pool=avg"]
    run = fit(tmp_path / "runs", "--trainer.max_epochs=1", *watched)
    assert parse([str(run)])[1].taps == TapSpec("activation", "avg")
    assert parse([str(run), "--taps.pool=flatten"])[1].taps == TapSpec("activation", "flatten")
    assert parse(["--taps.layers=block", str(run)])[1].taps == TapSpec("block", "avg")
    assert main(["analyze", str(run), *FAST]) == 0
    names = [layer.name for layer in load_analysis(run).run.layers if layer.role == "layer"]
    assert names == ["layers.0.act", "layers.1.act", "layers.2.act"]


def test_figures(run):
    assert main(["analyze", str(run), *FAST, f"--figures={run / 'pictures'}", "--formats=svg,png"]) == 0
    assert {path.suffix for path in (run / "pictures").iterdir()} == {".svg", ".png"}


def test_the_settings_in_the_summary_are_those_asked_for(run):
    assert main(["analyze", str(run), *FAST, "--alpha=0.3", "--taps.pool=avg"]) == 0
    settings = json.loads((run / "analysis/summary.json").read_text())["settings"]
    assert (settings["alpha"], settings["taps.pool"], settings["fit_images"]) == (0.3, "avg", 100)
    assert settings["measures"] == ["ridge", "ranks"]
    assert Profile.read(run).rows


def test_best_last_and_a_path(run):
    for ckpt, kept in (("best", "best.ckpt"), ("last", "last.ckpt"), ("checkpoints/best.ckpt", "best.ckpt")):
        assert main(["analyze", str(run), f"--ckpt={ckpt}", *FAST, f"--out={run.parent / 'a'}"]) == 0
        summary = load_analysis(run.parent / "a").summary
        state = torch.load(run / "checkpoints" / kept, weights_only=True)
        assert (summary["checkpoint"], summary["step"]) == (f"checkpoints/{kept}", state["global_step"])


def test_all_checkpoints_show_how_it_came_about(run, monkeypatch):
    networks = []
    perform = parts.perform

    def spied(context, *args):
        networks.append(context.subject.network)
        perform(context, *args)

    monkeypatch.setattr(command, "perform", spied)
    assert main(["analyze", str(run), "--ckpt=all", *FAST]) == 0
    rows = load_analysis(run).run.rows
    paths = {
        torch.load(path, weights_only=True)["global_step"]: path
        for path in (run / "checkpoints").glob("*.ckpt")
        if path.name != "best.ckpt"
    }
    steps = sorted(paths)
    assert len(steps) > 2
    for measure in ("probe_accuracy", "rank_cov", "accuracy"):
        assert sorted({r.step for r in rows if r.measure == measure and r.dataset == "Digits"}) == steps, (
            measure
        )
    states = {step: torch.load(path, weights_only=True)["state_dict"] for step, path in paths.items()}
    for name, tensor in networks[0].state_dict().items():
        assert torch.equal(tensor, states[steps[-1]][f"backbone.{name}"]), "back at the last checkpoint"
    changes = {(r.layer, r.step): r.value for r in rows if r.measure == "weight_change"}
    assert sorted({step for _, step in changes}) == steps[1:]
    for (layer, step), value in changes.items():
        before, after = (states[each] for each in (steps[steps.index(step) - 1], step))
        names = [f"backbone.{layer}.{kind}" for kind in ("weight", "bias")]
        moved = torch.cat([(after[name].double() - before[name].double()).flatten() for name in names])
        assert value == pytest.approx(float(moved.norm()) / len(moved) ** 0.5)
    assert {r.step for r in rows if r.dataset == "Glyphs"} == set(steps)
    direct = run.parent / "direct"
    assert main(["analyze", str(run), f"--ckpt={paths[steps[0]]}", *FAST, f"--out={direct}"]) == 0

    def at_first(found):
        ridge = [r for r in found if r.step == steps[0] and r.variant in ("ridge", "rtol=1e-3")]
        return [str(r) for r in ridge if r.measure not in ("rank_uncentered", "pc1_fraction")]

    assert at_first(rows) == at_first(load_analysis(direct).run.rows), "as that checkpoint by itself"
    assert {r.measure for r in rows if (r.step, r.dataset, r.layer) == (steps[0], "Glyphs", "network")} == {
        *("ood_retained", "id_ood_pearson", "id_ood_alignment")
    }


def test_one_checkpoint_has_no_development_and_that_is_said(run, capsys):
    for path in (run / "checkpoints").glob("epoch=*.ckpt"):
        path.unlink()
    shutil.copy(run / "checkpoints/last.ckpt", run / "checkpoints/best.ckpt")
    assert main(["analyze", str(run), "--ckpt=all", *FAST]) == 0
    found = load_analysis(run)
    note = "one checkpoint, so nothing over time: train with `fit --keep_every N` to keep more"
    assert note in found.summary["notes"]
    assert note in " ".join(capsys.readouterr().out.split())
    assert len({row.step for row in found.run.rows}) == 1


@pytest.mark.parametrize(
    ("measures", "said"),
    [
        ("ridge,ranks", None),
        ("ranks", "no probes over time: of each checkpoint only ridge probes and ranks are measured, and the "
                  "measures leave out ridge"),
        ("cka", "no probes or ranks over time"),
    ],
)  # fmt: skip
def test_what_is_not_measured_over_time_is_said(run, measures, said):
    assert main(["analyze", str(run), "--ckpt=all", *FEW, f"--measures={measures}"]) == 0
    notes = [note for note in load_analysis(run).summary["notes"] if "over time" in note]
    assert [note.startswith(said) for note in notes] == ([True] if said else [])


def test_checkpoints_in_any_order_end_with_the_analysed_one(run, monkeypatch):
    subjects = []
    monkeypatch.setattr(command, "checkpoints_of", lambda run: checkpoints_of(run)[::-1])
    monkeypatch.setattr(
        asked, "load_run_subject", lambda *a: subjects.append(load_run_subject(*a)) or subjects[-1]
    )
    assert main(["analyze", str(run), "--ckpt=all", *FAST]) == 0
    (subject,) = subjects
    state = torch.load(run / "checkpoints/last.ckpt", weights_only=True)
    assert subject.step == state["global_step"] == load_analysis(run).summary["step"]
    assert torch.equal(subject.network.head.bias, state["state_dict"]["backbone.head.bias"])


# -- other networks ---------------------------------------------------------------------------------------


def test_an_untrained_network_of_torchvision(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    asked = [
        "analyze",
        "--model=torchvision:resnet18",
        "--data=Digits",
        "--data.image_size=32",
        "--data.channels=3",
    ]
    few = [
        "--device=cpu",
        "--fit_images=40",
        "--eval_images=24",
        "--measures=ridge,cka,additions",
        "--taps.pool=avg",
    ]
    assert main([*asked, *few, "--taps.layers=block"]) == 0
    folder = tmp_path / "runs/torchvision-resnet18/version_0/analysis"
    found = load_analysis(folder)
    assert found.summary["accuracy"] is None
    note = "torchvision:resnet18: it is untrained, so its own accuracy is not measured"
    assert note in found.summary["notes"]
    assert "it is untrained" in capsys.readouterr().out
    assert len(found.similarity["cka"].names) == 9
    rows = [r for r in found.run.rows if r.variant == "ridge@addition" and r.measure == "probe_accuracy"]
    assert len(rows) == 16
    assert [r.layer for r in rows[:2]] == ["layer1.0.bn2", "layer1.0.add"]
    assert not any(r.measure == "accuracy" for r in found.run.rows)


HEADLESS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.narrow, self.wide, self.out = nn.Linear(64, 1), nn.Linear(16, 64), nn.Linear(64, 7)

    def forward(self, x):
        self.narrow(x.flatten(1))
        return self.out(self.wide(nn.functional.avg_pool2d(x, 2).flatten(1)).relu())
"""


def test_the_own_set_of_a_network_without_a_head_for_it(tmp_path, monkeypatch):
    """The transfer set comes first by name, and nothing but what was asked for tells which is which."""
    (tmp_path / "headless_net.py").write_text(HEADLESS)
    monkeypatch.syspath_prepend(tmp_path)
    data = ["--data=Glyphs", "--data.image_size=8", "--data.samples_per_class=20"]
    asked = ["analyze", "--model=headless_net:Net", *data, "--device=cpu", "--measures=ridge,ranks"]
    assert main([*asked, f"--out={tmp_path / 'a'}"]) == 0
    found = load_analysis(tmp_path / "a")
    assert found.summary["accuracy"] is None
    assert found.run.id_dataset == found.summary["dataset"] == "Glyphs"
    assert list(found.summary["transfer"]) == ["Digits"]
    last = values(found.run, "probe_accuracy", "ridge", "Glyphs")["wide"]
    read = {rule: each._asdict() for rule, each in found.run.tunnel().items()}
    for told in (found.summary["tunnel"], read):
        assert (list(told["id95"]["datasets"]), list(told["ood"]["datasets"])) == (["Glyphs"], ["Digits"])
        assert (told["id95"]["start"], told["id95"]["reference"]) == (2, last)
        assert "whose Glyphs test probe" in told["id95"]["note"]
        assert "transfer to Digits" in told["ood"]["note"]
    said = headline(found.run.rows)
    assert "the probe there reaches 100.0 % of the last probe's accuracy; transfer to Digits" in said
    page = unescape((tmp_path / "a/report.html").read_text()).replace("\N{NO-BREAK SPACE}", " ")
    assert f"<h1>{said}</h1>" in page


def test_a_network_of_someones_own_and_its_folder(module, tmp_path, monkeypatch, capsys):
    asked = ["analyze", f"--model={module}:make", "--data=Digits", "--ood=[]", *FAST, "--taps.layers=0"]
    home = tmp_path / "runs" / f"{module}-make"

    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(parts, "write", fail)
    assert main(asked) == 130
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    assert [path.name for path in home.iterdir()] == ["version_0"]
    for number in (0, 1):  # what was interrupted is finished, then there is a new one
        assert main(asked) == 0
        assert sorted(path.name for path in home.iterdir()) == [f"version_{n}" for n in range(number + 1)]
        assert ("kept" in capsys.readouterr().err) == (number == 0), "its weights are drawn alike each time"
    assert load_analysis(home / "version_0/analysis").summary["run_id"]


def test_weights_for_a_network(module, tmp_path):
    state = {"weight": torch.zeros(10, 64), "bias": torch.arange(10.0)}
    torch.save({f"1.{name}": tensor for name, tensor in state.items()}, "weights.pt")
    asked = [
        "analyze",
        f"--model={module}:make",
        "--data=Digits",
        "--ood=[]",
        *FAST,
        "--taps.layers=0",
        "--out=a",
    ]
    assert main([*asked, "--weights=weights.pt"]) == 0
    summary = load_analysis(tmp_path / "a").summary
    assert summary["checkpoint"] == "weights.pt"
    assert summary["accuracy"]["value"] == pytest.approx(0.1, abs=0.08), "it always says 9"


# -- processes --------------------------------------------------------------------------------------------


def test_two_processes_give_the_figures_of_one(run):
    names = "ridge,ranks,variance,collapse,cka,logistic,masarczyk,knn,tsne,procrustes,svcca,blocks"
    options = ["--device=cpu", f"--measures={names}", "--sample=300", "--fit_images=700", "--ckpt=all"]
    two = python("analyze", str(run), *options, "--processes=2", f"--out={run.parent / 'two'}")
    assert main(["analyze", str(run), *options, f"--out={run.parent / 'one'}"]) == 0
    out, err = two.communicate(timeout=240)
    assert two.returncode == 0, err
    assert out.count("95 % rule") == 1, "one of them speaks"
    assert err.count("analysing") == 1
    one, two = (load_analysis(run.parent / name) for name in ("one", "two"))
    assert two.summary["machine"]["processes"] == 2
    sizes = {r.n for r in one.run.rows if r.dataset == "Digits" and r.split == "train" and r.measure == "nc1"}
    assert sizes == {700}, "three batches: one process has one more"
    assert len(one.run.rows) == len(two.run.rows)
    exact = ("accuracy", "rank_cov")
    for first, second in zip(one.run.rows, two.run.rows, strict=True):
        assert first._replace(value=0, se=0) == second._replace(value=0, se=0)
        if first.measure.endswith(exact):
            assert str(first) == str(second)
        else:
            # Products are float32, summed in double precision: the processes' blocks are other ones.
            close = 1e-4 if first.measure in ("rankme", "nc1") else 1e-6
            assert second.value == pytest.approx(first.value, rel=close, abs=1e-9, nan_ok=True), first
    assert list(one.similarity) == list(two.similarity)
    for name, found in one.similarity.items():
        assert two.similarity[name].names == found.names
        assert two.similarity[name].value == pytest.approx(found.value, abs=1e-12, nan_ok=True), name
        assert two.similarity[name].se == pytest.approx(found.se, abs=1e-9, nan_ok=True), name
    for name, array in one.spectrum.items():
        assert two.spectrum[name] == pytest.approx(array, abs=2e-7 * array[0])
    for name, array in one.embeddings.items():
        assert np.array_equal(two.embeddings[name], array)
    for key in ("tunnel", "rank", "transfer", "blocks", "penalty", "accuracy", "notes"):
        (texts, numbers), (other_texts, other_numbers) = flat(one.summary[key]), flat(two.summary[key])
        assert texts == other_texts
        assert numbers == pytest.approx(other_numbers, rel=1e-6), key


def flat(value, at=""):
    """Texts and numbers of a nest of plain values, by their place."""
    if not isinstance(value, (dict, list)):
        return ({}, {at: value}) if isinstance(value, float) else ({at: value}, {})
    found = ({}, {})
    for key, each in value.items() if isinstance(value, dict) else enumerate(value):
        for kind, new in zip(found, flat(each, f"{at}.{key}"), strict=True):
            kind.update(new)
    return found
