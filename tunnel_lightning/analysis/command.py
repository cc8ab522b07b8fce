"""``analyze RUN``: the command line of an analysis."""

from __future__ import annotations

import logging
import sys
import time
import warnings
from argparse import ArgumentError
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, Namespace, set_parsing_settings
from lightning.fabric import Fabric
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tunnel_lightning.analysis.asked import Asked, watched
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.context import Context, check_machine, fabric_of
from tunnel_lightning.analysis.options import Options, with_protocol
from tunnel_lightning.analysis.parts import WHAT, is_ours, perform
from tunnel_lightning.analysis.places import check_place, resumable
from tunnel_lightning.analysis.profile import Profile
from tunnel_lightning.analysis.subject import checkpoints_of
from tunnel_lightning.report import print_profile, write_report
from tunnel_lightning.report.build import REPORT_FILE
from tunnel_lightning.report.mistakes import sentence
from tunnel_lightning.report.progress import Bars
from tunnel_lightning.report.static import parse_formats
from tunnel_lightning.runs.analysis import ANALYSIS_FOLDER

DESCRIPTION = (
    "Measure every layer of a trained network: of a run that `fit` made (RUN), or of any other (--model with "
    "--data). Writes a table, arrays and a page into RUN/analysis. Started again after an interruption it goes on."
)
PROTOCOL_HELP = "A paper's own pooling, probes, measures and images: masarczyk, harun or nguyen."
PROTOCOL_SETS = ("measures", "taps.pool", "taps.max_features")
"""What a protocol decides; its sample is only where it starts from."""


@dataclass
class Request(Asked):
    """What is analysed, on which machine, and where the result goes.

    Attributes:
        ckpt: checkpoint of the run: best, last or a path; or all, for the last one and how it came about.
        device: auto, cpu, cuda or mps; what is measured on held features runs on the CPU.
        precision: of the forward passes: 32-true, bf16-mixed or 16-mixed; sums are in single and double precision.
        processes: how many share the work; the figures are the same.
        figures: a folder for every figure as a file of its own.
        formats: of these files: png, svg, pdf, a list or with commas between.

    Raises:
        ValueError: arguments that don't go together.
    """

    precision: str = "32-true"
    processes: int = 1
    figures: str | None = None
    formats: str | Sequence[str] = ("png",)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_machine(self.device, self.precision)
        self.formats = parse_formats(self.formats)
        if self.processes < 1:
            raise ValueError(f"processes must be at least 1, got {self.processes}")

    def subject(self) -> Subject:
        """The network, with its sets."""
        return Asked.subject(replace(self, ckpt="last") if self.ckpt == "all" else self)

    def fabric(self) -> Fabric:
        """The machine that is asked for.

        Raises:
            ValueError: there is no such device here, or not so many.
        """
        return fabric_of(self.device, self.precision, self.processes)


def analyze(request: Request, options: Options) -> None:
    """Measure a network, write the analysis, and print what came out.

    Args:
        request: which network, where, and where to.
        options: what is measured.

    Raises:
        ValueError: a mistake in what was asked, in one sentence.
        FileNotFoundError: no such run, checkpoint or file of weights.
        OSError: the analysis can't be written.
        KeyboardInterrupt: with what to do to go on.
    """
    start = time.perf_counter()
    if asked := request.out or request.run:
        place = Path(asked) if request.out else Path(asked) / ANALYSIS_FOLDER
        check_place(place, WHAT, is_ours, ANALYSIS_FOLDER)
    fabric = request.fabric()
    fabric.launch()
    try:
        folder = measure(request, options, fabric)
    except BaseException as error:
        first = fabric.is_global_zero
        if first or not (isinstance(error, (ValueError, OSError, KeyboardInterrupt)) or "peer" in str(error)):
            raise
        sys.exit(1)  # the first process says why, or said it and is gone
    if not fabric.is_global_zero:
        return
    if request.figures:
        write_report([folder], folder / REPORT_FILE, request.figures, request.formats)
    show(Profile.read(folder), time.perf_counter() - start)


