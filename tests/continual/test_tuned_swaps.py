import dataclasses
import doctest

import pytest
import torch
from continual.toys_swaps import View, halves, learnt, mlp
from torch import nn

from tunnel_lightning.backbones import ResNet
from tunnel_lightning.continual import tuned_swaps
from tunnel_lightning.continual.swaps import WithState, swap_sweep
from tunnel_lightning.continual.tuned_swaps import TUNED, Tuning, tuned_sweep
from tunnel_lightning.surgery import compose, loaded, sections, snapshot


@pytest.fixture(scope="module")
def small():
    return learnt(mlp(), halves(train=300, test=200), epochs=20)


@pytest.fixture(scope="module")
def normed():
    torch.manual_seed(0)
    network = ResNet(depth=8, width=4, num_classes=5, input_shape=(1, 8, 8))
    return learnt(network, halves(train=65, test=60), epochs=1)


def table(rows):
    return {(r.variant, r.index): r.value for r in rows}


def test_the_example():
    assert doctest.testmod(tuned_swaps).failed == 0


def test_the_first_task_comes_back(small):
    before = {(r.variant, r.index): r.value for r in swap_sweep(small, [2]) if r.dataset == "task 1"}
    rows = tuned_sweep(small, [2], Tuning(epochs=10, lr=1e-2))
    found = table(rows)
    assert {(r.dataset, r.measure, r.layer) for r in rows} == {("task 1", "swap_accuracy", "layers.1.linear")}
    assert set(found) == {(variant, 2) for variant in TUNED}
    assert min(found.values()) > 0.6 > before["E2T1", 2]


@pytest.mark.parametrize("which", ["small", "normed"])
def test_whole_network_equals_plain_training(which, request, monkeypatch):
    """The same steps on the network itself give the same scores."""
    two = request.getfixturevalue(which)
    # The head is that of the first task as learnt, whatever became of it.
    spoiled = {**two.second, "head.0.weight": torch.zeros_like(two.second["head.0.weight"])}
    two = dataclasses.replace(two, second=spoiled)
    task, seen = two.tasks[0], []
    view = View(two.model.eval(), task.label)

    def scores(network, run, images, size):
        with torch.no_grad():
            seen.append(run(images.x))
        return 0

    monkeypatch.setattr(WithState, "count_right", scores)
    tuned_sweep(two, [2], Tuning(epochs=5, lr=2e-3, batch_size=16))
    with loaded(two.model, compose(two.second, two.first, two.parts, 2, two.first)):
        optimizer = torch.optim.AdamW(view.parameters(), lr=2e-3, weight_decay=0.05)
        generator = torch.Generator().manual_seed(0)
        view.train()
        for epoch in range(5):
            optimizer.param_groups[0]["lr"] = 2e-3 * (1, 1, 0.1, 0.1, 0.01)[epoch]
            for rows in torch.randperm(len(task.train.y), generator=generator).split(16):
                if len(rows) > 1:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(view(task.train.x[rows]), task.train.y[rows]).backward()
                    optimizer.step()
        view.eval()
        with torch.no_grad():
            torch.testing.assert_close(seen[0], view(task.test.x), rtol=1e-4, atol=1e-5)


def test_the_extractor_alone_is_what_is_left_of_the_tunnel(small):
    """E2 tuned looks at nothing behind the cut: another T1 and another head change nothing."""
    wrecked = dict(small.first)
    for key in (*small.parts.entries([3]), *small.parts.head.entries):
        wrecked[key] = torch.full_like(wrecked[key], torch.nan)
    other = dataclasses.replace(small, first=wrecked)
    tuning = Tuning(epochs=1)
    assert (
        table(tuned_sweep(small, [2], tuning))["E2 tuned", 2]
        == table(tuned_sweep(other, [2], tuning))["E2 tuned", 2]
    )


@pytest.mark.parametrize("layers", ["default", "block", "activation"])
def test_maps_heads_and_nothing_changed(normed, layers):
    model = normed.model
    parts = sections(model, normed.tasks[0].test.x, layers, lambda x: model(x, 1))
    two = dataclasses.replace(normed, parts=parts)
    model.train()
    model.model.stem.norm.eval()
    before, flags, drawn = snapshot(model), [m.training for m in model.modules()], torch.get_rng_state()
    states = [{key: value.clone() for key, value in state.items()} for state in (two.first, two.second)]
    gradients = [p.grad for p in model.parameters()]
    last = len(parts)
    rows = tuned_sweep(two, [1, last], Tuning(epochs=1, batch_size=16))
    assert [r.index for r in rows] == [1, 1, last, last]
    assert all(0 <= r.value <= 1 for r in rows)
    assert rows == tuned_sweep(two, [1, last], Tuning(epochs=1, batch_size=16))
    assert all(torch.equal(value, before[key]) for key, value in snapshot(model).items())
    assert [m.training for m in model.modules()] == flags
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.grad is g for p, g in zip(model.parameters(), gradients, strict=True))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for state, was in zip((two.first, two.second), states, strict=True):
        assert all(torch.equal(value, was[key]) for key, value in state.items())


@pytest.mark.parametrize("layers", ["default", "activation"])
def test_features_are_those_behind_the_cut(normed, layers, monkeypatch):
    """The fresh head is given what the next section takes in, after normalisation and activation."""
    model, task = normed.model, normed.tasks[0]
    parts = sections(model, task.test.x, layers, lambda x: model(x, 1))
    seen = []
    monkeypatch.setattr(tuned_swaps, "pool", lambda x, *_: seen.append(x) or x.flatten(1))
    monkeypatch.setattr(tuned_swaps, "_fit", lambda *_: None)
    tuned_sweep(dataclasses.replace(normed, parts=parts, batch_size=500), [1], Tuning(epochs=1))
    with loaded(model, normed.second), torch.no_grad():
        expected = model.eval().model.stem(task.test.x)
    torch.testing.assert_close(seen[-1], expected)


def test_off_and_mistakes(small):
    assert tuned_sweep(small, [1], Tuning(epochs=0)) == []
    with pytest.raises(ValueError, match="no cut 9"):
        tuned_sweep(small, [9])
    for wrong in ({"epochs": -1}, {"batch_size": 1}, {"lr": 0.0}, {"weight_decay": -1.0}):
        with pytest.raises(ValueError, match="must be at least"):
            Tuning(**wrong)
    task = small.tasks[0]
    bare = dataclasses.replace(task, train=task.train._replace(y=torch.zeros(0)))
    with pytest.raises(ValueError, match="task 1 has no training images"):
        tuned_sweep(dataclasses.replace(small, tasks=(bare, small.tasks[1])), [1])
