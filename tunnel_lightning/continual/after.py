"""What is tried on the snapshots when the last task is learnt: swaps, rewinding, fine-tuning, freezing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tunnel_lightning.backbones import Backbone
from tunnel_lightning.continual.models import TaskView, backbone_in
from tunnel_lightning.continual.run import BEFORE_LAST, SNAPSHOTS, TaskSequence
from tunnel_lightning.continual.strategies import turns
from tunnel_lightning.continual.stream import Task
from tunnel_lightning.continual.swaps import (
    TwoTasks,
    cuts_at_tunnel,
    freeze_sweep,
    rewind_sweep,
    swap_sweep,
)
from tunnel_lightning.continual.tuned_swaps import Tuning, tuned_sweep
from tunnel_lightning.runs import Row, RunError, write_manifest
from tunnel_lightning.runs.tunnel import Tunnel, tunnels
from tunnel_lightning.surgery import frozen, sections, snapshot


def sweeps(sequence: TaskSequence) -> list[Row]:
    """Everything that the settings ask for, on the first and the last task.

    The tunnel by each rule, and the cuts in front of it, go to the manifest.

    Returns:
        Rows of ``swap_accuracy``, ``rewind_accuracy`` and ``freeze_accuracy``; none for a single task.

    Raises:
        RunError: a snapshot is missing.
    """
    wanted, tasks = sequence.settings.sweeps, sequence.stream.tasks
    if len(tasks) < 2 or not (wanted.swap or wanted.rewind or wanted.tune_epochs or wanted.freeze):
        return []
    one_by_one = len(turns(sequence.strategy, sequence.stream)) == len(tasks)
    why = unswappable(sequence.strategy.model) if one_by_one else "the tasks were not learnt one by one"
    if why:
        sequence.progress(f"no extractors and tunnels are swapped: {why}", 0, 0)
        return []
    two = two_tasks(sequence)
    found = tunnels_after(sequence.table.rows, tasks[0])
    at_tunnel = cuts_at_tunnel(found, two.parts)
    write_manifest(
        sequence.folder, tunnel={"after": tasks[0].name, "cuts": at_tunnel, "layers": len(two.parts)}
    )
    layers = len(two.parts)
    rows: list[Row] = []
    if wanted.swap:
        rows += swap_sweep(
            two, progress=lambda cut: sequence.progress("extractors and tunnels swapped", cut, layers)
        )
    if wanted.rewind:
        rows += rewind_sweep(two, rows, partial(sequence.progress, "blocks of layers put back"))
    if wanted.tune_epochs:
        cuts = sorted(set(at_tunnel.values())) or [max(1, layers // 2)]
        tuning = Tuning(epochs=wanted.tune_epochs, seed=sequence.settings.seed)
        rows += tuned_sweep(
            two, cuts, tuning, lambda cut: sequence.progress("fine-tuned", cuts.index(cut) + 1, len(cuts))
        )
    if wanted.freeze:
        rows += freeze_sweep(
            two,
            lambda cut: train_frozen(sequence, two, cut),
            progress=lambda cut: sequence.progress("last task with layers frozen", cut, layers),
        )
    return rows


def unswappable(model: nn.Module) -> str:
    """Why the answers of a network are not those of its weights alone; empty where they are."""
    if hasattr(model, "activate_task"):
        return "PackNet keeps other weights in force for each task"
    if hasattr(model, "eval_classifier"):
        return "the answers are nearest class means, which a layer's weights don't hold"
    if not isinstance(backbone_in(model), Backbone):
        return "the strategy's own network gets new layers with each task"
    return ""


def two_tasks(sequence: TaskSequence) -> TwoTasks:
    """The network with its states after the first and the last task."""
    stream, model = sequence.stream, sequence.strategy.model
    device = next(model.parameters()).device
    first, last = stream.tasks[0], stream.tasks[-1]
    parts = sections(
        model,
        first.train.x[:2].to(device),
        [tap.name for tap in sequence.meter.layers],
        forward=TaskView(model, last.label),
    )
    return TwoTasks(
        model,
        lambda task: TaskView(model, task.label),
        read_snapshot(sequence.folder, first),
        read_snapshot(sequence.folder, last),
        (first, last),
        parts,
        sequence.meter.run_id,
        sequence.loop.steps,
        sequence.loop.epochs,
    )


def read_snapshot(folder: Path, task: Task) -> dict[str, Any]:
    """The network's state right after a task.

    Raises:
        RunError: it is not there, or can't be read.
    """
    path = folder / SNAPSHOTS / f"task_{task.index + 1}.pt"
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(
            f"{path} is missing, the network as it was after {task.name}, which is compared with the last one: "
            "restore it, or start the run again"
        ) from None
    except OSError:
        raise
    except Exception as error:  # whatever unpickling makes of other bytes
        raise RunError(f"{path} is damaged: restore it, or start the run again") from error
    return state


def tunnels_after(rows: list[Row], task: Task) -> dict[str, Tunnel]:
    """The tunnel of the network as it was after a task, by each rule.

    In distribution are the task's own images, and transfer goes to the tasks not learnt yet; the probes are those
    that are refitted.
    """
    mine = [
        row._replace(variant="ridge") if row.variant == "refit_task" else row
        for row in rows
        if row.experience == task.index
        and (row.measure, row.variant) in (("probe_accuracy", "refit_task"), ("accuracy", "network"))
        and not (row.layer == "network" and row.dataset != task.name)
    ]
    return tunnels(mine, task.name)


def train_frozen(sequence: TaskSequence, two: TwoTasks, cut: int) -> dict[str, Any]:
    """The last task again, from the state before it, with layers 1 to ``cut`` frozen; the network's state then."""
    settings = replace(sequence.settings, trainer={**sequence.settings.trainer, "logger": False})
    again = TaskSequence(settings, sequence.folder, lambda what, done, total: None)
    again.go_on(BEFORE_LAST)
    try:
        with frozen(again.strategy.model, two.parts, range(1, cut + 1)):
            again.loop.train(again.stream.benchmark.train_stream[len(again.stream.tasks) - 1])
    finally:
        again.close()
    return snapshot(again.strategy.model)
