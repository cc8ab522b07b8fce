"""Passes with other taps: what a network without additions, or one that hides them, is told."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from toys import CLASSES, Images

import tunnel_lightning
from tunnel_lightning.analysis import structure
from tunnel_lightning.analysis.options import Options

TRAIN, TEST = Images(100, 0), Images(60, 1)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.branch, self.head = nn.Linear(64, 8), nn.Linear(8, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        x = self.first(x.flatten(1))
        return self.head(x + self.branch(x.relu()))


def analyze(model, measures):
    torch.manual_seed(0)
    return tunnel_lightning.analyze(model, TRAIN, TEST, (), measures=measures)


def test_a_network_without_additions_is_told_so():
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, CLASSES))
    notes = analyze(plain, "additions").summary["notes"]
    assert notes == [
        "the network shows no residual additions (sums of what its modules give), so there are no probes round them"
    ]
    assert analyze(Residual(), "additions").summary["notes"] == []


def test_a_compiled_network_hides_its_additions():
    model = Residual()
    model.branch.compile(backend="eager")
    notes = analyze(model, "additions").summary["notes"]
    assert notes == [
        "the network is compiled, which hides its residual additions, so there are no probes round them"
    ]


def test_other_mistakes_are_not_taken_for_it():
    def fail(spec):
        raise ValueError("in addition something is wrong")

    context = SimpleNamespace(own=None, options=Options(), tap=fail)
    with pytest.raises(ValueError, match="in addition something is wrong"):
        structure.additions(context)


def test_blocks_are_told_by_the_index_in_the_table(monkeypatch):
    monkeypatch.setattr(structure, "BLOCK_THRESHOLD", 0.3)
    layers = [layer for _ in range(4) for layer in (nn.Linear(64, 64), nn.ReLU())]
    found = analyze(nn.Sequential(nn.Flatten(), *layers, nn.Linear(64, CLASSES)), "blocks")
    names = found.similarity["cka_all"].names
    index = {r.layer: r.index for r in found.rows if r.measure == "pc1_fraction"}
    assert [index[name] for name in names] == list(range(1, len(names) + 1))
    for block in found.summary["blocks"]["found"]:
        assert (index[block["start"]], index[block["end"]]) == (block["start_index"], block["end_index"])
    assert found.summary["blocks"]["found"]
