"""Leaving early against computing all exits and choosing then, on networks of several kinds."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tunnel_lightning.backbones import MLP, Backbone, Named, ResNet, rebuild
from tunnel_lightning.backbones.early import EarlyExit
from tunnel_lightning.module import Classifier
from tunnel_lightning.surgery import leave

SHAPE = (3, 8, 8)


class Shaped(Backbone):
    """Reads the number of images, keeps a buffer of its own and adds in place: what a graph may get wrong."""

    def __init__(self, num_classes=4, input_shape=SHAPE):
        super().__init__(num_classes, input_shape)
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.inner = nn.Conv2d(6, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.act = nn.ReLU(inplace=True)
        self.register_buffer("scale", torch.rand(6, 1, 1))
        self.head = nn.Linear(12, num_classes)

    def features(self, x):
        batch, shape = x.shape[0], x.shape
        x = self.act(self.conv(x))
        y = self.act(self.norm(self.inner(x))) * self.scale
        y += x
        halves = y.reshape(batch, 2, 3, shape[2], shape[3]).reshape(batch * 2, 3, -1)
        z = self.act(halves.sum(2))
        return torch.cat([z.reshape(batch, 6), x.mean((2, 3))], 1)


class Windows(Backbone):
    """Moves parts of each image into the batch and back, as Swin does."""

    def __init__(self, num_classes=4, input_shape=SHAPE):
        super().__init__(num_classes, input_shape)
        self.first = nn.Linear(48, 5)
        self.second = nn.Linear(5, 5)
        self.head = nn.Linear(20, num_classes)

    def features(self, x):
        windows = self.first(x.reshape(x.shape[0] * 4, 48)).relu()
        return self.second(windows).relu().reshape(-1, 20)


def own(cls):
    return {"class_path": f"{cls.__module__}.{cls.__qualname__}", "init_args": {}}


CASES = {
    "mlp": (MLP(3, width=8).config, ["layers.0.act", "layers.1.linear"]),
    "resnet": (ResNet(8, width=4).config, ["stages.0.0", "stages.1.0.conv1", "stages.2.0.norm2"]),
    "shaped": (own(Shaped), ["act#1", "norm", "act#2"]),
    "windows": (own(Windows), ["first", "second"]),
    "named": (Named("torchvision:mobilenet_v3_small", input_shape=(3, 32, 32)).config, ["net.features.3"]),
}


@pytest.fixture(scope="module", params=CASES)
def network(request):
    """With statistics of its norms, and a threshold at which some images leave at every exit."""
    torch.manual_seed(0)
    config, layers = CASES[request.param]
    shape = (3, 32, 32) if request.param == "named" else SHAPE
    made = EarlyExit(config, layers, num_classes=4, input_shape=shape)
    made.train()(torch.randn(32, *shape))
    made.eval()
    made.temperature.fill_(0.5)
    with torch.no_grad():
        for head in made.heads:
            head.weight *= 3
        made.threshold = _median(made)
    return made


def images(network, n=40, seed=1):
    return torch.randn(n, *network.input_shape, generator=torch.Generator().manual_seed(seed))


def _median(network):
    return float(torch.stack(network.all_scores(images(network))).softmax(-1).amax(-1).quantile(0.6))


@torch.no_grad()
def test_leaving_early_is_choosing_among_all_exits(network):
    x = images(network)
    everything = torch.stack(network.all_scores(x))
    reference = leave(everything, network.threshold, network.costs)
    scores, end = network(x), len(network.layers)
    costs = torch.tensor(network.costs)
    assert torch.equal(costs[network.taken], reference.flops)
    chosen = everything[network.taken, torch.arange(len(x))]
    torch.testing.assert_close(scores, chosen, rtol=1e-4, atol=1e-4)
    assert network.mean_flops() == pytest.approx(reference.flops.double().mean().item())
    # some leave early and some do not, or this shows nothing
    assert 0 < (network.taken == end).sum() < len(x)
    early = network.taken < end
    assert torch.equal(reference.exit[early], network.taken[early])


@torch.no_grad()
def test_the_exits_read_what_the_layers_put_out(network):
    """Their heads on the features, and the network's own scores, without the graph."""
    x, seen = images(network), {}
    handles = []
    for name in network.layers:
        path = name.partition("#")[0]
        seen[name] = []
        handles.append(
            network.network.get_submodule(path).register_forward_hook(
                lambda m, a, out, kept=seen[name]: kept.append(out.clone())
            )
        )
    scores = network.network(x)
    for handle in handles:
        handle.remove()
    *found, last = network.all_scores(x)
    torch.testing.assert_close(last, scores / 0.5)
    for number, name in enumerate(network.layers):
        output = seen[name][int(name.partition("#")[2] or 1) - 1]
        if len(output) == 4 * len(x):  # windows
            output = output.unflatten(0, (-1, 4)).mean(1)
        rows = F.adaptive_avg_pool2d(output, 2).flatten(1) if output.ndim == 4 else output
        torch.testing.assert_close(found[number], network.heads[number](rows))


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_other_images(network):
    x = images(network)
    scores, taken = network(x), network.taken
    for i in range(6):
        torch.testing.assert_close(network(x[i : i + 1])[0], scores[i], rtol=1e-4, atol=1e-4)
        assert network.taken.tolist() == [taken[i]]


