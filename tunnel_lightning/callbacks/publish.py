"""Scalars, figures and hyper-parameters of a run, to whatever loggers its Trainer has."""

from __future__ import annotations

import inspect
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from pydoc import locate
from typing import Any, NamedTuple

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from torch.utils.tensorboard.summary import hparams

from tunnel_lightning.report.figures import depth_profile, heat_map, save, to_image
from tunnel_lightning.runs import (
    INPUT,
    NETWORK,
    PROFILE_FILE,
    RULES,
    ProfileTable,
    Row,
    RunError,
    id_dataset,
    tunnels,
)
from tunnel_lightning.taps import Tap

HEAT_MAP_DPI = 100
HEAT_MAPS, DEPTH_PROFILE = "depth_vs_epoch", "depth_profile"
"""Names of the pictures: TensorBoard's first page shows its first two groups by name, and these are they."""
HEAT_MAP_SHARE = 0.05
"""Share of the run's time that drawing heat maps may take: a long run always has the newest, a short one the last."""


class Chart(NamedTuple):
    """Where a measure is shown: its part of the custom scalars page, and its title."""

    part: str
    title: str


RUN, TRANSFER, OTHER = "The run", "Transfer", "Other measures"
PARTS = (RUN, "Probes", TRANSFER, "Ranks", "Class variance", "Weights", OTHER)
CHARTS = {
    ("probe_accuracy", "ridge"): Chart("Probes", "Ridge probe accuracy"),
    ("probe_accuracy", "online"): Chart("Probes", "Online probe accuracy"),
    ("probe_loss", "online"): Chart("Probes", "Online probe loss"),
    ("online_accuracy", ""): Chart("Probes", "Online probe accuracy"),
    ("online_loss", ""): Chart("Probes", "Online probe loss"),
    ("rank_cov", "rtol=1e-3"): Chart("Ranks", "Numerical rank (rtol 1e-3)"),
    ("effective_rank", "cov"): Chart("Ranks", "Effective rank"),
    ("stable_rank", "cov"): Chart("Ranks", "Stable rank"),
    ("participation_ratio", "cov"): Chart("Ranks", "Participation ratio"),
    ("rankme", "raw"): Chart("Ranks", "RankMe"),
    ("variance_ratio", "l2"): Chart("Class variance", "Inter- over intra-class variance"),
    ("variance_inter", "l2"): Chart("Class variance", "Inter-class variance"),
    ("variance_intra", "l2"): Chart("Class variance", "Intra-class variance"),
    ("weight_change", "l2_per_sqrt_n"): Chart("Weights", "Weight change since the last profile"),
}
"""By measure and variant; one that is not here is shown too, among the other measures."""

TABLE_ONLY = {
    ("rank_cov", "rtol=torch"),
    *((f"variance_{kind}", "raw") for kind in ("ratio", "inter", "intra")),
}
"""Second variants of a measure. A card for each of their layers would bury the first: the table has them."""


def clean(tag: str) -> str:
    """A tag as TensorBoard keeps it, so that it is one name in every logger.

    Example:
        >>> clean("layers/rank_cov_rtol=1e-3/02_relu#1")
        'layers/rank_cov_rtol_1e-3/02_relu_1'
    """
    return re.sub(r"[^-/\w.]", "_", tag)


def tag_of(row: Row) -> str:
    """A scalar's name. All layers' scalars are one group; in it the layers of one measure stand together.

    Example:
        >>> row = Row("", 0, 0, -1, "val", "Glyphs", "head", 3, "rank_cov", "rtol=1e-3", 12.0)
        >>> tag_of(row)
        'layers/rank_cov_rtol_1e-3_Glyphs_val/03_head'
        >>> tag_of(row._replace(layer="network", measure="accuracy"))
        'network/accuracy_val'
        >>> tag_of(row._replace(layer="network", measure="ood_retained", dataset="Digits"))
        'network/ood_retained_Digits'
    """
    if row.layer == NETWORK:  # of the one set it was trained on, or of each other
        return clean(f"network/{row.measure}_{row.split if row.measure == 'accuracy' else row.dataset}")
    return clean(f"layers/{measured(row)}/{row.index:02d}_{row.layer}")


def finite(row: Row) -> bool:
    """Whether a row has a value to show; without one a layer's line has a gap."""
    return math.isfinite(row.value)


def measured(row: Row) -> str:
    """What a row's scalar and heat map are of."""
    return clean(f"{row.measure}_{row.variant}_{row.dataset}_{row.split}")


def chart_of(row: Row) -> Chart:
    """Where a layer's row is shown."""
    named = Chart(OTHER, f"{row.measure} {row.variant}".replace("_", " ").capitalize())
    return CHARTS.get((row.measure, row.variant), named)


