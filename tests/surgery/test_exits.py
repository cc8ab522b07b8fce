import copy
import doctest
import pickle

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from tunnel_lightning.backbones import MLP, Named, ResNet
from tunnel_lightning.surgery import Exits, exits, leave, overthinking
from tunnel_lightning.taps import TapSpec, tap


@pytest.fixture
def images():
    return torch.randn(12, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def labels():
    return torch.arange(12) % 4


def network(seed=0):
    torch.manual_seed(seed)
    return ResNet(depth=8, width=4, num_classes=4, input_shape=(1, 8, 8))


def train(model, images, labels, steps=4):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss = cross_entropy(model(images), labels)
        for scores in getattr(model, "last", [])[:-1]:
            loss = loss + cross_entropy(scores, labels)
        loss.backward()
        optimizer.step()


def same(one, other):
    state = other.state_dict()
    return all(torch.equal(value, state[key]) for key, value in one.state_dict().items())


def test_the_examples():
    assert doctest.testmod(exits).failed == 0


@pytest.mark.parametrize("layers", ["default", "block", "activation"])
def test_detached_exits_leave_the_training_bitwise_as_it_was(images, labels, layers):
    bare, trunk = network(), network()
    model = Exits(trunk, layers, images)
    before = copy.deepcopy(model.heads)
    train(bare, images, labels)
    train(model, images, labels)
    assert same(bare, trunk)
    assert not any(same(one, other) for one, other in zip(model.heads, before, strict=True))


def test_joint_exits_teach_the_layers_too(images, labels):
    bare, trunk = network(), network()
    train(bare, images, labels)
    train(Exits(trunk, "block", images, detached=False), images, labels)
    assert not torch.equal(bare.stem.conv.weight, trunk.stem.conv.weight)


def test_joint_exits_survive_changes_in_place(images, labels):
    torch.manual_seed(0)
    trunk = Named("torchvision:resnet18", input_shape=(1, 8, 8), small_stem=True, num_classes=4)
    model = Exits(trunk, ["net.layer1.0.bn1"], images, detached=False)
    train(model, images, labels, steps=1)
    assert model.heads[0].weight.grad.any()


def test_the_scores_are_those_of_linear_maps_on_the_taps_features(images):
    trunk = network().eval()
    model = Exits(trunk, "block", images)
    with tap(trunk, images, "block") as taps, torch.no_grad():
        taps.arm()
        final = trunk(images)
        features = taps.take()
    scores = model.all_scores(images)
    assert [place.name for place in model.layers] == list(features)
    for head, name, got in zip(model.heads, features, scores, strict=False):
        torch.testing.assert_close(got, head(features[name]))
    assert torch.equal(scores[-1], final)
    assert torch.equal(model(images), final)
    assert all(torch.equal(one, other) for one, other in zip(model.last, scores, strict=True))


def test_one_call_of_a_module_that_runs_several_times(images):
    relu = nn.ReLU()
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), relu, nn.Linear(6, 5), relu, nn.Linear(5, 4)).eval()
    model = Exits(trunk, ["2#2", "2#1"], images)
    expected = model.heads[1](trunk[:5](images))
    assert torch.equal(model.all_scores(images)[1], expected)


def test_making_it_draws_nothing_and_leaves_no_hooks(images):
    trunk = network()
    trunk.stem.norm.eval()
    flags, state = [m.training for m in trunk.modules()], torch.get_rng_state()
    model = Exits(trunk, "default", images)
    model(images)
    assert torch.equal(torch.get_rng_state(), state)
    assert [m.training for m in trunk.modules()] == flags
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    assert same(model.heads, Exits(network(), "default", images).heads)
    assert not same(model.heads, Exits(network(), "default", images, seed=1).heads)


def test_hooks_go_when_the_forward_fails(images):
    model = Exits(network(), "block", images)
    with pytest.raises(RuntimeError):
        model(images[:, :, 0, 0])
    assert not any(m._forward_hooks for m in model.modules())


def test_copies_after_a_forward(images):
    model = Exits(network(), "block", images, detached=False)
    scores = model(images)
    twin, saved = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
    assert model.last
    assert twin.last == saved.last == []
    model.eval(), twin.eval()
    assert torch.equal(twin(images), model(images))
    assert scores.requires_grad


