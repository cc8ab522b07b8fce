"""One network with heads at several layers, which sure answers leave early: chosen, certified and written."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import yaml  # type: ignore[import-untyped]
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.trim.choose import Estimate, cheapest, place_of, share_kept, verdict
from tunnel_lightning.analysis.trim.heads import temperature
from tunnel_lightning.analysis.trim.latency import BATCHES, spread
from tunnel_lightning.analysis.trim.leaving import (
    MOST,
    Answers,
    Curve,
    chosen_layers,
    curve_of,
    left_at,
    right_of_network,
    side_by_side,
)
from tunnel_lightning.backbones import Backbone
from tunnel_lightning.backbones.early import EarlyExit
from tunnel_lightning.measures import LinearHead
from tunnel_lightning.module import Classifier
from tunnel_lightning.runs import NETWORK, machine_info, package_versions, write_manifest
from tunnel_lightning.runs.trimming_exits import EXITS_FOLDER, write_exits
from tunnel_lightning.surgery import overthinking
from tunnel_lightning.taps import quiet, untouched_rng
from tunnel_lightning.taps.pooling import choose_columns

AUTO = "auto"
SINGLES = 32
"""Images that are answered one by one where latency is measured: an easy one takes less than a hard one."""


def check_exits(context: Context, layers: str | Sequence[str] = AUTO) -> None:
    """Refuse exits that can't be had, before anything is measured.

    Raises:
        ValueError: no such layer, a network that is none of the package's, or one whose outputs are not the set's
            classes.
    """
    subject = context.subject
    if not isinstance(subject.network, Backbone):
        raise ValueError(
            f"exits need a network that a checkpoint can make again, and {type(subject.network).__name__} is no "
            "Backbone of this package: train it as one, for example as `Named`"
        )
    if not subject.matches:
        raise ValueError(f"exits need a network whose outputs are the classes of {context.own.name}")
    if layers != AUTO:
        _named(layers, [tap.name for tap in context.taps.layers if _is_module(subject.network, tap.module)])


def fit_exits(
    context: Context,
    heads: Mapping[str, LinearHead],
    folder: Path,
    layers: str | Sequence[str] = AUTO,
    keep: float = 0.99,
    latency: bool = True,
) -> dict[str, Any]:
    """Give the network exits, find the threshold that keeps the accuracy, certify it, and write ``FOLDER/exits``.

    Layers and threshold are chosen on validation images, each exit's scores divided by the temperature that makes
    its labels likeliest there; the network that is written is then run on the test images, image by image leaving
    where it is sure.

    Args:
        context: the network, with taps at the layers of the heads; its own set has validation images.
        heads: the probe of each layer, on its features.
        folder: of the trim.
        layers: names, or numbers from 1, with commas between or as a list; ``auto`` chooses up to four.
        keep: share of the network's validation accuracy that is kept at least, in (0, 1].
        latency: measure how long it takes for 1 and for 256 images.

    Returns:
        The summary, as it is written.

    Raises:
        ValueError: no such layer, a network that is none of the package's or that can't be traced, or one whose
            outputs are not the set's classes.
    """
    subject = context.subject
    check_exits(context, layers)
    network = subject.network
    assert isinstance(network, Backbone)
    names = [tap.name for tap in context.taps.layers if tap.name in heads and _is_module(network, tap.module)]
    if not names:
        raise ValueError("exits need a head at one layer at least")
    given = None if layers == AUTO else _named(layers, names)
    pool = context.options.taps.pool
    everywhere = _with_exits(context, given or names, pool)
    trunk = dict(zip(everywhere.exit_names, everywhere.trunk, strict=True))
    names = list(everywhere.layers)
    asked = {
        name: 2 * head.weight.numel()  # type: ignore[operator]
        for name, head in zip(names, everywhere.heads, strict=True)
    }
    val, scales = _calibrated(_answers(context, heads, names, "val"), None)
    chosen = given or chosen_layers(
        val, trunk, asked, keep, lambda done: context.progress("exits: layers", done, MOST)
    )
    chosen = [name for name in names if name in chosen]
    context.progress("exits: layers", MOST, MOST)
    made = _with_exits(context, chosen, pool)
    val = val.of(chosen)
    curve = curve_of(val, made.costs)
    whole = right_of_network(val)
    line = cheapest(curve.accuracy, curve.flops, whole, keep)
    if line is None:
        line = int(np.lexsort((curve.flops, -curve.accuracy))[0])
        context.note(
            f"no threshold keeps {100 * keep:g} % of the validation accuracy with exits at {', '.join(chosen)}; the "
            "most accurate one was taken"
        )
    threshold, ends = float(curve.threshold[line]), bool(curve.ends[line])
    made = _with_exits(context, chosen, pool, [*[threshold] * (len(chosen) - 1), 0.0] if ends else threshold)
    _fill(context, made, heads, scales)
    test, _ = _calibrated(_answers(context, heads, chosen, "test"), scales)
    summary = {
        **_told(context, made, val, test, curve, line, keep),
        "how": AUTO if given is None else "layers",
        "temperature": {name: scales[name] for name in [*chosen, NETWORK]},
        "latency": _latency(context, made) if latency else {},
    }
    tested = curve_of(test, made.costs, np.unique(curve.threshold).tolist())
    columns = {
        "threshold": curve.threshold,
        "ends": curve.ends.astype(int),
        "val_accuracy": curve.accuracy,
        "val_flops": curve.flops,
        "accuracy": tested.accuracy,
        "flops": tested.flops,
    }
    _write(context, made, folder / EXITS_FOLDER, summary, columns)
    return summary


def _is_module(network: Backbone, path: str) -> bool:
    """Whether a tap is at a module: a residual addition is none."""
    return any(path == name for name, _ in network.named_modules())


def _named(layers: str | Sequence[str], names: Sequence[str]) -> list[str]:
    wanted = layers.split(",") if isinstance(layers, str) else list(layers)
    found = [names[place_of(each.strip(), names)] for each in wanted]
    if not found or len(set(found)) < len(found):
        raise ValueError(f"exits: {', '.join(wanted)} names no layer, or one twice; name each layer once")
    return found


@untouched_rng()
def _with_exits(
    context: Context, layers: list[str], pool: Any, threshold: float | list[float] = 1.0
) -> EarlyExit:
    network: Any = context.subject.network
    made = EarlyExit(network.config, layers, pool, threshold, network.num_classes, network.input_shape)
    made.network.load_state_dict(network.state_dict())
    return made.to(context.fabric.device).eval()


def _fill(
    context: Context, made: EarlyExit, heads: Mapping[str, LinearHead], scales: Mapping[str, float]
) -> None:
    """Put the heads into the network, temperatures folded in."""
    with torch.no_grad():
        for name, layer in zip(made.layers, made.heads, strict=True):
            assert isinstance(layer, nn.Linear)
            head, tap, spec = heads[name], context.place(name), context.options.taps
            kept = choose_columns(layer.in_features, spec.max_features, spec.seed, f"{tap.module}#{tap.call}")
            layer.weight.zero_()
            # Columns that were left out of the head's fit have weight zero.
            columns = slice(None) if kept is None else kept
            layer.weight[:, columns] = (head.weight / scales[name]).to(layer.weight)
            layer.bias.copy_(head.bias / scales[name])
        made.temperature.fill_(scales[NETWORK])


class _Scores:
    """Observer of a pass that keeps the scores of heads and of the network."""

    def __init__(self, heads: Mapping[str, LinearHead]) -> None:
        self.heads = heads
        self.kept: dict[str, list[Tensor]] = {name: [] for name in [*heads, NETWORK]}
        self.target: list[Tensor] = []

    def update(self, features: Mapping[str, Tensor], target: Tensor, output: Tensor | None) -> None:
        """Add a batch."""
        assert output is not None
        for name, (weight, bias) in self.heads.items():
            x = features[name].float()
            self.kept[name].append(F.linear(x, weight.to(x), bias.to(x)).cpu())
        self.kept[NETWORK].append(output.float().cpu())
        self.target.append(target.cpu())

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Nothing to sum: a trim is made by one process."""


