"""What an analysis costs, side by side with what it is measured against.

    python scripts/bench_analysis.py --part whole|memory|cka|logistic [--blocks 20]

- whole    the streamed analysis of a ResNet-18 (moments, ranks, ridge probes, variances, collapse, CKA; default taps
           and pooling) over the bare forward pass of the images it reads; eigenvalue and probe solving stated apart.
- memory   the largest memory of that analysis with 10,000 and with 50,000 images, each in a process of its own.
- logistic logistic probes of all layers, against scikit-learn layer by layer (scripts/bench_logistic.py).
- cka      CKA of all layers of two untrained tanh networks, forward passes included, against the packages
           `torch_cka` and `pytorch-cka` where they are installed (in an environment of their own: nothing here needs
           them); and what each makes of a network whose mean dwarfs its deviation, and of a ReLU in place.

All contenders live in one process and take turns, so that drift of the machine hits all. Results: docs/benchmarks.md.
"""

import argparse
import contextlib
import copy
import importlib.util
import io
import os
import platform
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.options import STREAMED, Options
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.streamed import own_set
from tunnel_lightning.analysis.subject import subject_of
from tunnel_lightning.backbones import ResNet
from tunnel_lightning.measures.functional.similarity import hsic_1
from tunnel_lightning.measures.similarity import LayerSimilarity
from tunnel_lightning.taps import Taps, TapSpec


class Batches(list[tuple[Tensor, Tensor]]):
    """A loader whose batches are in memory; torch_cka wants to name its data set."""

    dataset = "noise"


Contender = Callable[[nn.Module, nn.Module, Batches, list[str]], Tensor]


def network(
    depth: int, width: int, seed: int, activation: Callable[[], nn.Module] = nn.Tanh
) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        *(make() for _ in range(depth) for make in (lambda: nn.Linear(width, width), activation))
    )


def every_activation(depth: int) -> list[str]:
    return [str(i) for i in range(1, 2 * depth, 2)]


def forward(first: nn.Module, second: nn.Module, batches: Batches, layers: list[str]) -> Tensor:
    with torch.no_grad():
        for x, _ in batches:
            first(x)
            second(x)
    return torch.empty(0)


def ours(first: nn.Module, second: nn.Module, batches: Batches, layers: list[str]) -> Tensor:
    spec = TapSpec(layers=layers, pool="gram")
    similarity = LayerSimilarity(grams=True)
    with Taps(first, spec) as a, Taps(second, spec) as b, torch.inference_mode():
        for taps in (a, b):
            taps.dry_run(batches[0][0][:2])
        for x, _ in batches:
            features = {}
            for which, taps in (("first", a), ("second", b)):
                taps.arm()
                taps.model(x)
                features.update({f"{which}:{name}": rows for name, rows in taps.take().items()})
                taps.disarm()
            similarity.update(features)
    return similarity.compute().between([f"first:{n}" for n in layers], [f"second:{n}" for n in layers])[0]


def pytorch_cka(first: nn.Module, second: nn.Module, batches: Batches, layers: list[str]) -> Tensor:
    from cka import compute_cka

    # A list is taken for a list of loaders.
    return compute_cka(first, second, [batches], layers=layers, device="cpu", progress=False)[0]


def torch_cka(first: nn.Module, second: nn.Module, batches: Batches, layers: list[str]) -> Tensor:
    from torch_cka import CKA  # type: ignore[import-not-found]

    cka = CKA(first, second, model1_layers=layers, model2_layers=layers, device="cpu")
    cka.compare(batches)
    # Its hooks stay for good: taken off, or every turn would cost more than the last.
    for module in (*first.modules(), *second.modules()):
        module._forward_hooks.clear()
    return cka.export()["CKA"]


CONTENDERS: dict[str, Contender] = {
    "forward": forward,
    "ours": ours,
    "pytorch-cka": pytorch_cka,
    "torch_cka": torch_cka,
}


def installed() -> dict[str, Contender]:
    found = dict(CONTENDERS)
    for name, module in (("pytorch-cka", "cka"), ("torch_cka", "torch_cka")):
        if importlib.util.find_spec(module) is None:
            print(f"{name} is not installed: left out")
            del found[name]
    return found


