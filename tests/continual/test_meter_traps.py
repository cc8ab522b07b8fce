"""Measuring leaves training as it is, to the last bit: one test for each thing that a careless look would disturb."""

import random
import warnings
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from continual.strategies_in_loops import CASES, Case, experiences, make, named, tasks
from continual.toys import mlp, normed, sgd, stream
from lightning.pytorch import seed_everything
from torch import nn

from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.loops import make_loop
from tunnel_lightning.continual.meter import LayerMeter
from tunnel_lightning.continual.models import backbone_in, prepare_model

OFTEN = ("Naive", "Naive TI", "Replay", "Replay TI", "LwF TI", "MIR", "GDumb TI", "ICaRL", "SCR")
MORE = {
    "Replay TI": Case(named("Replay", mem_size=20), "task_incremental"),
    "DER": Case(named("DER", mem_size=20, batch_size_mem=4)),
    "ER_ACE": Case(named("ER_ACE", mem_size=20, batch_size_mem=4)),
}
# MIR and ICaRL pass images through the network themselves, before the strategy does: so in either order.
EVERY = [
    pytest.param(
        name, first, marks=() if name in OFTEN and (first or name in ("MIR", "ICaRL")) else pytest.mark.slow
    )
    for name in {**CASES, **MORE}
    for first in (True, False)
    if name != "PNN"
]


@pytest.fixture(autouse=True)
def calm(monkeypatch):
    for name, case in MORE.items():
        monkeypatch.setitem(CASES, name, case)
    avalanche()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche's own
        yield


@cache
def stream_of(kind: str):
    return tasks(kind)


@cache
def unmeasured(name: str):
    return everything(learn(name, measured=False)[0])


def everything(strategy: Any) -> dict[str, Any]:
    """All that a look could have changed."""
    return {
        "weights": {name: x.clone() for name, x in strategy.model.state_dict().items()},
        "optimizer": [
            x.clone() for s in strategy.optimizer.state.values() for x in s.values() if torch.is_tensor(x)
        ],
        "groups": [len(group["params"]) for group in strategy.optimizer.param_groups],
        "modes": {name: module.training for name, module in strategy.model.named_modules()},
        "torch": torch.get_rng_state(),
        "numpy": np.random.get_state()[1].tolist(),
        "python": random.getstate(),
    }


def assert_same(found: Any, wanted: Any) -> None:
    assert type(found) is type(wanted)
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for key in wanted:
            assert_same(found[key], wanted[key])
    elif isinstance(wanted, list) and wanted and torch.is_tensor(wanted[0]):
        assert len(found) == len(wanted)
        assert all(torch.equal(a, b) for a, b in zip(found, wanted, strict=True))
    elif torch.is_tensor(wanted):
        assert torch.equal(found, wanted)
    else:
        assert found == wanted


def hooked(holder: Any, depth: int = 4) -> list[nn.Module]:
    """Modules with a hook, of all that an object holds: its network, and any copy of it inside its plugins."""
    if isinstance(holder, nn.Module):
        return [module for module in holder.modules() if module._forward_hooks or module._forward_pre_hooks]
    inside = holder if isinstance(holder, (list, tuple)) else getattr(holder, "__dict__", {}).values()
    return [module for each in inside for module in hooked(each, depth - 1)] if depth else []


def learn(name: str, measured: bool, first: bool = True, loop: str = "native") -> tuple[Any, Any]:
    """The strategy after all tasks, measured before and after each, or not."""
    of = stream_of(CASES[name].kind)
    strategy, meter = make(name, of), None
    seed_everything(2, verbose=False)
    if measured:
        meter = LayerMeter(of, online_every_n_steps=1)
        meter.start(strategy.model)
        plugins = meter.plugins()
        strategy.plugins[:] = plugins + strategy.plugins if first else strategy.plugins + plugins
        meter.measure(strategy.model, after=-1)
    made = make_loop(strategy, loop)
    for k, experience in enumerate(experiences(name, of)):
        made.train(experience)
        if meter is not None:
            meter.measure(strategy.model, after=2 if CASES[name].joint else k)
    return strategy, meter


@pytest.mark.parametrize(("name", "first"), EVERY)
def test_every_strategy_learns_the_same_to_the_last_bit(name: str, first: bool) -> None:
    # With BatchNorm, dropout and images cropped at random; teachers, buffers, heads and replaced models by strategy.
    wanted = unmeasured(name)
    strategy, meter = learn(name, measured=True, first=first)
    assert_same(everything(strategy), wanted)
    online = meter._online
    assert online.bank.steps == online.steps > 0  # it could follow every step
    assert not hooked(strategy)


def test_the_search_for_hooks_finds_a_teacher() -> None:
    strategy, _ = learn("LwF TI", measured=False)
    teacher = next(plugin.lwf.prev_model for plugin in strategy.plugins if hasattr(plugin, "lwf"))
    handle = next(teacher.children()).register_forward_hook(lambda *_: None)
    assert hooked(strategy)
    handle.remove()


def test_the_same_when_a_trainer_drives_the_strategy() -> None:
    wanted = everything(learn("Replay", measured=False, loop="lightning")[0])
    assert_same(everything(learn("Replay", measured=True, loop="lightning")[0]), wanted)


