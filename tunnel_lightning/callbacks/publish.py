"""Scalars and figures of the layers, to whatever loggers a Trainer has."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from tunnel_lightning.report.figures import depth_profile, heat_map, save, to_image
from tunnel_lightning.runs import NETWORK, Row, tunnels
from tunnel_lightning.taps import Tap

HEAT_MAPS = (
    ("probe_accuracy", "ridge"),
    ("probe_accuracy", "online"),
    ("rank_cov", "rtol=1e-3"),
    ("effective_rank", "cov"),
    ("variance_ratio", "l2"),
    ("weight_change", "l2_per_sqrt_n"),
)


def tag_of(row: Row) -> str:
    """A scalar's name: what was measured first, so that the layers of one measure share one chart.

    Example:
        >>> tag_of(Row("", 0, 0, -1, "val", "Glyphs", "head", 3, "rank_cov", "rtol=1e-3", 12.0))
        'rank_cov_rtol1e-3_Glyphs_val/03_head'
    """
    measure = f"{row.measure}_{row.variant.replace('=', '')}_{row.dataset}_{row.split}"
    return f"{measure}/{row.index:02d}_{row.layer}"


def layout(tags: Iterable[str]) -> dict[str, dict[str, list[Any]]]:
    """TensorBoard's custom scalars: one chart a measure, with a line for each layer.

    Example:
        >>> layout(["online_loss/01_a", "online_loss/02_b"])
        {'layers': {'online_loss': ['Multiline', ['^online_loss/.*']]}}
    """
    measures = dict.fromkeys(tag.split("/")[0] for tag in tags if not tag.endswith(f"_{NETWORK}"))
    # re.escape would also mask characters TensorBoard's own regular expressions do not take masked
    charts = {m: ["Multiline", [f"^{m.replace('.', '[.]')}/.*"]] for m in measures}
    return {"layers": charts}


class Publisher:
    """Sends scalars and figures to every logger of a Trainer, and the last profile's picture to the run folder."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self.folder: Path | None = None
        self._known: set[str] = set()

    def start(self, folder: Path | None) -> None:
        """Where pictures are kept beside the loggers, or ``None``."""
        self.folder = folder

    @rank_zero_only
    def scalars(self, values: Mapping[str, float], step: int) -> None:
        """Send scalars; a measure seen for the first time gets its chart in TensorBoard's custom scalars."""
        new = set(values) - self._known
        self._known |= new
        for logger in self.trainer.loggers:
            logger.log_metrics(dict(values), step=step)
            if new and isinstance(logger, TensorBoardLogger):
                logger.experiment.add_custom_scalars(layout(sorted(self._known)))

    def layers(self, measures: Mapping[str, Sequence[float]], taps: Sequence[Tap], step: int) -> None:
        """Send one value a layer of each measure."""
        self.scalars(
            {
                f"{measure}/{tap.index:02d}_{tap.name}": value
                for measure, values in measures.items()
                for tap, value in zip(taps, values, strict=True)
            },
            step,
        )

    @rank_zero_only
    def profile(self, memory: Sequence[Row], found: Sequence[Row]) -> None:
        """Send one profile: its scalars, the depth profile and the heat maps over all profiles so far."""
        if not found:
            return
        step = found[0].step
        starts = {
            f"tunnel/{rule}": float(t.start) for rule, t in tunnels(found).items() if t.start is not None
        }
        self.scalars({tag_of(row): row.value for row in found} | starts, step)
        pictures = any(
            isinstance(logger, (TensorBoardLogger, WandbLogger)) for logger in self.trainer.loggers
        )
        if pictures or self.folder is not None:
            figure = depth_profile(found)
            self._figure("depth_profile", figure, step)
            if self.folder is not None:
                save(figure, self.folder / "profile.png")
        if not pictures:
            return
        kinds = dict.fromkeys((row.measure, row.variant, row.dataset) for row in found)
        for measure, variant, dataset in kinds:
            if (measure, variant) in HEAT_MAPS:
                name = f"heat_map/{measure}_{variant.replace('=', '')}_{dataset}"
                self._figure(name, heat_map(memory, measure, variant, dataset), step)

    @rank_zero_only
    def finish(self, memory: Sequence[Row]) -> None:
        """Send the hyper-parameters with what the run came to: its accuracy and where its tunnel starts."""
        if not memory:
            return
        last = [row for row in memory if row.step == memory[-1].step]
        metrics = {
            f"tunnel/{rule}": float(t.start) for rule, t in tunnels(last).items() if t.start is not None
        }
        metrics |= {
            f"accuracy_{row.dataset}_{row.split}": row.value
            for row in last
            if row.layer == NETWORK and row.measure == "accuracy"
        }
        for logger in self.trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                params = {**self._hparams(), **dict(logger.hparams)}
                logger.log_hyperparams(
                    params, metrics={f"hparams/{key}": value for key, value in metrics.items()}
                )

    def _hparams(self) -> dict[str, Any]:
        return dict(self.trainer.lightning_module.hparams)

    def _figure(self, name: str, figure: Any, step: int) -> None:
        for logger in self.trainer.loggers:
            show(logger, name, figure, step)


def show(logger: Logger, name: str, figure: Any, step: int) -> None:
    """Send a matplotlib figure to a logger that takes pictures; others are passed over."""
    if not isinstance(logger, (TensorBoardLogger, WandbLogger)):
        return
    pixels = to_image(figure)
    if isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(name, pixels, global_step=step, dataformats="HWC")
    else:
        logger.log_image(name, [pixels], step=None)
