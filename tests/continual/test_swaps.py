import dataclasses
import doctest
import math
import random
import warnings

import numpy as np
import pytest
import torch
from continual.toys import mlp as stream_mlp
from continual.toys import stream
from continual.toys_swaps import accuracy, halves, learn, learnt, mlp
from torch import nn

from tunnel_lightning.backbones import MLP, ResNet
from tunnel_lightning.continual import swaps
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.models import TaskView, prepare_model
from tunnel_lightning.continual.swaps import (
    PAIRS,
    blocks,
    cuts_at_tunnel,
    freeze_sweep,
    rewind_sweep,
    swap_sweep,
)
from tunnel_lightning.runs import Row, tunnels
from tunnel_lightning.surgery import compose, frozen, loaded, rewind, sections, snapshot


def resnet():
    torch.manual_seed(0)
    return ResNet(depth=8, width=4, num_classes=5, input_shape=(1, 8, 8))


@pytest.fixture(scope="module")
def small():
    return learnt(mlp(), halves(train=300, test=200), epochs=20)


@pytest.fixture(scope="module")
def normed():
    return learnt(resnet(), halves(train=100, test=80), epochs=2)


def table(rows):
    assert len({(r.dataset, r.variant, r.index) for r in rows}) == len(rows)
    return {(r.dataset, r.variant, r.index): r.value for r in rows}


def test_the_examples():
    assert doctest.testmod(swaps).failed == 0


def test_the_trial_on_digits():
    # Five seeds of another implementation: .995 (E1T1), .988 (E1T2), .837 (E2T1), .784 (E2T2) at cut 4.
    two = learnt(mlp(depth=8, width=128), halves(), epochs=30)
    found = table(swap_sweep(two, [1, 4, 8]))
    e1t1, e1t2, e2t1, e2t2 = (found["task 1", variant, 4] for variant in PAIRS)
    assert e1t1 > 0.97
    assert abs(e1t1 - e1t2) < 0.06  # the tunnels are interchangeable
    assert abs(e2t1 - e2t2) < 0.15
    assert e1t2 - e2t2 > 0.1  # the extractor has forgotten
    assert e1t2 - e2t1 > 0.1
    assert found["task 1", "E2T1", 1] - e2t2 > 0.1  # and yet all but layer 1 put back restores it
    assert found["task 2", "E2T2", 4] > 0.95
    assert found["task 2", "E2T2", 4] - found["task 2", "E1T2", 4] > 0.1


@pytest.mark.parametrize("which", ["small", "normed"])
def test_the_ends_are_the_networks_as_they_were(which, request):
    two = request.getfixturevalue(which)
    found = table(swap_sweep(two))
    last = len(two.parts)
    own = (two.first, two.second)
    for task, head in zip(two.tasks, own, strict=True):
        for variant, state in zip(("E1T1", "E2T2"), own, strict=True):
            with loaded(two.model, {**state, **two.parts.head_of(head)}):
                expected = accuracy(two, task)
            assert {found[task.name, variant, cut] for cut in range(1, last + 1)} == {expected}
        assert found[task.name, "E1T2", last] == found[task.name, "E1T1", last]
        assert found[task.name, "E2T1", last] == found[task.name, "E2T2", last]


@pytest.mark.parametrize("which", ["small", "normed"])
def test_every_cut_is_the_composed_network(which, request):
    two = request.getfixturevalue(which)
    found = table(swap_sweep(two))
    assert len(found) == 2 * 4 * len(two.parts)
    for task, head in zip(two.tasks, (two.first, two.second), strict=True):
        for cut in range(1, len(two.parts) + 1):
            for variant, pair in (("E1T2", (two.first, two.second)), ("E2T1", (two.second, two.first))):
                with loaded(two.model, compose(*pair, two.parts, cut, head)):
                    assert found[task.name, variant, cut] == accuracy(two, task)
    assert len(set(found.values())) > 6


def test_rows(small):
    rows = swap_sweep(small, [2])
    assert {r.variant for r in rows} == set(PAIRS)
    assert {r.dataset for r in rows} == {"task 1", "task 2"}
    row = rows[0]
    n = len(small.tasks[0].test.y)
    assert row[:10] == (
        "run/version_0", 90, 3, 1, "test", "task 1", "layers.1.linear", 2, "swap_accuracy", "E1T1",
    )  # fmt: skip
    assert (row.n, row.dim) == (n, 0)
    assert row.se == pytest.approx((row.value * (1 - row.value) / n) ** 0.5)


def test_nothing_is_changed(normed):
    model = normed.model.train()
    model.model.stem.norm.eval()
    states = [{key: value.clone() for key, value in state.items()} for state in (normed.first, normed.second)]
    before, flags = snapshot(model), [m.training for m in model.modules()]
    parameters = list(model.parameters())
    drawn = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    swap_sweep(normed)
    rewind_sweep(normed)
    assert all(torch.equal(value, before[key]) for key, value in snapshot(model).items())
    assert all(p is q for p, q in zip(model.parameters(), parameters, strict=True))
    assert [m.training for m in model.modules()] == flags
    assert (random.getstate(), np.random.get_state()[1].tolist()) == drawn[:2]
    assert torch.equal(torch.get_rng_state(), drawn[2])
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for state, was in zip((normed.first, normed.second), states, strict=True):
        assert all(torch.equal(value, was[key]) for key, value in state.items())


