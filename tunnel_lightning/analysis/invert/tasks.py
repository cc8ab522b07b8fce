"""The parts of an inversion: each layer of each network on each set of images, kept as it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
from lightning.fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.invert.options import Options
from tunnel_lightning.analysis.invert.recover import Recovered, invert
from tunnel_lightning.analysis.invert.scores import scores_of
from tunnel_lightning.analysis.invert.targets import Pixels, Targets
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part, Store, fingerprint, tensors_key
from tunnel_lightning.report.progress import Bars
from tunnel_lightning.runs import Row, package_versions
from tunnel_lightning.taps import Tap

TRAINED, UNTRAINED, NOISE_NETWORK = "trained", "untrained", "noise"
"""Names of the networks: the subject, itself before training, and its twin that learnt noise by heart."""

IMAGES, CURVES = "images", ("embedding", "input")


@dataclass(frozen=True)
class Net:
    """A network that is inverted.

    Attributes:
        name: ``trained``, ``untrained`` or ``noise``.
        network: what has the layers.
        model: what is called on images, or None where that is the same.
        origin: where its weights are from, in words.
    """

    name: str
    network: nn.Module
    origin: str
    model: nn.Module | None = None


@dataclass
class Work:
    """What every part works with.

    Attributes:
        subject: the trained network, with its sets.
        own: its own set.
        options: what is asked.
        pixels: how images are made of pixels.
        layers: that are inverted, in the order of execution.
        fabric: the machine.
        store: where finished parts are kept.
        bars: told how far the part at hand is.
        notes: what a reader must know.
        seconds: how long each part took.
        kept: how many parts were there already.
    """

    subject: Subject
    own: ImageSet
    options: Options
    pixels: Pixels
    layers: list[Tap]
    fabric: Fabric
    store: Store
    bars: Bars
    notes: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: int = 0

    def finish(self, name: str, title: str, key: Sequence[Any], make: Callable[[], Part]) -> Part:
        """A part, from the store where it was finished before with the same key; kept there when it is done now."""
        text = fingerprint(package_versions(), *key)
        found = self.store.load(name, text)
        if found is None:
            start = time.perf_counter()
            found = make()
            found.seconds = {title: time.perf_counter() - start}
            self.store.save(name, text, found)
            self.bars(f"{found.seconds[title]:7.1f} s  {title}", 0, 0)
        else:
            self.kept += 1
            self.bars(f"     kept  {title}", 0, 0)
        self.seconds |= found.seconds
        for note in found.extra.get("notes", ()):
            self.note(note)
        return found

    def note(self, text: str) -> None:
        """Add what a reader must know, once."""
        if text and text not in self.notes:
            self.notes.append(text)

    def told(self, what: str) -> Callable[[str, int, int], None]:
        """What a descent is told its progress with."""
        return lambda _, done, total: self.bars(what, done, total)


def recovered(work: Work, net: Net, targets: Targets) -> dict[str, NDArray[Any]]:
    """Arrays of all layers of a network on a set of images, by name: ``QUANTITY/SET/NETWORK``.

    ``images`` are ``[L, N, S, C, H, W]``, curves ``[L, N, S, P]``, all others ``[L, N, S]``; ``steps`` is ``[P]``.
    """
    weights, shown = tensors_key(net.network.state_dict()), tensors_key({"pixels": targets.pixels})
    parts = []
    for layer in work.layers:
        title = f"{layer.name}, {net.name}, {targets.name}"
        key = (weights, shown, str(net.network), layer.name, asdict(work.options.how), asdict(work.pixels))
        settings = (work.options.starts, work.options.sigma, work.options.seed)
        name = f"{targets.name}-{net.name}-{layer.index:03d}-{layer.name}"
        make = partial(_one, work, net, targets, layer, title)
        parts.append(work.finish(name, title, (*key, *settings), make))
    tag = f"{targets.name}/{net.name}"
    names = [name for name in parts[0].arrays if name != "x/steps"]
    found = {
        f"{name.removeprefix('x/')}/{tag}": np.stack([part.arrays[name] for part in parts]) for name in names
    }
    return {**found, "steps": parts[0].arrays["x/steps"]}


def _one(work: Work, net: Net, targets: Targets, layer: Tap, title: str) -> Part:
    options = work.options
    found = invert(
        net.network,
        [layer],
        targets.pixels,
        options.how,
        mean=work.pixels.mean,
        std=work.pixels.std,
        model=net.model,
        starts=options.starts,
        seed=options.seed,
        sigma=options.sigma,
        memory_gb=options.memory_gb,
        progress=work.told(title),
    )
    return Part(
        arrays={f"x/{name}": np.asarray(value) for name, value in arrays_of(found, targets.pixels).items()}
    )


def arrays_of(found: Recovered, originals: Tensor) -> dict[str, NDArray[Any]]:
    """What is kept of one layer: pictures ``[N, S, C, H, W]``, curves ``[N, S, P]`` and scores ``[N, S]``.

    Curves and the two distances of the reference, like all shares, are relative to the norm of what they are from.
    """
    scores = {name: value[0] for name, value in vars(scores_of(found, originals)).items()}
    norm = {
        "embedding": found.embedding_norm[0].double().numpy()[:, None],
        "input": found.input_norm.double().numpy()[:, None],
    }
    with np.errstate(divide="ignore", invalid="ignore"):
        for name in CURVES:
            scores[f"reference_{name}_share"] = scores[f"reference_{name}"] / norm[name]
        curves = {
            f"{name}_curve": (getattr(found, name)[0].double().numpy() / norm[name][..., None]).astype(
                np.float32
            )
            for name in CURVES
        }
    return {"images": found.images[0].numpy(), "steps": found.steps.numpy(), **curves, **scores}


def pictures(images: NDArray[Any]) -> NDArray[np.uint8]:
    """Pixels ``[..., C, H, W]`` as pictures uint8 ``[..., H, W, C]``; what is out of range is shown at its end.

    Example:
        >>> pictures(np.full((1, 1, 1, 1), 1.7)).item()
        255
    """
    made = np.round(255 * np.clip(np.nan_to_num(images), 0, 1)).astype(np.uint8)
    return np.ascontiguousarray(np.moveaxis(made, -3, -1))


def rows_of(
    work: Work, arrays: Mapping[str, NDArray[Any]], targets: Targets, nets: Sequence[Net]
) -> list[Row]:
    """A row for each quantity, layer and network: the mean over images and starts.

    Its standard error is that of the mean over images, of which each counts once with the mean of its starts.
    """
    subject, found = work.subject, []
    for net in nets:
        for key, value in arrays.items():
            quantity, _, rest = key.partition("/")
            if rest != f"{targets.name}/{net.name}" or value.ndim != 3:
                continue
            means = value.astype(np.float64).mean(2)
            for layer, of in zip(work.layers, means, strict=True):
                se = float(of.std(ddof=1) / np.sqrt(len(of))) if len(of) > 1 else float("nan")
                found.append(
                    Row(
                        subject.run_id, subject.step, subject.epoch, -1, "test", targets.name, layer.name,
                        layer.index, f"inversion_{quantity}", f"{work.options.recipe}@{net.name}",
                        float(of.mean()), se, len(of), int(np.prod(layer.shape)),
                    )
                )  # fmt: skip
    return found
