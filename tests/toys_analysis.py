"""A small trained network with its images, and settings and ways to ask, for the tests of the analysis."""

import os
import signal
import subprocess
import sys
from typing import Any

import pytest
import torch
from torch import nn
from toys import Images, Net

import tunnel_lightning

LAYERS = ["input", "0", "4", "7"]
TRAIN, TEST = Images(300, 0), Images(150, 1)
OTHER = (Images(120, 2, classes=3), Images(90, 3, classes=3))

FEW = ["--device=cpu", "--fit_images=100", "--eval_images=60", "--sample=60", "--block_images=32"]
FAST = [*FEW, "--measures=ridge,ranks"]


def analyze(model, train, test, ood=(), **options):
    """Without a transfer set unless one is named: rendering one for every test takes long."""
    return tunnel_lightning.analyze(model, train, test, ood, **options)


def trained(seed=0):
    """A network that knows something, in evaluation mode."""
    torch.manual_seed(seed)
    net = Net()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(15):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(TRAIN.x), TRAIN.y).backward()
        optimizer.step()
    return net.eval()


def features(net, images):
    """The layers' outputs, averaged to 2 x 2, by plain indexing of the sequence; and the scores."""
    found, x = {"input": images.x.flatten(1)}, images.x
    with torch.no_grad():
        for name, layer in net.named_children():
            x = layer(x)
            if name in LAYERS:
                found[name] = (
                    (nn.functional.adaptive_avg_pool2d(x, 2) if x.ndim == 4 else x).flatten(1).clone()
                )
    return {name: y.double().numpy() for name, y in found.items()}, x


def values(profile, measure, variant, dataset="data", split="test"):
    """Values of a profile by layer."""
    return {
        r.layer: r.value
        for r in profile.rows
        if (r.measure, r.variant, r.dataset, r.split) == (measure, variant, dataset, split)
    }


def same_rows(one, two):
    assert [r._replace(value=0, se=0) for r in one] == [r._replace(value=0, se=0) for r in two]
    assert [(r.value, r.se, r.n) for r in one] == [
        pytest.approx((r.value, r.se, r.n), nan_ok=True) for r in two
    ]


def files(folder):
    """When each file below a folder was last written."""
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def heed_ctrl_c() -> None:
    """What a shell starts in the background ignores Ctrl-C, and so would all that it starts in turn."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def python(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """The command line in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100"}
    return subprocess.Popen(
        [sys.executable, "-m", "tunnel_lightning", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, preexec_fn=heed_ctrl_c, **options,
    )  # fmt: skip
