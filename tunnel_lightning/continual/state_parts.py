"""What each plugin and strategy of Avalanche keeps between tasks: taken out as numbers, and put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.continual.state_buffers import buffer_state, set_buffer, why_not
from tunnel_lightning.continual.state_origins import Origins, gathered, marked, origins


@dataclass
class Place:
    """Where a part of a strategy stands.

    Attributes:
        stream: Avalanche's ``train_stream``.
        model: the strategy's network, as large as it was.
        device: of the network.
        tasks: learnt so far.
    """

    stream: Any
    model: nn.Module
    device: torch.device
    tasks: int


def _always(part: Any) -> str | None:
    return None


@dataclass(frozen=True)
class Part:
    """How the state of one kind of object is written down.

    Attributes:
        export: ``(object, place)`` to tensors and plain values.
        load: ``(object, state, place)`` puts it back.
        why: why this one's can't be; None if it can.
    """

    export: Callable[[Any, Place], Any]
    load: Callable[[Any, Any, Place], None]
    why: Callable[[Any], str | None] = _always


def _nothing(part: Any, place: Place) -> None:
    return None


def _leave(part: Any, state: Any, place: Place) -> None:
    return None


STATELESS = Part(_nothing, _leave)


def copied(value: Any) -> Any:
    """The same in tensors on the CPU and plain values, sharing nothing with what goes on learning.

    Raises:
        ValueError: there is something else in it.

    Example:
        >>> copied({"momentum": (0.9, None)})
        {'momentum': (0.9, None)}
    """
    if isinstance(value, Tensor):
        return value.detach().cpu().clone()
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {copied(key): copied(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        copies = [copied(each) for each in value]
        return tuple(copies) if isinstance(value, tuple) else copies
    raise ValueError(f"a {type(value).__name__} can't be written down as numbers")


# Counters ----------------------------------------------------------------------------------------------------


def _clock(clock: Any, place: Place) -> dict[str, int]:
    return {name: value for name, value in vars(clock).items() if isinstance(value, int)}


def _set_clock(clock: Any, state: Mapping[str, int], place: Place) -> None:
    vars(clock).update(state)


# Memories ----------------------------------------------------------------------------------------------------


def _storage(owner: Any, place: Place) -> dict[str, Any]:
    return buffer_state(owner.storage_policy)


def _set_storage(owner: Any, state: Mapping[str, Any], place: Place) -> None:
    set_buffer(owner.storage_policy, state, place.stream, place.tasks)


def _why_storage(owner: Any) -> str | None:
    return why_not(owner.storage_policy)


def _gem(plugin: Any, place: Place) -> dict[str, Any]:
    return {"x": plugin.memory_x, "y": plugin.memory_y, "labels": plugin.memory_tid}


def _set_gem(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    plugin.memory_x, plugin.memory_y = dict(state["x"]), dict(state["y"])
    plugin.memory_tid = dict(state["labels"])


def _agem(plugin: Any, place: Place) -> dict[str, Any]:
    loader = plugin.buffer_dataloader
    return {
        "buffers": [origins(buffer) for buffer in plugin.buffers],
        "num_workers": loader.loader_kwargs["num_workers"] if loader is not None else 0,
    }


def _set_agem(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    from avalanche.benchmarks.utils.data_loader import GroupBalancedInfiniteDataLoader

    plugin.buffers = [gathered(place.stream, pairs) for pairs in state["buffers"]]
    if plugin.buffers:
        workers = state["num_workers"]
        plugin.buffer_dataloader = GroupBalancedInfiniteDataLoader(
            plugin.buffers,
            batch_size=plugin.sample_size // len(plugin.buffers),
            num_workers=workers,
            pin_memory=False,
            persistent_workers=workers > 0,
        )
        # Between tasks nothing has been drawn from it yet: it is made anew at the end of each.
        plugin.buffer_dliter = iter(plugin.buffer_dataloader)


# Importances -------------------------------------------------------------------------------------------------


def _values(kept: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: each.data for name, each in kept.items()}


def _kept(values: Mapping[str, Tensor], device: Any) -> dict[str, Any]:
    from avalanche.training.utils import ParamData

    # The copy, because importances are added to in place.
    return {
        name: ParamData(name, value.shape, init_tensor=value.to(device, copy=True), device=device)
        for name, value in values.items()
    }


def _ewc(plugin: Any, place: Place) -> dict[str, Any]:
    return {
        "params": {task: _values(kept) for task, kept in plugin.saved_params.items()},
        "importances": {task: _values(kept) for task, kept in plugin.importances.items()},
    }


def _set_ewc(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    for task, values in state["params"].items():
        plugin.saved_params[task] = _kept(values, place.device)
    for task, values in state["importances"].items():
        plugin.importances[task] = _kept(values, place.device)


def _si(plugin: Any, place: Place) -> dict[str, Any]:
    return {
        "ewc": [_values(kept) for kept in plugin.ewc_data],
        "syn": {name: _values(kept) for name, kept in plugin.syn_data.items()},
    }


def _set_si(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    # On the CPU, wherever the network is.
    first, second = (_kept(values, "cpu") for values in state["ewc"])
    plugin.ewc_data = (first, second)
    plugin.syn_data = {name: _kept(values, "cpu") for name, values in state["syn"].items()}


def _mas(plugin: Any, place: Place) -> dict[str, Any]:
    return {
        "params": _values(plugin.params or {}),
        "importance": _values(plugin.importance or {}),
    }


def _set_mas(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    if place.tasks:
        plugin.params = _kept(state["params"], place.device)
        plugin.importance = _kept(state["importance"], place.device)


# Teachers ----------------------------------------------------------------------------------------------------


def _teacher(model: nn.Module | None) -> dict[str, Any] | None:
    if model is None:
        return None
    # Avalanche leaves teachers in whatever mode they were copied in, and that changes what they say.
    evaluating = [name for name, module in model.named_modules() if not module.training]
    return {"state": model.state_dict(), "evaluating": evaluating}


def _set_teacher(state: Mapping[str, Any] | None, place: Place) -> nn.Module | None:
    if state is None:
        return None
    teacher = copy.deepcopy(place.model)
    teacher.load_state_dict(state["state"])
    evaluating = set(state["evaluating"])
    for name, module in teacher.named_modules():
        module.training = name not in evaluating
    return teacher


def _lwf(plugin: Any, place: Place) -> dict[str, Any]:
    return {"teacher": _teacher(plugin.lwf.prev_model)}


def _set_lwf(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    # Classes are kept in sets, whose order is that of the sums: Avalanche's own way makes the same ones.
    for task in range(place.tasks):
        plugin.lwf.post_adapt(SimpleNamespace(model=None), marked_experience(place.stream[task]))
    plugin.lwf.prev_model = _set_teacher(state["teacher"], place)


def marked_experience(experience: Any) -> Any:
    """The experience, its images told their places as while it was learnt."""
    experience.dataset = marked(experience)
    return experience


def _icarl(plugin: Any, place: Place) -> dict[str, Any]:
    return {
        "x": plugin.x_memory,
        "y": plugin.y_memory,
        "order": plugin.order,
        "classes": plugin.observed_classes,
        "means": plugin.class_means,
        "sizes": [plugin.embedding_size, plugin.output_size, list(plugin.input_size or [])],
    }


def _set_icarl(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    plugin.x_memory = [images.to(place.device) for images in state["x"]]
    plugin.y_memory = [list(labels) for labels in state["y"]]
    plugin.order = list(state["order"])
    plugin.observed_classes = list(state["classes"])
    plugin.class_means = {output: mean.to(place.device) for output, mean in state["means"].items()}
    plugin.embedding_size, plugin.output_size, size = state["sizes"]
    plugin.input_size = torch.Size(size) if size else None


def _icarl_loss(plugin: Any, place: Place) -> dict[str, Any]:
    return {"teacher": _teacher(plugin.old_model), "classes": plugin.old_classes}


def _set_icarl_loss(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    plugin.old_classes = list(state["classes"])
    plugin.old_model = _set_teacher(state["teacher"], place)


# Schedules ---------------------------------------------------------------------------------------------------


def _schedule(plugin: Any, place: Place) -> dict[str, Any]:
    return dict(plugin.scheduler.state_dict())


def _set_schedule(plugin: Any, state: Mapping[str, Any], place: Place) -> None:
    plugin.scheduler.load_state_dict(dict(state))


def _why_schedule(plugin: Any) -> str | None:
    if plugin.metric is not None:
        return "a schedule that follows the loss has a state that can't be written down as numbers"
    try:
        copied(plugin.scheduler.state_dict())
    except ValueError as error:
        return f"{type(plugin.scheduler).__name__} can't be gone on with: {error}"
    return None


# Strategies --------------------------------------------------------------------------------------------------


def _cumulative(strategy: Any, place: Place) -> int:
    return place.tasks


def _set_cumulative(strategy: Any, tasks: int, place: Place) -> None:
    from avalanche.benchmarks.utils.utils import concat_datasets

    for task in range(tasks):
        dataset = marked(place.stream[task])
        strategy.dataset = (
            dataset if strategy.dataset is None else concat_datasets([strategy.dataset, dataset])
        )


def _joint(strategy: Any, place: Place) -> bool:
    return strategy._is_fitted


def _set_joint(strategy: Any, fitted: bool, place: Place) -> None:
    strategy._is_fitted = fitted


_PLUGINS = "avalanche.training.plugins."

PARTS: dict[str, Part] = {
    f"{Origins.__module__}.{Origins.__qualname__}": STATELESS,
    _PLUGINS + "evaluation.EvaluationPlugin": STATELESS,
    "avalanche.training.templates.base_sgd.PeriodicEval": STATELESS,
    _PLUGINS + "clock.Clock": Part(_clock, _set_clock),
    _PLUGINS + "replay.ReplayPlugin": Part(_storage, _set_storage, _why_storage),
    _PLUGINS + "ewc.EWCPlugin": Part(_ewc, _set_ewc),
    _PLUGINS + "synaptic_intelligence.SynapticIntelligencePlugin": Part(_si, _set_si),
    _PLUGINS + "lwf.LwFPlugin": Part(_lwf, _set_lwf),
    _PLUGINS + "mas.MASPlugin": Part(_mas, _set_mas),
    _PLUGINS + "gem.GEMPlugin": Part(_gem, _set_gem),
    _PLUGINS + "agem.AGEMPlugin": Part(_agem, _set_agem),
    _PLUGINS + "lr_scheduling.LRSchedulerPlugin": Part(_schedule, _set_schedule, _why_schedule),
    "avalanche.training.supervised.icarl._ICaRLPlugin": Part(_icarl, _set_icarl),
    "avalanche.training.losses.ICaRLLossPlugin": Part(_icarl_loss, _set_icarl_loss),
}
"""By class path of the plugin."""

OWN: dict[str, Part] = {
    "Naive": STATELESS,
    "Cumulative": Part(_cumulative, _set_cumulative),
    "JointTraining": Part(_joint, _set_joint),
    "Replay": STATELESS,
    "EWC": STATELESS,
    "SynapticIntelligence": STATELESS,
    "MAS": STATELESS,
    "LwF": STATELESS,
    "GEM": STATELESS,
    "AGEM": STATELESS,
    "ICaRL": STATELESS,
    "DER": Part(_storage, _set_storage, _why_storage),
}
"""By name of the strategy: what it keeps beside its plugins."""
