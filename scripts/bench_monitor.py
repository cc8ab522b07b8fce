"""What watching costs: paired blocks of the same work with and without it.

    python scripts/bench_monitor.py [--network resnet18|mlp] [--part probes|profile|fit] [--blocks 20]

Three ratios, each the median over alternating blocks with its quartiles:

- probes   a training step with online probes on every layer, over the same step without;
- profile  one whole profile (moments, ranks, variances, ridge probes, one other data set), over the bare forward
           pass of the images it reads;
- fit      a step of `Trainer.fit` with the monitor off, over a bare PyTorch loop on the same tensors.

Both sides of a pair live in one process and take turns, so that drift of the machine hits both. Networks see
CIFAR-sized random images at batch 128 in float32; the probes compute in float32 with autocast off. A GPU is used
where there is one (`--precision bf16-mixed --batch 512` for the figures quoted there). Results: docs/benchmarks.md.
"""

import argparse
import os
import platform
import statistics
import threading
import time
import warnings

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer, seed_everything
from torch import nn

from tunnel_lightning import Classifier
from tunnel_lightning.backbones import MLP, ResNet
from tunnel_lightning.callbacks import LayerMonitor, OnlineProbes, Schedule, TransferOptions
from tunnel_lightning.callbacks.probes import ProbeOptions
from tunnel_lightning.callbacks.ranks import RankOptions
from tunnel_lightning.data import DeviceLoader

NEVER = Schedule(start=False, every_n_epochs=0)


