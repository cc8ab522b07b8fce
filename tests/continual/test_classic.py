"""A benchmark of Avalanche's own, or anyone's, is read off its experiences."""

import pytest
import torch
from continual.classics import part

from tunnel_lightning.continual.scenarios import classic_stream


def classic(name, seed=0, train_images=1000, test_images=1000, **init_args):
    return classic_stream(f"continual.classics.{name}", init_args, seed, train_images, test_images)


def pixel_classes(images):
    """The class that the first pixel tells."""
    return images.x[:, 0, 0, 0].round().int().tolist()


def test_a_split_is_read_off_its_experiences():
    stream = classic("split", seed=1)
    assert (stream.name, stream.kind, stream.multi_head) == ("split", "classic", False)
    assert (stream.num_classes, stream.outputs, stream.input_shape) == (6, 6, (1, 4, 4))
    seen = []
    for task, experience in zip(stream.tasks, stream.benchmark.train_stream, strict=True):
        assert set(task.outputs) == set(experience.classes_in_this_experience)
        assert task.class_names == tuple(str(each) for each in task.outputs)
        seen += task.classes
        for images in (task.train, task.test):
            assert len(images.y) == 20
            assert images.y.tolist() == pixel_classes(images)
            position = dict(zip(task.outputs, task.classes, strict=True))
            assert [position[y] for y in images.y.tolist()] == images.classes.tolist()
    # Over the stream, classes count in the order they appear.
    assert seen == list(range(6))
    assert [task.index for task in stream.tasks] == [0, 1, 2]
    assert [task.name for task in stream.tasks] == ["task 1", "task 2", "task 3"]


def test_relabelled_classes_of_heads_are_told_apart():
    stream = classic("heads", seed=2)
    assert stream.multi_head
    assert [task.label for task in stream.tasks] == [0, 1, 2]
    assert [task.outputs for task in stream.tasks] == [(0, 1)] * 3
    assert [task.classes for task in stream.tasks] == [(0, 1), (2, 3), (4, 5)]
    assert (stream.num_classes, stream.outputs) == (6, 2)
    names = {}
    for task in stream.tasks:
        for own, y in zip(pixel_classes(task.train), task.train.y.tolist(), strict=True):
            names[task.index, y] = str(own)
        assert task.class_names == (names[task.index, 0], names[task.index, 1])
    assert len(set(names.values())) == 6


def test_the_same_classes_again_are_the_same_classes():
    stream = classic("shifted")
    assert [task.classes for task in stream.tasks] == [tuple(range(6))] * 2
    assert (stream.num_classes, stream.outputs, stream.multi_head) == (6, 6, False)


def test_one_test_experience_serves_every_task_with_its_own_classes():
    stream = classic("one_test")
    assert [task.outputs for task in stream.tasks] == [(0, 1, 2), (3, 4, 5)]
    for task in stream.tasks:
        assert len(task.test.y) == 30
        assert set(task.test.y.tolist()) == set(task.outputs)
        assert pixel_classes(task.test) == task.test.y.tolist()


def test_the_sample_is_capped_stratified_and_chosen_by_the_seed():
    first, again, other = (classic("shifted", seed, train_images=12, test_images=6) for seed in (0, 0, 1))
    assert first.tasks[0].train.classes.bincount().tolist() == [2] * 6
    assert first.tasks[0].test.classes.bincount().tolist() == [1] * 6
    assert torch.equal(first.tasks[1].train.x, again.tasks[1].train.x)
    assert not torch.equal(first.tasks[1].train.x, other.tasks[1].train.x)


def test_images_to_measure_on_are_seen_by_the_eval_transforms():
    task = classic("augmented").tasks[0]
    assert pixel_classes(task.train) == task.train.y.tolist()
    kept = part(0).tensors[0]
    assert all(any(torch.equal(x, own) for own in kept) for x in task.train.x)


def test_what_a_benchmark_draws_or_reseeds_stays_inside():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    drawn = [[task.outputs for task in classic("split", seed, n_experiences=6).tasks] for seed in (0, 0, 1)]
    # It has no seed of its own here: ours decides.
    assert drawn[0] == drawn[1] != drawn[2]
    classic("heads")
    stream = classic_stream("continual.classics.split", {"seed": 3})
    assert len(stream.tasks) == 3
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("path", "init_args", "sentence"),
    [
        (
            "continual.classics.splitt",
            {},
            "'continual.classics.splitt' can't be imported: .*no attribute 'splitt'",
        ),
        ("no_such_package.Split", {}, "'no_such_package.Split' can't be imported: No module named"),
        ("SplitMNIST", {}, "'SplitMNIST' can't be imported: give a class path, such as package.module.Name"),
        ("", {}, "'' can't be imported: give a class path"),
        (".", {}, "'.' can't be imported: give a class path"),
        ("..a", {}, "'..a' can't be imported: "),
        ("continual.classics.split", {"experiences": 3}, "does not take these arguments.*experiences"),
        ("continual.classics.nothing", {}, "has 0 training and 0 test experiences"),
        ("continual.classics.uneven", {}, "has 3 training and 2 test experiences"),
        ("continual.classics.mixed", {}, r"mixes the tasks \[0, 1\]"),
        ("continual.classics.pictures", {}, "no tensors but list: give it an eval_transform"),
        ("continual.classics.vectors", {}, r"shapes \[\(16,\)\]; one \[C, H, W\] is needed"),
    ],
)
def test_a_mistake_is_said_in_one_sentence(path, init_args, sentence):
    with pytest.raises(ValueError, match=sentence) as raised:
        classic_stream(path, init_args)
    assert "\n" not in str(raised.value)


def test_counts_below_one_are_refused():
    with pytest.raises(ValueError, match=r"train_images, .* got 0"):
        classic("split", train_images=0)
