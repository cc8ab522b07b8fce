"""``python -m tunnel_lightning COMMAND``; help, version and report need no torch."""

import errno
import os
import sys
from importlib import import_module
from opcode import opmap
from types import TracebackType

from tunnel_lightning import __version__

COMMANDS: dict[str, tuple[str, str | None]] = {
    "fit": ("train a network and watch every layer; --resume RUN goes on in a run folder", None),
    "validate": ("accuracy of a checkpoint on the validation images", None),
    "test": ("accuracy of a checkpoint on the test images", None),
    "predict": ("class probabilities of a checkpoint for the test images, as a table", None),
    "analyze": (
        "the whole depth profile of a trained network, and its page",
        "tunnel_lightning.analysis.command:command",
    ),
    "compare": (
        "several networks: similarity of their layers, their profiles and their answers",
        "tunnel_lightning.analysis.compare:command",
    ),
    "invert": (
        "what each layer still knows of its input: images recovered from it",
        "tunnel_lightning.analysis.invert.command:command",
    ),
    "ablate": (
        "what each layer is needed for: deleted, reset, rewound, swapped or trained again",
        "tunnel_lightning.analysis.ablate.command:command",
    ),
    "trim": (
        "the tunnel cut away: what every cut keeps and saves, and the cut network, exported",
        "tunnel_lightning.analysis.trim.command:command",
    ),
    "continual": (
        "a sequence of tasks with any Avalanche strategy, every layer measured; --resume RUN goes on",
        "tunnel_lightning.continual.command:command",
    ),
    "report": (
        "the page of runs, analyses or a comparison, from their files",
        "tunnel_lightning.report.command:report",
    ),
}
"""Of each command what it does, and the function that is given the arguments behind its name; None: Lightning's."""

SAID = (ValueError, OSError, RuntimeError, TypeError, ImportError)
"""Kinds of error that the package raises for mistakes; others are its own."""

RAISE = opmap["RAISE_VARARGS"]
"""The instruction of a ``raise`` statement."""

USAGE = """usage: python -m tunnel_lightning COMMAND [options]

See, while a network trains and after, what every one of its layers knows.

commands:
{commands}

  COMMAND --help      all options of a command
  --version           the version

example:
  python -m tunnel_lightning fit --config configs/resnet.yaml
"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line.

    Args:
        argv: arguments without the program's name; by default those of the process.

    Returns:
        The exit status: 0 for success. Of Lightning's commands 1 for a mistake in what was asked and 2 for one in
        how; of the others 2 for any mistake in what was asked, 1 where the machine failed, as a full disk.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "--version":
        print(f"tunnel_lightning {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print(
            USAGE.format(commands="\n".join(f"  {name:<19} {text}" for name, (text, _) in COMMANDS.items()))
        )
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: no command '{argv[0]}': choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    _, home = COMMANDS[argv[0]]
    try:
        if home is None:
            from tunnel_lightning.cli import run

            run(argv)
        else:
            module, function = home.split(":")
            getattr(import_module(module), function)(argv[1:])
    except KeyboardInterrupt as error:
        print(": ".join(("interrupted", *map(str, error.args))), file=sys.stderr)
        return 130
    except Exception as error:
        said = _sentence(error)
        if said is None or os.environ.get("TUNNEL_TRACEBACK"):
            raise
        print(f"error: {said}", file=sys.stderr)
        machine = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO)
        return 1 if home is None or machine else 2
    return 0


def _sentence(error: Exception) -> str | None:
    """What to say of an error without a traceback; nothing of one that only a traceback explains."""
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    if said := _said_by_us(error):
        return str(said)
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, which is not imported here
        return " ".join(str(error).split())
    return None


def _said_by_us(error: BaseException | None) -> BaseException | None:
    """The error, or the one behind it, that the package itself raised: its sentence says all, without a traceback."""
    while error is not None:
        if isinstance(error, SAID) and _raised_by_us(error.__traceback__):
            return error
        error = error.__cause__ or error.__context__
    return None


def _raised_by_us(trace: TracebackType | None) -> bool:
    """Whether an error is from a ``raise`` of the package: what a call or an operator there raises is a bug."""
    if trace is None:
        return False
    while trace.tb_next is not None:
        trace = trace.tb_next
    frame = trace.tb_frame
    ours = frame.f_globals.get("__name__", "").startswith("tunnel_lightning")
    return ours and frame.f_code.co_code[trace.tb_lasti] == RAISE


if __name__ == "__main__":
    sys.exit(main())