def _answers(context: Context, heads: Mapping[str, LinearHead], names: Sequence[str], split: str) -> Answers:
    seen = _Scores({name: heads[name] for name in names})
    what = f"{context.own.name} {split}, exits"
    context.run(context.own, split, context.options.eval_images, observers=[seen], what=what)
    scores = torch.stack([torch.cat(rows) for rows in seen.kept.values()])
    return Answers(list(seen.kept), scores, torch.cat(seen.target))


def _calibrated(answers: Answers, scales: dict[str, float] | None) -> tuple[Answers, dict[str, float]]:
    """The scores over their temperatures, which are found on them where none are given."""
    if scales is None:
        found = [temperature(rows, answers.target) for rows in answers.scores]
        scales = dict(zip(answers.names, found, strict=True))
    by = torch.tensor([scales[name] for name in answers.names])
    return Answers(answers.names, answers.scores / by[:, None, None], answers.target), scales


def _told(
    context: Context, made: EarlyExit, val: Answers, test: Answers, curve: Curve, line: int, keep: float
) -> dict[str, Any]:
    """What the written network does on test images, and what that is compared with."""
    right, taken = _run(context, made)
    confidence, rights = test.sure()
    threshold, ends = float(curve.threshold[line]), bool(curve.ends[line])
    expected = left_at(confidence, threshold, ends)
    if (other := float((expected != taken).mean())) > 0.01:
        context.note(
            f"{100 * other:.1f} % of the test images leave at another exit than heads on tapped features say: the "
            "network's forward depends on more than the image, or is very sensitive to rounding"
        )
    kept: Estimate = share_kept(right, rights[-1])
    flops = np.array(made.costs, dtype=float)[taken]
    leaving = [float((taken == number).mean()) for number in range(len(made.costs))]
    subject, own = context.subject, context.own
    thinking = overthinking(test.scores, test.target)
    return {
        "run_id": subject.run_id,
        "title": subject.title,
        "checkpoint": subject.checkpoint,
        "dataset": own.name,
        "layers": list(made.layers),
        "threshold": threshold,
        "ends": ends,
        "keep": keep,
        "costs": list(made.costs),
        "trunk": list(made.trunk),
        "whole": {
            "accuracy": float(rights[-1].mean()),
            "val_accuracy": right_of_network(val),
            "flops": made.trunk[-1],
        },
        "chosen": {
            "accuracy": float(right.mean()),
            "val_accuracy": float(curve.accuracy[line]),
            "flops": float(flops.mean()),
            "flops_share": float(flops.mean() / made.trunk[-1]),
        },
        "certificate": {**kept._asdict(), "keep": keep, "verdict": verdict(kept, keep)},
        "leaving": leaving,
        "right_at": [
            float(right[taken == number].mean()) if share else None for number, share in enumerate(leaving)
        ],
        "accuracy_at": rights.mean(1).tolist(),
        "overthinking": thinking._asdict(),
        "images": {"val": len(val.target), "test": len(test.target)},
        "notes": list(context.notes),
    }


