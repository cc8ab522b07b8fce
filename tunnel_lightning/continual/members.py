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
from tunnel_lightning.runs import read_manifest, write_manifest
from tunnel_lightning.runs.files import atomic

SWEEP_FILE = "sweep.json"


def learn_one(settings: Settings, folder: Path, progress: Progress) -> None:
    """Learn a sequence in a folder, from where it is, and write its page.

    Raises:
        RunError: the folder holds an unfinished run of a strategy that can't be gone on with.
    """
    if read_manifest(folder).get("continual", {}).get("finished"):
        write_page(folder)
        return
    started = (folder / STATE_FILE).exists() or "continual" in read_manifest(folder)
    sequence = TaskSequence(settings, folder, progress)
    try:
        if sequence.loop.differs:
            progress(sequence.loop.differs, 0, 0)
        if started:
            sequence.go_on()
            sequence.drop_later()
        elif sequence.resumable is not None:
            progress(f"this run can't be resumed: {sequence.resumable}", 0, 0)
        tasks = [task.name for task in sequence.stream.tasks]
        live = Live(sequence.loop.writer, tasks, sequence.table.rows)
        sequence.learn_all(live)
        sequence.table.append(sweeps(sequence))
        live.pictures(folder)
    finally:
        sequence.close()
    section = read_manifest(folder)["continual"]
    write_manifest(folder, continual={**section, "finished": True})
    write_page(folder)


def learn_members(
    settings: Settings, folder: Path, progress: Progress, seeds: int, depths: list[int] | None
) -> None:
    """Learn the sequence for every seed and depth, each in a folder of its own, and write the page over all."""
    members: list[dict[str, Any]] = []
    for depth in depths or [None]:
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
        learn_one(member_of(settings, member["seed"], member["depth"]), home, progress)
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
