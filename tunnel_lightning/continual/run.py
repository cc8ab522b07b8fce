"""One sequence of tasks from the first to the last, measured after each, in a run folder it can go on in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import seed_everything
from torch import nn

from tunnel_lightning.backbones import Backbone
from tunnel_lightning.callbacks.places import layer_infos
from tunnel_lightning.callbacks.run_folder import drop_events
from tunnel_lightning.continual.auxiliary import ExitLoss, check_exits, exit_rows, refuse_exits, with_exits
from tunnel_lightning.continual.live import Live
from tunnel_lightning.continual.loops import make_loop
from tunnel_lightning.continual.meter import LayerMeter
from tunnel_lightning.continual.models import TaskView, backbone_in, prepare_model
from tunnel_lightning.continual.names import load
from tunnel_lightning.continual.scenarios import classic_stream, make_stream
from tunnel_lightning.continual.settings import Settings
from tunnel_lightning.continual.state import can_resume, export_state, import_state
from tunnel_lightning.continual.strategies import answering_model, make_strategy, strategy_class
from tunnel_lightning.continual.strategies import turns as make_turns
from tunnel_lightning.continual.stream import Stream
from tunnel_lightning.runs import (
    NETWORK,
    PROFILE_FILE,
    ProfileTable,
    Row,
    RunError,
    machine_info,
    package_versions,
    run_id_of,
    write_layers,
    write_manifest,
)
from tunnel_lightning.runs.files import atomic
from tunnel_lightning.surgery import snapshot
from tunnel_lightning.taps.costs import costs

STATE_FILE = "state.pt"
"""What a run goes on from: tensors, numbers and names, read with ``weights_only=True``."""
BEFORE_LAST = "state_before_last.pt"
"""The same before the last task, kept where layers are to be frozen for it."""
STATE = {"done", "rows", "loop", "strategy", "meter"}
"""What is in it."""
SNAPSHOTS = "snapshots"
"""Folder of the network's weights as they were after each task: ``task_1.pt`` is after the first."""

Progress = Callable[[str, int, int], None]


