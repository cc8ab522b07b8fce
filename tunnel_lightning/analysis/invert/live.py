"""What TensorBoard shows of an inversion."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from tunnel_lightning.callbacks.publish import clean
from tunnel_lightning.report.canvas import to_image
from tunnel_lightning.report.charts import Pictures
from tunnel_lightning.report.inversion import sections_of
from tunnel_lightning.report.static import figure
from tunnel_lightning.runs.inversion import Inversion

BY_DEPTH = {
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "input_share": "Distance in the image",
    "embedding_share": "Distance in the layer",
}


def write_events(found: Inversion, folder: Path) -> None:
    """Write the event file of an inversion, in the place of a former one.

    It lies in the inversion's own folder, so that TensorBoard shows a run of its own under the network's, and going
    on with the training touches nothing of it. Charts by depth have a layer's number where others have a step; those
    of the descents have the descent's steps.

    Args:
        found: the inversion.
        folder: its folder.
    """
    for path in folder.glob("events.out.tfevents.*"):
        path.unlink()
    step = int(found.summary.get("step") or 0)
    layers = found.summary["layers"]
    with SummaryWriter(str(folder)) as writer:
        charts = {}
        for dataset in found.sets:
            for quantity, title in BY_DEPTH.items():
                for network in found.networks:
                    mean, _ = found.values(quantity, dataset, network)
                    for layer, value in zip(layers, mean, strict=True):
                        if np.isfinite(value):
                            tag = clean(f"by_depth/{quantity}_{dataset}/{network}")
                            writer.add_scalar(tag, value, layer["index"])
                charts[f"{title}, by layer · {dataset}"] = [f"^{clean(f'by_depth/{quantity}_{dataset}')}/"]
        steps = found.curves["steps"]
        for quantity in ("embedding", "input"):
            for network in found.networks:
                lines = (
                    found.curves[f"{quantity}_curve/{found.sets[0]}/{network}"]
                    .astype(np.float64)
                    .mean((1, 2))
                )
                for layer, line in zip(layers, lines, strict=True):
                    tag = clean(f"by_step/{quantity}_{network}/{layer['index']:02d}_{layer['name']}")
                    for at, value in zip(steps, line, strict=True):
                        if np.isfinite(value):
                            writer.add_scalar(tag, value, int(at))
                title = f"{BY_DEPTH[f'{quantity}_share']}, by step of the descent · {network}"
                charts[title] = [f"^{clean(f'by_step/{quantity}_{network}')}/"]
        writer.add_custom_scalars({"Inversion": {name: ["Multiline", tags] for name, tags in charts.items()}})
        for section in sections_of(folder):
            for item in section.items:
                if isinstance(item, Pictures) and not section.folded:
                    writer.add_image(
                        clean(f"inversion/{item.key}"), to_image(figure(item)), step, dataformats="HWC"
                    )