def measure(request: Request, options: Options, fabric: Fabric) -> Path:
    """Do what one process does, and return the folder of the analysis."""
    folder: Path | None = None
    with resumable(lambda: folder), Bars(enabled=fabric.is_global_zero) as bars:
        subject = request.subject()
        own, others = subject.sets()
        checkpoints = checkpoints_of(request.run) if request.run and request.ckpt == "all" else []
        with Context(subject, own, others, options, fabric, bars) as context:
            bars(f"analysing {subject.title} on {own.name}", 0, 0)
            folder = Path(fabric.broadcast(str(request.place(subject, ANALYSIS_FOLDER))))
            perform(context, folder, checkpoints)
    return folder


def show(profile: Profile, seconds: float, console: Console | None = None) -> None:
    """Print the profile, what a reader must know, and where the files are."""
    console = console or Console()
    print_profile(profile.run, console, "analysis")
    console.print(Text(f"report       {profile.path / REPORT_FILE}"), soft_wrap=True)
    console.print(Text(f"time         {seconds // 60:.0f} min {seconds % 60:.0f} s"))
    notes = Table.grid(padding=(0, 9, 0, 0))
    for note in profile.summary["notes"]:
        notes.add_row(Text("note", style="bold cyan"), Text(note))
    if notes.row_count:
        console.print()
        console.print(notes)


def parser_of(defaults: Mapping[str, Any]) -> ArgumentParser:
    """The arguments, with other defaults for some of the options."""
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    program = "python -m tunnel_lightning analyze"
    parser = ArgumentParser(program, f"{program} [RUN] [options]", DESCRIPTION, exit_on_error=False)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run folder that `fit` made")
    parser.add_argument("--config", action="config", help="settings from a file")
    parser.add_class_arguments(Request, skip={"run"})
    parser.add_argument("--protocol", type=str | None, help=PROTOCOL_HELP)
    parser.add_class_arguments(Options)
    parser.set_defaults(dict(defaults))
    return parser


def usual(run: str | None, protocol: str | None) -> dict[str, Any]:
    """The options where no others are asked for: the layers that a run watched, and what a protocol sets.

    Raises:
        ValueError: no such protocol.
    """
    found = watched(run)
    if protocol is not None:
        chosen = with_protocol(Options(), protocol)
        found |= {name: chosen.settings()[name] for name in PROTOCOL_SETS} | {"sample": chosen.sample}
    return found


def parse(argv: Sequence[str]) -> tuple[Request, Options]:
    """The arguments of the command line; a run's layers are those it watched, unless others are asked for.

    Raises:
        ValueError: an unknown argument, one that can't be read, or one that a protocol would replace.
    """
    try:
        told = parser_of({}).parse_args(list(argv))
        defaults = usual(told.run, told.protocol)
        parser = parser_of(defaults)
        made: Namespace = parser.instantiate_classes(parser.parse_args(list(argv)))
    except ArgumentError as error:
        raise ValueError(sentence(str(error))) from error
    request = Request(**{field.name: made[field.name] for field in fields(Request)})
    options = Options(**{field.name: made[field.name] for field in fields(Options)})
    settings = options.settings()
    if told.protocol and (own := [name for name in PROTOCOL_SETS if settings[name] != defaults[name]]):
        raise ValueError(
            f"--protocol {told.protocol} sets {', '.join(PROTOCOL_SETS)} itself: leave out --{' and --'.join(own)}, "
            "or the protocol"
        )
    return request, options


def command(argv: Sequence[str]) -> None:
    """Run the command with the arguments behind its name.

    Raises:
        ValueError: a mistake in what was asked; see :func:`analyze`.
    """
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    warnings.filterwarnings("ignore", "layer '.*' has ")  # notes say it
    analyze(*parse(argv))
