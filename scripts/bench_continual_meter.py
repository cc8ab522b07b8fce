"""What the layer meter adds to a continual run: Split CIFAR-10, 5 tasks of 5 epochs, ResNet-18 of width 16.

    python scripts/bench_continual_meter.py [--batch 64] [--train 1000] [--test 1000] [--blocks 8]

Two things are timed in one process and taken together for the whole run (250,000 images trained on):

- a step of Avalanche's Naive with the online probes on every layer, beside the same step without, in alternating
  blocks of 25 steps: the median of the blocks' ratios;
- a measurement of all five tasks, before the first task and after each, at the meter's defaults, on so many training
  and test images of each task.

The ratio is all of the meter's time over the time of the run without it. Images are CIFAR-sized noise that can be
learnt a little; float32 on the CPU. Results: docs/benchmarks.md.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import nn

from tunnel_lightning.backbones import ResNet
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.meter import PROBES, LayerMeter
from tunnel_lightning.continual.stream import Images, Stream, Task

TASKS, EPOCHS, TASK_IMAGES = 5, 5, 10_000


def noise(images: int, classes: tuple[int, ...], seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    y = torch.tensor(classes)[torch.arange(images) % len(classes)]
    centres = torch.randn(10, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return Images(torch.randn(images, 3, 32, 32, generator=generator) + 0.3 * centres[y], y, y)


def stream_of(train_images: int, test_images: int) -> Stream:
    tasks = []
    for index in range(TASKS):
        classes = (2 * index, 2 * index + 1)
        names = tuple(map(str, classes))
        train = noise(train_images, classes, 2 * index)
        test = noise(test_images, classes, 2 * index + 1)
        tasks.append(Task(index, f"task {index + 1}", 0, classes, classes, names, train, test))
    return Stream("Noise", "class_incremental", None, tuple(tasks), 10, 10, (3, 32, 32), False)


def naive(network: nn.Module, batch: int, plugins: list) -> object:
    from avalanche.training.plugins import EvaluationPlugin
    from avalanche.training.supervised import Naive

    return Naive(
        model=network,
        optimizer=torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9),
        criterion=nn.CrossEntropyLoss(),
        train_mb_size=batch,
        train_epochs=1,
        plugins=plugins,
        evaluator=EvaluationPlugin(loggers=[]),
    )


def experience_of(images: Images) -> object:
    from avalanche.benchmarks import tensors_benchmark

    pair = [(images.x, images.y)]
    return tensors_benchmark(pair, pair, task_labels=[0]).train_stream[0]


def timed(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--train", type=int, default=1000)
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--blocks", type=int, default=8)
    parser.add_argument("--steps", type=int, default=25, help="of a block")
    args = parser.parse_args()
    avalanche()
    torch.manual_seed(0)
    stream = stream_of(args.train, args.test)
    network = ResNet(depth=18, width=16, num_classes=10)
    meter = LayerMeter(stream, probes=PROBES)
    meter.start(network)
    experience = experience_of(noise(args.steps * args.batch, (0, 1), 99))
    bare, probed = naive(network, args.batch, []), naive(network, args.batch, meter.plugins())
    sides = {"without": bare, "with": probed}
    times: dict[str, list[float]] = {name: [] for name in sides}
    for block in range(args.blocks + 1):
        for name, strategy in sides.items():
            taken = timed(lambda strategy=strategy: strategy.train(experience)) / args.steps
            if block:  # the first warms up
                times[name].append(taken)
    step = statistics.median(times["without"])
    # Each block beside the one before it: the machine's drift hits both.
    online = statistics.median(b / a - 1 for a, b in zip(times["without"], times["with"], strict=True))
    measured = [timed(lambda after=after: meter.measure(network, after)) for after in range(-1, TASKS)]
    run = TASKS * EPOCHS * TASK_IMAGES / args.batch * step
    print(
        f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads, batch {args.batch}"
    )
    print(f"step          {1e3 * step:.1f} ms, with online probes {1 + online:.3f} times that")
    print(f"measurement   {', '.join(f'{each:.1f}' for each in measured)} s")
    print(f"run           {run:.0f} s; measurements {sum(measured):.0f} s, {sum(measured) / run:.3f} of it")
    print(f"ratio         {online + sum(measured) / run:.3f}")
    print(f"kept          {meter.nbytes / 2**20:.1f} MiB for {TASKS} tasks")


if __name__ == "__main__":
    main()
