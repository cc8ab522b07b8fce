"""Where the subject of an analysis comes from: a run folder, a network by name, a network at hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from jsonargparse import ArgumentError, ArgumentParser, get_loader
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn

from tunnel_lightning.analysis.base import (
    LINKED,
    Subject,
    add_transfer,
    cannot_run,
    compare_outputs,
    name_of,
    show,
    title_of,
    try_on,
)
from tunnel_lightning.analysis.networks import LIBRARIES, expected_by, find_network, importable_here
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.weights import (
    checkpoints_of,
    epochs_done,
    find_checkpoint,
    load_weights,
    read_run_checkpoint,
    read_weights,
)
from tunnel_lightning.backbones import Backbone, Named, rebuild
from tunnel_lightning.backbones.base import imported_class, plain
from tunnel_lightning.callbacks.places import sole_child
from tunnel_lightning.module import CHECKPOINT_KEY
from tunnel_lightning.runs import run_id_of
from tunnel_lightning.taps import untouched_rng

__all__ = [
    "Subject",
    "checkpoints_of",
    "load_network_subject",
    "load_run_subject",
    "read_config",
    "reload",
    "subject_of",
]

CONFIG_FILE = "config.yaml"


def subject_of(model: nn.Module, name: str | None = None, images: ImageSet | None = None) -> Subject:
    """A network that is at hand, as it is: nothing of it is changed or moved.

    Args:
        model: a network, or a LightningModule with one in it.
        name: its title; by default what it is.
        images: the set it is shown, to learn whether its outputs are the set's classes.

    Raises:
        ValueError: it can't take these images.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> from tunnel_lightning.module import Classifier
        >>> subject_of(Classifier(MLP(depth=2, width=8))).title
        'MLP (depth 2, width 8)'
    """
    network = sole_child(model) if isinstance(model, LightningModule) else model
    if type(model).forward is LightningModule.forward:  # it has none of its own
        model = network
    config = network.config if isinstance(network, Backbone) else {}
    title = name or (title_of(config) if config else type(network).__name__)
    subject = Subject(model, network, title, config, run_id=title)
    if images is not None:
        try_on(subject, images)
    return subject


@untouched_rng()
def load_run_subject(
    run: str | Path,
    ckpt: str | Path = "last",
    ood: Sequence[LightningDataModule] | None = None,
    data: LightningDataModule | None = None,
) -> Subject:
    """The network of a run folder at one of its checkpoints, with the sets its config names.

    Nothing but weights and plain values is read of the checkpoint. Classes that the config names are imported,
    from the current folder too.

    Args:
        run: a folder that ``fit`` made.
        ckpt: ``best``, ``last`` or a path, from here or from the run folder.
        ood: sets whose transfer is measured, in the place of the config's ``monitor.transfer.ood``; where both
            are silent, Glyphs, or Digits for a network trained on Glyphs. From here on they are shown at the
            network's image size, channels and normalisation.
        data: another set in the place of the in-distribution one, shown likewise.

    Raises:
        FileNotFoundError: the folder is no run, or has no such checkpoint.
        ValueError: its config or the checkpoint can't be read, or they do not fit together or the sets.
    """
    run = Path(run)
    config, config_file = read_config(run), run / CONFIG_FILE
    path = find_checkpoint(run, ckpt)
    state = read_run_checkpoint(path)
    own, transfer, described = _from_config(config, config_file)
    backbone = _backbone_of(state, path, described, config_file)
    title, shape = title_of(backbone.config), backbone.input_shape
    subject = Subject(backbone, backbone, title, backbone.config, data or own, run=run, run_id=run_id_of(run))
    _load(subject, state, path)
    own.prepare_data()
    if data is None:
        _check_own_data(own, backbone, path, config_file)
    else:
        data.prepare_data()
        subject.notes.append(f"{name_of(data)} is shown in the place of {name_of(own)}, its training set")
        show(subject, data, shape, own)
        images = ImageSet.of(data)
        if images.image_shape != shape:
            why = ValueError(f"the network takes {list(shape)}")
            raise ValueError(cannot_run(f"{title} of {run}", images, why))
        compare_outputs(subject, backbone.num_classes, images)
    add_transfer(subject, (transfer or None) if ood is None else ood, shape, own)
    return subject


def reload(subject: Subject, path: str | Path) -> None:
    """Put another checkpoint of the same run into the subject's network.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it can't be read, or is of another network.
    """
    path = Path(path)
    _load(subject, read_run_checkpoint(path), path)


@untouched_rng()
def load_network_subject(
    spec: str,
    data: LightningDataModule,
    ood: Sequence[LightningDataModule] | None = None,
    weights: str | Path | None = None,
    pretrained: bool = False,
) -> Subject:
    """A network of torchvision or timm, or anyone's, with the images it is shown.

    Weights that are drawn at random are the same each time, so that an interrupted analysis goes on.

    Args:
        spec: ``torchvision:NAME``, ``timm:NAME``, or ``module:attribute`` for an ``nn.Module`` or a function
            that gives one; the current folder is searched too.
        data: the in-distribution set.
        ood: as for :func:`load_run_subject`.
        weights: a state dict or Lightning checkpoint to load; of a checkpoint, the part that is the network.
        pretrained: take the weights that the library brings, with their own head; the images are then
            normalised as these expect them. Without it and ``weights`` a library's network is untrained.

    Raises:
        FileNotFoundError: there is no such file of weights.
        ValueError: no such network or weights, or it can't take these images.
        ImportError: the module or library is not there.
    """
    data.prepare_data()
    torch.manual_seed(0)
    if spec.partition(":")[0] in LIBRARIES:
        subject = _of_library(spec, data, pretrained, weights is not None)
    elif pretrained:
        raise ValueError(f"{spec} is of no library that brings weights: give them as a file")
    else:
        subject = subject_of(find_network(spec), spec)
        subject.data = data
    subject.model.eval()
    if weights is not None:
        load_weights([subject.model, subject.network], read_weights(Path(weights)), Path(weights))
        subject.checkpoint = str(weights)
    images = ImageSet.of(data)
    try_on(subject, images)
    add_transfer(subject, ood, images.image_shape, data)
    return subject


def read_config(run: str | Path) -> dict[str, Any]:
    """The config of a run folder, as plain values.

    Raises:
        FileNotFoundError: the folder is no run.
        ValueError: its config can't be read.
    """
    run = Path(run)
    path = run / CONFIG_FILE
    if not path.is_file():
        inside = sorted([*run.glob(f"*/{CONFIG_FILE}"), *run.glob(f"*/*/{CONFIG_FILE}")])
        hint = f"did you mean {inside[-1].parent}?" if inside else "give one that `fit` made"
        raise FileNotFoundError(f"{run} is no run folder: it has no {CONFIG_FILE}; {hint}")
    try:
        config = get_loader("yaml")(path.read_text(encoding="utf-8"))
    except Exception as error:  # whatever a reader of YAML raises
        raise ValueError(f"{path} can't be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path} can't be read: it holds no settings; give a folder that `fit` made")
    return config


def _from_config(config: Mapping[str, Any], path: Path) -> tuple[Any, list[LightningDataModule], Any]:
    """The data and the transfer sets that a config names, made, and what it says of the backbone."""
    importable_here()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", fail_untyped=False, required=True)
    parser.add_subclass_arguments(Backbone, "model.backbone", fail_untyped=False, required=True)
    parser.add_argument("--monitor.transfer.ood", type=list[LightningDataModule], default=[])
    backbone = (config.get("model") or {}).get("backbone")
    ood = ((config.get("monitor") or {}).get("transfer") or {}).get("ood") or []
    for section in (config.get("data"), backbone, *ood):
        _check_class(section, path)
    told = {
        "data": config.get("data"),
        "model": {"backbone": backbone},
        "monitor": {"transfer": {"ood": ood}},
    }
    try:
        found = parser.parse_object(told)
        described = found.model.pop("backbone")
        made = parser.instantiate_classes(found)
    except (ArgumentError, ValueError, TypeError) as error:
        raise ValueError(f"{path} can't be read: {_reason(error)}") from error
    return made.data, made.monitor.transfer.ood, described


def _reason(error: Exception) -> str:
    """What jsonargparse says of a key; of an error in the making of a class, which it wraps, that one's words."""
    found: BaseException = error
    while not isinstance(found, ArgumentError) and (found.__cause__ or found.__context__):
        found = found.__cause__ or found.__context__  # type: ignore[assignment]
    return " ".join(str(found).split()).partition(" Given value type:")[0]  # which repeats the whole section


