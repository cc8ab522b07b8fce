"""Checkpoints and files of weights: found, read without running anything, and put into a network."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.callbacks.run_folder import read_checkpoint

FOLDER = "checkpoints"
BEST = "best.ckpt"


class Refused(ValueError):
    """A file that could run code, were it opened."""


def checkpoints_of(run: str | Path) -> list[Path]:
    """The checkpoints of a run in the order of their steps, one for each step: ``best.ckpt`` where it stands alone.

    Those that can't be read, as one that was being written when its run was killed, are left out: see
    :func:`torn_in`.

    Raises:
        FileNotFoundError: there is none.
        ValueError: one could run code, or none can be read.
    """
    found, torn = _read_all(Path(run))
    if not found:
        raise next(iter(torn.values()), None) or _none_yet(Path(run))
    return [path for _, path in sorted(found.items())]


def torn_in(run: str | Path) -> list[Path]:
    """The files among a run's checkpoints that can't be read as such.

    Raises:
        ValueError: one could run code.
    """
    return list(_read_all(Path(run))[1])


def _read_all(run: Path) -> tuple[dict[int, Path], dict[Path, Exception]]:
    """The checkpoints by their steps, and what is wrong with the others."""
    found: dict[int, Path] = {}
    torn: dict[Path, Exception] = {}
    for path in sorted((run / FOLDER).glob("*.ckpt"), key=lambda path: (path.name == BEST, path.name)):
        try:
            found.setdefault(int(read_run_checkpoint(path)["global_step"]), path)
        except Refused:
            raise
        except (ValueError, OSError) as error:
            torn[path] = error
    return found, torn


def find_checkpoint(run: Path, ckpt: str | Path) -> Path:
    """The checkpoint ``best`` or ``last`` of a run, or the one at a path from here or from the run folder.

    Raises:
        FileNotFoundError: there is none.
    """
    folder = run / FOLDER
    if ckpt in ("best", "last"):
        candidates = [folder / f"{ckpt}.ckpt"]
    else:
        candidates = [Path(ckpt), run / ckpt, folder / ckpt]
    for path in candidates:
        if path.is_file():
            return path
    there = sorted(path.name for path in folder.glob("*.ckpt"))
    if not there:
        raise _none_yet(run)
    raise FileNotFoundError(
        f"there is no checkpoint {candidates[0]}: {folder} holds {', '.join(there)}; choose one of them"
    )


def _none_yet(run: Path) -> FileNotFoundError:
    return FileNotFoundError(
        f"{run} has no checkpoint yet: {run / FOLDER} holds none; wait for the end of its first epoch, or train "
        f"it again with `fit --config {run / 'config.yaml'}`"
    )


def read_run_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint that a Trainer wrote: weights and plain values, nothing that could run.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it can't be read, is something else, or holds more than weights and plain values.
    """
    try:
        return read_checkpoint(path)
    except ValueError as error:
        with path.open("rb") as file:
            bare = file.read(1) == pickle.PROTO  # no archive with tensors in it
        if bare or isinstance(error.__cause__, pickle.UnpicklingError):
            raise _refused(path) from error
        raise


def read_weights(path: Path) -> dict[str, Tensor]:
    """Tensors by name: of a state dict, or of the one in a Lightning checkpoint.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it can't be read, or holds something else.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file of weights {path}: give a state dict or a checkpoint")
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise _refused(path) from error
    except Exception as error:  # a damaged file raises whatever its bytes happen to say
        why = next(iter(str(error).splitlines()), "")
        raise ValueError(
            f"{path} can't be read as weights ({why}): save them again with torch.save"
        ) from error
    state = state.get("state_dict", state) if isinstance(state, Mapping) else None
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise ValueError(f"{path} holds no tensors by name: give what model.state_dict() returns, saved")
    return dict(state)


def _refused(path: Path) -> Refused:
    return Refused(
        f"{path} is refused: it is no plain file of weights, and opening it could run code that it brings; give a "
        "checkpoint that `fit` made, or the state dict alone"
    )


def load_weights(targets: Sequence[nn.Module], state: Mapping[str, Tensor], path: Path) -> None:
    """Put tensors into the first of the modules whose names they have, behind a common prefix if need be.

    What the file holds beyond that (a loss, metrics) is left out.

    Args:
        targets: a model, and networks in it.
        state: tensors by name.
        path: where they are from, for errors.

    Raises:
        ValueError: names are missing, shapes differ, or the network has no weights.

    Example:
        >>> model = nn.Linear(2, 3)
        >>> load_weights([model], {f"net.{k}": v * 0 for k, v in model.state_dict().items()}, Path("x.ckpt"))
        >>> model.bias.sum().item()
        0.0
    """
    for target in targets:
        names = list(target.state_dict())
        if not names:
            raise ValueError(
                f"{path} is not needed: {type(target).__name__} has no weights; leave the file out"
            )
        for prefix in sorted(
            {key.removesuffix(names[0]) for key in state if key.endswith(names[0])}, key=len
        ):
            if all(prefix + name in state for name in names):
                try:
                    target.load_state_dict({name: state[prefix + name] for name in names})
                except RuntimeError as error:
                    detail = str(error).split("\n\t")[-1].strip()
                    raise ValueError(f"{path} is of another network or other classes: {detail}") from error
                return
    network = targets[-1]
    missing = [name for name in network.state_dict() if not any(key.endswith(name) for key in state)]
    raise ValueError(
        f"{path} does not hold the weights of {type(network).__name__}: it has {', '.join(list(state)[:3])}, ... "
        f"and the network needs {', '.join((missing or list(network.state_dict()))[:3])}, ...; give the file of "
        "this network"
    )


def epochs_done(state: Mapping[str, Any]) -> int:
    """Epochs that were completed when a checkpoint was written: 1 at the end of the first.

    Lightning's own ``epoch`` says 0 there.
    """
    try:
        return int(state["loops"]["fit_loop"]["epoch_progress"]["current"]["processed"])
    except KeyError:
        return int(state.get("epoch", 0))
