"""``report RUN [RUN ...]``: the page again, from files, without torch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from tunnel_lightning.report.build import write_report
from tunnel_lightning.report.static import FORMATS, parse_formats


def report(argv: Sequence[str]) -> None:
    """Run the command with the arguments behind its name.

    Raises:
        RunError: see `write_report`.
        ValueError: see `write_report`.
    """
    parser = argparse.ArgumentParser(
        "python -m tunnel_lightning report",
        description="Write the page of a run, of several runs over one another, of a sequence of tasks or a sweep of "
        "them, or of a comparison.",
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="RUN",
        help="a run folder, or a folder that compare or a sweep of continual has written",
    )
    parser.add_argument(
        "--out",
        metavar="FILE",
        help="the page; default: report.html in the folder, of several runs right here",
    )
    parser.add_argument(
        "--figures", metavar="DIR", help="write each figure to a file of its own in this folder"
    )
    parser.add_argument(
        "--formats",
        default=",".join(FORMATS),
        metavar="LIST",
        help="of the figures, with commas between; default: %(default)s",
    )
    given = parser.parse_args(argv)
    path = write_report(given.folders, given.out, given.figures, parse_formats(given.formats))
    print(f"report   {path}")
    if given.figures:
        print(f"figures  {given.figures}")
