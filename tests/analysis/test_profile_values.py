"""What `analyze` finds of a network at hand: against direct computation, each measure alone, papers' protocols."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from toys import CLASSES
from toys_analysis import LAYERS, OTHER, TEST, TRAIN, analyze, features, trained, values

from tunnel_lightning.analysis.options import MEASURES, PROTOCOLS, Options, with_protocol
from tunnel_lightning.measures import linear_cka
from tunnel_lightning.measures.functional.ridge import ridge


@pytest.fixture(scope="module")
def net():
    return trained()


@pytest.fixture(scope="module")
def profile(net):
    names = [name for name in MEASURES if name not in ("masarczyk", "harun", "nguyen")]
    return analyze(net, TRAIN, TEST, {"Other": OTHER}, measures=names, block_images=64, name="net")


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
        inside = slice(block["start_index"] - 1, block["end_index"])  # layers count from 1
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
        assert len(found.similarity["cka_all"].names) == 11, "every output, the classifier's last"
        assert found.similarity["cka_all"].names[-1] == "10"
    else:
        assert values(found, "probe_accuracy", protocol, "Other").keys() == set(LAYERS)


def test_the_papers_train_their_probes_on_all_images_unless_told_otherwise():
    found = {name: with_protocol(Options(), name).sample for name in PROTOCOLS}
    assert found == {"masarczyk": 50_000, "harun": 50_000, "nguyen": Options().sample}
    assert with_protocol(Options(sample=500), "harun").sample == 500


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
