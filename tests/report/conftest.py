import json

import numpy as np
import pytest

from tunnel_lightning.runs import LayerInfo, ProfileTable, Row, SimilarityMap, write_analysis, write_manifest
from tunnel_lightning.runs.analysis import write_arrays

# Curves of the kind the example configs give: 12 x 256 MLP, and the ResNet-34 layout at width 16.
MLP = {
    "name": "mlp/version_0",
    "names": [f"layers.{i}.linear" for i in range(12)],
    "dims": [256] * 12,
    "raw": (0.12, 0.95),
    "id": [0.31, 0.38, 0.42, 0.47, 0.50, 0.51, 0.53, 0.54, 0.54, 0.54, 0.541, 0.54],
    "ood": [0.98, 0.981, 0.975, 0.97, 0.96, 0.94, 0.92, 0.89, 0.86, 0.83, 0.79, 0.76],
    "rank": [256, 254, 249, 240, 226, 208, 187, 165, 140, 118, 99, 85],
    "network": 0.54,
}


def _resnet():
    depth = np.arange(1, 34)
    blocks = [(s, b, c) for s, n in enumerate((3, 4, 6, 3)) for b in range(n) for c in (1, 2)]
    dip = np.where((depth % 2 == 0) & (depth > 1), 0.03, 0.0)
    ood = (
        0.97
        + 0.024 * np.sin(np.clip(depth / 20, 0, 1.5) * np.pi / 2)
        - 0.02 * np.clip((depth - 24) / 9, 0, 1)
    )
    return {
        "name": "resnet/version_3",
        "names": ["stem.conv"] + [f"stages.{s}.{b}.conv{c}" for s, b, c in blocks],
        "dims": [64] + [64 * 2**s for s, _, _ in blocks],
        "raw": (0.12, 0.95),
        "id": 0.42 + 0.48 * (1 - np.exp(-depth / 5)) - dip * np.exp(-depth / 15),
        "ood": ood,
        "rank": np.minimum([64] + [64 * 2**s for s, _, _ in blocks], 62 + 4 * depth + 60 * np.sin(depth / 6))
        // 1,
        "network": 0.9,
    }


RESNET = _resnet()


def profile_rows(shape, step, epoch, learned, ood_sets=("Digits",)):
    """Rows of one profile; `learned` from 0 (fresh network) to 1 scales how far the curves have come."""
    random = np.random.default_rng(step)
    noise = lambda: random.normal(0, 0.004)  # noqa: E731
    classes, n = 26, 2000
    base = Row(shape["name"], step, epoch, -1, "val", "Glyphs", "input", 0, "probe_accuracy", "ridge", 0.0)
    rows = []

    def probe(row, value, **changes):
        value = float(np.clip(value, 0, 1))
        se = float(np.sqrt(value * (1 - value) / n))
        rows.append(row._replace(value=value, se=se, n=n, **changes))

    probe(base, shape["raw"][0], dim=256)
    for k, name in enumerate(ood_sets):
        probe(base, shape["raw"][1] - 0.1 * k, dataset=name, split="test", dim=256)
    for i, layer in enumerate(shape["names"]):
        at = base._replace(layer=layer, index=i + 1, dim=int(shape["dims"][i]))
        fresh = 0.3 * np.exp(-i / 8)
        value = fresh + learned * (shape["id"][i] - fresh)
        probe(at, value + noise())
        probe(at, 0.93 * value + noise(), variant="online")
        for k, name in enumerate(ood_sets):
            drop = shape["ood"][i] - 0.1 * k - 0.01 * k * i
            probe(at, 0.9 + learned * (drop - 0.9) + 0.5 * noise(), dataset=name, split="test")
        full = 0.8 * shape["dims"][i]
        rank = float(round(full + learned * (shape["rank"][i] - full)))
        rows.append(at._replace(measure="rank_cov", variant="rtol=1e-3", value=rank, n=n))
        rows.append(at._replace(measure="rank_cov", variant="rtol=torch", value=min(rank * 1.4, at.dim), n=n))
    accuracy = 1 / classes + learned * (shape["network"] - 1 / classes)
    network = base._replace(layer="network", index=len(shape["names"]) + 1, dim=classes)
    probe(network, accuracy, measure="accuracy", variant="network")
    for name in ood_sets:
        row = network._replace(dataset=name, split="test", measure="ood_retained", variant="ridge", n=n)
        rows.append(row._replace(value=77.6))
    return rows


