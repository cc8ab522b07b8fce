"""What every command on a trained network is asked: which one, shown which images, where, and where to."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule

import tunnel_lightning.data  # noqa: F401 - for their names: `--data CIFAR10` is looked up among the classes known here
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.context import check_machine, fabric_of
from tunnel_lightning.analysis.subject import load_network_subject, load_run_subject
from tunnel_lightning.report.mistakes import sentence
from tunnel_lightning.runs import read_manifest

Settings = TypeVar("Settings")


@dataclass
class Asked:
    """Which network, shown which images, on which machine.

    Attributes:
        run: the run folder.
        ckpt: checkpoint of the run: best, last or a path.
        model: a network instead of a run: torchvision:NAME, timm:NAME, or module:attribute.
        weights: a file of weights for --model.
        pretrained: take the weights that torchvision or timm bring.
        data: the in-distribution set; of a run, its own.
        ood: sets to measure transfer on; of a run, those it watched; else Glyphs.
        device: auto, cpu, cuda or mps.
        out: folder of the result, in the place of RUN/COMMAND.

    Raises:
        ValueError: arguments that don't go together.
    """

    run: str | None = None
    ckpt: str = "last"
    model: str | None = None
    weights: str | None = None
    pretrained: bool = False
    data: LightningDataModule | None = None
    ood: list[LightningDataModule] | None = None
    device: str = "auto"
    out: str | None = None

    def __post_init__(self) -> None:
        if (self.run is None) == (self.model is None):
            raise ValueError(
                "give either a run folder (RUN) or a network (--model torchvision:resnet50 --data CIFAR10)"
            )
        if self.run is not None and (self.weights or self.pretrained):
            raise ValueError("--weights and --pretrained go with --model: of a run choose with --ckpt")
        if self.model is not None and self.ckpt != "last":
            raise ValueError("--ckpt goes with a run: give the file of a --model's weights as --weights")
        if self.model is not None and self.data is None:
            raise ValueError(f"--model {self.model} needs the images it is shown: for example --data CIFAR10")
        check_machine(self.device, "32-true")

    def subject(self) -> Subject:
        """The network, with its sets.

        Raises:
            FileNotFoundError: no such run, checkpoint or file of weights.
            ValueError: it can't be read, or does not fit the images.
        """
        if self.run is not None:
            return load_run_subject(self.run, self.ckpt, self.ood, self.data)
        assert self.model is not None
        assert self.data is not None
        return load_network_subject(self.model, self.data, self.ood, self.weights, self.pretrained)

    def fabric(self) -> Fabric:
        """The machine that is asked for.

        Raises:
            ValueError: there is no such device here.
        """
        return fabric_of(self.device, "32-true")

    def place(self, subject: Subject, command: str) -> Path:
        """The folder of a command's result: the one that is asked for, else ``RUN/command``.

        Of a network without a run it is ``runs/NETWORK/version_N/command``: the last one there where that command
        has not finished, else the next.
        """
        if self.out:
            return Path(self.out)
        if subject.run is not None:
            return subject.run / command
        home = Path("runs", "".join(c if c.isalnum() or c in "-_." else "-" for c in subject.title))
        taken = [int(number) for path in home.glob("version_*") if (number := path.name[8:]).isdecimal()]
        last = max(taken, default=0)
        finished = any((home / f"version_{last}" / command).glob("*.json"))
        return home / f"version_{last + finished}" / command


def watched(run: str | None) -> dict[str, Any]:
    """The layers that a run watched, as defaults of ``taps``; none of a network without a run."""
    found = dict(read_manifest(run).get("taps", {})) if run else {}
    found.pop("hook_points", None)
    return {f"taps.{key}": value for key, value in found.items()}


def parse(
    argv: Sequence[str], command: str, description: str, options: type[Settings], taps: bool = True
) -> tuple[Asked, Settings]:
    """The arguments of a command: RUN or a network, and its options.

    Args:
        argv: what stands behind the command's name.
        command: its name.
        description: what it does, for its help.
        options: a dataclass of settings whose docstring describes them.
        taps: the options have ``taps``, whose defaults are the layers that the run watched.

    Raises:
        ValueError: an unknown argument, or one that can't be read.
    """
    try:
        told = _parser(command, description, options, {}).parse_args(list(argv))
        parser = _parser(command, description, options, watched(told.run) if taps else {})
        made: Namespace = parser.instantiate_classes(parser.parse_args(list(argv)))
    except ArgumentError as error:
        raise ValueError(sentence(str(error))) from error
    asked = Asked(**{field.name: made[field.name] for field in fields(Asked)})
    return asked, options(**{field.name: made[field.name] for field in fields(options)})  # type: ignore[arg-type]


def _parser(command: str, description: str, options: type, defaults: Mapping[str, Any]) -> ArgumentParser:
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    program = f"python -m tunnel_lightning {command}"
    parser = ArgumentParser(program, f"{program} [RUN] [options]", description, exit_on_error=False)
    parser.add_argument("run", nargs="?", metavar="RUN", help="a run folder that `fit` made")
    parser.add_argument("--config", action="config", help="settings from a file")
    parser.add_class_arguments(Asked, skip={"run"})
    parser.add_class_arguments(options)
    parser.set_defaults(dict(defaults))
    return parser
