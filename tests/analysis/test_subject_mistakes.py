"""Checkpoints that say of themselves what no run of this package says."""

import pytest
import torch

from tunnel_lightning.analysis.subject import load_run_subject


def said_of(run, change):
    """The one sentence on a run whose checkpoint describes its network otherwise; it names the file."""
    path = run / "checkpoints/last.ckpt"
    state = torch.load(path, weights_only=True)
    state["classifier"]["backbone"] = change(state["classifier"]["backbone"])
    torch.save(state, path)
    with pytest.raises(ValueError, match=r"\.ckpt") as caught:
        load_run_subject(run)
    said = str(caught.value)
    assert "\n" not in said
    assert said.startswith(f"{path} ")
    return said.removeprefix(f"{path} ")


@pytest.mark.parametrize(
    "name", ["os.system", "torch.nn.Linear", "nowhere.Net", "tunnel_lightning.backbones.Nothing", 3, None]
)
def test_a_network_that_is_no_backbone(run, name):
    said = said_of(run, lambda backbone: {**backbone, "class_path": name})
    assert said.startswith(f"does not fit its config: it names {name!r} as its network, and ")
    assert "says tunnel_lightning.backbones.MLP; give a checkpoint of this run" in said
    assert "import" not in said, "what a file names is nothing to be run"


@pytest.mark.parametrize("backbone", [3, None, {}, []])
def test_no_network_at_all(run, backbone):
    assert said_of(run, lambda _: backbone).startswith("does not fit its config: it names None")


@pytest.mark.parametrize("arguments", [{"height": 3}, {"depth": "deep"}, {"num_classes": 1}, 3])
def test_a_network_that_can_not_be_made(run, arguments):
    said = said_of(run, lambda backbone: {**backbone, "init_args": arguments})
    assert said.startswith("holds no network that can be made (")
    assert said.endswith("give one that `fit` made")


def test_a_network_without_arguments(run):
    said = said_of(run, lambda backbone: {"class_path": backbone["class_path"]})
    assert said.startswith("holds no network that can be made ('init_args')")
