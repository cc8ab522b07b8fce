"""Reading several runs over one sequence of tasks: seeds of one network, and networks of several depths."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tunnel_lightning.runs.continual import (
    Array,
    ContinualRun,
    at_end,
    average_accuracy,
    forgetting_since_learnt,
    is_continual,
    load_continual,
    mean_and_deviation,
)
from tunnel_lightning.runs.files import run_id_of
from tunnel_lightning.runs.schema import RunError

SWEEP_FILE = "sweep.json"
"""Lists the runs: ``{"members": [{"folder": "depth_4/seed_0", "seed": 0, "depth": 4}, ...]}``."""


class Member(NamedTuple):
    """One run of several.

    Attributes:
        run: what there is of it.
        seed: its seed.
        depth: its depth; where the runs don't differ in depth the number of measured layers.
    """

    run: ContinualRun
    seed: int
    depth: int


@dataclass(frozen=True, eq=False)
class ContinualGroup:
    """Several runs over one sequence of tasks, read.

    Attributes:
        path: the folder.
        members: those that learnt all their tasks, by depth and seed.
        notes: what a reader must know of the others, in sentences.
    """

    path: Path
    members: list[Member]
    notes: list[str]

    @property
    def id(self) -> str:
        """``name/version_N``."""
        return run_id_of(self.path)

    @cached_property
    def depths(self) -> dict[int, list[Member]]:
        """The runs of each depth, ascending."""
        return {d: [m for m in self.members if m.depth == d] for d in sorted({m.depth for m in self.members})}

    def against_depth(self) -> dict[str, tuple[Array, Array]]:
        """Mean and deviation over seeds at each depth, arrays of shape ``[depths]``.

        ``accuracy`` and ``within`` are the average accuracies after the last task, the latter among each task's own
        classes; ``forgetting`` and ``within_forgetting`` what was lost since each task was learnt.
        """
        kinds = {
            "accuracy": ("network", average_accuracy),
            "forgetting": ("network", forgetting_since_learnt),
            "within": ("within", average_accuracy),
            "within_forgetting": ("within", forgetting_since_learnt),
        }
        return {
            name: _columns(
                [
                    mean_and_deviation([at_end(function(m.run.network(kind))) for m in each])
                    for each in self.depths.values()
                ]
            )
            for name, (kind, function) in kinds.items()
        }

    def layer_tables(self, depth: int) -> dict[str, tuple[Array, Array]]:
        """Mean and deviation over the seeds of a depth of each column of `ContinualRun.layer_table`, shape ``[L]``.

        Raises:
            RunError: the networks of that depth differ in their layers.
        """
        each = self.depths[depth]
        if len({tuple(m.run.layers.values()) for m in each}) > 1:
            raise RunError(f"The {len(each)} runs of depth {depth} in {self.path} differ in their layers.")
        tables = [m.run.layer_table() for m in each]
        return {name: mean_and_deviation([table[name] for table in tables]) for name in tables[0]}


def _columns(pairs: list[tuple[Array, Array]]) -> tuple[Array, Array]:
    mean, deviation = (np.array([pair[k] for pair in pairs]) for k in (0, 1))
    return mean, deviation


def is_group(folder: str | Path) -> bool:
    """Whether a folder lists runs over a sequence of tasks."""
    return (Path(folder) / SWEEP_FILE).is_file() and any(
        is_continual(Path(folder) / str(each["folder"])) for each in _listed(Path(folder))
    )


def load_group(folder: str | Path) -> ContinualGroup:
    """Read the runs that a folder lists; those that go on, or were not begun, are named in its notes.

    Raises:
        RunError: it lists none, or a file can't be read.
    """
    folder = Path(folder)
    listed = _listed(folder)
    members, notes = [], []
    missing = 0
    for each in listed:
        place = folder / str(each["folder"])
        if not is_continual(place):
            missing += 1
            continue
        run = load_continual(place)
        if run.finished:
            depth = each.get("depth")
            members.append(Member(run, int(each.get("seed") or 0), int(depth or len(run.layers))))
        else:
            notes.append(f"{run.id} is left out: it has learnt {run.done} of {len(run.tasks)} tasks.")
    if missing:
        notes.append(f"{missing} of {len(listed)} runs {'has' if missing == 1 else 'have'} not begun.")
    members.sort(key=lambda member: (member.depth, member.seed))
    return ContinualGroup(folder, members, notes)


def _listed(folder: Path) -> list[dict[str, Any]]:
    path = folder / SWEEP_FILE
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{folder} holds no {SWEEP_FILE}, so it lists no runs.") from None
    except ValueError as error:
        raise RunError(f"{path} is not valid JSON ({error}): restore it, or run the sweep again.") from None
    members = found.get("members") if isinstance(found, dict) else None
    if not isinstance(members, list) or not all(isinstance(m, dict) and "folder" in m for m in members):
        raise RunError(f"{path} lists no members, each with its folder: restore it, or run the sweep again.")
    return members
