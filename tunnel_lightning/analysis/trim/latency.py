"""How long networks take for a batch, turn by turn, so that drift of the machine hits all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tunnel_lightning.runs import machine_info
from tunnel_lightning.taps import quiet

Network = Callable[[Tensor], Any]

BATCHES = (1, 256)
"""Images of a batch: as a service answers one person, and as a store of images is worked through."""
TURNS = (7, 30)
"""Fewest and most turns of each network."""
SECONDS = 20.0
"""Seconds of one size of batch, after which no further turn is begun once there were enough of them."""
SHORTEST = 0.01
"""Seconds of a turn, at least: a shorter forward is repeated within it, for the clock's and the scheduler's sake."""


def conditions(device: torch.device) -> dict[str, Any]:
    """Where and how latencies were measured: machine, device, threads."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    return {**machine_info(), "device": str(device), "device_name": name, "threads": torch.get_num_threads()}


def latencies(
    whole: Network,
    cuts: Mapping[str, Network],
    x: Tensor,
    turns: tuple[int, int] = TURNS,
    seconds: float = SECONDS,
    told: Callable[[int, int], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, NDArray[np.float64]]:
    """Seconds that a forward of each network takes, each turn beside one of the whole network's.

    In every round two networks have their turns right before and right after one of the whole network, then the next
    two, and so on, the order turned round every other round and begun elsewhere; so a machine that is busy with
    something else for a while slows both of a pair, and their ratio stays. There is a warm-up, and on a GPU each turn
    waits for the work to be done.

    Args:
        whole: the whole network, a module or another function of a batch.
        cuts: the others.
        x: the batch ``[B, C, H, W]``, on the networks' device.
        turns: rounds at least and at most.
        seconds: no further round is begun after so many, once there were enough.
        told: called with ``(rounds done, rounds at most)``.
        clock: tells the time in seconds.

    Returns:
        For each cut, shape [rounds, 2]: its own seconds, and those of the whole network beside it.

    Example:
        >>> found = latencies(nn.Identity(), {"a": nn.Flatten()}, torch.zeros(1, 4), turns=(3, 3))
        >>> found["a"].shape
        (3, 2)
    """
    wait = torch.cuda.synchronize if x.is_cuda else (lambda: None)

    def turn(call: Network, times: int) -> float:
        wait()
        start = clock()
        for _ in range(times):
            call(x)
        wait()
        return (clock() - start) / times

    def repeats(call: Network) -> int:
        # Kernels are chosen and memory is taken in the first two.
        return max(1, int(SHORTEST / max(min(turn(call, 1) for _ in range(3)), 1e-7)))

    names, found = list(cuts), {name: list[tuple[float, float]]() for name in cuts}
    modules = nn.ModuleList(call for call in (whole, *cuts.values()) if isinstance(call, nn.Module))
    with quiet(modules), torch.inference_mode():
        often, times = repeats(whole), {name: repeats(call) for name, call in cuts.items()}
        start = clock()
        for done in range(turns[1]):
            if done >= turns[0] and clock() - start > seconds:
                break
            if told:
                told(done, turns[1])
            begin = (done * 7) % len(names)
            order = names[begin:] + names[:begin]
            order = order if done % 2 else order[::-1]
            for pair in (order[k : k + 2] for k in range(0, len(order), 2)):
                before = turn(cuts[pair[0]], times[pair[0]])
                beside = turn(whole, often)
                found[pair[0]].append((before, beside))
                for name in pair[1:]:
                    found[name].append((turn(cuts[name], times[name]), beside))
        if told:
            told(turns[1], turns[1])
    return {name: np.array(pairs) for name, pairs in found.items()}


def spread(times: NDArray[np.float64]) -> tuple[float, float, float]:
    """The median and the two quartiles.

    Example:
        >>> spread(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
        (3.0, 2.0, 4.0)
    """
    low, middle, high = np.percentile(times, (25, 50, 75))
    return float(middle), float(low), float(high)


def speedups(pairs: NDArray[np.float64]) -> tuple[float, float, float]:
    """How many times faster than the whole network: median and quartiles of the ratios of paired turns.

    Args:
        pairs: as of :func:`latencies`, shape [rounds, 2].

    Example:
        >>> speedups(np.array([[1.0, 2.0], [1.0, 3.0], [2.0, 4.0]]))
        (2.0, 2.0, 2.5)
    """
    return spread(pairs[:, 1] / pairs[:, 0])
