"""`analyze` on a network at hand: against direct computation, and what it leaves behind."""

import doctest
import json
import random
import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import CLASSES, Data, Images, Lit, Net, OtherData

import tunnel_lightning
from tunnel_lightning.analysis import profile as module
from tunnel_lightning.analysis.options import MEASURES, Options, with_protocol
from tunnel_lightning.measures import linear_cka
from tunnel_lightning.measures.functional.ridge import ridge
from tunnel_lightning.runs import Row, load_analysis
from tunnel_lightning.taps import TapSpec


def analyze(model, train, test, ood=(), **options):
    """Without a transfer set unless one is named: rendering one for every test takes long."""
    return tunnel_lightning.analyze(model, train, test, ood, **options)


LAYERS = ["input", "0", "4", "7"]
TRAIN, TEST = Images(300, 0), Images(150, 1)
OTHER = (Images(120, 2, classes=3), Images(90, 3, classes=3))


def trained(seed=0):
    """A network that knows something, in evaluation mode."""
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(TRAIN.x), TRAIN.y).backward()
        optimizer.step()
    return net.eval()


@pytest.fixture(scope="module")
def net():
    return trained()


@pytest.fixture(scope="module")
def profile(net):
    names = [name for name in MEASURES if name not in ("masarczyk", "harun", "nguyen")]
    return analyze(net, TRAIN, TEST, {"Other": OTHER}, measures=names, block_images=64, name="net")


def features(net, images):
    """The layers' outputs, averaged to 2 x 2, by plain indexing of the sequence; and the scores."""
    found, x = {"input": images.x.flatten(1)}, images.x
    with torch.no_grad():
        for name, layer in net.named_children():
            x = layer(x)
            if name in LAYERS:
                found[name] = (
                    (nn.functional.adaptive_avg_pool2d(x, 2) if x.ndim == 4 else x).flatten(1).clone()
                )
    return {name: y.double().numpy() for name, y in found.items()}, x


def values(profile, measure, variant, dataset="data", split="test"):
    return {
        r.layer: r.value
        for r in profile.rows
        if (r.measure, r.variant, r.dataset, r.split) == (measure, variant, dataset, split)
    }


# -- against direct computation ---------------------------------------------------------------------------


def test_the_network_and_its_layers(net, profile):
    _, scores = features(net, TEST)
    accuracy = float((scores.argmax(1) == TEST.y).double().mean())
    assert 0.5 < accuracy <= 1
    assert values(profile, "accuracy", "network") == {"network": accuracy}
    assert [layer.name for layer in profile.run.layers] == [*LAYERS, "10"]
    assert profile.summary["accuracy"]["value"] == accuracy
    assert profile.summary["network"]["parameters"] == sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(("dataset", "train", "test"), [("data", TRAIN, TEST), ("Other", *OTHER)])
def test_ridge_probes(net, profile, dataset, train, test):
    (x, _), (z, _) = features(net, train), features(net, test)
    found = values(profile, "probe_accuracy", "ridge", dataset)
    assert list(found) == LAYERS
    for name in LAYERS:
        probe = make_pipeline(StandardScaler(), Ridge(1e-2 * len(train))).fit(
            x[name], np.eye(CLASSES)[train.y]
        )
        assert found[name] == np.mean(probe.predict(z[name]).argmax(1) == test.y.numpy()), name
        ours = ridge(torch.from_numpy(x[name]), train.y, train.y.max() + 1)
        answers = ours(torch.from_numpy(z[name])).argmax(1)
        assert found[name] == float((answers == test.y).double().mean())


def test_ranks_and_spectra(net, profile):
    x, _ = features(net, TEST)
    ranks, fractions = values(profile, "rank_cov", "rtol=1e-3"), values(profile, "pc1_fraction", "cov")
    assert list(profile.spectrum) == [f"data|test|{name}" for name in LAYERS]
    for name in LAYERS:
        spectrum = np.linalg.eigvalsh(np.cov(x[name].T))[::-1]
        assert ranks[name] == (spectrum > 1e-3 * spectrum[0]).sum(), name
        assert fractions[name] == pytest.approx(spectrum[0] / spectrum.sum(), rel=1e-5)
        kept = profile.spectrum[f"data|test|{name}"]
        assert (np.diff(kept) <= 0).all()
        assert kept == pytest.approx(spectrum, rel=1e-4, abs=1e-6 * spectrum[0])


