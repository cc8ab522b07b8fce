"""Avalanche's plugins, and anyone's: made by name or class path, to go beside a strategy."""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple

from tunnel_lightning.continual.names import load
from tunnel_lightning.continual.settings import named
from tunnel_lightning.continual.strategy_builders import Job
from tunnel_lightning.continual.strategy_checks import check_numbers
from tunnel_lightning.continual.strategy_table import ALL, FIXED, ONE

LIBRARY = "avalanche.training.plugins"


class Plugin(NamedTuple):
    """A plugin that no strategy brings, or one that asks for care.

    Attributes:
        name: as a config says it; the class is in ``avalanche.training.plugins``.
        about: what it does.
        heads: heads of the network that it goes with.
        needs: what it needs.
        fails: why it is refused; empty for those that run.
    """

    name: str
    about: str
    heads: tuple[str, ...] = ALL
    needs: str = ""
    fails: str = ""


_PLUGINS = (
    Plugin(
        "RWalkPlugin",
        "EWC with a path integral (Chaudhry et al., 2018)",
        heads=ONE,
        needs="`delta_t` steps or more in the first task",
    ),
    Plugin(
        "RARPlugin",
        "replays images perturbed towards new classes (Kumari et al., 2022)",
        heads=ONE,
        needs="`batch_size_mem`; a network torch.fx can trace",
    ),
    Plugin(
        "LRSchedulerPlugin",
        "a learning rate schedule",
        needs="`scheduler`: class path and arguments; the optimizer is filled in",
    ),
    Plugin(
        "EarlyStoppingPlugin",
        "ends a task early and goes back to the best weights",
        needs="`eval_every` of 1 or more among the strategy's arguments; `val_stream_name: train_stream`",
    ),
    Plugin(
        "FeatureDistillationPlugin",
        "holds features",
        heads=FIXED,
        needs="beside FeatureReplay, whose network keeps its features",
    ),
    Plugin(
        "CurrentDataNCMUpdate",
        "class means from this task",
        heads=FIXED,
        needs="a strategy that answers by class means: ICaRL or SCR",
    ),
    Plugin(
        "MemoryNCMUpdate",
        "class means from a memory",
        heads=FIXED,
        needs="a strategy that answers by class means: ICaRL or SCR",
    ),
    Plugin(
        "NCMOracle",
        "class means from all images",
        heads=FIXED,
        needs="a strategy that answers by class means: ICaRL or SCR",
    ),
    Plugin(
        "CurrentDataFeCAMUpdate",
        "class covariances from this task",
        fails="it needs a network that answers by FeCAM, which no strategy brings",
    ),
    Plugin(
        "MemoryFeCAMUpdate",
        "class covariances from a memory",
        fails="it needs a network that answers by FeCAM, which no strategy brings",
    ),
    Plugin(
        "FeCAMOracle",
        "class covariances from all images",
        fails="it needs a network that answers by FeCAM, which no strategy brings",
    ),
    Plugin(
        "GenerativeReplayPlugin",
        "replays images of a generator",
        fails="it needs a generator; take strategy GenerativeReplay",
    ),
    Plugin(
        "TrainGeneratorAfterExpPlugin",
        "trains a generator",
        fails="it needs a generator; take strategy GenerativeReplay",
    ),
    Plugin(
        "LFLPlugin",
        "holds features",
        fails="it needs a network that gives its features; take strategy LFL",
    ),
    Plugin(
        "CoPEPlugin",
        "class prototypes",
        fails="it replaces loss and classifier; take strategy CoPE",
    ),
    Plugin(
        "GSS_greedyPlugin",
        "remembers images whose gradients differ",
        fails="it needs the shape of the images; take strategy GSS_greedy",
    ),
    Plugin(
        "CWRStarPlugin",
        "only the classifier learns",
        fails="it needs the network itself; take strategy CWRStar",
    ),
    Plugin(
        "EvaluationPlugin",
        "metrics and loggers",
        fails="the run has one, which is quiet: what is measured is in the profile table",
    ),
)

PLUGINS: Mapping[str, Plugin] = MappingProxyType({plugin.name: plugin for plugin in _PLUGINS})
"""Plugins by name. Those that strategies bring (``ReplayPlugin``, ``EWCPlugin``, ...) go beside others too."""

UNSCHEDULED = {
    "PackNet": "makes a new optimizer for each task, which the schedule would not reach",
    "StreamingLDA": "has no optimizer",
    "LaMAML": "learns its learning rates",
}
"""Strategies on which a schedule has no effect."""


def plain_or_built(value: Any) -> Any:
    """A value of a config, with what stands in it as ``class_path`` and ``init_args`` made.

    Example:
        >>> plain_or_built({"class_path": "torch.nn.Flatten", "init_args": {"start_dim": 2}})
        Flatten(start_dim=2, end_dim=-1)
    """
    if isinstance(value, Mapping) and "class_path" in value:
        given = named(value)
        return load(given["class_path"])(
            **{key: plain_or_built(each) for key, each in given["init_args"].items()}
        )
    if isinstance(value, list | tuple):
        return [plain_or_built(each) for each in value]
    return value


def plugin_class(path: str) -> type:
    """The class of a plugin.

    Args:
        path: a name in ``avalanche.training.plugins``, or a class path.

    Raises:
        ValueError: there is none, or it does not run here.
    """
    if "." in path:
        found = load(path)
        if not isinstance(found, type) or not any(
            key.startswith(("before_", "after_")) for key in dir(found)
        ):
            raise ValueError(
                f"{path} is no plugin: a class with methods such as before_backward or after_training_exp."
            )
    else:
        library = importlib.import_module(LIBRARY)
        found = getattr(library, path, None)
        if not isinstance(found, type):
            known = [key for key, each in vars(library).items() if isinstance(each, type)]
            near = get_close_matches(path, known, n=3, cutoff=0.4) or ["a class path"]
            raise ValueError(f"Avalanche has no plugin {path}: did you mean {' or '.join(near)}?")
    if found.__module__.startswith(LIBRARY) and (plugin := PLUGINS.get(found.__name__)) and plugin.fails:
        raise ValueError(f"{found.__name__} does not run here: {plugin.fails}.")
    return found


