"""Both loops train every strategy to the same weights, to the last bit, and fire its hooks in the same order."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from continual.strategies_in_loops import CASES, make, state_of, tasks, trained
from torch.utils.data import DataLoader

from tunnel_lightning.continual.loops import Loop, make_loop
from tunnel_lightning.continual.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")


@pytest.fixture(scope="module")
def streams() -> dict[str, Stream]:
    return {kind: tasks(kind) for kind in ("class_incremental", "task_incremental")}


@pytest.fixture(scope="module")
def stream(streams: dict[str, Stream]) -> Stream:
    return streams["class_incremental"]


def assert_equal(one: Loop, other: Loop) -> None:
    """Network, optimizer, the random state they end in, and the counts."""
    first, second = state_of(one), state_of(other)
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []
    assert all(value.isfinite().all() for key, value in first.items() if key != "random")
    assert (one.steps, one.epochs) == (other.steps, other.epochs)


@pytest.mark.parametrize("name", list(CASES))
def test_both_loops_end_in_the_same_weights(name: str, streams: dict[str, Stream]) -> None:
    stream = streams[CASES[name].kind]
    fresh = make(name, stream).model.state_dict()
    native, lightning = (trained(name, stream, loop) for loop in ("native", "lightning"))

    assert (native.name, lightning.name) == ("native", "lightning")
    assert_equal(native, lightning)
    after = native.strategy.model.state_dict()
    assert any(key not in fresh or not torch.equal(fresh[key], after[key]) for key in after)  # it did learn
    assert native.epochs == (2 if CASES[name].joint else 6)
    trainer = lightning.trainer  # type: ignore[attr-defined]
    assert (trainer.global_step, trainer.current_epoch) == (lightning.steps, lightning.epochs)
    assert lightning.differs == ""


def test_the_optimizer_can_start_anew_with_each_task(stream: Stream) -> None:
    loops = []
    for loop in ("native", "lightning"):
        made = make_loop(make("Naive", stream), loop, reset_optimizer=True)
        torch.manual_seed(2)
        for experience in stream.benchmark.train_stream:
            made.train(experience)
        loops.append(made)

    assert_equal(*loops)
    kept = state_of(trained("Naive", stream, "native"))
    assert not torch.equal(kept["model.head.weight"], state_of(loops[0])["model.head.weight"])


def test_a_strategy_keeps_its_own_backward_pass(stream: Stream) -> None:
    loops = []
    for name in ("native", "lightning"):
        strategy = make("Naive", stream)
        strategy.backward = lambda strategy=strategy: (0.5 * strategy.loss).backward()
        loops.append(make_loop(strategy, name))
        torch.manual_seed(2)
        loops[-1].train(stream.benchmark.train_stream[0])
    assert_equal(*loops)


class Meddler:
    """What plugins may do that Lightning would not expect."""

    def __init__(self) -> None:
        self.gradients: list[float] = []

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        # A loader that draws from the random state as soon as it is asked for an iterator.
        strategy.dataloader = DataLoader(strategy.adapted_dataset, batch_size=8, shuffle=True)

    def before_training_iteration(self, strategy: Any, **kwargs: Any) -> None:
        grads = [each.grad for each in strategy.model.parameters() if each.grad is not None]
        self.gradients.append(sum(float(grad.abs().sum()) for grad in grads))


def test_a_plugin_finds_gradients_and_random_state_as_the_strategy_left_them(stream: Stream) -> None:
    native, lightning = Meddler(), Meddler()
    loops = recorded(stream, "native", native), recorded(stream, "lightning", lightning)

    assert_equal(*loops)
    assert lightning.gradients == native.gradients
    assert native.gradients[0] == 0 < native.gradients[6]  # the second task finds those of the first


class Recorder:
    """Writes down every hook that fires; at one of them, the n-th time, it acts."""

    def __init__(self, at: str = "", time: int = 1, act: Callable[[Any], None] | None = None) -> None:
        self.at, self.time, self.act = at, time, act
        self.events: list[str] = []

    def __getattr__(self, name: str) -> Any:
        if not name.startswith(("before_", "after_")):
            raise AttributeError(name)

        def record(strategy: Any, **kwargs: Any) -> None:
            self.events.append(name)
            if name == self.at and self.events.count(name) == self.time and self.act is not None:
                self.act(strategy)

        return record


def recorded(stream: Stream, loop: str, plugin: Any) -> Loop:
    """Naive on two tasks, with a plugin."""
    strategy = make("Naive", stream)
    strategy.plugins.append(plugin)
    made = make_loop(strategy, loop)
    torch.manual_seed(2)
    for experience in stream.benchmark.train_stream[:2]:
        made.train(experience)
    return made


@pytest.mark.parametrize(
    ("at", "time"),
    [
        ("", 0),
        ("before_training_epoch", 1),
        ("before_training_epoch", 2),
        ("after_training_iteration", 1),  # in the first epoch: its next batch is drawn and thrown away
        ("after_training_iteration", 3),  # with the last batch of the first epoch
        ("after_training_iteration", 5),  # in the last epoch
        ("after_training_epoch", 1),
        ("after_training_epoch", 2),  # with nothing left to stop
    ],
)
def test_hooks_fire_in_the_strategys_order_and_stopping_stops_at_the_same_place(
    at: str, time: int, stream: Stream
) -> None:
    native, lightning = (Recorder(at, time, lambda strategy: strategy.stop_training()) for _ in range(2))
    loops = recorded(stream, "native", native), recorded(stream, "lightning", lightning)

    assert lightning.events == native.events
    assert_equal(*loops)
    stopped = time > 0 and (at, time) not in {("after_training_epoch", 2)}
    assert (loops[0].steps < 12) == stopped
    trainer = loops[1].trainer  # type: ignore[attr-defined]
    assert (trainer.global_step, trainer.current_epoch) == (loops[1].steps, loops[1].epochs)


def test_a_stop_counts_for_one_task_of_several_given_at_once(stream: Stream) -> None:
    loops = []
    for name in ("native", "lightning"):
        strategy = make("Naive", stream)
        strategy.plugins.append(
            Recorder("after_training_iteration", 1, lambda strategy: strategy.stop_training())
        )
        loops.append(make_loop(strategy, name))
        torch.manual_seed(2)
        loops[-1].train(list(stream.benchmark.train_stream[:2]))

    assert_equal(*loops)
    assert loops[0].steps == 1 + 6


@pytest.mark.parametrize("loop", ["native", "lightning"])
def test_each_step_is_told_with_how_many_there_are(loop: str, stream: Stream) -> None:
    made = make_loop(make("Replay", stream), loop)
    told: list[tuple[int, int]] = []
    for experience in stream.benchmark.train_stream[:2]:
        made.train(experience, lambda done, total: told.append((done, total)))

    steps = made.steps // 2
    assert told == [(done, steps) for done in range(1, steps + 1)] * 2


@pytest.mark.parametrize("loop", ["native", "lightning"])
def test_a_crash_comes_through_as_it_was_and_leaves_the_strategy_as_it_was(loop: str, stream: Stream) -> None:
    class Broken(Exception):
        pass

    def crash(strategy: Any) -> None:
        raise Broken("disk on fire")

    recorder = Recorder("after_backward", 2, crash)
    strategy = make("Naive", stream)
    strategy.plugins.append(recorder)
    plugins = list(strategy.plugins)
    made = make_loop(strategy, loop)
    with pytest.raises(Broken, match=r"^disk on fire$"):
        made.train(stream.benchmark.train_stream[0])

    assert recorder.events.count("before_update") == made.steps == 1
    assert strategy.plugins == plugins
    assert "_train_exp" not in vars(strategy)
