"""What deep layers add: a network that learnt noise, training images near an embedding, images made of classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tunnel_lightning.analysis.invert.generate import generate
from tunnel_lightning.analysis.invert.objective import Readout, readout
from tunnel_lightning.analysis.invert.targets import Targets, noise
from tunnel_lightning.analysis.invert.tasks import NOISE_NETWORK, Net, Work, pictures
from tunnel_lightning.analysis.store import Part, images_key, tensors_key
from tunnel_lightning.analysis.twins import untrained
from tunnel_lightning.backbones import Backbone, rebuild
from tunnel_lightning.measures import ridge
from tunnel_lightning.measures.base import scores_of
from tunnel_lightning.taps import Tap, Taps, TapSpec, quiet, untouched_rng

SHARP = 10.0
"""What ridge scores, which are near 0 and 1, are multiplied by for a softmax that can be certain."""
BATCH = 128
"""Images of a training step on noise, as Badger's."""


# -- a network that learnt noise -----------------------------------------------------------------------------


def noise_network(work: Work, shape: Sequence[int]) -> Net:
    """The twin of the network's architecture that learns to name images of pure noise, labelled at random.

    After Badger, "Depth and Representation in Vision Models", 2022: N(0.5, 0.25) images, Adam. What its late layers
    recover looks like the noise it learnt, so what late layers recover is made of what a network was trained on.

    Args:
        work: the inversion.
        shape: ``(C, H, W)`` of one image.
    """
    options, subject = work.options, work.subject
    if isinstance(subject.network, Backbone):
        config = subject.network.config
        with untouched_rng():
            torch.manual_seed(options.seed + 1)
            init = {**config["init_args"], "num_classes": options.noise_classes}
            network: nn.Module = rebuild({**config, "init_args": init})
    else:
        network, _ = untrained(replace(subject, run=None), options.seed + 1)
    network.to(work.fabric.device)
    images = noise(options.noise_images, shape, options.seed + 2)
    settings = {key: value for key, value in asdict(options).items() if key.startswith("noise_")}
    key = (settings, options.seed, str(network), asdict(work.pixels), list(shape))
    part = work.finish("noise-network", "training on noise", key, lambda: _learn(work, network, images))
    state = {name.removeprefix("state/"): torch.from_numpy(value) for name, value in part.arrays.items()}
    network.load_state_dict(state)
    right, classes = part.extra["right"], part.extra["classes"]
    origin = (
        f"trained on {options.noise_images:,} images of noise in {classes} classes at random, {options.noise_epochs} "
        f"epochs; it names {100 * right:.0f} % of them"
    )
    if right < 0.5:
        work.note(
            f"the network trained on noise names only {100 * right:.0f} % of its images: give it more "
            "--noise_epochs, or fewer --noise_images"
        )
    return Net(NOISE_NETWORK, network.eval(), origin)


def _learn(work: Work, network: nn.Module, images: Tensor) -> Part:
    """Train the network in place; its state, and the share of images that it names."""
    options, device = work.options, work.fabric.device
    draw = torch.Generator().manual_seed(options.seed + 3)
    with quiet(network):
        scores = scores_of(network(work.pixels.shown(images[:2]).to(device)))
    if scores is None:
        raise ValueError(
            f"{work.subject.title} gives no scores [B, classes], so it can't learn labels: leave out --noise_network"
        )
    classes = min(options.noise_classes, scores.shape[1])
    labels = torch.randint(classes, (len(images),), generator=draw)
    optimizer = torch.optim.Adam(network.parameters(), lr=options.noise_lr)
    with untouched_rng():
        torch.manual_seed(options.seed)  # of dropout
        network.train()
        for epoch in range(options.noise_epochs):
            work.bars("training on noise", epoch, options.noise_epochs)
            order = torch.randperm(len(images), generator=draw)
            for some in order.split(BATCH):
                if len(some) < 2:  # batch normalisation needs two
                    continue
                optimizer.zero_grad()
                output = scores_of(network(work.pixels.shown(images[some]).to(device)))
                assert output is not None, "it gave scores before"
                nn.functional.cross_entropy(output[:, :classes], labels[some].to(device)).backward()
                optimizer.step()
    network.zero_grad(set_to_none=True)
    right = 0
    with quiet(network):
        for some in torch.arange(len(images)).split(BATCH):
            answer = scores_of(network(work.pixels.shown(images[some]).to(device)))
            assert answer is not None, "it gave scores before"
            right += int((answer[:, :classes].argmax(1).cpu() == labels[some]).sum())
    state = {f"state/{name}": value.detach().cpu().numpy() for name, value in network.state_dict().items()}
    return Part(arrays=state, extra={"right": right / len(images), "classes": classes})


