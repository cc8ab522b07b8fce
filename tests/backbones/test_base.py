"""What a backbone keeps of itself, and how it is made again."""

import copy
import pickle

import pytest
import torch
from torch import nn

from tunnel_lightning.backbones import MLP, VGG, Backbone, ResNet, rebuild


class Wide(MLP):
    """A user's subclass that adds an argument and hands the others on."""

    def __init__(self, factor: int = 2, **kwargs) -> None:
        super().__init__(width=8 * factor, **kwargs)
        self.factor = factor


class Plain(Backbone):
    def __init__(self, extra=None, num_classes=10, input_shape=(3, 32, 32)) -> None:
        super().__init__(num_classes, input_shape)
        self.head = nn.Linear(4, num_classes)


class Star(Backbone):
    def __init__(self, *sizes) -> None:
        super().__init__()


BACKBONES = [
    lambda **sizes: MLP(3, width=8, **sizes),
    lambda **sizes: VGG(11, width=2, **sizes),
    lambda **sizes: VGG(11, 2, batch_norm=False, **sizes),
    lambda **sizes: ResNet(8, width=4, **sizes),
    lambda **sizes: ResNet(depth=18, width=2, residual=False, **sizes),
]
IDS = ["mlp", "vgg", "vgg plain", "resnet", "resnet plain"]


@pytest.mark.parametrize("make", BACKBONES, ids=IDS)
@pytest.mark.parametrize("shape", [(1, 16, 16), (3, 32, 32), (1, 8, 8), (2, 5, 7), (1, 1, 1)])
def test_every_size_of_image_gives_logits_of_features(make, shape):
    network = make(num_classes=7, input_shape=shape).eval()
    x = torch.randn(2, *shape)
    features = network.features(x)
    assert features.shape == (2, network.head.in_features)
    assert network(x).shape == (2, 7)
    assert torch.equal(network(x), network.head(features))


@pytest.mark.parametrize("make", BACKBONES, ids=IDS)
def test_every_module_runs_once_and_none_in_place(make):
    network = make(num_classes=3, input_shape=(3, 16, 16))
    calls = []
    for name, module in network.named_modules(remove_duplicate=False):
        assert not getattr(module, "inplace", False)
        if not list(module.children()):
            module.register_forward_hook(lambda *_, name=name: calls.append(name))
    network(torch.randn(2, 3, 16, 16))
    leaves = [name for name, module in network.named_modules() if not list(module.children())]
    assert sorted(calls) == sorted(leaves)
    assert calls == leaves  # and in the order of registration


@pytest.mark.parametrize("make", BACKBONES, ids=IDS)
def test_rebuilt_networks_take_the_weights(make):
    network = make(num_classes=3, input_shape=[1, 8, 8]).eval()
    assert network.init_args["num_classes"] == 3
    assert network.init_args["input_shape"] == [1, 8, 8]
    twin = rebuild(network.config).eval()
    assert twin.config == network.config
    twin.load_state_dict(network.state_dict())
    x = torch.randn(2, 1, 8, 8)
    assert torch.equal(twin(x), network(x))


def test_the_outermost_arguments_are_kept():
    network = Wide(3, depth=2, num_classes=5)
    assert network.init_args == {"factor": 3, "depth": 2, "num_classes": 5}
    twin = rebuild(network.config)
    assert type(twin) is Wide
    assert twin.head.weight.shape == (5, 24)


def test_copies_keep_the_arguments():
    network = Wide(3, depth=1)
    assert copy.deepcopy(network).init_args == network.init_args
    assert pickle.loads(pickle.dumps(network)).init_args == network.init_args


def test_config_is_a_copy():
    network = Plain()
    network.config["init_args"]["num_classes"] = 99
    assert network.init_args["num_classes"] == 10


@pytest.mark.parametrize("value", [torch.zeros(1), nn.ReLU(), {1: 2}, [object()], int])
def test_arguments_that_no_checkpoint_can_keep_are_refused(value):
    with pytest.raises(TypeError, match=r"Plain: argument extra: a \w+ is no plain value"):
        Plain(extra=value)


def test_nameless_arguments_are_refused():
    with pytest.raises(TypeError, match=r"Star: a backbone cannot take \*sizes"):
        Star(1, 2)


def test_wrong_arguments_raise_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'widht'"):
        VGG(widht=3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_classes": 1}, "num_classes is 1; a classifier needs at least 2"),
        ({"input_shape": (32, 32)}, r"input_shape is \(32, 32\); give channels, height and width"),
        ({"input_shape": (3, 0, 32)}, r"input_shape is \(3, 0, 32\)"),
    ],
)
def test_impossible_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=f"MLP: {message}"):
        MLP(**arguments)


def test_a_backbone_without_features_says_so():
    with pytest.raises(NotImplementedError, match=r"Plain defines no features\(x\)"):
        Plain()(torch.zeros(1, 4))
