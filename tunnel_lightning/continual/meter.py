"""What every layer knows of every task, before the first task and after each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from tunnel_lightning.continual.collect import Rows, Scores, network_accuracy, positions, ranks
from tunnel_lightning.continual.drift import References
from tunnel_lightning.continual.models import TaskView, backbone_in, knows
from tunnel_lightning.continual.online import StreamProbes
from tunnel_lightning.continual.places import attach, find_layers, like_parameters, without_head
from tunnel_lightning.continual.stream import Images, Stream, Task
from tunnel_lightning.measures import (
    FeatureSample,
    LinearHead,
    Moments,
    ProbeAccuracy,
    accumulate,
    ridge,
    ridge_from_moments,
)
from tunnel_lightning.runs import NETWORK, Row
from tunnel_lightning.taps import Tap, Taps, TapSpec

PROBES = ("fixed", "refit_task", "refit_all", "online")
"""Kinds of probe."""


class LayerMeter:
    """Measures every layer of a strategy's network on every task of a stream.

    Before the first task (``after=-1``) and after each:

    - the network itself: ``accuracy/network`` (among all its outputs, or all of the task's head) and
      ``accuracy/within_task`` (among the task's classes); not for a task whose head or outputs are not there yet;
    - of each layer and task, ``rank_cov/rtol=1e-3`` and ``effective_rank/cov`` on the task's training images;
    - ``probe_accuracy`` of four kinds of linear probe on the task's test images. ``refit_task``: fitted anew on the
      task's training images (Davari et al., CVPR 2022), for tasks not learnt yet too. ``fixed``: as it was fitted
      right after the task was learnt. ``refit_all``: fitted anew on the training images of all tasks, over all
      classes of the stream; one row, data set ``all``. ``online``: trained along with the network, see
      :class:`~tunnel_lightning.continual.online.StreamProbes`;
    - for tasks learnt so far, the layer beside itself as it was then: ``cka/learnt``, ``subspace_overlap/k=10``,
      ``map_residual/linear``, see :class:`~tunnel_lightning.continual.drift.References`.

    What holds before a task is what held after the one before, so nothing is measured twice. Each task's training and
    test images pass through the network once. Ridge probes are :func:`~tunnel_lightning.measures.ridge_from_moments`,
    or :func:`~tunnel_lightning.measures.ridge` where a layer has more columns than there are images. Nothing of it
    reaches the network: weights, statistics, train/eval flags, heads, hooks and random states stay as they were.

    Standard errors are binomial for accuracies and NaN for all else. A layer whose features are constant, NaN or
    infinite gets NaN, and one warning a measurement names all such layers.

    Args:
        stream: what is learnt; its images are what is measured on.
        taps: which layers, and how their features are pooled.
        run_id: of the rows.
        probes: kinds of probe, of ``PROBES``.
        drift: whether each layer is compared with what it was.
        ranks: whether ranks are taken.
        reference_images: test images of each task whose features are kept for that comparison.
        reference_columns: columns of a wider layer that are kept, a fixed random subset.
        alpha: ridge penalty, relative to the number of images (features are standardised).
        online_lr: Adam's learning rate of the online probes.
        online_every_n_steps: they learn from the batches of every n-th step, the first included.
        batch_size: images of a pass at a time.
        context: makes the context of each forward pass, such as autocast.

    Attributes:
        layers: where, in order; known after `start`.

    Raises:
        ValueError: no such kind of probe, too few images, or taps without features.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> from tunnel_lightning.continual.stream import Images, Stream, Task
        >>> x, y = torch.randn(40, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
        >>> images = Images(x + y[:, None, None, None], y, y)
        >>> task = Task(0, "task 1", 0, (0, 1), (0, 1), ("a", "b"), images, images)
        >>> stream = Stream("blobs", "class_incremental", None, (task,), 2, 2, (1, 8, 8), False)
        >>> network = MLP(depth=1, width=8, num_classes=2, input_shape=(1, 8, 8))
        >>> meter = LayerMeter(stream, drift=False, ranks=False, probes=["refit_task"])
        >>> meter.start(network)
        >>> [(row.layer, row.variant) for row in meter.measure(network, after=-1)]
        [('network', 'network'), ('network', 'within_task'), ('layers.0.linear', 'refit_task')]
    """

    def __init__(
        self,
        stream: Stream,
        taps: TapSpec | None = None,
        run_id: str = "",
        *,
        probes: Sequence[str] = PROBES,
        drift: bool = True,
        ranks: bool = True,
        reference_images: int = 500,
        reference_columns: int = 1024,
        alpha: float = 1e-2,
        online_lr: float = 3e-3,
        online_every_n_steps: int = 2,
        batch_size: int = 64,
        context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        unknown = [name for name in probes if name not in PROBES]
        if unknown:
            raise ValueError(f"no probe {unknown[0]!r}; there are {', '.join(PROBES)}")
        self.stream, self.spec, self.run_id = stream, taps or TapSpec(), run_id
        if self.spec.pool == "gram":
            raise ValueError(
                "taps.pool is 'gram', and Gram matrices have no features to measure: choose 2x2 or avg"
            )
        fewest = min(min(len(task.train.y), len(task.test.y)) for task in stream.tasks)
        if fewest < 4 or min(reference_images, reference_columns, online_every_n_steps, batch_size) < 1:
            raise ValueError(
                f"a meter needs at least 4 training and 4 test images of each task, got {fewest}, and numbers of at "
                "least 1"
            )
        if drift and reference_images < 4:
            raise ValueError(f"drift needs at least 4 reference images, got {reference_images}")
        self.probes, self.drift, self.ranks = tuple(probes), drift, ranks
        self.reference_images, self.reference_columns = reference_images, reference_columns
        self.alpha, self.batch_size, self.context = alpha, batch_size, context
        self._online_options = (online_lr, online_every_n_steps)
        self.layers: list[Tap] = []
        self._fixed: dict[int, dict[str, LinearHead]] = {}
        self._references: References | None = None
        self._online: StreamProbes | None = None

    def start(self, model: nn.Module) -> None:
        """Find the layers, once, on the network as it is handed to the strategy.

        Raises:
            ValueError: the taps find none.
        """
        self.layers = find_layers(model, self.spec, self.stream.tasks[0].train.x[:2])
        self._references = References(self.layers, self.reference_images, self.reference_columns)
        if "online" in self.probes:
            self._online = StreamProbes(self.stream, self.layers, self.spec, *self._online_options)

    def plugins(self) -> list[Any]:
        """Plugins for the strategy: what trains the online probes, or none."""
        self._started()
        return [] if self._online is None else [self._online]

    @property
    def nbytes(self) -> int:
        """Bytes kept for the stream's whole length: reference features and fixed probes; known after `start`."""
        width = sum(tap.dim + 1 for tap in self.layers)
        heads = (
            sum(8 * len(task.classes) * width for task in self.stream.tasks) if "fixed" in self.probes else 0
        )
        kept = self._started().nbytes * len(self.stream.tasks) if self.drift else 0
        return heads + kept

    def measure(
        self, model: nn.Module, after: int, step: int = 0, epoch: int = 0, tasks: Iterable[int] | None = None
    ) -> list[Row]:
        """Measure every layer on every task.

        Tasks up to ``after`` count as learnt; of those that do for the first time the probes and features are kept,
        to be compared with from now on.

        Args:
            model: ``strategy.model`` as it is now.
            after: the experience that was trained on last; -1 before the first.
            step: optimizer steps so far.
            epoch: epochs so far.
            tasks: positions of the tasks to measure; by default all. Of fewer than all there is no ``refit_all``.

        Returns:
            Rows of the profile table, task by task.
        """
        self._started()
        chosen = set(range(len(self.stream.tasks)) if tasks is None else tasks)
        wanted = [task for task in self.stream.tasks if task.index in chosen]
        rows = Rows(self.run_id, step, epoch, after)
        with attach(model, self.layers, self.spec, self.stream.tasks[0].train.x) as taps:
            look = _Look(model, taps, rows, self._sums(wanted))
            refitted = {task.index: self._fit(look, task) for task in wanted}
            look.pooled = {
                name: ProbeAccuracy(ridge_from_moments(look.sums.pop(name), self.alpha), "refit_all")
                for name in list(look.sums)
            }
            for task in wanted:
                self._score(look, task, refitted.pop(task.index))
        for tap in self.layers:
            if tap.name in look.pooled:
                rows.add("all", tap, look.pooled[tap.name].compute())
        if self._online is not None and after >= 0:
            self._online.warn_if_blind()
        rows.warn()
        return rows.rows

    def state_dict(self) -> dict[str, Any]:
        """Fixed probes, reference features and online probes, as tensors and plain values."""
        return {
            "layers": [tap.name for tap in self.layers],
            "fixed": {
                index: {name: {"weight": head.weight, "bias": head.bias} for name, head in heads.items()}
                for index, heads in self._fixed.items()
            },
            "references": self._started().state_dict(),
            "online": None if self._online is None else self._online.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned; after `start`.

        Raises:
            ValueError: it is of other layers or other probes.
        """
        references, names = self._started(), [tap.name for tap in self.layers]
        if state["layers"] != names or (state["online"] is None) != (self._online is None):
            raise ValueError(
                f"the saved meter has layers {', '.join(state['layers'])} and "
                f"{'no ' if state['online'] is None else ''}online probes, this one has layers {', '.join(names)} "
                f"and probes {', '.join(self.probes)}: go on with the settings of that run"
            )
        self._fixed = {
            index: {
                name: LinearHead(head["weight"].cpu(), head["bias"].cpu()) for name, head in heads.items()
            }
            for index, heads in state["fixed"].items()
        }
        references.load_state_dict(state["references"])
        if self._online is not None:
            self._online.load_state_dict(state["online"])

    # One task ---------------------------------------------------------------------------------------------------

    def _fit(self, look: _Look, task: Task) -> dict[str, LinearHead]:
        """One pass over a task's training images: its probes, its ranks, and its part of the sums over all."""
        learns = "fixed" in self.probes and task.index <= look.rows.after and task.index not in self._fixed
        fits = learns or "refit_task" in self.probes
        if not (fits or self.ranks or look.sums):
            return {}
        held = self._pass(look, without_head(look.model), task.train)
        heads = {}
        for tap in self.layers:
            features, moments = held[tap.name], None
            # With fewer images than columns all is found in the space of the images.
            if tap.dim <= len(features):
                moments = Moments(tap.dim, self.stream.num_classes)
                moments.update(features, task.train.classes)
            if fits:
                heads[tap.name] = self._probe(features, moments, task)
            if self.ranks:
                look.rows.add(task.name, tap, ranks(features, moments), split="train")
            if tap.name in look.sums:
                if moments is None:
                    look.sums[tap.name].update(features, task.train.classes)
                else:
                    look.sums[tap.name].merge(moments)
        if learns:
            self._fixed[task.index] = heads
        return heads if "refit_task" in self.probes else {}

    def _probe(self, features: Tensor, moments: Moments | None, task: Task) -> LinearHead:
        """A ridge probe of a task's own classes."""
        if moments is None:
            own = positions(task.train.classes, task.classes)
            return ridge(features, own, len(task.classes), self.alpha)
        head = ridge_from_moments(moments, self.alpha)
        # Every class is solved for by itself, so that leaving out the absent ones changes nothing.
        return LinearHead(head.weight[list(task.classes)], head.bias[list(task.classes)])

    def _score(self, look: _Look, task: Task, refitted: Mapping[str, LinearHead]) -> None:
        """One pass over a task's test images: the network's accuracy, every probe's, and what the layer was."""
        rows, references, learnt = look.rows, self._started(), task.index <= look.rows.after
        answers, scores = knows(look.model, task), Scores()
        view = TaskView(look.model, task.label) if answers else without_head(look.model)
        held = self._pass(look, view, task.test, scores)
        if answers and scores.batches:
            found = torch.cat(scores.batches)
            width = found.shape[1]
            place = Tap(NETWORK, "", 1, len(self.layers) + 1, "", (width,), width, 0)
            rows.add(task.name, place, network_accuracy(found, task.test.y, task.outputs))
        compared = {}
        if self.drift and learnt:
            if task.index not in references:
                references.keep(task.index, held)
            compared = references.compare(task.index, held)
        own, fixed = positions(task.test.classes, task.classes), self._fixed.get(task.index, {})
        online = self._online if learnt else None
        for tap in self.layers:
            features = held[tap.name]
            probes = [("refit_task", refitted.get(tap.name), own)]
            if learnt:
                probes.append(("fixed", fixed.get(tap.name), own))
            if online is not None:
                probes.append(("online", online.head(tap.name), online.target(task)))
            for variant, head, target in probes:
                if head is not None:
                    probe = ProbeAccuracy(head, variant)
                    probe.update(features, target)
                    rows.add(task.name, tap, probe.compute())
            if tap.name in look.pooled:
                look.pooled[tap.name].update(features, task.test.classes)
            if tap.name in compared:
                rows.add(task.name, tap, compared[tap.name], dim=min(tap.dim, self.reference_columns))

    def _pass(self, look: _Look, view: nn.Module, images: Images, *observers: Any) -> dict[str, Tensor]:
        """The features of images in every layer, ``[N, D]`` on the CPU."""
        held, network = FeatureSample(len(images.y)), backbone_in(look.model)
        batches = zip(images.x.split(self.batch_size), images.y.split(self.batch_size), strict=True)
        accumulate(
            view,
            look.taps,
            ((like_parameters(x, network), y) for x, y in batches),
            [],
            observers=[held, *observers],
            context=self.context,
            input=False,
            network=False,
        )
        return held.features

    def _sums(self, wanted: Sequence[Task]) -> dict[str, Moments]:
        """Empty sums over the images of all tasks, where all are measured."""
        if "refit_all" not in self.probes or len(wanted) < len(self.stream.tasks):
            return {}
        return {tap.name: Moments(tap.dim, self.stream.num_classes) for tap in self.layers}

    def _started(self) -> References:
        if self._references is None:
            raise RuntimeError("The layers are not known yet: call start(model) before the strategy is made.")
        return self._references


@dataclass
class _Look:
    """One measurement under way.

    Attributes:
        model: the strategy's.
        taps: on its layers.
        rows: so far.
        sums: moments of each layer over the training images of all tasks.
        pooled: the probes of all classes, being scored.
    """

    model: nn.Module
    taps: Taps
    rows: Rows
    sums: dict[str, Moments]
    pooled: dict[str, ProbeAccuracy] = field(default_factory=dict)
