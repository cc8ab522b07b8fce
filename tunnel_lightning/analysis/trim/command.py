"""``trim RUN``: cut a network at its tunnel, say what the cut keeps and saves, and write it."""

from __future__ import annotations

import logging
import shutil
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from rich.console import Console
from rich.text import Text

from tunnel_lightning.analysis.asked import Asked, parse
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.places import PARTS_FOLDER, alone, check_place, resumable
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Store
from tunnel_lightning.analysis.trim.choose import Choice, choose_for, choose_keeping, place_of
from tunnel_lightning.analysis.trim.curve import Found, columns_of, find
from tunnel_lightning.analysis.trim.exits import check_exits, fit_exits
from tunnel_lightning.analysis.trim.export import FILES
from tunnel_lightning.analysis.trim.heads import with_validation
from tunnel_lightning.analysis.trim.options import Options
from tunnel_lightning.analysis.trim.taken import summarise, take
from tunnel_lightning.analysis.trim.written import write_taken
from tunnel_lightning.report import write_report
from tunnel_lightning.report.progress import Bars
from tunnel_lightning.report.trimming import print_trimming
from tunnel_lightning.runs import NETWORK
from tunnel_lightning.runs.ablation import ABLATION_FOLDER
from tunnel_lightning.runs.analysis import ANALYSIS_FOLDER
from tunnel_lightning.runs.inversion import INVERT_FOLDER
from tunnel_lightning.runs.summaries import write_summary
from tunnel_lightning.runs.trimming import (
    CURVE_FILE,
    KIND,
    SUMMARY_FILE,
    TRIM_FOLDER,
    TRIM_SCHEMA,
    Columns,
    Trimming,
    load_trimming,
    read_curve,
    trim_folder,
    write_curve,
)
from tunnel_lightning.runs.trimming_exits import EXITS_FOLDER

DESCRIPTION = (
    "Cut a trained network behind the layer where its tunnel starts: of a run that `fit` made (RUN), or any other "
    "(--model with --data). Measures every cut (accuracy, FLOPs, parameters, latency, transfer), takes the cheapest "
    "one that keeps the asked share of the accuracy (--keep), or the best for another set (--for), says what it "
    "keeps on test images, and writes the cut network into RUN/trim. Started again after an interruption it goes on."
)
WHAT = "a trim"
OF_THE_CUT = (ANALYSIS_FOLDER, INVERT_FOLDER, ABLATION_FOLDER, TRIM_FOLDER)
"""In the folder of a cut: what other commands found of it."""
FRESH = ".new"
"""Among the parts: where files are written before they take their places."""


def command(argv: Sequence[str]) -> None:
    """Run the command with the arguments behind its name.

    Raises:
        ValueError: a mistake in what was asked; see :func:`trim`.
    """
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "layer '.*' has ")  # notes say it
    # A field can't be called `for`, which is a word of Python's.
    argv = [f"--for_set{each[5:]}" if each == "--for" or each.startswith("--for=") else each for each in argv]
    start = time.perf_counter()
    asked, options = parse(argv, "trim", DESCRIPTION, Options)
    folder = trim(asked, options)
    show(folder, time.perf_counter() - start)


def show(folder: Path, seconds: float, console: Console | None = None) -> None:
    """Print what was found, and where the page is."""
    console = console or Console()
    print_trimming(load_trimming(folder), console)
    page = write_report(folder.parent if folder.name == TRIM_FOLDER else folder)
    console.print(Text(f"report       {page}"), soft_wrap=True)
    console.print(Text(f"time         {seconds // 60:.0f} min {seconds % 60:.0f} s"))


def trim(asked: Asked, options: Options) -> Path:
    """Measure every cut of a network, take one, certify it, and write it.

    Args:
        asked: which network, where, and where to.
        options: which cut, and how heads are fitted.

    Returns:
        The folder of the result; without a network in it where there is no tunnel to cut.

    Raises:
        ValueError: a mistake in what was asked, in one sentence.
        FileNotFoundError: no such run, checkpoint or file of weights.
        OSError: the result can't be written; a former one is still there then.
        KeyboardInterrupt: with what to do to go on.
    """
    if asked.out or asked.run:
        check_place(Path(asked.out or Path(str(asked.run)) / TRIM_FOLDER), WHAT, is_ours, TRIM_FOLDER)
    folder: Path | None = None
    with resumable(lambda: folder), Bars() as bars:
        subject = asked.subject()
        own, others = sets_of(subject)
        options = named_set(options, own, others)
        folder = asked.place(subject, TRIM_FOLDER)
        check_place(folder, WHAT, is_ours, TRIM_FOLDER)
        with Context(subject, own, others, options.measured, asked.fabric(), bars) as context:
            layers = [tap.name for tap in context.taps.layers]
            by_hand = None if options.layer is None else place_of(options.layer, layers)
            if options.exits is not None:
                check_exits(context, options.exits)
            bars(f"trimming {subject.title} on {own.name}", 0, 0)
            with alone(folder, WHAT):
                _work(context, asked, folder, options, by_hand)
    return folder


