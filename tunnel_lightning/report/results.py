"""What the commands on a trained network found beside its profile: their sections on the page of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunnel_lightning.report import ablation, inversion, trimming
from tunnel_lightning.report.charts import Number, Page, Section
from tunnel_lightning.runs.ablation import ABLATION_FOLDER, ablation_folder, load_ablation
from tunnel_lightning.runs.inversion import INVERT_FOLDER, inversion_folder, load_inversion
from tunnel_lightning.runs.trimming import TRIM_FOLDER, load_trimming, trim_folder

COMMANDS: dict[
    str, tuple[Callable[[Path], Path | None], Callable[[Path], Any], Callable[[Path], list[Section]]]
] = {
    INVERT_FOLDER: (inversion_folder, load_inversion, inversion.sections_of),
    ABLATION_FOLDER: (ablation_folder, load_ablation, ablation.sections_of),
    TRIM_FOLDER: (trim_folder, load_trimming, trimming.sections_of),
}
"""Of each command: what finds its folder, reads it, and shows it."""


def sections_of(home: Path) -> list[Section]:
    """The sections of every command that was run on a network.

    Args:
        home: the run folder, or the folder of one command's result.

    Raises:
        RunError: a file can't be read.
    """
    found = []
    for find, load, show in COMMANDS.values():
        if find(home) and (sections := show(home)):
            first = sections[0]
            found += [
                replace(first, text=f"{first.text} {_whence(load(home).summary)}".strip()),
                *sections[1:],
            ]
    return found


def _whence(summary: Mapping[str, Any]) -> str:
    """Which weights a result is of; empty where no file of weights was read."""
    checkpoint = summary.get("checkpoint")
    if not checkpoint:
        return ""
    epoch = f", epoch {summary['epoch']}" if summary.get("epoch") else ""
    return f"Weights: {Path(str(checkpoint)).name}{epoch}."


def notes_of(home: Path) -> list[str]:
    """What a reader must know of these results, each sentence once."""
    notes: dict[str, None] = {}
    for find, load, _ in COMMANDS.values():
        if find(home):
            notes |= dict.fromkeys(str(note) for note in load(home).summary.get("notes") or [])
    return list(notes)


def home_of(place: Path) -> Path | None:
    """The folder with the results that a folder is or holds: a run's where it is one of a run's; None without any."""
    for name, (find, _, _) in COMMANDS.items():
        if folder := find(place):
            return folder.parent if folder.name == name else folder
    return None


def page_of_results(home: Path) -> Page:
    """The page of a network that has no profile.

    Raises:
        RunError: a file can't be read.
    """
    summaries = [load(home).summary for find, load, _ in COMMANDS.values() if find(home)]
    said = summaries[0]
    title, run_id = (str(said.get(key) or "") for key in ("title", "run_id"))
    about = [run_id if run_id != title else "", str(said.get("dataset") or "")]
    sections = sections_of(home)
    headline = sections[0].text.partition(". ")[0] if sections else title
    numbers: list[Number] = ablation.numbers(load_ablation(home)) if ablation_folder(home) else []
    return Page(
        title or run_id, headline, "  ·  ".join(filter(None, about)), numbers, sections, notes_of(home)
    )