def outputs(model: nn.Sequential, x: Tensor) -> dict[str, Tensor]:
    found = {}
    with torch.no_grad():
        for name, module in model.named_children():
            x = module(x.clone())
            found[name] = x
    return found


def exact(model: nn.Sequential, batches: Batches, layers: list[str]) -> Tensor:
    """The map of a network with itself, in float64: the same float32 features, centred, then the formula."""
    total = torch.zeros(len(layers), len(layers), dtype=torch.float64)
    for x, _ in batches:
        features = outputs(model, x)
        centred = [features[name].double() - features[name].double().mean(0) for name in layers]
        grams = [rows @ rows.T for rows in centred]
        total += torch.tensor([[hsic_1(k, other).item() for other in grams] for k in grams])
    root = total.diagonal().sqrt()
    return total / root / root[:, None]


def check_untrained(contender: Contender, options: argparse.Namespace, batches: Batches) -> list[float]:
    """A network with torch's own initial weights and itself: smallest diagonal, largest error."""
    model, layers = network(options.depth, options.width, seed=0), every_activation(options.depth)
    found = contender(model, copy.deepcopy(model), batches, layers).double()
    return [found.diagonal().min().item(), (found - exact(model, batches, layers)).abs().max().item()]


def check_in_place(contender: Contender, options: argparse.Namespace, batches: Batches) -> list[float]:
    """The layers before a ReLU in place and before one that is not, of equal weights: smallest similarity."""
    plain = network(4, options.width, seed=0, activation=nn.ReLU)
    inplace = copy.deepcopy(plain)
    for module in inplace.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    return [contender(inplace, plain, batches, [str(i) for i in range(0, 8, 2)]).diagonal().min().item()]


