"""Every scenario says of its tasks what its experiences hold, and wrong input is refused in words."""

import doctest
import importlib
import re

import numpy as np
import pytest
import torch
from continual.toys import digits, pictures_in, stream, whole

from tunnel_lightning.continual.scenarios import Scenario, make_stream, split_classes
from tunnel_lightning.data import Arrays
from tunnel_lightning.data.images import stratified_split

KINDS = {
    "class_incremental": [[3, 1], ["8", 2, 0]],
    "task_incremental": [[3, 1], ["8", 2, 0]],
    "domain_incremental": [[3, 1], [8, 2]],
    "permuted": 3,
    "rotated": 3,
}


@pytest.fixture(scope="module", params=KINDS)
def every(request):
    return stream(request.param, KINDS[request.param])


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    return pictures_in(tmp_path_factory.mktemp("set"))


# Tasks and experiences ---------------------------------------------------------------------------------------


def test_every_image_to_measure_on_is_one_of_its_experience(every):
    for task in every.tasks:
        for images, part in ((task.train, "train"), (task.test, "test")):
            experience = getattr(every.benchmark, f"{part}_stream")[task.index]
            x, y = whole(experience.dataset.eval())
            found = (images.x[:, None] == x[None]).flatten(2).all(2)
            assert found.any(1).all()
            where = found.int().argmax(1)
            assert torch.equal(y[where], images.y)
            assert len(where.unique()) == len(images.y)


def test_tasks_say_what_their_experiences_hold(every):
    assert len(every.tasks) == len(every.benchmark.train_stream) == len(every.benchmark.test_stream)
    for task in every.tasks:
        for part in (every.benchmark.train_stream, every.benchmark.test_stream):
            experience = part[task.index]
            assert experience.current_experience == task.index
            assert sorted(experience.classes_in_this_experience) == list(task.outputs)
            assert set(experience.dataset.targets) == set(task.outputs)
            assert experience.task_labels == [task.label]
            assert {item[2] for item in experience.dataset} == {task.label}
        assert len(task.classes) == len(task.outputs) == len(task.class_names)
        assert list(task.classes) == sorted(task.classes)
        by_output = dict(zip(task.outputs, task.classes, strict=True))
        for images in (task.train, task.test):
            assert [by_output[y] for y in images.y.tolist()] == images.classes.tolist()
            assert images.x.dtype == torch.float32
            assert images.x.shape[1:] == every.input_shape
    assert every.num_classes == len({each for task in every.tasks for each in task.classes})
    assert every.outputs == max(max(task.outputs) for task in every.tasks) + 1


def test_the_sample_of_a_task_is_capped_and_has_as_many_of_each_class(every):
    for task in every.tasks:
        for images in (task.train, task.test):
            counts = images.classes.bincount()[list(task.classes)]
            assert len(images.y) == 24
            assert counts.max() - counts.min() <= 1


def test_class_incremental_classes_count_in_the_order_they_appear():
    tasks = stream("class_incremental", KINDS["class_incremental"]).tasks
    assert [task.class_names for task in tasks] == [("3", "1"), ("8", "2", "0")]
    assert [task.classes for task in tasks] == [task.outputs for task in tasks] == [(0, 1), (2, 3, 4)]
    assert [task.label for task in tasks] == [0, 0]
    assert [task.name for task in tasks] == ["task 1", "task 2"]


def test_task_incremental_outputs_count_from_zero_in_each_task():
    split = stream("task_incremental", KINDS["task_incremental"])
    assert [task.classes for task in split.tasks] == [(0, 1), (2, 3, 4)]
    assert [task.outputs for task in split.tasks] == [(0, 1), (0, 1, 2)]
    assert [task.label for task in split.tasks] == [0, 1]
    assert split.multi_head
    assert split.outputs == 3


def test_domain_incremental_tasks_share_outputs_and_label():
    split = stream("domain_incremental", KINDS["domain_incremental"])
    assert [task.classes for task in split.tasks] == [(0, 1), (2, 3)]
    assert [task.outputs for task in split.tasks] == [(0, 1), (0, 1)]
    assert [task.label for task in split.tasks] == [0, 0]
    assert not split.multi_head
    assert split.num_classes == 4


def test_a_class_means_the_same_pictures_in_every_kind():
    """The names tell: class "8" is the eights of the set, wherever it stands."""
    data = digits()
    x, y = (torch.cat(each) for each in zip(*data.test_dataloader(), strict=True))
    for kind in ("class_incremental", "task_incremental"):
        task = make_stream(data, Scenario(kind, KINDS[kind]), test_images=1000).tasks[1]
        eights = task.test.x[task.test.classes == task.classes[task.class_names.index("8")]]
        own = x[y == 8]
        assert (eights[:, None] == own[None]).flatten(2).all(2).any(0).sum() == len(own)


