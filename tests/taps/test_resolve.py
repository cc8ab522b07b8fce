import pytest
import torch
from torch import nn
from torchvision import models

from tunnel_lightning.taps import TapSpec, tap
from tunnel_lightning.taps.resolve import candidates


class Block(nn.Module):
    def __init__(self, c, d):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, d, 3, 2, 1), nn.Conv2d(d, d, 3, 1, 1)
        self.act = nn.ReLU()
        self.shortcut = nn.Sequential(nn.Conv2d(c, d, 1, 2), nn.BatchNorm2d(d))

    def forward(self, x):
        return self.act(self.conv2(self.act(self.conv1(x))) + self.shortcut(x))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, 1, 1)
        self.blocks = nn.Sequential(Block(4, 6), Block(6, 8))
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.blocks(self.stem(x)).mean((2, 3)))


def paths(model, *layers):
    return [candidate.path for candidate in candidates(model, TapSpec(list(layers)))]


def test_kinds():
    convs = [f"blocks.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]
    assert paths(Net(), "default") == ["stem", *convs, "fc"]
    assert paths(Net(), "block") == ["blocks.0", "blocks.1"]
    assert paths(Net(), "activation") == ["blocks.0.act", "blocks.1.act"]
    parts = ["", ".conv1", ".conv2", ".act", ".shortcut.0", ".shortcut.1"]
    assert paths(Net(), "all") == ["stem", *(f"blocks.{i}{part}" for i in (0, 1) for part in parts), "fc"]


def test_globs_and_mixtures():
    assert paths(Net(), "blocks.*.conv?") == [f"blocks.{i}.conv{j}" for i in (0, 1) for j in (1, 2)]
    assert paths(Net(), "blocks.*.shortcut.0") == ["blocks.0.shortcut.0", "blocks.1.shortcut.0"]
    assert paths(Net(), "stem", "block", "blocks.1") == ["stem", "blocks.0", "blocks.1"]


def test_a_pattern_that_matches_nothing_names_near_ones():
    with pytest.raises(ValueError, match=r"'blocks.0.convl'.*near: .*blocks.0.conv1"):
        candidates(Net(), TapSpec("blocks.0.convl"))
    with pytest.raises(ValueError, match=r"'blok'.*near: .*block"):
        candidates(Net(), TapSpec("blok"))
    with pytest.raises(ValueError, match="'zzz' matches no module of Net; there are stem"):
        candidates(Net(), TapSpec("zzz"))
    with pytest.raises(ValueError, match="kind 'block' finds no layer in Linear"):
        candidates(nn.Linear(2, 2), TapSpec("block"))


def test_a_shared_module_answers_to_all_its_paths():
    act = nn.ReLU()
    model = nn.Sequential(nn.Linear(2, 2), act, nn.Linear(2, 2), act)
    assert paths(model, "3") == ["1"]


def test_a_stage_downsample_beside_whole_blocks_is_on_the_main_path():
    stage = nn.Module()
    stage.downsample = nn.Sequential(nn.BatchNorm2d(4), nn.Conv2d(4, 4, 2, 2))
    stage.blocks = nn.Sequential(Block(4, 4))
    assert "0.downsample.1" in paths(nn.Sequential(stage), "default")
    block = nn.Module()
    block.downsample = nn.Sequential(nn.Conv2d(4, 4, 2, 2))
    block.branch = nn.Sequential(nn.Conv2d(4, 4, 2, 2), nn.BatchNorm2d(4))
    assert paths(nn.Sequential(block), "default") == ["0.branch.0"]


# Convolutions and linear modules on the main path without the classifier, and blocks; counted by hand from
# the architectures' tables: ResNet-50 has 1 + 16 x 3, DenseNet-121 1 + 58 x 2 + 3, RegNetY-400MF 1 + 16 x 3.
TORCHVISION = {
    "resnet18": (17, 8, "fc"),
    "resnet50": (49, 16, "fc"),
    "vgg16": (15, None, "classifier.6"),
    "convnext_tiny": (58, 19, "classifier.2"),
    "vit_b_16": (25, 12, "heads.head"),
    "swin_t": (28, 15, "head"),
    "densenet121": (120, 7, "classifier"),
    "regnet_y_400mf": (49, 16, "fc"),
    "mobilenet_v2": (52, 19, "classifier.1"),
    "squeezenet1_1": (25, 8, "classifier.1"),
}
TIMM = {
    "resnet18": (17, 8, "fc"),
    "resnet18d": (19, 8, "fc"),
    "convnext_tiny": (58, 18, "head.fc"),
    "vit_tiny_patch16_224": (49, 12, "head"),
    "swin_tiny_patch4_window7_224": (52, 12, "head.fc"),
}


def check(model, size, layers, blocks, head):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    taps = tap(model, x)
    assert len(taps.layers) == layers
    assert taps.head.name == head
    assert [layer.index for layer in taps.layers] == list(range(1, layers + 1))
    assert not any(
        "downsample" in layer.name and "stages" not in layer.name and "layers" not in layer.name
        for layer in taps.layers
    )
    model.eval()
    taps.arm()
    with torch.no_grad():
        model(x)
    features = taps.take()
    assert {name: tuple(f.shape) for name, f in features.items()} == {t.name: (2, t.dim) for t in taps.layers}
    taps.remove()
    if blocks is None:
        with pytest.raises(ValueError, match="kind 'block' finds no layer"):
            tap(model, x, "block")
    else:
        assert len(tap(model, x, "block").layers) == blocks


@pytest.fixture(autouse=True)
def _no_initialisation(monkeypatch):
    """Values of weights do not matter here, and drawing those of 500 MB takes longer than the test."""
    for name in (
        "kaiming_normal_",
        "trunc_normal_",
        "xavier_uniform_",
        "kaiming_uniform_",
        "normal_",
        "uniform_",
    ):
        monkeypatch.setattr(nn.init, name, lambda tensor, *args, **kwargs: tensor)


@pytest.mark.parametrize("name", TORCHVISION)
def test_torchvision(name):
    fixed = name in ("vit_b_16", "vgg16")
    check(getattr(models, name)(weights=None), 224 if fixed else 64, *TORCHVISION[name])


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    check(timm.create_model(name), 224 if "224" in name else 64, *TIMM[name])


def test_timm_trunk_has_no_head():
    timm = pytest.importorskip("timm")
    x = torch.randn(2, 3, 32, 32)
    for name in ("resnet18", "convnext_atto"):
        taps = tap(timm.create_model(name, num_classes=0), x)
        assert taps.head is None
