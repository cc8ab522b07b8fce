"""Exits along a stream: with one head, with a growing one and with a head for each task; trained and measured."""

import copy
import doctest
import io
import math
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from continual.toys import normed, stream
from torch import nn
from torch.nn.functional import cross_entropy

from tunnel_lightning.__main__ import main
from tunnel_lightning.continual import auxiliary
from tunnel_lightning.continual.auxiliary import MASKED, ExitLoss, check_exits, exit_rows, with_exits
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.loops import make_loop
from tunnel_lightning.continual.models import backbone_in, prepare_model
from tunnel_lightning.continual.settings import ExitOptions
from tunnel_lightning.continual.state import can_resume, export_state, import_state
from tunnel_lightning.continual.strategies import make_strategy, turns
from tunnel_lightning.continual.stream import Stream
from tunnel_lightning.runs import ProfileTable, read_manifest
from tunnel_lightning.surgery import leave, overthinking
from tunnel_lightning.taps import quiet

CONFIG = Path(__file__).parents[2] / "configs" / "continual" / "split_digits.yaml"
TASKS = [[0, 1], [2, 3], [4, 5, 6]]
LAYERS = ["layers.2", "layers.6"]

ARGS: dict[str, dict[str, Any]] = {
    "Naive": {},
    "Cumulative": {},
    "JointTraining": {},
    "FromScratchTraining": {},
    "Replay": {"mem_size": 11},
    "GDumb": {"mem_size": 20},
    "EWC": {"ewc_lambda": 5.0},
    "SynapticIntelligence": {"si_lambda": 0.01},
    "MAS": {"lambda_reg": 0.01},
    "LwF": {"alpha": 1.0, "temperature": 2.0},
    "GEM": {"patterns_per_exp": 9},
    "AGEM": {"patterns_per_exp": 9, "sample_size": 6},
    "MIR": {"mem_size": 20, "subsample": 10, "batch_size_mem": 4},
    "ER_ACE": {"mem_size": 20, "batch_size_mem": 8},
}
"""All that train exits with a head for each task."""


@pytest.fixture(scope="module", autouse=True)
def _library() -> None:
    avalanche()


@pytest.fixture(scope="module")
def heads() -> Stream:
    return tasks("task_incremental")


def tasks(kind: str) -> Stream:
    return stream(kind, TASKS, 20, 20)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.02, momentum=0.9, weight_decay=1e-3)


def made(
    name: str, of: Stream, exits: ExitOptions | None, head: Any = "auto", seed: int = 0, **more: Any
) -> Any:
    """A strategy on a network with BatchNorm and dropout, with exits or without."""
    backbone = normed(of, seed=seed)
    model, plugins = prepare_model(backbone, of, head), []
    if exits is not None:
        model, plugins = with_exits(model, of, exits), [ExitLoss(exits.weight)]
    common = {"optimizer": sgd, "criterion": nn.CrossEntropyLoss(), "epochs": 2, "batch_size": 8, **more}
    args = {"DER": {"mem_size": 20, "batch_size_mem": 6}, **ARGS}.get(name, {})
    return make_strategy(name, args, model=model, backbone=backbone, stream=of, plugins=plugins, **common)


