"""What is refused before the first pass, in words: too few images for what is asked, layers that are not there."""

import pytest
import torch
from torch.utils.data import Subset
from toys import CLASSES, Images, Net

import tunnel_lightning
from tunnel_lightning.analysis.limits import check_images
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.analysis.sets import ImageSet

TRAIN, TEST = Images(100, 0), Images(60, 1)
FEW = Images(40, 2, classes=20)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Net().eval()


def refused(net, train, test, ood=(), **options):
    """The sentence; nothing was passed before it."""
    passes = []
    with pytest.raises(ValueError, match=" ") as caught:
        tunnel_lightning.analyze(
            net, train, test, ood, progress=lambda what, done, total: passes.append(what), **options
        )
    assert not passes
    assert not any(module._forward_hooks for module in net.modules())
    return str(caught.value)


@pytest.mark.parametrize("measures", ["logistic", "masarczyk", "knn", "ridge,harun"])
def test_a_sample_smaller_than_the_classes(net, measures):
    said = "data: 3 training images are fewer than its 5 classes, so no probe can be fitted: raise --sample"
    assert refused(net, TRAIN, TEST, measures=measures, sample=3) == said
    assert "raise --fit_images" in refused(net, TRAIN, TEST, measures=measures, fit_images=3)


def test_of_a_transfer_set_too_where_probes_are_fitted_on_it(net):
    sets = {"Other": (FEW, FEW)}
    said = (
        "Other: 10 training images are fewer than its 20 classes, so no probe can be fitted: raise --sample"
    )
    assert refused(net, TRAIN, TEST, sets, measures="logistic", sample=10) == said
    assert tunnel_lightning.analyze(net, TRAIN, TEST, sets, measures="ridge,knn", sample=10).rows


def test_what_takes_no_sample_takes_no_notice_of_it(net):
    assert tunnel_lightning.analyze(net, TRAIN, TEST, (), measures="ridge,ranks,cka", sample=3).rows


def test_classes_that_the_sample_lacks_are_named():
    rare = Subset(TRAIN, [i for i in range(100) if TRAIN.y[i] < 4 or i == 4])
    images = ImageSet.from_loaders("data", rare, TEST, num_classes=CLASSES)
    assert check_images(images, Options(measures="ridge", sample=10), True) == []
    (note,) = check_images(images, Options(measures="logistic", sample=10), True)
    assert note == "data has no training images of 1 of 5 classes (4) among the 10 of --sample"
    assert check_images(images, Options(measures="knn", sample=10), True) == [note]
    assert check_images(images, Options(measures="knn", sample=10), False) == []


@pytest.mark.parametrize("kind", ["logistic", "nguyen"])
def test_too_few_images_to_hold_any_out(net, kind):
    two = Images(60, 0, classes=2), Images(30, 1, classes=2)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 4), torch.nn.Linear(4, 2))
    said = "data: probes are trained on at least 3 images and it gives 2: give more images, or raise --sample"
    assert refused(net, *two, measures=kind, sample=2).startswith(said)
    assert tunnel_lightning.analyze(net, *two, (), measures=kind, sample=3).rows


@pytest.mark.parametrize(
    ("measure", "images", "fewest"),
    [
        ("cka", 3, 4),
        ("rbf_cka", 3, 4),
        ("blocks", 4, 5),
        ("procrustes", 1, 2),
        ("svcca", 1, 2),
        ("pwcca", 1, 2),
    ],
)
def test_too_few_test_images_for_a_similarity(net, measure, images, fewest):
    said = (
        f"{measure} needs at least {fewest} test images at once and takes {images} of data: give more images, or "
        f"leave {measure} out of --measures"
    )
    assert refused(net, TRAIN, Images(images, 1), measures=["ridge", measure]) == said
    found = tunnel_lightning.analyze(net, TRAIN, Images(fewest, 1), (), measures=["ridge", measure])
    assert all(each.value.shape == (len(each.names),) * 2 for each in found.similarity.values())
    assert all(len(each.names) > 3 for each in found.similarity.values())
    assert found.similarity


def test_the_batches_count_where_a_similarity_is_over_batches():
    images = ImageSet.from_loaders("data", TRAIN, TEST, batch_size=4)
    assert check_images(images, Options(measures="cka,rbf_cka"), True) == []
    with pytest.raises(ValueError, match="blocks needs at least 5 test images at once and takes 4 of data"):
        check_images(images, Options(measures="blocks"), True)
    assert check_images(images, Options(measures="blocks"), False) == [], "not of a transfer set"


@pytest.mark.parametrize("split", ["train", "test"])
def test_an_empty_split(net, split):
    empty = Subset(TRAIN, [])
    train, test = (empty, TEST) if split == "train" else (TRAIN, empty)
    with pytest.raises(ValueError, match=f"data has no {'training' if split == 'train' else 'test'} images"):
        tunnel_lightning.analyze(net, train, test, (), measures="ridge")


@pytest.mark.parametrize(
    ("name", "hint"), [("8", "there are input, 0, 4, 7"), ("inputs", "near: input"), ("0,blub", "there are")]
)
def test_a_picture_of_an_unknown_layer(net, name, hint):
    said = refused(net, TRAIN, TEST, measures="tsne", pictures=name)
    unknown = name.rpartition(",")[2]
    assert said.startswith(f"pictures: {unknown!r} is none of the layers that are measured; {hint}")
