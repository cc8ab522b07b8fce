"""A run that goes on from its state ends with the very weights of one that was never interrupted."""

import doctest
import io
import random
from typing import Any

import numpy as np
import pytest
import torch
from continual.toys import digits, mlp, normed
from torch import nn

from tunnel_lightning.continual import state_parts
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.models import prepare_model
from tunnel_lightning.continual.scenarios import Scenario, make_stream
from tunnel_lightning.continual.state import can_resume, export_state, import_state
from tunnel_lightning.continual.strategies import make_strategy, turns
from tunnel_lightning.continual.stream import Stream

TASKS = [[0, 1], [2, 3], [4, 5, 6]]

ARGS: dict[str, dict[str, Any]] = {
    "Naive": {},
    "Cumulative": {},
    "JointTraining": {},
    "Replay": {"mem_size": 11},
    "EWC": {"ewc_lambda": 5.0},
    "SynapticIntelligence": {"si_lambda": 0.01},
    "MAS": {"lambda_reg": 0.01},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "GEM": {"patterns_per_exp": 9},
    "AGEM": {"patterns_per_exp": 9, "sample_size": 6},
    "ICaRL": {"memory_size": 14},
    "DER": {"mem_size": 25, "batch_size_mem": 6},
}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    avalanche()


def stream(kind: str = "class_incremental") -> Stream:
    tasks: Any = [[0, 1], [2, 3], [4, 5]] if kind == "domain_incremental" else TASKS
    if kind == "permuted":
        tasks = 3
    data = digits(6 if kind == "permuted" else 12, augment=True)
    return make_stream(data, Scenario(kind, tasks), 20, 20)  # type: ignore[arg-type]


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9)


def adam(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=0.002)


def made(
    name: str,
    tasks: Stream,
    args: dict[str, Any] | None = None,
    head: Any = "auto",
    seed: int = 0,
    optimizer: Any = sgd,
    plugins: Any = (),
    network: Any = normed,
) -> Any:
    backbone = network(tasks, seed=seed)
    model = prepare_model(backbone, tasks, head)
    return make_strategy(
        name,
        ARGS[name] if args is None else args,
        model=model,
        backbone=backbone,
        stream=tasks,
        optimizer=optimizer,
        criterion=nn.CrossEntropyLoss(),
        epochs=2,
        batch_size=8,
        plugins=plugins,
    )


def seeded(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def weights(strategy: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in strategy.model.state_dict().items()}


def through_a_file(state: Any) -> Any:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def same(left: Any, right: Any) -> bool:
    """Equal to the last bit, in the same order."""
    if isinstance(left, torch.Tensor):
        return left.dtype == right.dtype and torch.equal(left, right)
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def check(name: str, kind: str = "class_incremental", **options: Any) -> None:
    """Straight through, keeping the states; then from each of them, in a fresh strategy of other first weights."""
    tasks = stream(kind)
    straight = made(name, tasks, **options)
    seeded(7)
    steps, states, snapshots = turns(straight, tasks), [], []
    for _, experiences in steps:
        straight.train(experiences)
        states.append(through_a_file(export_state(straight)))
        snapshots.append(weights(straight))
    final = snapshots[-1]
    assert all(bool(torch.isfinite(value).all()) for value in final.values())
    assert len(steps) == 1 or not same(snapshots[-2], final)
    for done, state in enumerate(states[:-1] if len(states) > 1 else states, start=1):
        again = stream(kind)  # as in a new program
        resumed = made(name, again, seed=3, **options)
        seeded(99)
        import_state(resumed, state)
        assert same(weights(resumed), snapshots[done - 1])
        for _, experiences in turns(resumed, again)[done:]:
            resumed.train(experiences)
        assert same(weights(resumed), final), f"{name} after task {done}"
        # All the rest too: counters, memories, random states.
        now = through_a_file(export_state(resumed))
        assert [key for key in now if not same(now[key], states[-1][key])] == []


@pytest.mark.parametrize("name", ARGS)
def test_resumed_run_ends_with_the_same_weights(name: str) -> None:
    check(name)


@pytest.mark.parametrize("name", [name for name in ARGS if name not in ("ICaRL", "DER")])
def test_heads_of_their_own(name: str) -> None:
    check(name, "task_incremental", optimizer=adam)


@pytest.mark.parametrize(
    "name", ["Naive", "Cumulative", "Replay", "EWC", "SynapticIntelligence", "MAS", "LwF"]
)
def test_a_classifier_that_grows(name: str) -> None:
    check(name, head="incremental", optimizer=adam)


@pytest.mark.parametrize("name", ["Cumulative", "Replay", "LwF", "AGEM", "DER"])
def test_classes_that_come_again(name: str) -> None:
    check(name, "permuted")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("EWC", {"ewc_lambda": 1.0, "mode": "online", "decay_factor": 0.5}),
        ("Replay", {"mem_size": 2}),  # fewer images than tasks
        ("DER", {"mem_size": 5, "batch_size_mem": 3}),  # fewer than classes
        ("ICaRL", {"memory_size": 2, "fixed_memory": False}),
        ("LwF", {"alpha": [0.0, 1.0, 2.0], "temperature": 2.0}),
    ],
)
def test_other_arguments(name: str, args: dict[str, Any]) -> None:
    check(name, args=args)


