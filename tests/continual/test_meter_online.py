"""Online probes along a stream, and a meter that goes on from its state; strategies by hand where that is enough."""

import io
import warnings
from typing import Any

import pytest
import torch
from continual.toys_meter import blobs, hidden, images, network, table, train
from torch import nn

from tunnel_lightning.continual.meter import LayerMeter
from tunnel_lightning.continual.online import Answers
from tunnel_lightning.continual.stream import Images, Stream
from tunnel_lightning.measures import Accuracy, ProbeBank

LAYERS = ("layers.0.linear", "layers.1.linear")


class Loop:
    """A strategy as far as a plugin sees it: each step shows the network a batch and has the plugins told."""

    def __init__(self, model: nn.Module, meter: LayerMeter) -> None:
        self.model, self.plugins = model, meter.plugins()
        self.optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        self.mbatch: list[torch.Tensor] = []

    mb_x = property(lambda self: self.mbatch[0])
    mb_y = property(lambda self: self.mbatch[1])

    def tell(self, event: str) -> None:
        for plugin in self.plugins:
            getattr(plugin, event)(self)

    def forward(self) -> torch.Tensor:
        return self.model(self.mb_x)

    def step(self, data: Images, label: int = 0) -> None:
        self.mbatch = [data.x, data.y, torch.full_like(data.y, label)]
        self.optimizer.zero_grad()
        self.tell("before_forward")
        scores = self.forward()
        self.tell("after_forward")
        nn.functional.cross_entropy(scores, self.mb_y).backward()
        self.optimizer.step()

    def learn(self, stream: Stream, index: int, steps: int = 5) -> None:
        self.tell("before_training_exp")
        task = stream.tasks[index]
        for _ in range(steps):
            self.step(task.train, task.label)
        self.tell("after_training_exp")


def started(kind: str = "class_incremental", **options: Any) -> tuple[Stream, Any, LayerMeter, Loop]:
    stream = blobs(kind)
    model = network(stream)
    every = {"online_lr": 1e-3, "online_every_n_steps": 1, **options}
    meter = LayerMeter(stream, probes=["online"], drift=False, ranks=False, **every)
    meter.start(model)
    return stream, model, meter, Loop(model, meter)


def test_task_labels_may_be_floats() -> None:
    answers = Answers(blobs("task_incremental"))
    y, labels = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 2, 9, 1])
    assert torch.equal(answers(y, labels.float()), answers(y, labels))
    assert answers(y, labels).tolist() == [0, 5, -1, 2]


def test_they_learn_what_a_bank_learns_from_the_same_batches_and_are_never_fitted_again() -> None:
    stream, model, meter, loop = started(online_lr=0.05)
    bank = ProbeBank(dict.fromkeys(LAYERS, 12), 6, lr=0.05)
    for index in (0, 1):
        loop.tell("before_training_exp")
        task = stream.tasks[index]
        for _ in range(5):
            bank.step(hidden(model, task.train.x), task.train.classes)
            loop.step(task.train)
        found = table(meter.measure(model, after=index))
        assert {key[1] for key in found if key[4] == "online"} == {f"task {i + 1}" for i in range(index + 1)}
        for seen in stream.tasks[: index + 1]:
            features = hidden(model, seen.test.x)
            for layer in LAYERS:
                own = Accuracy("")
                own.update(bank.head(layer)(features[layer]), seen.test.classes)
                row = found[index, seen.name, layer, "probe_accuracy", "online"]
                assert (row.value, row.se, row.n) == (own.compute()[0].value, own.compute()[0].se, 40)


def test_every_nth_step() -> None:
    stream, _, meter, loop = started(online_every_n_steps=3)
    loop.learn(stream, 0, steps=7)
    assert meter._online.bank.steps == 3


def test_several_heads_count_as_classes_of_the_stream() -> None:
    stream, model, meter, loop = started("task_incremental")
    loop.learn(stream, 0)
    loop.learn(stream, 1, steps=20)
    assert meter._online.bank.num_classes == 6
    with torch.no_grad():
        head = meter._online.head(LAYERS[0])
        said = head(hidden(model, stream.tasks[1].test.x)[LAYERS[0]]).argmax(1)
    assert set(said.tolist()) <= {0, 1, 2, 3}
    assert (said == stream.tasks[1].test.classes).float().mean() > 0.6


def test_a_batch_that_the_network_is_shown_head_by_head() -> None:
    stream, model, meter, loop = started("task_incremental")
    tasks, bank = stream.tasks[:2], ProbeBank(dict.fromkeys(LAYERS, 12), 6)
    mixed = torch.randperm(120, generator=torch.Generator().manual_seed(0))
    x, y = (torch.cat([getattr(task.train, part) for task in tasks])[mixed] for part in ("x", "y"))
    labels = torch.tensor([0] * 60 + [1] * 60)[mixed]
    # As Avalanche's multi-task modules do: one pass for each task in the batch.
    model.forward_single_task = lambda x, label: model(x)
    loop.mbatch = [x, y, labels]
    for _ in range(3):
        loop.tell("before_forward")
        for label in (0, 1):
            model(x[labels == label])
        loop.tell("after_forward")
        order = labels.argsort(stable=True)
        bank.step(hidden(model, x[order]), (y + 2 * labels)[order])
    assert torch.equal(meter._online.bank.head(LAYERS[1]).weight, bank.head(LAYERS[1]).weight)


