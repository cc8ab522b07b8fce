"""Networks by name: of torchvision and timm, and anyone's as ``module:attribute``."""

from __future__ import annotations

import os
import sys
from functools import reduce
from importlib import import_module
from typing import NamedTuple

import torch
from torch import nn

from tunnel_lightning.taps import untouched_rng

LIBRARIES = ("torchvision", "timm")


class Expected(NamedTuple):
    """What the weights that a library brings were trained on.

    Attributes:
        name: the network, as it was asked for.
        num_classes: outputs; 0 for weights without a head.
        mean: of each channel, for pixels in 0..1.
        std: likewise.
        size: height and width.
    """

    name: str
    num_classes: int
    mean: list[float]
    std: list[float]
    size: int


def expected_by(spec: str) -> Expected | None:
    """What the weights of ``torchvision:NAME`` or ``timm:NAME`` expect; None where there are none.

    Example:
        >>> expected_by("torchvision:resnet18").num_classes
        1000
    """
    library, _, name = spec.partition(":")
    try:
        if library == "timm":
            from timm.models import get_pretrained_cfg

            card = get_pretrained_cfg(name)
            if card is None or not card.has_weights:
                return None
            return Expected(spec, card.num_classes, list(card.mean), list(card.std), card.input_size[1])
        from torchvision.models import get_model_weights

        best = get_model_weights(name).DEFAULT
        shown = best.transforms()
        return Expected(
            spec, len(best.meta["categories"]), list(shown.mean), list(shown.std), int(shown.crop_size[0])
        )
    except (ImportError, ValueError, RuntimeError, AttributeError):  # Named says what is wrong with the name
        return None


def find_network(spec: str) -> nn.Module:
    """The network at ``module:attribute``: a module, or what a call without arguments gives.

    The current folder is searched too. A call draws the same weights each time.

    Raises:
        ValueError: `spec` is nothing of the kind, or no network is there.
        ImportError: there is no such module.

    Example:
        >>> type(find_network("torch.nn:Identity")).__name__
        'Identity'
    """
    place, _, attribute = spec.partition(":")
    if not (place and attribute):
        raise ValueError(
            f"{spec!r} names no network: write torchvision:NAME, timm:NAME or module:attribute, or give a run "
            "folder"
        )
    importable_here()
    try:
        module = import_module(place)
    except ImportError as error:
        raise ImportError(
            f"{spec}: the module {place} can't be imported ({error}): run in the folder it lies in"
        ) from error
    try:
        found = reduce(getattr, attribute.split("."), module)
    except AttributeError:
        offered = [name for name, value in vars(module).items() if _is_network(value, place)]
        raise ValueError(
            f"{spec}: {place} has no {attribute}; networks in it: {', '.join(offered) or 'none'}"
        ) from None
    if callable(found) and not isinstance(found, nn.Module):
        try:
            with untouched_rng():
                torch.manual_seed(0)
                found = found()
        except TypeError as error:
            raise ValueError(
                f"{spec} can't be called without arguments ({error}): name a function that gives the network"
            ) from error
    if not isinstance(found, nn.Module):
        raise ValueError(
            f"{spec} is a {type(found).__name__}: name an nn.Module, or a function that returns one"
        )
    return found


def importable_here() -> None:
    """Let modules in the current folder be imported, as ``python -m`` does; after all others."""
    if not {"", os.getcwd()} & set(sys.path):
        sys.path.append(os.getcwd())


def _is_network(value: object, module: str) -> bool:
    made_there = isinstance(value, type) and issubclass(value, nn.Module) and value.__module__ == module
    return isinstance(value, nn.Module) or made_there
