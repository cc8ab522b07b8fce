"""What a user may get wrong about a strategy is said in one sentence, before anything is learnt."""

import inspect
from typing import Any

import pytest
from continual.test_strategies import made
from continual.toys import normed, stream
from torch import nn

from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.names import load
from tunnel_lightning.continual.strategies import PLUGINS, STRATEGIES
from tunnel_lightning.continual.strategy_checks import check_arguments
from tunnel_lightning.continual.strategy_table import Method
from tunnel_lightning.continual.stream import Stream

REQUIRING = [method for method in STRATEGIES.values() if method.required]
OWN_LOSS = [method for method in STRATEGIES.values() if method.own_loss]
FAILING = [method for method in STRATEGIES.values() if method.fails]
EARLY = {"patience": 1, "val_stream_name": "train_stream"}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    avalanche()


@pytest.fixture(scope="module")
def tasks() -> Stream:
    return stream()


@pytest.mark.parametrize("method", FAILING, ids=lambda method: method.name)
def test_refused_with_the_tables_reason(method: Method, tasks: Stream) -> None:
    for name in (method.name, method.path):
        with pytest.raises(ValueError, match="does not run here") as refused:
            made(name, tasks, {})
        assert method.fails in str(refused.value)


@pytest.mark.parametrize(
    "plugin", [each for each in PLUGINS.values() if each.fails], ids=lambda each: each.name
)
def test_plugin_refused_with_the_tables_reason(plugin: Any, tasks: Stream) -> None:
    for path in (plugin.name, f"avalanche.training.plugins.{plugin.name}"):
        with pytest.raises(ValueError, match="does not run here") as refused:
            made("Naive", tasks, plugins=[path])
        assert plugin.fails in str(refused.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Reply", "no strategy Reply: did you mean Replay"),
        ("ReplayPlugin", "ReplayPlugin is a plugin: put it under plugins"),
        ("zzz", "give one of its strategies or a class path"),
        ("torch.nn.Linear", "is no strategy"),
        ("avalanche.training.Nothing", "can't be imported"),
    ],
)
def test_no_such_strategy(name: str, message: str, tasks: Stream) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, tasks)


@pytest.mark.parametrize("method", REQUIRING, ids=lambda each: each.name)
def test_missing_arguments_are_named_with_a_value(method: Method) -> None:
    cls = load(method.path)
    with pytest.raises(ValueError, match=f"^{method.name} needs .* for instance") as missing:
        check_arguments(method, cls, {})
    for key, value in method.required.items():
        assert f"{key}: {value}" in str(missing.value)
        assert key in inspect.signature(cls).parameters


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("Replay", {"memsize": 3}, "Replay has no argument memsize: did you mean mem_size"),
        ("Naive", {"mem_size": 3}, "Naive has no argument mem_size: it takes none of its own"),
        ("Replay", {"train_mb_size": 3}, "it is batch_size"),
        ("Replay", {"optimizer": "Adam"}, "it is under model"),
        ("ICaRL", {"memory_size": 20, "classifier": 1}, "classifier is made from the network"),
        ("EWC", {"ewc_lambda": 1.0, "mode": "online"}, "EWC can't be made: .*decay_factor"),
        ("LwF", {"alpha": [0.0, 1.0], "temperature": 2.0}, "alpha has 2 values for 5 tasks"),
        ("LFL", {"lambda_e": [0.0]}, "lambda_e has 1 values for 5 tasks"),
        ("AGEM", {"patterns_per_exp": 9, "sample_size": 3}, "give at least 4"),
        ("GSS_greedy", {"mem_size": 39}, "give at least 40"),
        ("ER_AML", {"mem_size": 79}, "wait forever .* at least 80"),
        ("ER_AML", {"mem_size": 8000, "batch_size_mem": 6, "batch": 13}, "there is a class of 12"),
        ("FeatureReplay", {"mem_size": 5}, "wait forever for a batch of 6 features from a memory of 5"),
        ("FeatureReplay", {"batch_size_mem": 25}, "from a memory of 24"),
        ("BiC", {"mem_size": 9}, "which is no image"),
        ("LaMAML", {"batch": 25}, "of a task of 24 images it would learn nothing"),
        ("CWRStar", {"cwr_layer_name": "classifier"}, "leave it out to have head"),
        ("CWRStar", {"cwr_layer_name": "layers.0.act"}, "leave it out to have head"),
        ("MIR", {"criterion": lambda scores, y: 0}, "MIR needs the loss of each image"),
    ],
)
def test_arguments_that_fail_hang_or_mislead(
    name: str, args: dict[str, Any], message: str, tasks: Stream
) -> None:
    args = dict(args)
    options: dict[str, Any] = {"batch_size": args.pop("batch", 8)}
    if "criterion" in args:
        options["criterion"] = args.pop("criterion")
    with pytest.raises(ValueError, match=message):
        made(name, tasks, args, **options)