def history(shape, epochs=6, steps_per_epoch=70, **more):
    """Rows of a whole run: profiles at step 0, two early ones, then one an epoch."""
    at = [(0, 0), (10, 0), (30, 0)] + [(e * steps_per_epoch, e) for e in range(1, epochs + 1)]
    last = epochs * steps_per_epoch
    rows = []
    for step, epoch in at:
        rows += profile_rows(shape, step, epoch, (step / last) ** 0.3, **more)
    return rows


@pytest.fixture(scope="session")
def mlp_rows():
    return history(MLP)


@pytest.fixture(scope="session")
def resnet_rows():
    return history(RESNET)


@pytest.fixture(scope="session")
def three_sets_rows():
    return history(MLP, epochs=2, ood_sets=("Digits", "FashionMNIST", "SVHN"))


NASTY = "layers.<b>5&%{x}</b>"
"""A layer's name that would break a page that trusts it."""


def _cka(names, dims, tunnel):
    """A map with a block from the tunnel on."""
    depth = np.arange(len(names))
    value = np.exp(-np.abs(depth[:, None] - depth) / 6)
    inside = depth >= tunnel
    value = np.where(inside[:, None] & inside, 0.9 + 0.1 * value, value)
    np.fill_diagonal(value, 1)
    return SimilarityMap(list(names), value, np.full(value.shape, 0.004))


