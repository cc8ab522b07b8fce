"""All-layer logistic probes against scikit-learn's LogisticRegression, layer by layer.

    python scripts/bench_logistic.py [--blocks 3]

Both get the same float32 features, standardise them, and solve the same objective to the same largest gradient
component; the gradients reached are computed again, in float64, from the weights of either. The layers are those of
an MLP trained here for a while, before activation. Ours and theirs take turns layer by layer, in one process. The
default penalty is, at 10,000 images, scikit-learn's own default, C = 1.
"""

import argparse
import os
import statistics
import time
import warnings
from itertools import islice

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import nn

from tunnel_lightning.backbones import MLP
from tunnel_lightning.data import Arrays, Glyphs
from tunnel_lightning.measures import FeatureSample, accumulate, logistic
from tunnel_lightning.taps import Taps


def layers(options: argparse.Namespace) -> tuple[list[np.ndarray], np.ndarray, list[np.ndarray], np.ndarray]:
    """Features ``[N, D]`` and labels of the training and of the test images, layer by layer."""
    per_class = -(-options.images // 10)
    data = (
        Arrays(options.data)
        if options.data
        else Glyphs(
            classes=10, image_size=32, samples_per_class=per_class, test_samples_per_class=per_class // 5
        )
    )
    data.setup("fit")
    data.setup("test")
    torch.manual_seed(0)
    model = MLP(options.layers, options.dim, data.num_classes, data.input_shape)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    batches = (batch for _ in iter(int, 1) for batch in data.train_dataloader())
    for x, y in islice(batches, options.steps):
        loss = nn.functional.cross_entropy(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    found: list = []
    for loader in (data.train_dataloader().fixed(options.images), data.test_dataloader()):
        sample = FeatureSample(loader.num_images)
        accumulate(model, Taps(model), loader, (), observers=[sample], input=False)
        found += [[layer.numpy() for layer in sample.features.values()], sample.target.numpy()]
    return tuple(found)


def gradient(weight: np.ndarray, bias: np.ndarray, z: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """The largest component of the objective's gradient, in float64, on standardised features."""
    scores = z @ weight.T + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True) - np.eye(len(bias))[y]
    return max(np.abs(error.T @ z / len(z) + penalty * weight).max(), np.abs(error.mean(0)).max())


def bench(options: argparse.Namespace) -> list[float]:
    """Print what both need and reach, layer by layer; returns the ratio of the times, block by block."""
    features, y, test_features, test_y = layers(options)
    n, classes = len(y), int(y.max()) + 1
    ratios, differences, largest = [], [], [0.0, 0.0]
    for block in range(options.blocks):
        times = [0.0, 0.0]
        for i, (x, x_test) in enumerate(zip(features, test_features, strict=True), 1):
            start = time.perf_counter()
            fit = logistic(
                torch.from_numpy(x),
                torch.from_numpy(y),
                classes,
                options.penalty,
                options.tol,
            )
            middle = time.perf_counter()
            scaler = StandardScaler()
            model = LogisticRegression(C=1 / (options.penalty * n), tol=options.tol, max_iter=100_000)
            model.fit(scaler.fit_transform(x), y)
            end = time.perf_counter()
            times[0] += middle - start
            times[1] += end - middle
            if block:
                continue
            exact = StandardScaler().fit(x.astype(np.float64))
            z = exact.transform(x.astype(np.float64))
            weight = fit.head.weight.numpy() * exact.scale_
            bias = fit.head.bias.numpy() + fit.head.weight.numpy() @ exact.mean_
            reached = (
                gradient(weight, bias, z, y, options.penalty),
                gradient(model.coef_, model.intercept_, z, y, options.penalty),
            )
            largest = [max(pair) for pair in zip(largest, reached, strict=True)]
            ours = (fit.head(torch.from_numpy(x_test)).argmax(1).numpy() == test_y).mean()
            theirs = model.score(scaler.transform(x_test), test_y)
            differences.append(abs(ours - theirs))
            print(
                f"  layer {i:>2}: accuracy {100 * ours:5.2f} {100 * theirs:5.2f} %, iterations {fit.iterations:>4} "
                f"{model.n_iter_[0]:>5}, gradient {reached[0]:.1e} {reached[1]:.1e}, "
                f"seconds {middle - start:6.2f} {end - middle:6.2f}",
                flush=True,
            )
        ratios.append(times[1] / times[0])
        print(f"  block {block + 1}: {times[0]:.2f} s, scikit-learn {times[1]:.2f} s, {ratios[-1]:.1f} times")
    print(
        f"  {n} images, {options.layers} layers of {options.dim}, {classes} classes, penalty "
        f"{options.penalty}, tol {options.tol}: median {statistics.median(ratios):.1f} times as fast; largest "
        f"difference in accuracy {100 * max(differences):.2f} points, largest gradients {largest[0]:.1e} and "
        f"{largest[1]:.1e}"
    )
    return ratios


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--blocks", type=int, default=3)
    parser.add_argument("--images", type=int, default=10_000)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--dim", type=int, default=1024)
    parser.add_argument("--penalty", type=float, default=1e-4)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--data", help="an .npz of images; by default ten characters drawn here")
    parser.add_argument("--steps", type=int, default=300, help="of training, at batch 128")
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    bench(options)


if __name__ == "__main__":
    main()
