"""Detached exits with every strategy: the network is bitwise what it is without them, or they are refused."""

import math
import random
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from continual.toys import mlp, normed, sgd, stream
from torch import nn

from tunnel_lightning.continual.auxiliary import ExitLoss, check_exits, exit_rows, refuse_exits, with_exits
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.models import prepare_model
from tunnel_lightning.continual.places import find_layers
from tunnel_lightning.continual.settings import ExitOptions
from tunnel_lightning.continual.strategies import STRATEGIES, make_strategy, strategy_class, turns
from tunnel_lightning.continual.stream import Stream
from tunnel_lightning.taps import TapSpec

TASKS = [[0, 1], [2, 3], [4, 5, 6]]
LAYERS = ["layers.2", "layers.6"]
RUNNING = {name: method for name, method in STRATEGIES.items() if not method.fails}

REFUSED = {
    "CWRStar", "CoPE", "FeatureReplay", "ICaRL", "LFL", "LaMAML", "MER", "PNNStrategy", "PackNet", "SCR",
    "StreamingLDA",
}  # fmt: skip
SMALL: dict[str, dict[str, Any]] = {
    "Replay": {"mem_size": 11},
    "GDumb": {"mem_size": 20},
    "MAS": {"lambda_reg": 0.01},
    "GEM": {"patterns_per_exp": 9},
    "AGEM": {"patterns_per_exp": 9, "sample_size": 6},
    "GSS_greedy": {"mem_size": 40},
    "MIR": {"mem_size": 20, "subsample": 10, "batch_size_mem": 4},
    "DER": {"mem_size": 20, "batch_size_mem": 6},
    "ER_ACE": {"mem_size": 20, "batch_size_mem": 8},
    "ER_AML": {"mem_size": 60, "batch_size_mem": 8},
    "BiC": {"mem_size": 40, "val_percentage": 0.25},
    "GenerativeReplay": {"replay_size": 8},
    "MER": {"mem_size": 20, "batch_size_mem": 4},
    "SCR": {"mem_size": 20, "batch_size_mem": 8},
}


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    avalanche()


def tasks(name: str) -> Stream:
    multi = RUNNING[name].heads == ("multi",)
    return stream("task_incremental" if multi else "class_incremental", TASKS, 20, 20)


def made(name: str, of: Stream, exits: bool, plugins: Any = (), optimizer: Any = sgd) -> Any:
    """A strategy, on a network with BatchNorm and dropout where it takes one."""
    backbone = mlp(of) if name == "PackNet" else normed(of)
    model: nn.Module = prepare_model(backbone, of)
    plugins = list(plugins)
    if exits:
        refuse_exits(strategy_class(name)[1])
        layers = "default" if name == "PackNet" else LAYERS
        model, plugins = with_exits(model, of, ExitOptions(layers)), [ExitLoss(1.0), *plugins]
    args = {**RUNNING[name].required, **SMALL.get(name, {})}
    common = {"optimizer": optimizer, "criterion": nn.CrossEntropyLoss(), "epochs": 2, "batch_size": 8}
    strategy = make_strategy(name, args, model=model, backbone=backbone, stream=of, plugins=plugins, **common)
    if exits:
        check_exits(strategy)
    return strategy


def learnt(name: str, exits: bool) -> Any:
    """Its network after all tasks."""
    of = tasks(name)
    strategy = made(name, of, exits)
    random.seed(7)
    np.random.seed(7)
    torch.manual_seed(7)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Avalanche's own
        for _, experiences in turns(strategy, of):
            strategy.train(experiences)
    return strategy.model


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("CWRStar", "holds all but one layer"),
        ("CoPE", "answers by prototypes"),
        ("FeatureReplay", "takes the network apart"),
    ],
)
def test_those_that_take_an_exit_for_the_classifier_are_refused_before_they_are_made(
    name: str, why: str
) -> None:
    cls = strategy_class(name)[1]
    for each in (cls, type("Mine", (cls,), {})):
        with pytest.raises(ValueError, match=f"{each.__name__} {why}"):
            refuse_exits(each)


def test_so_are_plugins_that_do() -> None:
    from avalanche.training.plugins import CWRStarPlugin

    of = tasks("Naive")
    strategy = made("Naive", of, True)
    check_exits(strategy)
    strategy.plugins.append(CWRStarPlugin(strategy.model))
    with pytest.raises(ValueError, match="CWRStarPlugin holds all but one layer"):
        check_exits(strategy)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNNING)
def test_the_network_is_bitwise_as_without_exits_or_they_are_refused(name: str) -> None:
    if name in REFUSED:
        with pytest.raises(ValueError, match="exits can't be trained with it"):
            made(name, tasks(name), True)
        return
    plain, with_them = (learnt(name, exits) for exits in (False, True))
    own = dict(with_them.backbone.named_parameters()) | dict(with_them.backbone.named_buffers())
    other = dict(plain.named_parameters()) | dict(plain.named_buffers())
    assert own.keys() == other.keys()
    # A-GEM sums over all parameters at once, those of exits (zeros there) among them: equal but for rounding.
    apart = 1e-6 if name == "AGEM" else 0.0
    assert all(torch.allclose(own[key], value, rtol=0.0, atol=apart) for key, value in other.items())
    assert not any(torch.isnan(value).any() for value in own.values())


# How exits are numbered, and what a network of NaN is worth ---------------------------------------------------


def rows_of(layers: Any, measured: Any = None, spoilt: bool = False) -> list[Any]:
    of = stream()
    network = mlp(of, depth=6)
    if spoilt:
        nn.init.constant_(network.layers[3].linear.weight, math.nan)
    model = with_exits(network, of, ExitOptions(layers))
    taps = [] if measured is None else find_layers(network, TapSpec(measured), of.tasks[0].train.x[:2])
    return exit_rows(model, of, [0.5], "run", 0, 0, 0, taps)


@pytest.mark.parametrize(
    ("layers", "measured", "expected"),
    [
        (["layers.2.linear", "layers.5.linear"], None, [3, 6, 7]),
        (["layers.0.act", "layers.2.act"], None, [1, 3, 7]),
        (["layers.2.linear", "layers.5.linear"], ["layers.1.linear", "layers.5.linear"], [1, 2, 3]),
        (["layers.0.act", "layers.4.act"], ["layers.1.linear", "layers.3.act", "layers.5.linear"], [0, 2, 4]),
    ],
)
def test_exits_have_the_numbers_of_the_layers_that_are_measured(
    layers: Any, measured: Any, expected: Any
) -> None:
    rows = rows_of(layers, measured)
    found = {row.layer: row.index for row in rows}
    assert [found[name] for name in (*layers, "network")] == expected
    assert {row.index for row in rows} == set(expected)


def test_a_network_of_nan_is_not_scored_as_one_that_guesses() -> None:
    with pytest.warns(UserWarning, match="on task 1, task 2, task 3, task 4, task 5 are NaN or infinite"):
        rows = rows_of(["layers.1.linear", "layers.5.linear"], spoilt=True)
    for row in rows:
        assert math.isnan(row.value) == (row.measure != "exit_flops_share"), row
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not any(math.isnan(row.value) for row in rows_of(["layers.1.linear"]))
