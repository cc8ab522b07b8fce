"""Which loop trains a strategy, and what of Lightning's Trainer goes with it."""

import doctest
from typing import Any

import pytest
import torch
from continual.strategies_in_loops import make, named, tasks
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint

from tunnel_lightning.continual import bridge, loops
from tunnel_lightning.continual.loops import choose_loop, make_loop
from tunnel_lightning.continual.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tasks()


def er_ace(stream: Stream) -> Any:
    naive = make("Naive", stream)
    return named("ER_ACE", mem_size=20, batch_size_mem=6)(
        stream,
        {"model": naive.model, "optimizer": naive.optimizer, "train_mb_size": 8, "evaluator": None},
    )


def test_the_trainer_drives_whatever_keeps_avalanches_epoch(stream: Stream) -> None:
    strategy = make("Replay", stream)
    found = [choose_loop(strategy, loop, ["precision"]) for loop in ("auto", "lightning", "native")]
    assert found == ["lightning", "lightning", "native"]
    assert choose_loop(strategy, "lightning") == "lightning"
    assert choose_loop(er_ace(stream), "auto", ["precision"]) == "native"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "native"),
        ({"logger": False, "log_every_n_steps": 5}, "native"),
        ({"precision": None}, "native"),
        ({"gradient_clip_val": 1.0}, "lightning"),
        ({"callbacks": []}, "lightning"),
    ],
)
def test_auto_takes_the_trainer_where_something_is_asked_of_it(
    options: dict[str, Any], name: str, stream: Stream
) -> None:
    assert make_loop(make("Naive", stream), "auto", options).name == name


@pytest.mark.parametrize("method", ["training_epoch", "_train_exp", "optimizer_step"])
@pytest.mark.parametrize("where", ["class", "object"])
def test_a_strategy_with_a_loop_of_its_own_keeps_it(method: str, where: str, stream: Stream) -> None:
    strategy = make("Naive", stream)
    if where == "class":
        strategy.__class__ = type("Mine", (type(strategy),), {method: lambda self, *args, **kwargs: None})
    else:
        setattr(strategy, method, lambda *args, **kwargs: None)

    assert choose_loop(strategy, "auto", ["precision"]) == "native"
    with pytest.raises(
        TypeError, match=f"can't drive {type(strategy).__name__}: it has a {method} of its own"
    ):
        choose_loop(strategy, "lightning")


def test_an_optimizer_that_repeats_a_step_is_not_driven(stream: Stream) -> None:
    strategy = make("Naive", stream)
    strategy.optimizer = torch.optim.LBFGS(strategy.model.parameters())
    with pytest.raises(TypeError, match="LBFGS computes each step several times"):
        choose_loop(strategy, "lightning")


def test_an_unknown_loop_is_refused(stream: Stream) -> None:
    with pytest.raises(ValueError, match=r"loop: 'trainer' is none of auto, native, lightning"):
        choose_loop(make("Naive", stream), "trainer")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_epochs": 3}, r"max_epochs is not for a continual run"),
        (
            {"accumulate_grad_batches": 2},
            r"accumulate_grad_batches is 2, but Avalanche's plugins act on every",
        ),
        ({"devices": 2}, r"devices is 2, but a strategy lives on one device"),
        ({"accelerator": "gpu"}, r"accelerator is cuda, but the strategy is on cpu"),
        ({"precision": "16-mixed"}, r"precision is 16-mixed; give 32-true or bf16-mixed"),
        ({"precision": "64-true"}, r"precision is 64-true; give 32-true or bf16-mixed"),
        ({"callbacks": [ModelCheckpoint()]}, r"callbacks holds ModelCheckpoint"),
        (
            {"callbacks": GradientAccumulationScheduler({0: 2})},
            r"callbacks holds GradientAccumulationScheduler",
        ),
        ({"callbacks": ["LearningRateMonitor"]}, r"'LearningRateMonitor' is no Callback"),
        ({"callbacks": [{"class_path": "lightning.pytorch.callbacks.None_"}]}, r"None_.* can't be made"),
        ({"logger": {"class_path": "lightning.pytorch.callbacks.Timer"}}, r"Timer object .* is no Logger"),
        ({"gradient_clip_val": "much"}, r"trainer: .*gradient_clip_val"),
        ({"log_every_n_steps": 0}, r"log_every_n_steps is 0; give at least 1"),
        ({"log_every_n_steps": 0, "precision": "32-true"}, r"log_every_n_steps is 0; give at least 1"),
    ],
)
def test_what_does_not_go_with_a_strategy_is_refused(
    options: dict[str, Any], message: str, stream: Stream
) -> None:
    with pytest.raises(ValueError, match=message):
        make_loop(make("Naive", stream), "auto", options)


@pytest.mark.parametrize("name", ["BiC", "ICaRL"])
def test_what_would_fail_under_autocast_is_refused(name: str, stream: Stream) -> None:
    strategy = make(name, stream)
    with pytest.raises(ValueError, match=f"precision is bf16-mixed, but {name} with .* give 32-true"):
        make_loop(strategy, "auto", {"precision": "bf16-mixed"})
    assert make_loop(strategy, "auto", {"precision": "32-true"}).name == "lightning"


@pytest.mark.parametrize(
    ("loop", "why"), [("native", "loop: native has none"), ("auto", "it has a training_epoch of its own")]
)
def test_options_that_the_strategys_own_loop_would_pass_over_are_refused(
    loop: str, why: str, stream: Stream
) -> None:
    options = {"gradient_clip_val": 1.0, "precision": "bf16-mixed", "log_every_n_steps": 5, "devices": None}
    with pytest.raises(
        ValueError, match=f"gradient_clip_val, precision needs Lightning's Trainer, .*: {why}"
    ):
        make_loop(er_ace(stream), loop, options)


@pytest.mark.parametrize("module", [loops, bridge])
def test_examples(module: Any) -> None:
    result = doctest.testmod(module)
    assert (result.failed, result.attempted > 0) == (0, True)