def test_counts_and_order_cut_the_classes_as_they_are_given():
    names = list("abcdef")
    assert split_classes(Scenario(tasks=3), names) == [[0, 1], [2, 3], [4, 5]]
    assert split_classes(Scenario(tasks=[1, 3]), names) == [[0], [1, 2, 3]]
    order = ["f", 0, "c", 1]
    assert split_classes(Scenario(tasks=2, class_order=order), names) == [[5, 0], [2, 1]]
    assert split_classes(Scenario(tasks=[["b", 5], [0]]), names) == [[1, 5], [0]]


def test_the_order_is_drawn_by_the_seed():
    names = [str(each) for each in range(20)]
    drawn = [split_classes(Scenario(tasks=4, shuffle=True, seed=seed), names) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert sorted(label for task in drawn[2] for label in task) == list(range(20))
    assert [label for task in drawn[0] for label in task] != list(range(20))


# Images --------------------------------------------------------------------------------------------------


def test_a_stream_of_all_classes_holds_the_sets_images_bit_by_bit():
    data = digits()
    made = make_stream(data, Scenario(tasks=1))
    for loader, part in ((data.train_dataloader(), "train"), (data.test_dataloader(), "test")):
        own = loader.fixed()
        x = torch.cat([batch for batch, _ in own])
        y = torch.cat([batch for _, batch in own])
        mine, labels = whole(getattr(made.benchmark, f"{part}_stream")[0].dataset)
        # Avalanche orders by class.
        order = y.argsort(stable=True)
        assert torch.equal(labels, y[order])
        assert torch.equal(mine, x[order])
        assert len(mine) == loader.num_images


def test_the_pixels_are_kept_once(pictures):
    data = pictures()
    made = make_stream(data, Scenario("permuted", 4))
    pixels = data.train_dataloader().images
    assert pixels.dtype == torch.uint8
    before = [experience.dataset.eval()[0][0] for experience in made.benchmark.train_stream]
    pixels.fill_(0)
    after = [experience.dataset.eval()[0][0] for experience in made.benchmark.train_stream]
    for was, now in zip(before, after, strict=True):
        assert not torch.equal(was, now)


def test_the_seed_chooses_the_sample_and_nothing_else_draws():
    torch.manual_seed(3)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = (stream("task_incremental", 5, seed=seed, train_images=6) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])
    for part in ("train", "test"):
        x, same, different = (getattr(each.tasks[2], part).x for each in (first, again, other))
        assert torch.equal(x, same)
        assert not torch.equal(x, different)


def test_more_images_than_there_are_means_all():
    made = stream(tasks=5, train_images=1000, test_images=1000)
    assert [len(task.train.y) for task in made.tasks] == [24] * 5
    assert sum(len(task.test.y) for task in made.tasks) == 359


def test_the_validation_part_is_not_learnt_from():
    data = digits(samples_per_class=None, val_fraction=0.25)
    made = make_stream(data, Scenario(tasks=2))
    learnt = sum(len(experience.dataset) for experience in made.benchmark.train_stream)
    assert learnt == data.train_dataloader().num_images
    total, kept = 1797 - 359, stratified_split(np.zeros(100), 0.25, np.random.default_rng(0))[0]
    assert learnt == pytest.approx(total * len(kept) / 100, abs=10)


# Permuted and rotated --------------------------------------------------------------------------------------


def test_permuted_tasks_show_the_same_pictures_with_pixels_in_other_orders(pictures):
    made = make_stream(pictures(), Scenario("permuted", 3, seed=5))
    plain = make_stream(pictures(), Scenario(tasks=1, seed=5)).tasks[0]
    first, second, third = made.tasks
    assert torch.equal(first.test.x, plain.test.x)
    assert not torch.equal(second.test.x, third.test.x)
    for task in (second, third):
        # Where the pixels of one image went tells it of all, in all channels and in both parts.
        for images, own in ((task.test, first.test), (task.train, first.train)):
            pixels, seen = own.x.flatten(2).transpose(1, 2), images.x.flatten(2).transpose(1, 2)
            order = (seen[0][:, None] == pixels[0][None]).all(2).int().argmax(1)
            assert sorted(order.tolist()) == list(range(48))
            assert torch.equal(pixels[:, order], seen)
    again = make_stream(pictures(), Scenario("permuted", 3, seed=5))
    assert torch.equal(again.tasks[2].test.x, third.test.x)
    other = make_stream(pictures(), Scenario("permuted", 3, seed=6))
    assert not torch.equal(other.tasks[2].train.x, third.train.x)


def test_right_angles_turn_exactly(pictures):
    angles = [0.0, 90.0, 180.0, 270.0, 360.0]
    made = make_stream(pictures(image_size=8), Scenario("rotated", 5, degrees=angles))
    x = made.tasks[0].test.x
    for task, quarters in zip(made.tasks, range(5), strict=True):
        torch.testing.assert_close(task.test.x, torch.rot90(x, quarters, (2, 3)), rtol=0, atol=1e-6)
    assert torch.equal(made.tasks[4].test.x, x)