def _check_class(section: Any, path: Path) -> None:
    """Say which class of a config can't be imported: jsonargparse says it in a page."""
    name = str(section.get("class_path") if isinstance(section, Mapping) else section)
    module, _, attribute = name.rpartition(".")
    if not module:
        return  # a short name, looked up among the classes known here
    try:
        found = hasattr(import_module(module), attribute)
    except ImportError as error:
        raise ValueError(
            f"{path} names {name}, which can't be imported ({error}): run in the folder its module lies in"
        ) from error
    if not found:
        raise ValueError(
            f"{path} names {name}, and {module} has no {attribute}: put it back, or correct the name"
        )


def _backbone_of(state: Mapping[str, Any], path: Path, described: Any, config_file: Path) -> Backbone:
    """The network that a checkpoint describes, where the run's config describes the same."""
    kept = state.get(CHECKPOINT_KEY)
    if not isinstance(kept, Mapping) or "backbone" not in kept:
        raise ValueError(f"{path} is no checkpoint of a Classifier: give one that `fit` made")
    backbone = _rebuilt(kept["backbone"], path, described, config_file)
    said = {"class_path": described.class_path, "init_args": plain(described.init_args.as_dict())}
    differs = any(
        said["init_args"].get(key, value) != value
        for key, value in backbone.init_args.items()
        if key not in (*LINKED, "pretrained")  # which a checkpoint's own weights replace
    )
    if differs or type(backbone) is not locate(described.class_path):
        raise ValueError(
            f"{path} does not fit its config: it holds {title_of(backbone.config)}, and {config_file} says "
            f"{title_of(said)}; give a checkpoint of this run, or put its config back"
        )
    return backbone


