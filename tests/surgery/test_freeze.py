import copy
import doctest
import pickle

import pytest
import torch
from torch import nn

from tunnel_lightning.backbones import ResNet
from tunnel_lightning.surgery import freeze, frozen, sections, snapshot
from tunnel_lightning.taps import quiet


@pytest.fixture
def model():
    torch.manual_seed(0)
    return ResNet(depth=8, width=3, num_classes=4, input_shape=(1, 8, 8))


@pytest.fixture
def images():
    return torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(5))


@pytest.fixture
def parts(model, images):
    return sections(model, images)


def train(model, images, steps=3, optimizer=None):
    """As Avalanche does: all parameters, and train() at the start of every epoch."""
    optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    for _ in range(steps):
        model.train()
        optimizer.zero_grad(set_to_none=False)
        model(images).square().mean().backward()
        optimizer.step()
    return optimizer


def moved(model, before):
    return {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}


def test_the_example():
    assert doctest.testmod(freeze).failed == 0


@pytest.mark.parametrize("which", [range(1, 4), range(5, 9), [8], range(1, 9)])
def test_nothing_of_a_frozen_section_moves_and_all_else_does(model, images, parts, which):
    before = snapshot(model)
    with frozen(model, parts, which):
        if len(which) < 8:
            train(model, images)
    still = set(parts.entries(which))
    assert moved(model, before) == (set(before) - still if len(which) < 8 else set())


def test_momentum_and_gradients_from_before_do_not_move_it(model, images, parts):
    optimizer = train(model, images)
    before = snapshot(model)
    with frozen(model, parts, [1, 2]):
        train(model, images, optimizer=optimizer)
    assert moved(model, before) == set(before) - set(parts.entries([1, 2]))


def test_statistics_stay_whoever_sets_the_flags(model, images, parts):
    before = snapshot(model)
    with frozen(model, parts, [1]):
        for module in model.modules():
            module.training = True
        model(images)
        with quiet(model):
            pass
        model(images)
        assert torch.equal(model.stem.norm.running_mean, before["stem.norm.running_mean"])
        assert model.stem.norm.num_batches_tracked == 0
        assert model.stages[0][0].norm1.num_batches_tracked == 2


@pytest.mark.parametrize("fails", [False, True])
def test_all_is_as_before_afterwards(model, images, parts, fails):
    train(model, images)
    model.stem.conv.weight.requires_grad_(False)
    model.stages[0][0].norm1.eval()
    flags = [m.training for m in model.modules()]
    needs = [p.requires_grad for p in model.parameters()]
    gradients = [p.grad for p in model.parameters()]
    try:
        with frozen(model, parts, [1, 2, 3]):
            model.train()
            model(images)
            model.stages[0][0].norm1.eval()
            if fails:
                raise KeyError
    except KeyError:
        assert fails
    assert [m.training for m in model.modules()] == flags
    assert [p.requires_grad for p in model.parameters()] == needs
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert not any(m._forward_pre_hooks for m in model.modules())
    model.train()
    seen = model.stem.norm.num_batches_tracked.clone()
    model(images)
    assert model.stem.norm.num_batches_tracked == seen + 1


def test_copies_freeze_and_thaw_with_it(model, images, parts):
    with frozen(model, parts, [1]):
        twin, saved = copy.deepcopy(model), pickle.loads(pickle.dumps(model))
        twin.train()(images)
        assert twin.stem.norm.num_batches_tracked == 0
    twin.train()(images)
    assert twin.stem.norm.num_batches_tracked == 1
    saved.train()(images)
    assert saved.stem.norm.num_batches_tracked == 1


def test_instance_norm_with_statistics_too():
    model = nn.Sequential(
        nn.Conv1d(2, 2, 1), nn.InstanceNorm1d(2, track_running_stats=True), nn.Conv1d(2, 2, 1)
    )
    parts = sections(model, torch.zeros(2, 2, 5))
    with frozen(model, parts, [1]):
        model.train()(torch.randn(2, 2, 5) + 9)
    assert not model[1].running_mean.any()


def test_no_such_section(model, parts):
    with pytest.raises(ValueError, match="no section 9"), frozen(model, parts, [9]):
        raise AssertionError("frozen")
    assert all(p.requires_grad for p in model.parameters())
