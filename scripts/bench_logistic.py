"""All-layer logistic probes against scikit-learn's LogisticRegression, layer by layer.

    python scripts/bench_logistic.py [--blocks 3]

Both get the same float32 features, standardise them, and solve the same objective to the same largest gradient
component; the gradients reached are computed again, in float64, from the weights of either. The layers are made:
ReLU of correlated columns whose spectrum falls the faster, and whose classes lie the further apart, the deeper the
layer, as those of a trained network do. Ours and theirs take turns layer by layer, in one process.
"""

import argparse
import os
import statistics
import time
import warnings

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from tunnel_lightning.measures.functional.logistic import logistic


def layers(options: argparse.Namespace) -> tuple[list[np.ndarray], np.ndarray]:
    """Features ``[2 N, D]`` of every layer, the second half to test on, and labels."""
    rng = np.random.default_rng(0)
    n, dim = 2 * options.images, options.dim
    y = rng.integers(options.classes, size=n)
    found = []
    for depth in np.linspace(0, 1, options.layers):
        decay = np.arange(1, dim + 1) ** (-0.4 - 0.6 * depth)
        means = rng.standard_normal((options.classes, dim)) * decay * (0.3 + 0.7 * depth)
        mixing = rng.standard_normal((dim, dim)) / np.sqrt(dim)
        x = ((rng.standard_normal((n, dim)) * decay + means[y]) @ mixing).astype(np.float32)
        found.append(np.maximum(x, 0) if options.relu else x)
    return found, y


def gradient(weight: np.ndarray, bias: np.ndarray, z: np.ndarray, y: np.ndarray, penalty: float) -> float:
    """The largest component of the objective's gradient, in float64, on standardised features."""
    scores = z @ weight.T + bias
    p = np.exp(scores - scores.max(1, keepdims=True))
    error = p / p.sum(1, keepdims=True) - np.eye(len(bias))[y]
    return max(np.abs(error.T @ z / len(z) + penalty * weight).max(), np.abs(error.mean(0)).max())


def bench(options: argparse.Namespace) -> list[float]:
    """Print what both need and reach, layer by layer; returns the ratio of the times, block by block."""
    features, y = layers(options)
    n = options.images
    ratios, differences, largest = [], [], [0.0, 0.0]
    for block in range(options.blocks):
        times = [0.0, 0.0]
        for i, x in enumerate(features, 1):
            start = time.perf_counter()
            fit = logistic(
                torch.from_numpy(x[:n]),
                torch.from_numpy(y[:n]),
                options.classes,
                options.penalty,
                options.tol,
            )
            middle = time.perf_counter()
            scaler = StandardScaler()
            model = LogisticRegression(C=1 / (options.penalty * n), tol=options.tol, max_iter=100_000)
            model.fit(scaler.fit_transform(x[:n]), y[:n])
            end = time.perf_counter()
            times[0] += middle - start
            times[1] += end - middle
            if block:
                continue
            exact = StandardScaler().fit(x[:n].astype(np.float64))
            z = exact.transform(x[:n].astype(np.float64))
            weight = fit.head.weight.numpy() * exact.scale_
            bias = fit.head.bias.numpy() + fit.head.weight.numpy() @ exact.mean_
            reached = (
                gradient(weight, bias, z, y[:n], options.penalty),
                gradient(model.coef_, model.intercept_, z, y[:n], options.penalty),
            )
            largest = [max(pair) for pair in zip(largest, reached, strict=True)]
            ours = (fit.head(torch.from_numpy(x[n:])).argmax(1).numpy() == y[n:]).mean()
            theirs = model.score(scaler.transform(x[n:]), y[n:])
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
        f"  {n} images, {options.layers} layers of {options.dim}, {options.classes} classes, penalty "
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
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--penalty", type=float, default=1e-3)
    parser.add_argument("--tol", type=float, default=1e-4)
    parser.add_argument("--relu", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args(argv)
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {os.cpu_count()} cores")
    bench(options)


if __name__ == "__main__":
    main()