def seeded(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def learnt(name: str, of: Stream, exits: ExitOptions | None, loop: str = "native", **options: Any) -> Any:
    """The strategy after all tasks."""
    strategy = made(name, of, exits, **options)
    driver = make_loop(strategy, loop)
    seeded(7)
    for _, experiences in turns(strategy, of):
        driver.train(experiences)
    return strategy


def same(one: Any, other: Any) -> bool:
    """Whether two states are equal to the last bit."""
    return list(one) == list(other) and all(torch.equal(value, other[key]) for key, value in one.items())


def exits(joint: bool = False, **options: Any) -> ExitOptions:
    return ExitOptions(layers=LAYERS, joint=joint, **options)


def test_the_examples() -> None:
    assert doctest.testmod(auxiliary).failed == 0


@pytest.mark.parametrize("name", ARGS)
def test_detached_exits_leave_the_network_bitwise_as_it_was(name: str, heads: Stream) -> None:
    plain, with_them = learnt(name, heads, None), learnt(name, heads, exits())
    assert same(with_them.model.backbone.state_dict(), plain.model.state_dict())
    fresh = with_exits(prepare_model(normed(heads), heads), heads, exits())
    for label in ("0", "1", "2"):
        trained = [not same(one[label].state_dict(), other[label].state_dict())
                   for one, other in zip(with_them.model.heads, fresh.heads, strict=True)]  # fmt: skip
        # That strategy goes back to the first weights with each task, exits and all.
        assert all(trained) == (name != "FromScratchTraining" or label == "2")


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", ["Naive", "Replay", "LwF", "GDumb"])
def test_both_loops_train_the_same(name: str, joint: bool, heads: Stream) -> None:
    native, lightning = (learnt(name, heads, exits(joint), loop) for loop in ("native", "lightning"))
    assert same(native.model.state_dict(), lightning.model.state_dict())


def test_joint_exits_train_the_network_too(heads: Stream) -> None:
    detached, joint = learnt("Naive", heads, exits()), learnt("Naive", heads, exits(joint=True))
    assert not same(joint.model.backbone.state_dict(), detached.model.backbone.state_dict())


@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize("name", ["Naive", "Replay", "EWC", "LwF", "MAS", "GEM", "JointTraining"])
def test_a_run_gone_on_with_ends_in_the_same_weights(name: str, joint: bool, heads: Stream) -> None:
    resume(name, heads, joint, "auto")


@pytest.mark.parametrize("head", ["fixed", "incremental"])
def test_so_does_one_with_a_single_head(head: str) -> None:
    resume("Replay", tasks("class_incremental"), True, head)


def resume(name: str, of: Stream, joint: bool, head: str) -> None:
    straight = made(name, of, exits(joint), head)
    assert can_resume(straight) is None
    seeded(7)
    states = []
    for _, experiences in turns(straight, of):
        straight.train(experiences)
        file = io.BytesIO()
        torch.save(export_state(straight), file)
        file.seek(0)
        states.append(torch.load(file, weights_only=True))
    for done, state in enumerate(states[:-1] or states, start=1):
        resumed = made(name, of, exits(joint), head, seed=3)
        seeded(99)
        import_state(resumed, state)
        for _, experiences in turns(resumed, of)[done:]:
            resumed.train(experiences)
        assert same(resumed.model.state_dict(), straight.model.state_dict())


def test_each_image_is_answered_by_the_head_of_its_task(heads: Stream) -> None:
    model = learnt("Naive", heads, exits()).model
    x = torch.cat([task.test.x[:3] for task in heads.tasks])
    labels = torch.tensor([0] * 3 + [1] * 3 + [2] * 3)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(0))
    with quiet(model):
        network = model.backbone(x[order], labels[order])
        assert torch.equal(model(x[order], labels[order]), network)
        shown = [scores[order.argsort()] for scores in model.last]
        assert [tuple(scores.shape) for scores in shown] == [(9, 3)] * 3
        for at, task in enumerate(heads.tasks):
            mine = slice(3 * at, 3 * at + 3)
            alone = model.all_scores(task.test.x[:3], at)
            for scores, expected in zip(shown, alone, strict=True):
                torch.testing.assert_close(scores[mine], expected)
            others = model.all_scores(task.test.x[:3], (at + 1) % 3)
            assert not any(torch.allclose(a, b) for a, b in zip(alone, others, strict=True))
            # By hand: the linear map of that task on what the layer puts out.
            layer = backbone_in(model).layers[:3](task.test.x[:3])
            head = model.heads[0][str(at)]
            pooled = nn.functional.adaptive_avg_pool2d(layer, 2).flatten(1)
            outputs = list(task.outputs)
            torch.testing.assert_close(alone[0][:, outputs], head(pooled)[:, outputs])


def test_only_the_heads_of_the_tasks_in_the_batch_learn(heads: Stream) -> None:
    strategy = made("Naive", heads, exits())
    before = copy.deepcopy(strategy.model.heads)
    for task, experience in enumerate(heads.benchmark.train_stream):
        strategy.train(experience)
        for old, new in zip(before, strategy.model.heads, strict=True):
            moved = [not same(old[str(at)].state_dict(), new[str(at)].state_dict()) for at in range(3)]
            assert moved == [at == task for at in range(3)]
        before = copy.deepcopy(strategy.model.heads)


def test_outputs_that_a_task_does_not_have_count_for_nothing(heads: Stream) -> None:
    model = learnt("Naive", heads, exits()).model
    for task in heads.tasks:
        with quiet(model):
            scores = torch.stack(model.all_scores(task.test.x, task.label))
        idle = [output for output in range(3) if output not in task.outputs]
        assert (scores[:, :, idle] == MASKED).all()
        assert (scores[:, :, list(task.outputs)] > MASKED / 2).all()
        predicted = model.predict(task.test.x, 0.8, task.label)
        expected = leave(scores, 0.8, model.costs)
        assert torch.equal(predicted.answer, expected.answer)
        assert set(predicted.answer.tolist()) <= set(task.outputs)


