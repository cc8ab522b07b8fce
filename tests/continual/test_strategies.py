"""Every strategy that the table says runs learns two tasks here, on every head that it says."""

import doctest
import pkgutil
from importlib import import_module
from inspect import unwrap
from typing import Any

import pytest
import torch
from continual.toys import mlp, normed, sgd, stream
from torch import Tensor, nn

from tunnel_lightning.continual import strategies, strategy_networks, strategy_plugins
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.loops import choose_loop
from tunnel_lightning.continual.models import TaskView, backbone_in, prepare_model
from tunnel_lightning.continual.state import can_resume
from tunnel_lightning.continual.strategies import STRATEGIES, answering_model, make_strategy, turns
from tunnel_lightning.continual.stream import Stream

RUNNING = [method for method in STRATEGIES.values() if not method.fails]
KINDS = {"fixed": "class_incremental", "incremental": "class_incremental", "multi": "task_incremental"}

SMALL: dict[str, dict[str, Any]] = {
    "AGEM": {"sample_size": 8},
    "BiC": {"stage_2_epochs": 2},
    "DER": {"batch_size_mem": 6},
    "ER_AML": {"mem_size": 80, "batch_size_mem": 6},
    "FeatureReplay": {"batch_size_mem": 6},
    "GSS_greedy": {"mem_size": 48},
    "MER": {"n_inner_steps": 1},
    "MIR": {"batch_size_mem": 4},
    "PNNStrategy": {"num_layers": 2, "hidden_features_per_column": 8},
    "SCR": {"projection_size": 8, "batch_size_mem": 6},
}
"""Arguments beside the required ones, for little data."""


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    avalanche()


def made(
    name: str,
    tasks: Stream,
    args: dict[str, Any] | None = None,
    head: Any = "auto",
    network: Any = mlp,
    **options: Any,
) -> Any:
    """A strategy of the table with arguments for little data, or of a class path with those given."""
    backbone = network(tasks)
    given = dict(args or {})
    if name in STRATEGIES:
        given = {**STRATEGIES[name].required, **SMALL.get(name, {}), **given}
    common: dict[str, Any] = {
        "optimizer": sgd,
        "criterion": nn.CrossEntropyLoss(),
        "epochs": 2,
        "batch_size": 8,
    }
    model = prepare_model(backbone, tasks, head)
    return make_strategy(name, given, model=model, backbone=backbone, stream=tasks, **{**common, **options})


def parameters_of(strategy: Any) -> Tensor:
    return torch.cat([each.detach().flatten() for each in strategy.model.parameters()])


class Answers:
    """A plugin that keeps what a strategy answers when Avalanche itself evaluates it."""

    def __init__(self) -> None:
        self.outputs: list[Tensor] = []

    def after_eval_iteration(self, strategy: Any, **kwargs: Any) -> None:
        self.outputs.append(strategy.mb_output.argmax(1))


CASES = [(method.name, head) for method in RUNNING for head in method.heads]


@pytest.mark.parametrize(("name", "head"), CASES)
def test_learns_two_tasks(name: str, head: str, capfd: pytest.CaptureFixture[str]) -> None:
    method = STRATEGIES[name]
    tasks = stream(KINDS[head], tasks=[2, 3], samples_per_class=12, train_images=10, test_images=30)
    torch.manual_seed(1)
    # Slow enough for MAS, whose penalty diverges at the others' rate.
    strategy = made(
        name, tasks, head=head, optimizer=lambda each: torch.optim.SGD(each, lr=0.01, momentum=0.9)
    )
    strategy.plugins.append(answers := Answers())  # last: CoPE's own plugin makes answers of its outputs
    assert choose_loop(strategy, "auto", ["precision"]) == method.loop
    before = parameters_of(strategy)
    for _, experiences in turns(strategy, tasks):
        strategy.train(experiences)
    after = parameters_of(strategy)
    assert bool(torch.isfinite(after).all())
    moved = len(after) != len(before) or not torch.equal(after, before)
    assert moved != (name == "StreamingLDA")  # which fixes the network
    # What is measured is what the strategy itself answers.
    for task, experience in zip(tasks.tasks, tasks.benchmark.test_stream, strict=True):
        strategy.eval(experience)
        own = torch.cat(answers.outputs)
        answers.outputs.clear()
        images = torch.stack([x for x, *_ in experience.dataset])
        network = answering_model(strategy).eval()
        with torch.no_grad():
            scores = TaskView(network, task.label)(images)
        assert torch.equal(scores.argmax(1), own)
        assert scores.shape[1] <= tasks.outputs
    printed = capfd.readouterr()
    assert printed.out == ""