@torch.no_grad()
def test_what_leaves_is_not_computed_further(network):
    """Rows that the last part is given, and whether it runs at all."""
    network, rows = copy.deepcopy(network), []
    network.network.head.register_forward_pre_hook(lambda m, args: rows.append(len(args[0])))
    x = images(network)
    network(x)
    assert rows == [int((network.taken == len(network.layers)).sum())]
    rows.clear()
    network.threshold = 0.0
    network(x)
    assert rows == []
    assert not network.taken.any()
    network.threshold = 1.0
    network(x)
    assert rows == [len(x)]
    assert torch.equal(network(x), network.all_scores(x)[-1])
    assert network.mean_flops() == network.costs[-1]


@torch.no_grad()
def test_each_exit_may_have_a_threshold_of_its_own(network):
    network = copy.deepcopy(network)
    x, limit, end = images(network), network.threshold, len(network.layers)
    network(x)
    before = network.taken
    network.threshold = [limit] * (end - 1) + [0.0]
    scores = network(x)
    assert network.taken.tolist() == before.clamp(max=end - 1).tolist()
    last = network.all_scores(x)[end - 1]
    torch.testing.assert_close(scores[before == end], last[before == end], rtol=1e-4, atol=1e-4)


def test_training_goes_through_the_whole_network(network):
    network = copy.deepcopy(network).train()
    x = images(network)
    scores = network(x)
    assert [tuple(each.shape) for each in network.last] == [(40, 4)] * (1 + len(network.layers))
    assert scores is network.last[-1]
    sum(each.square().sum() for each in network.last).backward()
    lost = [name for name, p in network.named_parameters() if p.grad is None]
    assert lost == []
    copy.deepcopy(network)  # though its last scores hang on a graph


@torch.no_grad()
def test_another_type_reaches_every_part(network):
    x = images(network)
    whole, wide = network(x), copy.deepcopy(network).double()
    scores = torch.stack(wide.all_scores(x.double()))
    assert torch.equal(network(x), whole)  # the copy has its own weights
    assert wide.heads[0].weight.dtype == torch.float64
    torch.testing.assert_close(scores.float(), torch.stack(network.all_scores(x)), rtol=1e-3, atol=1e-3)
    for buffer in wide.network.buffers():  # tensors that are new since then
        if buffer.is_floating_point():
            buffer *= 0.5
    expected = wide.network(x.double()).float() / wide.temperature
    torch.testing.assert_close(wide.all_scores(x.double())[-1], expected)


def test_its_state_has_each_weight_once(network):
    names = [name.partition(".")[0] for name in network.state_dict()]
    assert set(names) == {"network", "heads", "temperature"}
    assert sum(p.numel() for p in network.network.parameters()) + sum(
        p.numel() for p in network.heads.parameters()
    ) == sum(p.numel() for p in network.parameters())


@torch.no_grad()
def test_a_checkpoint_makes_it_again(network, tmp_path):
    classifier = Classifier(network)
    checkpoint = {"state_dict": classifier.state_dict()}
    classifier.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "a.ckpt")
    again = Classifier.load_from_checkpoint(tmp_path / "a.ckpt").eval().backbone
    again.threshold = network.threshold  # the fixture's; the constructor's is 0.9
    x = images(network)
    assert torch.equal(again(x), network(x))
    assert torch.equal(again.taken, network.taken)
    assert rebuild(network.config).layers == network.layers


def test_costs_are_what_counting_gives():
    network = EarlyExit(MLP(3, width=8).config, ["layers.1.act", "layers.0.act"], input_shape=SHAPE)
    assert network.layers == ("layers.0.act", "layers.1.act")  # as they run
    first, hidden, head = 2 * 192 * 8, 2 * 8 * 8, 2 * 8 * 10
    assert network.trunk == (first, first + hidden, first + 2 * hidden + head)
    assert network.costs == (first + head, first + hidden + 2 * head, first + 2 * hidden + 3 * head)
    with pytest.raises(RuntimeError, match="no images yet"):
        network.mean_flops()


class Branches(MLP):
    """Asks what an image holds."""

    def features(self, x):
        return super().features(x if x.sum() > 0 else -x)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"layers": ["layers.7.act"]}, "no module of MLP that runs"),
        ({"layers": ["layers.0.act#2"]}, "no module of MLP that runs"),
        ({"layers": []}, "layers is empty"),
        ({"layers": ["layers.0.act", "layers.0.act"]}, "names one twice"),
        ({"threshold": 1.5}, "threshold is 1.5"),
        ({"threshold": [0.5, 0.5]}, "one for each exit"),
        ({"pool": "gram"}, "gram"),
        ({"network": {"depth": 3}}, "class_path"),
        ({"network": own(Branches)}, "cannot trace Branches"),
    ],
)
def test_wrong_arguments_are_said(arguments, said):
    given = {"network": MLP(2, width=8).config, "layers": ["layers.0.act"], "input_shape": SHAPE, **arguments}
    with pytest.raises(ValueError, match=said):
        EarlyExit(**given)
