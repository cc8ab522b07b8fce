"""The network in a LightningModule, and the list of its layers for the run folder."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path

from torch import Tensor, nn

from tunnel_lightning.runs import LayerInfo, write_layers, write_manifest
from tunnel_lightning.taps import Tap, Taps
from tunnel_lightning.taps.costs import costs


def sole_child(module: nn.Module) -> nn.Module:
    """The one child that holds all parameters of ``module``, or ``module`` itself.

    It gives layers the names they have in the network, not in the LightningModule around it.
    """
    children = [child for child in module.children() if any(True for _ in child.parameters())]
    own = any(True for _ in module.parameters(recurse=False))
    return children[0] if len(children) == 1 and not own and len(list(children[0].children())) > 0 else module


def flops_by_path(model: nn.Module, network: nn.Module, images: Tensor) -> dict[str, int]:
    """FLOPs of one image by path in ``network``, a part of the ``model`` that is called.

    Of a network that is none of the model's modules (one kept in a plain list), those of the whole model alone.
    """
    found = costs(model, images)
    path = next((path for path, module in model.named_modules() if module is network), None)
    if path is None:
        return {"": found.get("", 0)}
    prefix = f"{path}." if path else ""
    return {name.removeprefix(prefix): flops for name, flops in found.items() if name.startswith(prefix)}


def all_places(taps: Taps) -> list[Tap]:
    """The raw pixels, the layers, the classifier."""
    return [taps.input, *taps.layers, *([taps.head] if taps.head else [])]


def layer_infos(places: Iterable[Tap], flops: Mapping[str, int]) -> list[LayerInfo]:
    """The lines of ``layers.csv``."""
    return [
        LayerInfo(
            tap.index,
            tap.name,
            tap.kind,
            "x".join(map(str, tap.shape)),
            tap.dim,
            tap.parameters,
            flops.get(tap.module, 0) if tap.module else 0,
            tap.role,
        )
        for tap in places
    ]


def write_places(folder: Path, taps: Taps, flops: Mapping[str, int]) -> None:
    """Write ``layers.csv``, and the hook points into the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_layers(folder, layer_infos(all_places(taps), flops))
    write_manifest(folder, taps={**asdict(taps.spec), "hook_points": [tap.name for tap in taps.layers]})
