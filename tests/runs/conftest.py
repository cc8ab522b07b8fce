import pytest

from tunnel_lightning.runs import Row


def make_rows(
    probe=(),
    network=None,
    ood=None,
    raw=None,
    step=100,
    split="val",
    ood_split="test",
    dataset="Glyphs",
    se=0.005,
):
    """Rows of one profile: the ID ridge curve, the network's accuracy, OOD curves by name (layer 1 on)."""
    base = Row(
        "mlp/version_0", step, 1, -1, split, dataset, "", 0, "probe_accuracy", "ridge", 0.0, se, 500, 64
    )
    rows = [base._replace(layer=f"layers.{i}", index=i, value=v) for i, v in enumerate(probe, 1)]
    if raw is not None:
        rows.append(base._replace(layer="input", index=0, value=raw))
    if network is not None:
        rows.append(
            base._replace(
                layer="network", index=len(probe) + 1, measure="accuracy", variant="network", value=network
            )
        )
    for name, values in (ood or {}).items():
        rows += [
            base._replace(split=ood_split, dataset=name, layer=f"layers.{i}", index=i, value=v)
            for i, v in enumerate(values, 1)
        ]
    return rows


@pytest.fixture
def rows_of():
    return make_rows