def test_similarity_of_one_batch_is_that_of_the_whole_features(net, profile):
    x, _ = features(net, TEST)
    cka = profile.similarity["cka"]
    assert cka.names == LAYERS, "in execution order, the raw pixels first"
    for i, first in enumerate(LAYERS):
        for j, second in enumerate(LAYERS):
            direct = linear_cka(torch.from_numpy(x[first]), torch.from_numpy(x[second]), unbiased=True)
            assert cka.value[i, j] == pytest.approx(float(direct), abs=1e-6)
    assert np.isnan(cka.se[0, 1]), "one batch has no standard error"
    for name in ("rbf_cka", "procrustes", "svcca", "pwcca"):
        assert profile.similarity[name].names == LAYERS
        assert np.diag(profile.similarity[name].value) == pytest.approx(1, abs=1e-5)


def test_blocks_are_squares_of_the_map(profile):
    blocks, cka = profile.summary["blocks"], profile.similarity["cka_all"]
    assert (blocks["map"], blocks["threshold"]) == ("cka_all", 0.9)
    assert blocks["found"], "an activation beside what it is of, at least"
    for block in blocks["found"]:
        inside = slice(block["start_index"], block["end_index"] + 1)
        names = cka.names[inside]
        assert (names[0], names[-1], len(names)) == (block["start"], block["end"], block["size"])
        assert block["min_cka"] == pytest.approx(cka.value[inside, inside].min())
    fractions = values(profile, "pc1_fraction", "gram256")
    assert list(fractions) == cka.names


def test_neighbours(net, profile):
    (x, _), (z, _) = features(net, TRAIN), features(net, TEST)
    found = values(profile, "knn_accuracy", "k=20")
    for name in LAYERS:
        direct = KNeighborsClassifier(20).fit(x[name], TRAIN.y).score(z[name], TEST.y)
        assert found[name] == pytest.approx(direct, abs=1.5 / len(TEST)), "a tie or two in float32"


def test_logistic_probes_at_the_penalties_that_were_chosen(net, profile):
    (x, _), (z, _) = features(net, TRAIN), features(net, TEST)
    for split, images, shown in (("train", TRAIN, x), ("test", TEST, z)):
        found = values(profile, "probe_accuracy", "logistic", split=split)
        assert list(found) == LAYERS
        for name in LAYERS:
            penalty = profile.summary["penalty"][f"data|{name}"]
            probe = make_pipeline(
                StandardScaler(), LogisticRegression(C=1 / (penalty * len(TRAIN)), tol=1e-6, max_iter=5000)
            ).fit(x[name], TRAIN.y)
            assert found[name] == pytest.approx(probe.score(shown[name], images.y), abs=1.5 / len(images))


def test_the_class_means_answer_as_the_network_or_not(net, profile):
    (x, _), (z, scores) = features(net, TRAIN), features(net, TEST)
    disagreement, accuracy = (
        values(profile, "ncm_disagreement", "network"),
        values(profile, "ncm_accuracy", "fit means"),
    )
    for name in LAYERS:
        means = np.stack([x[name][TRAIN.y.numpy() == c].mean(0) for c in range(CLASSES)])
        answer = ((z[name][:, None] - means) ** 2).sum(2).argmin(1)
        assert accuracy[name] == np.mean(answer == TEST.y.numpy())
        assert disagreement[name] == pytest.approx(np.mean(answer != scores.argmax(1).numpy()))


# -- each measure alone -----------------------------------------------------------------------------------

PROBE = {"probe_accuracy", "probe_balanced_accuracy"}
TRANSFER = {"ood_retained", "id_ood_pearson", "id_ood_alignment"}
TRAINED = dict.fromkeys(("logistic", "masarczyk", "harun", "nguyen"), PROBE | TRANSFER)
GIVES = {
    "ridge": PROBE | TRANSFER,
    "ranks": {"rank_cov", "effective_rank", "stable_rank", "participation_ratio", "rankme", "pc1_fraction"},
    "variance": {"variance_inter", "variance_intra", "variance_ratio"},
    "collapse": {"nc1", "nc2", "nc3", "cdnv", "ncm_accuracy", "ncm_disagreement"},
    "knn": {"knn_accuracy"},
    "blocks": {"pc1_fraction"},
    **TRAINED,
}
MAPS = {
    "blocks": {"cka_all", "cka_all_no_pc1", "cka_all_no_dominant", "pc1_cosine"},
    **{name: {name} for name in ("cka", "rbf_cka", "procrustes", "svcca", "pwcca")},
}