def _work(context: Context, asked: Asked, folder: Path, options: Options, by_hand: int | None) -> None:
    store = Store(folder / PARTS_FOLDER)
    found = find(context, store, options.latency)
    curve = columns_of(context, found)
    choice = choose(found, curve, options, by_hand)
    taken = None if choice.line is None else take(context, store, found, curve, choice.line, options)
    with fresh(folder) as beside:
        write_curve(beside, curve)
        summary = summarise(context, found, curve, choice, taken, options)
        if taken is not None:
            own = taken.images is context.own and asked.data is None
            summary["files"], notes = write_taken(
                context, taken, Trimming(beside, read_curve(beside), summary), own, options.raw_pixels
            )
            summary["notes"] += notes
        if options.exits is not None:
            fit_exits(context, found.own.heads, beside, options.exits, options.share, options.latency)
        write_summary(beside / SUMMARY_FILE, KIND, TRIM_SCHEMA, summary)
        take_places(beside, folder)


def choose(found: Found, curve: Columns, options: Options, by_hand: int | None) -> Choice:
    """The cut that is asked for.

    Raises:
        ValueError: no head can be fitted at the layer that is asked for by hand.
    """
    if by_hand is not None:
        line = by_hand + 1
        name = curve["layer"][line]
        scored = found.own if options.for_set is None else found.others[options.for_set]
        if name not in scored.heads:
            raise ValueError(
                f"layer: no head can be fitted at {name}, its features are constant or not finite: choose another"
            )
        return Choice(line, "layer")
    if options.for_set is not None:
        return choose_for(curve, options.for_set)
    return choose_keeping(curve, reference(found, curve)[1], options.share)


def reference(found: Found, curve: Columns) -> tuple[str, float]:
    """What cuts are compared with, and its validation accuracy: the network, else the head at its last layer."""
    last = curve["layer"][-2]
    name = NETWORK if NETWORK in found.own.val else last
    return name, found.own.accuracy("val", name)


def sets_of(subject: Subject) -> tuple[ImageSet, list[ImageSet]]:
    """The network's own set and the others, each with validation images; notes say where they were taken from."""
    own, others = subject.sets()
    parted = [with_validation(images) for images in (own, *others)]
    subject.notes += [note for _, note in parted if note]
    first, *rest = [images for images, _ in parted]
    return first, rest


def named_set(options: Options, own: ImageSet, others: Sequence[ImageSet]) -> Options:
    """The options with the set of --for by the name it has among the transfer sets.

    Raises:
        ValueError: there is none of that name.
    """
    if options.for_set is None:
        return options
    names = {images.name.lower(): images.name for images in others}
    wanted = options.for_set.rpartition(".")[2].lower()
    if wanted in names:
        return replace(options, for_set=names[wanted])
    if wanted == own.name.lower():
        raise ValueError(
            f"--for {own.name}: that is the network's own set, of which --keep says how much is kept"
        )
    near = get_close_matches(wanted, names, n=2, cutoff=0.5)
    hint = f"did you mean {names[near[0]]}? " if near else ""
    there = ", ".join(names.values()) or "none"
    raise ValueError(
        f"--for {options.for_set}: no transfer set of that name ({hint}there are: {there}); name it with --ood too"
    )


def is_ours(folder: Path) -> bool:
    """Whether a folder holds a finished trim."""
    return trim_folder(folder) == folder


@contextmanager
def fresh(folder: Path) -> Iterator[Path]:
    """An empty folder to write to, in the same file system as the one it is for; it goes afterwards."""
    beside = folder / PARTS_FOLDER / FRESH
    shutil.rmtree(beside, ignore_errors=True)  # of a process that was killed
    try:
        beside.mkdir(parents=True)
        yield beside
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def take_places(beside: Path, folder: Path) -> None:
    """Move the files to their places; what a former trim has and this one has not is removed, its analysis too.

    The summary goes first and comes last, so that a folder with one is complete.
    """
    (folder / SUMMARY_FILE).unlink(missing_ok=True)
    for name in OF_THE_CUT:  # what was found of a network that is no longer there
        shutil.rmtree(folder / name, ignore_errors=True)
    for name in (CURVE_FILE, *FILES, EXITS_FOLDER, SUMMARY_FILE):
        old, new = folder / name, beside / name
        if old.is_dir():
            shutil.rmtree(old)
        if new.exists():
            old.parent.mkdir(exist_ok=True)
            new.replace(old)
        else:
            old.unlink(missing_ok=True)
            if old.parent != folder and old.parent.is_dir() and not any(old.parent.iterdir()):
                old.parent.rmdir()
