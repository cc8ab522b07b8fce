"""Similarity of all layers to each other, streamed over batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.measures.functional.similarity import GRAM_NOISE, rounding, u_center_
from tunnel_lightning.taps.pooling import products
from tunnel_lightning.taps.precision import full_precision

# Products of two entries added up in the Grams' own precision, before float64.
SUMMED = 2048
TINY = torch.finfo(torch.float32).tiny


class SimilarityMap(NamedTuple):
    """Similarity of every two layers.

    Attributes:
        names: the L layers, in order of execution.
        value: ``[L, L]`` float64; NaN where undefined.
        se: standard error ``[L, L]`` float64; NaN for fewer than two batches.
        batches: how many it was measured on.
    """

    names: list[str]
    value: Tensor
    se: Tensor
    batches: int

    def between(self, rows: Sequence[str], columns: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The part of the map between two lists of layers, such as those of two networks.

        Args:
            rows: names of R layers.
            columns: names of C layers.

        Returns:
            Value and standard error ``[R, C]``.

        Raises:
            ValueError: a name is not in the map.

        Example:
            >>> part = SimilarityMap(["a", "b"], torch.eye(2), torch.zeros(2, 2), 3)
            >>> part.between(["b"], ["a", "b"])[0]
            tensor([[0., 1.]])
        """
        missing = [name for name in (*rows, *columns) if name not in self.names]
        if missing:
            raise ValueError(f"no layer {missing[0]!r} in the map; there are {self.names}")
        places = {name: i for i, name in enumerate(self.names)}
        at = (
            torch.tensor([places[name] for name in rows])[:, None],
            torch.tensor([places[n] for n in columns]),
        )
        return self.value[at], self.se[at]


class LayerSums:
    """Sums over batches of arrays whose axes are layers (``[L]``, ``[L, L]``), known by the layers' names.

    A layer that one batch, process or state lacks is NaN in its own rows and columns, and nowhere else.

    Attributes:
        names: the layers.
        batches: how many were added.
        sums: float64 arrays by name.

    Example:
        >>> sums = LayerSums()
        >>> sums.add(["a", "b"], x=torch.ones(2))
        >>> sums.add(["b", "c"], x=torch.ones(2))
        >>> sums.names, sums.sums["x"].tolist(), sums.batches
        (['a', 'b', 'c'], [nan, 2.0, nan], 2)
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self.batches = 0
        self.sums: dict[str, Tensor] = {}

    def add(self, names: Sequence[str], batches: int = 1, /, **terms: Tensor) -> None:
        """Add the arrays of a batch, or the sums of ``batches`` of them, over the layers ``names``."""
        if not batches:
            return
        if not self.batches:
            self.names = list(names)
            self.sums = {key: term.double() for key, term in terms.items()}
        else:
            if self.names != list(names):
                union = [*self.names, *(name for name in names if name not in self.names)]
                self.sums = {key: _spread(term, self.names, union) for key, term in self.sums.items()}
                terms = {key: _spread(term, names, union) for key, term in terms.items()}
                self.names = union
            self.sums = {key: term + terms[key].to(term) for key, term in self.sums.items()}
        self.batches += batches

    def merge(self, other: LayerSums) -> None:
        """Add the sums of ``other``, which stays as it is."""
        self.add(other.names, other.batches, **other.sums)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Add up the sums of all processes of ``group``, also of those without a batch.

        The states are gathered: they are a few L x L matrices, and processes may know different layers.
        """
        mine: Any = (self.names, self.batches, {key: term.cpu() for key, term in self.sums.items()})
        states: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(states, mine, group=group)
        self.batches = 0
        for names, batches, sums in states:
            self.add(names, batches, **sums)

    def mean(self, key: str) -> Tensor:
        """The mean over batches of one array, on the CPU; empty without a batch."""
        return self.sums[key].cpu() / self.batches if self.batches else torch.empty(0, 0, dtype=torch.float64)


def _spread(term: Tensor, names: Sequence[str], union: Sequence[str]) -> Tensor:
    """``term`` over the layers ``union``, NaN for those not in ``names``."""
    places = {name: i for i, name in enumerate(union)}
    at = torch.tensor([places[name] for name in names], device=term.device)
    wide = torch.full((len(union),) * term.ndim, torch.nan, dtype=torch.float64, device=term.device)
    wide[at if term.ndim == 1 else (at[:, None], at)] = term.double()
    return wide


