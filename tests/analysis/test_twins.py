"""The network before training: the weights that `fit` kept, or drawn anew."""

import shutil

import pytest
import torch
from torch import nn

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis.subject import load_run_subject, subject_of
from tunnel_lightning.analysis.twins import untrained
from tunnel_lightning.backbones import MLP

INITIAL = "initial.pt"


def test_a_run_keeps_the_weights_it_began_with(fit, tmp_path):
    untouched = fit(tmp_path, "--trainer.max_epochs=1", "--model.optimizer=SGD", "--model.optimizer.lr=0.0")
    moved = fit(tmp_path / "other", "--trainer.max_epochs=1")
    twin, origin = untrained(load_run_subject(moved))
    assert origin == "initial weights of tiny/version_0"
    still, trained = load_run_subject(untouched).network, load_run_subject(moved).network
    for name, value in twin.state_dict().items():
        assert torch.equal(value, still.state_dict()[name])  # a learning rate of 0 leaves what was drawn
    assert not torch.equal(twin.head.weight, trained.head.weight)
    assert not twin.training


def test_going_on_leaves_them_as_they_are(run):
    before = (run / INITIAL).read_bytes()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=6"]) == 0
    assert (run / INITIAL).read_bytes() == before


def test_an_older_run_that_goes_on_does_not_take_later_weights_for_the_first(run):
    (run / INITIAL).unlink()
    assert main(["fit", "--resume", str(run), "--trainer.max_epochs=6"]) == 0
    assert not (run / INITIAL).exists()
    subject = load_run_subject(run)
    twin, origin = untrained(subject)
    assert origin == "drawn anew"
    again, _ = untrained(subject)
    other, _ = untrained(subject, seed=1)
    assert torch.equal(twin.head.weight, again.head.weight)
    assert not torch.equal(twin.head.weight, other.head.weight)


def test_the_first_weights_of_another_network_are_refused(run, fit, tmp_path):
    other = fit(tmp_path / "wide", "--trainer.max_epochs=1", "--model.backbone.width=8")
    shutil.copy(other / INITIAL, run / INITIAL)
    with pytest.raises(ValueError, match=r"initial\.pt is of another network"):
        untrained(load_run_subject(run))


def test_any_network_is_drawn_anew_and_the_random_state_stays():
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
    with torch.no_grad():
        network[2].running_mean.fill_(3)
    state = torch.get_rng_state()
    twin, origin = untrained(subject_of(network))
    assert torch.equal(torch.get_rng_state(), state)
    assert origin == "drawn anew"
    assert not torch.equal(twin[1].weight, network[1].weight)
    assert not twin[2].running_mean.any()
    assert network[2].running_mean.eq(3).all()


def test_a_parameter_that_nothing_draws_is_named():
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(3))

    with pytest.raises(ValueError, match=r"nothing in it says how scale begins"):
        untrained(subject_of(Own()))


def test_a_backbone_is_left_as_it_is():
    network = MLP(depth=2, width=8)
    before = network.head.weight.clone()
    twin, _ = untrained(subject_of(network))
    assert twin is not network
    assert torch.equal(network.head.weight, before)


def test_first_weights_that_are_no_file_of_weights_are_said(run):
    (run / INITIAL).write_bytes(b"junk")
    with pytest.raises(ValueError, match=r"initial\.pt can't be read as weights|initial\.pt is refused"):
        untrained(load_run_subject(run))
