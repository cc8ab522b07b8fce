"""Whether the residual blocks that change little, or lie inside a block structure, can be deleted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunnel_lightning.analysis.ablate.evaluate import Bench, spearman
from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.analysis.structure import BLOCK_THRESHOLD
from tunnel_lightning.measures.functional.blocks import contiguous_blocks
from tunnel_lightning.measures.functional.similarity import hsic_1
from tunnel_lightning.runs import RunError, load_analysis
from tunnel_lightning.surgery.blocks import Block
from tunnel_lightning.taps import Taps, TapSpec, quiet

MAP = "cka_all"
"""The similarity map of an analysis that has every output of the network."""

_BATCH = 8
"""Images that a batch needs at least: the unbiased estimator divides by n (n - 3)."""


def changes(bench: Bench, blocks: Sequence[Block]) -> dict[int, float]:
    """Unbiased linear CKA of what goes past each block's branches and of the sum, by the block's index.

    For a block whose skip path is the identity that is its input and its output before the activation; where the
    shape changes the projection takes the place of the input. It is what the deletion of the block puts in the place
    of the sum, so 1 - CKA says how much that changes here. Maps are averaged to 2 x 2; HSIC is averaged over batches
    before the ratio is taken (Nguyen et al., 2021, eq. 3).
    """
    sums = {block.index: [0.0, 0.0, 0.0] for block in blocks}
    with Taps(bench.network, TapSpec("addition", "2x2")) as taps, quiet(bench.subject.model):
        taps.arm()
        for x, _ in bench.images.batches("test", bench.limit):
            bench.subject.model(x.to(bench.device))
            features = taps.take()
            if len(x) < _BATCH:
                continue
            for block in blocks:
                total = features[block.sums[0]].float()
                past = gram(total - features[block.branches[0]].float())
                after = gram(features[block.sums[-1]].float())
                for k, (one, two) in enumerate(((past, after), (past, past), (after, after))):
                    sums[block.index][k] += float(hsic_1(one, two))
        taps.disarm()
    return {index: _ratio(*found) for index, found in sums.items()}


def gram(features: Tensor) -> Tensor:
    """Inner products ``[B, B]`` of centred features ``[B, D]``, in double precision on the CPU."""
    x = features.double().cpu()
    x = x - x.mean(0)
    return x @ x.T


def _ratio(cross: float, one: float, two: float) -> float:
    return cross / math.sqrt(one * two) if one > 0 and two > 0 else math.nan


def inside(subject: Subject, blocks: Sequence[Block]) -> dict[str, Any] | None:
    """Which residual blocks lie inside a block structure of the run's analysis.

    The structure is that of the outputs of the residual blocks in the analysis's map of every output (post-residual
    layers, as the paper reads it): runs of three and more outputs that are all at least `BLOCK_THRESHOLD` alike. A
    residual block is inside one where its input and its output both are.

    Returns:
        ``threshold``, ``found`` (names of the first and the last output of each) and ``blocks`` (indices of those
        inside); None where there is no analysis with such a map, or not of these blocks.
    """
    if subject.run is None:
        return None
    try:
        found = load_analysis(subject.run).similarity.get(MAP)
    except RunError:
        return None
    if found is None or any(block.name not in found.names for block in blocks):
        return None
    at = [found.names.index(block.name) for block in blocks]
    structure = contiguous_blocks(torch.from_numpy(found.value[np.ix_(at, at)]), BLOCK_THRESHOLD)
    return {
        "threshold": BLOCK_THRESHOLD,
        "found": [[blocks[each.start].name, blocks[each.end].name] for each in structure],
        "blocks": [blocks[k].index for each in structure for k in range(each.start + 1, each.end + 1)],
    }


def agreement(
    blocks: Sequence[Block],
    cka: Mapping[int, float],
    lost: Mapping[int, float],
    structure: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """How the loss by deleting each block goes with its change, and with block structure.

    Args:
        blocks: the residual blocks.
        cka: of :func:`changes`.
        lost: fraction of the images that is lost with each block.
        structure: of :func:`inside`.

    Returns:
        Plain values: ``spearman`` of the loss with 1 - CKA, ``lost_inside`` and ``lost_outside`` (means, with their
        counts), and ``sentence``.

    Example:
        >>> blocks = [Block(k, f"b{k}", 1, (), (), (), (), False) for k in (1, 2, 3, 4)]
        >>> cka, lost = {1: 0.5, 2: 0.9, 3: 0.95, 4: 0.8}, {1: 0.6, 2: 0.02, 3: 0.01, 4: 0.1}
        >>> agreement(blocks, cka, lost, {"blocks": [2, 3], "threshold": 0.9})["sentence"]
        'deleting a block costs the more the more it changes (rank correlation of the loss with 1 - CKA: 1.00 over 4 \
blocks); inside block structure a deletion costs 1.5 points on average (2 blocks), outside 35.0 (2)'
    """
    indices = [block.index for block in blocks if block.index in lost]
    rho = spearman([lost[k] for k in indices], [1 - cka.get(k, math.nan) for k in indices])
    if math.isnan(rho):
        said = "too few blocks to say whether those that change little are the ones that can be deleted"
    else:
        how = "the more it changes" if rho > 0.3 else "the less it changes" if rho < -0.3 else ""
        said = (
            f"deleting a block costs the more {how}"
            if how
            else "what a deletion costs hardly goes with the change"
        )
        said += f" (rank correlation of the loss with 1 - CKA: {rho:.2f} over {len(indices)} blocks)"
    result: dict[str, Any] = {"spearman": rho, "n": len(indices), "structure": structure}
    if structure is None:
        said += "; there is no map of every output (analyze) to look for block structure in"
    elif not structure["blocks"]:
        said += f"; no three outputs of blocks in a row are at least {structure['threshold']} alike, so there is no "
        said += "block structure to compare with"
    else:
        within = [lost[k] for k in indices if k in structure["blocks"]]
        without = [lost[k] for k in indices if k not in structure["blocks"]]
        result |= {"lost_inside": _mean(within), "n_inside": len(within)}
        result |= {"lost_outside": _mean(without), "n_outside": len(without)}
        said += f"; inside block structure a deletion costs {100 * _mean(within):.1f} points on average "
        said += f"({len(within)} block{'s' * (len(within) != 1)})"
        said += (
            f", outside {100 * _mean(without):.1f} ({len(without)})"
            if without
            else ", and no block is outside"
        )
    return {**result, "sentence": said}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
