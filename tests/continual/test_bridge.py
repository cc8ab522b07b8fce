"""What Lightning's Trainer adds to a strategy: loggers, callbacks, clipping, precision; one count over all tasks."""

import csv
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from continual.strategies_in_loops import make, state_of, tasks, trained
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunnel_lightning.continual.loops import Loop, make_loop
from tunnel_lightning.continual.stream import Stream

pytestmark = pytest.mark.filterwarnings("ignore:No loggers specified")

STEPS, EPOCHS = 3, 2  # of an epoch; of an experience


@pytest.fixture(scope="module")
def stream() -> Stream:
    return tasks()


class Counts(Callback):
    """Where the Trainer says it is, at the end of each epoch, and how often it starts and ends."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []
        self.hooks: list[str] = []

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.hooks.append("start")

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.hooks.append("end")

    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.seen.append((trainer.current_epoch, trainer.global_step))


def learn(loop: Loop, experiences: Any) -> Loop:
    torch.manual_seed(2)
    for experience in experiences:
        loop.train(experience)
    return loop


def scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    assert len(list(folder.glob("events.*"))) == 1  # TensorBoard does not go back to an older one
    events = EventAccumulator(str(folder)).Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_callbacks_and_loggers_go_on_counting_from_task_to_task(stream: Stream, tmp_path: Path) -> None:
    counts = Counts()
    rate = {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}
    table = {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": str(tmp_path)}}
    options = {
        "callbacks": [counts, rate | {"init_args": {"logging_interval": "step"}}],
        "logger": table,
        "log_every_n_steps": 2,
    }
    loop = learn(make_loop(make("Naive", stream), "lightning", options), stream.benchmark.train_stream)
    loop.close()

    assert counts.seen == [(epoch, STEPS * (epoch + 1)) for epoch in range(3 * EPOCHS)]
    assert counts.hooks == ["start", "end"] * 3
    [path] = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(path.open()))
    steps = [int(row["step"]) for row in rows if row["train/loss"]]
    assert steps == [1, *range(2, 3 * EPOCHS * STEPS + 1, 2)]
    rates = [int(row["step"]) for row in rows if row["lr-SGD"]]
    assert rates == list(range(1, 3 * EPOCHS * STEPS, 2))  # Lightning counts from 0


def test_tensorboard_shows_the_same_loss_with_both_loops(stream: Stream, tmp_path: Path) -> None:
    found = {}
    for name in ("native", "lightning"):
        loop = make_loop(make("Naive", stream), name, {"log_every_n_steps": 4}, tmp_path / name)
        learn(loop, stream.benchmark.train_stream)
        loop.writer.add_scalar("accuracy/average", 0.5, loop.steps)  # what else a run shows
        loop.close()
        found[name] = scalars(tmp_path / name)

    assert found["native"] == found["lightning"]
    assert [step for step, _ in found["native"]["train/loss"]] == [1, 4, 8, 12, 16]
    assert found["native"]["accuracy/average"] == [(18, 0.5)]
    assert len({value for _, value in found["native"]["train/loss"]}) == 5


@pytest.mark.parametrize("name", ["native", "lightning"])
def test_the_loss_is_that_of_the_step_whatever_plugins_do_after_it(
    name: str, stream: Stream, tmp_path: Path
) -> None:
    strategy = make("Naive", stream, eval_every=1, peval_mode="iteration")  # evaluating leaves a loss of 0
    loop = make_loop(strategy, name, {"log_every_n_steps": 1}, tmp_path)
    learn(loop, stream.benchmark.train_stream[:1])
    loop.close()
    losses = [value for _, value in scalars(tmp_path)["train/loss"]]
    assert len(losses) == EPOCHS * STEPS
    assert min(losses) > 0.1


def test_the_network_stays_on_its_device_after_a_task(stream: Stream) -> None:
    loop = make_loop(make("Naive", stream), "lightning")

    def away(self: Any) -> Any:
        raise AssertionError("moved to the CPU, where the strategy does not look for it")

    loop._bridge.cpu = away.__get__(loop._bridge)  # type: ignore[attr-defined]
    learn(loop, stream.benchmark.train_stream[:1])
    assert loop.steps == EPOCHS * STEPS


def test_loggers_are_finished_once_and_not_after_each_task(stream: Stream, tmp_path: Path) -> None:
    class Fragile(CSVLogger):
        finished = 0

        def finalize(self, status: str) -> None:
            Fragile.finished += 1

    loop = make_loop(make("Naive", stream), "lightning", {"logger": Fragile(tmp_path)})
    learn(loop, stream.benchmark.train_stream)
    assert Fragile.finished == 0
    loop.close()
    assert Fragile.finished == 1


def test_a_fresh_trainer_goes_on_where_the_last_one_was(stream: Stream, tmp_path: Path) -> None:
    whole = trained("Replay", stream, "lightning")
    first = make_loop(make("Replay", stream), "lightning")
    learn(first, stream.benchmark.train_stream[:2])
    state = first.state_dict()
    assert state == {"steps": 2 * EPOCHS * STEPS, "epochs": 2 * EPOCHS}

    counts, logger = Counts(), CSVLogger(tmp_path)
    rates = LearningRateMonitor(logging_interval="step")
    options = {"callbacks": [counts, rates], "logger": logger, "log_every_n_steps": 3}
    second = make_loop(first.strategy, "lightning", options)
    second.load_state_dict(state)
    second.train(stream.benchmark.train_stream[2])
    second.close()

    assert counts.seen == [(4, 15), (5, 18)]
    assert second.state_dict() == whole.state_dict()
    assert all(torch.equal(value, state_of(second)[key]) for key, value in state_of(whole).items())
    [path] = tmp_path.rglob("metrics.csv")
    rows = list(csv.DictReader(path.open()))
    assert [int(row["step"]) for row in rows if row["train/loss"]] == [15, 18]
    assert [int(row["step"]) for row in rows if row["lr-SGD"]] == [14, 17]  # Lightning's count from 0


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"gradient_clip_val": 0.01}, "gradient_clip_val=0.01 changes the weights"),
        ({"precision": "bf16-mixed"}, "precision=bf16-mixed changes the weights"),
        (
            {"limit_train_batches": 2, "gradient_clip_val": 0.1, "precision": "32-true"},
            "gradient_clip_val=0.1, limit_train_batches=2 change the weights",
        ),
    ],
)
def test_options_that_change_the_weights_say_so(options: dict[str, Any], words: str, stream: Stream) -> None:
    plain, loop = trained("Naive", stream, "lightning"), trained("Naive", stream, "auto", **options)

    assert loop.differs.startswith(words)
    weight = state_of(loop)["model.head.weight"]
    assert weight.dtype == torch.float32
    assert weight.isfinite().all()
    assert not torch.equal(weight, state_of(plain)["model.head.weight"])


def test_gradients_are_clipped_after_the_plugins_had_their_say(stream: Stream) -> None:
    class Huge:
        def before_update(self, strategy: Any, **kwargs: Any) -> None:
            for parameter in strategy.model.parameters():
                parameter.grad.fill_(1e6)

    norms = []

    class Norms(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            grads = [parameter.grad.flatten() for parameter in pl_module.model.parameters()]
            norms.append(float(torch.cat(grads).norm()))

    strategy = make("Naive", stream)
    strategy.plugins.append(Huge())
    loop = make_loop(strategy, "lightning", {"gradient_clip_val": 0.5, "callbacks": [Norms()]})
    learn(loop, stream.benchmark.train_stream[:1])
    assert norms == pytest.approx([0.5] * loop.steps, rel=1e-3)


def test_a_callback_may_end_a_task_early(stream: Stream) -> None:
    class Enough(Callback):
        def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
            trainer.should_stop = trainer.current_epoch == 0

    loop = make_loop(make("Naive", stream), "lightning", {"callbacks": Enough()})
    learn(loop, stream.benchmark.train_stream)
    assert loop.epochs == 3 * EPOCHS - 1
    assert loop.trainer.current_epoch == loop.epochs  # type: ignore[attr-defined]


def test_callbacks_see_the_network_that_is_trained(stream: Stream) -> None:
    networks = []

    class Network(Callback):
        def on_train_end(self, trainer: Any, pl_module: Any) -> None:
            networks.append(pl_module.model)

    loop = make_loop(make("GDumb", stream), "lightning", {"callbacks": Network()})
    fresh = loop.strategy.model
    learn(loop, stream.benchmark.train_stream)
    assert len({id(network) for network in networks}) == 3  # GDumb begins with a copy each time
    assert networks[-1] is loop.strategy.model is not fresh


def test_interrupting_is_an_interrupt_and_the_next_one_counts_too(stream: Stream) -> None:
    class Interrupted:
        def after_forward(self, strategy: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

    strategy = make("Naive", stream)
    strategy.plugins.append(Interrupted())
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        make_loop(strategy, "lightning").train(stream.benchmark.train_stream[0])
    assert signal.getsignal(signal.SIGINT) is handler
    assert "_train_exp" not in vars(strategy)