def cells(check: Callable[..., list[float]], width: int, *args: object) -> str:
    """What a check found, or that the contender gave up."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            return "".join(f"{value:>{width}.4g}" for value in check(*args))
    except AssertionError as error:
        return f"  gives up: {error}"


def bench_cka(options: argparse.Namespace) -> None:
    generator = torch.Generator().manual_seed(0)
    batches = Batches(
        (torch.randn(options.batch, options.width, generator=generator), torch.zeros(options.batch))
        for _ in range(options.batches)
    )
    layers = every_activation(options.depth)
    pair = [network(options.depth, options.width, seed) for seed in (0, 1)]
    for model in pair:
        # Spread as in a trained network: with torch's own initial weights torch_cka gives up.
        for module in model[::2]:
            nn.init.xavier_normal_(module.weight, gain=nn.init.calculate_gain("tanh"))
    contenders = installed()
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for block in range(options.blocks + 1):
        for name in list(contenders)[:: 1 if block % 2 else -1]:
            # Progress bars of the others are not to be seen, nor timed on a terminal.
            with contextlib.redirect_stderr(io.StringIO()):
                start = time.perf_counter()
                contenders[name](*pair, batches, layers)
                seconds[name].append(time.perf_counter() - start)
    print(
        f"{options.depth} layers, n={options.batch}, d={options.width}, {options.batches} batches, two networks"
    )
    print(f"{'':<14}{'seconds':>9}{'25 %':>9}{'75 %':>9}{'/ ours':>9}{'25 %':>9}{'75 %':>9}")
    for name in contenders:
        low, middle, high = statistics.quantiles(seconds[name][1:], n=4)
        ratios = [mine / other for mine, other in zip(seconds[name][1:], seconds["ours"][1:], strict=True)]
        ratio_low, ratio, ratio_high = statistics.quantiles(ratios, n=4)
        line = (
            f"{name:<14}{middle:>9.3f}{low:>9.3f}{high:>9.3f}{ratio:>9.2f}{ratio_low:>9.2f}{ratio_high:>9.2f}"
        )
        print(line, flush=True)
    few = Batches(batches[:2])
    print(f"{'':<14}{'in place: diagonal':>20}{'untrained: diagonal':>20}{'error':>20}")
    for name, contender in list(contenders.items())[1:]:
        found = [cells(check, 20, contender, options, few) for check in (check_in_place, check_untrained)]
        print(f"{name:<14}", *found, sep="", flush=True)


class Repeated(Dataset):
    """As many images as one likes out of a few: a data set that takes no memory."""

    def __init__(self, count: int) -> None:
        self.count, generator = count, torch.Generator().manual_seed(0)
        self.images = torch.randn(2_048, 3, 32, 32, generator=generator)
        self.targets = [i % 10 for i in range(count)]

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Tensor, int]:
        return self.images[i % len(self.images)], self.targets[i]

    def __getitems__(self, indices: list[int]) -> list[tuple[Tensor, int]]:
        return [self[i] for i in indices]


def streamed_analysis(images: int, width: int) -> Context:
    torch.manual_seed(0)
    own = ImageSet.from_loaders("noise", Repeated(images), Repeated(images), 10)
    subject = subject_of(ResNet(depth=18, width=width).eval(), "ResNet-18", own)
    return Context(subject, own, [], Options(measures=STREAMED))


def bench_whole(options: argparse.Namespace) -> None:
    context = streamed_analysis(options.images, options.channels)
    print(
        f"ResNet-18 width {options.channels}, {options.images} training and as many test images, batches of 256"
    )
    print(f"{'bare s':>9}{'whole s':>9}{'solving':>9}{'eigen':>9}{'ratio':>9}{'without':>9}")
    ratios, without = [], []
    for block in range(options.blocks + 1):
        start = time.perf_counter()
        with torch.no_grad():
            for split in ("train", "test"):
                for x, _ in context.own.batches(split):
                    context.model(x)
        middle = time.perf_counter()
        context.seconds = {}
        own_set(context)
        whole, bare = time.perf_counter() - middle, middle - start
        apart = sum(context.seconds.values())
        if block:  # the first one warms up
            ratios.append(whole / bare)
            without.append((whole - apart) / bare)
        print(
            f"{bare:>9.2f}{whole:>9.2f}{context.seconds['solving']:>9.2f}{context.seconds['eigenvalues']:>9.2f}"
            f"{whole / bare:>9.3f}{(whole - apart) / bare:>9.3f}",
            flush=True,
        )
    for name, values in (("whole", ratios), ("without solving and eigenvalues", without)):
        low, middle, high = statistics.quantiles(values, n=4) if len(values) > 1 else values * 3
        print(f"{name}: median {middle:.3f}, quartiles {low:.3f} and {high:.3f}, {len(values)} blocks")


def bench_memory(options: argparse.Namespace) -> None:
    peaks = []
    for images in (10_000, 50_000):
        code = (
            "import sys; sys.path.insert(0, 'scripts'); import resource, bench_analysis as b; "
            f"b.own_set(b.streamed_analysis({images}, {options.channels})); "
            "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
        peaks.append(int(done.stdout.split()[-1]) / 2**20)
        print(f"{images:>7} training and as many test images: {peaks[-1]:.3f} GiB at the most", flush=True)
    print(f"ratio {peaks[1] / peaks[0]:.3f}")


def bench_logistic(options: argparse.Namespace) -> None:
    import bench_logistic  # of the same folder

    bench_logistic.main(["--blocks", str(options.blocks)])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--part", choices=["whole", "memory", "cka", "logistic"], nargs="+", default=["cka"])
    parser.add_argument("--images", type=int, default=10_000, help="of each split, for `whole`")
    parser.add_argument("--channels", type=int, default=64, help="of the ResNet's first stage")
    parser.add_argument("--blocks", type=int, default=20, help="turns of each contender that count")
    parser.add_argument("--depth", type=int, default=24)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--batches", type=int, default=10)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    print(
        f"torch {torch.__version__}, {torch.get_num_threads()} of {os.cpu_count()} cores, {platform.machine()}"
    )
    for part in options.part:
        {"whole": bench_whole, "memory": bench_memory, "cka": bench_cka, "logistic": bench_logistic}[part](
            options
        )


if __name__ == "__main__":
    main()