class TaskSequence:
    """A strategy with its stream, loop and meter, in a folder.

    Args:
        settings: everything that decides the figures.
        folder: of the run.
        progress: is told ``(what, done, total)``; a total of 0 is a line to keep.

    Attributes:
        done: the last task that is learnt and measured, from 0; -1 where only the fresh network was, -2 before.
        resumable: why the run can't be gone on with, or None.

    Raises:
        ValueError: settings that do not go together.
    """

    def __init__(self, settings: Settings, folder: Path, progress: Progress) -> None:
        self.settings, self.folder, self.progress = settings, folder, progress
        self.stream = stream_of(settings)
        # Here, so that the first weights depend on the seed alone and not on how the stream was made.
        seed_everything(settings.seed, verbose=False)
        self.backbone = backbone_of(settings.model["backbone"], self.stream)
        # Before the head is exchanged for one that wants a task label.
        self.flops = costs(self.backbone, self.stream.tasks[0].train.x[:1])
        model = prepare_model(self.backbone, self.stream, settings.head)  # type: ignore[arg-type]
        if settings.exits is not None:
            refuse_exits(strategy_class(settings.strategy["class_path"])[1])
            try:
                model = with_exits(model, self.stream, settings.exits)
            except ValueError as error:
                raise ValueError(str(error).replace("taps.layers", "exits.layers")) from error
        self.meter = LayerMeter(
            self.stream,
            settings.taps,
            run_id_of(folder),
            probes=settings.meter.probes,
            drift=settings.meter.drift,
            ranks=settings.meter.ranks,
            reference_images=settings.meter.reference_images,
        )
        self.meter.start(model)
        plugins: list[Any] = [*settings.plugins, *self.meter.plugins()]
        if settings.exits is not None:
            plugins.insert(0, ExitLoss(settings.exits.weight))
        optimizer = settings.model["optimizer"]
        self.strategy = make_strategy(
            settings.strategy["class_path"],
            settings.strategy["init_args"],
            model=model,
            backbone=self.backbone,
            stream=self.stream,
            optimizer=lambda parameters: load(optimizer["class_path"])(parameters, **optimizer["init_args"]),
            criterion=nn.CrossEntropyLoss(label_smoothing=settings.model.get("label_smoothing", 0.0)),
            epochs=settings.epochs,
            batch_size=settings.batch_size,
            device=device_of(settings.device),
            plugins=plugins,
        )
        if settings.exits is not None:
            check_exits(self.strategy)
        if not isinstance(backbone_in(self.strategy.model), Backbone):
            self._measure_another()
        self.resumable = can_resume(self.strategy)
        if settings.sweeps.freeze and self.resumable is not None:
            raise ValueError(
                f"sweeps.freeze trains the last task again from the state before it: {self.resumable}"
            )
        self.loop = make_loop(
            self.strategy,
            settings.loop,
            settings.trainer,
            folder,
            settings.num_workers,
            settings.reset_optimizer,
        )
        self.done = -2
        self._rows: int | None = None

    def _measure_another(self) -> None:
        """Measure the network that the strategy has brought in the backbone's place (PNN)."""
        example, plugins = self.stream.tasks[0].train.x[:2], self.strategy.plugins
        old = self.meter.plugins()
        self.meter.start(self.strategy.model)
        for before, now in zip(old, self.meter.plugins(), strict=True):
            plugins[plugins.index(before)] = now
        self.flops = costs(TaskView(self.strategy.model, 0), example[:1])
        self.flops = {path.removeprefix("model."): count for path, count in self.flops.items()}

    @property
    def table(self) -> ProfileTable:
        """The run's rows."""
        return ProfileTable(self.folder / PROFILE_FILE)

    def learn_all(self, live: Live | None = None) -> None:
        """Measure the fresh network if that was not done, then learn, measure and keep every task that is left.

        Args:
            live: shows what is measured.
        """
        turns: list[tuple[int, Any]] = [(-1, None), *make_turns(self.strategy, self.stream)]
        for index, what in turns:
            if index <= self.done:
                continue
            if index < 0:
                self._describe()
            else:
                self.loop.train(what, partial(self.progress, self._named(what)))
            rows = self._measured(index)
            self._keep(index, rows)
            if live is not None:
                live(rows)
                live.pictures(self.folder)
            if index >= 0:
                own = [row for row in rows if row.layer == NETWORK and row.variant == "network"]
                shown = " ".join(f"{100 * row.value:.1f}" for row in own if row.measure == "accuracy")
                self.progress(f"{self._named(what)} learnt; accuracy on each task in %: {shown}", 0, 0)

    def _named(self, what: Any) -> str:
        tasks = self.stream.tasks
        if isinstance(what, list):
            return f"all {len(tasks)} tasks"
        return f"{tasks[what.current_experience].name} of {len(tasks)}"

    def _measured(self, after: int) -> list[Row]:
        step, epoch = self.loop.steps, self.loop.epochs
        rows = self.meter.measure(answering_model(self.strategy), after=after, step=step, epoch=epoch)
        if self.settings.exits is not None:
            thresholds, run_id = self.settings.exits.thresholds, self.meter.run_id
            model, layers = self.strategy.model, self.meter.layers
            rows += exit_rows(model, self.stream, thresholds, run_id, step, epoch, after, layers)
        return rows

    # In the folder ------------------------------------------------------------------------------------------

    def _describe(self) -> None:
        """Write the manifest and the list of layers."""
        settings, stream = self.settings, self.stream
        write_manifest(
            self.folder,
            versions=package_versions(),
            machine=machine_info(),
            seed=settings.seed,
            taps={**asdict(settings.taps), "hook_points": [tap.name for tap in self.meter.layers]},
            continual={
                "tasks": [
                    {"name": task.name, "classes": list(task.class_names), "label": task.label}
                    for task in stream.tasks
                ],
                "kind": stream.kind,
                "data": stream.name,
                "num_classes": stream.num_classes,
                "multi_head": stream.multi_head,
                "single_head": stream.disjoint and not stream.multi_head,
                "head": settings.head,
                "strategy": settings.strategy,
                "plugins": settings.plugins,
                "backbone": self.backbone.config,
                "optimizer": settings.model["optimizer"],
                "epochs": settings.epochs,
                "batch_size": settings.batch_size,
                "reset_optimizer": settings.reset_optimizer,
                "meter": asdict(settings.meter),
                "seed": settings.seed,
                "loop": self.loop.name,
                "differs": self.loop.differs,
                "resumable": self.resumable,
            },
        )
        write_layers(self.folder, layer_infos(self.meter.layers, self.flops))

    def _keep(self, index: int, rows: list[Row]) -> None:
        """Write the snapshot, the rows, and last the state: a run killed in between learns this task again."""
        self.done = index
        snapshots = self.folder / SNAPSHOTS
        snapshots.mkdir(exist_ok=True)
        if index >= 0:
            with atomic(snapshots / f"task_{index + 1}.pt", "wb") as file:
                torch.save(snapshot(self.strategy.model), file)
        self.table.append(rows)
        if self.resumable is not None:
            return
        state = {
            "done": self.done,
            "rows": len(self.table.rows),
            "loop": self.loop.state_dict(),
            "strategy": export_state(self.strategy),
            "meter": self.meter.state_dict(),
        }
        if self.settings.sweeps.freeze and index == len(self.stream.tasks) - 2:
            with atomic(self.folder / BEFORE_LAST, "wb") as file:
                torch.save(state, file)
        with atomic(self.folder / STATE_FILE, "wb") as file:
            torch.save(state, file)

    def go_on(self, file: str = STATE_FILE) -> None:
        """Take a state of the folder.

        Args:
            file: its name.

        Raises:
            RunError: there is no state, or it can't be read or does not fit.
        """
        state = read_state(self.folder / file)
        import_state(self.strategy, state["strategy"])
        self.meter.load_state_dict(state["meter"])
        self.loop.load_state_dict(state["loop"])
        self.done, self._rows = state["done"], state["rows"]

    def drop_later(self) -> None:
        """Drop what the table and TensorBoard hold past the state: it will be made again.

        Raises:
            RunError: the table lacks rows that were measured up to there.
        """
        table = self.table
        kept = [row for row in table.rows if row.experience <= self.done and not swept(row)]
        if self._rows is not None and len(kept) != self._rows:
            raise RunError(
                f"{table.path} has {len(kept)} rows of the tasks that {self.folder / STATE_FILE} says are done, and "
                f"{self._rows} were measured: restore the file, or start the run again"
            )
        table.write(kept)
        for events in sorted(self.folder.glob("events.out.tfevents.*")):
            drop_events(events, self.loop.steps)

    def close(self) -> None:
        """Close the loggers."""
        self.loop.close()


