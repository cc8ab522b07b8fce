"""What `invert` refuses: one sentence, and nothing left behind."""

import numpy as np
import pytest
from PIL import Image

from tunnel_lightning.analysis.invert.options import Options

QUICK = ["--device=cpu", "--steps=2", "--images=1", "--starts=1", "--neighbours=0"]

MODULE = """
import torch
from torch import nn

class Stopped(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 8), nn.Linear(8, 10)
    def forward(self, x):
        return self.last(self.first(x.detach().flatten(1)))

class Odd(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(64, 10))
        self.act = nn.ReLU()
    def forward(self, x):
        return self.act(x.flatten(1)) @ self.weight
"""


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "give either a run folder"),
        (["nowhere"], "nowhere is no run folder: it has no config.yaml"),
        (["RUN", "--images=0"], "there is nothing to recover with 0 images: give at least 1"),
        (
            ["RUN", "--images=1000"],
            "Digits has 359 test images, fewer than the 1000 of --images: ask for fewer",
        ),
        (["RUN", "--starts=0"], "starts must be at least 1, got 0"),
        (["RUN", "--files="], "--files names no file"),
        (["RUN", "--files=nothing.png"], "there is no file nothing.png: check --files"),
        (["RUN", "--files=text.png"], "text.png can't be read as an image"),
        (["RUN", "--files=cut.png"], "cut.png can't be read as an image"),
        (["RUN", "--ood+=Glyphs"], "--ood names sets whose images are recovered with --others true: add it"),
        (["RUN", "--recipe=foo"], "recipe"),
        (["RUN", "--optimizer=foo"], "optimizer"),
        (["RUN", "--recipe=lbfgs", "--blur=true"], "recipe: L-BFGS needs a loss that stays the same"),
        (["RUN", "--lr=-1"], "recipe: lr is -1.0; give a positive number"),
        (["RUN", "--steps=0"], "recipe: steps is 0; give at least 1"),
        (["RUN", "--layers=blub*"], "taps.layers: 'blub*' matches no module of MLP"),
        (["RUN", "--layers=,"], "--layers names no layer"),
        (["RUN", "--sigma=0"], "sigma must be above 0, got 0"),
        (["RUN", "--memory_gb=0"], "memory_gb must be above 0"),
        (["RUN", "--device=tpu"], "no device 'tpu': choose one of auto"),
        (["RUN", "--ckpt=none.ckpt"], "there is no checkpoint none.ckpt"),
        (["RUN", "--blub=1"], "unrecognized arguments: --blub=1"),
        (["RUN", "--out=RUN"], "is a run folder: choose another place"),
        (["RUN", "--out=RUN/config.yaml"], "config.yaml is a file: give the inversion a folder of its own"),
        (["RUN", "--out=RUN/checkpoints"], "checkpoints holds something else than an inversion"),
        (
            ["--model=odd:Stopped", "--data=Digits", "--untrained=false"],
            "first has no gradient with respect to",
        ),
        (
            ["--model=odd:Odd", "--data=Digits", "--layers=act"],
            "Odd can't be drawn anew: nothing in it says how weight",
        ),
    ],
)
def test_mistakes_are_one_sentence_and_leave_nothing(
    invert, run, capsys, monkeypatch, tmp_path, arguments, said
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "odd.py").write_text(MODULE)
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:600])
    before = sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts)
    quick = [each for each in QUICK if each.partition("=")[0] not in {a.partition("=")[0] for a in arguments}]
    asked = [each.replace("RUN", str(run)) for each in arguments]
    assert invert(*asked, *(quick if arguments else [])) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("inverting")]
    assert len(lines) == 1, lines
    assert said in lines[0].removeprefix("error: ")
    assert sorted(path for path in tmp_path.rglob("*") if "__pycache__" not in path.parts) == before


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"most_layers": 1}, "most_layers must be at least 2"),
        ({"neighbours": -1}, "neighbours must be at least 0"),
        ({"noise_classes": 1}, "noise_classes must be at least 2"),
        ({"noise_lr": 0.0}, "noise_lr must be above 0"),
    ],
)
def test_options_out_of_range(settings, said):
    with pytest.raises(ValueError, match=said):
        Options(**settings)
