"""`analyze` on a network at hand: the memory it takes, what it leaves behind, sick networks and sets."""

import doctest
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import CLASSES, Data, Images, Lit, OtherData
from toys_analysis import LAYERS, OTHER, TEST, TRAIN, analyze, features, same_rows, trained, values

import tunnel_lightning
from tunnel_lightning.analysis import profile as module
from tunnel_lightning.measures.functional.ridge import ridge
from tunnel_lightning.runs import Row, load_analysis
from tunnel_lightning.taps import TapSpec


@pytest.fixture(scope="module")
def net():
    return trained()


# -- memory -----------------------------------------------------------------------------------------------


LITTLE = 0.016  # GiB: a little more than the widest layer takes, its features held and probes fitted on them


def test_little_memory_takes_more_passes_and_gives_the_same(net, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 2)  # each thread of the neighbours' search takes memory
    names = ["ridge", "ranks", "variance", "collapse", "cka", "logistic", "knn", "procrustes"]
    told = {}
    taps = TapSpec(list("012345789"), "flatten")

    def passes(memory_gb):
        seen = told.setdefault(memory_gb, [])
        return analyze(
            net, TRAIN, TEST, {"Other": OTHER}, measures=names, memory_gb=memory_gb, taps=taps,
            progress=lambda what, done, total: seen.append(what) if done == 0 and total else None,
        )  # fmt: skip

    much, little = passes(4.0), passes(LITTLE)
    assert told[4.0].count("data test") == 1
    assert told[LITTLE].count("data test") > 1
    assert told[LITTLE].count("data train, held") > 1
    same_rows(much.rows, little.rows)
    for name in ("cka", "procrustes"):
        assert little.similarity[name].names == much.similarity[name].names
        assert little.similarity[name].value == pytest.approx(much.similarity[name].value, abs=1e-12)
    assert list(little.spectrum) == list(much.spectrum)


def test_a_layer_too_wide_for_the_memory(net):
    with pytest.raises(ValueError, match=r"layer 'input' with 64 features .* limit .*taps.pool=avg"):
        analyze(net, TRAIN, TEST, measures="ridge", memory_gb=1e-5)


def test_similarity_alone_needs_no_memory_for_moments(net):
    wide = {"memory_gb": 1e-3, "taps": TapSpec(pool="flatten")}
    assert "cka" in analyze(net, TRAIN, TEST, measures="cka", **wide).similarity
    with pytest.raises(ValueError, match="layer '0' with 384 features needs"):
        analyze(net, TRAIN, TEST, measures="cka,ranks", **wide)


def test_fewer_images_than_columns_are_solved_by_the_dual(net, monkeypatch):
    """With 40 images of 64 pixels the raw pixels and the first layer at full width are wider than the set."""
    few = Images(40, 0)
    calls = []
    from tunnel_lightning.analysis import streamed

    monkeypatch.setattr(streamed, "ridge", lambda x, *a: calls.append(x.shape) or ridge(x, *a))
    found = analyze(net, few, TEST, measures=["ridge", "collapse"])
    assert calls == [(40, 64)]
    (x, _), (z, _) = features(net, few), features(net, TEST)
    for name, value in values(found, "probe_accuracy", "ridge").items():
        probe = make_pipeline(StandardScaler(), Ridge(1e-2 * 40)).fit(x[name], np.eye(CLASSES)[few.y])
        assert value == np.mean(probe.predict(z[name]).argmax(1) == TEST.y.numpy()), name
    assert set(values(found, "ncm_accuracy", "fit means")) == set(LAYERS)


# -- what it leaves behind --------------------------------------------------------------------------------


def state_of(model):
    return (
        {name: tensor.clone() for name, tensor in model.state_dict().items()},
        [m.training for m in model.modules()],
        [len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()],
        [p.requires_grad for p in model.parameters()],
        [p.grad for p in model.parameters()],
    )


def rng():
    return random.getstate(), np.random.get_state(), torch.get_rng_state()