@pytest.mark.parametrize("method", RUNNING, ids=lambda method: method.name)
def test_resumable_as_the_table_says(method: Any) -> None:
    tasks = stream(KINDS[method.heads[0]])
    why = can_resume(made(method.name, tasks))
    assert (why is None) == method.resumable
    if why is not None:
        assert method.name in why
        assert not why.endswith(".")


@pytest.mark.parametrize("name", ["BiC", "CoPE", "StreamingLDA"])
def test_the_network_alone_would_answer_otherwise(name: str) -> None:
    tasks = stream()
    strategy = made(name, tasks, network=normed)
    for _, experiences in turns(strategy, tasks)[:3]:
        strategy.train(experiences)
    images = tasks.tasks[0].test.x
    alone, answering = strategy.model.eval(), answering_model(strategy).eval()
    assert answering is not alone
    with torch.no_grad():
        left, right = alone(images), answering(images)
    assert left.shape != right.shape or not torch.equal(left.argmax(1), right.argmax(1))


def test_backbone_is_found_in_every_network_but_pnn() -> None:
    for method in RUNNING:
        tasks = stream(KINDS[method.heads[0]])
        strategy = made(method.name, tasks)
        found = type(backbone_in(strategy.model)).__name__
        assert found == ("PNN" if method.name == "PNNStrategy" else "MLP"), method.name


def test_what_is_made_for_a_strategy() -> None:
    tasks = stream()
    for head, name in (("fixed", "head"), ("incremental", "head.classifier")):
        strategy = made("CWRStar", tasks, head=head)
        assert [each.cwr_layer_name for each in strategy.plugins if hasattr(each, "cwr_layer_name")] == [name]
    featured = made("LFL", tasks).model
    features = featured.get_features(tasks.tasks[0].train.x)
    features.sum().backward()
    first = backbone_in(featured).layers[0].linear.weight  # type: ignore[union-attr, index]
    assert features.shape == (24, 16)
    assert first.grad is not None
    heads = stream("task_incremental")
    columns = TaskView(made("PNNStrategy", heads).model, 0)  # before anything is learnt
    assert columns(heads.tasks[0].train.x).shape == (24, 2)


def test_joint_training_takes_one_turn_with_all_tasks() -> None:
    tasks = stream()
    ((last, experiences),) = turns(made("JointTraining", tasks), tasks)
    assert last == 4
    assert [experience.current_experience for experience in experiences] == [0, 1, 2, 3, 4]
    assert [index for index, _ in turns(made("Naive", tasks), tasks)] == [0, 1, 2, 3, 4]


def test_every_strategy_of_the_library_is_in_the_table() -> None:
    from avalanche.training import supervised
    from avalanche.training.templates.base import BaseTemplate

    found = set()
    for module in pkgutil.iter_modules(supervised.__path__, supervised.__name__ + "."):
        for each in map(unwrap, filter(callable, vars(import_module(module.name)).values())):
            if isinstance(each, type) and issubclass(each, BaseTemplate) and each.__module__ == module.name:
                found.add(f"{each.__module__}.{each.__qualname__}")
    assert found == {method.path for method in STRATEGIES.values()}


def test_every_plugin_that_fails_or_asks_for_care_exists() -> None:
    plugins = import_module(strategy_plugins.LIBRARY)
    assert [name for name in strategies.PLUGINS if not hasattr(plugins, name)] == []


