"""A sequence learnt once, or over seeds and depths: each member a run folder of its own, finished ones left alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunnel_lightning.continual.after import sweeps
from tunnel_lightning.continual.live import Live
from tunnel_lightning.continual.run import STATE_FILE, Progress, TaskSequence
from tunnel_lightning.continual.settings import Settings
from tunnel_lightning.runs import RunError, read_manifest, write_manifest
from tunnel_lightning.runs.files import atomic

SWEEP_FILE = "sweep.json"


def learn_one(settings: Settings, folder: Path, progress: Progress, anew: bool = False) -> None:
    """Learn a sequence in a folder, from where it is, and write its page.

    Args:
        settings: everything that decides the figures.
        folder: of the run.
        progress: is told ``(what, done, total)``.
        anew: begin an unfinished run of a strategy that can't be gone on with again, in place of refusing it.

    Raises:
        RunError: the folder holds an unfinished run of a strategy that can't be gone on with.
    """
    section = read_manifest(folder).get("continual")
    if section is None and (folder / STATE_FILE).exists():
        raise RunError(
            f"{folder / 'manifest.json'} does not say what the tasks were: restore it, or start again"
        )
    if section is not None and section.get("finished"):
        write_page(folder)
        return
    sequence = TaskSequence(settings, folder, progress)
    try:
        if sequence.loop.differs:
            progress(sequence.loop.differs, 0, 0)
        if section is not None:
            if sequence.resumable is not None and not anew:
                raise RunError(f"{folder} can't be gone on with: {sequence.resumable}; start it again")
            if (folder / STATE_FILE).exists():
                sequence.go_on()
            # Without a state nothing was kept yet: the run begins again.
            sequence.drop_later()
        if sequence.resumable is not None:
            progress(f"this run can't be resumed: {sequence.resumable}", 0, 0)
        tasks = [task.name for task in sequence.stream.tasks]
        live = Live(sequence.loop.writer, tasks, sequence.table.rows)
        sequence.learn_all(live)
        sequence.table.append(sweeps(sequence))
        live.pictures(folder)
    finally:
        sequence.close()
    write_manifest(folder, continual={**read_manifest(folder)["continual"], "finished": True})
    write_page(folder)


def learn_members(
    settings: Settings, folder: Path, progress: Progress, seeds: int, depths: list[int] | None
) -> None:
    """Learn the sequence for every seed and depth, each in a folder of its own, and write the page over all."""
    members: list[dict[str, Any]] = []
    wanted: list[int | None] = [None] if depths is None else [*depths]
    for depth in wanted:
        for seed in range(settings.seed, settings.seed + seeds):
            parts = [f"depth={depth}"] if depth is not None else []
            name = "-".join([*parts, f"seed={seed}"])
            members.append({"folder": name, "seed": seed, "depth": depth})
    with atomic(folder / SWEEP_FILE) as file:
        json.dump({"members": members}, file, indent=2)
    for number, member in enumerate(members, 1):
        progress(f"run {number} of {len(members)}: {member['folder']}", 0, 0)
        home = folder / member["folder"]
        home.mkdir(exist_ok=True)
        learn_one(member_of(settings, member["seed"], member["depth"]), home, progress, anew=True)
    write_page(folder)


def member_of(settings: Settings, seed: int, depth: int | None) -> Settings:
    """The settings with another seed and depth."""
    if depth is None:
        return replace(settings, seed=seed)
    backbone = settings.model["backbone"]
    deeper = {**backbone, "init_args": {**backbone["init_args"], "depth": depth}}
    return replace(settings, seed=seed, model={**settings.model, "backbone": deeper})


def write_page(folder: Path) -> None:
    """The page of a run or of a sweep."""
    from tunnel_lightning.report.build import write_report

    write_report([folder], folder / "report.html")
