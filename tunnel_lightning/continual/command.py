"""``python -m tunnel_lightning continual``: a sequence of tasks, or the same one over seeds and depths."""

from __future__ import annotations

import contextlib
import logging
import shutil
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, ArgumentParser, Namespace, set_parsing_settings
from rich.console import Console
from rich.text import Text

from tunnel_lightning.continual.scenarios import Scenario
from tunnel_lightning.continual.settings import (
    ExitOptions,
    MeterOptions,
    Settings,
    SweepOptions,
    named,
)
from tunnel_lightning.data import ImageData
from tunnel_lightning.module import Classifier
from tunnel_lightning.report.mistakes import sentence
from tunnel_lightning.report.progress import Bars
from tunnel_lightning.runs import PROFILE_FILE, RunError, new_run_folder
from tunnel_lightning.runs.files import atomic
from tunnel_lightning.taps import TapSpec

CONFIG_FILE = "config.yaml"
DESCRIPTION = """Learn a sequence of tasks with any of Avalanche's strategies, and measure in every layer, before the
first task and after each, what it knows of every task: which layers transfer, which forget."""


def parser_of() -> ArgumentParser:
    """The arguments, each with its default."""
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    with contextlib.suppress(TypeError, ValueError):  # older ones take any value as it is
        # The arguments of strategies and plugins are theirs to make, not the parser's.
        set_parsing_settings(instantiate_subclass_spec_in_any=False)
    program = "python -m tunnel_lightning continual"
    parser = ArgumentParser(program, f"{program} --config FILE [options]", DESCRIPTION, exit_on_error=False)
    parser.add_argument("--config", action="config", help="settings from a file")
    parser.add_argument("--resume", type=str | None, help="a run folder to go on in, with its own config")
    parser.add_argument(
        "--name", type=str, default="continual", help="of the run: its folder is RUNS/NAME/version_N"
    )
    parser.add_argument("--runs", type=str, default="runs", help="folder of all runs")
    parser.add_argument("--seed_everything", type=int, default=0, help="seed of network, order and strategy")
    parser.add_argument(
        "--seeds", type=int, default=1, help="so many runs, of the seeds from seed_everything on"
    )
    parser.add_argument(
        "--depths", type=list[int] | None, help="the same sequence at these values of the backbone's `depth`"
    )
    parser.add_subclass_arguments(ImageData, "data", required=False, instantiate=False, help="the images")
    parser.add_class_arguments(Scenario, "scenario", instantiate=True, help="how they become tasks")
    parser.add_argument(
        "--classic",
        type=str | dict[str, Any] | None,
        help="one of Avalanche's benchmarks by class path, not --data",
    )
    skip: set[str] = {"lr_scheduler", "compile"}
    parser.add_class_arguments(Classifier, "model", instantiate=False, skip=skip)
    parser.add_argument(
        "--strategy", type=str | dict[str, Any], default="Naive", help="Avalanche's, by name or class path"
    )
    parser.add_argument(
        "--plugins", type=list[str | dict[str, Any]], default=[], help="Avalanche's plugins, by class path"
    )
    parser.add_argument(
        "--head",
        type=Literal["auto", "fixed", "incremental", "multi"],
        default="auto",
        help="one head from the start, one that grows, or one for each task",
    )
    parser.add_argument("--epochs", type=int, default=1, help="over each task")
    parser.add_argument(
        "--reset_optimizer", type=bool, default=False, help="whether momentum starts anew with each task"
    )
    parser.add_argument(
        "--loop",
        type=Literal["auto", "lightning", "native"],
        default="auto",
        help="Lightning's Trainer or the strategy's own loop; auto: the Trainer where --trainer needs it",
    )
    parser.add_argument("--trainer", type=dict[str, Any], default={}, help="arguments of that Trainer")
    parser.add_class_arguments(TapSpec, "taps", help="which layers are measured")
    parser.add_class_arguments(MeterOptions, "meter", help="what is measured in them")
    parser.add_class_arguments(SweepOptions, "sweeps", help="what is tried after the last task")
    parser.add_argument("--exits", type=ExitOptions | None, default=None, help="auxiliary classifiers")
    parser.add_argument("--device", type=str, default="auto", help="auto, cpu or cuda")
    parser.add_argument("--num_workers", type=int, default=0, help="processes that read images")
    return parser


def parse(argv: Sequence[str]) -> tuple[ArgumentParser, Namespace]:
    """The arguments of the command line; with ``--resume`` those of that run.

    Raises:
        ValueError: an unknown argument, or one that can't be read.
        RunError: no such run.
    """
    parser = parser_of()
    arguments = list(argv)
    try:
        folder = resumed(arguments)
        if folder is not None:
            config = folder / CONFIG_FILE
            if not config.is_file() or "\nscenario:" not in config.read_text():
                raise RunError(
                    f"{folder} is no run over tasks: it has no {CONFIG_FILE} with a scenario; give one that "
                    "`continual` made"
                )
            if len(arguments) > (1 if "=" in arguments[0] else 2):
                raise ValueError(f"--resume goes on with the settings in {config}: give it alone")
            arguments = ["--config", str(config), *arguments]
        return parser, parser.parse_args(arguments)
    except ArgumentError as error:
        raise ValueError(sentence(str(error))) from error


