import json
import re
from functools import partial

import numpy as np
import pytest
import torch
import toys_trim

from tunnel_lightning import Classifier
from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis.asked import Asked
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.trim import command, curve, taken, written
from tunnel_lightning.analysis.trim.command import trim
from tunnel_lightning.analysis.trim.export import Exported
from tunnel_lightning.analysis.trim.options import Options
from tunnel_lightning.analysis.trim.tune import Recipe, tune
from tunnel_lightning.runs.trimming import load_trimming
from tunnel_lightning.surgery import cut

TURNED = toys_trim.Signs(turned=True)
NETWORK_FILES = {"checkpoints", "cut.pt2", "cut.onnx", "manifest.json", "MODEL_CARD.md"}


def right(network, seed=2, turned=False):
    x, y = toys_trim.images(300, seed, turned).tensors
    with torch.no_grad():
        return (network(x).argmax(1) == y).numpy()


def test_the_written_network_is_the_cut_of_the_curve(trimmed):
    found = load_trimming(trimmed)
    assert found.summary["choice"] == {
        "layer": "layers.2.linear", "line": 3, "how": "keep", "why": "", "keep": 0.9, "set": None,
    }  # fmt: skip
    loaded = Classifier.load_from_checkpoint(trimmed / "checkpoints" / "last.ckpt").eval()
    answers, whole = right(loaded), right(toys_trim.trained())
    assert answers.mean() == pytest.approx(found.at("accuracy", 3))
    assert sum(p.numel() for p in loaded.backbone.parameters()) == found.at("parameters", 3)
    kept = found.summary["certificate"]
    assert (kept["value"], kept["n"]) == (pytest.approx(answers.mean() / whole.mean()), 300)
    assert kept["low"] < kept["value"] < kept["high"]
    exported = torch.export.load(trimmed / "cut.pt2").module()
    assert np.array_equal(right(exported), answers)
    assert {path.name for path in trimmed.iterdir()} == NETWORK_FILES | {"curve.csv", "trim.json", "parts"}
    card = (trimmed / "MODEL_CARD.md").read_text()
    assert f"{100 * kept['value']:.1f} % of the accuracy" in card
    assert f"{100 * answers.mean():.1f} %" in card


def test_transfer_of_the_cut_and_of_the_last_layer(trimmed):
    found = load_trimming(trimmed)
    told = found.summary["transfer"]["Turned"]
    assert told["cut"] == found.at("transfer:Turned", 3)
    assert told["last"] == found.at("transfer:Turned", 4)
    assert told["gain"] == pytest.approx(told["cut"] - told["last"])


