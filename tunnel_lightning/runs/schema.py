"""What a row of the profile table and of the layer list is, and the names every part agrees on."""

from __future__ import annotations

from typing import NamedTuple

SCHEMA_VERSION = 1
"""Version of the columns and names in ``profile.csv``; it is in the first line of the file."""

PROFILE_FILE = "profile.csv"
LAYERS_FILE = "layers.csv"
MANIFEST_FILE = "manifest.json"

INPUT = "input"
"""Name of row 0: the raw pixels."""

NETWORK = "network"
"""Name of the row after the last layer: the network's own output."""


class RunError(ValueError):
    """A run folder, or a file in it, is missing or cannot be read; the message says where and what to do."""


class Row(NamedTuple):
    """One measured value of one layer: a line of the profile table.

    Attributes:
        run_id: the run, as ``name/version_N``.
        step: optimizer steps done when it was measured.
        epoch: the epoch it was measured in.
        experience: task of a continual run, -1 for none.
        split: ``train``, ``val`` or ``test``.
        dataset: the set the layer was shown, for instance ``Glyphs``.
        layer: path of the module; ``input`` for the raw pixels, ``network`` for the network's own output.
        index: 1, 2, ... in execution order; 0 for the raw pixels.
        measure: what was measured, for instance ``probe_accuracy``.
        variant: which definition of it, for instance ``ridge``.
        value: the value; accuracies are fractions of 1.
        se: its standard error, NaN for none.
        n: how many images it rests on.
        dim: how many columns the layer's features had.

    Example:
        >>> Row("mlp/version_0", 90, 1, -1, "val", "Glyphs", "head", 3, "rank_cov", "rtol=1e-3", 12.0).value
        12.0
    """

    run_id: str
    step: int
    epoch: int
    experience: int
    split: str
    dataset: str
    layer: str
    index: int  # type: ignore[assignment]  # the column's name, over tuple.index
    measure: str
    variant: str
    value: float
    se: float = float("nan")
    n: int = 0
    dim: int = 0


class LayerInfo(NamedTuple):
    """One place in the network where features are read: a line of ``layers.csv``.

    Attributes:
        index: as in `Row`.
        name: as `Row.layer`.
        kind: class of the module, for instance ``Conv2d``.
        shape: shape of one image's output, as ``64x8x8``.
        dim: columns of the features after pooling.
        parameters: parameters of the module itself.
        flops: floating-point operations for one image.
        role: ``input``, ``layer`` or ``head``.
    """

    index: int  # type: ignore[assignment]  # the column's name, over tuple.index
    name: str
    kind: str
    shape: str
    dim: int
    parameters: int
    flops: int
    role: str
