"""Where the tunnel starts: as a profile of the run says, or by ridge probes that are fitted now."""

from __future__ import annotations

from collections.abc import Sequence

from lightning.fabric import Fabric

from tunnel_lightning.analysis.ablate.options import Options
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.context import Context, Progress
from tunnel_lightning.analysis.options import Options as Measures
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.streamed import other_set, own_set
from tunnel_lightning.runs import Row, RunError, Tunnel, load_analysis, load_run, tunnels


def told(subject: Subject) -> tuple[list[Row], str, str]:
    """The rows of a run's profile, the set it was trained on, and whence they are; no rows where there are none.

    The analysis where there is one of this checkpoint or any, else the last profile made while training.
    """
    if subject.run is None:
        return [], "", ""
    try:
        analysis = load_analysis(subject.run)
        rows, own, step = analysis.run.rows, analysis.run.id_dataset, analysis.summary.get("step")
        at = [row for row in rows if row.step == subject.step] or [row for row in rows if row.step == step]
        whence = f"the analysis ({'' if at and at[0].step == subject.step else 'of another checkpoint, '}"
        whence += f"step {at[0].step if at else step})"
    except RunError:
        try:
            run = load_run(subject.run)
        except RunError:
            return [], "", ""
        at, own = run.rows, run.id_dataset
        last = max((row.step for row in at), default=0)
        at, whence = (
            [row for row in at if row.step == last],
            f"the last profile made while training (step {last})",
        )
    known = any(found.extractor_length is not None for found in tunnels(at, own).values()) if at else False
    return (at, own or "", whence) if known else ([], "", "")


def probed(
    subject: Subject,
    own: ImageSet,
    others: Sequence[ImageSet],
    options: Options,
    fabric: Fabric,
    progress: Progress,
) -> list[Row]:
    """Rows of ridge probes fitted now on every layer, on the network's set and on the others.

    Raises:
        ValueError: as an analysis: too few images, or too little memory.
    """
    settings = Measures(
        taps=options.taps, measures="ridge", fit_images=options.fit_images, eval_images=options.images
    )
    with Context(subject, own, others, settings, fabric, progress) as context:
        rows = own_set(context).rows
        for images in others:
            rows += other_set(context, images).rows
    return rows


def rules_of(rows: Sequence[Row], own: str) -> dict[str, Tunnel]:
    """Where the tunnel starts by each rule."""
    return tunnels(rows, own or None)
