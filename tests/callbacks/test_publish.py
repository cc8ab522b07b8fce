"""What a person sees of a run: scalars, charts, pictures and hyper-parameters, in each logger."""

import csv
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
import yaml
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar.layout_pb2 import Layout
from tensorboard.plugins.hparams.metadata import (
    EXPERIMENT_TAG,
    SESSION_END_INFO_TAG,
    SESSION_START_INFO_TAG,
    parse_experiment_plugin_data,
    parse_session_start_info_plugin_data,
)
from tensorboard.util.tensor_util import make_ndarray
from toys import Lit, OtherData

from tunnel_lightning.callbacks import (
    LayerMonitor,
    OnlineProbes,
    RankMonitor,
    Schedule,
    TransferMonitor,
    TransferOptions,
    WeightChange,
    publish,
)
from tunnel_lightning.callbacks.publish import Publisher, hyperparameters, measured, tag_of
from tunnel_lightning.runs import Row, load_run, tunnels

SCHEDULE = Schedule(steps=[2])
LAYERS = ["01_0", "02_4", "03_7"]  # the toy network's convolutions and its first linear layer


def monitor(**options):
    return LayerMonitor(profile=SCHEDULE, transfer=TransferOptions([OtherData()]), **options)


def tensorboard(path, **options):
    return TensorBoardLogger(path, name="tb", version=0, default_hp_metric=False, **options)


def events(path):
    return EventAccumulator(str(path), size_guidance={"scalars": 0, "images": 0, "tensors": 1}).Reload()


def charts_of(found):
    (event,) = found.Tensors("custom_scalars__config__")
    layout = Layout.FromString(make_ndarray(event.tensor_proto).item())
    return {
        category.title: {chart.title: list(chart.multiline.tag) for chart in category.chart}
        for category in layout.category
    }


def content(found, tag):
    return found.summary_metadata[tag].plugin_data.content


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """One run with two loggers: its folder's events, the table, and the other logger's file."""
    from lightning.pytorch import Trainer, seed_everything
    from toys import Data

    path = tmp_path_factory.mktemp("run")
    seed_everything(7)
    tb, table = tensorboard(path), CSVLogger(path, name="csv", version=0)
    tb.log_hyperparams({"lr": 0.1, "flag": True, "depth": 3, "shape": (1, 2), "nothing": None})
    bundle = monitor()
    trainer = Trainer(
        max_epochs=3,
        callbacks=[bundle],
        logger=[tb, table],
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=2,
    )
    trainer.fit(Lit(), datamodule=Data())
    return {"events": events(tb.log_dir), "rows": load_run(tb.log_dir).rows, "csv": table.log_dir}


def test_scalars_are_the_tables_values(run):
    found, rows = run["events"], run["rows"]
    shown = [row for row in rows if (row.measure, row.variant) not in publish.TABLE_ONLY]
    by_tag = {}
    for row in shown:
        by_tag.setdefault(tag_of(row), []).append((row.step, np.float32(row.value)))
    assert len(by_tag) > 40
    for tag, values in by_tag.items():
        finite = [(step, value) for step, value in values if math.isfinite(value)]
        sent = found.Scalars(tag) if tag in found.Tags()["scalars"] else []
        assert [(e.step, np.float32(e.value)) for e in sent] == finite, tag
    assert len(by_tag) == len({(r.dataset, r.split, r.index, r.measure, r.variant) for r in shown})


def test_every_layer_has_its_online_probe(run):
    found = run["events"]
    for measure in ("online_loss", "online_accuracy"):
        for layer in LAYERS:
            steps = [event.step for event in found.Scalars(f"layers/{measure}_train/{layer}")]
            assert steps == [2, 4, 6, 8, 10, 12, 14]


def test_scalars_of_layers_are_one_group(run):
    groups = {tag.split("/")[0] for tag in run["events"].Tags()["scalars"]}
    assert groups == {"layers", "network", "tunnel", "val", "epoch"}


def test_tunnel_starts_are_scalars_and_nan_where_there_is_none(run):
    found, rows = run["events"], run["rows"]
    steps = sorted({row.step for row in rows})
    for rule in ("id95", "id98", "ood"):
        expected = [tunnels([r for r in rows if r.step == step])[rule].start for step in steps]
        got = [(e.step, e.value) for e in found.Scalars(f"tunnel/{rule}")]
        assert [step for step, _ in got] == steps
        np.testing.assert_equal([v for _, v in got], [math.nan if e is None else e for e in expected])


