import numpy as np
import pytest

from tunnel_lightning.runs import Row

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
