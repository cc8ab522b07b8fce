"""Networks of timm and torchvision; nothing is downloaded."""

import sys

import pytest
import torch
import torchvision
from torch import nn

from tunnel_lightning.backbones import Named, rebuild

SMALL = {"num_classes": 5, "input_shape": (1, 16, 16)}


@pytest.fixture
def timm():
    return pytest.importorskip("timm")


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("torchvision:resnet18", "net.fc"),
        ("torchvision:mobilenet_v3_small", "net.classifier.3"),
        ("timm:resnet18", "net.fc"),
        ("timm:vit_tiny_patch16_224", "net.head"),
    ],
)
def test_head_and_features(name, head, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    options = {"img_size": 32, "patch_size": 8} if "vit" in name else None
    network = Named(name, options=options, num_classes=5, input_shape=(1, 32, 32)).eval()
    assert network.get_submodule(head) is network.head
    assert network.head.out_features == 5
    x = torch.randn(2, 1, 32, 32)
    features = network.features(x)
    assert features.shape == (2, network.head.in_features)
    assert torch.equal(network.head(features), network(x))
    assert not network.head._forward_pre_hooks
    twin = rebuild(network.config).eval()
    twin.load_state_dict(network.state_dict())
    assert torch.equal(twin(x), network(x))


@pytest.mark.parametrize("name", ["torchvision:resnet18", "timm:resnet18", "torchvision:densenet121"])
def test_a_small_stem_keeps_the_map(name, request):
    if name.startswith("timm"):
        request.getfixturevalue("timm")
    network = Named(name, small_stem=True, **SMALL).eval()
    convolutions = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d)]
    assert convolutions[0][1].stride == (1, 1)
    shapes = []
    convolutions[1][1].register_forward_pre_hook(lambda m, inputs: shapes.append(inputs[0].shape[2:]))
    network(torch.randn(2, 1, 16, 16))
    assert shapes == [(16, 16)]


def test_a_stem_without_stride_stays():
    with_it = Named(
        "torchvision:vgg11_bn", small_stem=True, options={"init_weights": False}, input_shape=(3, 32, 32)
    )
    assert sum(isinstance(module, nn.MaxPool2d) for module in with_it.modules()) == 5


def test_a_stem_of_patches_is_refused(timm):
    with pytest.raises(ValueError, match=r"vit_tiny_patch16_224 cuts patches, so small_stem .*patch_size"):
        Named("timm:vit_tiny_patch16_224", small_stem=True)


def test_making_it_changes_no_statistics():
    torch.manual_seed(0)
    Named("torchvision:resnet18", **SMALL)
    after = torch.rand(1)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=5)
    nn.init.kaiming_normal_(nn.Conv2d(1, 64, 7, 2, 3, bias=False).weight, nonlinearity="relu")
    assert torch.equal(after, torch.rand(1))
    network = Named("torchvision:resnet18", **SMALL)
    assert network.training
    assert torch.equal(network.net.bn1.running_mean, theirs.bn1.running_mean)


def test_auxiliary_outputs_are_dropped():
    options = {"aux_logits": True, "init_weights": False}
    network = Named("torchvision:googlenet", options=options, num_classes=5, input_shape=(3, 64, 64))
    assert network.head is network.net.fc
    assert network.train()(torch.randn(2, 3, 64, 64)).shape == (2, 5)


def test_pretrained_weights_are_asked_for_once_and_kept(monkeypatch):
    """The library's weights, a new head, grey images; and a checkpoint's network is made without them."""
    asked, make = [], torchvision.models.get_model

    def get_model(name, weights=None, **options):
        asked.append(weights)
        torch.manual_seed(3)
        return make(name, **options)

    monkeypatch.setattr(torchvision.models, "get_model", get_model)
    network = Named("torchvision:resnet18", pretrained=True, **SMALL)
    torch.manual_seed(3)
    theirs = make("resnet18")
    assert asked == ["DEFAULT"]
    assert network.head.out_features == 5
    assert torch.equal(network.net.layer1[0].conv1.weight, theirs.layer1[0].conv1.weight)
    grey = torch.randn(2, 1, 16, 16)
    assert torch.allclose(
        network.net.conv1(grey), theirs.conv1(grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4
    )
    assert not rebuild(network.config).init_args["pretrained"]
    assert asked == ["DEFAULT", None]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torchvision:resnet_18", r"torchvision has no network 'resnet_18'; near ones are .*resnet18"),
        ("torchvision:", "torchvision has no network ''"),
        ("resnet18", "'resnet18' is no network; write timm:NAME or torchvision:NAME"),
        ("torchvision:squeezenet1_0", r"torchvision:squeezenet1_0 does not end in an nn\.Linear"),
        ("torchvision:alexnet", r"torchvision:alexnet cannot take images of \(3, 32, 32\) .*larger images"),
        ("torchvision:vit_b_32", r"torchvision:vit_b_32 cannot take images of \(3, 32, 32\)"),
    ],
)
def test_mistakes_are_told_in_words(name, message):
    with pytest.raises(ValueError, match=f"Named: {message}"):
        Named(name)


def test_a_typo_of_a_timm_name_shows_near_ones(timm):
    with pytest.raises(ValueError, match=r"timm has no network 'resnet_18'; near ones are .*resnet18"):
        Named("timm:resnet_18")


def test_missing_timm_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match="timm is not installed; run `pip install timm`"):
        Named("timm:resnet18")
