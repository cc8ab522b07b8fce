import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.analysis.trim.latency import latencies, speedups, spread


class Clock:
    """Time that passes only where networks say so."""

    def __init__(self):
        self.now, self.calls = 0.0, []

    def network(self, name, seconds):
        def call(_):
            self.calls.append(name)
            self.now += seconds

        return call


def measured(clock, seconds=1e9, turns=(4, 4), **cuts):
    networks = {name: clock.network(name, each) for name, each in cuts.items()}
    return latencies(
        clock.network("whole", 1.0), networks, torch.zeros(1, 2), turns, seconds, clock=lambda: clock.now
    )


def test_each_turn_is_beside_one_of_the_whole_network():
    clock = Clock()
    found = measured(clock, a=0.25, b=0.5, c=2.0)
    assert {name: pairs.tolist() for name, pairs in found.items()} == {
        "a": [[0.25, 1.0]] * 4,
        "b": [[0.5, 1.0]] * 4,
        "c": [[2.0, 1.0]] * 4,
    }
    rounds = clock.calls[12:]  # behind the warm-up
    assert [rounds[k : k + 5] for k in range(0, 20, 5)][:2] == [
        ["c", "whole", "b", "a", "whole"],
        ["b", "whole", "c", "a", "whole"],
    ]


def test_a_machine_that_slows_down_slows_both_of_a_pair():
    clock = Clock()

    class Slowing(Clock):
        def network(self, name, seconds):
            def call(_):
                self.now += seconds * (1 + len(self.calls))
                self.calls.append(name)

            return call

    pairs = measured(Slowing(), turns=(30, 30), a=0.5)["a"]
    assert speedups(pairs)[0] == pytest.approx(2, rel=0.1)
    assert speedups(measured(clock, a=0.5)["a"]) == (2, 2, 2)


def test_rounds_end_with_the_time_but_not_before_there_are_enough():
    assert len(measured(Clock(), seconds=10, turns=(2, 30), a=1.0)["a"]) == 6
    assert len(measured(Clock(), seconds=0, turns=(3, 30), a=1.0)["a"]) == 3


def test_short_forwards_are_repeated_within_a_turn():
    clock = Clock()
    found = measured(clock, turns=(1, 1), a=0.001)
    assert found["a"][0, 0] == pytest.approx(0.001)
    assert clock.calls.count("a") == 3 + 10


def test_networks_are_as_they_were():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2)).train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in network.state_dict().items()}
    latencies(network, {"a": network}, torch.randn(8, 2, generator=torch.Generator()), turns=(1, 1))
    assert all(module.training for module in network.modules())
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_quartiles():
    assert spread(np.array([5.0, 1.0, 2.0, 4.0, 3.0])) == (3, 2, 4)