def groups(parameters: Any) -> torch.optim.Optimizer:
    """Two groups, the last parameters first."""
    *body, weight, bias = parameters
    return torch.optim.SGD([{"params": [bias, weight], "lr": 0.05}, {"params": body}], lr=0.01, momentum=0.9)


@pytest.mark.parametrize("head", ["fixed", "incremental"])
def test_groups_of_parameters(head: str) -> None:
    check("Replay", head=head, optimizer=groups)


class Draws:
    """Someone's plugin with a state to ask for, on which the weights depend."""

    def __init__(self) -> None:
        self.count = 0

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        self.count += 1
        strategy.loss = strategy.loss * (1 + self.count / 10)

    def state_dict(self) -> dict[str, int]:
        return {"count": self.count}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.count = state["count"]


def replay_with(policy: str) -> dict[str, Any]:
    path = f"avalanche.training.storage_policy.{policy}"
    made_of = {"class_path": path, "init_args": {"max_size": 9}}
    return {"class_path": "ReplayPlugin", "init_args": {"mem_size": 9, "storage_policy": made_of}}


def scheduled(schedule: str, given: dict[str, Any], **args: Any) -> dict[str, Any]:
    made_of = {"class_path": f"torch.optim.lr_scheduler.{schedule}", "init_args": given}
    return {"class_path": "LRSchedulerPlugin", "init_args": {"scheduler": made_of, **args}}


PLUGINS = {
    "EWC": {"class_path": "EWCPlugin", "init_args": {"ewc_lambda": 5.0}},
    "class-balanced": replay_with("ClassBalancedBuffer"),
    "reservoir": replay_with("ReservoirSamplingBuffer"),
    "schedule": scheduled("ExponentialLR", {"gamma": 0.5}, reset_lr=False, reset_scheduler=False),
    "someone's": {"class_path": f"{__name__}.Draws"},
}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_plugins_beside_a_strategy(plugin: str) -> None:
    check("Naive", plugins=[PLUGINS[plugin]])


def test_nothing_learnt_yet() -> None:
    """The state before the first task: other first weights, and the same end."""
    ends = []
    tasks = stream()
    first, second = made("Replay", tasks), made("Replay", tasks, seed=3)
    seeded(7)
    state = through_a_file(export_state(first))
    for strategy in (first, second):
        if strategy is not first:
            import_state(strategy, state)
        for _, experiences in turns(strategy, tasks):
            strategy.train(experiences)
        ends.append(weights(strategy))
    assert same(*ends)


