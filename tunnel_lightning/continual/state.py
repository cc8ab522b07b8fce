"""A strategy between two tasks, written down as tensors and plain values, and built up again from them.

Avalanche's plugins have no state of their own to ask for, and its checkpoints are pickles. Here the state of twelve
strategies is taken apart by hand: weights and optimizer, counters, memories as pairs of task and index, importances,
teachers, random states. A run that goes on from it ends with the very weights of one that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.state_origins import Origins
from tunnel_lightning.continual.state_parts import OWN, PARTS, Place, copied
from tunnel_lightning.continual.strategy_table import STRATEGIES

VERSION = 1
HERE = "tunnel_lightning."
"""Plugins of this package: whoever made them keeps their state."""


def can_resume(strategy: Any) -> str | None:
    """Why a run with this strategy can't go on after an interruption; None if it can.

    Args:
        strategy: from `make_strategy`, between two tasks.

    Returns:
        One sentence without a full stop.
    """
    name = _method(strategy)
    if name is None:
        able = ", ".join(method.name for method in STRATEGIES.values() if method.resumable)
        return (
            f"the state of {type(strategy).__name__} can't be written down as numbers, as that of {able} can"
        )
    if _origins(strategy) is None:
        return "the strategy was not made by make_strategy, so its memories can't be traced to their images"
    for plugin in strategy.plugins:
        part = PARTS.get(_path(plugin))
        if part is None and not _keeps_itself(plugin):
            return f"the state of plugin {type(plugin).__name__} can't be written down as numbers"
        if part is not None and (why := part.why(plugin)):
            return why
    return OWN[name].why(strategy)


def export_state(strategy: Any) -> dict[str, Any]:
    """Everything that a strategy goes on from: copies, on the CPU, that ``torch.load(weights_only=True)`` reads.

    Args:
        strategy: from `make_strategy`, between two tasks.

    Raises:
        ValueError: its state can't be written down.
    """
    from tunnel_lightning.callbacks.run_folder import random_state

    name, place = _resumable(strategy), _place(strategy)
    return {
        "version": VERSION,
        "strategy": name,
        "plugins": [_path(plugin) for plugin in strategy.plugins],
        "tasks": strategy.clock.train_exp_counter,
        "model": copied(strategy.model.state_dict()),
        "means": copied(_class_means(strategy.model)),
        "optimizer": _optimizer(strategy),
        "own": copied(OWN[name].export(strategy, place)),
        "parts": [copied(_export_plugin(plugin, place)) for plugin in strategy.plugins],
        "random": random_state(),
    }


def import_state(strategy: Any, state: Mapping[str, Any]) -> None:
    """Make a strategy what it was when `export_state` was asked, random states included.

    Args:
        strategy: freshly made by `make_strategy` from the same settings, before its first task.
        state: from `export_state`.

    Raises:
        ValueError: the state is another strategy's, network's or stream's.
    """
    from tunnel_lightning.callbacks.run_folder import set_random_state

    name, place = _resumable(strategy), _place(strategy)
    if state.get("version") != VERSION:
        raise ValueError(f"The state has version {state.get('version')}, and this program reads {VERSION}.")
    if state["strategy"] != name:
        raise ValueError(f"The state is one of {state['strategy']}, not of {name}.")
    plugins = [_path(plugin) for plugin in strategy.plugins]
    if state["plugins"] != plugins:
        raise ValueError(
            f"The state was written with other plugins: {_names(state['plugins'])}; now there are {_names(plugins)}."
        )
    if strategy.clock.train_exp_counter:
        raise ValueError("A state goes into a strategy that has learnt nothing yet: make it anew.")
    if state["tasks"] > len(place.stream):
        raise ValueError(
            f"The state is one after {state['tasks']} tasks, and the stream has {len(place.stream)}."
        )
    state = copied(state)  # what is put back goes on learning
    strategy.model.to(strategy.device)
    _grow(strategy, state["tasks"], place)
    _set_class_means(strategy, state["means"])
    try:
        strategy.model.load_state_dict(state["model"])
        _set_optimizer(strategy, state["optimizer"])
    except (RuntimeError, KeyError) as error:
        raise ValueError(
            f"The state is one of another network: {str(error).splitlines()[-1].strip()}"
        ) from error
    place.tasks = state["tasks"]
    OWN[name].load(strategy, state["own"], place)
    for plugin, part in zip(strategy.plugins, state["parts"], strict=True):
        if _path(plugin) in PARTS:
            PARTS[_path(plugin)].load(plugin, part, place)
        elif part is not None:
            plugin.load_state_dict(part)
    set_random_state(state["random"])


# Who may -------------------------------------------------------------------------------------------------------


def _method(strategy: Any) -> str | None:
    path = _path(strategy)
    return next((name for name in OWN if STRATEGIES[name].path == path), None)


def _resumable(strategy: Any) -> str:
    avalanche()
    why = can_resume(strategy)
    if why is not None:
        raise ValueError(f"This strategy has no state to keep: {why}.")
    name = _method(strategy)
    assert name is not None
    return name


def _origins(strategy: Any) -> Origins | None:
    return next((plugin for plugin in strategy.plugins if isinstance(plugin, Origins)), None)


def _place(strategy: Any) -> Place:
    origins = _origins(strategy)
    assert origins is not None
    return Place(origins.stream, strategy.model, strategy.device, strategy.clock.train_exp_counter)


def _path(what: Any) -> str:
    return f"{type(what).__module__}.{type(what).__qualname__}"


def _names(paths: list[str]) -> str:
    return ", ".join(path.rpartition(".")[2] for path in paths)


def _keeps_itself(plugin: Any) -> bool:
    """Whether a plugin has a state to ask for, or one that its owner keeps."""
    both = all(callable(getattr(plugin, method, None)) for method in ("state_dict", "load_state_dict"))
    return both or type(plugin).__module__.startswith(HERE)


def _export_plugin(plugin: Any, place: Place) -> Any:
    if _path(plugin) in PARTS:
        return PARTS[_path(plugin)].export(plugin, place)
    return None if type(plugin).__module__.startswith(HERE) else plugin.state_dict()


# The network -----------------------------------------------------------------------------------------------------


def _grow(strategy: Any, tasks: int, place: Place) -> None:
    """Give the network the heads and outputs that it had after so many tasks, as Avalanche gave them."""
    strategy.model.train()
    strategy.is_training = True
    if hasattr(strategy, "_experiences"):  # JointTraining sees all tasks at once
        strategy._experiences = list(place.stream) if tasks else []
    for task in range(tasks):
        strategy.experience = place.stream[task]
        strategy.model = strategy.model_adaptation()
    strategy.experience = None


def _class_means(model: nn.Module) -> dict[str, Any]:
    """Class means of nearest-mean classifiers; only some of what they keep is in their ``state_dict``."""
    return {
        name: {"means": module.class_means_dict, "highest": module.max_class}
        for name, module in model.named_modules()
        if hasattr(module, "class_means_dict")
    }


def _set_class_means(strategy: Any, kept: Mapping[str, Any]) -> None:
    for name, module in strategy.model.named_modules():
        if name in kept:
            module.max_class = kept[name]["highest"]
            means = {output: mean.to(strategy.device) for output, mean in kept[name]["means"].items()}
            module.replace_class_means_dict(means)


# The optimizer ---------------------------------------------------------------------------------------------------


def _optimizer(strategy: Any) -> dict[str, Any]:
    names = {id(parameter): name for name, parameter in strategy.model.named_parameters()}
    groups = [[names.get(id(each)) for each in group["params"]] for group in strategy.optimizer.param_groups]
    if any(name is None for group in groups for name in group):
        raise ValueError("The optimizer holds parameters that the network no longer has.")
    return {
        "class": _path(strategy.optimizer),
        "names": groups,
        "state": copied(strategy.optimizer.state_dict()),
        "known": strategy.optimized_param_id is not None,
    }


def _set_optimizer(strategy: Any, kept: Mapping[str, Any]) -> None:
    optimizer, parameters = strategy.optimizer, dict(strategy.model.named_parameters())
    if kept["class"] != _path(optimizer):
        raise ValueError(
            f"The state is one of optimizer {_names([kept['class']])}, not of {type(optimizer).__name__}."
        )
    if len(kept["names"]) != len(optimizer.param_groups):
        raise ValueError(
            f"The state has {len(kept['names'])} groups of parameters, the optimizer {len(optimizer.param_groups)}."
        )
    for group, names in zip(optimizer.param_groups, kept["names"], strict=True):
        # Which group a head that came later has joined is Avalanche's choice.
        group["params"] = [parameters[name] for name in names]
    optimizer.load_state_dict(kept["state"])
    # How Avalanche knows which parameters are new at the next task.
    strategy.optimized_param_id = parameters if kept["known"] else None
