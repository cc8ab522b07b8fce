"""``ablate RUN``: the command line of an ablation."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tunnel_lightning.analysis.ablate.options import Options
from tunnel_lightning.analysis.ablate.work import Work
from tunnel_lightning.analysis.asked import Asked, parse
from tunnel_lightning.analysis.places import PARTS_FOLDER, alone, check_place, resumable
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.report import write_report
from tunnel_lightning.report.ablation import print_ablation
from tunnel_lightning.report.progress import Bars
from tunnel_lightning.runs.ablation import ABLATION_FOLDER, ablation_folder, load_ablation, write_ablation

DESCRIPTION = (
    "What every layer of a trained network is needed for: residual blocks deleted, layers reset to their first "
    "weights or rewound to earlier checkpoints, swapped with another run's, or trained again; accuracy, calibration, "
    "agreement, rank and CKA of the final representation after each. Writes a table into RUN/ablate, and the page of "
    "the run anew. Started again after an interruption it goes on."
)


def ablate(asked: Asked, options: Options) -> Path:
    """Do every intervention, write the folder and the page, and return the folder.

    Args:
        asked: which network, where, and where to.
        options: what is done to it.

    Raises:
        ValueError: a mistake in what was asked, in one sentence.
        FileNotFoundError: no such run, checkpoint or file of weights.
        OSError: it can't be written.
        KeyboardInterrupt: with what to do to go on.
    """
    fabric = asked.fabric()
    subject = asked.subject()
    folder = asked.place(subject, ABLATION_FOLDER)
    check_place(folder, "an ablation", is_ours, ABLATION_FOLDER)
    with resumable(lambda: folder), Bars() as bars, alone(folder, "an ablation"):
        assert subject.data is not None, "a command line names the images"
        own = ImageSet.of(subject.data)
        work = Work(subject, own, options, fabric, folder / PARTS_FOLDER, bars)
        try:
            rows, summary = work.all()
        finally:
            work.close()
        write_ablation(folder, rows, summary)
    return folder


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a finished ablation."""
    return ablation_folder(folder) == folder


def show(folder: Path, seconds: float, console: Console | None = None) -> None:
    """Print what came out, write the page, and say where it is."""
    console = console or Console()
    print_ablation(load_ablation(folder), console)
    console.print(Text(f"report       {write_report(folder)}"), soft_wrap=True)
    console.print(Text(f"time         {seconds // 60:.0f} min {seconds % 60:.0f} s"))


def command(argv: Sequence[str]) -> None:
    """Run the command with the arguments behind its name.

    Raises:
        ValueError: a mistake in what was asked; see :func:`ablate`.
    """
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "layer '.*' has ")  # not of interest where only the probes are
    warnings.filterwarnings("ignore", ".*have no `val_dataloader`")  # nothing is chosen by validation
    warnings.filterwarnings("ignore", ".*LeafSpec")
    start = time.perf_counter()
    folder = ablate(*parse(argv, "ablate", DESCRIPTION, Options))
    show(folder, time.perf_counter() - start)
