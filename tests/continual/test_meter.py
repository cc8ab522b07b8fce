"""What the layer meter measures, against the same by hand; streams by hand, so that no Avalanche is needed."""

import doctest
import importlib
import math
import warnings

import pytest
import torch
from continual.toys_meter import blobs, hidden, network, run, table, train
from torch import nn

from tunnel_lightning.continual.meter import LayerMeter
from tunnel_lightning.measures import (
    Accuracy,
    MomentMeasures,
    linear_cka,
    linear_map_residual,
    ridge,
    subspace_overlap,
)
from tunnel_lightning.taps import TapSpec

LAYERS = ("layers.0.linear", "layers.1.linear")
NO_ONLINE = ("fixed", "refit_task", "refit_all")


def accuracy(head, features, target):
    found = Accuracy("")
    found.update(head(features), target)
    return found.compute()[0].value


def test_every_row_is_there_once_with_its_place() -> None:
    stream = blobs()
    meter = LayerMeter(stream, run_id="blobs/version_0", probes=NO_ONLINE)
    rows = run(stream, network(stream), meter)
    wanted = set()
    for after in range(-1, 3):
        for task in range(3):
            names = [("network", "accuracy", "network"), ("network", "accuracy", "within_task")]
            for layer in LAYERS:
                names += [
                    (layer, "probe_accuracy", "refit_task"),
                    (layer, "rank_cov", "rtol=1e-3"),
                    (layer, "effective_rank", "cov"),
                ]
                if task <= after:
                    names += [
                        (layer, "probe_accuracy", "fixed"),
                        (layer, "cka", "learnt"),
                        (layer, "subspace_overlap", "k=10"),
                        (layer, "map_residual", "linear"),
                    ]
            wanted |= {(after, f"task {task + 1}", *name) for name in names}
        wanted |= {(after, "all", layer, "probe_accuracy", "refit_all") for layer in LAYERS}
    found = table(rows)
    assert set(found) == wanted
    for row in rows:
        assert row.run_id == "blobs/version_0"
        assert (row.step, row.epoch) == (30 * (row.experience + 1), row.experience + 1)
        ranked = row.measure in ("rank_cov", "effective_rank")
        assert row.split == ("train" if ranked else "test")
        assert row.index == {"layers.0.linear": 1, "layers.1.linear": 2, "network": 3}[row.layer]
        assert row.dim == (6 if row.layer == "network" else 12)
        assert row.n == (60 if ranked else 120 if row.dataset == "all" else 40)
        if "accuracy" in row.measure:
            assert row.se == pytest.approx(math.sqrt(row.value * (1 - row.value) / row.n))
        else:
            assert math.isnan(row.se)


@pytest.mark.parametrize("kind", ["class_incremental", "task_incremental", "domain_incremental"])
@pytest.mark.parametrize("width", [12, 90])  # more columns than the 60 training images, too
def test_probes_and_ranks_are_those_of_the_features_by_hand(width: int, kind: str) -> None:
    stream = blobs(kind)
    model = network(stream, width)
    meter = LayerMeter(stream, probes=NO_ONLINE, drift=False)
    found = table(run(stream, model, meter, upto=2))
    features = [(hidden(model, task.train.x), hidden(model, task.test.x)) for task in stream.tasks]
    for layer in LAYERS:
        everything = [torch.cat([part[i][layer] for part in features]) for i in (0, 1)]
        classes = [
            torch.cat([getattr(task, part).classes for task in stream.tasks]) for part in ("train", "test")
        ]
        head = ridge(everything[0], classes[0], 6)
        row = found[1, "all", layer, "probe_accuracy", "refit_all"]
        assert row.value == pytest.approx(accuracy(head, everything[1], classes[1]))
        for task, (fit, test) in zip(stream.tasks, features, strict=True):
            own = ridge(fit[layer], task.train.classes - 2 * task.index, 2)
            row = found[1, task.name, layer, "probe_accuracy", "refit_task"]
            assert row.value == accuracy(own, test[layer], task.test.classes - 2 * task.index)
            moments = MomentMeasures(width, 6, ["rank_cov", "effective_rank"])
            moments.update(fit[layer], task.train.classes)
            values = {(v.measure, v.variant): v.value for v in moments.compute()}
            for name in (("rank_cov", "rtol=1e-3"), ("effective_rank", "cov")):
                assert found[(1, task.name, layer, *name)].value == pytest.approx(values[name], rel=1e-5)


