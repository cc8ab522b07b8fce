"""How much faster a cut network is, measured: whole and cut, in PyTorch (eager) and in onnxruntime, 1 and 256 images.

    python -m tunnel_lightning trim RUN --keep 0.98
    python scripts/bench_trim.py RUN [--turns 31] [--threads 2] [--device cpu]

Both networks live in one process and take turns, whole and cut side by side in every round, so that drift of the
machine hits both; what is told is the median over the rounds with the quartiles, and the median of the paired ratios.
The cut network is the one that ``trim`` wrote: its checkpoint in PyTorch, its cut.onnx in onnxruntime. What it keeps
of the accuracy is told in RUN/trim. Results: docs/benchmarks.md.
"""

import argparse
import platform
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from tunnel_lightning import Classifier
from tunnel_lightning.analysis.subject import load_run_subject
from tunnel_lightning.analysis.trim.latency import conditions, latencies, speedups, spread
from tunnel_lightning.runs.trimming import load_trimming

BATCHES = (1, 256)
Call = Callable[[Tensor], object]


def session_of(path: Path, threads: int) -> Call:
    """A graph under onnxruntime, on so many threads of the CPU."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x.numpy()})


def exported(network: nn.Module, x: Tensor, path: Path) -> Path:
    """The whole network as ONNX, any number of images, as ``trim`` writes the cut one."""
    batch = torch.export.Dim("batch", min=1)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.export.export(network, (x[:2],), dynamic_shapes=({0: batch},), strict=False)
        torch.onnx.export(program, f=path, dynamo=True, verbose=False, external_data=False)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("run", type=Path, help="a run folder that was trimmed")
    parser.add_argument("--turns", type=int, default=31)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu", help="of PyTorch; onnxruntime runs on the CPU")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device = torch.device(options.device)

    found = load_trimming(options.run)
    if found.chosen is None:
        sys.exit(f"{options.run} has no tunnel to cut: {found.summary['choice']['why']}")
    subject = load_run_subject(options.run, found.summary["checkpoint"], ood=[])
    own, _ = subject.sets()
    x = torch.cat([x for x, _ in own.batches("test", max(BATCHES))])
    x = x.repeat(-(-max(BATCHES) // len(x)), 1, 1, 1)[: max(BATCHES)].contiguous()
    whole = subject.model.eval()
    cut = Classifier.load_from_checkpoint(found.path / "checkpoints" / "last.ckpt").backbone.cpu().eval()

    machine = conditions(device)
    where = machine["device_name"] or machine["processor"]
    print(
        f"{subject.title} on {own.name}, cut behind layer {found.chosen}: {found.summary['choice']['layer']}"
    )
    print(f"FLOPs {found.at('flops', found.chosen) / found.at('flops', -1):.1%} of the whole network's")
    print(
        f"{where}, {machine['cores_usable']} cores usable, {options.threads} threads, {platform.platform()}"
    )
    print(
        f"torch {torch.__version__} on {device}, onnxruntime {onnxruntime.__version__} on cpu, {time.strftime('%F')}"
    )
    print(
        f"\n{'':<13}{'batch':>6}{'n':>4}  {'whole ms (quartiles)':<32}{'cut ms (quartiles)':<32}times faster"
    )
    with tempfile.TemporaryDirectory() as folder:
        path = exported(whole, x, Path(folder) / "whole.onnx")
        engines: dict[str, tuple[Call, Call, torch.device]] = {
            "onnxruntime": (
                session_of(path, options.threads),
                session_of(found.path / "cut.onnx", options.threads),
                torch.device("cpu"),
            ),
        }
        whole.to(device)
        engines = {"PyTorch": (whole, cut.to(device), device), **engines}
        for name, (one, other, place) in engines.items():
            for size in BATCHES:
                given, turns = x[:size].contiguous().to(place), (options.turns, options.turns)
                pairs = latencies(one, {"cut": other}, given, turns)["cut"]
                before, after, ratio = spread(1e3 * pairs[:, 1]), spread(1e3 * pairs[:, 0]), speedups(pairs)
                told = [f"{m:.3f} ({low:.3f} to {high:.3f})" for m, low, high in (before, after)]
                times = "{:.2f} ({:.2f} to {:.2f})".format(*ratio)
                print(f"{name:<13}{size:>6}{len(pairs):>4}  {told[0]:<32}{told[1]:<32}{times}")


if __name__ == "__main__":
    main()
