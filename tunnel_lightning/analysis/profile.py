"""``analyze``: every part of an analysis in turn, finished ones kept, and what came out as one `Profile`."""

from __future__ import annotations

import hashlib
import tempfile
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn

from tunnel_lightning.analysis.context import Context, Progress
from tunnel_lightning.analysis.held import held_set
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.over_time import at_checkpoint, weight_changes, weights_of
from tunnel_lightning.analysis.sets import ImageSet, distinct
from tunnel_lightning.analysis.store import Part, Store, fingerprint
from tunnel_lightning.analysis.streamed import other_set, own_set
from tunnel_lightning.analysis.structure import additions, blocks
from tunnel_lightning.analysis.subject import Subject, reload, subject_of
from tunnel_lightning.analysis.summary import summarise, transfer_rows
from tunnel_lightning.callbacks.places import flops_by_path, layer_infos
from tunnel_lightning.report import depth_profile, write_report
from tunnel_lightning.runs import Analysis, Row, SimilarityMap, Tunnel, load_analysis, write_analysis

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

PARTS_FOLDER = "parts"
Step = Callable[[], Part]


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
    ood: Mapping[str, tuple[Any, Any]] | Sequence[LightningDataModule] = (),
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

    Args:
        model: a network, or a LightningModule with one in it: images [B, ...] -> scores [B, C].
        train: training images the probes are fitted on: a DataLoader, or a data set of (image, label).
        test: images everything is scored on, likewise.
        ood: other sets, ``{name: (train, test)}`` or datamodules; probes are fitted and scored on each.
        num_classes: by default one more than the largest training label.
        name: title of the network.
        dataset: name of the in-distribution set.
        out: folder to write the analysis to, where a later call goes on with its finished parts; by default a
            temporary one that goes with the profile.
        options: what is measured; see :class:`Options`.
        fabric: device, precision and processes; by default the CPU in float32.
        progress: told ``(what, batches done, batches in all)``.
        **settings: fields of :class:`Options`, instead of ``options``.

    Returns:
        The profile.

    Raises:
        ValueError: a set that no probe can be fitted on, images the network can't take, too little memory.

    Example:
        >>> import torch
        >>> from torch.utils.data import TensorDataset
        >>> images = TensorDataset(torch.randn(40, 8), torch.arange(40) % 2)
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))
        >>> profile = analyze(model, images, images, measures=["ridge", "ranks"])
        >>> [layer.name for layer in profile.run.layers if layer.role == "layer"]
        ['0']
    """
    own = ImageSet.from_loaders(dataset, train, test, num_classes)
    subject = subject_of(model, name, own)
    others = (
        [ImageSet.from_loaders(key, *pair) for key, pair in ood.items()]
        if isinstance(ood, Mapping)
        else [ImageSet.of(data) for data in ood]
    )
    own, *others = distinct([own, *others])
    options = options or Options(**settings)
    if out is not None:
        run_parts(subject, own, others, options, Path(out), fabric, progress)
        return Profile.read(out)
    kept = tempfile.TemporaryDirectory()
    run_parts(subject, own, others, options, Path(kept.name), fabric, progress)
    profile = Profile.read(kept.name)
    weakref.finalize(profile, kept.cleanup)
    return profile


def run_parts(
    subject: Subject,
    own: ImageSet,
    others: Sequence[ImageSet],
    options: Options,
    folder: Path,
    fabric: Fabric | None = None,
    progress: Progress | None = None,
    checkpoints: Sequence[Path] = (),
) -> None:
    """Measure everything, part by part, and write the analysis folder.

    A part that was finished before with the same settings, weights and sets is read, not measured.

    Args:
        subject: the network.
        own: the in-distribution set.
        others: the out-of-distribution sets.
        options: what is measured.
        folder: of the analysis.
        fabric: device, precision and processes.
        progress: told how far it is.
        checkpoints: of the same run, in order, for the development; the analysed one is the subject's.
    """
    notes = [note for images in (own, *others) for note in images.check(options.fit_images)]
    context = Context(subject, own, others, options, fabric, progress)
    store = Store(folder / PARTS_FOLDER)
    described = {each.name: [each.num_classes, *map(each.size, ("train", "test"))] for each in (own, *others)}
    key = fingerprint(
        options.settings(),
        str(context.fabric._precision.precision),
        weights_key(subject.network),
        described,
        own.batch_size,
    )
    try:
        parts: dict[str, Part] = {}

        def do(name: str, step: Step, key: str = key) -> None:
            parts[name] = finish(context, store, name, key, step)

        do("profile", lambda: own_set(context))
        for images in others:
            do(f"transfer-{images.name}", lambda images=images: other_set(context, images))  # type: ignore[misc]
        if options.wants("additions"):
            do("additions", lambda: additions(context))
        if options.wants("blocks"):
            do("blocks", lambda: blocks(context))
        for images in (own, *others):
            do(f"held-{images.name}", lambda images=images: held_set(context, images))  # type: ignore[misc]
        flops = flops_by_path(context.model, subject.network, context.example)
        if checkpoints:
            develop(context, store, parts, options, checkpoints)
        rows = [row for part in parts.values() for row in part.rows]
        rows += transfer_rows(context, rows)
        rows.sort(key=lambda r: (r.step, r.dataset, r.split, r.measure, r.variant, r.index))
        extra = {k: v for part in parts.values() for k, v in part.extra.items() if k != "penalty"}
        extra["penalty"] = {k: v for p in parts.values() for k, v in p.extra.get("penalty", {}).items()}
        extra["notes"] = notes + [p.extra["note"] for p in parts.values() if "note" in p.extra]
        seconds = {
            f"{name}: {what}" if what != "all" else name: round(value, 2)
            for name, part in parts.items()
            for what, value in part.seconds.items()
        }
        if context.fabric.is_global_zero:
            write(
                folder,
                context,
                rows,
                parts,
                summarise(context, rows, extra, seconds, flops.get("", 0)),
                flops,
            )
        context.fabric.barrier("written")
    finally:
        context.taps.remove()


def finish(context: Context, store: Store, name: str, key: str, step: Step) -> Part:
    """A part, from the store where it was finished before; kept there when it is now."""
    found = store.load(name, key)
    if found is not None:
        context.progress(f"{name}: finished before", 1, 1)
        return found
    context.seconds = {}
    start = time.perf_counter()
    part = step()
    part.seconds = {"all": time.perf_counter() - start, **context.seconds}
    if context.fabric.is_global_zero:
        store.save(name, key, part)
    context.fabric.barrier(name)  # the others look for the next part only when this one is there
    return part


def develop(
    context: Context, store: Store, parts: dict[str, Part], options: Options, checkpoints: Sequence[Path]
) -> None:
    """The profile at every checkpoint; the network holds the analysed one again afterwards."""
    subject = context.subject
    assert subject.run is not None, "only a run has checkpoints"
    analysed, step = subject.run / subject.checkpoint, subject.step
    before: dict[str, Tensor] | None = None
    try:
        for path in checkpoints:
            reload(subject, path)
            name = f"step-{subject.step}"
            key = fingerprint(options.settings(), weights_key(subject.network), context.own.name)
            part = Part()
            if subject.step != step:
                part = finish(context, store, name, key, lambda: at_checkpoint(context))
            after = weights_of(context)
            if before is not None:
                part.rows += weight_changes(context, before, after)
            parts[name] = part
            before = after
    finally:
        reload(subject, analysed)


def write(
    folder: Path,
    context: Context,
    rows: list[Row],
    parts: Mapping[str, Part],
    summary: dict[str, Any],
    flops: Mapping[str, int],
) -> None:
    """Write the files of the analysis and its page."""
    arrays = {key: array for part in parts.values() for key, array in part.arrays.items()}
    maps = {
        key.removesuffix("/value"): SimilarityMap(
            [str(n) for n in arrays[key.replace("/value", "/names")]],
            array,
            arrays[key.replace("/value", "/se")],
        )
        for key, array in arrays.items()
        if key.endswith("/value")
    }
    write_analysis(
        folder,
        rows,
        layer_infos(context.taps, flops),
        maps,
        {key: array for key, array in arrays.items() if "|" in key},
        {key.removeprefix("tsne/"): array for key, array in arrays.items() if key.startswith("tsne/")},
        summary,
    )
    write_report([folder], folder / "report.html")


def weights_key(network: nn.Module) -> str:
    """A short text that changes with any of a network's weights."""
    digest = hashlib.sha256()
    for name, tensor in network.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
