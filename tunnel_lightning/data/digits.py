"""Scanned handwritten digits that scikit-learn brings along."""

from __future__ import annotations

import numpy as np
import torch

from tunnel_lightning.data.base import ImageData, Part, Shape
from tunnel_lightning.data.images import Pool, stratified_split


class Digits(ImageData):
    """Handwritten digits, 8x8 grey, 1,797 images of 10 classes; needs no download.

    A fifth of every class is the test part. Grey levels 0..16 are scaled to 0..255.
    Source: E. Alpaydin and C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI; as shipped
    with scikit-learn (`sklearn.datasets.load_digits`, the test part of the UCI set).

    Takes the arguments of `ImageData`.

    Example:
        >>> digits = Digits()
        >>> digits.num_classes, digits.input_shape, len(digits.class_names)
        (10, (1, 8, 8), 10)
    """

    flips = False

    @property
    def native_shape(self) -> Shape:
        """One grey channel of 8x8."""
        return (1, 8, 8)

    @property
    def all_class_names(self) -> list[str]:
        """The ten digits."""
        return [str(digit) for digit in range(10)]

    def _load(self, part: Part) -> Pool | None:
        if part == "val":
            return None
        from sklearn.datasets import load_digits

        images, labels = load_digits(return_X_y=True)
        images = np.round(images * (255 / 16)).astype(np.uint8).reshape(-1, 1, 8, 8)
        labels = labels.astype(np.int64)
        keep = dict(zip(("train", "test"), stratified_split(labels, 0.2, self._rng(3)), strict=True))[part]
        return Pool(torch.from_numpy(images), torch.from_numpy(labels)).take(keep)