# -- training images near an embedding -----------------------------------------------------------------------


def neighbours(work: Work, net: Net, targets: Targets, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
    """Training images whose embeddings lie nearest to those of the targets, and to those of what was recovered.

    Distances are Euclidean, of a layer's whole output.

    Args:
        work: the inversion.
        net: the network.
        targets: N images.
        images: what was recovered, pixels ``[L, N, S, C, H, W]``; the first start is looked at.

    Returns:
        ``near/SET/NETWORK`` and ``near_recovered/SET/NETWORK``: places in a pass over the training images
        ``[L, N, K]``, the nearest first; ``label_...`` their classes; ``pictures_...``, uint8 ``[L, N, K, H, W, C]``;
        and of targets with a class ``class_...``, the share of the K that are of it ``[L, N, 1]``.
    """
    options = work.options
    count = min(options.neighbour_images, work.own.size("train"))
    weights, shown = tensors_key(net.network.state_dict()), tensors_key({"pixels": targets.pixels})
    made = tensors_key({"recovered": torch.from_numpy(np.ascontiguousarray(images[:, :, 0]))})
    key = (
        weights,
        shown,
        made,
        images_key(work.own),
        count,
        options.neighbours,
        [t.name for t in work.layers],
    )
    title = f"training images near {targets.name}, {net.name}"
    part = work.finish(
        f"near-{targets.name}-{net.name}",
        title,
        key,
        lambda: Part(arrays=_near(work, net, targets, images, count, title)),
    )
    tag = f"{targets.name}/{net.name}"
    return {f"{name.removeprefix('x/')}/{tag}": value for name, value in part.arrays.items()}


def _near(
    work: Work, net: Net, targets: Targets, images: NDArray[Any], count: int, title: str
) -> dict[str, NDArray[Any]]:
    device, k = work.fabric.device, min(work.options.neighbours, count)
    asked = torch.cat(
        [
            targets.pixels[None].expand(len(work.layers), *targets.pixels.shape),
            torch.from_numpy(images[:, :, 0]),
        ],
        1,
    )
    wanted = {
        layer.name: found
        for layer, queries in zip(work.layers, asked, strict=True)
        for found in [
            _features(work, net, [layer], work.pixels.shown(queries.float()).to(device))[layer.name]
        ]
    }
    best = {name: torch.full((len(q), k), torch.inf) for name, q in wanted.items()}
    place = {name: torch.zeros(len(q), k, dtype=torch.int64) for name, q in wanted.items()}
    kept, labels, start = [], [], 0
    total = work.own.size("train", count)
    for x, y in work.own.batches("train", count):
        for some, number in zip(x.split(_few(work)), torch.arange(len(x)).split(_few(work)), strict=True):
            work.bars(title, start + int(number[0]), total)
            features = _features(work, net, work.layers, some.to(device))
            for name, q in wanted.items():
                distance = torch.cdist(q, features[name]).cpu()
                both = torch.cat([best[name], distance], 1)
                at = torch.cat([place[name], (start + number).expand(len(q), -1)], 1)
                best[name], order = both.topk(k, dim=1, largest=False)
                place[name] = at.gather(1, order)
        start += len(x)
        kept.append(x)
        labels.append(y)
    train, label = torch.cat(kept), torch.cat(labels)
    where = torch.stack([place[layer.name] for layer in work.layers])  # [L, 2 N, K]
    found: dict[str, NDArray[Any]] = {}
    n = len(targets.pixels)
    for name, part in (("near", where[:, :n]), ("near_recovered", where[:, n:])):
        shown = work.pixels.of(train[part.flatten()]).unflatten(0, part.shape)
        found[f"x/{name}"] = part.numpy()
        found[f"x/pictures_{name}"] = pictures(shown.numpy())
        found[f"x/label_{name}"] = label[part].numpy()
        if min(targets.classes) >= 0:
            same = label[part] == torch.tensor(targets.classes)[None, :, None]
            found[f"x/class_{name}"] = same.float().mean(2, keepdim=True).numpy()
    return found


def _few(work: Work) -> int:
    """Training images at once, so that the layers' whole outputs fit into half of the memory limit."""
    one = 4 * sum(int(np.prod(layer.shape)) for layer in work.layers)
    return int(np.clip(work.options.memory // (2 * max(one, 1)), 1, 256))


def _features(work: Work, net: Net, layers: Sequence[Tap], x: Tensor) -> dict[str, Tensor]:
    """Whole outputs of layers, each ``[B, D]``."""
    with Taps(net.network, TapSpec([layer.name for layer in layers], "flatten")) as taps, quiet(net.network):
        taps.arm()
        (net.model or net.network)(x)
        return {name: value.float() for name, value in taps.take().items()}


# -- images made of classes ----------------------------------------------------------------------------------


def generated(
    work: Work, net: Net, classes: Sequence[int], shape: Sequence[int]
) -> Mapping[str, NDArray[Any]]:
    """Images of classes, made from noise through each layer: the likelihood its ridge probe gives a class is raised.

    Badger raises the class's score alone, which grows without end; its likelihood, the softmax of `SHARP` times the
    ridge scores, is content when the class is told from all others. The probe is fitted on the layer's outputs,
    pooled 2 x 2, of up to ``neighbour_images`` training images.

    Returns:
        ``generated/NETWORK``: uint8 ``[L, K, S, H, W, C]``; ``generated_class/NETWORK``: the share of starts that the
        network itself names as that class ``[L, K, 1]``.
    """
    options, count = work.options, min(work.options.neighbour_images, work.own.size("train"))
    weights = tensors_key(net.network.state_dict())
    key = (
        weights,
        images_key(work.own),
        count,
        list(classes),
        asdict(options.how),
        options.starts,
        options.seed,
    )
    part = work.finish(
        f"generated-{net.name}",
        f"images of classes, {net.name}",
        (*key, [layer.name for layer in work.layers], asdict(work.pixels)),
        lambda: Part(arrays=_generated(work, net, classes, shape, count)),
    )
    return {f"{name.removeprefix('x/')}/{net.name}": value for name, value in part.arrays.items()}


def _generated(
    work: Work, net: Net, classes: Sequence[int], shape: Sequence[int], count: int
) -> dict[str, NDArray[Any]]:
    options, title = work.options, f"images of classes, {net.name}"
    with Taps(net.network, TapSpec([layer.name for layer in work.layers])) as taps:
        features, labels = _pooled(work, net, taps, count)
        places = {layer.name: layer for layer in taps.layers}
    reads = []
    for layer in work.layers:
        head = ridge(features[layer.name], labels, work.own.num_classes)
        if not bool(torch.isfinite(head.weight).all()):
            raise ValueError(
                f"no probe can be fitted at {layer.name}: its outputs are constant or not finite"
            )
        weight, bias = (SHARP * value.float().to(work.fabric.device) for value in head)
        reads.append(_likelihood(readout(net.network, places[layer.name], weight, bias)))
    found = generate(
        net.network, [places[layer.name] for layer in work.layers], reads, classes, shape, options.how,
        mean=work.pixels.mean, std=work.pixels.std, model=net.model, starts=options.starts, seed=options.seed,
        memory_gb=options.memory_gb, progress=work.told(title),
    )  # fmt: skip
    named = []
    with quiet(net.network):
        for images in found.images.flatten(0, 2).clamp(0, 1).split(256):
            scores = scores_of((net.model or net.network)(work.pixels.shown(images).to(work.fabric.device)))
            named.append(torch.full((len(images),), -1) if scores is None else scores.argmax(1).cpu())
    answer = torch.cat(named).unflatten(0, found.images.shape[:3])
    same = (answer == torch.tensor(list(classes))[None, :, None]).float().mean(2, keepdim=True)
    return {"x/generated": pictures(found.images.numpy()), "x/generated_class": same.numpy()}


def _likelihood(read: Readout) -> Readout:
    """The logarithms of class likelihoods, of class scores."""
    return lambda output: nn.functional.log_softmax(read(output), 1)


def _pooled(work: Work, net: Net, taps: Taps, count: int) -> tuple[dict[str, Tensor], Tensor]:
    """Pooled features of training images by layer, and their labels."""
    kept: dict[str, list[Tensor]] = {}
    labels = []
    with quiet(net.network):
        taps.arm()
        for x, y in _told(work, count, f"probes of {net.name}"):
            (net.model or net.network)(x.to(work.fabric.device))
            for name, value in taps.take().items():
                kept.setdefault(name, []).append(value.float().cpu())
            labels.append(y)
        taps.disarm()
    return {name: torch.cat(values) for name, values in kept.items()}, torch.cat(labels)


def _told(work: Work, count: int, what: str) -> Iterator[tuple[Tensor, Tensor]]:
    batches = work.own.batches("train", count)
    for done, batch in enumerate(batches):
        work.bars(what, done, len(batches))
        yield batch
