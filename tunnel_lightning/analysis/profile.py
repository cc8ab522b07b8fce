"""``analyze`` a network at hand, as in a notebook, and what comes out: a ``Profile``."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule
from torch import nn

from tunnel_lightning.analysis.base import add_transfer
from tunnel_lightning.analysis.context import Context, Progress
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.parts import WHAT, is_ours, perform
from tunnel_lightning.analysis.places import check_place
from tunnel_lightning.analysis.sets import ImageSet, distinct
from tunnel_lightning.analysis.subject import subject_of
from tunnel_lightning.report import depth_profile, write_report
from tunnel_lightning.runs import Analysis, Row, Tunnel, load_analysis
from tunnel_lightning.runs.analysis import ANALYSIS_FOLDER

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Profile(Analysis):
    """The depth profile of a network: an analysis folder, read.

    Example:
        >>> profile = Profile.read("runs/mlp/version_0")  # doctest: +SKIP
        >>> profile.tunnel()["id95"].layer  # doctest: +SKIP
    """

    @classmethod
    def read(cls, folder: str | Path) -> Profile:
        """The profile in a run folder or an analysis folder."""
        found = load_analysis(folder)
        return cls(found.path, found.run, found.summary)

    @property
    def rows(self) -> list[Row]:
        """Every row of the profile table."""
        return self.run.rows

    def tunnel(self) -> dict[str, Tunnel]:
        """Where the tunnel starts, by each of the three rules."""
        return self.run.tunnel()

    def to_pandas(self) -> pd.DataFrame:
        """The profile table as a pandas DataFrame."""
        return self.run.to_pandas()

    def plot(self) -> Figure:
        """The depth profile as a matplotlib figure."""
        return depth_profile(self.run)

    def report(self, path: str | Path) -> Path:
        """Write the page to a file, and return its path."""
        return write_report([self.path], path)


def analyze(
    model: nn.Module,
    train: Any,
    test: Any,
    ood: Mapping[str, tuple[Any, Any]] | Sequence[LightningDataModule] | None = None,
    *,
    num_classes: int | None = None,
    name: str | None = None,
    dataset: str = "data",
    out: str | Path | None = None,
    options: Options | None = None,
    fabric: Fabric | None = None,
    progress: Progress | None = None,
    **settings: Any,
) -> Profile:
    """Measure every layer of a trained network.

    The network is called in evaluation mode and left as it was, weights and random states included.

    Finished parts are taken up again where network, settings, sizes of the sets and their first images are the
    same: delete ``parts/`` in the folder to measure anew after any other change of the images.

    Args:
        model: a network, or a LightningModule with one in it: images [B, ...] -> scores [B, C].
        train: training images the probes are fitted on: a DataLoader, or a data set of (image, label).
        test: images everything is scored on, likewise.
        ood: other sets, ``{name: (train, test)}`` or datamodules; probes are fitted and scored on each. Those of
            this package are shown at the image size of ``train`` from here on. By default Glyphs where these are
            images; an empty list for none.
        num_classes: by default one more than the largest training label.
        name: title of the network.
        dataset: name of the in-distribution set; a transfer set of the same name is told apart by a ``-2`` behind it.
        out: folder to write the analysis to, where a later call goes on with its finished parts; by default a
            temporary one that goes with the profile.
        options: what is measured; see :class:`Options`.
        fabric: device, precision and processes; by default the CPU in float32.
        progress: told ``(what, done, in all)``; of each part that is done a line, with 0 in all.
        **settings: fields of :class:`Options`, in the place of those of ``options``.

    Returns:
        The profile.

    Raises:
        ValueError: a set that no probe can be fitted on, images the network can't take, other sets in no form that
            is known, too little memory, or ``out`` holds something else.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.randn(40, 8), torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> profile = analyze(model, images, images, measures=["ridge", "ranks"])
        >>> [layer.name for layer in profile.run.layers if layer.role == "layer"]
        ['0']
    """
    check_sets(ood)
    if out is not None:
        check_place(Path(out), WHAT, is_ours, ANALYSIS_FOLDER)
    own = ImageSet.from_loaders(dataset, train, test, num_classes)
    subject = subject_of(model, name, own)
    if isinstance(ood, Mapping):
        others = [ImageSet.from_loaders(key, *pair) for key, pair in ood.items()]
    else:
        shape = own.image_shape
        add_transfer(subject, () if ood is None and len(shape) != 3 else ood, shape, None)
        others = [ImageSet.of(data) for data in subject.ood]
    own, *others = distinct([own, *others])
    options = replace(options or Options(), **settings)
    kept = tempfile.TemporaryDirectory() if out is None else None
    place = kept.name if kept is not None else str(out)
    folder = Path(fabric.broadcast(place) if fabric is not None else place)  # the first process's
    try:
        with Context(subject, own, others, options, fabric, progress) as context:
            perform(context, folder)
        if kept is not None and fabric is not None:
            folder = own_copy(folder, kept.name, fabric)
    except BaseException:
        if kept is not None:
            kept.cleanup()
        raise
    profile = Profile.read(folder)
    if kept is not None:
        _ = profile.run.layers  # for whoever keeps the run alone
        weakref.finalize(profile, kept.cleanup)
    return profile


def check_sets(ood: Any) -> None:
    """Refuse transfer sets that are given in no form that is known.

    Raises:
        ValueError: it tells the forms.

    Example:
        >>> check_sets("Digits")
        Traceback (most recent call last):
            ...
        ValueError: ood is 'Digits': give {name: (train, test)}, a list of datamodules, or an empty list for none
    """
    wrong, forms = "", "{name: (train, test)}, a list of datamodules, or an empty list for none"
    if isinstance(ood, Mapping):
        pairs = (key for key, pair in ood.items() if not (isinstance(pair, (tuple, list)) and len(pair) == 2))
        wrong = next((f"ood[{key!r}] is no pair" for key in pairs), "")
    elif isinstance(ood, (tuple, list)):
        others = (each for each in ood if not isinstance(each, LightningDataModule))
        wrong = next((f"ood has {_short(each)} in it" for each in others), "")
    elif ood is not None:
        wrong = f"ood is {_short(ood)}"
    if wrong:
        raise ValueError(f"{wrong}: give {forms}")


def _short(value: object) -> str:
    return repr(value) if isinstance(value, str) else f"a {type(value).__name__}"


def own_copy(folder: Path, place: str, fabric: Fabric) -> Path:
    """The first process's folder, and a copy of it for each other one: it goes when the first drops its profile."""
    if not fabric.is_global_zero:
        folder = shutil.copytree(folder, Path(place), dirs_exist_ok=True)
    fabric.barrier("copied")
    return folder
