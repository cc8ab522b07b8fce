"""Tables of how the answers of several networks, and of groups of them, differ on the same images."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tunnel_lightning.measures.functional.predictions import (
    Churn,
    churn,
    class_differences,
    error_spread,
    mean_kl,
    per_class_accuracy,
    per_example_accuracy,
)
from tunnel_lightning.runs.files import atomic

Table = dict[str, Any]
"""A table of the page: ``{"title", "columns", "rows", "note"}``."""

# What does not say of which kind a network is: where it lies, how it was watched, and the luck of the draw.
_SHOWN = ("default_root_dir", "enable_progress_bar", "enable_model_summary", "logger", "log_every_n_steps")
_APART = frozenset(
    (
        *("name", "runs", "keep_every", "monitor", "seed_everything", "ckpt_path"),
        *(f"trainer.{key}" for key in _SHOWN),
    )
)


class Group(NamedTuple):
    """Networks of one kind.

    Attributes:
        key: ``a``, ``b``, ... in the order in which the groups appear.
        name: what sets it apart from the other groups.
        members: positions of its networks.
    """

    key: str
    name: str
    members: list[int]


def group_runs(
    run_ids: Sequence[str], configs: Sequence[Mapping[str, Any]], given: Sequence[str] | None = None
) -> list[Group]:
    """Put runs whose configs differ in nothing but training seed, name, folder and what is watched into one group.

    The training seed is ``seed_everything``. The seed of a set decides which images there are, so runs that differ
    in it are of different kinds.

    Args:
        run_ids: ids of the runs, ``name/version_N``.
        configs: their configs, as in ``config.yaml``.
        given: a group's name for each run, instead of looking at the configs.

    Returns:
        The groups, in the order of their first runs. Names are, where they tell the groups apart, those of
        the runs, else what differs between the configs.

    Raises:
        ValueError: another number of names than of runs.

    Example:
        >>> configs = [{"seed_everything": seed, "depth": depth} for depth, seed in ((3, 0), (3, 1), (5, 0))]
        >>> group_runs(["m/version_0", "m/version_1", "m/version_2"], configs)
        [Group(key='a', name='depth=3', members=[0, 1]), Group(key='b', name='depth=5', members=[2])]
    """
    if given is not None and len(given) != len(run_ids):
        raise ValueError(
            f"groups has {len(given)} names for {len(run_ids)} runs: give one for each run, in their order"
        )
    flat = [dict(_flat(config)) for config in configs]
    labels = given or [json.dumps(each, sort_keys=True, default=str) for each in flat]
    members: dict[str, list[int]] = {}
    for i, label in enumerate(labels):
        members.setdefault(label, []).append(i)
    found = list(members.values())
    names = list(members) if given else _names(found, run_ids, flat)
    keys = [chr(ord("a") + i) if i < 26 else f"g{i + 1}" for i in range(len(found))]
    if len(set(names)) < len(names):  # what differs is not among what is said
        names = [f"{name} ({key})" for name, key in zip(names, keys, strict=True)]
    return [Group(*each) for each in zip(keys, names, found, strict=True)]


def _flat(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if path in _APART:
        return
    if isinstance(config, Mapping):
        for key, value in config.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, config


def _names(groups: list[list[int]], run_ids: Sequence[str], flat: list[dict[str, Any]]) -> list[str]:
    runs = [{run_ids[i].partition("/")[0] for i in group} for group in groups]
    if all(len(each) == 1 for each in runs) and len(set.union(*runs)) == len(groups):
        return [each.pop() for each in runs]
    firsts = [flat[group[0]] for group in groups]
    keys = dict.fromkeys(key for each in firsts for key in each)
    differ = [key for key in keys if len({json.dumps(each.get(key), default=str) for each in firsts}) > 1]
    return [
        ", ".join(_said(key, each[key]) for key in differ[:4] if key in each) or f"group {i + 1}"
        for i, each in enumerate(firsts)
    ]


def _said(key: str, value: Any) -> str:
    parts = key.split(".")
    if parts[-1] == "class_path":
        return str(value).rpartition(".")[2]
    # a seed of images is told from the training's, which differs within a group
    return f"{parts[0]}.seed={value}" if parts[-1] == "seed" else f"{parts[-1]}={value}"


class Pair(NamedTuple):
    """Two networks' answers; see `measures.functional.predictions`."""

    agreement: float
    churn: Churn
    kl: float
    kl_back: float


