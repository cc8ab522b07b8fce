"""What a comparison says of its networks, as tables and maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunnel_lightning.analysis.predictions import Group, Pair, Predictions, Table
from tunnel_lightning.analysis.together import SPLIT, Member, Seen
from tunnel_lightning.measures.functional.blocks import Block, contiguous_blocks, resemblance
from tunnel_lightning.runs import SimilarityMap, wilson


class Findings:
    """What the pass says of the networks, as tables."""

    def __init__(
        self, members: Sequence[Member], groups: Sequence[Group], seen: Seen, threshold: float
    ) -> None:
        self.members, self.groups, self.seen, self.threshold = members, groups, seen, threshold
        self.blocks: list[list[Block]] = [
            contiguous_blocks(self.between(i, i)[0], threshold) for i in range(len(members))
        ]
        self.notes: list[str] = []
        self.predictions = self._predictions()

    def between(self, i: int, j: int) -> tuple[Tensor, Tensor]:
        """The map between two networks, value and standard error."""
        return self.seen.similarity.between(self.members[i].layers, self.members[j].layers)

    def _predictions(self) -> Predictions | None:
        """The answers of those networks whose classes are the set's; groups keep their keys."""
        images, answering = self.members[0].images, list(self.seen.log_probabilities)
        silent = [member.run_id for member in self.members if not member.answers]
        if silent:
            self.notes.append(
                f"{', '.join(silent)}: trained on other classes than those of {images.name}, so without answers "
                "to compare"
            )
        if not answering:
            return None
        at = {member: place for place, member in enumerate(answering)}
        groups = [
            group._replace(members=[at[i] for i in group.members if i in at])
            for group in self.groups
            if set(group.members) & set(at)
        ]
        answers = [self.seen.log_probabilities[i] for i in answering]
        return Predictions(answers, self.seen.target, images.class_names, groups)

    def accuracy(self, i: int) -> float:
        """A network's own accuracy on the images; NaN where its outputs are other classes."""
        answers = self.seen.log_probabilities.get(i)
        return float("nan") if answers is None else float((answers.argmax(1) == self.seen.target).mean())

    def runs(self) -> list[dict[str, Any]]:
        """Each network in plain values."""
        keys = {i: group.key for group in self.groups for i in group.members}
        found = []
        for i, member in enumerate(self.members):
            subject, value, n = member.subject, self.accuracy(i), len(self.seen.target)
            low, high = (float(each) for each in wilson(value, n))
            layers = member.taps.layers
            found.append(
                {
                    "run_id": member.run_id,
                    "path": str(subject.run),
                    "group": keys[i],
                    "network": {
                        "name": subject.title,
                        "parameters": sum(p.numel() for p in subject.network.parameters()),
                        "layers": len(layers),
                    },
                    "checkpoint": subject.checkpoint,
                    "step": subject.step,
                    "epoch": subject.epoch,
                    "accuracy": {"value": value, "low": low, "high": high, "n": n}
                    if member.answers
                    else None,
                    "blocks": [
                        {
                            "start": layers[block.start].name,
                            "end": layers[block.end].name,
                            "start_index": layers[block.start].index,
                            "end_index": layers[block.end].index,
                            "size": block.size,
                            "min_cka": block.min_cka,
                        }
                        for block in self.blocks[i]
                    ],
                }
            )
        return found

    def tables(self) -> list[Table]:
        """All tables of the page."""
        answers = self.predictions.tables() if self.predictions is not None else []
        return [self._networks(), self._pairs(), self._blocks(), *self._cross_blocks(), *answers]

    def _networks(self) -> Table:
        rows = []
        for each in self.runs():
            accuracy = each["accuracy"] or {}
            values = [100 * accuracy[key] if accuracy else None for key in ("value", "low", "high")]
            network = each["network"]
            rows.append(
                [
                    *(each[key] for key in ("run_id", "group")),
                    *(network[key] for key in ("name", "layers", "parameters")),
                    each["step"],
                    *values,
                ]
            )
        return {
            "title": "Networks",
            "columns": [
                "run",
                "group",
                "network",
                "layers",
                "parameters",
                "step",
                "accuracy %",
                "from %",
                "to %",
            ],
            "rows": rows,
            "note": f"Accuracy on {len(self.seen.target):,} {SPLIT} images, and from where to where Wilson's 95 % "
            "interval goes.",
        }

    def _pairs(self) -> Table:
        rows = []
        places = {i: place for place, i in enumerate(self.seen.log_probabilities)}
        for i, j in combinations(range(len(self.members)), 2):
            pair: Pair | None = None
            if self.predictions is not None and i in places and j in places:
                pair = self.predictions.pair(places[i], places[j])
            told = (
                [None] * 6
                if pair is None
                else [
                    *(100 * each for each in (pair.agreement, *pair.churn)),
                    pair.kl,
                    pair.kl_back,
                ]
            )
            values = self.between(i, j)[0]
            accuracies = [100 * self.accuracy(k) for k in (i, j)]
            last = values[-1, -1].item()
            rows.append(
                [
                    self.members[i].run_id,
                    self.members[j].run_id,
                    *accuracies,
                    *told,
                    along_depth(values),
                    last,
                ]
            )
        return {
            "title": "Pairs of networks",
            "columns": [
                *("first", "second", "first %", "second %", "agreement %", "churn %", "lost %", "won %"),
                *("KL(first, second)", "KL(second, first)", "mean CKA along depth", "CKA of the last layers"),
            ],
            "rows": rows,
            "note": "Agreement: same label. Churn: images whose label changes when the second network takes the "
            "place of the first; lost were right before, won are right now. KL in nats, mean over images. CKA "
            "along depth: each layer of the deeper network with the other's at the same relative depth.",
        }

    def _blocks(self) -> Table:
        rows = [
            [run["run_id"], block["start"], block["end"], block["size"], block["min_cka"]]
            for run in self.runs()
            for block in run["blocks"]
        ]
        return {
            "title": "Block structure",
            "columns": ["run", "first layer", "last layer", "layers", "smallest CKA"],
            "rows": rows,
            "note": f"Runs of at least 3 layers of which every two have a CKA of {self.threshold:g} or more."
            + ("" if rows else " No network has any."),
        }

    def _cross_blocks(self) -> list[Table]:
        rows = []
        for i, j in permutations(range(len(self.members)), 2):
            if not self.blocks[i]:
                continue
            found = resemblance(self.between(i, j)[0], self.blocks[i])
            size = sum(block.size for block in self.blocks[i])
            rows.append(
                [
                    self.members[i].run_id,
                    self.members[j].run_id,
                    size,
                    found.inside.item(),
                    found.outside.item(),
                ]
            )
        table: Table = {
            "title": "Blocks seen from other networks",
            "columns": [
                "run",
                "other network",
                "layers in blocks",
                "best CKA of those",
                "best CKA of the others",
            ],
            "rows": rows,
            "note": "For each layer its largest CKA with any layer of the other network; means over the layers in "
            "blocks and over the others. Blocks that are a network's own resemble nothing elsewhere.",
        }
        return [table] if rows else []

    def maps(self) -> dict[str, SimilarityMap]:
        """The maps that are written."""
        every = self.seen.similarity
        maps = {"cka": SimilarityMap(every.names, every.value.numpy(), every.se.numpy())}
        if groups := self._group_map():
            maps["cka_groups"] = groups
        return maps

    def _group_map(self) -> SimilarityMap | None:
        """Means over pairs of different networks of two groups (as Nguyen et al. show), or of one."""
        alike = []
        for group in self.groups:
            layers = [[tap.name for tap in self.members[i].taps.layers] for i in group.members]
            if all(each == layers[0] for each in layers):
                alike.append((group, layers[0]))
            else:
                self.notes.append(
                    f"group {group.name}: layers differ, so there is no mean similarity over pairs"
                )
        if not any(len(group.members) > 1 for group, _ in alike):
            return None
        blocks = [[self._mean_between(a, b) for b, _ in alike] for a, _ in alike]
        value, se = (np.block([[each[k] for each in row] for row in blocks]) for k in (0, 1))
        return SimilarityMap([f"{group.key}:{name}" for group, layers in alike for name in layers], value, se)

    def _mean_between(self, a: Group, b: Group) -> tuple[Any, Any]:
        pairs = [torch.stack([self.between(i, j)[0] for j in b.members]) for i in a.members]
        value, se = mean_of_pairs(torch.stack(pairs), within=a.key == b.key)
        return value.numpy(), se.numpy()


