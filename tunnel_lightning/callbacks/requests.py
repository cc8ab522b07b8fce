"""What a callback asks for in a profile: passes over images, and what to measure in them."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tunnel_lightning.measures import Measure
from tunnel_lightning.runs import Row
from tunnel_lightning.taps import Tap

Factory = Callable[[Tap], "Measure | None"]
States = dict[str, "list[Measure | None]"]


@dataclass(frozen=True)
class Source:
    """One set of images a profile reads: where it comes from and how the table calls it."""

    dataset: str
    split: str
    limit: int | None
    loader: Callable[[], Any] = field(compare=False)


@dataclass(frozen=True)
class Request:
    """One pass over ``source``, with one measure of each factory for every layer."""

    source: Source
    factories: Sequence[Factory]


Profile = Generator[Request, States, list[Row]]