@pytest.mark.parametrize("degrees", [30.0, -75.0, 135.0])
def test_other_angles_are_torchvisions_with_black_around(pictures, degrees):
    from torchvision.transforms.v2 import InterpolationMode, functional

    data = pictures()
    made = make_stream(data, Scenario("rotated", 2, degrees=[0, degrees]))
    mean, std = (torch.tensor(each)[:, None, None] for each in (data.mean, data.std))
    light = made.tasks[0].test.x * std + mean
    turned = functional.rotate(light, degrees, InterpolationMode.BILINEAR)
    torch.testing.assert_close(made.tasks[1].test.x * std + mean, turned, rtol=0, atol=1e-5)


def test_angles_are_even_from_0_to_180_unless_given():
    x = [task.test.x for task in stream("rotated", 3).tasks]
    torch.testing.assert_close(x[1], torch.rot90(x[0], 1, (2, 3)), rtol=0, atol=1e-5)
    torch.testing.assert_close(x[2], torch.rot90(x[0], 2, (2, 3)), rtol=0, atol=1e-5)


# Mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"kind": "new_classes"}, "kind must be one of class_incremental, .*, got 'new_classes'"),
        ({"kind": "classic"}, "kind must be one of"),
        ({"seed": -1}, "must be 0 or more, got -1"),
        ({"tasks": 0}, "at least one task"),
        ({"tasks": []}, "at least one task"),
        ({"tasks": 11}, "10 classes are too few for 11 tasks"),
        ({"tasks": 3}, r"10 classes don't make 3 equal tasks.*\[3, 3, 4\]"),
        ({"tasks": [6, 5]}, r"need 11 classes, but there are 10"),
        ({"tasks": [5, 0, 5]}, "Every task needs a class"),
        ({"tasks": [[0, 1], []]}, "Every task needs a class"),
        ({"tasks": [[0, 1], [1, 2]]}, "1 comes more than once"),
        ({"tasks": [[0, 1], ["1", 2]]}, "1 comes more than once"),
        ({"tasks": 2, "class_order": [0, 1, 2, 0]}, "0 comes more than once"),
        ({"tasks": [[0, 10]]}, "no class 10: give a label from 0 to 9, or one of the names 0, 1"),
        ({"tasks": [[0, -1]]}, "no class -1"),
        ({"tasks": [["0", "zero"]]}, "no class 'zero'"),
        ({"tasks": 1, "class_order": [0, 12]}, "no class 12"),
        ({"tasks": 3, "class_order": [0, 1]}, "2 classes are too few for 3 tasks"),
        ({"tasks": [2, [3, 4]]}, "not a mixture"),
        ({"tasks": [[0, 1]], "shuffle": True}, "no order left to choose"),
        ({"tasks": [[0, 1]], "class_order": [0, 1]}, "no order left to choose"),
        ({"class_order": [0, 1], "shuffle": True}, "give one"),
        ({"kind": "task_incremental", "tasks": 10}, "needs two classes or more"),
        ({"kind": "domain_incremental", "tasks": [1, 1]}, "needs two classes or more"),
        ({"kind": "domain_incremental", "tasks": [4, 6]}, "equally many classes; they have"),
        ({"kind": "permuted", "tasks": [2, 2]}, "tasks must be a number"),
        ({"kind": "permuted", "shuffle": True}, "leave out class_order and shuffle"),
        ({"kind": "rotated", "class_order": [0, 1]}, "leave out class_order and shuffle"),
        ({"kind": "rotated", "tasks": 3, "degrees": [0, 90]}, "one for each of 3 tasks; got 2"),
        ({"kind": "permuted", "tasks": 2, "degrees": [0, 90]}, "degrees are for kind rotated"),
        ({"degrees": [0.0]}, "degrees are for kind rotated, not for class_incremental"),
        ({"train_images": 0}, "train_images, .* must be 1 or more, got 0"),
        ({"test_images": -5}, "test_images, .* must be 1 or more, got -5"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(options, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        stream(**{"samples_per_class": 2, **options})
    assert "\n" not in str(raised.value)


def test_a_class_without_images_is_named(tmp_path):
    x = np.zeros((6, 4, 4), np.uint8)
    path = tmp_path / "gap.npz"
    np.savez(
        path, train_images=x, train_labels=np.array([0, 0, 1, 1, 2, 2]), test_images=x,
        test_labels=np.array([0, 0, 2, 2, 2, 2]), class_names=np.array(["ant", "bee", "cat"]),
    )  # fmt: skip
    data = Arrays(str(path))
    with pytest.raises(ValueError, match=re.escape("gap has no test images of class bee.")):
        make_stream(data, Scenario(tasks=3))
    assert len(make_stream(data, Scenario(tasks=[["cat"], ["ant"]])).tasks) == 2


@pytest.mark.parametrize("module", ["datasets", "scenarios", "classic"])
def test_examples_of_the_docstrings_run(module):
    done = doctest.testmod(importlib.import_module(f"tunnel_lightning.continual.{module}"))
    assert done.attempted > 0
    assert done.failed == 0