def mean_of_pairs(values: Tensor, within: bool) -> tuple[Tensor, Tensor]:
    """Mean over pairs of different networks, and its standard error over networks.

    Pairs share networks, so they are not independent: the error is the jackknife's that leaves out one network with
    all its pairs at a time (Efron & Tibshirani, 1993, eq. 11.5),
    ``se² = (n - 1) / n * sum_i (mean without i - mean of those)²``, summed over both groups where there are two.

    Args:
        values: ``[n, m, ...]``, of each network of one group with each of another; where the groups are one, of each
            network with each other and, unused, with itself.
        within: whether the groups are one.

    Returns:
        Mean and standard error ``[...]``. The mean is NaN for a group of one network with itself; the error is NaN
        where a group has no network to spare: below 3 networks within a group, below 2 in either of two.

    Example:
        >>> values = torch.tensor([[1.0, 0.5, 0.6], [0.5, 1.0, 0.7], [0.6, 0.7, 1.0]])
        >>> [round(each.item(), 3) for each in mean_of_pairs(values, within=True)]
        [0.6, 0.115]
    """
    count, other = values.shape[:2]
    if within:
        squares = _jackknife([_mean(_without(_without(values, i, 0), i, 1), True) for i in range(count)])
    else:
        squares = _jackknife([_mean(_without(values, i, 0), False) for i in range(count)])
        squares = squares + _jackknife([_mean(_without(values, j, 1), False) for j in range(other)])
    return _mean(values, within), squares.sqrt()  # the mean of no pairs is NaN


def _mean(values: Tensor, within: bool) -> Tensor:
    return values[~torch.eye(len(values), dtype=torch.bool)].mean(0) if within else values.mean((0, 1))


def _without(values: Tensor, network: int, axis: int) -> Tensor:
    kept = [k for k in range(values.shape[axis]) if k != network]
    return values.index_select(axis, torch.tensor(kept, dtype=torch.long))


def _jackknife(means: Sequence[Tensor]) -> Tensor:
    stack = torch.stack(list(means))
    return (len(stack) - 1) / len(stack) * (stack - stack.mean(0)).square().sum(0)


def along_depth(similarity: Tensor) -> float:
    """Mean similarity of layers at the same relative depth of two networks.

    Args:
        similarity: ``[L, M]``, layers of one network and of the other in order of execution.

    Returns:
        The mean of the diagonal for L = M; else each layer of the deeper network is taken with the nearest one
        of the other, the first with the first and the last with the last. NaN layers are left out.

    Example:
        >>> along_depth(torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 0.7]])).__round__(3)
        0.733
    """
    deep, other = similarity.shape if similarity.shape[0] >= similarity.shape[1] else similarity.T.shape
    values = similarity if similarity.shape[0] == deep else similarity.T
    nearest = torch.linspace(0, other - 1, deep).round().long()
    return float(values[torch.arange(deep), nearest].nanmean())
