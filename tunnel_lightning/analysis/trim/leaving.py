"""Leaving early, on what exits said of a split: where each image leaves, what that costs, which layers to take."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from tunnel_lightning.analysis.trim.choose import cheapest
from tunnel_lightning.runs import NETWORK

TURNS = (7, 30)
"""Fewest and most turns of what is timed."""
SECONDS = 10.0
"""After which no further turn is begun once there were enough of them."""
THRESHOLDS = 50
"""Thresholds that are tried, spread as the exits' confidences are."""
MOST = 4
"""Exits that are chosen by themselves, at the most: each one asked costs time, and few get most of what there is."""
WORTH = 0.01
"""Share of the whole network's operations that one exit more has to save."""


@dataclass(frozen=True, eq=False)
class Answers:
    """What several exits and the network itself say of the images of a split.

    Attributes:
        names: of the exits, the network itself last.
        scores: at comparable temperatures, float32 ``[E + 1, N, C]``.
        target: labels ``[N]``.
    """

    names: list[str]
    scores: Tensor
    target: Tensor

    def of(self, names: Sequence[str]) -> Answers:
        """Those of some of the exits, and of the network."""
        names = [*names, NETWORK]
        return Answers(names, self.scores[[self.names.index(name) for name in names]], self.target)

    def sure(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Confidence, and whether the answer is right, each ``[E + 1, N]``."""
        confidence, answer = self.scores.softmax(-1).max(-1)
        return confidence.numpy(), (answer == self.target).numpy()


def left_at(confidence: NDArray[np.floating[Any]], threshold: float, ends: bool = False) -> NDArray[np.int64]:
    """Where each image leaves, ``[N]``, as in `EarlyExit`: the first exit that is sure enough, else the end.

    Args:
        confidence: of the exits and, last, of the network, ``[E + 1, N]``.
        threshold: what has to be exceeded.
        ends: at the last exit all leave: what follows is cut away.

    Example:
        >>> confidence = np.array([[0.9, 0.6, 0.5], [0.8, 0.95, 0.4]])
        >>> left_at(confidence, 0.7), left_at(confidence, 0.7, ends=True)
        (array([0, 1, 1]), array([0, 0, 0]))
    """
    sure = confidence > threshold
    sure[-1] = True
    if ends:
        sure[-2] = True
    return sure.argmax(0)


@dataclass(frozen=True, eq=False)
class Curve:
    """Accuracy and mean cost of leaving early, for several thresholds, each ``[T]``.

    Attributes:
        threshold: what has to be exceeded.
        ends: whether all leave at the last exit.
        accuracy: share of right answers.
        flops: operations of an image, on average.
    """

    threshold: NDArray[np.float64]
    ends: NDArray[np.bool_]
    accuracy: NDArray[np.float64]
    flops: NDArray[np.float64]


def curve_of(answers: Answers, costs: Sequence[int], thresholds: Sequence[float] | None = None) -> Curve:
    """What leaving early gives at each threshold, first with the whole network behind the exits, then without.

    Args:
        answers: of the exits.
        costs: operations up to each, E + 1.
        thresholds: by default 50, which divide the exits' confidences evenly, 0 and 1 among them.
    """
    confidence, right = answers.sure()
    if thresholds is None:
        parts = np.quantile(confidence[:-1].astype(float), np.linspace(0, 1, THRESHOLDS)[1:-1])
        thresholds = sorted({0.0, *np.floor(parts * 1e6) / 1e6, 1.0})
    found, cost = [], np.array(costs, dtype=float)
    for ends in (False, True):
        for threshold in thresholds:
            left = left_at(confidence, threshold, ends)
            found.append((threshold, ends, right[left, np.arange(len(left))].mean(), cost[left].mean()))
    columns = np.array(found, dtype=float).T
    return Curve(columns[0], columns[1].astype(bool), columns[2], columns[3])


def chosen_layers(
    answers: Answers,
    trunk: Mapping[str, int],
    asked: Mapping[str, int],
    keep: float,
    told: Callable[[int], None],
) -> list[str]:
    """The layers whose exits save most, one after the other, while the accuracy is kept.

    Args:
        answers: of exits at all layers, on validation images.
        trunk: operations up to each layer, by name, the whole as ``network``.
        asked: operations of each exit.
        keep: share of the network's accuracy that is kept.
        told: given the number of layers chosen so far.

    Returns:
        At most four, in the order of execution; at least one.
    """
    layers, chosen, best = answers.names[:-1], [], float(trunk[NETWORK])  # type: tuple[list[str], list[str], float]
    while len(chosen) < MOST:
        told(len(chosen))
        found = []
        for name in layers:
            if name in chosen:
                continue
            these = [each for each in layers if each in chosen or each == name]
            curve = curve_of(answers.of(these), costs_of(these, trunk, asked))
            line = cheapest(curve.accuracy, curve.flops, right_of_network(answers), keep)
            found.append((math.inf if line is None else float(curve.flops[line]), name))
        cost, name = min(found, default=(math.inf, ""))
        if not name or (chosen and best - cost < WORTH * trunk[NETWORK]):
            break
        chosen.append(name)
        best = min(best, cost)
    return [name for name in layers if name in chosen]


def costs_of(layers: Sequence[str], trunk: Mapping[str, int], asked: Mapping[str, int]) -> list[int]:
    """Operations of an image that leaves at each of some exits, and of one that stays."""
    exits = np.cumsum([asked[name] for name in layers]).tolist()
    return [trunk[name] + spent for name, spent in zip([*layers, NETWORK], [*exits, exits[-1]], strict=True)]


def right_of_network(answers: Answers) -> float:
    """The network's own accuracy."""
    return float((answers.scores[-1].argmax(-1) == answers.target).double().mean())


def side_by_side(
    one: Callable[[], Any],
    other: Callable[[], Any],
    told: Callable[[int, int], None] = lambda done, total: None,
) -> NDArray[np.float64]:
    """Seconds that two functions take, turn about, so that a busy machine slows both of a pair.

    Args:
        one: waits until its work is done.
        other: likewise.
        told: given the turns done and those there are at most.

    Returns:
        Shape [turns, 2].

    Example:
        >>> side_by_side(lambda: None, lambda: None).shape
        (30, 2)
    """
    found: list[tuple[float, float]] = []
    for _ in range(2):  # kernels are chosen, memory is taken
        one()
        other()
    begin = time.perf_counter()
    for turn in range(TURNS[1]):
        if turn >= TURNS[0] and time.perf_counter() - begin > SECONDS:
            break
        told(turn, TURNS[1])
        taken = [0.0, 0.0]
        for which in (0, 1) if turn % 2 else (1, 0):
            start = time.perf_counter()
            (one, other)[which]()
            taken[which] = time.perf_counter() - start
        found.append((taken[0], taken[1]))
    told(TURNS[1], TURNS[1])
    return np.array(found)