def make_plugin(wanted: Any) -> Any:
    """A plugin from its name, from ``class_path`` and ``init_args``, or as it is.

    Raises:
        ValueError: there is none, or its arguments are wrong.
    """
    if not isinstance(wanted, str | Mapping):
        return wanted
    given = named(wanted)
    cls = plugin_class(given["class_path"])
    args = {key: plain_or_built(value) for key, value in given["init_args"].items() if key != "scheduler"}
    parameters = inspect.signature(cls).parameters
    if "scheduler" in parameters:
        return Scheduled(cls, args, given["init_args"].get("scheduler"))
    without = [
        key
        for key, parameter in parameters.items()
        if parameter.default is parameter.empty
        and key not in args
        and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    if without:
        raise ValueError(f"{cls.__name__} needs {' and '.join(without)}: give init_args.")
    check_numbers(cls.__name__, parameters, args)
    try:
        return cls(**args)
    except (TypeError, ValueError, AssertionError) as error:
        raise ValueError(f"{cls.__name__} can't be made: {error}") from error


class Scheduled(NamedTuple):
    """A plugin that waits for the optimizer its schedule is of.

    Attributes:
        cls: of the plugin.
        args: its other arguments.
        scheduler: class path and arguments of the schedule.
    """

    cls: type
    args: dict[str, Any]
    scheduler: Any

    def make(self, optimizer: Any) -> Any:
        """The plugin.

        Raises:
            ValueError: no schedule, or arguments it does not take.
        """
        if not isinstance(self.scheduler, str | Mapping):
            raise ValueError(
                f"{self.cls.__name__} needs a scheduler, for instance {{class_path: torch.optim.lr_scheduler.StepLR, "
                "init_args: {step_size: 1}}}."
            )
        given = named(self.scheduler)
        # A parser fills in an optimizer of None.
        args = {
            key: value for key, value in given["init_args"].items() if (key, value) != ("optimizer", None)
        }
        try:
            return self.cls(scheduler=load(given["class_path"])(optimizer, **args), **self.args)
        except (TypeError, ValueError, AssertionError) as error:
            raise ValueError(f"{self.cls.__name__} can't be made: {error}") from error


def refuse_plugins(job: Job, name: str, plugins: list[Any]) -> None:
    """Refuse plugins that would fail half-way or do nothing beside this strategy.

    Args:
        job: the strategy to be built.
        name: of it.
        plugins: as `make_plugin` returned them.

    Raises:
        ValueError: saying why.
    """
    for each in plugins:
        cls = each.cls if isinstance(each, Scheduled) else type(each)
        plugin = PLUGINS.get(cls.__name__) if cls.__module__.startswith(LIBRARY) else None
        if plugin is not None and job.head not in plugin.heads:
            raise ValueError(
                f"{plugin.name} does not go with head {job.head}: take head {' or '.join(plugin.heads)}."
            )
        if isinstance(each, Scheduled) and name in UNSCHEDULED:
            raise ValueError(f"A schedule has no effect on {name}, which {UNSCHEDULED[name]}: leave it out.")
        if plugin is None:
            continue
        if plugin.name == "EarlyStoppingPlugin":
            _early_stopping(job, each)
        if plugin.name == "RWalkPlugin":
            _rwalk(job, each)
        if plugin.name == "FeatureDistillationPlugin" and name != "FeatureReplay":
            raise ValueError(
                "FeatureDistillationPlugin needs a network that keeps its features: take strategy FeatureReplay."
            )
        if plugin.name in ("CurrentDataNCMUpdate", "MemoryNCMUpdate", "NCMOracle") and name not in (
            "ICaRL",
            "SCR",
        ):
            raise ValueError(
                f"{plugin.name} needs a network that answers by class means: take strategy ICaRL or SCR."
            )


def _rwalk(job: Job, plugin: Any) -> None:
    steps = math.ceil(job.images_of_tasks()[0] / job.batch_size) * job.epochs
    if steps < plugin.delta_t:
        raise ValueError(
            f"RWalkPlugin looks every delta_t={plugin.delta_t} steps, and the first task has {steps}: it would "
            f"divide by zero and all weights become NaN; give delta_t: {max(1, steps // 2)} or less."
        )


def _early_stopping(job: Job, plugin: Any) -> None:
    every = job.args.get("eval_every", -1)
    if every < 1:
        raise ValueError(
            f"EarlyStoppingPlugin would never stop anything with eval_every={every}: give the strategy eval_every: 1."
        )
    if plugin.peval_mode != job.args.get("peval_mode", "epoch"):
        raise ValueError(
            f"EarlyStoppingPlugin looks once per {plugin.peval_mode}, but the strategy evaluates once per "
            f"{job.args.get('peval_mode', 'epoch')}: give both the same peval_mode."
        )
    if plugin.metric_name not in ("Top1_Acc_Stream", "Loss_Stream"):
        raise ValueError(
            f"EarlyStoppingPlugin would never stop anything by {plugin.metric_name}, which is not taken: give "
            "metric_name Top1_Acc_Stream, or Loss_Stream with mode: min."
        )
    if plugin.val_stream_name != "train_stream":
        raise ValueError(
            f"EarlyStoppingPlugin would never stop anything by {plugin.val_stream_name}: while a task is learnt it "
            "is evaluated on its own training images; give val_stream_name: train_stream."
        )
