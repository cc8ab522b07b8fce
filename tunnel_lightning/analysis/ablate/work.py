"""An ablation under way: its parts in turn, each kept as it is finished."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric

from tunnel_lightning.analysis.ablate.evaluate import Bench, Progress, Seen
from tunnel_lightning.analysis.ablate.interventions import (
    Cut,
    Intervention,
    Where,
    cuts_of,
    deletions,
    put_back,
    refuse_other,
    swaps,
)
from tunnel_lightning.analysis.ablate.options import KINDS, Options
from tunnel_lightning.analysis.ablate.retrain import PARTS, Retraining, classifier_of
from tunnel_lightning.analysis.ablate.structure import agreement, changes, inside
from tunnel_lightning.analysis.ablate.where import probed, rules_of, told
from tunnel_lightning.analysis.base import Subject, try_on
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part, Store, fingerprint, images_key, tensors_key
from tunnel_lightning.analysis.subject import load_run_subject
from tunnel_lightning.analysis.twins import untrained
from tunnel_lightning.analysis.weights import (
    checkpoints_of,
    epochs_done,
    load_weights,
    read_run_checkpoint,
    torn_in,
)
from tunnel_lightning.runs import package_versions
from tunnel_lightning.runs.ablation import Effect
from tunnel_lightning.surgery import Sections, State, restored, sections, snapshot
from tunnel_lightning.surgery.blocks import Block, residual_blocks

DRAWN = "drawn anew"
INITIAL = "initial"
"""Whence the first weights are: the run's own, or another draw."""

ASKED = "asked"
"""In the place of a rule: where whoever asks says that the tunnel starts."""

ANEW = 40_507
"""Added to the seed of weights that are drawn anew: that of the run would draw its own first weights again."""


