"""The profile at every checkpoint of a run."""

import pytest

from tunnel_lightning.__main__ import main
from tunnel_lightning.runs.analysis import load_analysis

FEW = ["--device=cpu", "--measures=ridge,ranks", "--ood=[]", "--fit_images=200", "--eval_images=100"]


@pytest.mark.parametrize("measure", ["probe_accuracy", "rank_cov"])
def test_the_raw_pixels_tell_the_same_at_every_checkpoint(run, measure):
    assert main(["analyze", str(run), "--ckpt=all", *FEW]) == 0
    found = {}
    for row in load_analysis(run).run.rows:
        if (row.measure, row.split) == (measure, "test"):
            found.setdefault((row.layer, row.variant), {})[row.step] = row.value
    pixels = [values for (layer, _), values in found.items() if layer == "input"]
    layers = [values for (layer, _), values in found.items() if layer != "input"]
    assert pixels
    for values in pixels:
        assert len(values) > 2
        assert len(set(values.values())) == 1
    assert any(len(set(values.values())) > 1 for values in layers), "the network has learnt"