def swept(row: Row) -> bool:
    """Whether a row is of a sweep, which comes after the last task."""
    return row.measure in ("swap_accuracy", "rewind_accuracy", "freeze_accuracy")


def read_state(path: Path) -> dict[str, Any]:
    """The state a run left.

    Raises:
        RunError: there is none, or it can't be read.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise RunError(f"{path} is missing: the run ended before anything was kept; start it again") from None
    except OSError:
        raise
    except Exception as error:  # whatever unpickling makes of other bytes
        raise RunError(
            f"{path} is damaged or holds more than tensors and numbers: start the run again"
        ) from error
    if not isinstance(state, dict) or not state.keys() >= STATE:
        raise RunError(f"{path} is no state of a run over tasks: start the run again")
    return state


def stream_of(settings: Settings) -> Stream:
    """The stream that is asked for."""
    train, test = settings.meter.train_images, settings.meter.test_images
    if settings.classic is not None:
        return classic_stream(
            settings.classic["class_path"], settings.classic["init_args"], settings.scenario.seed, train, test
        )
    assert settings.data is not None
    data = load(settings.data["class_path"])(**settings.data["init_args"])
    data.prepare_data()
    data.setup()
    return make_stream(data, settings.scenario, train, test)


def backbone_of(config: dict[str, Any], stream: Stream) -> Backbone:
    """The network that is asked for, with as many outputs as the stream needs.

    Raises:
        ValueError: it is no backbone, or its arguments do not fit it.
    """
    made = load(config["class_path"])
    if not (isinstance(made, type) and issubclass(made, Backbone)):
        raise ValueError(f"model.backbone: {config['class_path']} is no Backbone")
    arguments = {**config["init_args"], "num_classes": stream.outputs, "input_shape": stream.input_shape}
    backbone: Backbone = made(**arguments)
    return backbone


def device_of(name: str) -> torch.device:
    """The device of that name.

    Raises:
        ValueError: there is none such here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = "auto, cpu or cuda" if torch.cuda.is_available() else "auto or cpu"
        raise ValueError(f"--device {name}: there is no such device here, give {there}") from error
    return device
