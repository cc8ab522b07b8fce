"""Runs over sequences of tasks, and sweeps of them: the page and the tables in the terminal, from their files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunnel_lightning.report.charts import Page
from tunnel_lightning.report.continual_group import page_of_group
from tunnel_lightning.report.continual_page import page_of_continual
from tunnel_lightning.report.continual_printed import print_group, print_run
from tunnel_lightning.runs.continual import is_continual, load_continual
from tunnel_lightning.runs.continual_group import is_group, load_group

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["page_of_continual", "page_of_group", "page_of_tasks", "print_continual"]


def page_of_tasks(folder: str | Path) -> Page | None:
    """Say what the page of a folder shows; None where it is neither a run over tasks nor a sweep of them.

    Raises:
        RunError: a file in it can't be read.
    """
    if is_group(folder):
        return page_of_group(load_group(folder))
    return page_of_continual(load_continual(folder)) if is_continual(folder) else None


def print_continual(folder: str | Path, console: Console | None = None) -> None:
    """Print the tables of a run over tasks, or of a sweep of them, and what they say.

    Args:
        folder: of the run or the sweep.
        console: default: standard output, 80 columns where it is no terminal.

    Raises:
        RunError: it is neither, or a file in it can't be read.
    """
    if is_group(folder):
        print_group(load_group(folder), console)
    else:
        print_run(load_continual(folder), console)
