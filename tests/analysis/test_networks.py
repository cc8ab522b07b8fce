"""Networks by name, with their weights; and what is said where there are none."""

import doctest
from pathlib import Path

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from toys import Data, Lit

from tunnel_lightning.analysis import networks, weights
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.subject import load_network_subject, subject_of
from tunnel_lightning.backbones import Named, ResNet
from tunnel_lightning.data import Digits, Glyphs


def test_a_network_of_torchvision_is_made_for_the_data():
    data = Glyphs(samples_per_class=4, image_size=32, channels=3)
    subject = load_network_subject("torchvision:resnet18", data)
    assert (subject.title, subject.run_id, subject.run) == (
        "torchvision:resnet18",
        "torchvision:resnet18",
        None,
    )
    assert subject.network.conv1.stride == (2, 2), "the library's own names and layers"
    assert subject.network.fc.out_features == 26
    assert not subject.matches
    assert any("is untrained" in note for note in subject.notes)
    assert [type(each) for each in subject.ood] == [Digits]
    assert subject.ood[0].input_shape == (3, 32, 32)
    assert subject.sets()[0].image_shape == (3, 32, 32)
    assert not subject.model.training


def test_a_network_of_timm():
    pytest.importorskip("timm")
    subject = load_network_subject("timm:resnet10t", Digits(image_size=32), ood=[])
    assert subject.network.get_classifier().out_features == 10
    assert subject.config["init_args"]["name"] == "timm:resnet10t"


@pytest.mark.parametrize("spec", ["torchvision:resnet18", "{module}:make"])
def test_weights_that_are_drawn_are_the_same_each_time(module, spec):
    kept = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        subject = load_network_subject(spec.format(module=module), Digits(), ood=[])
        kept.append(subject.network.state_dict())
        assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, kept[1][key]) for key, value in kept[0].items())


def test_weights_of_the_library_keep_their_head_and_normalisation(monkeypatch):
    from torchvision import models

    reference = models.resnet18().state_dict()
    monkeypatch.setattr(models.ResNet18_Weights, "get_state_dict", lambda *_, **__: reference)
    subject = load_network_subject("torchvision:resnet18", Digits(image_size=32), pretrained=True)
    assert all(torch.equal(value, reference[key]) for key, value in subject.network.state_dict().items())
    assert not subject.matches
    assert subject.data.input_shape == (3, 32, 32)
    assert subject.data.mean == pytest.approx((0.485, 0.456, 0.406))
    assert subject.ood[0].std == pytest.approx((0.229, 0.224, 0.225))
    notes = "; ".join(subject.notes)
    for said in (
        "Digits is shown at 32x32 with 3 channels instead of 32x32 with 1 channel, normalised as "
        "torchvision:resnet18",
        "were trained on images of 224 pixels; these have 32",
        "the network has 1000 outputs and Digits has 10 classes",
    ):
        assert said in notes


@pytest.mark.parametrize("key", ["", "model.", "net.encoder."])
def test_weights_from_a_file(tmp_path, key):
    network = Named("torchvision:resnet18", num_classes=10, input_shape=(1, 32, 32)).net
    state = {f"{key}{name}": value + 1 for name, value in network.state_dict().items()}
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": state, "epoch": 3} if key else state, path)
    subject = load_network_subject("torchvision:resnet18", Digits(image_size=32), ood=[], weights=path)
    for name, value in subject.network.state_dict().items():
        assert torch.equal(value, state[f"{key}{name}"])
    assert subject.matches
    assert subject.checkpoint == str(path)
    assert subject.notes == []


def test_a_runs_checkpoint_as_weights(trained, module):
    path = trained / "checkpoints/last.ckpt"
    Path(f"{module}_net.py").write_text(
        "from tunnel_lightning.backbones import MLP\n"
        "def net():\n    return MLP(depth=3, width=16, input_shape=(1, 8, 8))\n"
    )
    subject = load_network_subject(f"{module}_net:net", Digits(), ood=[], weights=path)
    kept = torch.load(path, weights_only=True)["state_dict"]
    assert all(
        torch.equal(value, kept[f"backbone.{key}"]) for key, value in subject.network.state_dict().items()
    )
    assert subject.matches


class Vectors(LightningDataModule):
    """Rows of numbers, which can be adapted."""

    name, num_classes, input_shape = "Vectors", 4, (16,)

    def adapt(self, shape, mean=None, std=None):
        self.input_shape = shape

    def train_dataloader(self):
        return DataLoader(
            TensorDataset(torch.randn(40, *self.input_shape), torch.arange(40) % 4), batch_size=8
        )

    def test_dataloader(self):
        return self.train_dataloader()