def same(one, two):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, two)
    if isinstance(one, np.ndarray):
        return np.array_equal(one, two)
    if isinstance(one, dict):
        return list(one) == list(two) and all(same(one[k], two[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(two) and all(map(same, one, two))
    return one == two


@pytest.mark.parametrize("fails", [False, True])
def test_the_network_and_the_random_states_are_untouched(fails):
    model = Lit()
    model.net[1].eval()
    model.net.train()
    model.net[3].eval()
    before, states = state_of(model), rng()

    def progress(what, done, total):
        if fails and what.startswith("data test, held"):
            raise RuntimeError("stop")

    def run():
        return analyze(
            model, Images(160, 0, jitter=True), Images(60, 1, jitter=True), {"Other": OTHER},
            measures=["ridge", "cka", "logistic", "masarczyk", "tsne", "blocks"], progress=progress, block_images=32,
        )  # fmt: skip

    if fails:
        with pytest.raises(RuntimeError, match="stop"):
            run()
    else:
        run()
    assert same(before, state_of(model))
    assert same(states, rng())


def test_an_unknown_layer_leaves_no_hooks(net):
    with pytest.raises(ValueError, match="blub"):
        analyze(net, TRAIN, TEST, measures="ridge", taps=TapSpec("blub"))
    assert not any(m._forward_hooks for m in net.modules())


def test_loaders_of_anyone_and_datamodules(net):
    loaders = [DataLoader(images, batch_size=7, shuffle=True) for images in (TRAIN, TEST)]
    one = analyze(net, *loaders, measures=["ridge", "cka"])
    two = analyze(net, TRAIN, TEST, measures=["ridge", "cka"])
    same_rows(one.rows, two.rows)
    third = analyze(net, TRAIN, TEST, [OtherData()], measures="ridge")
    assert values(third, "probe_accuracy", "ridge", "Other")
    assert Data.name


def test_a_profile_without_a_folder(net):
    profile = analyze(net, TRAIN, TEST, measures=["ridge", "ranks"])
    folder = profile.path
    assert folder.is_dir()
    assert set(profile.tunnel()) == {"id95", "id98", "ood"}
    assert len(profile.to_pandas()) == len(profile.rows)
    assert profile.plot().axes
    assert isinstance(profile.rows[0], Row)
    run = profile.run
    del profile
    assert not folder.exists(), "it goes with the profile"
    assert [layer.name for layer in run.layers] == [*LAYERS, "10"]


SHARED = """
import torch
from lightning.fabric import Fabric
from toys import Images, Net
from tunnel_lightning import analyze

fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
fabric.launch()
torch.manual_seed(0)
profile = analyze(Net(), Images(120, 0), Images(60, 1), [], measures="cka", fabric=fabric)
path = profile.path
if fabric.is_global_zero:
    del profile
    assert not path.exists()
fabric.barrier()
if not fabric.is_global_zero:
    assert list(profile.similarity) == ["cka"]
    del profile
    assert not path.exists()
print("done")
"""


def test_a_profile_without_a_folder_outlives_that_of_the_other_process(tmp_path):
    (tmp_path / "shared.py").write_text(SHARED)
    paths = os.pathsep.join([str(Path(__file__).parents[1]), *sys.path])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, tmp_path / "shared.py"], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.stdout.count("done") == 2, done.stderr


def test_a_folder_that_is_named_is_an_analysis(net, tmp_path):
    profile = analyze(net, TRAIN, TEST, out=tmp_path / "a", measures=["ridge", "ranks"], dataset="Clusters")
    again = load_analysis(tmp_path / "a")
    same_rows(again.run.rows, profile.rows)
    summary = json.loads((tmp_path / "a/summary.json").read_text())
    assert summary["schema"] == 1
    assert {
        "run_id", "title", "network", "checkpoint", "step", "epoch", "accuracy", "class_names", "tunnel", "rank",
        "transfer", "mean_retained", "strength", "blocks", "penalty", "settings", "versions", "machine", "seconds",
        "notes",
    } <= set(summary)  # fmt: skip
    assert set(summary["accuracy"]) == {"value", "low", "high", "n", "dataset", "split"}
    assert set(summary["tunnel"]) == {"id95", "id98", "ood"}
    assert set(summary["rank"]) == {"first", "max", "max_layer", "last", "cap"}
    assert summary["rank"]["cap"] == min(len(TEST) - 1, 16)
    assert summary["mean_retained"] is None, "NaN"
    assert summary["settings"]["measures"] == ["ridge", "ranks"]
    assert profile.report(tmp_path / "page.html").exists()


# -- sick networks and sets -------------------------------------------------------------------------------


class Sick(nn.Module):
    """A layer whose outputs are what is given, beside healthy ones."""

    def __init__(self, value):
        super().__init__()
        self.first, self.second = nn.Linear(64, 8), nn.Linear(8, 8)
        self.head = nn.Linear(8, CLASSES)
        nn.init.constant_(self.second.weight, 0)
        nn.init.constant_(self.second.bias, value)

    def forward(self, x):
        x = self.first(x.flatten(1))
        self.second(x)
        return self.head(x)


@pytest.mark.parametrize(("value", "said"), [(float("nan"), "NaN or infinite"), (1.0, "constant")])
def test_a_layer_that_is_sick_is_nan_for_itself_alone(value, said):
    torch.manual_seed(0)
    names = [
        "ridge",
        "ranks",
        "variance",
        "collapse",
        "cka",
        "logistic",
        "knn",
        "tsne",
        "procrustes",
        "masarczyk",
    ]
    with pytest.warns(UserWarning, match=f"layer 'second' has {said} features"):
        found = analyze(Sick(value), TRAIN, TEST, {"Other": OTHER}, measures=names)
    assert any("'second'" in note and said in note for note in found.summary["notes"])
    assert np.isnan(values(found, "probe_accuracy", "ridge")["second"])
    for measure, variant in (
        ("rank_cov", "rtol=1e-3"),
        ("probe_accuracy", "logistic"),
        ("nc1", "trace_pinv"),
    ):
        split = "train" if measure == "nc1" else "test"
        at = values(found, measure, variant, split=split)
        assert np.isnan(at["second"])
        assert np.isfinite([at["first"], at["input"]]).all()
    cka = found.similarity["cka"]
    place = cka.names.index("second")
    assert np.isnan(cka.value[place]).all()
    assert np.isfinite(np.delete(np.delete(cka.value, place, 0), place, 1)).all()


def test_a_network_that_always_says_the_same():
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    nn.init.zeros_(model[3].weight)
    found = analyze(model, TRAIN, TEST, {"Other": OTHER}, measures=["ridge", "ranks", "collapse", "blocks"])
    assert values(found, "accuracy", "network")["network"] == pytest.approx(1 / CLASSES, abs=0.01)


def test_a_set_of_one_class(net):
    one = TensorDataset(TRAIN.x[:60], torch.zeros(60, dtype=torch.long))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = analyze(net, one, one, measures=["ridge", "ranks", "variance", "collapse", "knn", "logistic"])
    assert found.summary["accuracy"] is None, "five outputs, one class"
    assert set(values(found, "probe_accuracy", "ridge").values()) == {1.0}


def test_a_class_without_images_is_a_note_and_too_few_images_an_error(net):
    keep = TRAIN.y != 3
    part = TensorDataset(TRAIN.x[keep], TRAIN.y[keep])
    found = analyze(net, part, TEST, measures=["ridge", "collapse", "logistic"])
    assert "data has no training images of 1 of 5 classes (3)" in found.summary["notes"]
    with pytest.raises(ValueError, match="4 training images are fewer than its 5 classes"):
        analyze(net, TRAIN, TEST, measures="ridge", fit_images=4)


def test_sets_of_another_size_are_refused_in_words(net):
    small = TensorDataset(torch.zeros(9, 1, 4, 4), torch.arange(9) % 3)
    with pytest.raises(ValueError, match=r"Small gives images \[1, 4, 4\] and data \[1, 8, 8\]"):
        analyze(net, TRAIN, TEST, {"Small": (small, small)}, measures="ridge")
    with pytest.raises(ValueError, match="can't run images"):
        analyze(net, small, small, measures="ridge")


def test_docstrings():
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0


def test_images_of_ones_own_are_watched_on_glyphs_unless_told_otherwise(net):
    found = tunnel_lightning.analyze(net, TRAIN, TEST, measures="ridge")
    assert list(found.summary["transfer"]) == ["Glyphs"]


# -- networks of other habits -----------------------------------------------------------------------------


class Dressed(nn.Module):
    """A network whose scores come in something else, and whose state holds more than tensors."""

    def __init__(self, net, dress):
        super().__init__()
        self.net, self.dress = net, dress

    def forward(self, x):
        return self.dress(self.net(x))

    def get_extra_state(self):
        return {"version": 3}


@pytest.mark.parametrize("dress", [lambda y: {"logits": y}, lambda y: (y, None)], ids=["dict", "tuple"])
def test_scores_in_something_else_are_the_networks_scores(net, dress):
    plain = analyze(net, TRAIN, TEST, measures="ridge")
    dressed = analyze(Dressed(net, dress), TRAIN, TEST, measures="ridge")
    assert dressed.summary["accuracy"] == plain.summary["accuracy"]
    assert not dressed.summary["notes"]


def test_a_compiled_network_that_was_not_called_yet(net):
    plain = analyze(net, TRAIN, TEST, measures="ranks")
    compiled = analyze(torch.compile(net, backend="eager"), TRAIN, TEST, measures="ranks")
    assert compiled.summary["accuracy"] == plain.summary["accuracy"]
    assert len(compiled.rows) == len(plain.rows)


def test_every_output_is_seen_on_the_images_that_are_scored(net):
    found = analyze(net, TRAIN, TEST, measures="blocks", eval_images=20)
    assert {row.n for row in found.rows if row.measure == "pc1_fraction"} == {20}
    assert found.summary["settings"]["block_images"] == 20