class Work:
    """All that is done to a network.

    Args:
        subject: the network.
        own: its set.
        options: what is done.
        fabric: where.
        parts: folder of finished parts.
        progress: told how far the work is.

    Raises:
        ValueError: what was asked can't be done with this network.
    """

    def __init__(
        self,
        subject: Subject,
        own: ImageSet,
        options: Options,
        fabric: Fabric,
        parts: Path,
        progress: Progress,
    ) -> None:
        self.subject, self.own, self.options = subject, own, options
        self.fabric, self.store, self.progress = fabric, Store(parts), progress
        self.notes: list[str] = list(subject.notes)
        self.seconds: dict[str, float] = {}
        self._home = next((tensor.device for tensor in subject.model.parameters()), torch.device("cpu"))
        subject.model.to(fabric.device)
        try_on(replace(subject, notes=[]), own)
        self.bench = Bench(subject, own, options.images, options.bn_images, fabric.device, progress)
        if options.bn_images and not self.bench.has_statistics:
            self.note("the network has no normalisation layers with statistics, so none are estimated anew")
        self.parts: Sections = sections(
            subject.network, self.bench.example, list(options.taps.patterns), lambda x: subject.model(x)
        )
        self.now: State = snapshot(subject.network)
        self._key = fingerprint(
            package_versions(), options.settings() | {"swap": None, "retrain_epochs": 0}, subject.matches,
            tensors_key(self.now), images_key(own), str(subject.model),
        )  # fmt: skip

    def close(self) -> None:
        """Put the network back where it was."""
        self.subject.model.to(self._home)

    def note(self, text: str) -> None:
        """Add what a reader must know, once."""
        if text not in self.notes:
            self.notes.append(text)

    def wants(self, kind: str, lacks: str = "") -> bool:
        """Whether a kind is asked for and can be done; asked for by name it must be.

        Args:
            kind: the kind.
            lacks: why it can't be done; empty where it can.

        Raises:
            ValueError: it is asked for by name and can't be done.
        """
        if self.options.wants(kind) and lacks:
            if kind in self.options.only:
                raise ValueError(f"{kind}: {lacks}")
            self.note(f"no {kind}: {lacks}")
        return self.options.wants(kind) and not lacks

    def all(self) -> tuple[list[Effect], dict[str, Any]]:
        """Do everything, and give the rows and the summary."""
        subject, options = self.subject, self.options
        # What can't be done is said before anything is done.
        other = self._other()
        deletes = self.wants("delete", "" if self.blocks else self._no_blocks())
        first = self._first() if options.wants("reset") or options.wants("retrain") else {}
        resets = self.wants("reset", self._no_first(first))
        earlier = self._checkpoints()
        if options.wants("retrain"):
            classifier_of(subject)
        if options.tunnel:
            _ = self.cuts
        rows = self._finish("intact", lambda: self._rows(Where("intact"), {"kept": self.bench.intact}))
        if deletes:
            rows += self._finish(
                "delete", lambda: self._each("delete", deletions(subject.network, self.blocks))
            )
        for variant, then in first.items() if resets else ():
            rows += self._put_back("reset", variant, then)
        for variant, path in earlier.items():
            rows += self._put_back("rewind", variant, self._state_of(path))
        if other is not None:
            rows += self._swap(other.run_id, snapshot(other.network))
        if self.wants("retrain", self._no_first(first) or ("" if self.cuts else self._no_tunnel())):
            rows += self._retrain(next(iter(first.values())))
        return rows, self._summary(rows)

    # What there is to do it with ----------------------------------------------------------------------------

    @cached_property
    def blocks(self) -> list[Block]:
        """The residual blocks; none where they are not asked for."""
        if not self.options.wants("delete"):
            return []
        model = self.subject.model
        return residual_blocks(self.subject.network, self.bench.example, lambda x: model(x))

    def _no_blocks(self) -> str:
        name = type(self.subject.network).__name__
        return f"{name} has no residual blocks (no sums of a branch and what goes past it), so none can be deleted"

    @cached_property
    def rules(self) -> tuple[dict[str, Any], str]:
        """Where the tunnel starts by each rule, and whence that is known."""
        rows, own, whence = told(self.subject)
        if not rows:
            _, others = self.subject.sets()
            settings = fingerprint(asdict(self.options.taps), [images_key(images) for images in others])
            part = self._finish_part("where the tunnel starts", lambda: self._probe(others), settings)
            rows, own, whence = part.rows, self.own.name, "ridge probes fitted for this"
        return rules_of(rows, own), whence

    def _probe(self, others: Sequence[ImageSet]) -> Part:
        return Part(probed(self.subject, self.own, others, self.options, self.fabric, self.progress))

    @cached_property
    def cuts(self) -> list[Cut]:
        """The starts of the tunnel among the layers here.

        Raises:
            ValueError: the one that is asked for is none of the layers.
        """
        if asked := self.options.tunnel:
            if asked > len(self.parts):
                raise ValueError(
                    f"tunnel must be from 2 to {len(self.parts)}, the number of layers, got {asked}"
                )
            return [Cut(ASKED, asked)]
        found, notes = cuts_of(self.rules[0], self.parts)
        for each in notes:
            self.note(each)
        return found

    def _first(self) -> dict[str, State]:
        """The network's first weights by whence they are: those of the run, if it kept them, and drawn anew."""
        found: dict[str, State] = {}
        try:
            twin, origin = untrained(self.subject, ANEW + self.options.seed)
            found[DRAWN if origin == DRAWN else INITIAL] = snapshot(twin)
            if INITIAL in found:
                drawn, _ = untrained(replace(self.subject, run=None), ANEW + self.options.seed)
                found[DRAWN] = snapshot(drawn)
            else:
                self.note(
                    "the first weights of this network were not kept, so 'reset' is to weights drawn anew "
                    "(re-randomisation), not to those its training began with (re-initialisation)"
                )
        except ValueError as error:
            if not found:
                self._undrawn = str(error)
        return found

    _undrawn = ""

    def _no_first(self, first: dict[str, State]) -> str:
        return "" if first else self._undrawn

    def _checkpoints(self) -> dict[str, Path]:
        """Earlier checkpoints of the run by what they are called; none where none are kept."""
        run, step = self.subject.run, self.subject.step
        if not self.options.wants("rewind"):
            return {}
        found: dict[str, Path] = {}
        for path in torn_in(run) if run is not None else ():
            self.note(f"{path.name} can't be read, so nothing is rewound to it")
        for path in checkpoints_of(run) if run is not None else ():
            state = read_run_checkpoint(path)
            if int(state["global_step"]) < step:
                found[f"epoch {epochs_done(state)}"] = path
        lacks = "the network is no run, so it has no checkpoints" if run is None else ""
        if not found and not lacks:
            lacks = (
                f"{run} has no checkpoint before step {step}: train with `fit --keep_every N` to keep some"
            )
        return found if self.wants("rewind", lacks) else {}

    def _state_of(self, path: Path) -> State:
        """What a checkpoint of the run holds of the network."""
        network = self.subject.network
        with restored(network):
            load_weights([network], read_run_checkpoint(path)["state_dict"], path)
            return snapshot(network)

    def _other(self) -> Subject | None:
        """The run to swap with."""
        if not self.options.wants("swap"):
            return None
        assert self.options.swap is not None
        other = load_run_subject(self.options.swap, self.options.swap_ckpt, [])
        refuse_other(self.subject, other)
        same = other.run_id == self.subject.run_id and other.step == self.subject.step
        if same:
            raise ValueError(f"swap: {self.options.swap} is this run itself: give another")
        here, there = getattr(self.subject.data, "name", None), getattr(other.data, "name", None)
        if here != there:
            self.note(f"{other.run_id} was trained on {there} and not on {here}")
        return other

    # The work ----------------------------------------------------------------------------------------------

    def _put_back(self, kind: str, variant: str, then: State) -> list[Effect]:
        network, parts, now = self.subject.network, self.parts, self.now

        def make() -> list[Effect]:
            return self._each(kind, put_back(kind, network, parts, now, then, variant, self.cuts))

        return self._finish(f"{kind} {variant}", make, tensors_key(then))

    def _swap(self, name: str, then: State) -> list[Effect]:
        network, parts, now = self.subject.network, self.parts, self.now
        return self._finish(
            f"swap {name}",
            lambda: self._each("swap", swaps(network, parts, now, then, name)),
            tensors_key(then),
        )

    def _each(self, kind: str, interventions: Iterable[Intervention]) -> list[Effect]:
        rows: list[Effect] = []
        interventions = list(interventions)
        for done, each in enumerate(interventions):
            what = f"{kind}: {each.where.variant}" if kind != "delete" else kind
            self.progress(what, done, len(interventions))
            with each.done():
                seen = self.bench.under()
            rows += self._rows(each.where, seen)
        return rows

    def _rows(self, where: Where, seen: dict[str, Seen]) -> list[Effect]:
        return [
            where.row(statistics, quantity, *value)
            for statistics, each in seen.items()
            for quantity, value in self.bench.values(each).items()
        ]

    def _retrain(self, first: State) -> list[Effect]:
        options, rows = self.options, []
        cut = next(
            (c for rule in ("id95", "id98", "ood") for c in self.cuts if rule in c.rules), self.cuts[0]
        )
        job = Retraining(self.bench, self.parts, self.now, first, cut, options.retrain_epochs, options.seed)
        for part in PARTS:
            make = lambda p=part: self._rows(job.where(p), job.trained(p))  # noqa: E731
            rows += self._finish(
                f"retrain {part.name}", make,
                fingerprint(tensors_key(first), cut.start, options.retrain_epochs, part),
            )  # fmt: skip
        return rows

    def _no_tunnel(self) -> str:
        return "no rule finds a tunnel to train again; say where it starts with --tunnel"

    def _finish(self, name: str, make: Callable[[], list[Effect]], key: str = "") -> list[Effect]:
        part = self._finish_part(name, lambda: Part(extra={"rows": make()}), key)
        return [Effect(*row) for row in part.extra["rows"]]

    def _finish_part(self, name: str, make: Callable[[], Part], key: str = "") -> Part:
        """A part, from the store where it was finished before; kept there when it is done now."""
        cuts = [[cut.rules, cut.start] for cut in self.cuts] if name.startswith(("reset", "rewind")) else []
        key = fingerprint(self._key, name, key, cuts)
        found = self.store.load(name, key)
        if found is None:
            start = time.perf_counter()
            found = make()
            found.seconds[name] = time.perf_counter() - start
            self.store.save(name, key, found)
            self.progress(f"{found.seconds[name]:7.1f} s  {name}", 0, 0)
        else:
            self.progress(f"     kept  {name}", 0, 0)
        self.seconds |= found.seconds
        return found

    def _summary(self, rows: Sequence[Effect]) -> dict[str, Any]:
        subject, options = self.subject, self.options
        summary: dict[str, Any] = {
            "run_id": subject.run_id,
            "title": subject.title,
            "checkpoint": subject.checkpoint,
            "step": subject.step,
            "epoch": subject.epoch,
            "dataset": self.own.name,
            "classes": self.own.num_classes,
            "images": len(self.bench.labels),
            "settings": options.settings() | {"only": [kind for kind in KINDS if options.wants(kind)]},
            "layers": [{"index": s.index, "name": s.name} for s in self.parts.layers],
            "device": str(self.fabric.device),
            "versions": package_versions(),
            "seconds": self.seconds,
        }
        done = {row.kind for row in rows}
        if done & {"reset", "rewind", "swap", "retrain"}:
            rules, whence = ({}, ASKED) if self.options.tunnel else self.rules
            starts = {rule: cut.start for cut in self.cuts for rule in cut.rules.split(",")}
            summary["tunnel"] = {
                "whence": whence,
                "starts": starts,
                "notes": {rule: found.note for rule, found in rules.items()},
            }
        if "delete" in done:
            summary |= self._of_blocks(rows)
        if "retrain" in done:
            summary["retrained"] = {part.name: part.asks for part in PARTS}
        return summary | {"notes": self.notes}

    def _of_blocks(self, rows: Sequence[Effect]) -> dict[str, Any]:
        part = self._finish_part(
            "change by blocks",
            lambda: Part(extra={"cka": {str(k): v for k, v in changes(self.bench, self.blocks).items()}}),
        )
        cka = {int(index): value for index, value in part.extra["cka"].items()}
        main = "accuracy" if self.subject.matches else "agreement"
        whole = 1.0
        alone: dict[int, float] = {}
        for row in rows:
            if row.quantity == main and row.statistics == "kept":
                if row.kind == "intact":
                    whole = row.value
                elif row.kind == "delete" and row.scope == "block":
                    alone[row.first] = row.value
        lost = {index: whole - value for index, value in alone.items()}
        return {
            "blocks": [
                {
                    "index": block.index,
                    "name": block.name,
                    "stage": block.stage,
                    "shape": block.shape,
                    "projected": block.projected,
                    "cka": cka.get(block.index),
                }
                for block in self.blocks
            ],
            "structure": agreement(self.blocks, cka, lost, inside(self.subject, self.blocks)),
        }
