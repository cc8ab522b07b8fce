import numpy as np
import pytest
import torch
import toys_trim
from torch.nn import functional as F

from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.trim.heads import temperature, with_validation
from tunnel_lightning.measures import ridge
from tunnel_lightning.runs.trimming import load_trimming

WIDTH, PIXELS, CLASSES = 32, 16, 4


@pytest.fixture(scope="module")
def found(trimmed):
    return load_trimming(trimmed)


def features(x, layer):
    network, x = toys_trim.trained(), x.flatten(1)
    with torch.no_grad():
        for k in range(layer):
            x = network.layers[k].linear(x)
            if k < layer - 1:
                x = network.layers[k].act(x)
    return x


@pytest.mark.parametrize("layer", [2, 3])
@pytest.mark.parametrize("turned", [False, True])
def test_accuracies_are_those_of_ridge_heads_by_hand(found, layer, turned):
    x, y = toys_trim.images(600, 0, turned).tensors
    head = ridge(features(x, layer), y, CLASSES)
    column = "transfer:Turned" if turned else "accuracy"
    for seed, name in ((2, column), (1, "transfer_val:Turned" if turned else "val_accuracy")):
        x, y = toys_trim.images(300, seed, turned).tensors
        expected = (head(features(x, layer)).argmax(1) == y).double().mean()
        assert found.at(name, layer) == pytest.approx(float(expected))
    value = found.at(column, layer)
    se = "transfer_se:Turned" if turned else "se"
    assert found.at(se, layer) == pytest.approx((value * (1 - value) / 300) ** 0.5)


def test_costs_are_those_of_the_cut_network(found):
    for layer in range(1, 5):
        weights = PIXELS * WIDTH + (layer - 1) * WIDTH**2 + WIDTH * CLASSES
        assert found.at("flops", layer) == 2 * weights
        assert found.at("parameters", layer) == weights + layer * WIDTH + CLASSES
    assert found.at("flops", -1) == found.at("flops", 4), "the same head"
    assert found.at("flops", 0) == 2 * PIXELS * CLASSES


def test_the_network_has_its_own_line(found):
    x, y = toys_trim.images(300, 2).tensors
    with torch.no_grad():
        right = toys_trim.trained()(x).argmax(1) == y
    assert found.curve["layer"] == ["input", *(f"layers.{k}.linear" for k in range(4)), "network"]
    assert found.at("accuracy", -1) == pytest.approx(float(right.double().mean()))
    assert np.isnan(found.at("transfer:Turned", -1))


def test_scores_become_probabilities(found):
    scores = 5 * F.one_hot(torch.arange(400) % 4, 4).double()
    target = torch.arange(400) % 4
    target[:80] = (target[:80] + 1) % 4  # right in 80 %
    sure = (scores / temperature(scores, target)).softmax(1).max(1).values
    assert sure.mean() == pytest.approx(0.8, abs=1e-3)
    assert temperature(torch.full((5, 4), torch.nan), target[:5]) == 1
    assert found.curve["ece"][3] < 0.12, "a ridge head's raw scores would be 25 % and more too unsure"


def test_a_fifth_of_the_training_images_stands_in(tmp_path, light, trimming):
    images, note = with_validation(ImageSet.of(toys_trim.Signs(validation=False)))
    assert (images.size("train"), images.size("val")) == (480, 120)
    assert note.startswith("Signs has no validation images: 120 of its 600 training images")
    parts = [torch.cat([x for x, _ in images.batches(split)]).flatten(1) for split in ("train", "val")]
    assert len(torch.cat(parts).unique(dim=0)) == 600, "no image in both"
    again, _ = with_validation(ImageSet.of(toys_trim.Signs(validation=False)))
    assert torch.equal(images.labels("val"), again.labels("val"))
    assert images.labels("val").bincount().tolist() == pytest.approx([30] * 4, abs=4)
    summary = trimming(tmp_path / "trim", data=toys_trim.Signs(validation=False), keep=0.5)
    assert note in summary["notes"]
    assert summary["val_images"] == 120


def test_validation_images_of_ones_own_stay():
    images = ImageSet.of(toys_trim.Signs())
    assert with_validation(images) == (images, "")


def test_heads_on_held_features(tmp_path, light, trimming):
    trimming(tmp_path / "trim", probe="logistic", keep=0.9)
    found = load_trimming(tmp_path / "trim")
    assert found.at("accuracy", 3) > 0.8
    assert set(found.curve["head"]) == {"logistic", ""}


def test_the_better_of_both_kinds_of_heads_is_taken(tmp_path, light, trimming, trimmed):
    others = [toys_trim.Signs(turned=True)]
    trimming(tmp_path / "logistic", ood=others, probe="logistic", keep=0.9)
    trimming(tmp_path / "best", ood=others, probe="best", keep=0.9)
    ridge, logistic, best = (
        load_trimming(path).curve for path in (trimmed, tmp_path / "logistic", tmp_path / "best")
    )
    for k in range(5):
        one, other = ridge["val_accuracy"][k], logistic["val_accuracy"][k]
        assert best["val_accuracy"][k] == max(one, other)
        assert best["head"][k] == ("logistic" if other > one else "ridge")
        assert best["accuracy"][k] == (logistic if other > one else ridge)["accuracy"][k]
    assert len(set(best["head"])) == 3, "else the test tells nothing"
    assert np.array_equal(best["transfer:Turned"], ridge["transfer:Turned"], equal_nan=True)


def test_heads_on_some_columns(tmp_path, light, trimming):
    from tunnel_lightning.taps import TapSpec

    summary = trimming(tmp_path / "trim", layer="3", taps=TapSpec(max_features=20))
    found = load_trimming(tmp_path / "trim")
    assert found.curve["dim"][3] == 20
    assert summary["cut"]["accuracy"] == pytest.approx(found.at("accuracy", 3))
