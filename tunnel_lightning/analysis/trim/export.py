"""A cut network as files: a checkpoint, graphs of torch.export and ONNX that were checked, and a model card."""

from __future__ import annotations

import copy
import os
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch
import torch
import yaml  # type: ignore[import-untyped]
from torch import Tensor, nn

from tunnel_lightning.analysis.base import LINKED
from tunnel_lightning.analysis.trim.card import (
    CHECKPOINT_FILE,
    GRAPH_FILE,
    ONNX_FILE,
    Card,
    card_text,
    loading_code,
)
from tunnel_lightning.backbones import Cut
from tunnel_lightning.backbones.cut import Shifted
from tunnel_lightning.backbones.graph import as_written
from tunnel_lightning.module import CHECKPOINT_KEY, Classifier
from tunnel_lightning.runs import machine_info, package_versions, write_manifest
from tunnel_lightning.surgery import Severed
from tunnel_lightning.taps import untouched_rng
from tunnel_lightning.taps.resolve import KINDS

TOLERANCE = 1e-4
BATCHES = (1, 3, 256)
CARD_FILE, WEIGHTS_FILE = "MODEL_CARD.md", "weights.pt"
FILES = (CHECKPOINT_FILE, WEIGHTS_FILE, GRAPH_FILE, ONNX_FILE, "config.yaml", "manifest.json", CARD_FILE)
"""All that may be written, in the order in which they take their places."""

EXTRA = "run `pip install 'tunnel-lightning[export]'`"
_EXPORTERS = ("onnx", "onnxscript", "onnxruntime")


class Difference(NamedTuple):
    """How far one network's answers are from another's.

    Attributes:
        scores: largest absolute difference of scores, in units of the largest absolute score, or of 1 where that is
            less.
        probabilities: largest absolute difference of their softmax.
        labels: images with another answer whose two best scores are no tie within the tolerance.
    """

    scores: float
    probabilities: float
    labels: int

    @property
    def within(self) -> bool:
        """Whether both differences are at most 1e-4, and no answer is another."""
        return self.scores <= TOLERANCE and self.probabilities <= TOLERANCE and not self.labels


@dataclass
class Exported:
    """What was written.

    Attributes:
        files: in the order of `FILES`.
        differences: of each exported graph from PyTorch, the largest over the batches tried.
        notes: what was not written and why, in whole sentences.
    """

    files: list[Path] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def difference(found: Tensor, wanted: Tensor) -> Difference:
    """How far scores [N, C] are from those wanted.

    Example:
        >>> difference(torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]]))
        Difference(scores=0.0, probabilities=0.0, labels=0)
    """
    found, wanted = found.double(), wanted.double()
    size = max(1.0, float(wanted.abs().amax()))
    scores = float((found - wanted).abs().amax()) / size
    probabilities = float((found.softmax(1) - wanted.softmax(1)).abs().amax())
    best = wanted.topk(2, dim=1).values
    other = (found.argmax(1) != wanted.argmax(1)) & (best[:, 0] - best[:, 1] > 2 * TOLERANCE * size)
    if scores != scores or probabilities != probabilities:  # not a number: as far as can be
        return Difference(float("inf"), float("inf"), len(wanted))
    return Difference(scores, probabilities, int(other.sum()))


def between(
    mean: Sequence[float], std: Sequence[float], own_mean: Sequence[float], own_std: Sequence[float]
) -> tuple[list[float], list[float]]:
    """``mean`` and ``std`` of a `Cut` whose images are normalised by another set's statistics than its network's.

    Args:
        mean: that the network is used to, of each channel, of pixels in 0..1.
        std: likewise.
        own_mean: that the images come with.
        own_std: likewise.

    Example:
        >>> between([0.5], [0.25], [0.25], [0.5])
        ([0.5], [0.5])
    """
    pairs = list(zip(mean, std, own_mean, own_std, strict=True))
    return [(m - own) / scale for m, _, own, scale in pairs], [s / scale for _, s, _, scale in pairs]


