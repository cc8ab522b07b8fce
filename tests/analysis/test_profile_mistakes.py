"""`analyze` from a notebook, asked for what can't be: sentences without options of the command line."""

import pytest
import torch
from torch import nn
from toys import CLASSES, Images, Net
from toys_analysis import OTHER, TEST, TRAIN, analyze, files

import tunnel_lightning
from tunnel_lightning.analysis.options import Options
from tunnel_lightning.data import Digits
from tunnel_lightning.taps import quiet

COLOURED = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, CLASSES))
WIDE = nn.Sequential(nn.Flatten(), nn.Linear(100, CLASSES))


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (Net().double(), "it has float64 weights and the images are float32; convert it with .float()"),
        (Net().bfloat16(), "it has bfloat16 weights and the images are float32; convert it with .float()"),
        (WIDE, "give images of the shape it was made for"),
        (COLOURED, "it takes 3 channels and the images have 1; give images with 3"),
    ],
    ids=["double", "bfloat16", "size", "channels"],
)
def test_images_a_network_can_not_take(model, said):
    with pytest.raises(ValueError, match=r"can't run images \[1, 8, 8\] of data \(.*\): ") as caught:
        analyze(model, TRAIN, TEST, measures="ridge")
    assert str(caught.value).endswith(said)
    assert "--data" not in str(caught.value)


def test_double_weights_are_not_blamed_for_another_size():
    with pytest.raises(ValueError, match="give images of the shape it was made for"):
        analyze(nn.Sequential(WIDE, nn.Linear(CLASSES, CLASSES).double()), TRAIN, TEST, measures="ridge")


def test_a_network_that_was_compiled_and_called_before():
    torch.compiler.reset()
    net = torch.compile(Net(), backend="eager")
    with quiet(net):
        net(TRAIN.x[:2])
    with pytest.raises(ValueError, match="compiled and called before the taps were made") as caught:
        analyze(net, TRAIN, TEST, measures="ridge")
    assert "can't run images" not in str(caught.value), "it can"


FORMS = "give {name: (train, test)}, a list of datamodules, or an empty list for none"


@pytest.mark.parametrize(
    ("ood", "said"),
    [
        ({"x": TEST}, "ood['x'] is no pair"),
        ({"Other": OTHER, "x": (TEST,)}, "ood['x'] is no pair"),
        ({"x": Digits()}, "ood['x'] is no pair"),
        ("Digits", "ood is 'Digits'"),
        (TEST, "ood is a Images"),
        (Digits(), "ood is a Digits"),
        ([Digits(), TEST], "ood has a Images in it"),
        (["Digits"], "ood has 'Digits' in it"),
    ],
)
def test_transfer_sets_in_no_known_form(ood, said):
    with pytest.raises(ValueError, match="datamodules") as caught:
        tunnel_lightning.analyze(Net(), TRAIN, TEST, ood, measures="ridge")
    assert str(caught.value) == f"{said}: {FORMS}"


@pytest.mark.parametrize("ood", [(), [], {}, {"Other": OTHER}, {"Other": list(OTHER)}, [Digits()]])
def test_transfer_sets_in_every_known_form(ood):
    found = tunnel_lightning.analyze(Net(), TRAIN, TEST, ood, measures="ridge")
    assert len(found.summary["transfer"]) == len(ood)


class Unread(Images):
    def __getitem__(self, index):
        raise AssertionError("read before the folder was looked at")


def test_a_folder_of_something_else_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    before = files(tmp_path)
    with pytest.raises(ValueError, match="holds something else than an analysis"):
        analyze(Net(), Unread(10, 0), Unread(10, 0), out=tmp_path, options=Options(measures="ridge"))
    assert files(tmp_path) == before
