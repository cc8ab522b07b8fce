"""What a descent on pixels sees of a network: one layer's output and nothing behind it, and what is asked of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tunnel_lightning.analysis.invert.recipe import Recipe
from tunnel_lightning.taps import Tap, Taps, TapSpec
from tunnel_lightning.taps.costs import plain
from tunnel_lightning.taps.hooks import first_tensor
from tunnel_lightning.taps.pooling import hints_of, layout_of, pool
from tunnel_lightning.taps.precision import full_precision
from tunnel_lightning.taps.spec import Pool

Readout = Callable[[Tensor], Tensor]
"""Class scores ``[B, K]`` of a layer's whole outputs ``[B, ...]``, differentiable."""


class _Reached(BaseException):
    """A forward came to the layer and ends there; no ``except Exception`` of a network's own holds it up."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output = output


class Embedding:
    """A layer's whole output as a function of pixels in [0, 1]; what comes after the layer does not run.

    To be used inside :func:`still`; the hook is on the network as long as the context is open.

    Args:
        network: the network whose layers have these names.
        layer: one of them.
        mean: of each channel, as the data is normalised; None shows the network the pixels as they are.
        std: the same, standard deviations.
        model: what is called on images, where ``network`` is a part of it.

    Raises:
        ValueError: a residual addition, which no module puts out; calling it: the layer does not run, or gives no
            tensor with the images first.

    Example:
        >>> from tunnel_lightning.taps import tap
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
        >>> [first] = tap(network, torch.zeros(1, 1, 2, 2)).layers
        >>> with Embedding(network, first) as embed:
        ...     embed(torch.zeros(5, 1, 2, 2)).shape
        torch.Size([5, 3])
    """

    def __init__(
        self,
        network: nn.Module,
        layer: Tap,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        model: nn.Module | None = None,
    ) -> None:
        self.layer = layer
        self.model: nn.Module = bare(model if model is not None else network)
        try:
            self._module = bare(network).get_submodule(layer.module)
        except AttributeError:
            raise ValueError(
                f"the layer {layer.name} is a residual addition, which no module puts out: choose the block it ends"
            ) from None
        self._normalisation = (mean, std)
        self._constants: tuple[Tensor, Tensor] | None = None
        self._seen = 0

    def __enter__(self) -> Embedding:
        self._handle = self._module.register_forward_hook(self._hook)
        return self

    def __exit__(self, *error: object) -> None:
        self._handle.remove()

    def __call__(self, pixels: Tensor) -> Tensor:
        """The layer's output ``[B, ...]`` for pixels ``[B, C, H, W]``."""
        self._seen = 0
        output: Any = None
        try:
            self.model(self._shown(pixels))
        except _Reached as reached:
            output = reached.output
        else:
            raise ValueError(f"the layer {self.layer.name} does not run when the network is called")
        found = first_tensor(output)
        if found is None or len(found) % len(pixels):
            raise ValueError(
                f"the layer {self.layer.name} gives no floating-point tensor with the images first"
            )
        return found

    def constants(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the channels, for pixels ``[B, C, H, W]``."""
        # Made once: numbers from the host stop a GPU's queue at every step.
        if self._constants is None:
            self._constants = constants(pixels, *self._normalisation)
        return self._constants

    def _shown(self, pixels: Tensor) -> Tensor:
        mean, std = self.constants(pixels)
        return (pixels - mean) / std

    def _hook(self, module: nn.Module, args: Any, output: Any) -> None:
        self._seen += 1
        if self._seen == self.layer.call:
            raise _Reached(output)


def bare(network: nn.Module) -> nn.Module:
    """A network without torch.compile: it could not stop half way."""
    found: nn.Module = getattr(network, "_orig_mod", network)
    return found


@contextmanager
def still(model: nn.Module) -> Iterator[None]:
    """A network as an unchanging function of its input: evaluation mode, no gradients of weights, full float32.

    On leaving everything is as it was, random states included.

    Example:
        >>> model = nn.Linear(2, 2)
        >>> with still(model):
        ...     model(torch.zeros(1, 2)).requires_grad
        False
    """
    model = bare(model)
    parameters = [(p, p.requires_grad) for p in model.parameters()]
    device = next((p.device for p, _ in parameters), torch.device("cpu"))
    convolution: Any = torch.backends.cudnn.conv  # type: ignore[attr-defined]
    before = convolution.fp32_precision
    with ExitStack() as stack:
        for context in (
            plain(model),
            full_precision(device),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            stack.enter_context(context)
        try:
            convolution.fp32_precision = "ieee"  # TF32 is an error of 1e-3 of a distance that is to vanish
            for p, _ in parameters:
                p.requires_grad_(False)
            yield
        finally:
            convolution.fp32_precision = before
            for p, wanted in parameters:
                p.requires_grad_(wanted)


def rows(output: Tensor, images: int) -> Tensor:
    """A layer's whole output as one row for each image, ``[B, D]``; windows of an image are put together."""
    return output.reshape(images, -1)


class Objective(Protocol):
    """What is asked of the layer's output for each image of a batch; small is good."""

    def loss(self, output: Tensor) -> Tensor:
        """What is minimised, ``[B]``."""

    def measure(self, output: Tensor) -> Tensor:
        """What its curve shows, ``[B]``."""


class Distance:
    """The layer's output is to be a given one: Badger's ``0.15 * sum |O(a) - O(target)|`` and its kin.

    Args:
        target: what is wanted, one row for each image, ``[B, D]``.
        recipe: which distance.

    Example:
        >>> from tunnel_lightning.analysis.invert.recipe import preset
        >>> wanted = Distance(torch.zeros(1, 2), preset("badger"))
        >>> wanted.loss(torch.tensor([[3.0, -4.0]])), wanted.measure(torch.tensor([[3.0, -4.0]]))
        (tensor([1.0500]), tensor([5.]))
    """

    def __init__(self, target: Tensor, recipe: Recipe) -> None:
        self.target, self.kind = target, recipe.loss
        self.weight: Tensor | float = recipe.scale
        if recipe.relative:
            whole = self._distance(target)
            self.weight = recipe.scale / torch.where(whole > 0, whole, torch.ones_like(whole))

    def loss(self, output: Tensor) -> Tensor:
        """The weighted distance of each image, ``[B]``."""
        return self._distance(rows(output, len(self.target)) - self.target) * self.weight

    def measure(self, output: Tensor) -> Tensor:
        """The Euclidean distance of each image, m_g, ``[B]``."""
        return torch.linalg.vector_norm(rows(output, len(self.target)) - self.target, dim=1)

    def _distance(self, difference: Tensor) -> Tensor:
        return (difference.abs() if self.kind == "l1" else difference.square()).sum(1)


class ClassScore:
    """A class's score, as it is read from the layer's output, is to be large.

    Args:
        readout: class scores ``[B, K]`` of the layer's output.
        classes: the class wanted of each image, ``[B]``.
        scale: what the score is multiplied by, for the loss.

    Example:
        >>> wanted = ClassScore(nn.Identity(), torch.tensor([1]))
        >>> wanted.loss(torch.tensor([[0.0, 4.0]])), wanted.measure(torch.tensor([[0.0, 4.0]]))
        (tensor([-4.]), tensor([4.]))
    """

    def __init__(self, readout: Readout, classes: Tensor, scale: float = 1.0) -> None:
        self.readout, self.classes, self.scale = readout, classes, scale

    def loss(self, output: Tensor) -> Tensor:
        """Less the score of each image's class, ``[B]``."""
        return -self.scale * self.measure(output)

    def measure(self, output: Tensor) -> Tensor:
        """The score of each image's class, ``[B]``."""
        return self.readout(output).gather(1, self.classes[:, None])[:, 0]


def readout(
    network: nn.Module, layer: Tap, weight: Tensor, bias: Tensor | None = None, pooled: Pool = "2x2"
) -> Readout:
    """Class scores of a layer's whole output by a linear probe that was fitted on its pooled features.

    Args:
        network: the network the layer is of.
        layer: as ``Taps`` with the pooling of the probe's features gives it.
        weight: of the probe, ``[K, D]``, for features as they are (standardisation folded in).
        bias: ``[K]``.
        pooled: how the probe's features were pooled.

    Raises:
        ValueError: a probe for features of another width.

    Example:
        >>> from tunnel_lightning.taps import tap
        >>> network = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
        >>> [layer] = tap(network, torch.zeros(1, 1, 4, 4), pool="avg").layers
        >>> readout(network, layer, torch.ones(5, 3), pooled="avg")(torch.ones(7, 3, 2, 2)).shape
        torch.Size([7, 5])
    """
    if weight.shape[1] != layer.dim:
        raise ValueError(
            f"a probe of {weight.shape[1]} features can't read the layer {layer.name}, which has {layer.dim} "
            f"pooled by {pooled}"
        )
    module, hints = bare(network).get_submodule(layer.module), hints_of(bare(network))

    def scores(output: Tensor) -> Tensor:
        features = pool(output, layout_of(module, tuple(output.shape), hints), pooled)
        return nn.functional.linear(
            features, weight.to(features), None if bias is None else bias.to(features)
        )

    return scores


def resolved(
    network: nn.Module, layers: Sequence[Tap | str], shown: Tensor, model: nn.Module | None = None
) -> list[Tap]:
    """Layers as taps; those given by name or glob are found in one forward over ``shown`` [B, C, H, W].

    Raises:
        ValueError: no such layer.
    """
    found: list[Tap] = []
    for layer in layers:
        if isinstance(layer, Tap):
            found.append(layer)
            continue
        with Taps(network, TapSpec([layer])) as taps, plain(called := bare(model or network)):
            taps.arm()
            called(torch.cat([shown, shown])[:2])
            taps.take()
            found += taps.layers
    if not found:
        raise ValueError("invert: no layer is named")
    return found


def constants(
    pixels: Tensor, mean: Sequence[float] | None, std: Sequence[float] | None
) -> tuple[Tensor, Tensor]:
    """Mean and deviation ``[C, 1, 1]`` for pixels ``[B, C, H, W]``; 0 and 1 where they are None."""
    channels = pixels.shape[1]
    shift, width = ([0.0] * channels if mean is None else mean), ([1.0] * channels if std is None else std)
    return pixels.new_tensor(list(shift)).view(-1, 1, 1), pixels.new_tensor(list(width)).view(-1, 1, 1)


def bytes_of_one(embed: Embedding, shape: Sequence[int], like: Tensor) -> int:
    """Memory that one image's graph holds between its forward and its backward, in bytes, its output included.

    Args:
        embed: the layer (inside ``still``).
        shape: (C, H, W) of one image.
        like: a tensor of the network's device and precision.

    Raises:
        ValueError: the layer's output has no gradient with respect to the pixels.
    """
    held: dict[int, int] = {}

    def see(x: Tensor) -> Tensor:
        held[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    image = torch.full((1, *shape), 0.5).to(like).requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(see, lambda x: x):
        output = embed(image)
    if not output.requires_grad:
        raise ValueError(
            f"the layer {embed.layer.name} has no gradient with respect to the pixels: the network detaches its "
            "input or runs without gradients before it"
        )
    weights = {x.untyped_storage().data_ptr() for x in (*embed.model.parameters(), *embed.model.buffers())}
    return (
        sum(size for at, size in held.items() if at not in weights) + output.numel() * output.element_size()
    )