@pytest.mark.parametrize(
    ("name", "kind", "head", "message"),
    [
        ("DER", "class_incremental", "incremental", "DER does not go with head incremental: take head fixed"),
        ("DER", "task_incremental", "auto", "DER does not go with head multi"),
        ("CWRStar", "task_incremental", "auto", "take head fixed or incremental"),
        ("PackNet", "class_incremental", "auto", "take scenario kind task_incremental"),
        ("ICaRL", "domain_incremental", "auto", "ICaRL needs new classes in each task"),
        ("BiC", "permuted", "auto", "BiC needs new classes in each task"),
    ],
)
def test_networks_and_streams_that_do_not_fit(name: str, kind: str, head: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        made(name, stream(kind, tasks=2), head=head)


def test_packnet_needs_room_and_no_norms() -> None:
    tasks = stream("task_incremental", tasks=2)
    with pytest.raises(ValueError, match="post_prune_epochs is 2 of 2 epochs"):
        made("PackNet", tasks, {"post_prune_epochs": 2})
    with pytest.raises(ValueError, match=r"has layers\.1: take one without"):
        made("PackNet", tasks, network=normed)


@pytest.mark.parametrize("method", OWN_LOSS, ids=lambda each: each.name)
def test_label_smoothing_that_would_be_ignored(method: Method, tasks: Stream) -> None:
    with pytest.raises(ValueError, match=r"label_smoothing=0\.1 would be ignored"):
        made(method.name, tasks, criterion=nn.CrossEntropyLoss(label_smoothing=0.1))


@pytest.mark.parametrize(
    ("plugin", "args", "message"),
    [
        ("EarlyStoppingPlugin", EARLY, "never stop anything with eval_every=-1"),
        ("EarlyStoppingPlugin", {**EARLY, "metric_name": "Top1_Acc_Exp", "every": 1}, "which is not taken"),
        (
            "EarlyStoppingPlugin",
            {**EARLY, "val_stream_name": "test_stream", "every": 1},
            "give val_stream_name: train",
        ),
        (
            "EarlyStoppingPlugin",
            {**EARLY, "peval_mode": "iteration", "every": 1},
            "give both the same peval_mode",
        ),
        ("EarlyStoppingPlugin", {"patience": 1}, "needs val_stream_name"),
        ("EarlyStoppingPlugin", {**EARLY, "margin": 1}, "EarlyStoppingPlugin can't be made"),
        ("RWalkPlugin", {"delta_t": 7}, "the first task has 6: .* delta_t: 3 or less"),
        ("LRSchedulerPlugin", {}, "needs a scheduler, for instance"),
        ("LRSchedulerPlugin", {"scheduler": "torch.optim.lr_scheduler.StepLR"}, "can't be made: .*step_size"),
        ("FeatureDistillationPlugin", {}, "take strategy FeatureReplay"),
        ("NCMOracle", {}, "take strategy ICaRL or SCR"),
        ("ReplyPlugin", {}, "no plugin ReplyPlugin: did you mean ReplayPlugin"),
        ("torch.nn.Linear", {}, "is no plugin"),
    ],
)
def test_plugins_that_fail_or_mislead(plugin: str, args: dict[str, Any], message: str, tasks: Stream) -> None:
    args = dict(args)
    every = {"eval_every": args.pop("every")} if "every" in args else {}
    with pytest.raises(ValueError, match=message):
        made("Naive", tasks, every, plugins=[{"class_path": plugin, "init_args": args}])


def test_schedule_without_effect() -> None:
    schedule = {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 1}}
    plugin = {"class_path": "LRSchedulerPlugin", "init_args": {"scheduler": schedule}}
    for name, kind in (
        ("PackNet", "task_incremental"),
        ("StreamingLDA", "class_incremental"),
        ("LaMAML", "class_incremental"),
    ):
        with pytest.raises(ValueError, match=f"A schedule has no effect on {name}"):
            made(name, stream(kind, tasks=2), plugins=[plugin])


def test_plugin_for_another_head() -> None:
    with pytest.raises(ValueError, match="RWalkPlugin does not go with head multi"):
        made(
            "Naive",
            stream("task_incremental", tasks=2),
            plugins=[{"class_path": "RWalkPlugin", "init_args": {"delta_t": 2}}],
        )


def test_si_warns_of_momentum(tasks: Stream) -> None:
    with pytest.warns(UserWarning, match="Plain SGD is safe"):
        made("SynapticIntelligence", tasks)
