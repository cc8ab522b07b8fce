"""Linear classifiers at intermediate layers, trained beside the network or with it, and leaving early by them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.hooks import RemovableHandle

from tunnel_lightning.taps import Tap, quiet, tap, untouched_rng
from tunnel_lightning.taps.costs import plain
from tunnel_lightning.taps.hooks import first_tensor
from tunnel_lightning.taps.pooling import Layout, hints_of, layout_of, pool
from tunnel_lightning.taps.spec import Pool


class Exited(NamedTuple):
    """What a network with exits answers.

    Attributes:
        answer: class indices ``[B]``.
        exit: which exit gave each, ``[B]``, from 0; E is the network's own output.
        confidence: its largest softmax probability, ``[B]``.
        flops: what each image cost, ``[B]``, floating-point operations.
    """

    answer: Tensor
    exit: Tensor
    confidence: Tensor
    flops: Tensor


class Exits(nn.Module):
    """A network with a linear classifier (an exit) at each of several layers.

    After Szatkowski et al., "Improving Continual Learning Performance and Efficiency with Auxiliary Classifiers",
    ICML 2025 (arXiv 2403.07404). A forward gives the network's own scores alone, so that whatever trains the
    network trains this; the exits' scores of the same forward are in `last`, and their loss is the caller's to add:
    ``loss + sum(cross_entropy(scores, y) for scores in exits.last[:-1])``. With `detached` the exits learn from the
    layers but the layers not from them: the network's weights are bitwise those it would have without. (An optimizer
    that clips the gradient's norm over all parameters, or weighs them together in another way, must be given the
    exits apart.)

    A network with a head for each of several tasks has exits with a linear head for each, of which those of the task
    asked about answer. It is asked by ``forward_single_task(x, label)``, and a subclass says what a batch of several
    tasks is. All heads are there from the start and stand still until their task is learnt. Of a network whose head
    grows the exits too have all outputs from the start, and put out as many as it has by then.

    Making it draws from no global random state. Hooks are on the network only while it runs, so copies carry none.

    Args:
        backbone: any network that gives scores [B, C].
        layers: where the exits are, as in `TapSpec`.
        example: a batch of the network's input [B, ...].
        pool: how a layer's output becomes features, as in `TapSpec`; not ``gram``.
        detached: whether gradients end at the exits.
        seed: of the exits' first weights.
        outputs: of each exit; None for as many as the network has now.
        tasks: labels of the tasks with a head each; none for one head over all.

    Attributes:
        layers: the taps the exits are at, in the order of execution.
        heads: a linear module for each, or one for each task by its label; their hooks never run, so taps do not take
            them for layers.
        costs: floating-point operations of one image up to each exit, the exits before it included; E + 1 of them,
            the last is the whole network with all exits (of one task).
        last: scores of the last forward, E + 1 of ``[B, C]``, the network's own last; empty before it, and in a
            copy.

    Raises:
        ValueError: no such layers, pool ``gram``, or a network that gives no scores [B, C].

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> network = MLP(depth=3, width=8, num_classes=4, input_shape=(1, 4, 4))
        >>> exits = Exits(network, ["layers.0.act", "layers.1.act"], torch.zeros(1, 1, 4, 4))
        >>> x = torch.randn(5, 1, 4, 4)
        >>> torch.equal(exits(x), network(x)), [tuple(scores.shape) for scores in exits.last]
        (True, [(5, 4), (5, 4), (5, 4)])
        >>> exits.costs
        (320, 512, 704)
    """

    def __init__(
        self,
        backbone: nn.Module,
        layers: str | list[str],
        example: Tensor,
        pool: Pool = "2x2",
        detached: bool = True,
        seed: int = 0,
        outputs: int | None = None,
        tasks: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if pool == "gram":
            raise ValueError("Exits: pool 'gram' gives no features; choose 2x2, avg, flatten or token.")
        self.backbone = backbone
        self.detached = detached
        self.tasks = tuple(tasks)
        self.layers = self._find(layers, example, pool)
        self._pool: Pool = pool
        self._layouts = self._see(example)
        with quiet(backbone):
            scores = self._run(example[:1], self._any_task)
        if not isinstance(scores, Tensor) or scores.ndim != 2:
            raise ValueError(f"Exits: {type(backbone).__name__} gives no scores [B, C] to add exits to.")
        like = next((p for p in backbone.parameters() if p.is_floating_point()), scores)
        with untouched_rng():
            torch.manual_seed(seed)
            self.heads = nn.ModuleList(
                self._head(place.dim, outputs or scores.shape[1]) for place in self.layers
            )
        self.heads.to(like.device, like.dtype)
        self.costs = self._count(example)
        self.last: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        """The network's own scores [B, C]; those of the exits are then in `last`."""
        self.last = self.all_scores(x)
        return self.last[-1]

    def all_scores(self, x: Tensor, task: int | None = None) -> list[Tensor]:
        """Scores of every exit and, last, of the network itself: E + 1 of [B, C].

        Args:
            x: images [B, ...].
            task: whose heads answer, where tasks have a head each.

        Raises:
            RuntimeError: a layer with an exit did not run.
        """
        features: list[Tensor | None] = [None] * len(self.layers)

        def keep(number: int, output: Tensor) -> None:
            # A copy where gradients go on: the network may change its output in place.
            output = output.detach() if self.detached else output.clone()
            features[number] = pool(output, self._layouts[number], self._pool)

        final = self._observed(x, keep, task)
        scores = []
        for place, head, found in zip(self.layers, self._heads_of(task), features, strict=True):
            if found is None:
                raise RuntimeError(f"Exits: {place.name} did not run, so the exit there has no features.")
            of_all = F.linear(found.to(head.weight.dtype), head.weight, head.bias)
            scores.append(self._shown(of_all[:, : final.shape[1]], task))
        return [*scores, final]

    def predict(self, x: Tensor, threshold: float | None = None, task: int | None = None) -> Exited:
        """Answer by the first exit that is sure enough, in evaluation mode and without gradients.

        Confidence is the largest softmax probability. Images of which no exit is sure get the answer of the most
        confident one, and so do all without a threshold; both cost the whole network. All exits are computed: the
        costs are what leaving early would take, not what this call took.

        Args:
            x: images [B, ...].
            threshold: the confidence to exceed; None asks for the most confident exit.
            task: whose heads answer, where tasks have a head each.
        """
        with quiet(self):
            return leave(torch.stack(self.all_scores(x, task)), threshold, self.costs)

    # How a network with several heads differs ------------------------------------------------------------------

    @property
    def _trunk(self) -> nn.Module:
        """The module that the layers are named in."""
        return self.backbone

    @property
    def _any_task(self) -> int | None:
        """A task to look at the network by."""
        return self.tasks[0] if self.tasks else None

    def _find(self, layers: str | list[str], example: Tensor, pool: Pool) -> tuple[Tap, ...]:
        """The taps the exits are at."""
        with tap(self.backbone, example, layers, pool) as taps:
            return tuple(taps.layers)

    def _run(self, x: Tensor, task: int | None) -> Tensor:
        """The network's own scores."""
        network: Any = self.backbone
        return network(x) if task is None else network.forward_single_task(x, task)

    def _head(self, width: int, outputs: int) -> nn.Module:
        if not self.tasks:
            return nn.Linear(width, outputs)
        return nn.ModuleDict({str(task): nn.Linear(width, outputs) for task in self.tasks})

    def _heads_of(self, task: int | None) -> list[nn.Linear]:
        found: list[Any] = [head if task is None else head[str(task)] for head in self.heads]  # type: ignore[index]
        return found

    def _shown(self, scores: Tensor, task: int | None) -> Tensor:
        """An exit's scores, as they count."""
        return scores

    # -----------------------------------------------------------------------------------------------------------

    def _observed(self, x: Tensor, keep: Any, task: int | None) -> Tensor:
        """Run the network and hand over the outputs of the layers, by number."""
        handles: list[RemovableHandle] = []
        seen: dict[str, int] = {}
        by_module: dict[str, list[tuple[int, Tap]]] = {}
        for number, place in enumerate(self.layers):
            by_module.setdefault(place.module, []).append((number, place))

        def hook_of(path: str) -> Any:
            def hook(module: nn.Module, args: Any, output: Any) -> None:
                seen[path] = seen.get(path, 0) + 1
                for number, place in by_module[path]:
                    if place.call == seen[path] and (found := first_tensor(output)) is not None:
                        keep(number, found)

            return hook

        try:
            for path in by_module:
                handles.append(self._trunk.get_submodule(path).register_forward_hook(hook_of(path)))
            return self._run(x, task)
        finally:
            for handle in handles:
                handle.remove()

    def _see(self, example: Tensor) -> list[Layout]:
        hints = hints_of(self._trunk)
        layouts: dict[int, Layout] = {}

        def keep(number: int, output: Tensor) -> None:
            module = self._trunk.get_submodule(self.layers[number].module)
            layouts[number] = layout_of(module, tuple(output.shape), hints, len(output) // 2)

        two = example[:2] if len(example) > 1 else torch.cat([example, example])
        with plain(self.backbone):
            self._observed(two, keep, self._any_task)
        return [layouts[number] for number in range(len(self.layers))]

    def _count(self, example: Tensor) -> tuple[int, ...]:
        reached: dict[int, int] = {}
        counter = FlopCounterMode(display=False)
        with plain(self.backbone), counter:
            keep = lambda number, _: reached.update({number: counter.get_total_flops()})  # noqa: E731
            self._observed(example[:1], keep, self._any_task)
        heads, found = 0, []
        for number, head in enumerate(self._heads_of(self._any_task)):
            heads += 2 * head.in_features * head.out_features
            found.append(reached[number] + heads)
        return (*found, counter.get_total_flops() + heads)

    def __getstate__(self) -> dict[str, Any]:
        """Without the last scores: they hang on a graph, which cannot be copied."""
        return {**self.__dict__, "last": []}


def leave(scores: Tensor, threshold: float | None, costs: tuple[int, ...] | None = None) -> Exited:
    """Which exit answers for each image; see `Exits.predict`.

    Args:
        scores: of every exit and, last, of the network, ``[E + 1, B, C]``.
        threshold: the confidence to exceed; None asks for the most confident exit.
        costs: of leaving at each, E + 1 of them; None counts every image 0.

    Raises:
        ValueError: another number of costs.

    Example:
        >>> scores = torch.tensor([[[3.0, 0.0], [0.1, 0.0]], [[0.0, 2.0], [0.0, 2.0]]])
        >>> leave(scores, 0.9, (10, 25)).exit, leave(scores, 0.9, (10, 25)).flops
        (tensor([0, 1]), tensor([10, 25]))
        >>> leave(scores, None).answer
        tensor([0, 1])
    """
    confidence, answers = scores.float().softmax(-1).max(-1)
    if costs is None:
        costs = (0,) * len(scores)
    if len(costs) != len(scores):
        raise ValueError(
            f"leave: {len(costs)} costs for {len(scores)} exits; give one of each, the network's last."
        )
    chosen = confidence.argmax(0)
    left = torch.full_like(chosen, len(scores) - 1)
    if threshold is not None:
        sure = confidence > threshold
        first = sure.int().argmax(0)
        chosen = torch.where(sure.any(0), first, chosen)
        left = torch.where(sure.any(0), first, left)
    at = chosen[None]
    return Exited(
        answers.gather(0, at)[0],
        chosen,
        confidence.gather(0, at)[0],
        torch.tensor(costs, device=chosen.device)[left],
    )


class Overthinking(NamedTuple):
    """What a network's last layers spoil; fractions of images.

    Attributes:
        any: some exit or the network itself is right.
        final: the network itself is right.
        overthinking: `any` less `final`: an exit is right and the network is not.
        unique: for each exit, it alone is right, ``[E]``.
    """

    any: float
    final: float
    overthinking: float
    unique: tuple[float, ...]


def overthinking(scores: Tensor, target: Tensor) -> Overthinking:
    """How many images an exit had right and the network's output lost (Kaya et al., 2019; Szatkowski et al., 2025).

    Args:
        scores: of every exit and, last, of the network, ``[E + 1, N, C]``.
        target: class indices ``[N]``.

    Raises:
        ValueError: another number of images, or none.

    Example:
        >>> scores = torch.eye(2)[torch.tensor([[0, 0, 1], [0, 1, 1]])]
        >>> found = overthinking(scores, torch.tensor([0, 0, 1]))
        >>> f"{found.any:.2f} {found.final:.2f} {found.overthinking:.2f} {found.unique[0]:.2f}"
        '1.00 0.67 0.33 0.33'
    """
    if scores.ndim != 3 or not len(target) or scores.shape[1] != len(target):
        raise ValueError(
            f"overthinking: scores {list(scores.shape)} and labels {list(target.shape)} are not of the same images; "
            "give scores [exits, images, classes] and labels [images]."
        )
    right = scores.argmax(-1) == target.to(scores.device)
    either = float(right.any(0).double().mean())
    final = float(right[-1].double().mean())
    alone = right[:-1] & (right.sum(0) == 1)
    return Overthinking(either, final, either - final, tuple(alone.double().mean(1).tolist()))
