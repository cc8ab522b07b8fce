"""What is measured on held features: of which images, in what order, under how much memory."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset
from toys import CLASSES, Images, Net

import tunnel_lightning
from tunnel_lightning.analysis import held as module
from tunnel_lightning.measures import procrustes

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
    monkeypatch.setattr(module, "PICTURED", 25)
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
    found = analyze(net, TRAIN, TEST, measures="tsne", eval_images=images).embeddings
    assert bool(found) == (images >= 10)


def test_a_layer_of_one_column_has_no_picture():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), nn.ReLU(), nn.Linear(1, CLASSES))
    found = analyze(model, TRAIN, TEST, measures="tsne,ridge,logistic,procrustes")
    assert found.embeddings == {}
    assert found.similarity["procrustes"].names == ["input", "1"]


def test_maps_are_of_images_spread_over_the_set_also_on_disk(net, monkeypatch):
    monkeypatch.setattr(module, "MAPPED", 30)
    much = analyze(net, by_class(TRAIN), by_class(TEST), measures="procrustes")
    little = analyze(net, by_class(TRAIN), by_class(TEST), measures="procrustes", memory_gb=1e-6)
    found = much.similarity["procrustes"]
    assert np.array_equal(found.value, little.similarity["procrustes"].value)
    assert np.isnan(found.se).all()
    with torch.no_grad():
        shown = by_class(TEST)[np.linspace(0, 99, 30).round()][0]
        first = nn.functional.adaptive_avg_pool2d(net[0](shown), 2).flatten(1)
        last = nn.Sequential(*list(net)[:8])(shown)
    direct = float(procrustes(first.double(), last.double()).similarity)
    assert found.value[1, 3] == pytest.approx(direct, abs=1e-5)
