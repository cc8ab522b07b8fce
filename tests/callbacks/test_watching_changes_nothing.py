"""The first promise: backbone weights with and without any callback are bitwise equal."""

import random

import numpy as np
import pytest
import torch
from toys import Lit, OtherData

from tunnel_lightning.callbacks import (
    LayerMonitor,
    OnlineProbes,
    RankMonitor,
    Schedule,
    TransferMonitor,
    TransferOptions,
    WeightChange,
)

SCHEDULE = Schedule(start=True, steps=[2], every_n_epochs=1)
CALLBACKS = {
    "probes": lambda: [OnlineProbes(profile=SCHEDULE)],
    "ranks": lambda: [RankMonitor(profile=SCHEDULE)],
    "transfer": lambda: [TransferMonitor([OtherData()], profile=SCHEDULE)],
    "weights": lambda: [WeightChange(profile=SCHEDULE)],
    "bundle": lambda: [LayerMonitor(profile=SCHEDULE, transfer=TransferOptions([OtherData()]))],
}
TRAININGS = {
    "plain": {},
    "clipped": {"gradient_clip_val": 0.1},
    "accumulated": {"accumulate_grad_batches": 2},
}


def fingerprint(module):
    """Weights and buffers of the network, and where all random generators stand."""
    state = {key: value.clone() for key, value in module.net.state_dict().items()}
    return state, torch.rand(3), np.random.rand(3), random.random()


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("training", TRAININGS)
def test_weights_and_random_state_are_bitwise_equal(train, training, precision):
    options = {**TRAININGS[training], "precision": precision}
    plain, draw, np_draw, py_draw = fingerprint(train(**options)[1])
    for name, callbacks in CALLBACKS.items():
        watched, *draws = fingerprint(train(callbacks(), **options)[1])
        for key, value in plain.items():
            assert torch.equal(value, watched[key]), f"{name} changed {key}"
        assert torch.equal(draws[0], draw), f"{name} drew from torch's generator"
        assert (draws[1] == np_draw).all(), f"{name} drew from numpy's generator"
        assert draws[2] == py_draw, f"{name} drew from python's generator"


def test_compiled_weights_are_equal_within_rounding(train):
    class Compiled(Lit):
        def configure_model(self):
            self.net.compile(backend="aot_eager")

    train(module=Compiled(), epochs=1)  # torch's compiler draws random numbers when it is first imported
    plain = train(module=Compiled(), epochs=1)[1]
    watched = train(CALLBACKS["bundle"](), module=Compiled(), epochs=1)[1]
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(value, watched.state_dict()[key], rtol=1e-4, atol=1e-5)