@pytest.mark.parametrize("name", MEASURES)
def test_each_measure_alone(net, name):
    found = analyze(net, TRAIN, TEST, {"Other": OTHER}, measures=name, block_images=64)
    assert {r.measure for r in found.rows} == GIVES.get(name, set()) | {"accuracy"}
    assert set(found.similarity) == MAPS.get(name, set())
    assert set(found.embeddings) == ({"0", "4", "7", "labels"} if name == "tsne" else set())
    assert bool(found.spectrum) == (name == "ranks")
    assert bool(found.summary["notes"]) == (name == "additions"), "a network without additions"
    assert (found.path / "report.html").stat().st_size > 100_000


@pytest.mark.parametrize("protocol", ["masarczyk", "harun", "nguyen"])
def test_the_protocols_of_papers(net, protocol):
    options = with_protocol(Options(block_images=64), protocol)
    found = analyze(net, TRAIN, TEST, {"Other": OTHER}, options=options)
    settings = found.summary["settings"]
    measures = {r.measure for r in found.rows}
    if protocol == "masarczyk":
        assert (settings["taps.pool"], settings["taps.max_features"]) == ("flatten", 8000)
        assert found.run.layers[1].dim == 6 * 64
        assert measures >= PROBE | {"rank_cov", "variance_inter"}
    if protocol == "harun":
        assert (settings["taps.pool"], found.run.layers[1].dim) == ("2x2", 6 * 4)
        assert measures >= PROBE | TRANSFER | {"rank_cov"}
        assert found.summary["transfer"]["Other"]["strength"]
    if protocol == "nguyen":
        assert set(found.similarity) == {"cka", *MAPS["blocks"]}
        assert len(found.similarity["cka_all"].names) == 10, "every output but the classifier's"
    else:
        assert values(found, "probe_accuracy", protocol, "Other").keys() == set(LAYERS)


def test_the_cap_on_columns(net):
    taps = with_protocol(Options(), "masarczyk").taps
    found = analyze(
        net, TRAIN, TEST, taps=type(taps)("default", "flatten", max_features=40), measures="ranks"
    )
    assert [layer.dim for layer in found.run.layers] == [64, 40, 40, 16, CLASSES]


def test_probes_round_residual_additions():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 3, padding=1)

        def forward(self, x):
            return torch.relu(x + self.conv(x))

    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), Block(), Block(), nn.Flatten(), nn.Linear(144, CLASSES))
    found = analyze(model, TRAIN, TEST, measures="additions")
    rows = [r for r in found.rows if r.variant == "ridge@addition" and r.measure == "probe_accuracy"]
    assert [(r.index, r.layer) for r in rows] == [(1, "1.conv"), (2, "1.add"), (3, "2.conv"), (4, "2.add")]
    seen = []
    hook = model[1].conv.register_forward_hook(lambda module, given, y: seen.append((y, y + given[0])))
    with torch.no_grad():
        model(TRAIN.x)
        model(TEST.x)
    hook.remove()
    for row, x, z in zip(rows, *seen, strict=False):  # branch and sum, of training and test images
        x, z = (nn.functional.adaptive_avg_pool2d(y, 2).flatten(1).double() for y in (x, z))
        right = ridge(x, TRAIN.y, CLASSES)(z).argmax(1) == TEST.y
        assert row.value == float(right.double().mean()), row.layer


# -- memory -----------------------------------------------------------------------------------------------


def same_rows(one, two):
    assert [r._replace(value=0, se=0) for r in one] == [r._replace(value=0, se=0) for r in two]
    assert [(r.value, r.se, r.n) for r in one] == [
        pytest.approx((r.value, r.se, r.n), nan_ok=True) for r in two
    ]


LITTLE = 3.2e-4  # GiB: a little more than the moments of the raw pixels


def test_little_memory_takes_more_passes_and_gives_the_same(net):
    names = ["ridge", "ranks", "variance", "collapse", "cka", "logistic", "knn", "procrustes"]
    told = {}
    taps = TapSpec(list("012345789"))

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
    with pytest.raises(ValueError, match=r"layer 'input' with 64 features .* limit .* taps.pool=avg"):
        analyze(net, TRAIN, TEST, measures="ridge", memory_gb=1e-5)


def test_similarity_alone_needs_no_memory_for_moments(net):
    assert "cka" in analyze(net, TRAIN, TEST, measures="cka", memory_gb=1e-5).similarity


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
