"""What is measured on held features: of which images, in what order, under how much memory."""

import numpy as np
import pytest
import torch
from counting import peak_bytes
from torch import nn
from torch.utils.data import TensorDataset
from toys import CLASSES, Images, Net

import tunnel_lightning
from tunnel_lightning.analysis import held as module
from tunnel_lightning.analysis import options
from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.options import GIB, Options
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.subject import subject_of
from tunnel_lightning.measures import FeatureSample, procrustes
from tunnel_lightning.measures.functional.logistic import logistic_bytes
from tunnel_lightning.measures.functional.neighbours import knn_bytes
from tunnel_lightning.measures.functional.pairwise import pairwise_bytes
from tunnel_lightning.measures.recipes import RECIPES

TRAIN, TEST = Images(200, 0), Images(100, 1)


def analyze(model, train, test, **options):
    """Without a transfer set."""
    return tunnel_lightning.analyze(model, train, test, (), **options)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


def by_class(images):
    order = images.y.argsort(stable=True)
    return TensorDataset(images.x[order], images.y[order])


def rows(found, measure):
    return [r for r in found.rows if r.measure == measure and r.layer == "7"]


def test_a_sample_of_so_many_images(net):
    found = analyze(net, TRAIN, TEST, measures="logistic,knn,masarczyk", sample=60)
    assert {(r.variant, r.split): r.n for r in rows(found, "probe_accuracy")} == {
        (variant, split): 60 for variant in ("logistic", "masarczyk") for split in ("train", "test")
    }
    assert [r.n for r in rows(found, "knn_accuracy")] == [60]
    found = analyze(net, TRAIN, TEST, measures="logistic", sample=60, fit_images=40, eval_images=30)
    assert {r.split: r.n for r in rows(found, "probe_accuracy")} == {"train": 40, "test": 30}
    found = analyze(net, TRAIN, TEST, measures="logistic")
    assert {r.split: r.n for r in rows(found, "probe_accuracy")} == {"train": 200, "test": 100}


def test_fewer_images_than_neighbours(net):
    found = analyze(net, TRAIN, TEST, measures="knn", fit_images=8)
    assert {r.variant for r in found.rows if r.measure == "knn_accuracy"} == {"k=8"}


def test_pictures_show_all_classes_of_a_set_in_the_order_of_its_classes(net, monkeypatch):
    monkeypatch.setattr(options, "PICTURED", 25)
    found = analyze(net, by_class(TRAIN), by_class(TEST), measures="tsne").embeddings
    assert list(found) == ["0", "4", "7", "labels"], "the first, the middle, the last"
    assert {len(each) for each in found.values()} == {25}
    assert set(found["labels"]) == set(range(CLASSES))
    assert all(each.shape == (25, 2) for name, each in found.items() if name != "labels")


def test_pictures_are_the_same_each_time(net):
    one, two = (analyze(net, TRAIN, TEST, measures="tsne").embeddings for _ in range(2))
    for name, places in one.items():
        assert np.array_equal(places, two[name])


@pytest.mark.parametrize("images", [9, 10, 31])
def test_pictures_of_few_images(net, images):
    found = analyze(net, TRAIN, TEST, measures="tsne", eval_images=images)
    said = "no pictures of layers: t-SNE needs 10 test images, and takes 9"
    assert bool(found.embeddings) == (images >= 10)
    assert (said in found.summary["notes"]) == (images < 10)


@pytest.mark.parametrize("chosen", ["7, 0", ["7", "0"]])
def test_pictures_of_chosen_layers_in_the_order_they_are_named(net, chosen):
    found = analyze(net, TRAIN, TEST, measures="tsne", pictures=chosen)
    assert list(found.embeddings) == ["7", "0", "labels"]
    assert found.summary["settings"]["pictures"] == ["7", "0"]
    default = analyze(net, TRAIN, TEST, measures="tsne")
    assert default.summary["settings"]["pictures"] == []
    for name in "70":
        assert np.array_equal(found.embeddings[name], default.embeddings[name])
    assert list(analyze(net, TRAIN, TEST, measures="tsne", pictures="input").embeddings) == [
        "input",
        "labels",
    ]


class Labels(nn.Module):
    """Its last layer has the name of what the classes are called among the pictures."""

    def __init__(self):
        super().__init__()
        self.first, self.labels, self.head = nn.Linear(64, 9), nn.Linear(9, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.head(self.labels(self.first(x.flatten(1)).relu()).relu())


def test_a_layer_called_labels_does_not_take_the_place_of_the_classes():
    torch.manual_seed(0)
    told = []
    found = analyze(Labels(), TRAIN, TEST, measures="tsne", progress=lambda *at: told.append(at)).embeddings
    assert ("pictures", 1, 1) in told
    assert list(found) == ["first", "labels"]
    assert set(found["labels"].tolist()) == set(range(CLASSES))
    with pytest.raises(ValueError, match="a layer called 'labels' can't be drawn"):
        analyze(Labels(), TRAIN, TEST, measures="tsne", pictures="first,labels")


def test_a_layer_of_one_column_has_no_picture():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.ReLU(), nn.Linear(1, CLASSES))
    found = analyze(model, TRAIN, TEST, measures="tsne,ridge,logistic,procrustes")
    assert found.embeddings == {}
    assert found.similarity["procrustes"].names == ["input", "1"]