def test_the_fixed_probe_and_the_kept_features_are_those_of_the_time_the_task_was_learnt() -> None:
    stream = blobs()
    model = network(stream)
    meter = LayerMeter(stream, probes=NO_ONLINE, reference_images=30, reference_columns=11)
    found = table(run(stream, model, meter, upto=1))
    first = stream.tasks[0]
    heads = {name: ridge(x, first.train.classes, 2) for name, x in hidden(model, first.train.x).items()}
    then = hidden(model, first.test.x)
    for layer in LAYERS:
        key = (0, "task 1", layer, "probe_accuracy")
        assert found[(*key, "fixed")].value == found[(*key, "refit_task")].value
    train(model, stream.tasks[1], steps=200)
    found, now = table(meter.measure(model, after=1)), hidden(model, first.test.x)
    moved = []
    for layer in LAYERS:
        row = found[1, "task 1", layer, "probe_accuracy", "fixed"]
        assert row.value == accuracy(heads[layer], now[layer], first.test.classes)
        moved.append(row.value != accuracy(heads[layer], then[layer], first.test.classes))
        # 30 of the 40 images, 11 of the 12 columns: the meter's own choice, the same for both.
        rows = torch.linspace(0, 39, 30).round().long()
        columns = meter._references._columns[layer]
        assert len(columns) == 11
        x, y = (part[layer][rows][:, columns] for part in (now, then))
        for name, wanted in {
            ("cka", "learnt"): linear_cka(x, y),
            ("subspace_overlap", "k=10"): subspace_overlap(x, y, 10),
            ("map_residual", "linear"): linear_map_residual(x, y),
        }.items():
            row = found[(1, "task 1", layer, *name)]
            assert row.value == pytest.approx(wanted.item(), abs=1e-6)
            assert (row.n, row.dim) == (30, 11)
            assert found[(1, "task 2", layer, *name)].value != row.value
        assert found[1, "task 2", layer, "cka", "learnt"].value == pytest.approx(1)
    assert any(moved)


def test_the_network_among_all_outputs_and_within_the_task() -> None:
    stream = blobs()
    model = network(stream)
    meter = LayerMeter(stream, probes=["refit_task"], drift=False, ranks=False)
    found = table(run(stream, model, meter))
    with torch.no_grad():
        scores = model(stream.tasks[1].test.x)
    y = stream.tasks[1].test.y
    network_row, within = (
        found[2, "task 2", "network", "accuracy", name] for name in ("network", "within_task")
    )
    assert network_row.value == (scores.argmax(1) == y).float().mean().item()
    assert within.value == pytest.approx((scores[:, 2:4].argmax(1) + 2 == y).float().mean().item())
    assert within.value > network_row.value


def test_measuring_again_gives_the_same_and_keeps_what_was_learnt_first() -> None:
    stream = blobs()
    model = network(stream)
    meter = LayerMeter(stream, probes=NO_ONLINE)
    run(stream, model, meter, upto=1)
    assert repr(meter.measure(model, after=0)) == repr(meter.measure(model, after=0))
    train(model, stream.tasks[1])
    moved = table(meter.measure(model, after=0))
    assert moved[0, "task 1", LAYERS[1], "cka", "learnt"].value < 0.9999


def test_some_tasks_only() -> None:
    stream = blobs()
    meter = LayerMeter(stream, probes=NO_ONLINE)
    model = network(stream)
    every = [row._replace(step=0, epoch=0) for row in run(stream, model, meter, upto=2)]
    some = meter.measure(model, after=1, tasks=[1])
    assert repr(some) == repr([row for row in every if row.experience == 1 and row.dataset == "task 2"])


def test_tasks_learnt_together_are_all_kept_at_the_first_look_after() -> None:
    stream = blobs()
    model, meter = network(stream), LayerMeter(stream, probes=["fixed"], ranks=False)
    meter.start(model)
    found = table(meter.measure(model, after=2))
    assert all((2, f"task {i}", LAYERS[0], "probe_accuracy", "fixed") in found for i in (1, 2, 3))
    assert all((2, f"task {i}", LAYERS[0], "cka", "learnt") in found for i in (1, 2, 3))