def _rebuilt(kept: Any, path: Path, described: Any, config_file: Path) -> Backbone:
    """The network that a checkpoint says how to make; its class must be imported by now, as the config's is."""
    name = kept.get("class_path") if isinstance(kept, Mapping) else None
    try:
        imported_class(str(name), Backbone)
    except ValueError as error:
        raise ValueError(
            f"{path} does not fit its config: it names {name!r} as its network, and {config_file} says "
            f"{described.class_path}; give a checkpoint of this run, or put its config back"
        ) from error
    try:
        return rebuild(kept)
    except (KeyError, TypeError, ValueError) as error:
        why = " ".join(str(error).split())
        raise ValueError(
            f"{path} holds no network that can be made ({why}): give one that `fit` made"
        ) from error


def _load(subject: Subject, state: Mapping[str, Any], path: Path) -> None:
    load_weights([subject.network], state["state_dict"], path)
    subject.model.eval()
    subject.step, subject.epoch = int(state["global_step"]), epochs_done(state)
    assert subject.run is not None, "only a run has checkpoints"
    full, run = path.resolve(), subject.run.resolve()
    subject.checkpoint = str(full.relative_to(run) if full.is_relative_to(run) else path)


def _check_own_data(own: Any, backbone: Backbone, path: Path, config_file: Path) -> None:
    shape, classes = tuple(own.input_shape), own.num_classes
    if (shape, classes) != (backbone.input_shape, backbone.num_classes):
        raise ValueError(
            f"{path} has {backbone.num_classes} outputs for images {list(backbone.input_shape)}, and the data of "
            f"{config_file} has {classes} classes and images {list(shape)}: put back what it was trained on, or "
            "name other data"
        )


def _of_library(spec: str, data: LightningDataModule, pretrained: bool, weights: bool) -> Subject:
    expected = expected_by(spec) if pretrained else None
    subject = Subject(nn.Identity(), nn.Identity(), spec, data=data, run_id=spec)
    images = ImageSet.of(data)
    if expected is not None:
        show(subject, data, (3, *images.image_shape[1:]), expected)
        images = ImageSet.of(data)
        if expected.size not in images.image_shape[1:]:
            subject.notes.append(
                f"the weights of {spec} were trained on images of {expected.size} pixels; these have "
                f"{images.image_shape[1]} (--data.image_size)"
            )
    classes = (expected.num_classes if expected else 0) or images.num_classes
    try:
        model = Named(
            spec,
            pretrained=expected is not None,
            num_classes=classes,
            input_shape=images.image_shape,  # type: ignore[arg-type]
        )
    except ValueError as error:
        if isinstance(error.__cause__, (RuntimeError, ValueError, AssertionError)):
            raise ValueError(cannot_run(spec, images, error.__cause__)) from error
        raise
    if pretrained and expected is None:
        raise ValueError(f"{spec} comes without weights: give a file of them, or leave it untrained")
    subject.model, subject.network, subject.config = model, model.net, model.config
    if not (weights or (expected and expected.num_classes)):
        subject.matches = False
        what = "its head is new" if expected else "it is untrained"
        subject.notes.append(f"{spec}: {what}, so its own accuracy is not measured")
    return subject