def config_of(network: Cut, config: Mapping[str, Any]) -> dict[str, Any]:
    """A run's config with the cut network in the place of the whole: a run folder's, for every command.

    It runs in float32, as the figures do. Layers watched by globs become the default ones, for the names have moved.

    Args:
        network: the cut network.
        config: of the run, with the data that the cut network is for.
    """
    made = copy.deepcopy(dict(config))
    arguments = {name: value for name, value in network.init_args.items() if name not in LINKED}
    made["model"] = {**(made.get("model") or {})}
    made["model"]["backbone"] = {"class_path": "tunnel_lightning.backbones.Cut", "init_args": arguments}
    made["trainer"] = {**(made.get("trainer") or {}), "precision": "32-true"}
    taps = (made.get("monitor") or {}).get("taps") or {}
    layers = taps.get("layers", "default")
    if any(each not in KINDS for each in ([layers] if isinstance(layers, str) else layers)):
        taps["layers"] = "default"
    made["name"] = f"{made.get('name') or 'run'}-cut"
    if "ckpt_path" in made:
        made["ckpt_path"] = None
    return made


@untouched_rng()
def write_network(
    folder: str | Path,
    network: Cut | Severed,
    images: Tensor,
    card: Card,
    config: Mapping[str, Any] | None = None,
    step: int = 0,
    epoch: int = 0,
    normalise: bool = False,
    onnx: bool = True,
) -> Exported:
    """Write a cut network for those who use it; files of an earlier call are replaced when all are there.

    - ``checkpoints/last.ckpt``, ``config.yaml``, ``manifest.json``: a run folder, for every command of the package,
      and for ``Classifier.load_from_checkpoint`` (of a `Cut`; the config where the run's is given).
    - ``weights.pt``: the state of a `Severed`, which no file can make again.
    - ``cut.pt2``: of torch.export, with any number of images, loaded back and compared.
    - ``cut.onnx``: with any number of images, checked by onnx and compared under onnxruntime on batches of 1, 3 and
      256. A graph whose scores differ from PyTorch's by more than 1e-4 of the largest score (of 1 where that is
      less), or its probabilities by more than 1e-4, or any answer that is no tie, is not written; the notes say so.
    - ``MODEL_CARD.md``.

    Args:
        folder: made if need be.
        network: what to write; it stays as it is.
        images: real ones [N, C, H, W], as the data gives them, N at least 1; 256 are best.
        card: what the card says.
        config: of the run it is of, with the data that it is for; see `config_of`.
        step: optimizer steps done.
        epoch: epochs done.
        normalise: the graphs take pixels in 0..1 and normalise them with the card's ``mean`` and ``std``.
        onnx: whether to write ``cut.onnx``.

    Returns:
        What was written, how far it is from PyTorch, and what was not.

    Raises:
        ValueError: no images, or ``normalise`` without ``mean`` and ``std``.
    """
    folder = Path(folder)
    if not len(images):
        raise ValueError("the cut network is checked on images before it is written; give at least one.")
    if normalise and not card.mean:
        raise ValueError(
            f"normalise needs the mean and deviation of {card.data}, which its data does not tell."
        )
    network = copy.deepcopy(network).cpu().eval()
    images = images.detach().cpu().float()
    beside = folder / "network.tmp"
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "checkpoints").mkdir(parents=True)
    done = Exported()
    try:
        _write_weights(beside, network, card, config, step, epoch)
        _write_graphs(beside, network, images, card, normalise, onnx, done)
        versions = {**package_versions(), **{name: _version(name) for name in _EXPORTERS}}
        text = card_text(
            card,
            network.input_shape,
            loading_code(beside, network),
            _checked(done, network),
            versions,
            normalise,
        )
        (beside / CARD_FILE).write_text(text, encoding="utf-8")
        (folder / "checkpoints").mkdir(exist_ok=True)
        for name in FILES:
            if (beside / name).exists():
                os.replace(beside / name, folder / name)
                done.files.append(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
        if not any((folder / "checkpoints").iterdir()):
            (folder / "checkpoints").rmdir()
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return done


def _write_weights(
    beside: Path, network: Cut | Severed, card: Card, config: Mapping[str, Any] | None, step: int, epoch: int
) -> None:
    state = network.state_dict()
    if isinstance(network, Severed):
        torch.save(state, beside / WEIGHTS_FILE)
        return
    checkpoint = {
        "epoch": epoch,
        "global_step": step,
        "pytorch-lightning_version": lightning.pytorch.__version__,
        "state_dict": {f"backbone.{name}": value for name, value in state.items()},
        CHECKPOINT_KEY: Classifier(network).config,
    }
    torch.save(checkpoint, beside / CHECKPOINT_FILE)
    seed = None
    if config is not None:
        made = config_of(network, config)
        seed = made.get("seed_everything")
        text = yaml.safe_dump(made, sort_keys=False, allow_unicode=True)
        (beside / "config.yaml").write_text(text, encoding="utf-8")
    origin = {"run_id": card.run_id, "checkpoint": card.checkpoint, "layer": card.layer, "index": card.index}
    write_manifest(beside, versions=package_versions(), machine=machine_info(), seed=seed, cut_of=origin)


def _write_graphs(
    beside: Path,
    network: Cut | Severed,
    images: Tensor,
    card: Card,
    normalise: bool,
    onnx: bool,
    done: Exported,
) -> None:
    shown, graph = images, nn.Sequential(network)
    if normalise:
        shift = Shifted(list(card.mean), list(card.std))
        shown, graph = images * shift.std + shift.mean, nn.Sequential(shift, network)
    graph.eval()
    wanted = []
    for size in BATCHES:
        batch = _batch(shown, size)
        with as_written(graph):
            wanted.append((batch, graph(batch)))

    def settle(name: str, run: Callable[[Tensor], Tensor]) -> None:
        found = [difference(run(batch), scores) for batch, scores in wanted]
        largest = Difference(*(max(each) for each in zip(*found, strict=True)))
        if largest.within:
            done.differences[name] = largest
            return
        (beside / name).unlink()
        done.notes.append(
            f"{name} is not written: its scores differ from PyTorch's by {largest.scores:.1e} of the largest and its "
            f"probabilities by {largest.probabilities:.1e}, and {largest.labels} answers are others; at most "
            f"{TOLERANCE:.0e} and none are let be."
        )

    try:
        program = _program(graph, _batch(shown, 2))
        torch.export.save(program, beside / GRAPH_FILE)
        loaded = torch.export.load(beside / GRAPH_FILE).module()
        settle(GRAPH_FILE, lambda x: loaded(x).detach())
    except Exception as error:  # torch.export runs the network on stand-ins, and fails in any way
        (beside / GRAPH_FILE).unlink(missing_ok=True)
        reason = _reason(error)
        done.notes.append(
            f"{GRAPH_FILE} and {ONNX_FILE} are not written: torch.export can't follow it ({reason})."
        )
        return
    if not onnx:
        return
    missing = [name for name in _EXPORTERS if _version(name) is None]
    if missing:
        done.notes.append(f"{ONNX_FILE} is not written: {', '.join(missing)} missing; {EXTRA}.")
        return
    try:
        settle(ONNX_FILE, _onnx(program, beside / ONNX_FILE))
    except Exception as error:  # whatever converters and checkers raise
        (beside / ONNX_FILE).unlink(missing_ok=True)
        done.notes.append(f"{ONNX_FILE} is not written: torch.onnx can't convert it ({_reason(error)}).")


def _program(graph: nn.Module, example: Tensor) -> torch.export.ExportedProgram:
    with warnings.catch_warnings(), as_written(graph):
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=1)
        return torch.export.export(graph, (example,), dynamic_shapes=({0: batch},), strict=False)