@pytest.mark.parametrize(
    ("plugin", "args"),
    [
        ("RWalkPlugin", {"delta_t": 2}),
        ("RARPlugin", {"batch_size_mem": 4}),
        ("ReplayPlugin", {"mem_size": 20}),
        ("EWCPlugin", {"ewc_lambda": 10.0}),
        ("LwFPlugin", {}),
        ("SynapticIntelligencePlugin", {"si_lambda": 10.0}),
        ("MASPlugin", {"lambda_reg": 0.1}),
        ("GEMPlugin", {"patterns_per_experience": 9, "memory_strength": 0.5}),
        ("AGEMPlugin", {"patterns_per_experience": 9, "sample_size": 8}),
        ("MIRPlugin", {"mem_size": 20, "subsample": 10, "batch_size_mem": 4}),
        ("GDumbPlugin", {"mem_size": 20}),
        ("BiCPlugin", {"mem_size": 40, "stage_2_epochs": 2}),
        ("FromScratchTrainingPlugin", {}),
        (
            "LRSchedulerPlugin",
            {"scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}},
        ),
    ],
)
def test_plugins_by_name_change_what_is_learnt(plugin: str, args: dict[str, Any]) -> None:
    tasks = stream()
    ends = []
    for plugins in ([], [{"class_path": plugin, "init_args": args}]):
        torch.manual_seed(0)
        strategy = made(
            "Naive", tasks, plugins=plugins, optimizer=lambda each: torch.optim.SGD(each, lr=0.01)
        )
        for _, experiences in turns(strategy, tasks)[:2]:
            strategy.train(experiences)
        ends.append(parameters_of(strategy))
    assert bool(torch.isfinite(ends[1]).all())
    assert not torch.equal(*ends)


@pytest.mark.parametrize(
    ("name", "plugin"),
    [
        ("FeatureReplay", "FeatureDistillationPlugin"),
        ("ICaRL", "CurrentDataNCMUpdate"),
        ("ICaRL", "NCMOracle"),
        ("SCR", "MemoryNCMUpdate"),
    ],
)
def test_plugins_that_need_a_certain_strategy(name: str, plugin: str) -> None:
    tasks = stream()
    strategy = made(name, tasks, plugins=[plugin])
    assert plugin in [type(each).__name__ for each in strategy.plugins]
    for _, experiences in turns(strategy, tasks)[:2]:
        strategy.train(experiences)


def test_early_stopping_stops() -> None:
    tasks = stream()
    plugin = {
        "class_path": "EarlyStoppingPlugin",
        "init_args": {"patience": 1, "val_stream_name": "train_stream"},
    }
    strategy = made("Naive", tasks, {"eval_every": 1}, plugins=[plugin], epochs=40)
    strategy.train(tasks.benchmark.train_stream[0])
    assert 1 <= strategy.clock.train_exp_epochs < 40


def test_plugins_stand_beside_packnet() -> None:
    tasks = stream("task_incremental")
    answers = Answers()
    assert answers in made("PackNet", tasks, plugins=[answers]).plugins


class Own:
    """Someone's plugin."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def before_backward(self, strategy: Any, **kwargs: Any) -> None:
        strategy.loss = self.factor * strategy.loss


def test_strategies_and_plugins_by_class_path() -> None:
    tasks = stream()
    path = "avalanche.training.supervised.Replay"
    strategy = made(
        path,
        tasks,
        {"mem_size": 7},
        plugins=[{"class_path": f"{__name__}.Own", "init_args": {"factor": 0.0}}],
    )
    assert type(strategy).__name__ == "Replay"
    assert can_resume(strategy) is not None  # someone's plugin keeps who knows what
    strategy.train(tasks.benchmark.train_stream[0])
    assert float(strategy.plugins[1].factor) == 0.0


def test_a_strategy_of_ones_own() -> None:
    from avalanche.training.templates import SupervisedTemplate

    class Mine(SupervisedTemplate):
        def __init__(self, *, strength: float, **kwargs: Any) -> None:
            super().__init__(**kwargs)
            self.strength = strength

    globals()["Mine"] = Mine
    Mine.__qualname__ = "Mine"
    tasks = stream()
    strategy = made(f"{__name__}.Mine", tasks, {"strength": 2.0})
    strategy.train(tasks.benchmark.train_stream[0])
    assert strategy.strength == 2.0
    assert "Mine" in str(can_resume(strategy))


@pytest.mark.parametrize(
    "module", [strategies, strategy_networks, strategy_plugins], ids=lambda each: each.__name__
)
def test_examples(module: Any) -> None:
    result = doctest.testmod(module, optionflags=doctest.ELLIPSIS)
    assert result.attempted > 0
    assert result.failed == 0