class Spy:
    """A plugin that looks for hooks at every moment but the forward pass, as a teacher is copied at any of them."""

    def __init__(self) -> None:
        self.looked = 0

    def __getattr__(self, event: str) -> Any:
        if event not in (
            "before_backward",
            "after_update",
            "before_training_iteration",
            "after_training_exp",
        ):
            raise AttributeError(event)
        return self._look

    def _look(self, strategy: Any, **kwargs: Any) -> None:
        self.looked += 1
        assert not [module for module in strategy.model.modules() if module._forward_hooks]


def naive(model: nn.Module, plugins: list[Any]) -> Any:
    from avalanche.training import Naive

    return Naive(
        model=model, optimizer=sgd(model.parameters()), criterion=nn.CrossEntropyLoss(), train_mb_size=8,
        evaluator=None, plugins=plugins,
    )  # fmt: skip


def test_hooks_are_on_the_network_only_during_its_forward_pass() -> None:
    of = stream(tasks=5)
    model, meter, spy = mlp(of), LayerMeter(of, online_every_n_steps=1), Spy()
    meter.start(model)
    strategy = naive(model, [*meter.plugins(), spy])
    strategy.train(of.benchmark.train_stream[0])
    assert spy.looked > 6
    assert meter._online.bank.steps == 3


def test_a_failed_forward_leaves_no_hook_behind_once_the_next_begins() -> None:
    of = stream(tasks=5)
    model, meter = mlp(of), LayerMeter(of)
    meter.start(model)
    strategy = naive(model, meter.plugins())
    strategy.train(of.benchmark.train_stream[0])
    fine = model.head.forward
    model.head.forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        strategy.train(of.benchmark.train_stream[1])
    model.head.forward = fine
    strategy.train(of.benchmark.train_stream[1])
    assert not hooked(strategy)


@pytest.mark.parametrize("head", ["multi", "incremental"])
def test_no_head_is_made_or_grown_for_tasks_not_seen(head: str) -> None:
    of = stream("task_incremental" if head == "multi" else "class_incremental", tasks=5)
    model = prepare_model(mlp(of), of, head)  # type: ignore[arg-type]
    meter = LayerMeter(of)
    meter.start(model)
    names = [tap.name for tap in meter.layers]
    assert names == [f"layers.{i}.linear" for i in range(3)]
    strategy = naive(model, meter.plugins())
    for k, experience in enumerate(of.benchmark.train_stream[:2]):
        strategy.train(experience)
        before = {name: tuple(x.shape) for name, x in strategy.model.state_dict().items()}
        rows = meter.measure(strategy.model, after=k)
        assert {name: tuple(x.shape) for name, x in strategy.model.state_dict().items()} == before
        seen = {row.dataset for row in rows if row.layer == "network"}
        assert seen == {f"task {i + 1}" for i in range(k + 1)}
        # Layers are measured on every task, the head's own linear modules are none of them.
        assert {row.layer for row in rows} == {*names, "network"}
        assert {row.dataset for row in rows if row.variant == "refit_task"} == {
            task.name for task in of.tasks
        }


def test_every_module_keeps_its_mode_and_every_gradient_stays() -> None:
    of = stream(tasks=5)
    model, meter = normed(of), LayerMeter(of)
    meter.start(model)
    model.train()
    model.layers[1].eval()
    model(of.tasks[0].train.x).sum().backward()
    before = [parameter.grad.clone() for parameter in model.parameters()]
    meter.measure(model, after=0)
    assert [module.training for module in model.layers[:3]] == [True, False, True]
    assert torch.is_grad_enabled()
    assert all(torch.equal(p.grad, g) for p, g in zip(model.parameters(), before, strict=True))


def test_a_failed_measurement_leaves_no_trace() -> None:
    of = stream(tasks=5)
    model, meter = normed(of), LayerMeter(of)
    meter.start(model)
    model.train()
    state = torch.get_rng_state()
    model.layers[4].forward = lambda x: 1 / 0
    with pytest.raises(ZeroDivisionError):
        meter.measure(model, after=0)
    assert all(module.training for module in model.modules())
    assert torch.equal(state, torch.get_rng_state())
    assert not hooked(model)


def test_the_model_that_the_strategy_holds_now_is_measured() -> None:
    # GDumb trains a copy of the first network in each task; the one it was given stays as it was.
    strategy, meter = learn("GDumb TI", measured=True)
    found = {
        row.dataset: row.value for row in meter.measure(strategy.model, after=2) if row.variant == "network"
    }
    from avalanche.models import avalanche_forward

    strategy.model.eval()
    for task in stream_of("task_incremental").tasks:
        with torch.no_grad():
            scores = avalanche_forward(strategy.model, task.test.x, torch.full_like(task.test.y, task.label))
        assert found[task.name] == pytest.approx((scores.argmax(1) == task.test.y).double().mean().item())


def test_icarl_answers_by_its_class_means() -> None:
    strategy, meter = learn("ICaRL", measured=True)
    found = {
        row.dataset: row.value for row in meter.measure(strategy.model, after=2) if row.variant == "network"
    }
    task = stream_of("class_incremental").tasks[0]
    strategy.model.eval()
    with torch.no_grad():
        features = backbone_in(strategy.model).features(task.test.x)
        scores = strategy.model.eval_classifier(features)
    assert found["task 1"] == pytest.approx((scores.argmax(1) == task.test.y).double().mean().item())
    assert set(found) == {"task 1", "task 2", "task 3"}
