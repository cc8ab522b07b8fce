"""Cutting the tunnel away beside what one would reach for otherwise, on one run: accuracy, transfer, cost, time.

    pip install torch-pruning
    python scripts/compare_pruning.py runs/resnet/version_0 --out OUT

Compared, all on the same images, each as it is, with a ridge head refitted on the same training images, and after the
same few steps of training (from two heads, its own and the ridge head over its temperature, at each of two learning
rates; the best on validation images):

- the network cut behind a layer, with a ridge head there;
- Torch-Pruning's structured pruning by magnitude (Fang et al., CVPR 2023), at several ratios;
- removal of whole layers or residual blocks by CKA of the final representation (Pons et al., ICPR 2024), one by one;
- early exits, with the same ridge heads (not trained further: that would need a loss at every exit).

OUT gets table.md, figure.png and results.json. Transfer is a ridge probe on the final representation.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _pruned import Batches, accuracy, by_cka, features_of, refitted, scaled, structured, tuned
from torch import nn

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.streamed import Plan, fit
from tunnel_lightning.analysis.subject import load_run_subject
from tunnel_lightning.analysis.trim.choose import cheapest
from tunnel_lightning.analysis.trim.exits import fit_exits
from tunnel_lightning.analysis.trim.leaving import side_by_side
from tunnel_lightning.backbones import Backbone
from tunnel_lightning.measures.functional import ridge
from tunnel_lightning.module import Classifier
from tunnel_lightning.surgery.cut import costs_of, cut
from tunnel_lightning.taps import TapSpec


def main() -> None:
    """Compare, and write what was found."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument(
        "--layers", default="default", help="layers to cut behind: a kind, or globs with commas"
    )
    parser.add_argument("--keeps", type=float, nargs="+", default=[0.98, 0.95])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.25, 0.45])
    parser.add_argument("--removed", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--images", type=int, default=20_000, help="training images that heads are fitted on")
    parser.add_argument("--cka_images", type=int, default=1_000)
    parser.add_argument("--steps", type=int, default=200, help="of training, batches as the run's")
    parser.add_argument("--lrs", type=float, nargs="+", default=[0.01, 0.001])
    parser.add_argument("--precision", default="bf16-mixed", help="of training")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    asked.out.mkdir(parents=True, exist_ok=True)
    subject = load_run_subject(asked.run, "last", None, None)
    network: Any = subject.network.eval()
    own, others = subject.sets()
    read = {split: list(own.batches(split)) for split in ("val", "test")}
    read["train"] = list(own.batches("train", asked.images))
    few: Batches = list(own.batches("train", asked.cka_images))
    ood = [(each, list(each.batches("train", 10_000)), list(each.batches("test"))) for each in others[:1]]
    rows: list[dict[str, Any]] = []
    kept: dict[str, nn.Module] = {}

    def transfer(made: Backbone) -> float:
        images, train, test = ood[0]
        head = ridge(*features_of(made, train), images.num_classes)
        x, y = features_of(made, test)
        return float((head(x).argmax(1) == y).double().mean())

    def add(method: str, what: str, made: Backbone, needs: str, refit: bool = True) -> None:
        start = time.perf_counter()
        flops, parameters = costs_of(made, own.example)
        row: dict[str, Any] = {
            "method": method,
            "what": what,
            "needs": needs,
            "flops": flops,
            "parameters": parameters,
        }
        row["accuracy"] = accuracy(made, read["test"])
        starts = [made] if refit else [made, scaled(made, read["val"])]
        if refit:
            head = ridge(*features_of(made, read["train"]), own.num_classes)
            other = refitted(made, head)
            row["refitted"] = accuracy(other, read["test"])
            starts.append(scaled(other, read["val"]))
        row["transfer"] = transfer(made) if ood else None
        if asked.steps:
            best, row["lr"], row["val_tuned"] = tuned(
                starts,
                own,
                asked.steps,
                asked.lrs,
                lambda each: accuracy(each, read["val"]),
                asked.precision,
            )
            row["tuned"] = accuracy(best, read["test"])
            row["transfer_tuned"] = transfer(best) if ood else None
        row["seconds"] = time.perf_counter() - start
        rows.append(row)
        kept[f"{method}|{what}"] = made
        print(
            {key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()},
            flush=True,
        )
        (asked.out / "results.json").write_text(json.dumps(rows, indent=1))

    add("whole network", "", network, "")
    options = Options(taps=TapSpec(asked.layers.split(",")), measures=("ridge",), fit_images=asked.images)
    with Context(subject, own, [], options) as context:
        taps = list(context.taps.layers)
        heads = fit(context, Plan(own, own.size("train", asked.images)), [tap.name for tap in taps]).ridge
        cuts = {
            tap.name: cut(network, tap.name, heads[tap.name].weight, heads[tap.name].bias, own.example)
            for tap in taps
        }
        scores = [accuracy(made, read["val"]) for made in cuts.values()]
        costs = [costs_of(made, own.example)[0] for made in cuts.values()]
        whole = accuracy(network, read["val"])
        print("cuts, validation:", dict(zip(cuts, scores, strict=True)), "whole", whole, flush=True)
        chosen = [line for keep in asked.keeps if (line := cheapest(scores, costs, whole, keep)) is not None]
        for line in dict.fromkeys(chosen):
            name = list(cuts)[line]
            add("tunnel cut away", f"behind {name}", cuts[name], "one pass over training images", refit=False)  # type: ignore[arg-type]
        for keep in asked.keeps:
            place = asked.out / f"keep_{keep:g}"
            place.mkdir(exist_ok=True)
            found = fit_exits(context, heads, place, keep=keep, latency=False)
            early = Classifier.load_from_checkpoint(place / "exits" / "checkpoints" / "last.ckpt").backbone
            what = f"{', '.join(found['layers'])}{', the rest cut away' if found['ends'] else ''} (keep {keep:g})"
            kept[f"early exits|{what}"] = early
            rows.append(
                {
                    "method": "early exits", "what": what, "needs": "one pass over training images",
                    "flops": found["chosen"]["flops"], "parameters": sum(p.numel() for p in early.parameters()),
                    "accuracy": found["chosen"]["accuracy"],
                    "transfer": None if found["ends"] else rows[0]["transfer"],
                }
            )  # fmt: skip
            print(rows[-1], flush=True)
    for ratio in asked.ratios:
        made = structured(network, ratio, own.example)
        add("Torch-Pruning", f"ratio {ratio:g}", made, "no images")
    for number, (path, cka, made) in enumerate(by_cka(network, few, max(asked.removed)), 1):
        print(f"removed {path}: CKA {cka:.3f}", flush=True)
        if number in asked.removed:
            add(
                "layers out by CKA",
                f"{number} removed (CKA {cka:.2f})",
                made,
                "a pass for every layer and removal",
            )
    timed(rows, kept, own)
    (asked.out / "results.json").write_text(json.dumps(rows, indent=1))
    (asked.out / "table.md").write_text(table(rows))
    print(table(rows))
    figure(rows, subject.title, asked.out / "figure.png")


def timed(rows: list[dict[str, Any]], kept: dict[str, nn.Module], own: ImageSet) -> None:
    """How many times faster than the whole network: the fastest of some turns of each, turn about.

    The fastest is what a machine that does other things as well disturbs least. One image is a mean over 32.
    """
    whole = kept.pop("whole network|")
    x = torch.cat([x for x, _ in own.batches("test", 256)])
    for size, batches in ((1, x[:32].split(1)), (256, (x,))):
        rows[0] |= {f"faster_{size}": 1.0}
        with torch.inference_mode():
            for row in rows[1:]:
                made = kept[f"{row['method']}|{row['what']}"]
                pairs = side_by_side(
                    partial(each, made.eval(), batches), partial(each, whole.eval(), batches)
                )
                row[f"ms_{size}"], rows[0][f"ms_{size}"] = (1e3 * pairs.min(0) / len(batches)).tolist()
                row[f"faster_{size}"] = float(pairs[:, 1].min() / pairs[:, 0].min())


def each(network: nn.Module, batches: Sequence[torch.Tensor]) -> None:
    """Run every batch."""
    for x in batches:
        network(x)


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    whole = rows[0]
    heads = [
        "method", "", "FLOPs", "parameters", "accuracy", "head refitted", "trained further", "transfer",
        "transfer, trained further", "faster, one image", "faster, 256",
    ]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for row in rows:

        def cell(key: str, row: dict[str, Any] = row) -> str:
            return "" if row.get(key) is None else f"{100 * row[key]:.1f}"

        tuned_at = f" (lr {row['lr']:g})" if "lr" in row else ""
        cells = [
            row["method"], row["what"],
            f"{100 * row['flops'] / whole['flops']:.0f} %", f"{row['parameters'] / 1e6:.2f} M",
            cell("accuracy"), cell("refitted"), cell("tuned") + tuned_at, cell("transfer"), cell("transfer_tuned"),
            *(f"{row[key]:.2f}x" if key in row else "" for key in ("faster_1", "faster_256")),
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def figure(rows: list[dict[str, Any]], title: str, path: Path) -> None:
    """Accuracy and transfer against FLOPs: hollow as it is, filled after training further."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    looks = {
        "whole network": ("#000000", "s"), "tunnel cut away": ("#0072B2", "o"), "early exits": ("#D55E00", "D"),
        "Torch-Pruning": ("#009E73", "^"), "layers out by CKA": ("#CC79A7", "v"),
    }  # fmt: skip
    drawn, axes = plt.subplots(1, 2, figsize=(11, 4.2), layout="constrained")
    for axis, what, after in ((axes[0], "accuracy", "tuned"), (axes[1], "transfer", "transfer_tuned")):
        for method, (color, marker) in looks.items():
            here = [row for row in rows if row["method"] == method and row.get(what) is not None]
            if what == "transfer" and method == "early exits":
                continue
            for key, face, label in (
                (what, "none", f"{method}, as it is"),
                (after, color, f"{method}, trained further"),
            ):
                points = [
                    (row["flops"] / rows[0]["flops"], 100 * row[key])
                    for row in here
                    if row.get(key) is not None
                ]
                if points:
                    axis.plot(
                        *zip(*sorted(points), strict=True), marker, color=color, mfc=face, label=label, ms=7
                    )
        axis.set(xlabel="FLOPs, share of the whole network's", ylabel=f"{what} (%)", xlim=(0, 1.05))
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7)
    drawn.suptitle(title)
    drawn.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