def _run(context: Context, made: EarlyExit) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether the network is right about each test image, and where it left."""
    own, limit, right, taken = context.own, context.options.eval_images, [], []
    total = -(-own.size("test", limit) // own.batch_size)
    with quiet(made):
        for done, (x, y) in enumerate(own.batches("test", limit)):
            context.progress(f"early exits: {own.name} test", done, total)
            right.append((made(x.to(context.fabric.device)).argmax(1).cpu() == y).numpy())
            assert made.taken is not None
            taken.append(made.taken.cpu().numpy())
    context.progress(f"early exits: {own.name} test", total, total)
    return np.concatenate(right), np.concatenate(taken)


def _latency(context: Context, made: EarlyExit) -> dict[str, Any]:
    """Milliseconds an image for test images one by one and 256 at once, with exits and without: median, quartiles."""
    own, found = context.own, {}
    x = torch.cat([x for x, _ in own.batches("test", BATCHES[-1])]).to(context.fabric.device)
    context.taps.disarm()
    for size in BATCHES:
        images = list(x[:SINGLES].split(1)) if size == 1 else [x]
        what = f"latency with exits, {'one image' if size == 1 else f'{len(x)} images'} at once"
        told = partial(context.progress, what)
        with quiet(made), quiet(context.model):
            pairs = side_by_side(partial(_each, made, images), partial(_each, context.model, images), told)
        found[str(size)] = {
            "images": 1 if size == 1 else len(x),
            "exits_ms": spread(1e3 * pairs[:, 0] / len(images)),
            "network_ms": spread(1e3 * pairs[:, 1] / len(images)),
            "speedup": spread(pairs[:, 1] / pairs[:, 0]),
        }
    return found


def _each(network: Callable[[Tensor], Any], batches: Sequence[Tensor]) -> None:
    for x in batches:
        network(x)
    if batches[0].is_cuda:
        torch.cuda.synchronize()


def _write(
    context: Context, made: EarlyExit, folder: Path, summary: dict[str, Any], columns: Mapping[str, Any]
) -> None:
    """Write the folder beside, then let it take its place."""
    beside = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(beside, ignore_errors=True)
    try:
        (beside / "checkpoints").mkdir(parents=True)
        classifier = Classifier(made.cpu())
        subject = context.subject
        checkpoint: dict[str, Any] = {
            "state_dict": classifier.state_dict(),
            "global_step": subject.step,
            "epoch": subject.epoch,
            "pytorch-lightning_version": package_versions()["lightning"],
        }
        classifier.on_save_checkpoint(checkpoint)
        torch.save(checkpoint, beside / "checkpoints" / "last.ckpt")
        if subject.run is not None and (subject.run / "config.yaml").is_file():
            text = (subject.run / "config.yaml").read_text(encoding="utf-8")
            (beside / "config.yaml").write_text(config_of(text, made), encoding="utf-8")
        write_manifest(beside, versions=package_versions(), machine=machine_info(), made_by="trim --exits")
        write_exits(beside, summary, columns)
        shutil.rmtree(folder, ignore_errors=True)
        beside.replace(folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def config_of(text: str, made: EarlyExit) -> str:
    """A run's config with the network with exits in the place of the run's own, for ``predict``.

    It runs in single precision, as the threshold was found; what the run watched while it trained is left out.

    Args:
        text: the run's ``config.yaml``.
        made: the network with exits.
    """
    config = yaml.safe_load(text)
    given = dict(made.init_args)
    for name in ("num_classes", "input_shape"):  # the data gives them
        given.pop(name)
    config["model"]["backbone"] = {"class_path": made.config["class_path"], "init_args": given}
    config["trainer"]["precision"] = "32-true"
    for name in ("monitor", "ckpt_path", "resume"):
        config.pop(name, None)
    return str(yaml.safe_dump(config, sort_keys=False))
