"""The cut that is taken: built, scored on test images, tuned if asked; and the summary of a trim."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.parts import Task, finish
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part, Store, fingerprint, tensors_key
from tunnel_lightning.analysis.trim.choose import Choice, Estimate, difference, share_kept, verdict
from tunnel_lightning.analysis.trim.curve import Found, answers, network_at
from tunnel_lightning.analysis.trim.heads import Right
from tunnel_lightning.analysis.trim.options import Options
from tunnel_lightning.analysis.trim.tune import forget, recipe_of, tune
from tunnel_lightning.backbones import Backbone
from tunnel_lightning.runs import NETWORK, machine_info, package_versions
from tunnel_lightning.runs.trimming import Columns

APART = 0.01
"""Share of the images that the cut network may answer otherwise than the head on tapped features: rounding."""


@dataclass
class Taken:
    """A cut that was taken.

    Attributes:
        network: in evaluation mode.
        layer: the name of the layer it ends at.
        images: the set whose classes it tells.
        right: whether it is right about each test image of that set, shape [N].
        val: its validation accuracy.
        tuned: what a short training gained; None where there was none.
    """

    network: nn.Module
    layer: str
    images: ImageSet
    right: Right
    val: float
    tuned: dict[str, Any] | None = field(default=None)


def take(context: Context, store: Store, found: Found, curve: Columns, line: int, options: Options) -> Taken:
    """Build the cut network of a line of the curve, score it itself, and tune it if that is asked for.

    Raises:
        ValueError: it answers otherwise than the head did on the layer's tapped features, or it can't be tuned.
    """
    images, scored = context.own, found.own
    if options.for_set is not None:
        images = next(each for each in context.others if each.name == options.for_set)
        scored = found.others[images.name]
    name = curve["layer"][line]
    tap = context.place(name)
    network = network_at(context, tap, scored.heads[name], images)
    right = answers(context, network, images, "test")
    if float((right != scored.test[name]).mean()) > APART:
        raise ValueError(
            f"the network cut behind {name} answers {100 * (right != scored.test[name]).mean():.1f} % of the test "
            "images otherwise than a head on that layer's features does: its forward depends on more than the image, "
            "so it can't be cut there; choose another --layer"
        )
    taken = Taken(network, name, images, right, scored.accuracy("val", name))
    if options.tune_epochs:
        _tune(context, store, taken, options)
    return taken


def _tune(context: Context, store: Store, taken: Taken, options: Options) -> None:
    """Train the cut network a little; its weights are replaced only where validation images say it is better."""
    network, images = taken.network, taken.images
    if not isinstance(network, Backbone):
        raise ValueError(
            f"--tune_epochs trains a Classifier, and {type(network).__name__} is no Backbone: leave it out, or train "
            "the cut network with a Trainer of yours"
        )
    recipe = recipe_of(context.subject, options.tune_lr)
    if recipe.note:
        context.note(recipe.note)
    asked = [
        recipe.name,
        recipe.lr,
        options.tune_epochs,
        options.seed,
        taken.layer,
        tensors_key(network.state_dict()),
    ]
    name = f"tuned-{fingerprint(asked, context.options.settings())}"
    folder = store.folder / name

    def make() -> Part:
        state = tune(
            network,
            images,
            recipe,
            options.tune_epochs,
            folder,
            context.fabric.device,
            options.seed,
            context.progress,
        )
        return Part({}, {key: value.cpu().numpy() for key, value in state.items()})  # type: ignore[arg-type]

    title = f"tuning the cut network for {options.tune_epochs} epochs"
    part = finish(context, store, Task(name, title, images, context.options.measures, make))
    forget(folder)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    network.load_state_dict({key: before[key].new_tensor(value) for key, value in part.arrays.items()})
    network.eval()
    after = float(answers(context, network, images, "val", "the tuned network").mean())
    tuned_right = answers(context, network, images, "test", "the tuned network")
    gain = difference(tuned_right, taken.right)
    better = after > taken.val
    taken.tuned = {
        "epochs": options.tune_epochs, "optimizer": recipe.name, "lr": recipe.lr, "taken": better,
        "val_before": taken.val, "val_after": after, **_told(gain),
        "accuracy_before": float(taken.right.mean()), "accuracy_after": float(tuned_right.mean()),
    }  # fmt: skip
    if better:
        taken.right, taken.val = tuned_right, after
    else:
        network.load_state_dict(before)


def _told(gain: Estimate) -> dict[str, Any]:
    return {"gain": gain.value, "low": gain.low, "high": gain.high, "n": gain.n}


def summarise(
    context: Context, found: Found, curve: Columns, choice: Choice, taken: Taken | None, options: Options
) -> dict[str, Any]:
    """The summary of a trim, plain values; its keys are told in docs/trim.md."""
    subject, own, line = context.subject, context.own, choice.line
    last = curve["layer"][-2]
    whole = NETWORK if NETWORK in found.own.val else last
    flops, parameters = (int(curve[key][-1]) for key in ("flops", "parameters"))
    keep = options.share if choice.how == "keep" else None
    certificate = None
    if taken is not None and taken.images is own:
        kept = share_kept(taken.right, found.own.test[whole])
        certificate = {
            **kept._asdict(),
            "keep": keep,
            "verdict": None if keep is None else verdict(kept, keep),
        }
    if whole != NETWORK:
        context.note(
            f"the network's own accuracy is not known, so cuts are compared with the head at its last layer, {last}"
        )
    return {
        "run_id": subject.run_id,
        "title": subject.title,
        "dataset": own.name,
        "network": {"name": subject.title, "config": subject.config, "layers": len(context.taps.layers)},
        "checkpoint": subject.checkpoint,
        "step": subject.step,
        "epoch": subject.epoch,
        "whole": {
            "reference": NETWORK if whole == NETWORK else last,
            "accuracy": found.own.accuracy("test", whole),
            "val_accuracy": found.own.accuracy("val", whole),
            "flops": flops,
            "parameters": parameters,
        },
        "choice": {
            "layer": None if line is None else curve["layer"][line],
            "line": line,
            "how": choice.how,
            "why": choice.why,
            "keep": keep,
            "set": options.for_set,
        },
        "cut": _cut_of(curve, line, taken),
        "certificate": certificate,
        "transfer": _transfers(found, curve, line, taken),
        "tuned": None if taken is None else taken.tuned,
        "class_names": own.class_names if taken is None else taken.images.class_names,
        "test_images": own.size("test", options.eval_images),
        "val_images": own.size("val", options.eval_images),
        "latency": {
            "conditions": found.conditions,
            "turns": {size: min(map(len, times.values())) for size, times in found.times.items()},
        },
        "settings": {**options.settings(), "batch_size": own.batch_size},
        "versions": package_versions(),
        "machine": {**machine_info(), "device": str(context.fabric.device)},
        "seconds": {what: round(value, 2) for what, value in found.seconds.items()},
        "notes": [*subject.notes, *context.notes],
    }


def _cut_of(curve: Columns, line: int | None, taken: Taken | None) -> dict[str, Any] | None:
    if line is None or taken is None:
        return None
    return {
        "classes_of": taken.images.name,
        "accuracy": float(taken.right.mean()),
        "val_accuracy": taken.val,
        "flops": curve["flops"][line],
        "parameters": curve["parameters"][line],
        "flops_share": curve["flops"][line] / curve["flops"][-1],
        "parameters_share": curve["parameters"][line] / curve["parameters"][-1],
    }


def _transfers(found: Found, curve: Columns, line: int | None, taken: Taken | None) -> dict[str, Any]:
    """Transfer of the taken cut and of the last layer to each other set, with the difference on the same images."""
    told: dict[str, Any] = {}
    if line is None:
        return told
    name, last = curve["layer"][line], curve["layer"][-2]
    for each, scored in found.others.items():
        if name not in scored.test or last not in scored.test:
            continue
        right = taken.right if taken is not None and taken.images.name == each else scored.test[name]
        gain: Estimate = difference(right, scored.test[last])
        told[each] = {
            "cut": float(np.mean(right)), "last": scored.accuracy("test", last),
            **_told(gain),
        }  # fmt: skip
    return told