def _onnx(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    """Write and check the graph; what runs it."""
    import onnx
    import onnxruntime

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            program,
            f=path,
            dynamo=True,
            verbose=False,
            external_data=False,
            input_names=["images"],
            output_names=["scores"],
        )
    model = onnx.load(path)
    symbol = model.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    if not symbol:
        raise ValueError("its number of images would be fixed")
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info):
        for size in value.type.tensor_type.shape.dim:
            if size.dim_param == symbol:
                size.dim_param = "batch"
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, path)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0])


def _batch(images: Tensor, size: int) -> Tensor:
    """So many images, the first again where there are too few."""
    times = -(-size // len(images))
    return images.repeat(times, *[1] * (images.dim() - 1))[:size].contiguous()


def _checked(done: Exported, network: nn.Module) -> list[str]:
    lines = [
        f"`{name}`, on batches of {', '.join(map(str, BATCHES[:-1]))} and {BATCHES[-1]} images: its scores differ "
        f"from PyTorch's by at most {found.scores:.1e} of the largest (of 1 where that is less), its probabilities "
        f"by {found.probabilities:.1e}, its answers nowhere but in ties within {TOLERANCE:.0e}."
        for name, found in done.differences.items()
    ]
    if isinstance(network, Severed):
        lines.append(
            f"`{WEIGHTS_FILE}` holds the state of `tunnel_lightning.surgery.Severed(network, ...)`, made of the "
            "whole network's own code; there is no checkpoint, since no file can say how to make a network "
            "that is no Backbone."
        )
    return lines + done.notes


def _reason(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