def test_the_layers_of_a_measure_share_a_chart(run):
    charts = charts_of(run["events"])
    assert list(charts) == ["The run", "Probes", "Transfer", "Ranks", "Class variance", "Weights"]
    assert list(charts["Probes"])[:2] == [
        "Ridge probe accuracy · Clusters val",
        "Online probe accuracy · Clusters val",
    ]
    assert "Ridge probe accuracy · Other test" in charts["Transfer"]
    tags = run["events"].Tags()["scalars"]
    lines = {
        (part, title): [tag for tag in tags if any(re.match(f"({r})", tag) for r in regexes)]
        for part, of in charts.items()
        for title, regexes in of.items()
    }
    ridge = lines["Probes", "Ridge probe accuracy · Clusters val"]
    assert sorted(tag.split("/")[-1] for tag in ridge) == ["00_input", *LAYERS, "accuracy_val"]
    rank = lines["Ranks", "Numerical rank (rtol 1e-3) · Clusters val"]
    assert rank == [f"layers/rank_cov_rtol_1e-3_Clusters_val/{layer}" for layer in LAYERS]
    assert sorted(lines["The run", "The tunnel starts at layer"]) == [
        "tunnel/id95",
        "tunnel/id98",
        "tunnel/ood",
    ]
    # each layer's tag is a line of one chart, no chart is empty
    layers = [tag for tag in tags if tag.startswith("layers/")]
    assert sorted(tag for found in lines.values() for tag in found if tag in layers) == sorted(layers)
    assert all(lines.values())


def test_pictures(run):
    found, steps = run["events"], sorted({row.step for row in run["rows"]})
    images = found.Tags()["images"]
    assert [event.step for event in found.Images("depth_profile")] == steps
    assert set(images) == {
        "depth_profile",
        *(
            f"depth_vs_epoch/{name}"
            for name in (
                "probe_accuracy_ridge_Clusters_val",
                "probe_accuracy_online_Clusters_val",
                "probe_accuracy_ridge_Other_test",
                "rank_cov_rtol_1e-3_Clusters_val",
                "effective_rank_cov_Clusters_val",
                "stable_rank_cov_Clusters_val",
                "participation_ratio_cov_Clusters_val",
                "rankme_raw_Clusters_val",
                "variance_inter_l2_Clusters_val",
                "variance_intra_l2_Clusters_val",
                "probe_loss_online_Clusters_val",
                "variance_ratio_l2_Clusters_val",
                "weight_change_l2_per_sqrt_n_Clusters_train",
            )
        ),
    }
    for tag in images:  # the run's last state is there
        assert found.Images(tag)[-1].step == steps[-1], tag
        assert found.Images(tag)[-1].encoded_image_string.startswith(b"\x89PNG")


def test_hyper_parameters_with_the_tunnel_as_metric(run):
    found = run["events"]
    params = parse_session_start_info_plugin_data(content(found, SESSION_START_INFO_TAG)).hparams
    values = {name: value.string_value or value.number_value for name, value in params.items()}
    assert values == {"lr": 0.1, "flag": "True", "depth": 3.0, "shape": "(1, 2)", "nothing": "None"}
    experiment = parse_experiment_plugin_data(content(found, EXPERIMENT_TAG))
    assert [info.name.tag for info in experiment.metric_infos] == [
        "tunnel/id95",
        "tunnel/id98",
        "tunnel/ood",
        "network/accuracy_val",
        "network/ood_retained_Other",
    ]
    scalars = found.Tags()["scalars"]
    assert {info.name.tag for info in experiment.metric_infos} <= set(scalars)
    assert not any("hp_metric" in tag for tag in scalars)
    assert SESSION_END_INFO_TAG in found.summary_metadata


def test_csv_gets_the_same_scalars(run):
    with open(f"{run['csv']}/metrics.csv") as file:
        lines = list(csv.DictReader(file))
    got = {
        (tag, int(line["step"])): np.float32(value)
        for line in lines
        for tag, value in line.items()
        if value and tag.split("/")[0] in ("layers", "network", "tunnel")
    }
    found = run["events"]
    expected = {
        (tag, event.step): np.float32(event.value)
        for tag in found.Tags()["scalars"]
        if tag.split("/")[0] in ("layers", "network", "tunnel")
        for event in found.Scalars(tag)
    }
    assert got.keys() == expected.keys()
    assert all(np.array_equal(got[key], expected[key], equal_nan=True) for key in got)


@pytest.fixture
def wandb(tmp_path, monkeypatch):
    """Weights & Biases without network; its service process ends with the test."""
    module = pytest.importorskip("wandb", reason="wandb is not installed: pip install wandb")
    for name in ("CONFIG_DIR", "CACHE_DIR", "DATA_DIR"):
        monkeypatch.setenv(f"WANDB_{name}", str(tmp_path / name.lower()))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield module
    module.teardown()