def test_taps_do_not_take_exits_for_layers(images):
    trunk = network()
    with tap(trunk, images) as plain, tap(Exits(trunk, "block", images), images) as taps:
        assert [f"backbone.{t.name}" for t in plain.layers] == [t.name for t in taps.layers]
        assert taps.head.name == "backbone.head"


def test_costs_are_those_of_the_way_to_each_exit(images):
    torch.manual_seed(0)
    trunk = MLP(depth=3, width=8, num_classes=4, input_shape=(1, 8, 8))
    model = Exits(trunk, "default", images)
    layer, head = 2 * 8 * 8, 2 * 8 * 4
    first = 2 * 64 * 8
    ways = (first + head, first + layer + 2 * head, first + 2 * layer + 3 * head)
    assert model.costs == (*ways, first + 2 * layer + 4 * head)
    conv = Exits(network(), "block", images)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        conv.eval()(images[:1])
    assert conv.costs[-1] == counter.get_total_flops()
    assert conv.costs == tuple(sorted(conv.costs))


def test_predicting(images):
    model = Exits(network(), "block", images).train()
    with torch.no_grad():
        model.heads[1].weight *= 50
    got = model.predict(images, 0.6)
    assert model.training
    assert not got.confidence.requires_grad
    with torch.no_grad():
        scores = torch.stack(model.eval().all_scores(images))
    confidence, answers = scores.softmax(-1).max(-1)
    for i in range(len(images)):
        sure = [e for e in range(4) if confidence[e, i] > 0.6]
        chosen = sure[0] if sure else int(confidence[:, i].argmax())
        assert int(got.exit[i]) == chosen
        assert int(got.answer[i]) == int(answers[chosen, i])
        assert got.confidence[i] == confidence[chosen, i]
        assert int(got.flops[i]) == model.costs[chosen if sure else -1]
    assert {int(e) for e in got.exit} != {3}
    best = model.predict(images)
    assert torch.equal(best.exit, confidence.argmax(0))
    assert set(best.flops.tolist()) == {model.costs[-1]}
    assert torch.equal(model.predict(images, 0.0).exit, torch.zeros(12, dtype=torch.int64))


def test_unsure_everywhere_costs_the_whole_network():
    scores = torch.tensor([[[0.0, 0.5]], [[0.1, 0.0]], [[0.2, 0.0]]])
    got = leave(scores, 0.9, (1, 2, 4))
    assert (int(got.exit), int(got.answer), int(got.flops)) == (0, 1, 4)
    assert int(leave(scores, 0.6, (1, 2, 4)).flops) == 1


def test_overthinking_by_hand():
    # Rows: two exits, then the network; columns: images, all of class 0.
    right = torch.tensor([[1, 1, 0, 0, 1], [1, 0, 1, 0, 1], [1, 0, 0, 1, 0]])
    scores = torch.stack([right, 1 - right], -1).float()
    found = overthinking(scores, torch.zeros(5, dtype=torch.int64))
    assert (found.any, found.final) == (1.0, 0.4)
    assert found.overthinking == pytest.approx(0.6)
    # Image 1 is the first exit's alone, image 2 the second's; image 4 is both exits'.
    assert found.unique == pytest.approx((0.2, 0.2))


def test_mistakes_in_words(images):
    with pytest.raises(ValueError, match=r"'blocks\.1' matches no module"):
        Exits(network(), "blocks.1", images)
    with pytest.raises(ValueError, match="'gram' gives no features"):
        Exits(network(), "block", images, pool="gram")
    with pytest.raises(ValueError, match="gives no scores"):
        Exits(nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 3)), "default", images)
    with pytest.raises(ValueError, match="2 costs for 3 exits"):
        leave(torch.zeros(3, 2, 4), 0.5, (1, 2))
    with pytest.raises(ValueError, match="not of the same images"):
        overthinking(torch.zeros(3, 2, 4), torch.zeros(1, dtype=torch.int64))
    model = Exits(nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 4)), "1", images)
    model.backbone = nn.Sequential(nn.Flatten(), nn.Identity(), nn.Linear(64, 4))
    model.backbone.forward = lambda x: torch.zeros(len(x), 4)
    with pytest.raises(RuntimeError, match="1 did not run"):
        model(images)


def test_spec_is_that_of_taps(images):
    model = Exits(network(), ["stages.*.conv2"], images, pool="avg")
    with tap(network(), images, ["stages.*.conv2"], "avg") as taps:
        assert [t.dim for t in taps.layers] == [head.in_features for head in model.heads]
    assert TapSpec().pool == "2x2"
