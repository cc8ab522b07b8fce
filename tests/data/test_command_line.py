"""The sets as LightningCLI sees them: short names, links, all arguments."""

import jsonargparse
import pytest
from lightning.pytorch import LightningDataModule

import tunnel_lightning.data as data_room

SETS = [
    name for name in data_room.__all__
    if isinstance(getattr(data_room, name), type) and issubclass(getattr(data_room, name), data_room.ImageData)
    and name != "ImageData"
]  # fmt: skip


def parser():
    made = jsonargparse.ArgumentParser(exit_on_error=False)
    made.add_subclass_arguments(LightningDataModule, "data")
    return made


@pytest.mark.parametrize("name", SETS)
def test_short_names_and_common_arguments(name):
    arguments = [
        "--data",
        name,
        "--data.batch_size",
        "7",
        "--data.image_size",
        "12",
        "--data.classes",
        "[1,0]",
    ]
    if name in ("Arrays", "ImageFolder", "CINIC10"):
        arguments += ["--data.path", "somewhere"]
    parsed = parser()
    data = parsed.instantiate_classes(parsed.parse_args(arguments)).data
    assert type(data) is getattr(data_room, name)
    assert (data.batch_size, data.image_size, data.classes) == (7, 12, [1, 0])


def test_numbers_of_classes_are_there_right_after_construction():
    parsed = parser()
    data = parsed.instantiate_classes(parsed.parse_args(["--data", "CIFAR10", "--data.classes", "4"])).data
    assert (data.num_classes, data.input_shape, data.name) == (4, (3, 32, 32), "CIFAR10")