def layout(charts: Iterable[tuple[Chart, Sequence[str]]]) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalars: one chart a measure, with a line for each layer, in parts of a fixed order.

    Args:
        charts: charts, and regular expressions of the tags each shows.

    Example:
        >>> layout([(Chart("Ranks", "RankMe"), ["^a/"]), (Chart("Probes", "Loss"), ["^b/"])])
        {'Probes': {'Loss': ['Multiline', ['^b/']]}, 'Ranks': {'RankMe': ['Multiline', ['^a/']]}}
    """
    parts: dict[str, dict[str, list[Any]]] = {part: {} for part in PARTS}
    for chart, tags in charts:
        parts[chart.part][chart.title] = ["Multiline", list(tags)]
    return {part: of for part, of in parts.items() if of}


def hyperparameters(config: Mapping[str, Any]) -> dict[str, Any]:
    """A short set of hyper-parameters from a command line's config: what a table of runs is sorted by.

    Class names of the backbone, optimizer, schedule and data with their arguments: of the backbone all, of the
    others those that differ from the class's default, and always learning rate, weight decay and batch size.

    Example:
        >>> hyperparameters({
        ...     "model": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "foreach": None}}},
        ...     "trainer": {"max_epochs": 3},
        ... })
        {'optimizer': 'SGD', 'optimizer.lr': 0.1, 'max_epochs': 3}
    """
    model, trainer = config.get("model") or {}, config.get("trainer") or {}
    of = {name: model.get(name) for name in ("backbone", "optimizer", "lr_scheduler")}
    found: dict[str, Any] = {}
    for name, part in {**of, "data": config.get("data")}.items():
        if not part:
            continue
        found[name] = part["class_path"].rsplit(".", 1)[-1]
        defaults = inspect.signature(locate(part["class_path"])).parameters  # type: ignore[arg-type]
        for key, value in (part.get("init_args") or {}).items():
            if key in ("num_classes", "input_shape"):  # the data's, filled in after the config is written
                continue
            told = name == "backbone" or key in ("lr", "weight_decay", "batch_size")
            if value is not None and (told or key not in defaults or defaults[key].default != value):
                found[f"{name}.{key}"] = value
    found |= {key: trainer.get(key) for key in ("max_epochs", "max_steps", "precision")}
    found["seed"] = config.get("seed_everything")
    return {key: value for key, value in found.items() if value not in (None, -1)}


class Publisher:
    """Sends scalars and figures to every logger of a Trainer, and the last profile's picture to the run folder."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.folder: Path | None = None
        self._charts: dict[Chart, list[str]] = {}
        self._session = False
        self._began = time.perf_counter()
        self._drawing = 0.0  # seconds
        self._drawn_at = -1  # step

    @rank_zero_only
    def start(self, folder: Path | None) -> None:
        """Where pictures are kept beside the loggers, or ``None``; a resumed run has its charts at once."""
        self.folder = folder
        if folder is not None:
            rows = ProfileTable(folder / PROFILE_FILE).rows
            self._show_charts(rows, id_dataset(rows))

    @rank_zero_only
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send scalars, under names that are the same in every logger."""
        named = {clean(tag): float(value) for tag, value in values.items()}
        for logger in self.trainer.loggers if named else ():
            logger.log_metrics(named, step=step)

    @rank_zero_only
    def layers(self, measures: Mapping[str, Sequence[float]], taps: Sequence[Tap], step: int) -> None:
        """Send one value a layer of each measure of the training batches."""
        rows = [
            Row("", step, 0, -1, "train", "", tap.name, tap.index, measure, "", value)
            for measure, values in measures.items()
            for tap, value in zip(taps, values, strict=True)
        ]
        self.scalars(
            {f"layers/{r.measure}_train/{r.index:02d}_{r.layer}": r.value for r in rows if finite(r)}, step
        )
        self._add_charts(
            {
                CHARTS[measure, ""]._replace(title=f"{CHARTS[measure, ''].title} · train"): [
                    f"^layers/{measure}_train/"
                ]
                for measure in measures
            }
        )

    @rank_zero_only
    def profile(self, memory: Sequence[Row], found: Sequence[Row]) -> None:
        """Send one profile: its scalars, the depth profile and, where it is time, the heat maps of all so far."""
        if not found:
            return
        step = found[0].step
        rows = [row for row in found if (row.measure, row.variant) not in TABLE_ONLY]
        # NaN for no tunnel: the table of hyper-parameters shows the last value, which must not be an older one
        starts = {
            f"tunnel/{rule}": math.nan if tunnel.start is None else tunnel.start
            for rule, tunnel in tunnels(found).items()
            if tunnel.extractor_length is not None
        }
        self.scalars({tag_of(row): row.value for row in rows if finite(row)} | starts, step)
        self._show_charts(rows, id_dataset(memory))
        self._open_session(rows)
        self._depth_profile(found, step)
        if self._drawing <= HEAT_MAP_SHARE * (time.perf_counter() - self._began):
            self._heat_maps(memory, step)
        for logger in self.trainer.loggers:
            logger.save()  # TensorBoard's writer would keep it for up to two minutes

    @rank_zero_only
    def finish(self, memory: Sequence[Row]) -> None:
        """Send what is final: the heat maps of the whole run, and that it came to its end."""
        if not memory:
            return
        if self._drawn_at != memory[-1].step:
            self._heat_maps(memory, memory[-1].step)
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and self._session:
                logger.experiment._get_file_writer().add_summary(hparams({}, {})[2])
            logger.save()

    # -- charts and hyper-parameters, TensorBoard alone ------------------------------------------------------

    def _show_charts(self, rows: Sequence[Row], own: str | None) -> None:
        """Give each measure of the rows its chart; ``own`` is the set the network is trained on."""
        charts, order = {}, list(CHARTS)

        def place(row: Row) -> int:
            kind = row.measure, row.variant
            return order.index(kind) if kind in CHARTS else len(order)

        for row in sorted(rows, key=place):
            if row.layer in (INPUT, NETWORK) or (row.measure, row.variant) in TABLE_ONLY:
                continue
            chart = chart_of(row)
            of_network = (
                ["^network/accuracy_"] if row.measure == "probe_accuracy" and row.dataset == own else []
            )
            part = chart.part if row.dataset == own else TRANSFER
            chart = chart._replace(part=part, title=f"{chart.title} · {row.dataset} {row.split}")
            charts[chart] = [f"^layers/{re.escape(measured(row))}/", *of_network]
        network = {row.measure for row in rows if row.layer == NETWORK}
        if network and charts:
            charts[Chart(RUN, "The tunnel starts at layer")] = ["^tunnel/"]
        if "accuracy" in network:
            charts[Chart(RUN, "Accuracy of the network")] = ["^network/accuracy_", "^train/accuracy$"]
        if "ood_retained" in network:
            charts[Chart(TRANSFER, "Kept by the last layer of the best one's (%)")] = [
                "^network/ood_retained_"
            ]
        if "id_ood_pearson" in network:
            charts[Chart(TRANSFER, "ID and OOD: correlation, alignment")] = ["^network/id_ood_"]
        self._add_charts(charts)

    def _add_charts(self, charts: Mapping[Chart, list[str]]) -> None:
        if charts.keys() <= self._charts.keys():
            return
        self._charts |= charts
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(layout(self._charts.items()))

    def _open_session(self, rows: Sequence[Row]) -> None:
        """Put the run into TensorBoard's table of hyper-parameters, whose metrics are the scalars' last values."""
        told = [row for row in rows if row.layer == NETWORK and not row.measure.startswith("id_ood")]
        if self._session or not told:
            return
        self._session = True
        metrics = [f"tunnel/{rule}" for rule in RULES] + sorted(tag_of(row) for row in told)
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                params = dict(logger.hparams) or {"module": type(self.trainer.lightning_module).__name__}
                number = (int, float)
                readable = {
                    key: value if isinstance(value, number) and not isinstance(value, bool) else str(value)
                    for key, value in params.items()
                }
                for summary in hparams(readable, dict.fromkeys(metrics, 0.0))[:2]:
                    logger.experiment._get_file_writer().add_summary(summary)

    # -- pictures -------------------------------------------------------------------------------------------

    @property
    def _takes_pictures(self) -> bool:
        return any(isinstance(logger, (TensorBoardLogger, WandbLogger)) for logger in self.trainer.loggers)

    def _depth_profile(self, found: Sequence[Row], step: int) -> None:
        if not self._takes_pictures and self.folder is None:
            return
        try:
            figure = depth_profile(found)
        except RunError:  # no probe and no rank: WeightChange alone
            return
        if self.folder is None:
            self._send(DEPTH_PROFILE, to_image(figure), step)
            return
        path = save(figure, self.folder / "profile.png")
        if self._takes_pictures:  # drawn once, for the folder and the loggers
            with Image.open(path) as picture:
                self._send(DEPTH_PROFILE, np.asarray(picture.convert("RGB")), step)

    def _heat_maps(self, memory: Sequence[Row], step: int) -> None:
        if not self._takes_pictures:
            return
        began = time.perf_counter()
        kinds: dict[tuple[str, str, str], dict[int, Row]] = {}
        for row in memory:
            known = row.layer not in (INPUT, NETWORK) and (row.measure, row.variant) not in TABLE_ONLY
            if known:
                kinds.setdefault((row.measure, row.variant, row.dataset), {})[row.step] = row
        for kind, profiles in kinds.items():
            if len(profiles) > 1:
                figure = heat_map(memory, *kind)
                figure.set_dpi(HEAT_MAP_DPI)
                self._send(f"{HEAT_MAPS}/{measured(profiles[max(profiles)])}", to_image(figure), step)
        self._drawn_at = step
        self._drawing += time.perf_counter() - began

    def _send(self, name: str, pixels: np.ndarray, step: int) -> None:
        for logger in self.trainer.loggers:
            show(logger, name, pixels, step)


def show(logger: Logger, name: str, pixels: np.ndarray, step: int) -> None:
    """Send a picture [H, W, 3] to a logger that takes pictures; others are passed over."""
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels, global_step=step, dataformats="HWC")
    elif isinstance(logger, WandbLogger):
        logger.log_image(name, [pixels], step=step)