def test_by_the_command_line(tmp_path, capsys, light, monkeypatch):
    monkeypatch.setattr(
        "tunnel_lightning.__main__.COMMANDS", {"trim": ("", "tunnel_lightning.analysis.trim.command:command")}
    )
    asked = [
        "--model=toys_trim:trained",
        "--data=toys_trim.Signs",
        "--ood+=toys_trim.Signs",
        "--ood.turned=true",
    ]
    asked += ["--device=cpu", "--latency=false", "--probe=ridge", f"--out={tmp_path / 'trim'}"]
    assert main(["trim", *asked, "--keep=0.9"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cut behind layer 3 of 4 (layers.2.linear): 95" in said
    assert "at 72 % of the FLOPs; transfer to Turned" in said
    assert main(["trim", *asked, "--for", "turned"]) == 0
    assert ", for Turned: " in " ".join(capsys.readouterr().out.split())


def test_what_is_asked_by_hand_is_done(tmp_path, light, trimming):
    summary = trimming(tmp_path / "trim", layer="2")
    assert summary["choice"]["layer"] == "layers.1.linear"
    assert summary["certificate"]["keep"] is None
    assert trimming(tmp_path / "trim", layer="layers.3.linear")["choice"]["line"] == 4


def test_for_another_set_the_head_is_for_its_classes(tmp_path, trimming, monkeypatch):
    kept = []
    monkeypatch.setattr(
        command,
        "write_taken",
        lambda context, taken, found, own, *_: (kept.append((taken, own)), ({}, []))[1],
    )
    summary = trimming(tmp_path / "trim", ood=[TURNED], for_set="turned")
    (found, config), told = kept[0], summary["transfer"]["Turned"]
    assert not config, "the run's own data is not what it tells apart"
    assert right(found.network, turned=True).mean() == pytest.approx(told["cut"])
    assert told["cut"] == load_trimming(tmp_path / "trim").at("transfer:Turned", summary["choice"]["line"])
    assert summary["certificate"] is None
    assert summary["cut"]["classes_of"] == "Turned"


def test_the_network_is_left_as_it_was(tmp_path, light, monkeypatch):
    network = toys_trim.trained().train()
    network.layers[1].eval()
    monkeypatch.setattr(toys_trim, "mine", network, raising=False)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    monkeypatch.setattr(Asked, "subject", lambda self: _subject(network))
    torch.manual_seed(7)
    random = torch.get_rng_state()
    trim(
        Asked(model="x:y", data=toys_trim.Signs(), out=str(tmp_path / "trim"), device="cpu"),
        Options(keep=0.9, latency=False),
    )
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert [module.training for module in network.modules()] == modes
    assert not any(module._forward_hooks for module in network.modules())
    assert all(p.grad is None for p in network.parameters())


def _subject(network):
    from tunnel_lightning.analysis.subject import subject_of

    subject = subject_of(network)
    subject.data = toys_trim.Signs()
    return subject


@pytest.mark.parametrize(
    ("model", "options", "why"),
    [
        ("trained", {"keep": 1.0}, "every layer is needed"),
        ("shallow", {"keep": 0.9}, "single layer|raw pixels"),
        ("trained", {"keep": 0.2}, "the images need no network"),
    ],
)
def test_a_network_without_a_tunnel_is_not_cut(tmp_path, trimming, capsys, model, options, why):
    out = tmp_path / "trim"
    for name in (
        "cut.onnx",
        "checkpoints/last.ckpt",
        "curve.csv",
        "trim.json",
        "analysis/summary.json",
    ):  # former
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("old")
    summary = trimming(out, model, **options)
    assert summary["choice"]["line"] is None
    assert re.search(why, summary["choice"]["why"])
    assert {path.name for path in out.iterdir()} == {"curve.csv", "trim.json", "parts"}
    command.show(out, 0)
    assert "no tunnel to cut: " in capsys.readouterr().out


def test_a_trim_that_was_killed_while_its_files_took_their_places_is_done_again(tmp_path, trimming):
    out = tmp_path / "trim"
    trimming(out, keep=0.9)
    (out / "trim.json").unlink()
    (out / "manifest.json").write_text("{}")
    assert trimming(out, keep=0.9)["kind"] == "trim"


def test_exits_at_layers_that_are_not_there_are_refused_before_anything_is_measured(tmp_path, trimming):
    with pytest.raises(ValueError, match="nope"):
        trimming(tmp_path / "trim", keep=0.9, exits="nope")
    assert not (tmp_path / "trim").exists()


@pytest.mark.parametrize("asked", [False, True])
def test_graphs_take_pixels_where_asked(tmp_path, trimming, monkeypatch, asked):
    told = []

    def noted(*args, normalise, **options):
        told.append(normalise)
        return Exported([], {}, [])

    monkeypatch.setattr(written, "write_network", noted)
    trimming(tmp_path / "trim", keep=0.9, raw_pixels=asked)
    assert told == [asked]


def test_interrupted_it_goes_on_where_it_stopped(tmp_path, light, trimming, monkeypatch):
    once, heads = tmp_path / "once", []
    trimming(once, ood=[TURNED], keep=0.9)
    out, whole = tmp_path / "trim", curve.heads_of

    def counted(context, images):
        if len(heads) == 1:
            heads.append("interrupted")
            raise KeyboardInterrupt
        heads.append(images.name)
        return whole(context, images)

    monkeypatch.setattr(curve, "heads_of", counted)
    with pytest.raises(KeyboardInterrupt, match="the same command goes on"):
        trimming(out, ood=[TURNED], keep=0.9)
    assert not (out / "trim.json").exists()
    trimming(out, ood=[TURNED], keep=0.9)
    assert heads == ["Signs", "interrupted", "Turned"]
    assert (out / "curve.csv").read_bytes() == (once / "curve.csv").read_bytes()
    trimming(out, ood=[TURNED], keep=0.8)
    assert len(heads) == 3, "another share asks for no new heads"
    trimming(out, ood=[TURNED], keep=0.8, alpha=0.1)
    assert len(heads) == 5


def test_latencies_are_kept_too(tmp_path, light, trimming, monkeypatch):
    asked = []

    def timed(whole, cuts, x, told):
        asked.append(len(x))
        return {name: np.array([[1.0, 2.0 * k]] * 3) for k, name in enumerate(cuts, 1)}

    monkeypatch.setattr(curve, "latencies", timed)
    summary = trimming(tmp_path / "trim", keep=0.9, latency=True)
    found = load_trimming(tmp_path / "trim")
    assert asked == [1, 256] == found.batches
    assert found.curve["speedup_256"][1:].tolist() == [2, 4, 6, 8, 1]
    assert found.at("latency_ms_1", 2) == 1000
    assert summary["latency"]["turns"] == {"1": 3, "256": 3}
    trimming(tmp_path / "trim", keep=0.8, latency=True)
    assert len(asked) == 2


def test_tuned_weights_are_written_only_where_they_are_better(tmp_path, light, trimming, monkeypatch):
    kept = []
    monkeypatch.setattr(
        command, "write_taken", lambda context, taken, found, own, *_: (kept.append(taken), ({}, []))[1]
    )
    out = tmp_path / "trim"
    tuned = trimming(out, layer="2", tune_epochs=2, tune_lr=0.05)["tuned"]
    assert tuned["taken"]
    assert tuned["val_after"] > tuned["val_before"]
    assert right(kept[0].network).mean() == pytest.approx(tuned["accuracy_after"])
    assert tuned["low"] < tuned["gain"] == pytest.approx(tuned["accuracy_after"] - tuned["accuracy_before"])
    assert (tuned["optimizer"], tuned["lr"], tuned["epochs"]) == ("SGD", 0.05, 2)
    monkeypatch.setattr(taken, "tune", lambda *_: pytest.fail("a finished training is not made again"))
    again = trimming(out, layer="2", tune_epochs=2, tune_lr=0.05)["tuned"]
    assert again == tuned
    monkeypatch.setattr(
        taken, "tune", lambda network, *_: {k: torch.zeros_like(v) for k, v in network.state_dict().items()}
    )
    spoilt = trimming(out, layer="2", tune_epochs=3, tune_lr=0.05)
    assert not spoilt["tuned"]["taken"]
    assert right(kept[-1].network).mean() == pytest.approx(spoilt["tuned"]["accuracy_before"])
    assert spoilt["cut"]["accuracy"] == spoilt["tuned"]["accuracy_before"]


def test_tuning_leaves_the_network_it_is_given_alone(tmp_path):
    made = cut(
        toys_trim.trained(),
        "layers.1.linear",
        torch.randn(4, 32),
        torch.zeros(4),
        torch.randn(9, *toys_trim.SHAPE),
    )
    before = {key: value.clone() for key, value in made.state_dict().items()}
    recipe = Recipe(partial(torch.optim.SGD, lr=0.05), "SGD", 0.05)
    state = tune(made, ImageSet.of(toys_trim.Signs()), recipe, 1, tmp_path / "tune", torch.device("cpu"))
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())
    assert state.keys() == before.keys()
    assert not torch.equal(state["head.weight"], before["head.weight"])
    assert {path.name for path in (tmp_path / "tune").iterdir()} == {"best.ckpt", "last.ckpt"}


def test_the_share_is_of_the_networks_own_accuracy(tmp_path, light, trimming, trimmed):
    found = load_trimming(trimmed)
    value, whole = found.at("val_accuracy", 3), found.at("val_accuracy", -1)
    assert whole < 1
    assert trimming(tmp_path / "trim", keep=0.999 * value / whole)["choice"]["line"] == 3
    assert trimming(tmp_path / "trim", keep=min(1.0, 1.001 * value / whole))["choice"]["line"] != 3


def test_a_network_that_depends_on_more_than_the_image_is_not_cut(tmp_path, light, trimming, monkeypatch):
    real = taken.network_at

    def spoilt(*given):
        made = real(*given)
        made.head.weight.data.neg_()
        return made

    monkeypatch.setattr(taken, "network_at", spoilt)
    with pytest.raises(ValueError, match="otherwise than a head on that layer's features"):
        trimming(tmp_path / "trim", layer="3")
    assert not (tmp_path / "trim" / "trim.json").exists()


def test_of_a_run_it_is_written_beside_the_analysis(run, light):
    folder = trim(Asked(run=str(run), device="cpu", ood=[TURNED_DIGITS()]), Options(layer="2", latency=False))
    assert folder == run / "trim"
    summary = json.loads((folder / "trim.json").read_text())
    assert (summary["run_id"], summary["checkpoint"]) == ("tiny/version_0", "checkpoints/last.ckpt")
    assert summary["whole"]["reference"] == "network"


def TURNED_DIGITS():
    from tunnel_lightning.data import Digits

    return Digits(classes=3)


def test_without_a_head_of_its_own_the_last_layer_is_the_measure(tmp_path, light, monkeypatch):
    subject = _subject(toys_trim.trained())
    subject.matches = False
    monkeypatch.setattr(Asked, "subject", lambda self: subject)
    asked = Asked(model="x:y", data=toys_trim.Signs(), out=str(tmp_path / "trim"), device="cpu")
    trim(asked, Options(keep=0.9, latency=False))
    found = load_trimming(tmp_path / "trim")
    assert found.summary["whole"]["reference"] == "layers.3.linear"
    assert found.summary["whole"]["accuracy"] == found.at("accuracy", 4)
    assert np.isnan(found.at("accuracy", -1))
    assert any("its last layer, layers.3.linear" in note for note in found.summary["notes"])