def test_wandb_offline_gets_scalars_and_pictures(train, tmp_path, wandb):
    from lightning.pytorch.loggers import WandbLogger

    logger = WandbLogger(save_dir=tmp_path, offline=True)
    trainer, _ = train([monitor()], logger=[logger, tensorboard(tmp_path)])
    run = logger.experiment
    summary = dict(run.summary)
    found = events(trainer.loggers[1].log_dir)
    for tag in found.Tags()["scalars"]:
        if tag.split("/")[0] in ("layers", "network", "tunnel"):
            np.testing.assert_allclose(
                float(summary[tag]), found.Scalars(tag)[-1].value, rtol=1e-6, err_msg=tag
            )
    for tag in found.Tags()["images"]:
        assert summary[tag]["_type"].startswith("image"), tag
    assert list((tmp_path / "wandb").glob("offline-run-*/files/media/images/depth_profile*.png"))
    run.finish()


def test_without_a_logger_nothing_is_drawn(train, monkeypatch):
    def never(*_, **__):
        raise AssertionError("drawn for nobody")

    monkeypatch.setattr(publish, "depth_profile", never)
    monkeypatch.setattr(publish, "heat_map", never)
    bundle = monitor()
    train([bundle], logger=False)
    assert bundle.watch.memory


@pytest.mark.parametrize(
    "callback",
    [
        OnlineProbes,
        RankMonitor,
        WeightChange,
        lambda profile: TransferMonitor([OtherData()], profile=profile),
    ],
)
def test_each_callback_alone_publishes(train, tmp_path, callback):
    train([callback(profile=SCHEDULE)], logger=tensorboard(tmp_path))
    found = events(tmp_path / "tb" / "version_0")
    assert any(tag.startswith("layers/") for tag in found.Tags()["scalars"])
    assert charts_of(found)
    assert any(tag.startswith("depth_vs_epoch/") for tag in found.Tags()["images"])


def test_a_module_without_hyper_parameters_stands_in_the_table_too(train, tmp_path):
    train([OnlineProbes(profile=SCHEDULE)], logger=tensorboard(tmp_path))
    found = events(tmp_path / "tb" / "version_0")
    params = parse_session_start_info_plugin_data(content(found, SESSION_START_INFO_TAG)).hparams
    assert {name: value.string_value for name, value in params.items()} == {"module": "Lit"}


class Recorder:
    """Stands for a Trainer with one TensorBoard logger."""

    def __init__(self, path):
        self.loggers = [tensorboard(path)]
        self.lightning_module = Lit()
        self.path = path / "tb" / "version_0"

    def events(self):
        self.loggers[0].save()
        return events(self.path)


def profile_at(step, values=(0.2, 0.5, 0.6), accuracy=0.6, layer="relu#{}"):
    row = Row(
        "toy/version_0", step, step, -1, "val", "A B", "", 0, "probe_accuracy", "ridge", 0.0, 0.01, 50, 4
    )
    kinds = [
        ("probe_accuracy", "ridge"),
        ("rank_cov", "rtol=1e-3"),
        ("rank_cov", "rtol=torch"),
        ("new_one", "x(y)"),
    ]
    layers = [
        row._replace(layer=layer.format(i), index=i, measure=m, variant=v, value=value)
        for m, v in kinds
        for i, value in enumerate(values, 1)
    ]
    network = row._replace(layer="network", index=9, measure="accuracy", variant="network", value=accuracy)
    return [*layers, network]


def test_names_are_tensorboards_own_and_a_new_measure_is_shown(tmp_path, caplog):
    trainer = Recorder(tmp_path)
    publisher, memory = Publisher(trainer), []
    for step in (0, 5):
        found = profile_at(step)
        memory += found
        publisher.profile(memory, found)
    found = trainer.events()
    tags = found.Tags()["scalars"]
    assert "layers/probe_accuracy_ridge_A_B_val/02_relu_2" in tags
    assert "layers/new_one_x_y__A_B_val/02_relu_2" in tags
    assert not any("torch" in tag for tag in tags)
    assert "illegal" not in caplog.text
    (regex,) = charts_of(found)["Other measures"]["New one x(y) · A B val"]
    assert sum(bool(re.match(regex, tag)) for tag in tags) == 3
    assert "depth_vs_epoch/new_one_x_y__A_B_val" in found.Tags()["images"]