def test_passes_of_others_are_told_from_the_strategys() -> None:
    stream, model, meter, loop = started()
    other, bank = images((4, 5), (4, 5), 60, seed=77), ProbeBank(dict.fromkeys(LAYERS, 12), 6)
    model.eval()
    task = stream.tasks[0]

    def forward() -> torch.Tensor:
        model(other.x)  # as a plugin does that chooses what to replay
        scores = model(loop.mb_x)
        model(other.x)
        return scores

    loop.forward = forward  # type: ignore[method-assign]
    bank.step(hidden(model, task.train.x), task.train.classes)
    loop.step(task.train)
    assert torch.equal(meter._online.bank.head(LAYERS[1]).weight, bank.head(LAYERS[1]).weight)


def test_the_first_of_several_views_is_used() -> None:
    stream, model, meter, loop = started()
    task, bank = stream.tasks[0], ProbeBank(dict.fromkeys(LAYERS, 12), 6)
    bank.step(hidden(model, task.train.x), task.train.classes)
    loop.mbatch = [torch.cat([task.train.x, -task.train.x]), task.train.y, torch.zeros_like(task.train.y)]
    loop.tell("before_forward")
    loop.forward()
    loop.tell("after_forward")
    assert torch.equal(meter._online.bank.head(LAYERS[1]).weight, bank.head(LAYERS[1]).weight)


def test_after_a_forward_that_failed_the_next_is_followed() -> None:
    stream, model, meter, loop = started()
    loop.forward = lambda: 1 / 0  # type: ignore[method-assign]
    with pytest.raises(ZeroDivisionError):
        loop.step(stream.tasks[0].train)
    del loop.forward
    loop.step(stream.tasks[0].train)
    assert (meter._online.bank.steps, meter._online.missed) == (1, 0)
    assert not [module for module in model.modules() if module._forward_hooks]


def test_a_strategy_that_cannot_be_followed_is_named_once() -> None:
    stream, model, meter, loop = started()
    train(model, stream.tasks[0])
    with pytest.warns(UserWarning, match="does not announce its forward passes"):
        rows = meter.measure(model, after=0)
    assert {row.layer for row in rows} == {"network"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        meter.measure(model, after=0)
    stream, model, meter, loop = started()
    loop.forward = lambda: model(loop.mb_x + 1)  # type: ignore[method-assign]
    loop.learn(stream, 0)
    assert meter._online.missed == 5
    with pytest.warns(UserWarning, match="was not the batch at hand"):
        meter.measure(model, after=0)


def test_answers_of_every_kind_of_stream() -> None:
    y = torch.tensor([0, 1, 0, 1])
    assert Answers(blobs("class_incremental"))(y + 2, torch.zeros_like(y)).tolist() == [2, 3, 2, 3]
    heads = Answers(blobs("task_incremental"))
    assert (heads.count, heads(y, torch.tensor([0, 0, 2, 2])).tolist()) == (6, [0, 1, 4, 5])
    # The same target is another class in every task, and nothing in a batch tells which.
    domains = Answers(blobs("domain_incremental"))
    assert (domains.count, domains(y, torch.zeros_like(y)).tolist()) == (2, [0, 1, 0, 1])
    assert heads(torch.tensor([2, -1, 0]), torch.tensor([0, 0, 7])).tolist() == [-1, -1, -1]


def test_images_of_no_class_are_left_out() -> None:
    stream, model, meter, loop = started()
    task, bank = stream.tasks[0], ProbeBank(dict.fromkeys(LAYERS, 12), 6)
    bank.step(hidden(model, task.train.x[:50]), task.train.classes[:50])
    y = task.train.y.clone()
    y[50:] = 17
    loop.mbatch = [task.train.x, y]
    loop.tell("before_forward")
    loop.forward()
    loop.tell("after_forward")
    torch.testing.assert_close(meter._online.bank.head(LAYERS[1]).weight, bank.head(LAYERS[1]).weight)


# State --------------------------------------------------------------------------------------------------------------


def after_task(stream: Stream, upto: int, saved: Any = None, start: int = 0) -> tuple[list[Any], Any]:
    """Rows of the tasks from ``start`` on, and the state after the last: network, optimizer, meter."""
    model = network(stream)
    meter = LayerMeter(stream, reference_images=20, reference_columns=11)
    meter.start(model)
    loop = Loop(model, meter)
    if saved is not None:
        model.load_state_dict(saved["model"])
        meter.load_state_dict(saved["meter"])
    rows = []
    for index in range(start, upto):
        loop.learn(stream, index)
        rows += meter.measure(model, after=index)
    return rows, {"model": model.state_dict(), "meter": meter.state_dict()}


def test_going_on_from_a_state_equals_not_having_stopped() -> None:
    stream = blobs()
    wanted, _ = after_task(stream, 3)
    early, state = after_task(stream, 2)
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    late, _ = after_task(stream, 3, torch.load(file, weights_only=True), start=2)
    assert repr(early + late) == repr(wanted)


def test_a_state_before_the_first_task() -> None:
    stream, model, meter, _ = started()
    meter.measure(model, after=-1)
    state = meter.state_dict()
    again = LayerMeter(stream, probes=["online"], drift=False, ranks=False)
    again.start(model)
    again.load_state_dict(state)
    assert again._online.bank is None


def test_a_state_of_other_layers_or_probes_is_refused() -> None:
    stream = blobs()
    _, state = after_task(stream, 1)
    deeper = LayerMeter(stream)
    deeper.start(network(stream, depth=3))
    with pytest.raises(ValueError, match=r"has layers layers.0.linear, layers.1.linear and online probes"):
        deeper.load_state_dict(state["meter"])
    without = LayerMeter(stream, probes=["fixed"])
    without.start(network(stream))
    with pytest.raises(ValueError, match="go on with the settings of that run"):
        without.load_state_dict(state["meter"])
