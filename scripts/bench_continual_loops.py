"""What Lightning's Trainer adds to a step of a strategy: the same tasks by both loops, in turns.

    python scripts/bench_continual_loops.py [--network resnet18|mlp] [--blocks 10]

A pair is one task learnt by Avalanche's own loop and the same task by the Trainer, each by a network of its own, in
one process, the first of the pair changing from pair to pair; the ratio is the median over pairs, with its quartiles.

- resnet18  ResNet-18 of width 16 on CIFAR-sized random pixels: 20 batches of 64 a task
- mlp       8 layers of 128 on Split Digits: 5 epochs of a task, batches of 32

Both are Naive with momentum SGD; float32, one thread unless OMP_NUM_THREADS says more, on a GPU where there is one.
Nothing is logged. The MLP is the worst case: its step takes about as long as the Python around it.
Results: docs/benchmarks.md.
"""

import argparse
import platform
import statistics
import time
import warnings

import torch
from torch import nn

from tunnel_lightning.backbones import MLP, ResNet
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.loops import Loop, make_loop
from tunnel_lightning.continual.scenarios import Scenario, make_stream
from tunnel_lightning.data import Digits

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def digits() -> list:
    return list(make_stream(Digits(), Scenario("class_incremental", 5), 10, 10).benchmark.train_stream)


def pixels() -> list:
    from avalanche.benchmarks import tensors_benchmark

    generator = torch.Generator().manual_seed(0)
    tasks = [
        (torch.randn(1280, 3, 32, 32, generator=generator), torch.arange(1280) % 2 + 2 * task)
        for task in range(5)
    ]
    return list(tensors_benchmark(tasks, tasks, task_labels=[0] * 5).train_stream)


def loop_of(name: str, network: str) -> Loop:
    from avalanche.training import Naive

    torch.manual_seed(0)
    if network == "mlp":
        model: nn.Module = MLP(depth=8, width=128, num_classes=10, input_shape=(1, 8, 8))
    else:
        model = ResNet(depth=18, width=16, num_classes=10)
    strategy = Naive(
        model=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=32 if network == "mlp" else 64,
        train_epochs=5 if network == "mlp" else 1,
        device=DEVICE,
        evaluator=None,
    )
    return make_loop(strategy, name)


def timed(loop: Loop, experience: object) -> float:
    """Seconds of a step."""
    steps, start = loop.steps, time.perf_counter()
    loop.train(experience)
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / (loop.steps - steps)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--network", choices=["resnet18", "mlp"], default="resnet18")
    parser.add_argument(
        "--blocks", type=int, default=10, help="rounds of 5 tasks for mlp, pairs for resnet18"
    )
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    avalanche()
    tasks = digits() * args.blocks if args.network == "mlp" else (pixels() * args.blocks)[: args.blocks]
    loops = {name: loop_of(name, args.network) for name in ("native", "lightning")}
    seconds: dict[str, list[float]] = {name: [] for name in loops}
    for turn, experience in enumerate([tasks[0], *tasks]):  # the first warms up
        for name in sorted(loops, reverse=turn % 2 == 0):
            seconds[name].append(timed(loops[name], experience))
    native, lightning = seconds["native"][1:], seconds["lightning"][1:]
    ratios = [b / a for a, b in zip(native, lightning, strict=True)]
    low, median, high = statistics.quantiles(ratios, n=4)
    where = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor() or platform.machine()
    print(f"{args.network} on {where}, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(
        f"a step: native {1e3 * statistics.median(native):.2f} ms, lightning "
        f"{1e3 * statistics.median(lightning):.2f} ms; ratio {median:.3f} [{low:.3f}, {high:.3f}], "
        f"{len(ratios)} pairs"
    )


if __name__ == "__main__":
    main()