def test_values_that_are_not_finite_leave_gaps(tmp_path):
    trainer = Recorder(tmp_path)
    publisher, memory = Publisher(trainer), []
    for step, values in enumerate([(0.2, math.nan, 0.6), (math.inf, math.nan, math.nan), (0.3, 0.5, 0.6)]):
        found = profile_at(step, values, accuracy=0.6 if step != 1 else math.nan)
        memory += found
        publisher.profile(memory, found)
    publisher.finish(memory)
    found = trainer.events()
    key = "layers/probe_accuracy_ridge_A_B_val"
    steps = [[e.step for e in found.Scalars(f"{key}/0{i}_relu_{i}")] for i in (1, 2, 3)]
    assert steps == [[0, 2], [2], [0, 2]]
    assert [e.step for e in found.Images("depth_vs_epoch/probe_accuracy_ridge_A_B_val")][-1] == 2


def test_an_online_probe_that_diverged_leaves_a_gap(tmp_path):
    trainer = Recorder(tmp_path)
    taps = [SimpleNamespace(index=i, name=f"l{i}") for i in (1, 2)]
    for step, values in ((2, [0.5, 0.5]), (4, [0.6, math.nan])):
        Publisher(trainer).layers({"online_loss": values}, taps, step)
    found = trainer.events()
    assert [e.step for e in found.Scalars("layers/online_loss_train/01_l1")] == [2, 4]
    assert [e.step for e in found.Scalars("layers/online_loss_train/02_l2")] == [2]


def test_a_tunnel_that_went_away_is_no_longer_told(tmp_path):
    trainer = Recorder(tmp_path)
    publisher = Publisher(trainer)
    publisher.profile([], profile_at(0))
    publisher.profile([], profile_at(5, accuracy=0.9))
    first, last = (event.value for event in trainer.events().Scalars("tunnel/id95"))
    assert first == 3
    assert math.isnan(last)


def test_heat_maps_take_a_share_of_the_time_and_the_last_is_always_there(tmp_path, monkeypatch):
    clock = iter(range(10**6))  # each look at the clock is a second later
    monkeypatch.setattr(publish.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(publish, "to_image", lambda figure: np.zeros((2, 2, 3), np.uint8))
    monkeypatch.setattr(Publisher, "_depth_profile", lambda *_: None)
    drawn = []

    class Figure:
        def __init__(self, rows, *kind):
            drawn.append(max(row.step for row in rows))

        def set_dpi(self, dpi):
            pass

    monkeypatch.setattr(publish, "heat_map", Figure)
    publisher, memory = Publisher(Recorder(tmp_path)), []
    for step in range(100):
        found = profile_at(step)
        memory += found
        publisher.profile(memory, found)
    steps = sorted(set(drawn))
    # 100 profiles take 100 to 200 seconds of this clock and a drawing one: 5 to 10 of them, and none too many
    assert 4 <= len(steps) <= 11
    publisher.finish(memory)
    assert drawn[-1] == 99


def test_a_resumed_run_has_its_charts_before_the_next_profile(tmp_path):
    from tunnel_lightning.runs import ProfileTable

    trainer = Recorder(tmp_path)
    ProfileTable(trainer.path / "profile.csv").append(profile_at(0))
    Publisher(trainer).start(trainer.path)
    assert "Ridge probe accuracy · A B val" in charts_of(trainer.events())["Probes"]


CONFIG = """
seed_everything: 3
trainer: {max_epochs: 4, max_steps: -1, precision: null}
model:
  backbone:
    class_path: tunnel_lightning.backbones.MLP
    init_args: {depth: 12, width: 256, num_classes: 10, input_shape: [3, 32, 32]}
  optimizer:
    class_path: torch.optim.SGD
    init_args: {lr: 0.05, momentum: 0.9, weight_decay: 0.0, nesterov: false, foreach: null}
  lr_scheduler: null
data:
  class_path: tunnel_lightning.data.Glyphs
  init_args: {batch_size: 128, noise: 0.5, classes: 5, augment: false}
"""


def test_a_short_set_of_hyper_parameters_from_a_config():
    assert hyperparameters(yaml.safe_load(CONFIG)) == {
        "backbone": "MLP",
        "backbone.depth": 12,
        "backbone.width": 256,
        "optimizer": "SGD",
        "optimizer.lr": 0.05,
        "optimizer.momentum": 0.9,
        "optimizer.weight_decay": 0.0,
        "data": "Glyphs",
        "data.batch_size": 128,
        "data.noise": 0.5,
        "data.classes": 5,
        "max_epochs": 4,
        "seed": 3,
    }


def test_names_of_scalars_and_pictures_agree():
    row = profile_at(0)[0]
    assert tag_of(row).split("/")[1] == measured(row)