def test_layers_are_chosen_by_the_spec_and_keep_their_numbers() -> None:
    stream = blobs()
    model = network(stream, depth=3)
    meter = LayerMeter(stream, TapSpec(["layers.*.act", "head"]), probes=["refit_task"])
    meter.start(model)
    assert [(tap.name, tap.index) for tap in meter.layers] == [(f"layers.{i}.act", i + 1) for i in range(3)]
    rows = meter.measure(model, after=-1)
    assert {row.layer for row in rows} == {"network", *(tap.name for tap in meter.layers)}


def test_a_network_that_is_no_backbone() -> None:
    stream = blobs()
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 8), nn.ReLU(), nn.Linear(8, 6)
    )
    meter = LayerMeter(stream, probes=NO_ONLINE)
    meter.start(model)
    assert [tap.name for tap in meter.layers] == ["1", "3"]
    assert {row.layer for row in meter.measure(model, after=0)} == {"1", "3", "network"}


def test_nan_and_constant_features_are_nan_with_one_warning() -> None:
    stream = blobs()
    model, meter = network(stream), LayerMeter(stream, probes=NO_ONLINE)
    run(stream, model, meter, upto=1)
    with torch.no_grad():
        model.layers[1].linear.weight.fill_(math.nan)
    with pytest.warns(UserWarning, match="after task 1 in") as caught:
        rows = meter.measure(model, after=0)
    assert len(caught) == 1
    assert "layers.1.linear" in str(caught[0].message)
    assert "layers.0" not in str(caught[0].message)
    assert all(math.isnan(row.value) == (row.layer != LAYERS[0]) for row in rows)
    with torch.no_grad():
        model.layers[1].linear.weight.zero_()
    with pytest.warns(UserWarning, match="before the first task") as caught:
        rows = meter.measure(model, after=-1)
    assert len(caught) == 1
    assert all(math.isnan(row.value) for row in rows if row.layer == LAYERS[1])


def test_no_warning_where_nothing_is_wrong() -> None:
    stream = blobs()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(stream, network(stream), LayerMeter(stream, probes=NO_ONLINE))


def test_what_is_kept_is_said_beforehand() -> None:
    stream = blobs()
    model, meter = (
        network(stream),
        LayerMeter(stream, probes=NO_ONLINE, reference_images=30, reference_columns=7),
    )
    run(stream, model, meter)
    state = meter.state_dict()
    heads = [part for heads in state["fixed"].values() for head in heads.values() for part in head.values()]
    kept = [x for layers in state["references"].values() for x in layers.values()]
    assert {x.dtype for x in kept} == {torch.float32}
    assert {x.shape for x in kept} == {(30, 7)}
    assert meter.nbytes == sum(x.untyped_storage().nbytes() for x in heads + kept)


def test_mistakes_are_named() -> None:
    stream = blobs()
    with pytest.raises(ValueError, match="no probe 'refit'; there are fixed, refit_task"):
        LayerMeter(stream, probes=["refit"])
    with pytest.raises(ValueError, match="'gram'"):
        LayerMeter(stream, TapSpec(pool="gram"))
    with pytest.raises(ValueError, match="at least 4 training and 4 test images of each task, got 3"):
        LayerMeter(blobs(test=3))
    with pytest.raises(ValueError, match="at least 4 reference images, got 2"):
        LayerMeter(stream, reference_images=2)
    with pytest.raises(RuntimeError, match="call start"):
        LayerMeter(stream).measure(network(stream), after=-1)
    with pytest.raises(ValueError, match="matches no module"):
        LayerMeter(stream, TapSpec("conv*")).start(network(stream))
    meter = LayerMeter(stream)
    meter.start(network(stream))
    with pytest.raises(ValueError, match="lacks a layer that the backbone has"):
        meter.measure(network(stream, depth=1), after=-1)
    with pytest.raises(ValueError, match=r"'layers.0.linear' had 12 features in the backbone and has 9"):
        meter.measure(network(stream, width=9), after=-1)


@pytest.mark.parametrize("module", ["collect", "drift", "meter", "online", "places"])
def test_the_examples_in_the_docstrings_hold(module: str) -> None:
    done = doctest.testmod(importlib.import_module(f"tunnel_lightning.continual.{module}"))
    assert done.attempted
    assert not done.failed
