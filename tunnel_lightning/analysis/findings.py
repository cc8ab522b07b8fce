"""What a comparison says of its networks, as tables and maps."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tunnel_lightning.analysis.predictions import Group, Pair, Predictions, Table
from tunnel_lightning.analysis.together import Member, Seen
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
                "95 % from",
                "to",
            ],
            "rows": rows,
            "note": f"Accuracy on {len(self.seen.target):,} images, with Wilson's interval.",
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
        if a.key == b.key:
            values = [self.between(i, j)[0] for i, j in combinations(a.members, 2)]
            values = [(value + value.T) / 2 for value in values]  # either may come first
        else:
            values = [self.between(i, j)[0] for i in a.members for j in b.members]
        if not values:  # a group of one
            nothing = np.full(self.between(a.members[0], a.members[0])[0].shape, np.nan)
            return nothing, nothing
        stack = torch.stack(values)
        se = stack.std(0) / len(values) ** 0.5 if len(values) > 1 else torch.full_like(stack[0], torch.nan)
        return stack.mean(0).numpy(), se.numpy()


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
