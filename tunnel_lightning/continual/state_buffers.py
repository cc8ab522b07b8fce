"""Avalanche's memories of images, written down as pairs of task and index."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from tunnel_lightning.continual.state_origins import gathered, marked, origins

GROUPED = ("ExperienceBalancedBuffer", "ClassBalancedBuffer", "ClassBalancedBufferWithLogits")
KNOWN = ("ReservoirSamplingBuffer", *GROUPED)


def why_not(buffer: Any) -> str | None:
    """Why the state of a memory can't be written down; None if it can."""
    if type(buffer).__name__ in KNOWN and type(buffer).__module__.startswith("avalanche."):
        return None
    return f"the state of a {type(buffer).__name__} can't be written down as numbers"


def buffer_state(buffer: Any) -> dict[str, Any]:
    """What a memory keeps.

    Args:
        buffer: one of `KNOWN`.

    Returns:
        Its size; of a memory in groups also the groups in their order.
    """
    if type(buffer).__name__ == "ReservoirSamplingBuffer":
        return _reservoir(buffer)
    groups = [[key, _reservoir(group)] for key, group in buffer.buffer_groups.items()]
    return {"size": buffer.max_size, "groups": groups, "count": getattr(buffer, "_num_exps", None)}


def _reservoir(buffer: Any) -> dict[str, Any]:
    state = {"size": buffer.max_size, "images": origins(buffer.buffer), "weights": buffer._buffer_weights}
    if hasattr(buffer.buffer, "logits"):
        logits = list(buffer.buffer.logits)
        state["logits"] = torch.stack(logits) if logits else torch.zeros(0)
    return state


def set_buffer(buffer: Any, state: Mapping[str, Any], stream: Any, tasks: int) -> None:
    """Make a memory what it was.

    Args:
        buffer: an empty one of the same kind.
        state: from `buffer_state`.
        stream: Avalanche's ``train_stream``.
        tasks: learnt so far.
    """
    from avalanche.training.storage_policy import ReservoirSamplingBuffer

    buffer.max_size = state["size"]
    if type(buffer).__name__ == "ReservoirSamplingBuffer":
        _set_reservoir(buffer, state, stream)
        return
    for key, kept in state["groups"]:
        group = ReservoirSamplingBuffer(kept["size"])
        _set_reservoir(group, kept, stream)
        buffer.buffer_groups[key] = group
    if state["count"] is not None:
        buffer._num_exps = state["count"]
    if hasattr(buffer, "seen_classes"):
        # A set: places left over go to classes in its order, which comes from how it grew.
        for task in range(tasks):
            seen = dict.fromkeys(int(target) for target in marked(stream[task]).targets)
            buffer.seen_classes.update(seen.keys())


def _set_reservoir(buffer: Any, state: Mapping[str, Any], stream: Any) -> None:
    images = gathered(stream, state["images"])
    if "logits" in state:
        images = _with_logits(images, list(state["logits"]))
    buffer.buffer = images
    buffer._buffer_weights = state["weights"].clone()


def _with_logits(images: Any, logits: list[torch.Tensor]) -> Any:
    """The images with the scores they had, as DER keeps them."""
    from avalanche.benchmarks.utils import make_avalanche_dataset
    from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
    from avalanche.benchmarks.utils.flat_data import FlatData

    scores = TensorDataAttribute(
        FlatData([logits], discard_elements_not_in_indices=True), name="logits", use_in_getitem=True
    )
    return make_avalanche_dataset(images, data_attributes=[scores])
