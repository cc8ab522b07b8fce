"""Networks cut, swapped, reset, frozen, and given exits."""

from tunnel_lightning.surgery.cut import Severed, costs_of, cut
from tunnel_lightning.surgery.exits import Exited, Exits, Overthinking, leave, overthinking
from tunnel_lightning.surgery.freeze import frozen
from tunnel_lightning.surgery.sections import Section, Sections, State, sections
from tunnel_lightning.surgery.states import compose, loaded, restored, rewind, snapshot

__all__ = [
    "Exited",
    "Exits",
    "Overthinking",
    "Section",
    "Sections",
    "Severed",
    "State",
    "compose",
    "costs_of",
    "cut",
    "frozen",
    "leave",
    "loaded",
    "overthinking",
    "restored",
    "rewind",
    "sections",
    "snapshot",
]
