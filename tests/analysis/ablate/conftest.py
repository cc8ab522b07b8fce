"""Two runs to ablate, and one ablation with everything in it."""

import shutil
from pathlib import Path

import pytest

from tunnel_lightning.analysis.ablate.command import ablate
from tunnel_lightning.analysis.ablate.options import Options
from tunnel_lightning.analysis.asked import Asked
from tunnel_lightning.analysis.subject import load_run_subject
from tunnel_lightning.runs import Row, write_analysis
from tunnel_lightning.runs.ablation import load_ablation

IMAGES = 120


def profile(run: Path, values=(0.5, 0.97, 0.99), network=1.0) -> None:
    """Give a run an analysis in which the tunnel starts at the second layer by one rule, the third by another."""
    step = load_run_subject(run).step
    whole = Row("tiny/version_0", step, 5, -1, "test", "Digits", "network", 4, "accuracy", "network", network)
    probes = [
        whole._replace(
            layer=f"layers.{k}.linear", index=k + 1, measure="probe_accuracy", variant="ridge", value=v
        )
        for k, v in enumerate(values)
    ]
    write_analysis(run / "analysis", [whole, *probes], summary={"dataset": "Digits", "step": step})


@pytest.fixture(scope="session")
def other(fit, tmp_path_factory) -> Path:
    """Another run of the architecture of `trained`."""
    return fit(tmp_path_factory.mktemp("other"), "--trainer.max_epochs=1", "--seed_everything=1")


@pytest.fixture(scope="session")
def residual(fit, tmp_path_factory) -> Path:
    """A run of a residual network; not to be changed."""
    network = ("--model.backbone=ResNet", "--model.backbone.depth=14", "--model.backbone.width=4")
    return fit(tmp_path_factory.mktemp("residual"), "--trainer.max_epochs=2", *network)


@pytest.fixture(scope="session")
def whole(trained, other, tmp_path_factory):
    """The ablation of a run with all kinds that apply to it, and the run's folder."""
    run = Path(shutil.copytree(trained, tmp_path_factory.mktemp("whole") / "tiny" / "version_0"))
    profile(run)
    options = Options(images=IMAGES, swap=str(other), retrain_epochs=1, fit_images=300)
    return load_ablation(ablate(Asked(str(run), device="cpu"), options)), run


@pytest.fixture(scope="session")
def deleted(residual, tmp_path_factory):
    """The ablation of a residual network by deletion alone."""
    options = Options(only="delete", images=IMAGES, bn_images=100)
    out = tmp_path_factory.mktemp("deleted") / "ablate"
    return load_ablation(ablate(Asked(str(residual), device="cpu", out=str(out)), options))
