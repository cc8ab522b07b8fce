"""Capture what the layers of a network put out, by hooks that pool and detach on the spot."""

from __future__ import annotations

from types import TracebackType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tunnel_lightning.taps.additions import Additions, NoAdditions, is_compiled
from tunnel_lightning.taps.costs import costs, plain
from tunnel_lightning.taps.hooks import Hook, State
from tunnel_lightning.taps.pooling import Layout, choose_columns, hints_of, pool
from tunnel_lightning.taps.resolve import ADDITION, KINDS, Candidate, candidates, is_weighted
from tunnel_lightning.taps.spec import Pool, Role, Tap, TapSpec

MAX_INPUT_FEATURES = 3072
_CLASSIFIERS = frozenset(("classifier", "head", "fc", "logits"))


class Taps:
    """Hooks on the chosen layers of a network, and what they captured.

    Hooks are registered at once and disarmed: they do nothing until `arm()`. The first forward after it
    (`dry_run`, or a real one ended by `take`) tells which modules run, in which order and how often; only
    then are `layers` known. Calls beyond those known, and all calls inside a backward pass, are ignored: they
    are recomputation under activation checkpointing. With `torch.compile`, make the taps before the first
    compiled call (activation checkpointing inside it then breaks the graph, so not with `fullgraph=True`). A
    copy of the network (deepcopy, pickle) does not capture.

    Args:
        model: Any network. It is not changed, but for the hooks.
        spec: Which layers, and how they are pooled.

    Raises:
        ValueError: A kind or glob matches no module.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 6), nn.ReLU(inplace=True), nn.Linear(6, 2))
        >>> taps = Taps(model)
        >>> taps.dry_run(torch.zeros(1, 8))
        >>> [layer.name for layer in taps.layers], taps.head.name
        (['0'], '2')
        >>> taps.arm()
        >>> _ = model(torch.ones(5, 8))
        >>> taps.take()["0"].shape
        torch.Size([5, 6])
        >>> taps.remove()
    """

    def __init__(self, model: nn.Module, spec: TapSpec | None = None) -> None:
        self.spec = spec or TapSpec()
        self.model: nn.Module = getattr(model, "_orig_mod", model)
        self._state = State(self.spec.pool)
        self._taps: list[tuple[Tap, Hook]] = []
        self._head: Tap | None = None
        self._input: Tap | None = None
        self._input_columns: Tensor | None = None
        wanted = candidates(self.model, self.spec)
        ids = {id(candidate.module) for candidate in wanted}
        # The head is looked for among all convolution and linear modules, wanted or not.
        others = [
            Candidate(path, module)
            for path, module in self.model.named_modules()
            if is_weighted(module) and id(module) not in ids
        ]
        hints = hints_of(self.model)
        self._hooks = [
            Hook(number, candidate, self._state, number < len(wanted), hints)
            for number, candidate in enumerate(wanted + others)
        ]
        self._additions: Additions | None = None
        if ADDITION in self.spec.patterns:
            self._additions = Additions(self._state, self._hooks, hints)
            self._compiled = model is not self.model
        self._handles: dict[int, RemovableHandle] = {}
        self.attach()

    @property
    def ready(self) -> bool:
        """Whether the first forward has told the layers."""
        return not self._state.discovering

    @property
    def layers(self) -> list[Tap]:
        """The taps in order of execution, the head left out unless a glob names it."""
        self._known()
        return [tap for tap, _ in self._taps]

    @property
    def head(self) -> Tap | None:
        """The classifier, or None for a network without one; its index follows that of the last layer."""
        self._known()
        return self._head

    @property
    def input(self) -> Tap:
        """The raw pixels, index 0."""
        if self._input is None:
            raise RuntimeError(
                "The shape of the input is not known yet; call dry_run or features_of_input first."
            )
        return self._input

    def dry_run(self, example: Tensor) -> None:
        """Find layers, order and dimensions by one quiet forward over the first images of `example` [B, ...].

        It runs in evaluation mode, uncompiled, without gradients. Random states, the statistics of
        normalisation layers, train/eval flags and gradients stay as they are; autocast is the caller's.

        Raises:
            ValueError: A glob matches modules of which none ran or gave a tensor.
        """
        # Two images: a leading size of one could not be told from a batch.
        two = example[:2] if len(example) > 1 else torch.cat([example, example])
        self._state.discovering = True
        self.attach()
        self.arm()
        self._state.batch = 2
        try:
            with plain(self.model):
                self.model(two)
                self.take()
        finally:
            self.disarm()
        self._see_input(example)

    def arm(self) -> None:
        """Capture from now on; what was captured before is dropped.

        Raises:
            NoAdditions: Additions are to be found in a network under torch.compile.
        """
        self._clear()
        if self._additions is not None:
            if self._compiled or is_compiled(self.model):
                raise NoAdditions(
                    "taps.layers: kind 'addition' cannot see into a network under torch.compile; run it uncompiled "
                    "or choose another kind."
                )
            self._additions.start()
        self._state.armed = True

    def disarm(self) -> None:
        """Stop capturing; what was captured and not taken is dropped."""
        self._state.armed = False
        if self._additions is not None:
            self._additions.stop()
        self._clear()

    def take(self) -> dict[str, Tensor]:
        """The features of the forward since `arm` (or the last `take`).

        The taps stay armed. With CUDA graphs (`mode="reduce-overhead"`) the features are overwritten by the
        next forward: use or copy them before.

        Returns:
            Features [B, D] by layer name, in order of execution; detached, averages in float32, the rest in
            the type the network computes in; with `pool="gram"` Gram matrices [B, B]. A layer that this
            forward skipped is missing.

        Raises:
            RuntimeError: Not armed, or nothing ran, or no addition where they were asked for.
            ValueError: First forward only: a glob matches modules of which none ran or gave a tensor.
        """
        if not self._state.armed:
            raise RuntimeError("Taps.take: the taps are not armed; call arm() before the forward.")
        try:
            first = self._state.discovering
            if first:
                self._discover()
            features: dict[str, Tensor] = {}
            for tap, hook in self._taps:
                if len(hook.out) >= tap.call and (x := hook.out[tap.call - 1]) is not None:
                    features[tap.name] = self._columns_at_home(hook, tap.call - 1, x, first)
            if not features:
                self._nothing_ran()
            if self._additions is not None and not any(hook.out for hook in self._additions.sums.values()):
                raise RuntimeError(
                    "Taps.take: no residual addition was seen since arm(); kind 'addition' needs a network that "
                    "runs uncompiled and in the same thread."
                )
            return features
        finally:
            self._clear()

    def features_of_input(self, x: Tensor) -> Tensor:
        """The raw pixels as features [B, D], at most 3,072 columns of them, the same in every run.

        Args:
            x: A batch of the network's input [B, ...].
        """
        self._see_input(x)
        rows = x.detach().reshape(len(x), -1)
        if self._input_columns is None:
            return rows
        self._input_columns = self._input_columns.to(rows.device)
        return rows.index_select(1, self._input_columns)

    def costs(self, example: Tensor) -> dict[str, int]:
        """FLOPs of one image by module path (see `tunnel_lightning.taps.costs.costs`)."""
        return costs(self.model, example)

    def attach(self) -> None:
        """Put the hooks back after `remove`, disarmed; the layers stay known, so no forward need be seen first.

        More than once is fine. In between a forward costs nothing, and copies of the network hold no hooks.
        """
        for hook in self._hooks:
            if hook.number not in self._handles and (self._state.discovering or any(hook.plans)):
                self._handles[hook.number] = hook.candidate.module.register_forward_hook(hook)

    def remove(self) -> None:
        """Take the hooks off the network; `attach` puts them back. More than once is fine."""
        self.disarm()
        for handle in self._handles.values():
            handle.remove()
        self._handles.clear()

    def __enter__(self) -> Taps:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def _known(self) -> None:
        if self._state.discovering:
            raise RuntimeError(
                "The layers are not known yet; call dry_run, or run one forward between arm and take."
            )

    def _clear(self) -> None:
        for hook in self._hooks:
            hook.out.clear()
        if self._state.discovering:
            self._state.calls.clear()
            self._state.branches.clear()
            self._state.batch = 0

    def _see_input(self, x: Tensor) -> None:
        if self._input is not None and self._input.shape == tuple(x.shape[1:]):
            return
        size = x[0].numel()
        self._input_columns = choose_columns(size, MAX_INPUT_FEATURES, self.spec.seed, "input")
        dim = min(size, MAX_INPUT_FEATURES)
        self._input = Tap("input", "", 1, 0, "Input", tuple(x.shape[1:]), dim, 0, "input")

    @staticmethod
    def _columns_at_home(hook: Hook, call: int, x: Tensor, first: bool) -> Tensor:
        """The first forward's features are whole: cut them. Later, move the indices to its device."""
        layout, columns = hook.plans[call] or (None, None)
        if layout is None or columns is None:
            return x
        if columns.device != x.device:
            columns = columns.to(x.device)
            hook.plans[call] = (layout, columns)
        return x.index_select(1, columns) if first else x

    def _nothing_ran(self) -> None:
        raise RuntimeError(
            "Taps.take: no tapped layer ran since arm(). Either the network was not called, or it was "
            "compiled and called before the taps were made: make the taps before its first compiled call."
        )

    def _discover(self) -> None:
        """Turn the calls of the first forward into taps and plans."""
        calls = self._state.calls
        if not calls:
            self._nothing_ran()
        if self._additions is not None and not self._state.branches:
            raise NoAdditions(
                f"taps.layers: kind 'addition' finds no residual addition in {type(self.model).__name__}; choose "
                f"another kind ({', '.join(kind for kind in KINDS if kind != ADDITION)}) or name layers by globs."
            )
        self._check_globs()
        totals = [0] * len(self._hooks)
        for number, _ in calls:
            totals[number] += 1
        head = self._find_head()
        chosen: list[tuple[Tap, Hook]] = []
        self._head = None
        for hook in self._hooks:
            hook.plans.clear()
        seen = [0] * len(self._hooks)
        for i, (number, shape) in enumerate(calls):
            hook, candidate = self._hooks[number], self._hooks[number].candidate
            seen[number] += 1
            keep = bool(shape) and (
                candidate.wants(seen[number])
                or (candidate.by_kind and i != head)
                or (number, seen[number] - 1) in self._state.branches
            )
            tap = None
            if keep or i == head:
                name = f"{candidate.path}#{seen[number]}" if totals[number] > 1 else candidate.path
                tap, plan = self._tap(hook, name, seen[number], len(chosen) + 1, shape, i == head)
            hook.plans.append(plan if tap is not None and keep else None)
            if tap is not None and keep:
                chosen.append((tap, hook))
            if i == head:
                self._head = tap
        if not chosen:
            raise ValueError(
                f"taps.layers: {', '.join(self.spec.patterns)} leaves no layer of "
                f"{type(self.model).__name__} that runs and is not the classifier; choose another kind or "
                "name layers by globs."
            )
        # Hooks that capture nothing (they helped to find the head, or never fire) have done their work.
        for hook in self._hooks:
            if not any(hook.plans):
                self._handles.pop(hook.number).remove()
        self._taps = chosen
        self._state.calls.clear()
        self._state.discovering = False

    def _tap(
        self, hook: Hook, name: str, call: int, index: int, shape: tuple[int, ...], is_head: bool
    ) -> tuple[Tap, tuple[Layout, Tensor | None]]:
        module, path = hook.candidate.module, hook.candidate.path
        layout = hook.layout(shape)
        # A Gram matrix hides the width of what it is of.
        how: Pool = "flatten" if self.spec.pool == "gram" else self.spec.pool
        dim = pool(torch.empty(shape, device="meta"), layout, how).shape[1]
        columns = choose_columns(dim, self.spec.max_features, self.spec.seed, f"{path}#{call}")
        parameters = sum(p.numel() for p in module.parameters())
        role: Role = "head" if is_head else "layer"
        if columns is not None:
            dim = len(columns)
        tap = Tap(name, path, call, index, type(module).__name__, shape[1:], dim, parameters, role)
        return tap, (layout, columns)

    def _check_globs(self) -> None:
        """Each glob must have found at least one call with a usable output."""
        totals: dict[int, int] = {}
        met: set[str] = set()
        for number, shape in self._state.calls:
            totals[number] = totals.get(number, 0) + 1
            if shape:
                globs = self._hooks[number].candidate.globs
                met.update(glob for glob, call in globs if call in (None, totals[number]))
        for hook in self._hooks:
            for glob, _ in hook.candidate.globs:
                if glob in met:
                    continue
                ran = totals.get(hook.number, 0)
                what = "did not run in the forward"
                if ran:
                    what = f"ran {ran} time(s) and gave no floating-point tensor there with the batch first"
                raise ValueError(
                    f"taps.layers: {glob!r} finds nothing to capture: {hook.candidate.path} {what}."
                )

    def _find_head(self) -> int | None:
        """Position, among the calls, of the classifier's last."""
        ran = [
            (i, self._hooks[number].candidate, shape)
            for i, (number, shape) in enumerate(self._state.calls)
            if shape and is_weighted(self._hooks[number].candidate.module)
        ]
        for owner in (self.model, *self.model.children()):
            named = getattr(owner, "head", None)
            at = [i for i, candidate, _ in ran if candidate.module is named]
            if isinstance(named, nn.Linear) and at:
                return at[-1]
        if not ran:
            return None
        # A trunk without a classifier ends in a convolution or in tokens. Only its name tells a classifier
        # that is a convolution (SqueezeNet's) from a trunk's last one.
        last, candidate, shape = ran[-1]
        is_linear = isinstance(candidate.module, nn.Linear) and len(shape) == 2
        return last if is_linear or _CLASSIFIERS.intersection(candidate.path.split(".")) else None


def tap(
    model: nn.Module,
    example: Tensor,
    layers: str | list[str] = "default",
    pool: Pool = "2x2",
    max_features: int | None = None,
    seed: int = 0,
) -> Taps:
    """Taps that are ready: `Taps(model, TapSpec(layers, ...))` and a dry run over `example`.

    Example:
        >>> from torchvision.models import resnet18
        >>> taps = tap(resnet18(), torch.zeros(1, 3, 64, 64), "block")
        >>> [(layer.name, layer.dim) for layer in taps.layers[:2]]
        [('layer1.0', 256), ('layer1.1', 256)]
    """
    taps = Taps(model, TapSpec(layers, pool, max_features, seed))
    try:
        taps.dry_run(example)
    except BaseException:
        taps.remove()
        raise
    return taps
