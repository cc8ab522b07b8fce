"""What can be done to a network without training it: a list of interventions for each kind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from torch import nn

from tunnel_lightning.analysis.base import Subject
from tunnel_lightning.runs import Tunnel
from tunnel_lightning.runs.ablation import Effect
from tunnel_lightning.surgery import Sections, State, compose, loaded, rewind
from tunnel_lightning.surgery.blocks import Block, without


class Where(NamedTuple):
    """What an intervention is done to; see :class:`~tunnel_lightning.runs.ablation.Effect`."""

    kind: str
    scope: str = ""
    layers: str = ""
    first: int = 0
    last: int = 0
    variant: str = ""

    def row(self, statistics: str, quantity: str, value: float, se: float, n: int) -> Effect:
        """A figure of it."""
        return Effect(*self, statistics, quantity, value, se, n)


@dataclass(frozen=True)
class Intervention:
    """Something done to a network for a while.

    Attributes:
        where: what it is done to.
        done: makes a context in which the network is changed; afterwards it is as it was.
    """

    where: Where
    done: Callable[[], AbstractContextManager[None]]


@dataclass(frozen=True)
class Cut:
    """Where the tunnel starts by one rule.

    Attributes:
        rules: those that agree, with commas between.
        start: section of its first layer.
    """

    rules: str
    start: int


def cuts_of(found: Mapping[str, Tunnel], parts: Sections) -> tuple[list[Cut], list[str]]:
    """The tunnel's start by each rule among the sections, and what a reader must know of the others.

    Example:
        >>> from tunnel_lightning.surgery import Section
        >>> layers = tuple(Section(i, f"l{i}", "", 1, (), ()) for i in (1, 2, 3))
        >>> nan = float("nan")
        >>> tunnel = Tunnel("id95", 3, "l3", 2, nan, nan, 9, (), "test", "")
        >>> none = tunnel._replace(start=None, layer=None, note="no tunnel: none")
        >>> cuts_of({"id95": tunnel, "ood": none}, Sections(layers, Section(4, "head", "", 1, (), ())))
        ([Cut(rules='id95', start=3)], ['by the rule ood there is no tunnel to reset: no tunnel: none'])
    """
    index = {section.name: section.index for section in parts.layers}
    starts: dict[int, list[str]] = {}
    notes = []
    for rule, tunnel in found.items():
        if tunnel.start is None or tunnel.layer is None:
            notes.append(f"by the rule {rule} there is no tunnel to reset: {tunnel.note}")
        elif tunnel.layer not in index:
            notes.append(
                f"by the rule {rule} the tunnel starts at {tunnel.layer}, which is none of the layers here: take the "
                "layers that were probed (--taps.layers)"
            )
        elif index[tunnel.layer] > 1:
            starts.setdefault(index[tunnel.layer], []).append(rule)
    return [Cut(",".join(rules), start) for start, rules in sorted(starts.items())], notes


def named(parts: Sections, first: int, last: int) -> str:
    """Names of sections in words.

    Example:
        >>> from tunnel_lightning.surgery import Section
        >>> layers = tuple(Section(i, f"l{i}", "", 1, (), ()) for i in (1, 2, 3))
        >>> parts = Sections(layers, Section(4, "head", "", 1, (), ()))
        >>> named(parts, 2, 3), named(parts, 2, 2)
        ('l2 to l3', 'l2')
    """
    return parts[first].name if first == last else f"{parts[first].name} to {parts[last].name}"


def deletions(network: nn.Module, blocks: Sequence[Block]) -> Iterator[Intervention]:
    """Each residual block alone, and the last ones of each stage, one more at a time (Nguyen et al., 2021)."""
    for block in blocks:
        where = Where("delete", "block", block.name, block.index, block.index, f"stage {block.stage}")
        yield Intervention(where, partial(without, network, [block]))
    for stage in sorted({block.stage for block in blocks}):
        inside = [block for block in blocks if block.stage == stage]
        for count in range(1, len(inside) + 1):
            gone = inside[-count:]
            names = gone[0].name if count == 1 else f"{gone[0].name} to {gone[-1].name}"
            where = Where("delete", "stage", names, gone[0].index, gone[-1].index, f"stage {stage}")
            yield Intervention(where, partial(without, network, gone))


def put_back(
    kind: str, network: nn.Module, parts: Sections, now: State, then: State, variant: str, cuts: Sequence[Cut]
) -> Iterator[Intervention]:
    """Layers put back to what they were: each alone, each with all behind it, every tunnel and extractor.

    Statistics of normalisation layers go back with their layer; the head stays as it is.

    Args:
        kind: ``reset`` or ``rewind``; of a rewind not all behind each layer.
        network: what the layers are of.
        parts: its sections.
        now: its state.
        then: its state before.
        variant: whence that is.
        cuts: where the tunnel starts.
    """

    def made(scope: str, first: int, last: int, variant: str) -> Intervention:
        where = Where(kind, scope, named(parts, first, last), first, last, variant)
        return Intervention(where, lambda: loaded(network, rewind(now, then, parts, range(first, last + 1))))

    count = len(parts)
    for index in range(1, count + 1):
        yield made("layer", index, index, variant)
    for index in range(1, count + 1) if kind == "reset" else ():
        yield made("from", index, count, variant)
    for cut in cuts:
        yield made("tunnel", cut.start, count, f"{variant}; {cut.rules}")
        yield made("extractor", 1, cut.start - 1, f"{variant}; {cut.rules}")


def swaps(network: nn.Module, parts: Sections, own: State, other: State, name: str) -> Iterator[Intervention]:
    """Each layer of another run in this one, and at every cut either extractor under the other's tunnel and head.

    Args:
        network: what the layers are of.
        parts: its sections.
        own: its state, 1.
        other: the other run's, 2.
        name: of the other run.
    """
    for index in range(1, len(parts) + 1):
        where = Where("swap", "layer", named(parts, index, index), index, index, name)
        yield Intervention(where, partial(loaded, network, rewind(own, other, parts, [index])))
    for cut in range(1, len(parts) + 1):
        layers = f"cut behind {parts[cut].name}"
        for variant, first, second in (("E1T2", own, other), ("E2T1", other, own)):
            where = Where("swap", "cut", layers, cut, cut, variant)
            yield Intervention(where, partial(loaded, network, compose(first, second, parts, cut)))


def refuse_other(subject: Subject, other: Subject) -> None:
    """Refuse a run whose layers can't take the places of this one's.

    Raises:
        ValueError: it says what differs.
    """
    here, there = ({k: tuple(v.shape) for k, v in s.network.state_dict().items()} for s in (subject, other))
    if type(subject.network) is not type(other.network):
        why = f"one is {type(other.network).__name__} and one {type(subject.network).__name__}"
    elif here.keys() != there.keys():
        odd = next(iter(sorted(here.keys() ^ there.keys())))
        why = f"{odd} is in one of them alone"
    elif differ := [key for key in here if here[key] != there[key]]:
        why = f"{differ[0]} is {list(there[differ[0]])} and not {list(here[differ[0]])}"
    else:
        return
    raise ValueError(
        f"swap: {other.run_id} is {other.title} and {subject.run_id} is {subject.title}, so their layers can't be "
        f"swapped ({why}): give a run of the same architecture"
    )