def resumed(arguments: Sequence[str]) -> Path | None:
    """The folder behind ``--resume``."""
    for at, argument in enumerate(arguments):
        if argument == "--resume" and at + 1 < len(arguments):
            return Path(arguments[at + 1])
        if argument.startswith("--resume="):
            return Path(argument.partition("=")[2])
    return None


def settings_of(parser: ArgumentParser, config: Namespace) -> Settings:
    """What decides a run's figures.

    Raises:
        ValueError: arguments that don't go together.
    """
    if (config.data is None) == (config.classic is None):
        raise ValueError("give --data (for example Digits) with a --scenario, or --classic, not both")
    for name, least in (("epochs", 1), ("seeds", 1), ("num_workers", 0), ("seed_everything", 0)):
        if config[name] < least:
            raise ValueError(f"--{name} is {config[name]}; give at least {least}")
    depths = config.depths
    if depths is not None and (not depths or len(set(depths)) < len(depths)):
        raise ValueError(f"--depths is {depths}; give at least one, and each once")
    made = parser.instantiate_classes(config)
    model = plain(config.model)
    if not model.get("backbone"):
        raise ValueError("give a network: for example --model.backbone MLP")
    if not model.get("optimizer"):
        model["optimizer"] = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.01, "momentum": 0.9}}
    if not 0 <= model.get("label_smoothing", 0.0) <= 1:
        raise ValueError(f"model.label_smoothing is {model['label_smoothing']}; give 0, for none, to 1")
    for part in ("backbone", "optimizer"):
        model[part] = named(model[part])
    if "LBFGS" in model["optimizer"]["class_path"]:
        raise ValueError(
            "model.optimizer: LBFGS asks for the loss several times a step, which no strategy gives; take SGD or Adam"
        )
    data = None if config.data is None else named(plain(config.data))
    return Settings(
        data=data,
        scenario=made.scenario,
        classic=None if config.classic is None else named(plain(config.classic)),
        model=model,
        strategy=named(plain(config.strategy)),
        plugins=[named(plugin) for plugin in plain(config.plugins)],
        head=config.head,
        epochs=config.epochs,
        batch_size=data["init_args"].get("batch_size", 128) if data else 128,
        reset_optimizer=config.reset_optimizer,
        loop=config.loop,
        trainer=plain(config.trainer),
        taps=made.taps,
        meter=made.meter,
        sweeps=made.sweeps,
        exits=made.exits,
        device=config.device,
        num_workers=config.num_workers,
        seed=config.seed_everything,
    )


def plain(value: Any) -> Any:
    """Namespaces as dicts, in lists and dicts too: whatever looks like a class path, the parser makes one of.

    Example:
        >>> plain({"callbacks": [Namespace(class_path="a.B", init_args=Namespace(c=1))]})
        {'callbacks': [{'class_path': 'a.B', 'init_args': {'c': 1}}]}
    """
    if isinstance(value, Namespace):
        value = value.as_dict()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def command(argv: Sequence[str]) -> None:
    """Run the command with the arguments behind its name.

    Raises:
        ValueError: a mistake in what was asked, in one sentence.
        RunError: a folder that can't be gone on with.
        OSError: the run can't be written.
    """
    for name in ("lightning.fabric", "lightning.pytorch"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    parser, config = parse(argv)
    settings = settings_of(parser, config)
    resume = config.pop("resume", None)
    config.pop("config", None)
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", r"\s*Dump of a value", UserWarning
        )  # a callback's enum, as its text
        text = str(parser.dump(config, skip_none=False))
    folder = Path(resume) if resume else new_run_folder(config.runs, config.name)
    start = time.perf_counter()
    try:
        if not resume:
            with atomic(folder / CONFIG_FILE) as file:
                file.write(text)
        learn(settings, folder, seeds=config.seeds, depths=config.depths)
    except BaseException:
        if not resume and not any(folder.rglob(PROFILE_FILE)):
            shutil.rmtree(folder)  # nothing of a run that did not get as far as its first measurement
        raise
    show(folder, time.perf_counter() - start)


def learn(settings: Settings, folder: Path, seeds: int, depths: list[int] | None) -> None:
    """Learn the sequence, or every member of a sweep, and write the page."""
    from tunnel_lightning.continual.compat import avalanche

    avalanche()
    from tunnel_lightning.continual.members import learn_members, learn_one

    with Bars() as bars:
        if seeds == 1 and not depths:
            learn_one(settings, folder, bars)
        else:
            learn_members(settings, folder, bars, seeds, depths)


def show(folder: Path, seconds: float, console: Console | None = None) -> None:
    """Print the tables, and where the files are."""
    from tunnel_lightning.report.continual import print_continual

    console = console or Console()
    print_continual(folder, console)
    console.print()
    console.print(Text(f"run folder   {folder}"), soft_wrap=True)
    console.print(Text(f"report       {folder / 'report.html'}"), soft_wrap=True)
    console.print(Text(f"TensorBoard  tensorboard --logdir {folder}"), soft_wrap=True)
    console.print(Text(f"time         {seconds // 60:.0f} min {seconds % 60:.0f} s"))