def test_a_network_that_fails_is_as_it_was(normed):
    class Broken(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, x):
            self.model(x, 0)
            raise KeyError

    before = snapshot(normed.model)
    broken = dataclasses.replace(normed, view=lambda task: Broken(normed.model))
    with pytest.raises(KeyError):
        swap_sweep(broken)
    assert all(torch.equal(value, before[key]) for key, value in snapshot(normed.model).items())


def test_one_state_twice_gives_one_number(small):
    same = dataclasses.replace(small, second=small.first)
    rows = swap_sweep(same)
    for task in small.tasks:
        assert len({r.value for r in rows if r.dataset == task.name}) == 1


def test_each_cut_is_reported(small):
    told = []
    swap_sweep(small, [3, 1, 3], progress=told.append)
    assert told == [3, 1]


@pytest.mark.parametrize("which", ["small", "normed"])
def test_rewinding_every_contiguous_block(which, request):
    two = request.getfixturevalue(which)
    task, last, told = two.tasks[0], len(two.parts), []
    rows = rewind_sweep(two, progress=lambda *done: told.append(done))
    found = table(rows)
    assert {(r.measure, r.dataset) for r in rows} == {("rewind_accuracy", "task 1")}
    count = last * (last + 1) // 2
    assert len(found) == count
    assert told == [(k, count) for k in range(1, count + 1)]
    for first in range(1, last + 1):
        for end in range(first, last + 1):
            state = rewind(two.second, two.first, two.parts, [*range(first, end + 1), last + 1])
            with loaded(two.model, state):
                assert found["task 1", f"{first}..k", end] == accuracy(two, task)
    assert {r.layer for r in rows if r.index == 2} == {two.parts[2].name}
    assert len({r.value for r in rows}) > 3


def test_blocks_that_were_swaps_are_not_scored_again(small, monkeypatch):
    rows, counted = rewind_sweep(small), []
    swapped = swap_sweep(small)
    right = swaps.WithState.right
    monkeypatch.setattr(swaps.WithState, "right", lambda *given: counted.append(1) or right(*given))
    assert rewind_sweep(small, swapped) == rows
    assert len(counted) == 1, "layer 2 of three"
    assert rewind_sweep(small, [r for r in swapped if r.dataset == "task 2"]) == rows
    assert len(counted) == 7


@pytest.mark.parametrize("layers", [1, 7, 20, 21, 50])
def test_blocks_of_deep_networks_begin_at_few_places(layers):
    found = blocks(layers)
    step = 1 if layers <= 20 else 2 if layers == 21 else 3
    assert {first for first, _ in found} == set(range(1, layers + 1, step))
    assert max(last for _, last in found) == layers
    assert all(last == layers or last % step == 0 for _, last in found)
    assert len(found) == len(set(found)) <= 210
    assert {(1, layers), (1, min(step, layers))} <= set(found)


def test_freezing_from_the_input_up(normed):
    two = normed
    states = {}

    def train(k):
        with loaded(two.model, two.first):
            with frozen(two.model, two.parts, range(1, k + 1)):
                learn(two.model, two.tasks[1], epochs=1)
            states[k] = snapshot(two.model)
        # The first task's head is not trained; were it, as learnt would still be what counts.
        states[k]["head.0.weight"] = -states[k]["head.0.weight"]
        return states[k]

    before, told = snapshot(two.model), []
    found = table(rows := freeze_sweep(two, train, [2, 7], progress=told.append))
    assert told == [2, 7]
    assert {(r.measure, r.variant) for r in rows} == {("freeze_accuracy", "1..k")}
    assert all(torch.equal(value, before[key]) for key, value in snapshot(two.model).items())
    for k, state in states.items():
        still = set(two.parts.entries(range(1, k + 1)))
        assert {key for key in state if torch.equal(state[key], two.first[key])} >= still
        with loaded(two.model, state):
            assert found["task 2", "1..k", k] == accuracy(two, two.tasks[1])
        with loaded(two.model, {**state, **two.parts.head_of(two.first)}):
            assert found["task 1", "1..k", k] == accuracy(two, two.tasks[0])
    # All layers frozen and the first task's head as learnt: the first network.
    assert found["task 1", "1..k", 7] == table(swap_sweep(two, [1]))["task 1", "E1T1", 1]


def test_cuts_at_the_start_of_the_tunnel(small):
    network = Row("", 9, 1, -1, "test", "task 1", "network", 4, "accuracy", "network", 0.9)
    rows = [network] + [
        network._replace(layer=f"layers.{i}.linear", index=i + 1, measure="probe_accuracy", variant="ridge", value=v)
        for i, v in enumerate((0.5, 0.86, 0.89))
    ]  # fmt: skip
    found = tunnels(rows)
    assert cuts_at_tunnel(found, small.parts) == {"id95": 1, "id98": 2}
    other = {"id95": found["id95"]._replace(layer="stages.0")}
    with pytest.raises(ValueError, match=r"By rule id95 the tunnel starts at stages\.0, which is no section"):
        cuts_at_tunnel(other, small.parts)


