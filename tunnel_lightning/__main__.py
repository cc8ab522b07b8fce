"""``python -m tunnel_lightning COMMAND``; help and version need no torch."""

import os
import sys

from tunnel_lightning import __version__

COMMANDS = {
    "fit": "train a network and watch every layer; --resume RUN goes on in a run folder",
    "validate": "accuracy of a checkpoint on the validation images",
    "test": "accuracy of a checkpoint on the test images",
    "predict": "class probabilities of a checkpoint for the test images, as a table",
}

SAID = (ValueError, OSError, RuntimeError, TypeError, ImportError)
"""Kinds of error that the package raises for mistakes; others are its own."""

USAGE = """usage: python -m tunnel_lightning COMMAND [options]

See, while a network trains, what every one of its layers knows.

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
        The exit status: 0 for success, 1 for a mistake in what was asked, 2 for a mistake in how.
    """
    argv = sys.argv[1:] if argv is None else argv
    if argv and argv[0] == "--version":
        print(f"tunnel_lightning {__version__}")
        return 0
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE.format(commands="\n".join(f"  {name:<19} {text}" for name, text in COMMANDS.items())))
        return 0
    if argv[0] not in COMMANDS:
        print(f"error: no command '{argv[0]}': choose one of {', '.join(COMMANDS)}", file=sys.stderr)
        return 2
    try:
        from tunnel_lightning.cli import run

        run(argv)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        said = _sentence(error)
        if said is None or os.environ.get("TUNNEL_TRACEBACK"):
            raise
        print(f"error: {said}", file=sys.stderr)
        return 1
    return 0


def _sentence(error: Exception) -> str | None:
    """What to say of an error without a traceback; nothing of one that only a traceback explains."""
    if said := _said_by_us(error):
        return str(said)
    if type(error).__name__ == "MisconfigurationException":  # Lightning's, which is not imported here
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.filename and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return None


def _said_by_us(error: BaseException | None) -> BaseException | None:
    """The error, or the one behind it, that the package itself raised: its sentence says all, without a traceback."""
    while error is not None:
        trace = error.__traceback__
        while trace is not None and trace.tb_next is not None:
            trace = trace.tb_next
        name = trace.tb_frame.f_globals.get("__name__", "") if trace is not None else ""
        if isinstance(error, SAID) and name.startswith("tunnel_lightning"):
            return error
        error = error.__cause__ or error.__context__
    return None


if __name__ == "__main__":
    sys.exit(main())