def test_the_rows_are_those_of_a_single_head_and_right(heads: Stream) -> None:
    found = {}
    for kind, of in (("one", tasks("class_incremental")), ("several", heads)):
        strategy = made("Naive", of, exits())
        fresh = exit_rows(strategy.model, of, [0.6], "run", 0, 0, -1)
        assert bool(fresh) == (kind == "one")  # nobody has trained a head of a task yet
        for experience in of.benchmark.train_stream[:2]:
            strategy.train(experience)
        found[kind] = exit_rows(strategy.model, of, [0.6], "run", 5, 4, 1)
    rows, model = found["several"], strategy.model
    assert {row.dataset for row in rows} == {"task 1", "task 2"}
    assert {row[6:10] for row in rows} == {row[6:10] for row in found["one"]}
    values = {(row.dataset, row.layer, row.measure, row.variant): row for row in rows}
    for task in heads.tasks[:2]:
        y = task.test.y
        with quiet(model):
            scores = torch.stack(model.all_scores(task.test.x, task.label))
        for at, layer in enumerate(LAYERS):
            right = float((scores[at].argmax(1) == y).double().mean())
            row = values[task.name, layer, "exit_accuracy", "exit"]
            assert (row.value, row.n) == (pytest.approx(right), len(y))
            assert row.se == pytest.approx(math.sqrt(right * (1 - right) / len(y)))
            share = values[task.name, layer, "exit_flops_share", "exit"].value
            assert share == pytest.approx(model.costs[at] / model.costs[-1])
        left = leave(scores, 0.6, model.costs)
        right = float((left.answer == y).double().mean())
        assert values[task.name, "network", "early_exit_accuracy", "threshold=0.6"].value == pytest.approx(
            right
        )
        cost = float(left.flops.double().mean()) / model.costs[-1]
        assert values[task.name, "network", "early_exit_flops", "threshold=0.6"].value == pytest.approx(cost)
        over = values[task.name, "network", "overthinking", "any"].value
        assert over == pytest.approx(overthinking(scores, y).overthinking)


def test_costs_are_of_one_task(heads: Stream) -> None:
    one = tasks("class_incremental")
    several = with_exits(prepare_model(normed(heads), heads), heads, exits())
    single = with_exits(normed(one), one, exits())
    # Outputs are 3 in place of 7, and so is the width of the one head of the task at hand.
    widths = [place.dim for place in several.layers]
    lost = [2 * 4 * sum(widths[: at + 1]) for at in range(2)]
    lost.append(lost[-1] + 2 * 4 * backbone_in(single).head.in_features)
    assert [a - b for a, b in zip(single.costs, several.costs, strict=True)] == lost
    assert [place.name for place in several.layers] == [place.name for place in single.layers] == LAYERS


def test_exits_of_a_head_that_grows_put_out_as_many_classes() -> None:
    of = tasks("class_incremental")
    strategy = made("Naive", of, exits(), "incremental", epochs=10)
    for task, outputs in zip(of.tasks, (2, 4, 7), strict=True):
        strategy.train(of.benchmark.train_stream[task.index])
        with quiet(strategy.model):
            scores = strategy.model.all_scores(task.test.x)
        assert [each.shape[1] for each in scores] == [outputs] * 3
        right = [float((each.argmax(1) == task.test.y).float().mean()) for each in scores]
        assert min(right) > 0.6
    plain = learnt("Naive", of, None, head="incremental")
    again = learnt("Naive", of, exits(), head="incremental")
    assert same(again.model.backbone.state_dict(), plain.model.state_dict())


def test_the_loss_is_of_the_strategys_batch_and_of_no_other_pass(heads: Stream) -> None:
    model = with_exits(prepare_model(normed(heads), heads), heads, exits())
    x, y = heads.tasks[0].train.x[:8], heads.tasks[0].train.y[:8]
    labels = torch.zeros(8, dtype=torch.int64)
    model.eval()
    model.active[0, :2] = True
    strategy = SimpleNamespace(model=model, mb_x=x, mb_y=y, loss=torch.zeros(()))
    plugin = ExitLoss(0.5)
    plugin.before_forward(strategy)
    model(x, labels)
    own = [scores.clone() for scores in model.last[:-1]]
    teacher = copy.deepcopy(model)
    nn.init.zeros_(teacher.heads[0]["0"].weight)
    model(x.flip(0) + 1, labels)  # images of a memory, as many
    plugin.after_forward(strategy)
    assert not any(module._forward_hooks for module in model.modules())
    teacher(x, labels)
    plugin.before_backward(strategy)
    expected = sum(0.5 * cross_entropy(scores, y) for scores in own)
    torch.testing.assert_close(strategy.loss, expected)
    strategy.loss = torch.zeros(())
    plugin.before_backward(strategy)
    assert strategy.loss == 0