def test_mistakes_in_words(small):
    for cut in (0, 4):
        with pytest.raises(ValueError, match=f"no cut {cut}: give 1 to 3"):
            swap_sweep(small, [cut])
    with pytest.raises(ValueError, match="not of the network"):
        swap_sweep(dataclasses.replace(small, first={}))
    with pytest.raises(ValueError, match="does not hold the Multi"):
        swap_sweep(dataclasses.replace(small, view=lambda task: nn.Identity()))
    bare = dataclasses.replace(small.tasks[1], test=small.tasks[1].test._replace(y=torch.zeros(0)))
    with pytest.raises(ValueError, match="no test images"):
        swap_sweep(dataclasses.replace(small, tasks=(small.tasks[0], bare)))


def naive(model, epochs=2):
    avalanche()
    from avalanche.training.supervised import Naive

    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    return Naive(
        model=model, optimizer=optimizer, criterion=nn.CrossEntropyLoss(), train_mb_size=8,
        train_epochs=epochs, evaluator=None,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "head"),
    [("task_incremental", "multi"), ("class_incremental", "incremental"), ("class_incremental", "fixed")],
)
def test_every_kind_of_head_of_avalanche(kind, head):
    data = stream(kind, tasks=2, train_images=40, test_images=40)
    model = prepare_model(stream_mlp(data), data, head)
    strategy = naive(model)
    states, scores = [], []
    for experience, task in zip(data.benchmark.train_stream, data.tasks, strict=True):
        strategy.train(experience, num_workers=0)
        states.append(snapshot(model))
        with torch.no_grad():
            scores.append(TaskView(model.eval(), task.label)(task.test.x))
    first, last = data.tasks
    parts = sections(model, first.test.x, forward=TaskView(model, first.label))
    assert [section.name for section in parts.layers] == [f"layers.{i}.linear" for i in range(3)]
    before = snapshot(model)
    two = swaps.TwoTasks(model, lambda task: TaskView(model, task.label), *states, (first, last), parts)
    found = table(swap_sweep(two))
    for name, variant, task, got in (
        ("task 1", "E1T1", first, scores[0]),
        ("task 2", "E2T2", last, scores[1]),
    ):
        expected = float((got.argmax(1) == task.test.y).double().mean())
        assert {found[name, variant, cut] for cut in (1, 2, 3)} == {expected}
    assert found["task 1", "E2T2", 1] <= found["task 1", "E1T1", 1]
    assert all(torch.equal(value, before[key]) for key, value in snapshot(model).items())


def test_avalanche_trains_nothing_that_is_frozen():
    data = stream("class_incremental", tasks=2, train_images=20, test_images=20)
    torch.manual_seed(0)
    model = ResNet(depth=8, width=2, num_classes=data.outputs, input_shape=data.input_shape)
    strategy = naive(model)
    one, other = data.benchmark.train_stream
    strategy.train(one, num_workers=0)
    parts, before = sections(model, data.tasks[0].test.x), snapshot(model)
    with frozen(model, parts, [1, 2, 3]):
        strategy.train(other, num_workers=0)
    still = set(parts.entries([1, 2, 3]))
    assert {key for key, value in model.state_dict().items() if torch.equal(value, before[key])} == still
    assert len(strategy.optimizer.param_groups[0]["params"]) == len(list(model.parameters()))


def test_backbones_with_their_own_head_are_their_own_view():
    torch.manual_seed(0)
    tasks = halves(train=60, test=60)
    model = MLP(depth=2, width=8, num_classes=5, input_shape=(1, 8, 8))
    first = snapshot(model)
    torch.nn.init.normal_(model.head.weight)
    parts = sections(model, tasks[0].test.x)
    two = swaps.TwoTasks(model, lambda task: model, first, snapshot(model), tasks, parts)
    found = table(swap_sweep(two))
    assert len(found) == 16
    assert found["task 1", "E2T2", 1] == found["task 1", "E1T1", 1]  # they differ by the head alone


def test_networks_of_nan_have_no_accuracy(small):
    sick = {key: torch.full_like(value, math.nan) for key, value in small.second.items()}
    two = dataclasses.replace(small, second=sick)
    with pytest.warns(UserWarning, match="put together of two on task 1, task 2 are NaN"):
        swapped = swap_sweep(two)
    for row in swapped:
        whole = row.variant == "E1T1" or (row.variant == "E1T2" and row.index == len(two.parts))
        assert math.isnan(row.value) == (row.dataset == "task 2" or not whole), row
    with pytest.warns(UserWarning, match="layers put back on task 1 are NaN"):
        rewound = rewind_sweep(two, swapped)
    assert [row.variant == "1..k" and row.index == len(two.parts) for row in rewound] == [
        not math.isnan(row.value) for row in rewound
    ]
    with pytest.warns(UserWarning, match="layers frozen on task 1, task 2 are NaN"):
        assert all(math.isnan(row.value) for row in freeze_sweep(two, lambda cut: sick, [1]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        swap_sweep(small, [1])
