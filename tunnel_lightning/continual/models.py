"""The network that Avalanche trains, the backbone inside it, and how it is asked about one task."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from tunnel_lightning.backbones import Backbone
from tunnel_lightning.continual.compat import avalanche
from tunnel_lightning.continual.stream import Stream, Task

Head = Literal["auto", "fixed", "multi", "incremental"]


def prepare_model(backbone: Backbone, stream: Stream, head: Head = "auto") -> nn.Module:
    """The network to hand to a strategy.

    The backbone itself becomes part of it (no copy).

    Args:
        backbone: with ``stream.outputs`` outputs.
        stream: what it will learn.
        head: ``fixed`` leaves the backbone's own head, which has all outputs from the start and is the same for all
            tasks; ``multi`` gives every task a head of its own (Avalanche's ``as_multitask``; each has as many
            outputs as the largest task, the idle ones of smaller tasks masked); ``incremental`` starts with the
            classes of the first task and grows with each experience (Avalanche's ``IncrementalClassifier``, without
            a mask: masked scores of -1000 spoil losses on scores, as DER's); ``auto`` is ``multi`` for streams with
            several heads, else ``fixed``.

    Raises:
        ValueError: a head that does not fit the stream, or a backbone with another number of outputs.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> from tunnel_lightning.continual.scenarios import Scenario, make_stream
        >>> from tunnel_lightning.data import Digits
        >>> stream = make_stream(Digits(), Scenario("task_incremental", tasks=5))
        >>> mlp = MLP(depth=2, width=8, num_classes=stream.outputs, input_shape=stream.input_shape)
        >>> type(prepare_model(mlp, stream)).__name__
        'MultiTaskDecorator'
    """
    if head not in ("auto", "fixed", "multi", "incremental"):
        raise ValueError(f"head must be auto, fixed, multi or incremental, got {head!r}.")
    if head == "auto":
        head = "multi" if stream.multi_head else "fixed"
    if head == "multi" and not stream.multi_head:
        raise ValueError(
            f"All tasks of this {stream.kind} stream share one head: take head fixed or incremental, or kind "
            "task_incremental for a head of each."
        )
    if head == "incremental" and stream.multi_head:
        raise ValueError(
            f"In a {stream.kind} stream with a head for each task no head grows: take head multi, or kind "
            "class_incremental for one that does."
        )
    if not isinstance(backbone.head, nn.Linear):
        raise ValueError(
            "The backbone's head is no nn.Linear: it was prepared for a stream before; make a fresh one."
        )
    if backbone.head.out_features != stream.outputs:
        raise ValueError(
            f"The backbone has {backbone.head.out_features} outputs, but the stream needs {stream.outputs}: "
            f"make it with num_classes={stream.outputs}."
        )
    if head == "fixed":
        return backbone
    avalanche()
    if head == "multi":
        from avalanche.models import as_multitask

        return as_multitask(backbone, "head")
    from avalanche.models import IncrementalClassifier

    first = max(stream.tasks[0].outputs) + 1
    backbone.head = IncrementalClassifier(
        backbone.head.in_features, initial_out_features=first, masking=False
    )
    return backbone


def backbone_in(model: nn.Module) -> nn.Module:
    """The `Backbone` inside a strategy's model; the model itself where there is none.

    Ask ``strategy.model`` anew each time: strategies wrap their model and replace it.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> mlp = MLP(depth=1, width=4)
        >>> backbone_in(nn.Sequential(nn.Identity(), mlp)) is mlp
        True
    """
    return next((module for module in model.modules() if isinstance(module, Backbone)), model)


class Features(nn.Module):
    """What a backbone's head reads, as a network of its own: ``[B, C, H, W]`` to ``[B, head.in_features]``."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, x: Tensor) -> Tensor:
        """Features of images."""
        return self.backbone.features(x)


def split_for_icarl(backbone: Backbone) -> tuple[nn.Module, nn.Module]:
    """Feature extractor and classifier, the two arguments of Avalanche's ICaRL, out of one backbone.

    They are the backbone and its own head, so the backbone stays whole and ``backbone_in(strategy.model)`` finds it.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> mlp = MLP(depth=1, width=4)
        >>> extractor, classifier = split_for_icarl(mlp)
        >>> x = torch.rand(2, 3, 32, 32)
        >>> torch.equal(classifier(extractor(x)), mlp(x)), backbone_in(extractor) is mlp
        (True, True)
    """
    return Features(backbone), backbone.head


class TaskView(nn.Module):
    """A strategy's model, asked about one task: images in, scores of the task's head out.

    It looks only: no head is made, no classifier grows. Use it under `taps.quiet.quiet`, and make it anew for each
    measurement.

    Args:
        model: ``strategy.model``.
        label: Avalanche's label of the task.

    Example:
        >>> from tunnel_lightning.backbones import MLP
        >>> TaskView(MLP(depth=1, width=4), 0)(torch.rand(2, 3, 32, 32)).shape
        torch.Size([2, 10])
    """

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model = model
        self.label = label

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``[B, outputs]``; of a classifier that grows, as many outputs as it has by now."""
        model: Any = self.model
        if hasattr(model, "activate_task"):  # PackNet: other weights are in force for each task
            active = model.active_task
            try:
                return model(x, torch.full((len(x),), self.label, device=x.device))
            finally:
                model.activate_task(active)
        if hasattr(model, "forward_single_task"):
            return model.forward_single_task(x, self.label)
        return model(x)


def knows(model: nn.Module, task: Task) -> bool:
    """Whether the model can answer for the classes of a task at all.

    Not if its head has not been trained yet (several heads), if the classifier has not grown to its classes, if
    there is no class mean yet (nearest-mean classifiers, as ICaRL's), or if no weights are set aside for it
    (PackNet). A network with all outputs from the start can always.

    Args:
        model: ``strategy.model``.
        task: of its stream.

    Example:
        >>> from types import SimpleNamespace
        >>> from tunnel_lightning.backbones import MLP
        >>> knows(MLP(num_classes=4), SimpleNamespace(label=0, outputs=(2, 3)))
        True
    """
    if hasattr(model, "activate_task"):
        return task.label < int(cast(Any, model).task_count)
    if hasattr(model, "forward_single_task"):
        return _head_is_trained(model, task.label)
    backbone = backbone_in(model)
    classifier: Any = getattr(model, "eval_classifier", getattr(backbone, "head", None))
    if hasattr(classifier, "class_means_dict"):
        return all(output in classifier.class_means_dict for output in task.outputs)
    # A classifier that grows keeps its layer inside.
    outputs = getattr(getattr(classifier, "classifier", classifier), "out_features", None)
    return outputs is None or max(task.outputs) < outputs


def _head_is_trained(model: Any, label: int) -> bool:
    for module in model.modules():
        if type(module).__name__ == "MultiHeadClassifier":
            if str(label) not in module.classifiers:
                return False
            if module.masking:
                # Evaluating a task makes its head too, but only training makes its outputs active.
                return bool(module._buffers[f"active_units_T{label}"].any())
            break
    return label in model.known_train_tasks_labels