def test_maps_are_of_images_spread_over_the_set_also_on_disk(net, monkeypatch):
    monkeypatch.setattr(options, "MAPPED", 30)
    on_disk = []
    close = FeatureSample.close
    monkeypatch.setattr(
        FeatureSample, "close", lambda sample: on_disk.append(sample.on_disk) or close(sample)
    )
    needed = pairwise_bytes("procrustes", 30, [64, 24, 32, 16])
    much = analyze(net, by_class(TRAIN), by_class(TEST), measures="procrustes")
    little = analyze(
        net, by_class(TRAIN), by_class(TEST), measures="procrustes", memory_gb=(needed + 1000) / GIB
    )
    assert on_disk == [False, True]
    assert much.summary["settings"]["map_images"] == 30
    found = much.similarity["procrustes"]
    assert np.array_equal(found.value, little.similarity["procrustes"].value)
    assert np.isnan(found.se).all()
    with torch.no_grad():
        shown = by_class(TEST)[np.linspace(0, 99, 30).round()][0]
        first = nn.functional.adaptive_avg_pool2d(net[0](shown), 2).flatten(1)
        last = nn.Sequential(*list(net)[:8])(shown)
    direct = float(procrustes(first.double(), last.double()).similarity)
    assert found.value[1, 3] == pytest.approx(direct, abs=1e-5)


# -- memory -----------------------------------------------------------------------------------------------

DIMS = {"input": 64, "0": 24, "4": 32, "7": 16}


def needs(group, kinds, train, test):
    """Bytes of the held features of some layers, and of what is done with them, at least."""
    dims = [DIMS[name] for name in group]
    held = sum(4 * dim * (train + test) for dim in dims)
    trained = [sum(RECIPES[kind].nbytes(dim, CLASSES) for dim in dims) for kind in kinds if kind in RECIPES]
    one = [8 * train * (max(dims) + 8 * CLASSES)] if set(kinds) != {"knn"} else []  # while they are scored
    one += [logistic_bytes(train, dim, CLASSES) for dim in dims if "logistic" in kinds]
    one += [knn_bytes(dim, test) for dim in dims if "knn" in kinds]
    return held + max(trained, default=0) + max(one)


@pytest.mark.parametrize(
    "kinds", [["logistic"], ["masarczyk", "harun"], ["knn"], ["logistic", "masarczyk", "knn"]]
)
def test_groups_leave_room_for_what_is_done_with_the_features(net, monkeypatch, kinds):
    held = []
    hold = module.hold

    def spied(context, images, group, split, *rest):
        if split == "train":
            held.append(list(group))
        return hold(context, images, group, split, *rest)

    monkeypatch.setattr(module, "hold", spied)
    much = analyze(net, TRAIN, TEST, measures=kinds)
    assert held == [list(DIMS)], "in one pass where there is room"
    held.clear()
    labels_and_heads = 8 * 300 + 16 * CLASSES * 65
    limit = needs(["input"], kinds, 200, 100) + labels_and_heads
    little = analyze(net, TRAIN, TEST, measures=kinds, memory_gb=limit / GIB)
    assert [name for group in held for name in group] == list(DIMS)
    assert len(held) > 1
    assert max(needs(group, kinds, 200, 100) for group in held) <= limit
    for one, two in zip(much.rows, little.rows, strict=True):
        assert one._replace(value=0, se=0) == two._replace(value=0, se=0)
        assert one.value == pytest.approx(two.value, abs=1e-12)


def test_held_measures_take_no_more_bytes_than_the_limit():
    torch.manual_seed(0)
    hidden = [layer for _ in range(2) for layer in (nn.Linear(250, 250), nn.ReLU())]
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 250), *hidden, nn.Linear(250, CLASSES))
    own = ImageSet.from_loaders("data", Images(1500, 0), Images(400, 1), batch_size=32)
    subject = subject_of(model, None, own)
    limit = int(1.02 * (4 * 250 * 1900 + logistic_bytes(1500, 250, CLASSES)))  # of one layer

    def used(memory_gb):
        with Context(subject, own, [], Options(measures="logistic", memory_gb=memory_gb)) as context:
            return peak_bytes(lambda: module.held_set(context, own))

    batch = 2 * 4 * 32 * (64 + 3 * 250)  # the images and what the network makes of them
    assert used(limit / GIB) < limit + batch < used(4)


def test_what_does_not_fit_alone_is_refused_before_any_pass(net):
    passes = []
    for measures, said in (
        (
            "logistic",
            r"layer 'input' with 64 features needs .* --memory_gb, or lower it with a smaller --sample",
        ),
        ("knn", r"layer 'input' with 64 features needs .* --memory_gb, or lower it with a smaller --sample"),
        (
            "svcca",
            r"svcca of 4 layers on 100 images needs .* raise --memory_gb, take a smaller --sample or fewer",
        ),
        (
            "tsne",
            r"a picture of a layer with 32 features on 100 images needs .* raise --memory_gb, take a smaller",
        ),
        (
            "cka",
            r"cka of 4 layers in batches of 100 images needs .* raise --memory_gb, take fewer --taps.layers",
        ),
        (
            "blocks",
            r"blocks over 11 outputs in batches of 32 images needs .* or leave blocks out of --measures",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            analyze(
                net, TRAIN, TEST, measures=measures, memory_gb=2e-5, block_images=32,
                progress=lambda what, done, total: passes.append(what),
            )  # fmt: skip
    assert not passes
    assert not any(module._forward_hooks for module in net.modules())