@pytest.mark.parametrize("joint", [False, True])
def test_the_whole_command_with_a_head_for_each_task(joint: bool, tmp_path: Path) -> None:
    plain = command(tmp_path / "plain")
    folder = command(tmp_path / "exits", "--exits.joint", str(joint).lower())
    rows = ProfileTable(folder / "profile.csv").rows
    found = {(row.experience, row.dataset, row.layer) for row in rows if row.measure == "exit_accuracy"}
    assert found == {
        (after, f"task {task + 1}", f"layers.{layer}.linear")
        for after in range(5) for task in range(after + 1) for layer in range(8)
    }  # fmt: skip
    assert "Leaving early" in (folder / "report.html").read_text()
    assert read_manifest(folder)["continual"]["finished"]
    one, other = (torch.load(each / "snapshots/task_5.pt", weights_only=True) for each in (folder, plain))
    assert all(torch.equal(one[f"backbone.{name}"], other[name]) for name in other) != joint
    # What is measured of the layers is the same too; and so is a run gone on with, exits and all.
    assert (same_rows(rows, ProfileTable(plain / "profile.csv").rows, "exit") is False) == joint


def command(folder: Path, *arguments: str) -> Path:
    """One epoch of split_digits, a head for each task, in this process; with exits if any of theirs is given."""
    given = ["continual", "--config", str(CONFIG), "--scenario.kind", "task_incremental", "--epochs", "1"]
    small = ["--data.samples_per_class", "12", "--meter.test_images", "20", "--device", "cpu"]
    assert main([*given, *small, "--runs", str(folder), *arguments]) == 0
    return folder / "split_digits" / "version_0"


def same_rows(one: Any, other: Any, without: str) -> bool:
    """Whether what was measured, but for some measures, is equal."""
    tables = [
        {row._replace(run_id="", value=0.0, se=0.0): row.value for row in rows if not left_out(row, without)}
        for rows in (one, other)
    ]
    return tables[0].keys() == tables[1].keys() and np.array_equal(
        list(tables[0].values()), list(tables[1].values()), equal_nan=True
    )


def left_out(row: Any, without: str) -> bool:
    return without in row.measure or row.measure == "overthinking"


def test_the_loss_is_of_the_batch_that_the_strategy_has_added_to() -> None:
    """DER adds remembered images when all plugins were told that the forward pass comes."""
    of = tasks("class_incremental")
    strategy = made("DER", of, exits())
    sizes, add = [], strategy.plugins[1].before_backward

    def before_backward(strategy: Any, **kwargs: Any) -> None:
        sizes.append([len(scores) for scores in strategy.plugins[1]._scores])
        add(strategy, **kwargs)

    strategy.plugins[1].before_backward = before_backward
    for experience in of.benchmark.train_stream[:2]:
        strategy.train(experience)
    assert {len(each) for each in sizes} == {2}
    assert sizes[0] == [8, 8]
    assert max(max(each) for each in sizes) > 8


def test_exits_that_learn_nothing_are_announced(heads: Stream) -> None:
    strategy = made("Naive", heads, exits())
    strategy.plugins = [plugin for plugin in strategy.plugins if not isinstance(plugin, ExitLoss)]
    loss = ExitLoss(1.0)
    strategy.plugins.append(SimpleNamespace(after_training_exp=loss.after_training_exp))
    with pytest.warns(UserWarning, match="exits have learnt nothing from Naive"):
        strategy.train(heads.benchmark.train_stream[0])


@pytest.mark.parametrize(
    ("name", "kind", "why"),
    [
        ("MER", "task_incremental", "steps of its own"),
        ("MER", "class_incremental", "steps of its own"),
        ("LaMAML", "class_incremental", "steps of its own"),
        ("SCR", "class_incremental", "takes the network apart"),
    ],
)
def test_strategies_that_would_not_train_them_are_refused(name: str, kind: str, why: str) -> None:
    strategy = made(name, tasks(kind), exits())
    with pytest.raises(ValueError, match=why):
        check_exits(strategy)
    with pytest.raises(ValueError, match=name):
        strategy.train(strategy.plugins[0].stream[0])
