"""What inverting costs, side by side with the bare forward and backward passes it needs.

    python scripts/bench_invert.py [--steps 20] [--turns 10] [--recipe badger]

A CIFAR ResNet-18 (width 64, images 32 x 32), 8 layers (its blocks), 5 images x 3 starts in one batch of 15.

- bare     as many passes of the same batch, only as deep as the layer: forward, then the gradient of the output's sum
           with respect to the pixels alone; no loss, no step, no curves, no hooks.
- descent  what `invert` does from its first step to its last: the same passes, the loss and its gradient, the
           optimizer's step, the blur, curves at every tenth step (as of 500 steps in 50 points).
- once     what it does besides, once a layer: finding the layer, the embeddings of images and references, the memory
           that an image takes, the curves' last point.

Few steps are timed and the ratio is told of `--whole` steps (500, the paper's): (once + whole x descent) over
(whole x bare). Both take turns layer by layer in one process, so that drift of the machine hits both; medians and
quartiles are over turns. Results: docs/benchmarks.md.
"""

import argparse
import os
import platform
import statistics
import time

import torch
from torch import Tensor, nn

from tunnel_lightning.analysis.invert.recipe import PRESETS, Recipe, preset
from tunnel_lightning.analysis.invert.recover import invert
from tunnel_lightning.backbones import ResNet
from tunnel_lightning.taps import Tap, tap

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]


def as_deep(network: ResNet, layer: Tap) -> nn.Sequential:
    """The network up to the end of a block, and nothing else."""
    modules: list[nn.Module] = [network.stem]
    for i, stage in enumerate(network.stages):
        for j, block in enumerate(stage):
            modules.append(block)
            if layer.name == f"stages.{i}.{j}":
                return nn.Sequential(*modules)
    raise ValueError(f"{layer.name} is no block")


def bare(part: nn.Module, x: Tensor, steps: int) -> float:
    start = time.perf_counter()
    for _ in range(steps):
        torch.autograd.grad(part(x).sum(), x)
    return time.perf_counter() - start


def ours(network: nn.Module, layer: Tap, images: Tensor, recipe: Recipe, starts: int) -> tuple[float, float]:
    """Seconds of the descent, and of all the rest."""
    times: list[float] = []
    start = time.perf_counter()
    found = invert(
        network,
        [layer],
        images,
        recipe,
        mean=MEAN,
        std=STD,
        starts=starts,
        points=max(1, recipe.steps // 10),
        progress=lambda *_: times.append(time.perf_counter()),
    )
    assert found.images.isfinite().all() or recipe.name.startswith("badger")
    descent = times[-1] - times[0]
    return descent, time.perf_counter() - start - descent


def told(name: str, values: list[float]) -> None:
    low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
    print(f"{name:<14}{middle:>10.4f}{low:>10.4f}{high:>10.4f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="of each turn")
    parser.add_argument("--whole", type=int, default=500, help="steps that the ratio is told of")
    parser.add_argument("--turns", type=int, default=10, help="that count")
    parser.add_argument("--recipe", choices=[name for name in PRESETS if name != "lbfgs"], default="badger")
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--starts", type=int, default=3)
    parser.add_argument("--channels", type=int, default=64, help="of the ResNet's first stage")
    options = parser.parse_args()
    recipe = preset(options.recipe, steps=options.steps)
    torch.manual_seed(0)
    network = ResNet(18, width=options.channels).eval().requires_grad_(False)
    images = torch.rand(options.images, 3, 32, 32)
    batch = torch.rand(options.images * options.starts, 3, 32, 32).requires_grad_()
    with tap(network, images, "block") as taps:
        layers = taps.layers
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores, {platform.machine()}; "
        f"ResNet-18 width {options.channels}, {len(layers)} layers, {options.images} images x "
        f"{options.starts} starts, {recipe}"
    )
    ratios: dict[str, list[float]] = {
        name: [] for name in (*(layer.name for layer in layers), "all layers", "steps alone")
    }
    for turn in range(options.turns + 1):
        sums = [0.0, 0.0, 0.0]
        for layer in layers:
            part = as_deep(network, layer)
            passes = lambda part=part: bare(part, batch, options.steps)  # noqa: E731
            if turn % 2:
                lower, (descent, once) = passes(), ours(network, layer, images, recipe, options.starts)
            else:
                (descent, once), lower = ours(network, layer, images, recipe, options.starts), passes()
            rate = options.whole / options.steps
            if turn:  # the first one warms up
                ratios[layer.name].append((once + rate * descent) / (rate * lower))
            sums = [total + value for total, value in zip(sums, (lower, descent, once), strict=True)]
        lower, descent, once = sums
        if turn:
            ratios["all layers"].append((once + rate * descent) / (rate * lower))
            ratios["steps alone"].append(descent / lower)
            print(
                f"turn {turn}: bare {lower / options.steps:.3f} s a step, descent {descent / options.steps:.3f}, "
                f"once {once:.2f} s, ratio {ratios['all layers'][-1]:.3f}",
                flush=True,
            )
    print(f"{'':<14}{'ratio':>10}{'25 %':>10}{'75 %':>10}")
    for name, values in ratios.items():
        told(name, values)


if __name__ == "__main__":
    main()
