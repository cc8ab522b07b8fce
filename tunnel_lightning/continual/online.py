"""Online probes along a stream: trained on what the strategy is shown, as it is shown, and never fitted again."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tunnel_lightning.continual.models import backbone_in
from tunnel_lightning.continual.places import attach
from tunnel_lightning.continual.stream import Stream, Task
from tunnel_lightning.measures import LinearHead, ProbeBank
from tunnel_lightning.taps import Tap, Taps, TapSpec
from tunnel_lightning.taps.hooks import Inert


class Answers:
    """The classes over the stream, from what a strategy has at hand: task labels and targets.

    In a domain-incremental stream the same label and target are another class in every task; there an answer is what
    the network itself is to say.

    Args:
        stream: its tasks.

    Attributes:
        count: how many there are.

    Example:
        >>> from types import SimpleNamespace
        >>> task = lambda label, classes: SimpleNamespace(label=label, outputs=(0, 1), classes=classes)
        >>> heads = Answers(SimpleNamespace(tasks=[task(0, (0, 1)), task(1, (2, 3))], num_classes=4))
        >>> heads(torch.tensor([1, 0, 1]), torch.tensor([1, 1, 0]))
        tensor([3, 2, 1])
        >>> domains = Answers(SimpleNamespace(tasks=[task(0, (0, 1)), task(0, (2, 3))], num_classes=4))
        >>> domains.count, domains(torch.tensor([1, 0]), torch.tensor([0, 0]))
        (2, tensor([1, 0]))
    """

    def __init__(self, stream: Stream) -> None:
        classes: dict[tuple[int, int], set[int]] = {}
        for task in stream.tasks:
            for output, each in zip(task.outputs, task.classes, strict=True):
                classes.setdefault((task.label, output), set()).add(each)
        if all(len(found) == 1 for found in classes.values()):
            self.count = stream.num_classes
            numbers = {pair: found.pop() for pair, found in classes.items()}
        else:
            self.count = len(classes)
            numbers = {pair: number for number, pair in enumerate(sorted(classes))}
        labels, outputs = (max(column) + 1 for column in zip(*classes, strict=True))
        self._table = torch.full((labels, outputs), -1)
        for pair, number in numbers.items():
            self._table[pair] = number

    def __call__(self, y: Tensor, labels: Tensor) -> Tensor:
        """Answers ``[B]`` of targets ``[B]`` and task labels ``[B]``; -1 for a target that no task has."""
        self._table = self._table.to(y.device)
        labels = labels.long()  # GenerativeReplay's are floating-point numbers
        known = (y >= 0) & (y < self._table.shape[1]) & (labels >= 0) & (labels < len(self._table))
        return torch.where(known, self._table[labels * known, y * known], -1)


class StreamProbes:
    """A linear probe on every layer, trained on each batch of the strategy on detached features.

    After Szatkowski et al. (arXiv 2403.07404, ICML 2025), whose intermediate classifiers are trained only on what the
    stream shows, replayed images included where the strategy replays. It is a plugin for a strategy, by the names of
    its methods, and leaves the training as it is to the last bit: hooks are on the network only during its forward
    pass, so that no copy of it (a teacher) holds any; features are detached; no random number is drawn.

    Passes that other plugins make are told from the strategy's by what the network is shown. One with several heads
    is shown a batch task by task; the parts are put together again. Of several views of a batch (SCR) the first is
    used. A strategy whose loop does not announce its forward pass, or that shows something else than its batch, can't
    be followed: `missed` counts.

    Args:
        stream: what is learnt.
        layers: where, as `find_layers` found them.
        spec: how their features are pooled.
        lr: Adam's learning rate.
        every_n_steps: learn from the batches of every n-th step, the first included.

    Attributes:
        bank: the probes; None before the first batch.
        missed: batches that could not be used.
    """

    def __init__(
        self, stream: Stream, layers: Sequence[Tap], spec: TapSpec, lr: float = 3e-3, every_n_steps: int = 2
    ) -> None:
        self.answers = Answers(stream)
        self.layers, self.spec, self.lr, self.every_n_steps = list(layers), spec, lr, every_n_steps
        self.bank: ProbeBank | None = None
        self.steps = self.missed = 0
        self._taps: Taps | None = None
        self._network: nn.Module | None = None
        self._passes: _Passes | None = None
        self._handles: list[RemovableHandle] = []
        self._warned = False

    # Called by the strategy -------------------------------------------------------------------------------------

    def before_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """The network may be another one, or have other modules, from here on."""
        self._forget()

    def before_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Hooks on, every n-th step."""
        self._hooks_off()
        self.steps += 1
        if (self.steps - 1) % self.every_n_steps:
            return
        network = backbone_in(strategy.model)
        if self._taps is None or network is not self._network:
            self._forget()
            self._taps, self._network = attach(strategy.model, self.layers, self.spec, strategy.mb_x), network
        else:
            self._taps.attach()  # they are made once a task: that takes as long as a small forward pass
        self._passes = _Passes(self._taps)
        # The backbone's own hook tells the parts of a batch apart; it is not called where only its features are.
        for module in dict.fromkeys((network, strategy.model)):
            self._handles.append(module.register_forward_hook(self._passes))
        self._taps.arm()

    def after_forward(self, strategy: Any, **kwargs: Any) -> None:
        """Hooks off, and one step of all probes."""
        passes = self._passes
        self._hooks_off()
        if passes is None:
            return
        x, y = strategy.mb_x, strategy.mb_y
        labels = strategy.mbatch[-1] if len(strategy.mbatch) > 2 else torch.zeros_like(y)
        answers = self.answers(y, labels)
        parts = [x]
        if hasattr(strategy.model, "forward_single_task"):
            tasks = labels.unique()
            parts = [x[labels == task] for task in tasks]
            answers = torch.cat([answers[labels == task] for task in tasks])
        self.learn(passes.of(parts), answers)

    def after_training_exp(self, strategy: Any, **kwargs: Any) -> None:
        """Hold on to no network between the tasks."""
        self._forget()

    # ----------------------------------------------------------------------------------------------------------

    def learn(self, features: Mapping[str, Tensor], answers: Tensor) -> None:
        """One step on a batch.

        Args:
            features: ``[B, D]`` of every layer, or of several views of the batch after one another.
            answers: ``[B]``, -1 for images to leave out.
        """
        size, known = len(answers), answers >= 0
        fits = size and all(
            tap.name in features and len(features[tap.name]) % size == 0 for tap in self.layers
        )
        if not fits or not known.any():
            self.missed += 1
            return
        shown = {tap.name: features[tap.name][:size] for tap in self.layers}
        if not known.all():
            shown, answers = {name: rows[known] for name, rows in shown.items()}, answers[known]
        if self.bank is None:
            self.bank = self._new_bank()
        if next(self.bank.parameters()).device != answers.device:  # a state that was read waits on the CPU
            self.bank.to(answers.device)
        self.bank.step(shown, answers)

    def head(self, layer: str) -> LinearHead | None:
        """The probe of a layer as it is now, on the CPU; None if it has learnt from nothing yet."""
        if self.bank is None:
            return None
        head = self.bank.head(layer)
        return LinearHead(head.weight.cpu(), head.bias.cpu())

    def target(self, task: Task) -> Tensor:
        """What the probes are to answer for a task's test images, ``[N]``."""
        return self.answers(task.test.y, torch.full_like(task.test.y, task.label))

    def warn_if_blind(self) -> None:
        """Say so, once, where the strategy was trained and the probes learnt nothing."""
        if self.bank is None and not self._warned:
            self._warned = True
            why = (
                "what the network was shown was not the batch at hand"
                if self.missed
                else "its loop does not announce its forward passes"
            )
            warnings.warn(
                f"The online probes have learnt nothing from this strategy ({why}), so there are none.",
                stacklevel=3,
            )

    def state_dict(self) -> dict[str, Any]:
        """The probes and their optimizer, as tensors and plain values."""
        return {
            "bank": None if self.bank is None else self.bank.state_dict(),
            "steps": self.steps,
            "missed": self.missed,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned."""
        self.steps, self.missed, self.bank = state["steps"], state["missed"], None
        if state["bank"] is not None:
            self.bank = self._new_bank()
            self.bank.load_state_dict(state["bank"])

    def _new_bank(self) -> ProbeBank:
        return ProbeBank({tap.name: tap.dim for tap in self.layers}, self.answers.count, lr=self.lr)

    def _hooks_off(self) -> None:
        if self._taps is not None:
            self._taps.remove()
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._passes = None

    def _forget(self) -> None:
        self._hooks_off()
        self._taps = self._network = None


class _Passes:
    """What the network was shown and what its layers made of it, pass by pass: a forward hook.

    Args:
        taps: on the layers, armed.
    """

    def __init__(self, taps: Taps) -> None:
        self._taps = taps
        self._seen: list[tuple[Any, dict[str, Tensor]]] = []

    def __call__(self, module: nn.Module, args: Any, output: Any) -> None:
        """Take what this pass left in the taps."""
        with suppress(RuntimeError):  # nothing: a module inside has taken it already
            self._seen.append((args[0], self._taps.take()))

    def __deepcopy__(self, memo: dict[int, Any]) -> Inert:
        return Inert()

    def of(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        """The features of these images, one part after the other; empty if one of them was not shown."""
        found = []
        for part in parts:
            shown = (
                each
                for x, each in self._seen
                if x is part or (x.shape == part.shape and torch.equal(x, part))
            )
            found.append(next(shown, {}))
        if len(found) == 1 or not all(found):
            return found[0] if all(found) else {}
        return {name: torch.cat([each[name] for each in found]) for name in found[0]}
