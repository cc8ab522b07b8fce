"""Online linear probes: one head a layer, all trained in one step beside the network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from tunnel_lightning.measures.functional import LinearHead


class _Result(NamedTuple):
    """What one batch says about the layers of one group; not to be used where a layer is sick.

    Attributes:
        sick: above 0 for layers with NaN, infinite or constant features, ``[L]``.
        loss, accuracy: ``[L]``.
        shift: batch mean less running mean, ``[L, D]``.
        square: mean square about the running mean, ``[L, D]``.
        weight, bias: gradients.
    """

    sick: Tensor
    loss: Tensor
    accuracy: Tensor
    shift: Tensor
    square: Tensor
    weight: Tensor
    bias: Tensor


class _Group(nn.Module):
    """The heads of all layers of one width, and the running moments of their features.

    Attributes:
        weight: ``[L, C, D]`` on standardised features.
        bias: ``[L, C]``.
        mean, var: running moments ``[L, D]``.
        seen: batches the moments of each layer have seen, ``[L]``.
    """

    mean: Tensor
    var: Tensor
    seen: Tensor

    def __init__(self, names: list[str], dim: int, num_classes: int) -> None:
        super().__init__()
        self.names = names
        # Softmax regression is convex: zero is as good a start as any, draws no random number, and every
        # process starts equal.
        self.weight = nn.Parameter(torch.zeros(len(names), num_classes, dim))
        self.bias = nn.Parameter(torch.zeros(len(names), num_classes))
        self.register_buffer("mean", torch.zeros(len(names), dim))
        self.register_buffer("var", torch.ones(len(names), dim))
        self.register_buffer("seen", torch.zeros(len(names)))

    def centred(self, features: Mapping[str, Tensor]) -> Tensor:
        """Features less their running mean, stacked to ``[L, B, D]`` float32 in one pass."""
        given = [features[name].detach() for name in self.names]
        out = torch.empty(len(given), len(given[0]), self.mean.shape[1], device=self.mean.device)
        for layer, mean, into in zip(given, self.mean, out, strict=True):
            torch.sub(layer, mean, out=into)
        return out

    def inverse(self) -> Tensor:
        """One over the running deviation, ``[L, D]``.

        The floor is relative to the layer's mean variance: a column far below the others is rounding, not
        signal.
        """
        floor = 1e-6 * self.var.mean(1, keepdim=True) + torch.finfo(torch.float32).tiny
        return (self.var + floor).rsqrt()

    def logits(self, centred: Tensor) -> Tensor:
        """Scores ``[L, B, C]``; the scale goes to the weights, which are smaller than the features."""
        scaled = self.inverse()[:, None] * self.weight
        return torch.baddbmm(self.bias[:, None], centred, scaled.transpose(1, 2))

    def update(self, batch: _Result, momentum: float) -> None:
        """Move the running moments of the layers that are not sick towards a batch's.

        A layer's first batch gives the mean and its second the variance, so that no square cancels against a
        large mean; then batches are averaged plainly until ``momentum`` is the larger weight.
        """
        healthy = (batch.sick == 0)[:, None]
        rate = (1 / self.seen.clamp(min=1)).clamp(min=momentum)[:, None]
        # Variance of the mixture of the old moments and the batch, about its new mean.
        var = (1 - rate) * self.var + rate * batch.square - (rate * batch.shift).square()
        self.mean.copy_(torch.where(healthy, self.mean + rate * batch.shift, self.mean))
        self.var.copy_(torch.where(healthy, var.clamp(min=0), self.var))
        self.seen.add_(healthy[:, 0])


class ProbeBank(nn.Module):
    """A linear probe on every layer, trained online: one optimizer, one summed loss, one gradient.

    Layers of equal width share one batched parameter. Features are detached, taken to float32 with autocast
    off and standardised by running moments (else a profile shows how well a layer is conditioned, not what it
    knows). Nothing reaches the network and no random number is drawn.

    A layer whose features are NaN, infinite or constant in a batch gets NaN for it and learns nothing from
    it; its head and moments stay finite, the other layers are untouched. With ``torch.distributed``
    initialised a step sums one flat vector of gradients and moments over the processes: all hold equal heads,
    those of the global batch. The optimizer's state and the step count are part of ``state_dict`` (tensors
    and plain types).

    Args:
        dims: width of every layer, in the order of the results.
        num_classes: C.
        lr: Adam's learning rate.
        momentum: weight of a batch in the running moments.

    Example:
        >>> bank = ProbeBank({"early": 2, "late": 3}, num_classes=2, lr=0.1)
        >>> target = torch.tensor([0, 1])
        >>> features = {"early": torch.tensor([[0.0, 1.0], [1.0, 0.0]]), "late": torch.ones(2, 3)}
        >>> for _ in range(10):
        ...     loss, accuracy = bank.step(features, target)
        >>> accuracy
        tensor([1., nan])
    """

    def __init__(
        self, dims: Mapping[str, int], num_classes: int, lr: float = 1e-3, momentum: float = 0.05
    ) -> None:
        super().__init__()
        if not dims:
            raise ValueError("ProbeBank needs at least one layer, got none")
        self.names = list(dims)
        self.dims = dict(dims)
        self.num_classes = num_classes
        self.momentum = momentum
        self.steps = 0
        widths = sorted(set(dims.values()))
        self.groups = nn.ModuleList(
            _Group([name for name in dims if dims[name] == width], width, num_classes) for width in widths
        )
        grouped = [name for group in self._groups for name in group.names]
        self._order = [grouped.index(name) for name in self.names]
        self.optimizer = self._new_optimizer(lr)

    @property
    def _groups(self) -> list[_Group]:
        return list(self.groups)  # type: ignore[arg-type]

    def _new_optimizer(self, lr: float) -> torch.optim.Adam:
        return torch.optim.Adam(self.parameters(), lr=lr, fused=True)

    def _apply(self, fn: Any, recurse: bool = True) -> ProbeBank:
        super()._apply(fn, recurse)
        # The optimizer's own tensors follow the heads to another device.
        self.optimizer.load_state_dict(self.optimizer.state_dict())
        return self

    def get_extra_state(self) -> dict[str, Any]:
        """Optimizer and step count, for ``state_dict``."""
        return {"optimizer": self.optimizer.state_dict(), "steps": self.steps}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """The counterpart of :meth:`get_extra_state`."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.steps = state["steps"]

    def step(self, features: Mapping[str, Tensor], target: Tensor) -> tuple[Tensor, Tensor]:
        """Train every head on one batch.

        Args:
            features: ``[B, D]`` of every layer, by name.
            target: class indices ``[B]``.

        Returns:
            Cross-entropy (nats) and accuracy of the batch before the step, each ``[layers]`` in the order of
            ``dims``, still on the device. Over processes: of the global batch.

        Raises:
            KeyError: a layer is missing.
        """
        missing = [name for name in self.names if name not in features]
        if missing:
            raise KeyError(f"no features for {missing}: the bank was built for layers {self.names}")
        device = self._groups[0].weight.device
        target = target.to(device)
        with torch.autocast(device.type, enabled=False):
            if self.steps == 0:
                # The first batch gives the moments it is standardised by: the mean, then the variance.
                for _ in range(2):
                    self._move(self._batch(features, target))
            results = self._batch(features, target)
            with torch.no_grad():
                for group, result in zip(self._groups, results, strict=True):
                    learns = (result.sick == 0) & (group.seen >= 2)
                    group.weight.grad = torch.where(learns[:, None, None], result.weight, 0)
                    group.bias.grad = torch.where(learns[:, None], result.bias, 0)
            self.optimizer.step()
            if self.steps > 0:
                self._move(results)
        self.optimizer.zero_grad()
        self.steps += 1
        sick = torch.cat([result.sick for result in results]) > 0
        loss, accuracy = (
            torch.cat(parts).masked_fill(sick, torch.nan)[self._order]
            for parts in ([result.loss for result in results], [result.accuracy for result in results])
        )
        return loss, accuracy

    def _batch(self, features: Mapping[str, Tensor], target: Tensor) -> list[_Result]:
        """What the global batch says, group by group."""
        results = [self._backward(group, features, target) for group in self._groups]
        if dist.is_available() and dist.is_initialized():
            self._reduce([tensor for result in results for tensor in result], len(target))
        return results

    @torch.no_grad()
    def _move(self, results: list[_Result]) -> None:
        for group, result in zip(self._groups, results, strict=True):
            group.update(result, self.momentum)

    @torch.no_grad()
    def _backward(self, group: _Group, features: Mapping[str, Tensor], target: Tensor) -> _Result:
        """Loss, moments and gradients of one group on the batch of this process."""
        centred = group.centred(features)
        shift = centred.mean(1)
        square = centred.square().mean(1)
        log_p = group.logits(centred).log_softmax(2)
        labels = target.expand(len(log_p), -1)
        loss = -log_p.gather(2, labels[:, :, None]).mean((1, 2))
        accuracy = (log_p.argmax(2) == labels).float().mean(1)
        # The gradient of softmax regression by hand: autograd takes the product the slow way round (x^T g, with
        # C columns), ten times the time of g^T x.
        error = log_p.exp_().sub_(nn.functional.one_hot(target, self.num_classes)).div_(len(target))
        weight = torch.bmm(error.transpose(1, 2), centred) * group.inverse()[:, None]
        healthy = torch.isfinite(loss) & torch.isfinite(square.sum(1))
        if len(target) > 1:
            healthy &= (centred.amax(1) != centred.amin(1)).any(1)
        return _Result((~healthy).float(), loss, accuracy, shift, square, weight, error.sum(1))

    @staticmethod
    def _reduce(parts: list[Tensor], size: int) -> None:
        """Average over the global batch, in place: each process counts by its samples."""
        flat = torch.cat([part.flatten() for part in parts] + [torch.ones(1, device=parts[0].device)]) * size
        dist.all_reduce(flat)
        flat = flat[:-1] / flat[-1]
        for part, mean in zip(parts, flat.split([part.numel() for part in parts]), strict=True):
            part.copy_(mean.view_as(part))

    @torch.no_grad()
    def logits(self, features: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Scores ``[B, C]`` of every layer, by name."""
        found: dict[str, Tensor] = {}
        for group in self._groups:
            with torch.autocast(group.weight.device.type, enabled=False):
                found.update(zip(group.names, group.logits(group.centred(features)), strict=True))
        return {name: found[name] for name in self.names}

    @torch.no_grad()
    def head(self, name: str) -> LinearHead:
        """The head of one layer on raw features, standardisation folded in; a copy, in float64."""
        for group in self._groups:
            if name in group.names:
                i = group.names.index(name)
                # Apple's GPUs have no float64.
                device = "cpu" if group.weight.device.type == "mps" else group.weight.device
                weight, inverse, mean, bias = (
                    part.to(device).double()
                    for part in (group.weight[i], group.inverse()[i], group.mean[i], group.bias[i])
                )
                folded = weight * inverse
                return LinearHead(folded, bias - folded @ mean)
        raise KeyError(f"no layer {name!r} in the bank, it has {self.names}")