def test_state_shares_nothing_with_what_goes_on_learning() -> None:
    tasks = stream()
    strategy = made("EWC", tasks)
    strategy.train(tasks.benchmark.train_stream[0])
    state = export_state(strategy)
    kept = through_a_file(state)
    strategy.train(tasks.benchmark.train_stream[1])
    assert same(state, kept)
    resumed = made("EWC", tasks)
    import_state(resumed, state)
    resumed.train(tasks.benchmark.train_stream[1])
    assert same(state, kept)


def test_memories_are_pairs_of_task_and_index() -> None:
    tasks = stream()
    strategy = made("Replay", tasks)
    for experience in tasks.benchmark.train_stream:
        strategy.train(experience)
    replay = next(part for part in export_state(strategy)["parts"] if part and "groups" in part)
    policy = next(plugin for plugin in strategy.plugins if hasattr(plugin, "storage_policy")).storage_policy
    assert [len(kept["images"]) for _, kept in replay["groups"]] == [4, 4, 3]
    for task, kept in replay["groups"]:
        own = tasks.benchmark.train_stream[task].dataset.eval()
        assert kept["images"][:, 0].tolist() == [task] * len(kept["images"])
        memory = policy.buffer_groups[task].buffer.eval()
        for (_, index), (x, y, _) in zip(kept["images"].tolist(), memory, strict=True):
            assert torch.equal(own[index][0], x)
            assert own[index][1] == y


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 2, and this program reads 1"),
        ({"strategy": "EWC"}, "one of EWC, not of Replay"),
        ({"plugins": ["a.b.Other"]}, "other plugins: Other; now there are Origins, ReplayPlugin"),
        ({"tasks": 4}, "after 4 tasks, and the stream has 3"),
    ],
)
def test_state_of_something_else(change: dict[str, Any], message: str) -> None:
    tasks = stream()
    strategy = made("Replay", tasks)
    strategy.train(tasks.benchmark.train_stream[0])
    state = {**export_state(strategy), **change}
    with pytest.raises(ValueError, match=message):
        import_state(made("Replay", tasks), state)


def test_state_of_another_network_optimizer_or_stream() -> None:
    tasks = stream()
    strategy = made("Replay", tasks)
    for experience in tasks.benchmark.train_stream:
        strategy.train(experience)
    state = export_state(strategy)
    with pytest.raises(ValueError, match="one of another network"):
        import_state(made("Replay", tasks, network=mlp), state)
    with pytest.raises(ValueError, match="optimizer SGD, not of Adam"):
        import_state(made("Replay", tasks, optimizer=adam), state)
    with pytest.raises(ValueError, match="learnt nothing yet"):
        import_state(strategy, state)
    smaller = make_stream(digits(2), Scenario("class_incremental", TASKS), 4, 4)
    with pytest.raises(ValueError, match="images that task 1 of the stream does not have"):
        import_state(made("Replay", smaller), state)


def test_who_cannot_and_why() -> None:
    tasks = stream()
    mir = made("MIR", tasks, {"mem_size": 20, "subsample": 10})
    assert "MIR can't be written down as numbers, as that of Naive, Cumulative" in str(can_resume(mir))
    with pytest.raises(ValueError, match="has no state to keep: the state of MIR"):
        export_state(mir)
    for plugin, reason in (
        (
            {"class_path": "RWalkPlugin", "init_args": {"delta_t": 2}},
            "state of plugin RWalkPlugin can't be written",
        ),
        (replay_with("ParametricBuffer"), "the state of a ParametricBuffer can't be written down as numbers"),
        (scheduled("ReduceLROnPlateau", {}, metric="train_loss"), "follows the loss"),
    ):
        assert reason in str(can_resume(made("Naive", tasks, plugins=[plugin])))


def test_a_strategy_made_elsewhere() -> None:
    from avalanche.training.supervised import Naive

    network = mlp(stream())
    strategy = Naive(model=network, optimizer=sgd(network.parameters()), evaluator=None)
    assert "not made by make_strategy" in str(can_resume(strategy))


def test_examples() -> None:
    result = doctest.testmod(state_parts)
    assert result.attempted > 0
    assert result.failed == 0
