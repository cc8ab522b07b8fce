"""The similarity of layers over several batches of a set that lies class after class."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import TensorDataset
from toys import Images, Net
from toys_analysis import LAYERS, features

from tunnel_lightning.analysis.context import Context
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.streamed import own_set
from tunnel_lightning.analysis.subject import subject_of

SIZE = 32


def by_class(n, seed):
    images = Images(n, seed)
    order = images.y.argsort(stable=True)
    return TensorDataset(images.x[order], images.y[order])


def layers_of(net, x):
    """In double precision, averaged to 2 x 2."""
    return list(features(net, SimpleNamespace(x=x))[0].values())


def cka(batches):
    """HSIC_1 of every two layers as Song et al. write it, averaged over batches; then the ratio."""
    found = []
    for layers in batches:
        n, one = len(layers[0]), np.ones(len(layers[0]))
        grams = [(x - x.mean(0)) @ (x - x.mean(0)).T for x in layers]
        grams = [k - np.diag(np.diag(k)) for k in grams]
        found.append([
            [
                np.trace(k @ m) + (one @ k @ one) * (one @ m @ one) / ((n - 1) * (n - 2))
                - 2 / (n - 2) * (one @ k @ m @ one)
                for m in grams
            ]
            for k in grams
        ])  # fmt: skip
        found[-1] = np.array(found[-1]) / (n * (n - 3))
    mean = np.mean(found, 0)
    return mean / np.sqrt(np.outer(np.diag(mean), np.diag(mean)))


def test_similarity_over_batches_of_a_set_that_lies_class_after_class():
    torch.manual_seed(0)
    net = Net().eval()
    test = by_class(230, 1)
    own = ImageSet.from_loaders("data", by_class(60, 0), test, batch_size=SIZE)
    with Context(subject_of(net, None, own), own, [], Options(measures="cka")) as context:
        arrays = own_set(context).arrays
    assert arrays["cka/names"].tolist() == LAYERS
    order = own.numbers("test")
    assert torch.equal(own.labels("test"), test.tensors[1][order])
    mixed = [layers_of(net, test.tensors[0][rows]) for rows in order.split(29)]
    assert [len(layers[0]) for layers in mixed] == [29] * 7 + [27]
    assert arrays["cka/value"] == pytest.approx(cka(mixed), abs=1e-5)
    within = cka([layers_of(net, x) for x in test.tensors[0].split(SIZE)])
    assert np.abs(within - arrays["cka/value"]).max() > 0.05, "within a class it is another"