@dataclass(frozen=True, eq=False)
class Predictions:
    """What several networks answer to the same images.

    Attributes:
        log_probabilities: natural logarithms of the class probabilities, ``[N, C]`` for each network.
        target: class indices ``[N]``.
        class_names: C names.
        groups: which networks are of one kind; each network is in one group.
    """

    log_probabilities: Sequence[NDArray[np.floating]]
    target: NDArray[np.int64]
    class_names: Sequence[str]
    groups: Sequence[Group]

    @property
    def answers(self) -> NDArray[np.int64]:
        """Likeliest class ``[R, N]``."""
        return np.stack([each.argmax(1) for each in self.log_probabilities])

    def pair(self, i: int, j: int) -> Pair:
        """Compare two networks: ``j`` takes the place of ``i``."""
        p, q = self.log_probabilities[i], self.log_probabilities[j]
        changed = churn(p.argmax(1), q.argmax(1), self.target)
        return Pair(1 - changed.changed, changed, mean_kl(p, q), mean_kl(q, p))

    def tables(self) -> list[Table]:
        """The groups, how far their errors lie apart, and where their classes differ."""
        tables = [self._groups()]
        tested = [
            pair for pair in combinations(self.groups, 2) if min(len(each.members) for each in pair) > 1
        ]
        if tested:
            tables += [self._spread(tested), self._classes(tested)]
        elif len(self.groups) > 1:
            tables[0]["note"] += (
                " Whether two groups differ more than chance can be tested from 2 networks (seeds) in each."
            )
        return tables

    def write(self, path: str | Path) -> None:
        """Write one line per image: its number, its label, and the accuracy of each group on it."""
        answers = self.answers
        columns = [per_example_accuracy(answers[group.members], self.target) for group in self.groups]
        with atomic(path) as file:
            table = csv.writer(file, lineterminator="\n")
            table.writerow(["image", "label", *(f"accuracy_{group.key}" for group in self.groups)])
            for number, label in enumerate(self.target.tolist()):
                values = (f"{column[number]:.6g}" for column in columns)
                table.writerow([number, self.class_names[label], *values])

    def _groups(self) -> Table:
        answers, rows = self.answers, []
        for group in self.groups:
            right = answers[group.members] == self.target
            each = 100 * right.mean(1)
            spread = float(each.std(ddof=1)) if len(each) > 1 else None
            always, never = 100 * right.all(0).mean(), 100 * (~right).all(0).mean()
            rows.append([group.key, group.name, len(each), each.mean(), spread, always, never])
        return {
            "title": "Groups of networks",
            "columns": ["group", "name", "networks", "accuracy %", "sd", "always right %", "never right %"],
            "rows": rows,
            "note": "A group is the runs whose configs differ in training seed, name, folder and what is watched "
            "only, unless groups were named. Always and never right: share of the images that all its networks, "
            "or none of them, answer rightly.",
        }

    def _spread(self, pairs: Sequence[tuple[Group, Group]]) -> Table:
        right, rows = self.answers == self.target, []
        for a, b in pairs:
            found = error_spread(right[a.members], right[b.members])
            null = np.concatenate([found.within_a, found.within_b])
            for name, column, unit in (("mean |d|", 0, 100), ("variance of d", 1, 1)):
                between = unit * found.between[:, column].mean()
                expected = unit * null[:, column].mean()
                low, high = unit * np.quantile(null[:, column], [0.025, 0.975])
                ratio = between / expected if expected > 0 else None
                rows.append([f"{a.key} / {b.key}", found.size, name, between, expected, low, high, ratio])
        return {
            "title": "Are the groups right about different images?",
            "columns": [
                "groups", "networks a side", "spread", "between", "null", "null 2.5 %", "null 97.5 %", "ratio",
            ],
            "rows": rows,
            "note": "d is the difference of two accuracies of one image, each over so many networks: of the "
            "two groups (between), or of two disjoint sets out of one group (null; mean and quantiles over "
            "ways to draw them, which overlap). Mean |d| in percentage points. A ratio of 1: the groups differ "
            "as two halves of one kind do.",
        }  # fmt: skip

    def _classes(self, pairs: Sequence[tuple[Group, Group]]) -> Table:
        names = list(self.class_names)
        accuracy = per_class_accuracy(self.answers, self.target, len(names))
        images, rows = np.bincount(self.target, minlength=len(names)), []
        for a, b in pairs:
            found = class_differences(accuracy[a.members], accuracy[b.members])
            means = [100 * accuracy[group.members].mean(0) for group in (a, b)]
            rows += [
                [f"{a.key} / {b.key}", name, int(count), x, y, 100 * d, t, p, corrected]
                for name, count, x, y, d, t, p, corrected in zip(
                    names, images, *means, found.difference, found.t, found.p, found.p_holm, strict=True
                )
            ]
        return {
            "title": "Classes in which the groups differ",
            "columns": [
                "groups", "class", "images", "first %", "second %", "difference", "Welch t", "p", "p (Holm)",
            ],
            "rows": rows,
            "note": "Welch's t-test over networks in each class; p (Holm) is corrected for the number of "
            "classes of this pair of groups. No test where neither group varies.",
        }  # fmt: skip
