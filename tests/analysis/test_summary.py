"""The summary of an analysis: where and how precisely it was measured."""

from types import SimpleNamespace

import pytest
from lightning.fabric import Fabric
from toys import Net
from toys_analysis import TEST, TRAIN, analyze

from tunnel_lightning.analysis.store import Part
from tunnel_lightning.analysis.summary import devices


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ([], "cpu"),
        ([{}], "cpu"),
        ([{"device": "cuda:0"}], "cuda:0"),
        ([{"device": "cuda:0"}, {}, {"device": "cpu"}, {"device": "cuda:0"}], "cuda:0, cpu"),
    ],
)
def test_parts_of_earlier_commands_say_where_they_were_measured(parts, said):
    context = SimpleNamespace(fabric=SimpleNamespace(device="cpu"))
    assert devices(context, [Part(extra=extra) for extra in parts]) == said


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_precision_of_the_passes(precision):
    fabric = Fabric(accelerator="cpu", devices=1, precision=precision)
    found = analyze(Net(), TRAIN, TEST, measures="ridge", fabric=fabric)
    assert found.summary["settings"]["precision"] == precision
    assert found.summary["machine"]["device"] == "cpu"


def test_precision_where_no_machine_is_named():
    assert analyze(Net(), TRAIN, TEST, measures="ridge").summary["settings"]["precision"] == "32-true"