class Noise(LightningDataModule):
    """CIFAR-sized random images; labels that can be learnt a little, so that nothing degenerates."""

    num_classes, name, input_shape = 10, "Noise", (3, 32, 32)

    def __init__(self, n: int, batch: int, seed: int = 0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.batch = batch
        self.labels = torch.arange(n) % 10
        self.images = torch.randint(256, (n, 3, 32, 32), dtype=torch.uint8, generator=generator)
        self.images[:, 0, :8] += (self.labels * 10).to(torch.uint8)[:, None, None]

    def _loader(self, shuffle: bool = False) -> DeviceLoader:
        device = (
            self.trainer.strategy.root_device
            if self.trainer
            else "cuda"
            if torch.cuda.is_available()
            else "cpu"
        )
        return DeviceLoader(
            self.images, self.labels, self.batch, [0.5] * 3, [0.25] * 3, shuffle=shuffle, device=device
        )

    def train_dataloader(self) -> DeviceLoader:
        return self._loader(shuffle=True)

    def val_dataloader(self) -> DeviceLoader:
        return self._loader()

    test_dataloader = val_dataloader


def classifier(network: str, compile: bool = False) -> Classifier:
    seed_everything(0, verbose=False)
    backbone = ResNet(depth=18, width=64) if network == "resnet18" else MLP(depth=12, width=1024)
    return Classifier(backbone, optimizer=lambda params: torch.optim.SGD(params, lr=0.01, momentum=0.9))


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


class Turns:
    """Two workers in two threads take turns of ``steps`` steps; the time of each turn is kept."""

    def __init__(self, steps: int, blocks: int) -> None:
        self.steps, self.total = steps, (blocks + 1) * steps
        self.gates = [threading.Semaphore(1), threading.Semaphore(0)]
        self.times: list[list[float]] = [[], []]
        self.since = [0.0, 0.0]

    def before(self, who: int, step: int) -> None:
        if step % self.steps == 0:
            self.gates[who].acquire()
            synchronize()
            self.since[who] = time.perf_counter()

    def after(self, who: int, step: int) -> None:
        if (step + 1) % self.steps == 0:
            synchronize()
            self.times[who].append(time.perf_counter() - self.since[who])
            self.gates[1 - who].release()

    def ratios(self) -> list[float]:
        """Second worker over first, without the first block, which warms up."""
        first, second = (times[1:] for times in self.times)
        return [b / a for a, b in zip(first, second, strict=True)]


class TakeTurns(Callback):
    """Lets a Trainer take its turns: from before the first batch of a turn to after the callbacks of the last.

    The end of a turn is seen at the start of the next batch, so that every other callback's work is inside.
    """

    def __init__(self, turns: Turns, who: int) -> None:
        self.turns, self.who = turns, who

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        step = trainer.global_step
        if step:
            self.turns.after(self.who, step - 1)
        self.turns.before(self.who, step)

    def on_train_end(self, trainer, pl_module) -> None:
        self.turns.after(self.who, trainer.global_step - 1)


def trainer_of(options: argparse.Namespace, callbacks: list[Callback], steps: int) -> Trainer:
    return Trainer(
        max_steps=steps,
        max_epochs=-1,
        precision=options.precision,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
        devices=1,
    )


def run_both(first, second) -> None:
    threads = [threading.Thread(target=work) for work in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def bench_probes(options: argparse.Namespace) -> list[float]:
    turns = Turns(options.steps, options.blocks)
    data = [Noise(options.batch * 20, options.batch) for _ in range(2)]

    def work(who: int):
        watching = [OnlineProbes(profile=NEVER)] if who else []
        # first in the list: its batch start comes before, its end (the next start) after everyone else's work
        trainer = trainer_of(options, [TakeTurns(turns, who), *watching], turns.total)
        model = classifier(options.network)
        return lambda: trainer.fit(model, datamodule=data[who])

    run_both(work(0), work(1))
    return turns.ratios()


def bench_fit(options: argparse.Namespace) -> list[float]:
    turns = Turns(options.steps, options.blocks)
    data = Noise(options.batch * 20, options.batch)
    trainer = trainer_of(options, [TakeTurns(turns, 1)], turns.total)
    lit = classifier(options.network)

    def bare() -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        model = classifier(options.network).backbone.to(device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        loader = Noise(options.batch * 20, options.batch).train_dataloader()
        bf16 = options.precision == "bf16-mixed"
        step = 0
        while step < turns.total:
            for x, y in loader:
                turns.before(0, step)
                with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                    loss = nn.functional.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                turns.after(0, step)
                step += 1
                if step == turns.total:
                    break

    run_both(bare, lambda: trainer.fit(lit, datamodule=data))
    return turns.ratios()


class ProfileBlocks(Callback):
    """Alternates a bare forward pass and a whole profile over the same images, once the run has begun."""

    def __init__(self, monitor: LayerMonitor, blocks: int) -> None:
        self.monitor, self.blocks, self.ratios = monitor, blocks, []

    def on_train_start(self, trainer, pl_module) -> None:
        watch = self.monitor.watch
        watch.profile(watch.parts)  # learns the layers, measures the raw pixels, which are not measured again
        sources = [watch.train_source(self.monitor.bundle[0].options.fit_images)]
        sources.append(watch.val_source(self.monitor.bundle[0].options.eval_images))
        transfer = self.monitor.bundle[2]
        loaders = [source.loader().fixed(source.limit) for source in sources]
        for train, test in transfer._loaders.values():
            loaders += [train.fixed(transfer.options.fit_images), test.fixed(transfer.options.eval_images)]
        self.images = sum(loader.num_images for loader in loaders)
        for _ in range(self.blocks + 1):
            synchronize()
            start = time.perf_counter()
            pl_module.eval()
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                for loader in loaders:
                    for x, _ in loader:
                        pl_module(x)
            pl_module.train()
            synchronize()
            middle = time.perf_counter()
            watch.profiled_at = -1
            watch.profile(watch.parts)
            synchronize()
            end = time.perf_counter()
            self.ratios.append((end - middle) / (middle - start))
            print(f"    bare {middle - start:.2f} s, profile {end - middle:.2f} s", flush=True)


def bench_profile(options: argparse.Namespace) -> list[float]:
    monitor = LayerMonitor(
        profile=NEVER,
        probes=ProbeOptions(fit_images=options.images, eval_images=options.images),
        ranks=RankOptions(images=options.images),
        transfer=TransferOptions(
            [Noise(options.images, options.batch, seed=1)],
            fit_images=options.images,
            eval_images=options.images,
        ),
    )
    blocks = ProfileBlocks(monitor, options.blocks)
    trainer = trainer_of(options, [monitor, blocks], 1)
    trainer = Trainer(
        max_steps=1,
        precision=options.precision,
        callbacks=[monitor, blocks],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        devices=1,
    )
    trainer.fit(classifier(options.network), datamodule=Noise(options.images, options.batch))
    print(
        f"  {blocks.images} images a profile: {options.images} for each of fit, validation and transfer fit and test"
    )
    return blocks.ratios[1:]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--network", choices=["resnet18", "mlp"], default="mlp")
    parser.add_argument(
        "--part", choices=["probes", "profile", "fit"], nargs="+", default=["probes", "profile", "fit"]
    )
    parser.add_argument("--blocks", type=int, default=20)
    parser.add_argument("--steps", type=int, default=10, help="steps of a block")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=10_000, help="images of each set a profile reads")
    parser.add_argument("--precision", default="32-true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"{os.cpu_count()} cores, {platform.machine()}"
    )
    print(
        f"{options.network}, batch {options.batch}, {options.precision}; torch {torch.__version__}, {device}"
    )
    print(f"{'part':<10}{'median':>8}{'25 %':>8}{'75 %':>8}{'blocks':>8}")
    for part in options.part:
        work = {"probes": bench_probes, "profile": bench_profile, "fit": bench_fit}[part]
        ratios = work(options)
        low, _, high = statistics.quantiles(ratios, n=4)
        print(
            f"{part:<10}{statistics.median(ratios):>8.3f}{low:>8.3f}{high:>8.3f}{len(ratios):>8}", flush=True
        )


if __name__ == "__main__":
    main()
