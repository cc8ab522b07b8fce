"""What a layer's first principal component, and the images that make it, do to its similarity with others."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from tunnel_lightning.measures.functional.similarity import u_center_
from tunnel_lightning.measures.similarity import (
    HsicSums,
    LayerSums,
    SimilarityMap,
    Stacker,
    check_shapes,
)

# Steps after which the residual is looked at, and how small it must be, as a share of the eigenvalue.
STEPS = 20
RESIDUAL = 1e-7


class Components(NamedTuple):
    """What :class:`FirstComponents` found.

    Attributes:
        names: the L layers.
        fraction: of each layer, the share of the variance in its first principal component ``[L]`` float64, mean over
            batches.
        fraction_se: its standard error over batches ``[L]``; NaN for fewer than two.
        cosine: ``|cos|`` between the layers' first components, mean over batches.
        cka: as :class:`~tunnel_lightning.measures.similarity.LayerSimilarity` has it.
        without_first: the same after the first component is removed from every layer.
        without_dominant: the same after the images that dominate it are left out.
    """

    names: list[str]
    fraction: Tensor
    fraction_se: Tensor
    cosine: SimilarityMap
    cka: SimilarityMap
    without_first: SimilarityMap
    without_dominant: SimilarityMap


def first_component(grams: Tensor) -> tuple[Tensor, Tensor]:
    """Largest eigenvalue and its eigenvector of many Gram matrices at once.

    Lanczos with full orthogonalisation (Golub & Van Loan, Matrix Computations, section 10.3), a third of the work of
    all eigenvalues at 256 images. Matrices whose residual is then above 1e-7 of the eigenvalue, as of features
    without a direction of their own, get the full decomposition.

    Args:
        grams: ``[L, N, N]`` symmetric and positive, finite, float64.

    Returns:
        Eigenvalues ``[L]`` and unit vectors ``[L, N]``, of either sign; zero for a zero matrix.

    Example:
        >>> value, vector = first_component(torch.diag(torch.tensor([1.0, 3.0])).double()[None])
        >>> value, vector.abs()
        (tensor([3.], dtype=torch.float64), tensor([[0., 1.]], dtype=torch.float64))
    """
    layers, n, _ = grams.shape
    if n <= STEPS:
        values, vectors = torch.linalg.eigh(grams)
        return values[:, -1], vectors[:, :, -1]
    # Drawn from a generator of its own: no random state moves.
    start = torch.randn(n, generator=torch.Generator().manual_seed(0), dtype=grams.dtype).to(grams.device)
    step = (start / torch.linalg.vector_norm(start)).expand(layers, n)[..., None]
    nothing = torch.finfo(grams.dtype).eps * n * grams.diagonal(dim1=1, dim2=2).sum(1)[:, None, None]
    basis, inner = grams.new_zeros(layers, n, STEPS), grams.new_zeros(layers, STEPS, STEPS)
    for i in range(STEPS):
        basis[:, :, i : i + 1] = step
        known = basis[:, :, : i + 1]
        step = grams @ step
        share = known.mT @ step
        inner[:, i, : i + 1] = share[..., 0]
        step = step - known @ share
        step = step - known @ (known.mT @ step)
        size = torch.linalg.vector_norm(step, dim=1, keepdim=True)
        # Nothing is left where the steps so far span all that the matrix does.
        step = (step / size).where(size > nothing, 0)
    values, vectors = torch.linalg.eigh(inner)
    value, vector = values[:, -1], basis @ vectors[:, :, -1:]
    residual = torch.linalg.vector_norm(grams @ vector - value[:, None, None] * vector, dim=(1, 2))
    vector = vector[..., 0]
    rough = residual > RESIDUAL * value
    if rough.any():
        values, vectors = torch.linalg.eigh(grams[rough])
        value[rough], vector[rough] = values[:, -1], vectors[:, :, -1]
    return value, vector


class FirstComponents:
    """First principal components of all layers, and CKA with them and without, in one pass: an ``Observer``.

    Nguyen et al. (ICLR 2021, section 4): in the layers of a block structure one principal component holds most of the
    variance and is nearly the same in all of them; without it the block is gone. The few images that make this
    component differ by seed (Nguyen et al., 2202.07184, 2022): leaving them out is the other control. Per batch and
    layer, with the Gram matrix K of the centred features, its largest eigenvalue l and eigenvector u (one number an
    image):

    - fraction of the variance ``l / tr K``. The paper's code takes scikit-learn's ``explained_variance_ratio_`` of
      the transpose, which also subtracts a mean over features from every image; this is the exact share.
    - cosine ``|u_i . u_j|`` of every two layers; the sign of u is arbitrary.
    - CKA without the component: of ``K - l u u'``.
    - CKA without the images that dominate: the ``share`` of the batch with the largest ``|u|`` in the layer with the
      largest fraction of the batch is left out of every layer.

    CKA itself comes from the same Grams. All are averages over batches, as in
    :class:`~tunnel_lightning.measures.similarity.LayerSimilarity`, with the same NaN.

    Args:
        grams: what comes are Gram matrices ``[B, B]`` (taps with ``pool="gram"``) instead of features ``[B, D]``.
        share: share of the images of a batch to leave out, at least one. A batch with fewer than four others is
            skipped.

    Raises:
        ValueError: ``share`` is not between 0 and 1.

    Example:
        >>> components = FirstComponents()
        >>> x = torch.randn(64, 10, generator=torch.Generator().manual_seed(0))
        >>> x[:, 0] *= 100
        >>> for batch in x.split(16):
        ...     components.update({"first": batch, "second": 2 * batch.flip(1) + 1})
        >>> result = components.compute()
        >>> bool((result.fraction > 0.99).all()), round(result.cosine.value[0, 1].item(), 6)
        (True, 1.0)
    """

    def __init__(self, grams: bool = False, share: float = 0.01) -> None:
        if not 0 <= share < 1:
            raise ValueError(f"share of dominant images to leave out is {share}: give a number from 0 to 1")
        self.share = share
        self._stacker = Stacker(grams)
        self._cka, self._without_first, self._without_dominant = HsicSums(), HsicSums(), HsicSums()
        self._first = LayerSums()

    @staticmethod
    def nbytes(layers: int, batch: int) -> int:
        """Bytes at most in use for so many layers and images a batch, whatever the number of batches.

        Example:
            >>> FirstComponents.nbytes(60, 256) / 2**20 < 100
            True
        """
        return 8 * (3 * layers * batch * batch + 14 * layers * layers + 5 * layers)

    @torch.no_grad()
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
        drop = max(1, round(self.share * size))
        if size - drop < 4:
            return
        grams = self._stacker(features)
        stack = grams.stack
        for gram in stack:  # one by one, while the processor's cache holds it
            _center_(gram)
        trace = stack.diagonal(dim1=1, dim2=2).sum(1)
        # A comparison with NaN is false; a layer that only holds rounding has no component.
        usable = torch.linalg.matrix_norm(stack) * grams.scale > grams.noise
        value, vector = first_component(stack.where(usable[:, None, None], 0))
        value, vector = value.where(usable, torch.nan), vector.where(usable[:, None], torch.nan)
        fraction = value / trace
        cosine = (vector @ vector.T).abs()
        cosine.diagonal().round_()  # 1, but for rounding
        self._first.add(
            grams.names,
            fraction=fraction,
            fraction_square=fraction**2,
            cosine=cosine,
            cosine_square=cosine**2,
        )

        floor = grams.floor(size)
        most = vector[fraction.nan_to_num(nan=-1).argmax()].abs()
        keep = most.argsort()[: size - drop]
        kept = u_center_(stack[:, keep[:, None], keep])
        self._without_dominant.add_hsic(grams.names, grams.hsic(kept), grams.floor(size - drop))
        del kept
        without = u_center_(stack - value[:, None, None] * vector[:, :, None] * vector[:, None])
        self._without_first.add_hsic(grams.names, grams.hsic(without), floor)
        self._cka.add_hsic(grams.names, grams.hsic(u_center_(stack)), floor)

    def merge(self, other: FirstComponents) -> None:
        """Add the batches of ``other``."""
        for mine, others in zip(self._parts(), other._parts(), strict=True):
            mine.merge(others)

    def all_reduce(self, group: dist.ProcessGroup | None = None) -> None:
        """Add up the batches of all processes of ``group``."""
        for part in self._parts():
            part.all_reduce(group)

    def compute(self) -> Components:
        """What was found so far, with standard errors over batches."""
        names, batches = list(self._first.names), self._first.batches
        found = {
            key: self._first.mean(key) for key in ("fraction", "fraction_square", "cosine", "cosine_square")
        }
        error = {
            key: (
                (found[f"{key}_square"] - found[key] ** 2).clamp(min=0)
                / (batches - 1 if batches > 1 else torch.nan)
            ).sqrt()
            for key in ("fraction", "cosine")
        }
        return Components(
            names,
            found["fraction"].flatten(),
            error["fraction"].flatten(),
            SimilarityMap(names, found["cosine"], error["cosine"], batches),
            self._cka.similarity(),
            self._without_first.similarity(),
            self._without_dominant.similarity(),
        )

    def _parts(self) -> tuple[LayerSums, ...]:
        return self._first, self._cka, self._without_first, self._without_dominant


def _center_(gram: Tensor) -> None:
    """Centre over images, in place, in float64: the eigenvectors must know no rounding of the mean."""
    mean = gram.mean(0)
    gram.sub_(mean).sub_((mean - mean.mean())[:, None])
