"""Classes and functions that a file names by their path."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def load(path: str) -> Any:
    """The object at a dotted path, imported.

    Raises:
        ValueError: there is none.

    Example:
        >>> load("collections.OrderedDict").__name__
        'OrderedDict'
        >>> load("OrderedDict")
        Traceback (most recent call last):
        ValueError: 'OrderedDict' can't be imported: give a class path, such as package.module.Name
    """
    module, _, name = path.rpartition(".")
    if not module or not name:
        raise ValueError(f"{path!r} can't be imported: give a class path, such as package.module.Name")
    try:
        return getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise ValueError(f"{path!r} can't be imported: {error}") from error
