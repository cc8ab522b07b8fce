"""What deep layers add: the network that learnt noise, images made of classes, the nearest training images."""

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.analysis.invert import extras
from tunnel_lightning.analysis.invert.options import Options
from tunnel_lightning.analysis.invert.targets import NOISE_MEAN, NOISE_STD, noise, noise_targets
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.subject import load_run_subject
from tunnel_lightning.data import Digits
from tunnel_lightning.runs.inversion import load_inversion


@pytest.fixture(scope="module")
def found(inverted):
    return load_inversion(inverted)


def layer_of(network, name, x):
    """A layer's output by a plain forward with a hook of the test's own."""
    kept = []
    handle = network.get_submodule(name).register_forward_hook(lambda m, i, out: kept.append(out.detach()))
    with torch.no_grad():
        network(x)
    handle.remove()
    return kept[0].flatten(1)


def test_the_nearest_training_images_are_the_nearest(inverted, found):
    subject = load_run_subject(inverted, ood=[])
    own, _ = subject.sets()
    train = torch.cat([x for x, _ in own.batches("train", 60)])
    labels = torch.cat([y for _, y in own.batches("train", 60)])
    mean, std = subject.data.mean[0], subject.data.std[0]
    for kind, key in (("near", "original/Digits"), ("near_recovered", "recovered/Digits/trained")):
        pictures = found.pictures[key]
        for k, layer in enumerate(found.summary["layers"]):
            shown = pictures if kind == "near" else pictures[k, :, 0]
            pixels = torch.from_numpy(shown / 255).permute(0, 3, 1, 2).float()
            queries = layer_of(subject.network, layer["name"], (pixels - mean) / std)
            distance = torch.cdist(queries, layer_of(subject.network, layer["name"], train))
            order = distance.topk(3, largest=False).indices
            got = torch.from_numpy(found.curves[f"{kind}/Digits/trained"][k])
            # pictures are rounded to bytes, so that two neighbours as good as equally near may change places
            wanted, there = (distance.gather(1, each) for each in (order, got))
            assert torch.allclose(wanted, there, rtol=0.02)
            classes = torch.tensor([image["class"] for image in found.summary["images"]["Digits"]])
            same = (labels[got] == classes[:, None]).float().mean(1)
            np.testing.assert_allclose(found.curves[f"class_{kind}/Digits/trained"][k, :, 0], same, rtol=1e-6)
            picture = found.pictures[f"pictures_{kind}/Digits/trained"][k, 0, 0, ..., 0] / 255
            np.testing.assert_allclose(picture, (train[got[0, 0]] * std + mean)[0].clamp(0, 1), atol=0.003)


def test_neighbours_do_not_depend_on_how_many_fit_into_memory(monkeypatch, inverted, found):
    work, net, targets = work_of(inverted, found)
    images = np.zeros((2, 1, 1, 1, 8, 8), np.float32)
    whole = extras._near(work, net, targets, images, 60, "")
    monkeypatch.setattr(extras, "_few", lambda work: 7)
    few = extras._near(work, net, targets, images, 60, "")
    np.testing.assert_array_equal(whole["x/near"], few["x/near"])


def work_of(run, found):
    from lightning.fabric import Fabric

    from tunnel_lightning.analysis.invert.command import _taps
    from tunnel_lightning.analysis.invert.targets import pixels_of
    from tunnel_lightning.analysis.invert.tasks import Net, Work
    from tunnel_lightning.analysis.store import Store
    from tunnel_lightning.report.progress import Bars

    subject = load_run_subject(run, ood=[])
    own, _ = subject.sets()
    options = Options(recipe="adam", steps=5, neighbour_images=60, noise_images=64, noise_epochs=1)
    layers = [t for t in _taps(subject, own, None, options).layers if t.index in (1, 3)]
    pixels = pixels_of(subject.data, own)
    work = Work(
        subject,
        own,
        options,
        pixels,
        layers,
        Fabric(accelerator="cpu", devices=1),
        Store(run / "none"),
        Bars(False),
    )
    return work, Net("trained", subject.network, ""), noise_targets(1, own.image_shape, 0)


def test_noise_has_no_class_so_neighbours_share_none(found):
    assert "near/noise/trained" in found.curves
    assert "class_near/noise/trained" not in found.curves
    assert "class_near/Digits/untrained" in found.curves


def test_the_network_trained_on_noise_has_learnt_it(found):
    origin = found.summary["networks"]["noise"]
    assert int(origin.split("it names ")[1].split(" %")[0]) > 60, "by chance it would be 20"
    assert not any("names only" in note for note in found.summary["notes"])
    pixels = noise(200, (1, 8, 8), 1)
    assert pixels.mean() == pytest.approx(NOISE_MEAN, abs=0.01)
    assert pixels.std() == pytest.approx(NOISE_STD, abs=0.02)
    assert torch.equal(pixels[:3], noise(3, (1, 8, 8), 1))


def test_what_learnt_no_noise_is_said(inverted, found, monkeypatch):
    work, _, _ = work_of(inverted, found)
    kept = []
    monkeypatch.setattr(work.store, "save", lambda *args: kept.append(args[0]))
    before = torch.get_rng_state()
    net = extras.noise_network(work, (1, 8, 8))
    assert torch.equal(before, torch.get_rng_state()), "the global random state is left alone"
    assert kept == ["noise-network"]
    assert isinstance(net.network, nn.Module)
    assert net.network.head.out_features == 100
    assert "names only" in " ".join(work.notes)


def test_images_are_made_of_the_targets_classes(inverted, found):
    classes = [image["class"] for image in found.summary["images"]["Digits"]]
    names = ImageSet.of(Digits()).class_names
    assert found.summary["generated"] == [names[k] for k in classes]
    made = found.pictures["generated/trained"]
    assert made.shape == (2, 3, 2, 8, 8, 1)
    assert "generated/noise" not in found.pictures, "it knows other classes"
    subject = load_run_subject(inverted, ood=[])
    pixels = torch.from_numpy(made / 255).flatten(0, 2).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        answer = (
            subject.network((pixels - subject.data.mean[0]) / subject.data.std[0]).argmax(1).reshape(2, 3, 2)
        )
    same = (answer.numpy() == np.array(classes)[None, :, None]).mean(2)
    told = found.curves["generated_class/trained"][..., 0]
    assert np.abs(told - same).mean() < 0.1, "pictures are rounded to bytes: one on the edge may change"
    assert {*np.unique(told)} <= {0, 0.5, 1}
