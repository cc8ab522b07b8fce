"""Counts the bytes that torch allocates on the CPU."""

from collections.abc import Callable
from typing import Any

from torch.profiler import ProfilerActivity, profile


def peak_bytes(do: Callable[[], Any]) -> int:
    """The most bytes of tensors that lived at once of those made while ``do`` ran, the library's own included."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        do()
    assert seen.profiler is not None
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        most = max(most, live)
    return most
