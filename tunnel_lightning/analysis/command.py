"""``analyze RUN``: the command line of an analysis."""

from __future__ import annotations

import logging
import warnings
from argparse import ArgumentError
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jsonargparse import ArgumentParser, set_parsing_settings
from lightning.fabric import Fabric
from lightning.pytorch import LightningDataModule

import tunnel_lightning.data  # noqa: F401 - for their names: `--data CIFAR10` is looked up among the classes known here
from tunnel_lightning.analysis.options import DEFAULT, Options, with_protocol
from tunnel_lightning.analysis.profile import Profile, run_parts
from tunnel_lightning.analysis.progress import Bars
from tunnel_lightning.analysis.subject import Subject, checkpoints_of, load_network_subject, load_run_subject
from tunnel_lightning.report import print_profile, write_report
from tunnel_lightning.report.build import REPORT_FILE
from tunnel_lightning.runs import new_run_folder
from tunnel_lightning.runs.analysis import ANALYSIS_FOLDER
from tunnel_lightning.taps import TapSpec


def analyze(
    run: str | None = None,
    ckpt: str = "last",
    model: str | None = None,
    weights: str | None = None,
    pretrained: bool = False,
    data: LightningDataModule | None = None,
    ood: list[LightningDataModule] | None = None,
    taps: TapSpec | None = None,
    measures: list[str] = list(DEFAULT),  # noqa: B006 - read only
    protocol: str | None = None,
    fit_images: int | None = None,
    eval_images: int | None = None,
    sample: int = 10_000,
    block_images: int = 2_560,
    alpha: float = 1e-2,
    memory_gb: float = 4.0,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32-true",
    processes: int = 1,
    out: str | None = None,
    figures: str | None = None,
    formats: list[str] = ["png"],  # noqa: B006 - read only
) -> Profile | None:
    """Measure every layer of a trained network, and write the page.

    Args:
        run: a run folder that `fit` made; the analysis goes into RUN/analysis.
        ckpt: its checkpoint: best, last, a path; or all, for the last one and its development over the others.
        model: any other network: torchvision:NAME, timm:NAME, or module:attribute.
        weights: a file of weights for it.
        pretrained: take the weights that torchvision or timm bring.
        data: the in-distribution set; of a run, its own.
        ood: sets to measure transfer on; of a run, those it watched; else Glyphs.
        taps: which layers, and how their outputs become features; of a run, those it watched.
        measures: what is measured.
        protocol: a paper's own pooling, probes and measures: masarczyk, harun or nguyen.
        fit_images: training images of each set the ridge probes are fitted on; null for all.
        eval_images: test images of each set everything is scored on; null for all.
        sample: images of each split whose features are held, for what can't be streamed.
        block_images: test images of the map over every output.
        alpha: penalty of the ridge probes, relative to the number of images.
        memory_gb: GiB that sums or held features may take.
        seed: of hold-out splits, recipes and pictures.
        device: auto, cpu, cuda or mps.
        precision: of the forward passes, as Lightning names it (32-true, bf16-mixed).
        processes: number of processes; the figures are the same.
        out: folder of the analysis, in the place of RUN/analysis.
        figures: a folder for every figure as a file of its own.
        formats: of the figures: png, svg, pdf.
    """
    if (run is None) == (model is None):
        raise ValueError("give either a run folder (analyze RUN) or a network (--model torchvision:resnet50)")
    if run is not None and (weights or pretrained):
        raise ValueError(
            "--weights and --pretrained are for --model: of a run choose --ckpt best, last or a path"
        )
    subject = load(run, ckpt, model, weights, pretrained, data, ood)
    options = Options(
        taps or watched(run),
        tuple(measures),
        fit_images,
        eval_images,
        sample,
        block_images,
        alpha,
        memory_gb,
        seed,
    )
    options = with_protocol(options, protocol)
    fabric = Fabric(
        accelerator=device,
        devices=processes,
        strategy="ddp" if processes > 1 else "auto",
        precision=precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    folder = Path(out) if out else place(subject, fabric)
    own, others = subject.sets()
    checkpoints = checkpoints_of(run) if run is not None and ckpt == "all" else []
    with Bars(subject.title, enabled=fabric.is_global_zero) as bars:
        run_parts(subject, own, others, options, folder, fabric, bars, checkpoints)
    if not fabric.is_global_zero:
        return None
    if figures:
        write_report([folder], folder / "report.html", figures, formats)
    profile = Profile.read(folder)
    print_profile(profile.run)
    print(f"report       {folder / REPORT_FILE}")
    return profile


def load(
    run: str | None,
    ckpt: str,
    model: str | None,
    weights: str | None,
    pretrained: bool,
    data: LightningDataModule | None,
    ood: list[LightningDataModule] | None,
) -> Subject:
    """The network that is asked for, with its sets."""
    if run is not None:
        return load_run_subject(run, "last" if ckpt == "all" else ckpt, ood, data)
    if data is None:
        raise ValueError(f"--model {model} needs the images it is shown: for example --data CIFAR10")
    assert model is not None
    return load_network_subject(model, data, ood, weights, pretrained)


def watched(run: str | None) -> TapSpec:
    """The layers that a run watched, so that both tables speak of the same ones."""
    from tunnel_lightning.runs import read_manifest

    taps: dict[str, Any] = dict(read_manifest(run).get("taps", {})) if run else {}
    taps.pop("hook_points", None)
    return TapSpec(**taps)


def place(subject: Subject, fabric: Fabric) -> Path:
    """The folder of the analysis: in the run's, or a new one for a network that has none."""
    if subject.run is not None:
        return subject.run / ANALYSIS_FOLDER
    name = "".join(c if c.isalnum() or c in "-_." else "-" for c in subject.title)
    folder = str(new_run_folder("runs", name)) if fabric.is_global_zero else ""
    return Path(fabric.broadcast(folder)) / ANALYSIS_FOLDER


def command(argv: Sequence[str]) -> None:
    """Run the command with the arguments behind its name.

    Raises:
        ValueError: a mistake in what was asked; see :func:`analyze`.
    """
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", ".*does not have many workers")
    set_parsing_settings(docstring_parse_attribute_docstrings=False)
    parser = ArgumentParser("python -m tunnel_lightning analyze", exit_on_error=False)
    parser.add_argument("--config", action="config", help="settings from a file")
    parser.add_function_arguments(analyze)
    given = list(argv)
    if given and not given[0].startswith("-"):
        given.insert(0, "--run")
    try:
        found = parser.parse_args(given)
    except ArgumentError as error:
        raise ValueError(" ".join(str(error).split())) from error
    made = parser.instantiate_classes(found)
    made.pop("config", None)
    analyze(**made)