def analysis_rows(shape=MLP, step=420, run_id=None, shift=0.0):
    """Rows as an analysis writes them: all the measures, at one checkpoint, on test images."""
    names = list(shape["names"])
    names[4] = NASTY if shape is MLP else names[4]
    shape = {
        **shape,
        "names": names,
        "id": np.asarray(shape["id"]) + shift,
        "network": shape["network"] + shift,
    }
    rows = [
        r._replace(split="test")
        for r in profile_rows(shape, step, step // 70, 1.0, ood_sets=("Digits", "Fashion"))
        if r.variant != "online"
    ]
    n, own = 2000, "Glyphs"
    at = Row(shape["name"], step, step // 70, -1, "test", own, "", 0, "", "", 0.0, float("nan"), n, 256)
    depth = np.arange(1, len(names) + 1) / len(names)
    ridge = np.asarray(shape["id"])
    fall = np.exp(-4 * depth)
    curves = {
        ("probe_accuracy", "logistic"): ridge + 0.012,
        ("probe_accuracy", "masarczyk"): ridge - 0.02,
        ("probe_balanced_accuracy", "ridge"): ridge - 0.004,
        ("probe_top5_accuracy", "ridge"): np.clip(ridge + 0.3, 0, 1),
        ("knn_accuracy", "k=20"): ridge - 0.05 * (1 - depth),
        ("ncm_accuracy", "fit means"): ridge * (0.5 + 0.5 * depth),
        ("ncm_disagreement", "network"): 0.7 * fall + 0.02,
        ("variance_inter", "l2"): 0.2 + 0.9 * depth**2,
        ("variance_intra", "l2"): 0.8 - 0.6 * depth,
        ("variance_ratio", "l2"): (0.2 + 0.9 * depth**2) / (0.8 - 0.6 * depth),
        ("variance_ratio", "raw"): (0.1 + 0.9 * depth**2) / (0.8 - 0.6 * depth),
        ("nc1", "trace_pinv"): 40 * fall,
        ("nc1", "trace_ratio"): 9 * fall,
        ("nc2", "norm_cv"): 0.4 - 0.3 * depth,
        ("nc2", "angle"): 0.3 - 0.2 * depth,
        ("nc2", "etf"): 0.9 - 0.5 * depth,
        ("nc3", "ridge"): 1.1 - 0.6 * depth,
        ("cdnv", "mean"): 3 * fall,
        ("effective_rank", "cov"): np.asarray(shape["rank"]) * 0.5,
        ("stable_rank", "cov"): np.asarray(shape["rank"]) * 0.1,
        ("participation_ratio", "cov"): np.asarray(shape["rank"]) * 0.2,
        ("rankme", "raw"): np.asarray(shape["rank"]) * 0.6,
        ("pc1_fraction", "cov"): 0.1 + 0.3 * depth,
        ("l1_change", "next"): 0.2 + 0.8 * fall,
        ("weight_change", "l2_per_sqrt_n"): 0.01 * fall,
    }
    for (measure, variant), values in curves.items():
        for i, value in enumerate(values):
            row = at._replace(
                measure=measure, variant=variant, layer=names[i], index=i + 1, value=float(value)
            )
            rows.append(row._replace(se=0.01) if measure.endswith("accuracy") else row)
            if variant == "logistic":
                rows.append(row._replace(split="train", value=min(1.0, float(value) + 0.05)))
                rows.append(row._replace(dataset="Digits", value=float(shape["ood"][i]) - 0.01, se=0.01))
    for k, value in enumerate(np.linspace(0.15, 0.7, 2 * len(names))):
        name = f"{names[k // 2]}.{'act' if k % 2 else 'norm'}"
        rows.append(
            at._replace(
                measure="pc1_fraction", variant="gram256", layer=name, index=k + 1, value=float(value)
            )
        )
    for k in range(6):
        place = at._replace(measure="probe_accuracy", variant="ridge@addition", se=0.01)
        before = 0.3 + 0.04 * k
        rows.append(place._replace(layer=f"stages.{k}.norm2", index=2 * k + 1, value=before))
        rows.append(place._replace(layer=f"stages.{k}.add", index=2 * k + 2, value=before + 0.1))
    for name, kept in (("Digits", 77.6), ("Fashion", 64.0)):
        for measure, value in (("ood_retained", kept), ("id_ood_pearson", -0.4), ("id_ood_alignment", 0.31)):
            row = at._replace(dataset=name, layer="network", index=len(names) + 1, variant="ridge")
            rows = [r for r in rows if (r.measure, r.dataset) != (measure, name)]
            rows.append(row._replace(measure=measure, value=value))
    return [r._replace(run_id=run_id or shape["name"]) for r in rows]


def make_analysis(folder, shape=MLP):
    """A plausible analysis of a network of 12 layers, every file of it."""
    random = np.random.default_rng(0)
    rows = analysis_rows(shape)
    names = [r.layer for r in rows if (r.measure, r.variant) == ("rank_cov", "rtol=1e-3")]
    dims = shape["dims"]
    layers = [LayerInfo(0, "input", "Input", "1x16x16", 256, 0, 0, "input")]
    layers += [
        LayerInfo(i, name, "Linear", "256", int(dim), 65_792, 131_072, "layer")
        for i, (name, dim) in enumerate(zip(names, dims, strict=True), 1)
    ]
    outputs = [f"{name}.{kind}" for name in names for kind in ("norm", "act")]
    cka = _cka(names, dims, 6)
    every = _cka(outputs, dims, 12)
    cka.value[2, 5] = cka.value[5, 2] = np.nan
    spectrum = {}
    for i, rank in enumerate(shape["rank"]):
        fall = 3.0 * np.log(10) * (np.arange(dims[i]) / rank) ** 0.8
        spectrum[f"Glyphs|test|{names[i]}"] = 10 * np.exp(-fall)
    labels = random.integers(0, 8, 300)
    places = {
        names[k]: random.normal(size=(300, 2)) + (k / 2) * np.stack([np.cos(labels), np.sin(labels)], 1)
        for k in (0, 5, 11)
    }
    summary = {
        "run_id": shape["name"],
        "title": "MLP <b>12 x 256</b> & friends",
        "network": {"name": "MLP", "config": {"depth": 12, "width": 256}, "parameters": 790_298, "layers": 12},
        "checkpoint": "checkpoints/best.ckpt",
        "step": 420,
        "epoch": 6,
        "class_names": list("ABCDEFGH"),
        "transfer": {"Digits": {"strength": "strong"}, "Fashion": {"strength": "strong"}},
        "blocks": {
            "map": "cka_all", "threshold": 0.9,
            "found": [{"start": outputs[12], "end": outputs[-1], "start_index": 13, "end_index": 24, "size": 12}],
        },
        "settings": {"pool": "2x2", "fit_images": None, "sample": 10_000, "datasets": ["Glyphs", "Digits"]},
        "versions": {"python": "3.11.4", "torch": "2.11.0"},
        "machine": {"processor": "a processor", "cores": 2},
        "seconds": {"moments": 3.2, "similarity": 1.4, "logistic probes": 11.0},
        "notes": ["Digits images (1x8x8) were resized to 1x16x16."],
    }  # fmt: skip
    similarity = {
        "cka": cka,
        "cka_all": every,
        "cka_all_no_pc1": _cka(outputs, dims, 99),
        "pc1_cosine": every,
    }
    return write_analysis(folder, rows, layers, similarity, spectrum, {"labels": labels, **places}, summary)


@pytest.fixture(scope="session")
def analysed(tmp_path_factory):
    """A run folder with what was measured live, and an analysis."""
    run = tmp_path_factory.mktemp("runs") / "mlp" / "version_0"
    ProfileTable(run / "profile.csv").append(history(MLP))
    write_manifest(run, versions={"torch": "2.11.0"})
    make_analysis(run / "analysis")
    return run


@pytest.fixture(scope="session")
def compared(tmp_path_factory):
    """A comparison folder: two seeds of one network, two of another."""
    folder = tmp_path_factory.mktemp("runs") / "compare" / "version_0"
    ids = ["mlp/version_0", "mlp/version_1", "resnet/version_0", "resnet/version_1"]
    shapes = [MLP, MLP, RESNET, RESNET]
    rows, names = [], []
    for k, (run_id, shape) in enumerate(zip(ids, shapes, strict=True)):
        rows += analysis_rows(shape, run_id=run_id, shift=0.006 * (k % 2))
        names += [f"{run_id}:{name}" for name in shape["names"]]
    ProfileTable(folder / "profile.csv").append(rows)
    cka = _cka(names, None, 1000)
    write_arrays(folder / "similarity.npz", {f"cka/{k}": np.asarray(v) for k, v in cka._asdict().items()})
    random = np.random.default_rng(0)
    right = random.integers(0, 3, (500, 2)) / 2
    lines = [f"{i},A,{a:g},{b:g}" for i, (a, b) in enumerate(right)]
    (folder / "predictions.csv").write_text("\n".join(["image,label,accuracy_a,accuracy_b", *lines]) + "\n")
    summary = {
        "schema": 1,
        "title": "mlp against resnet",
        "runs": [
            {"run_id": i, "group": "ab"[k // 2], "accuracy": {"value": 0.5 + 0.1 * k, "n": 2000},
             "blocks": [{"start": "stem.conv", "end": "stages.0.2.conv2"}] if k == 2 else []}
            for k, i in enumerate(ids)
        ],
        "blocks": {"map": "cka", "threshold": 0.9},
        "groups": [
            {"key": "a", "name": "mlp", "run_ids": ids[:2]},
            {"key": "b", "name": "resnet & more", "run_ids": ids[2:]},
        ],
        "tables": [
            {"title": "Pairs of networks", "columns": ["first", "second", "agreement %", "KL"],
             "rows": [[ids[0], ids[1], 91.234, 0.1], [ids[0], ids[2], 71.2, None]], "note": "Of the same images."},
        ],
        "settings": {"images": 500},
        "versions": {},
        "notes": [],
    }  # fmt: skip
    (folder / "comparison.json").write_text(json.dumps(summary))
    return folder