class Grams(NamedTuple):
    """The Gram matrices of a batch, as :class:`Stacker` makes them.

    Attributes:
        names: layers.
        stack: their Gram matrices over ``scale``, ``[L, B, B]`` float32 or float64.
        scale: factor taken out of each ``[L]`` float64.
        noise: largest Frobenius norm that rounding alone gives a Gram, ``scale`` included, ``[L]`` float64.
    """

    names: list[str]
    stack: Tensor
    scale: Tensor
    noise: Tensor

    def hsic(self, stack: Tensor) -> Tensor:
        """HSIC_1 of every two layers, ``[L, L]``, from a stack of U-centred Grams on the scale of this one."""
        n = stack.shape[-1]
        found = torch.zeros_like(self.scale * self.scale[:, None])
        with full_precision(stack.device):
            for part in stack.flatten(1).split(SUMMED, 1):
                found += products(part)
        return found * (self.scale * self.scale[:, None] / (n * (n - 3)))

    def floor(self, images: int) -> Tensor:
        """The largest self-HSIC that rounding alone gives a layer, ``[L]``, of Grams of so many images."""
        return self.noise.square() / (images * (images - 3))


class Stacker:
    """Makes the Gram matrices of the layers of a batch, in a buffer that is kept.

    Features are centred over the batch and scaled by their largest value, Grams by their largest entry, so that no
    product leaves the range of float32.

    Args:
        grams: the layers come as Gram matrices ``[B, B]`` instead of features ``[B, D]``.
        double: keep the Grams in float64 even where the features are float32; otherwise they are as the features.
    """

    def __init__(self, grams: bool, double: bool = True) -> None:
        self.grams = grams
        self.double = double
        self._buffer: Tensor | None = None

    @torch.no_grad()
    def __call__(self, features: Mapping[str, Tensor]) -> Grams:
        """The Grams of one batch, valid until the next; layers as :func:`check_shapes` asks for them."""
        # The raw pixels are measured after the network ran.
        names = sorted(features, key=lambda name: name != "input")
        layers = [features[name].detach() for name in names]
        # Apple's GPUs have no float64.
        device = torch.device("cpu") if layers[0].device.type == "mps" else layers[0].device
        doubles = self.double or any(x.dtype == torch.float64 for x in layers)
        stack = self._stack(len(names), len(layers[0]), torch.float64 if doubles else torch.float32, device)
        if self.grams:
            torch.stack([x.to(stack) for x in layers], out=stack)
            # No entry is larger; a layer may be constant in one batch.
            scale = stack.diagonal(dim1=1, dim2=2).amax(1).clamp(min=TINY)
            stack /= scale[:, None, None]
            scale = scale.double()
            rounded = torch.zeros_like(scale)
        else:
            each = [_centred_gram(x, into) for x, into in zip(layers, stack, strict=True)]
            largest, variance = (
                torch.stack(column).to(device).double() for column in zip(*each, strict=True)
            )
            scale, rounded = largest.square(), len(layers[0]) * variance
        trace = stack.diagonal(dim1=1, dim2=2).sum(1).double()
        return Grams(names, stack, scale, GRAM_NOISE * trace * scale + rounded)

    def _stack(self, layers: int, size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        kept, shape = self._buffer, (layers, size, size)
        if kept is None or kept.shape != shape or kept.dtype != dtype or kept.device != device:
            self._buffer = kept = torch.empty(shape, dtype=dtype, device=device)
        return kept


def _centred_gram(x: Tensor, into: Tensor) -> tuple[Tensor, Tensor]:
    """Fill in the Gram of centred and scaled features.

    Returns:
        What the features were divided by, and the variance that rounding to their own type gave them.
    """
    wide = x if x.dtype == torch.float64 else x.float()
    with full_precision(x.device):
        mean = wide.mean(0)
        rows = wide - mean
        low, high = rows.aminmax()
        largest = torch.maximum(-low, high).clamp(min=TINY)
        into.copy_(products(rows.div_(largest)))
    return largest, rounding(x.dtype, mean.to(into.device).double())


def check_shapes(features: Mapping[str, Tensor], grams: bool) -> int:
    """The images of a batch.

    Raises:
        ValueError: the layers are not of one batch, or not ``[B, D]`` (``[B, B]`` with ``grams``).
    """
    size = len(next(iter(features.values()))) if features else 0
    for name, x in features.items():
        if x.ndim != 2 or len(x) != size or (grams and x.shape[1] != size):
            wanted = f"a Gram matrix [{size}, {size}]" if grams else f"features [{size}, D]"
            raise ValueError(f"similarity of layers needs {wanted} of {name!r}, got {list(x.shape)}")
    return size


class HsicSums(LayerSums):
    """Sums over batches of HSIC matrices, and the similarity they make."""

    def add_hsic(self, names: Sequence[str], hsic: Tensor, floor: Tensor) -> None:
        """Add the HSIC_1 of every two layers in one batch, ``[L, L]``, and the floors of their own, ``[L]``."""
        own = hsic.diagonal()
        self.add(
            names,
            hsic=hsic,
            square=hsic * hsic,
            with_own=hsic * own[:, None],
            own=torch.outer(own, own),
            floor=floor,
        )

    def similarity(self) -> SimilarityMap:
        """Mean HSIC over the root of the mean HSICs of both layers with themselves, and its standard error.

        With ``r = h / sqrt(a b)``, means over batches, the delta method says how a batch moves it:
        ``d = h_i / sqrt(a b) - r/2 (a_i / a + b_i / b)``; the standard error is that of the mean of ``d``, whose
        second moment needs no more than the sums.
        """
        mean = self.mean("hsic")
        if not self.batches:
            return SimilarityMap([], mean, mean, 0)
        own = mean.diagonal()
        own = own.where(own > self.mean("floor"), torch.nan)
        norm = own.sqrt() * own.sqrt()[:, None]
        value = mean / norm
        with_own = self.mean("with_own") / norm / own[:, None]
        owns = self.mean("own") / own / own[:, None]
        squares = owns.diagonal()
        second = (
            self.mean("square") / norm / norm
            - value * (with_own + with_own.T)
            + value.square() / 4 * (squares + squares[:, None] + 2 * owns)
        )
        se = (second.clamp(min=0) / (self.batches - 1 if self.batches > 1 else torch.nan)).sqrt()
        # One exactly: what is left there is rounding.
        value.diagonal().copy_(own / own)
        se.diagonal().mul_(0)
        return SimilarityMap(list(self.names), value, se, self.batches)


class LayerSimilarity:
    """Linear CKA of all pairs of layers in one pass: an ``Observer``.

    Minibatch CKA (Nguyen et al., ICLR 2021, eq. 2): the unbiased HSIC_1 of every two layers is averaged over batches,
    and one ratio taken at the end, so the result depends on the size of the batches little (.585 with 8 images, .580
    with 256, where averaging biased ratios gives .91 and .62). Every batch weighs the same, as the paper has it; its
    released code adds up HSIC_1 times B (B - 3), so that a short last batch weighs less: a difference below .001.
    Batches of fewer than four images, for which HSIC_1 is not defined, are skipped.

    Features are centred before the product, so that in float32 nothing cancels, neither there nor in U-centring; sums
    over a Gram's entries (float32 for 2,048 of them at a time) and over batches are float64, which leaves errors of
    about 1e-7. The state is five L x L sums, whatever the number of images. Layers of several networks come in one
    mapping under different names; ``compute().between(...)`` is the part between two of them.

    A layer is NaN where a forward skipped it, where its features are NaN or infinite, and where its similarity with
    itself is no more than rounding.

    Args:
        grams: what comes are Gram matrices ``[B, B]`` (taps with ``pool="gram"``) instead of features ``[B, D]``.

    Example:
        >>> similarity = LayerSimilarity()
        >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        >>> for batch in x.split(16):
        ...     similarity.update({"first": batch, "second": 2 * batch.flip(1) + 1})
        >>> result = similarity.compute()
        >>> result.names, round(result.value[0, 1].item(), 6), result.batches
        (['first', 'second'], 1.0, 4)
    """

    def __init__(self, grams: bool = False) -> None:
        self._stacker = Stacker(grams, double=False)
        self._sums = HsicSums()

    @staticmethod
    def nbytes(layers: int, batch: int) -> int:
        """Bytes held for so many layers, of float32, and images a batch, whatever the number of batches.

        Example:
            >>> LayerSimilarity.nbytes(17, 256)
            4465832
        """
        return 4 * layers * batch * batch + 8 * (4 * layers * layers + layers)

    def update(
        self, features: Mapping[str, Tensor], target: Tensor | None = None, output: Tensor | None = None
    ) -> None:
        """Add one batch.

        Args:
            features: ``[B, D]`` of each layer, or Gram matrices ``[B, B]``, by name in order of execution.
            target: not used.
            output: not used.

        Raises:
            ValueError: other shapes.
        """
        size = check_shapes(features, self._stacker.grams)
        if size < 4:
            return
        grams = self._stacker(features)
        self._sums.add_hsic(grams.names, grams.hsic(u_center_(grams.stack)), grams.floor(size))

    def merge(self, other: LayerSimilarity) -> None:
        """Add the batches of ``other``."""
        self._sums.merge(other._sums)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Add up the batches of all processes of ``group``."""
        self._sums.all_reduce(group)

    def compute(self) -> SimilarityMap:
        """The map of all layers so far, with the standard error over batches."""
        return self._sums.similarity()