@pytest.mark.parametrize("size", [3, 64])
def test_vectors_have_no_transfer_set_by_default_and_are_told_in_words(module, size):
    Path(f"{module}_net.py").write_text(
        f"from torch import nn\ndef net():\n    return nn.Sequential(nn.Linear({size}, 8), nn.Linear(8, 4))\n"
    )
    data = Vectors()
    data.adapt((size,))
    subject = load_network_subject(f"{module}_net:net", data)
    assert subject.ood == []
    assert subject.notes == [f"no transfer set by default can be shown at {size} values: name one"]
    subject = load_network_subject(f"{module}_net:net", data, ood=[Vectors()])
    assert subject.notes == [f"Vectors is shown at {size} values instead of 16 values"]
    assert subject.sets()[1][0].image_shape == (size,)


def test_networks_of_ones_own(module):
    subject = load_network_subject(f"{module}:make", Digits())
    assert (subject.title, subject.matches) == (f"{module}:make", True)
    assert subject.network is subject.model
    assert [type(each) for each in subject.ood] == [Glyphs]
    subject = load_network_subject(f"{module}:network", Digits())
    assert not subject.matches
    assert any("has 7 outputs and Digits has 10 classes" in note for note in subject.notes)
    wide = load_network_subject(
        f"{module}:Wide", Glyphs(image_size=32, channels=3, samples_per_class=3), ood=[]
    )
    assert wide.config["class_path"] == f"{module}.Wide"


def test_a_network_without_scores_is_noted():
    subject = load_network_subject("torch.nn:Identity", Digits(), ood=[])
    assert not subject.matches
    assert any("no scores" in note for note in subject.notes)


@pytest.mark.parametrize(
    ("spec", "kind", "said"),
    [
        ("resnet18", ValueError, "write torchvision:NAME, timm:NAME or module:attribute"),
        ("torchvision:resnet81", ValueError, "near ones are"),
        ("nowhere:net", ImportError, "the module nowhere can't be imported"),
        ("{module}:netwrk", ValueError, "has no netwrk; networks in it: Wide, network"),
        ("{module}:number", ValueError, "is a int: name an nn.Module"),
        ("{module}:needs", ValueError, "can't be called without arguments"),
        ("torchvision:alexnet", ValueError, r"can't run images [1, 8, 8] of Digits"),
        ("toys:Net", ValueError, "can't run images"),
    ],
)
def test_a_network_that_is_not_there_or_does_not_fit(module, spec, kind, said):
    data = Digits(image_size=12) if spec == "toys:Net" else Digits()
    with pytest.raises(kind) as caught:
        load_network_subject(spec.format(module=module), data)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)
    if "can't run" in said:
        assert "--data.image_size" in str(caught.value)


def test_a_network_of_colours_and_images_without():
    said = "it takes 3 channels and the images have 1; set --data.channels=3, or choose other --data"
    with pytest.raises(ValueError, match=said):
        load_network_subject("torchvision.models:resnet18", Digits(image_size=32))


def test_weights_that_are_none(tmp_path, module):
    def said(content, spec="make"):
        path = tmp_path / "w.pt"
        if content is not None:
            torch.save(content, path)
        with pytest.raises((ValueError, FileNotFoundError)) as caught:
            load_network_subject(f"{module}:{spec}", Digits(), weights=path)
        return str(caught.value)

    assert "there is no file of weights" in said(None)
    assert "holds no tensors by name" in said([1])
    assert "holds no tensors by name" in said({"a": 1})
    wrong = said({"1.weight": torch.zeros(3, 64), "1.bias": torch.zeros(3)})
    assert "of another network or other classes: size mismatch" in wrong
    assert "it has fc, ... and the network needs 1.weight, 1.bias" in said({"fc": torch.zeros(1)})
    (tmp_path / "w.pt").write_text("words")
    with pytest.raises(ValueError, match=r"w\.pt"):
        load_network_subject(f"{module}:make", Digits(), weights=tmp_path / "w.pt")
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"w\.pt is not needed: Flatten has no weights"):
        load_network_subject("torch.nn:Flatten", Digits(), ood=[], weights=tmp_path / "w.pt")
    with pytest.raises(ValueError, match="of no library that brings weights"):
        load_network_subject(f"{module}:make", Digits(), pretrained=True)


def test_a_network_at_hand_is_left_as_it_is():
    module = Lit()
    module.net[3].eval()
    subject = subject_of(module, images=ImageSet.of(Data(jitter=False)))
    assert subject.model is module
    assert subject.network is module.net
    assert (subject.title, subject.matches, subject.notes) == ("Net", True, [])
    assert module.training
    assert not module.net[3].training
    assert subject_of(ResNet(8), "mine").title == "mine"
    assert not subject_of(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), images=ImageSet.of(Data())).matches
    with pytest.raises(ValueError, match="came without a datamodule"):
        subject.sets()


@pytest.mark.parametrize("module", [networks, weights], ids=lambda module: module.__name__)
def test_examples(module):
    assert doctest.testmod(module).failed == 0
