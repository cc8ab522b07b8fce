"""Which cut to take, and what it keeps: plain functions of arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Z = 1.959963984540054
"""Normal quantile of a 95 % interval."""


class Estimate(NamedTuple):
    """A value with its 95 % interval, and the images it rests on."""

    value: float
    low: float
    high: float
    n: int


def pareto(cost: ArrayLike, accuracy: ArrayLike) -> NDArray[np.bool_]:
    """Mark what nothing beats: no other is at most as dear and at least as accurate, and better in one of the two.

    Args:
        cost: shape [L]; NaN is never marked.
        accuracy: shape [L], likewise.

    Returns:
        Shape [L].

    Raises:
        ValueError: two shapes.

    Example:
        >>> pareto([1, 2, 3, 4], [0.5, 0.4, 0.9, 0.9])
        array([ True, False,  True, False])
    """
    costs, values = np.asarray(cost, dtype=float), np.asarray(accuracy, dtype=float)
    if costs.shape != values.shape or costs.ndim != 1:
        raise ValueError(
            f"costs {list(costs.shape)} and accuracies {list(values.shape)}: give one of each, [L]"
        )
    usable = np.isfinite(costs) & np.isfinite(values)
    no_worse = (costs[:, None] <= costs) & (values[:, None] >= values)
    better = (costs[:, None] < costs) | (values[:, None] > values)
    return usable & ~(no_worse & better & usable[:, None]).any(0)


def cheapest(accuracy: ArrayLike, cost: ArrayLike, whole: float, keep: float) -> int | None:
    """The cheapest cut that keeps a share of the whole network's accuracy; of equally cheap ones the most accurate.

    Args:
        accuracy: of each cut, on the images that cuts are chosen on, shape [L]; NaN for one that can't be taken.
        cost: of each, shape [L].
        whole: the whole network's accuracy on the same images.
        keep: the share, in (0, 1].

    Returns:
        Its place, or None where no cut does.

    Raises:
        ValueError: a share outside (0, 1].

    Example:
        >>> cheapest([0.5, 0.88, 0.9], [1, 2, 3], whole=0.9, keep=0.95)
        1
    """
    check_keep(keep)
    values, costs = np.asarray(accuracy, dtype=float), np.asarray(cost, dtype=float)
    # 0.98 x 0.5 is a little more than 0.49 in floating point.
    enough = np.flatnonzero(values >= keep * whole - 1e-12)
    if not len(enough):
        return None
    return int(min(enough, key=lambda k: (costs[k], -values[k])))


class Choice(NamedTuple):
    """Which cut is taken.

    Attributes:
        line: its line in the curve; None where none is.
        how: ``keep``, ``for`` or ``layer``.
        why: a sentence where no cut is taken; else empty.
    """

    line: int | None
    how: str
    why: str = ""


def choose_keeping(curve: Mapping[str, Any], whole: float, keep: float) -> Choice:
    """Take the cheapest cut that keeps a share of the whole network's validation accuracy.

    A cut behind the last layer leaves no tunnel out, and one that takes as many FLOPs as the whole network saves
    nothing; neither is taken.

    Args:
        curve: columns ``layer``, ``flops`` and ``val_accuracy``, shape [L + 2]: the raw pixels first, the whole
            network last.
        whole: the whole network's validation accuracy.
        keep: the share.

    Raises:
        ValueError: a share outside (0, 1].

    Example:
        >>> curve = {"layer": ["input", "a", "b", "c", "network"], "flops": [1, 4, 7, 9, 9]}
        >>> curve["val_accuracy"] = [0.2, 0.5, 0.8, 0.8, 0.8]
        >>> choose_keeping(curve, 0.8, 0.99)
        Choice(line=2, how='keep', why='')
        >>> choose_keeping(curve | {"val_accuracy": [0.2, 0.5, 0.7, 0.8, 0.8]}, 0.8, 0.99).why.partition(": ")[2]
        'every layer is needed (layer 2: 87.5 %)'
    """
    check_keep(keep)
    value, cost = (np.asarray(curve[key], dtype=float) for key in ("val_accuracy", "flops"))
    share, asked = f"{100 * keep:.4g} %", "of the network's validation accuracy"
    if value[0] >= keep * whole - 1e-12:
        why = (
            f"a linear classifier on the raw pixels already keeps {share} {asked}: the images need no network"
        )
        return Choice(None, "keep", why)
    early = np.arange(1, len(value) - 2)  # the last layer's cut leaves out nothing but the head
    if not len(early):
        return Choice(None, "keep", "the network has a single layer: there is nothing behind it to cut away")
    found = cheapest(value[early], cost[early], whole, keep)
    if found is None:
        best = best_transfer(value[early], cost[early])
        near = "" if best is None else f" (layer {early[best]}: {100 * value[early][best] / whole:.1f} %)"
        why = f"no layer before the last keeps {share} {asked}: every layer is needed{near}"
        return Choice(None, "keep", why)
    line = int(early[found])
    if cost[line] >= cost[-1]:
        return Choice(
            None, "keep", f"every cut that keeps {share} {asked} takes as many FLOPs as the whole network"
        )
    return Choice(line, "keep")


def choose_for(curve: Mapping[str, Any], name: str) -> Choice:
    """Take the cut that transfers best to another set, by its validation images.

    Args:
        curve: columns ``layer``, ``flops`` and ``transfer_val:NAME``, shape [L + 2].
        name: the set.

    Example:
        >>> curve = {"layer": ["input", "a", "b", "c", "network"], "flops": [1, 4, 7, 9, 9]}
        >>> choose_for(curve | {"transfer_val:Other": [0.1, 0.9, 0.95, 0.7, np.nan]}, "Other").line
        2
    """
    value, cost = (np.asarray(curve[key], dtype=float) for key in (f"transfer_val:{name}", "flops"))
    found = best_transfer(value[1:-1], cost[1:-1])
    if found is None:
        return Choice(None, "for", f"no head for {name} can be fitted at any layer")
    line = found + 1
    if value[0] >= value[line]:
        why = f"no layer serves {name} better than its raw pixels do: a linear classifier on them is as good"
        return Choice(None, "for", why)
    if line == len(value) - 2:
        return Choice(
            None, "for", f"no layer transfers better to {name} than the last one: nothing is to be cut away"
        )
    if cost[line] >= cost[-1]:
        why = f"the cut that transfers best to {name}, behind layer {line}, takes as many FLOPs as the whole network"
        return Choice(None, "for", why)
    return Choice(line, "for")


def best_transfer(accuracy: ArrayLike, cost: ArrayLike) -> int | None:
    """The cut that transfers best; of equally good ones the cheapest. None where no accuracy is a number.

    Example:
        >>> best_transfer([0.5, 0.8, 0.8], [1, 3, 2])
        2
    """
    values, costs = np.asarray(accuracy, dtype=float), np.asarray(cost, dtype=float)
    there = np.flatnonzero(np.isfinite(values))
    return int(min(there, key=lambda k: (-values[k], costs[k]))) if len(there) else None


def check_keep(keep: float) -> None:
    """Refuse a share that is none.

    Raises:
        ValueError: it is outside (0, 1].
    """
    if not 0 < keep <= 1:
        raise ValueError(
            f"keep is a share of the accuracy, above 0 and at most 1, and not {keep}: to keep 99 % give 0.99"
        )


def share_kept(cut: ArrayLike, whole: ArrayLike) -> Estimate:
    """The share of the whole network's accuracy that a cut one keeps, with an interval for the same images.

    Both are scored on the same images, so they err together and their ratio is far surer than two accuracies. With
    ``b`` images that only the cut network has right and ``c`` that only the whole one has, of ``a`` that both have,
    the delta method gives ``Var(log ratio) = (b + c) / ((a + b) (a + c))``, here with half an image added to each of
    the four cells (as Agresti & Min, 2005, Statistics in Medicine 24, p. 729, do for differences): networks that
    answer alike on few images are not certain to answer alike.

    Args:
        cut: whether the cut network is right about each image, shape [N].
        whole: whether the whole one is, shape [N].

    Returns:
        The ratio and its 95 % interval; NaN where the whole network is never right.

    Raises:
        ValueError: two numbers of images, or none.

    Example:
        >>> kept = share_kept([1] * 95 + [0] * 5, [1] * 97 + [0] * 3)
        >>> f"{kept.value:.3f} from {kept.low:.3f} to {kept.high:.3f}"
        '0.979 from 0.946 to 1.014'
    """
    both, only_cut, only_whole, neither = _cells(cut, whole)
    n = both + only_cut + only_whole + neither
    if not both + only_whole:
        return Estimate(math.nan, math.nan, math.nan, n)
    value = (both + only_cut) / (both + only_whole)
    a, b, c = both + 0.5, only_cut + 0.5, only_whole + 0.5
    middle = (a + b) / (a + c)
    spread = math.exp(Z * math.sqrt((b + c) / ((a + b) * (a + c))))
    return Estimate(value, min(middle / spread, value), max(middle * spread, value), n)


def difference(after: ArrayLike, before: ArrayLike) -> Estimate:
    """How much more accurate one network is than another on the same images, with a 95 % interval.

    The interval is Wald's for matched pairs with half an image added to each of the four cells (Agresti & Min, 2005).

    Args:
        after: whether the one is right about each image, shape [N].
        before: whether the other is, shape [N].

    Raises:
        ValueError: two numbers of images, or none.

    Example:
        >>> gain = difference([1] * 60 + [0] * 40, [1] * 50 + [0] * 50)
        >>> f"{gain.value:.2f} from {gain.low:.2f} to {gain.high:.2f}"
        '0.10 from 0.04 to 0.16'
    """
    both, won, lost, neither = _cells(after, before)
    n = both + won + lost + neither
    b, c, size = won + 0.5, lost + 0.5, n + 2
    middle = (b - c) / size
    half = Z * math.sqrt(b + c - (b - c) ** 2 / size) / size
    value = (won - lost) / n
    return Estimate(value, min(middle - half, value), max(middle + half, value), n)


def _cells(first: ArrayLike, second: ArrayLike) -> tuple[int, int, int, int]:
    """Images that both are right about, the first alone, the second alone, neither."""
    one, other = np.asarray(first, dtype=bool), np.asarray(second, dtype=bool)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(
            f"answers {list(one.shape)} and {list(other.shape)} are not of the same images: give one of each, [N]"
        )
    cells = (one & other, one & ~other, ~one & other, ~one & ~other)
    return tuple(int(cell.sum()) for cell in cells)  # type: ignore[return-value]


def verdict(kept: Estimate, keep: float) -> str:
    """What the certificate says: ``kept``, ``likely`` where the interval reaches below, ``failed``.

    Example:
        >>> [verdict(Estimate(v, v - 0.01, v + 0.01, 100), 0.98) for v in (1.0, 0.985, 0.97)]
        ['kept', 'likely', 'failed']
    """
    if not kept.value >= keep:
        return "failed"
    return "kept" if kept.low >= keep else "likely"


def place_of(name: str, layers: Sequence[Any]) -> int:
    """Where a layer given by name or by number stands among the cuts, from 0.

    Args:
        name: a layer's name, or its number from 1 on.
        layers: names of the cuts, in order.

    Raises:
        ValueError: there is none; the sentence names near ones.

    Example:
        >>> place_of("fc1", ["fc0", "fc1"]), place_of("1", ["fc0", "fc1"])
        (1, 0)
    """
    from difflib import get_close_matches

    names = [str(each) for each in layers]
    if name in names:
        return names.index(name)
    if name.isdecimal() and 1 <= int(name) <= len(names):
        return int(name) - 1
    near = get_close_matches(name, names, n=3, cutoff=0.4)
    hint = f"near: {', '.join(near)}" if near else f"there are {', '.join(names[:4])}, ..."
    raise ValueError(
        f"layer: {name!r} is none of the {len(names)} layers to cut behind ({hint}): give a name or a number from 1 "
        f"to {len(names)}"
    )
