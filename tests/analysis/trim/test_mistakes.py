import pytest
import toys_trim

from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.trim.command import command
from tunnel_lightning.analysis.trim.heads import with_validation
from tunnel_lightning.analysis.trim.options import Options
from tunnel_lightning.taps import TapSpec


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"keep": 1.5}, "above 0 and at most 1, and not 1.5"),
        ({"keep": 0.0}, "above 0 and at most 1"),
        ({"keep": 0.9, "for_set": "Digits"}, "--keep chooses by .* and --for by"),
        ({"keep": 0.9, "layer": "a"}, "--layer takes a cut by hand"),
        ({"probe": "svm"}, "no probe 'svm': choose best or ridge or logistic"),
        ({"tune_epochs": -1}, "tune_epochs must be at least 0"),
        ({"tune_lr": 0.1}, "with --tune_epochs"),
        ({"tune_epochs": 1, "tune_lr": 0.0}, "tune_lr must be above 0"),
        ({"tune_epochs": 1, "for_set": "Digits"}, "another set's classes"),
        ({"exits": "auto", "for_set": "Digits"}, "leave one of them out"),
        ({"taps": TapSpec(pool="gram")}, "no features for a head"),
        ({"alpha": 0.0}, "alpha must be above 0"),
        ({"fit_images": 1}, "fit_images must be at least 2"),
    ],
)
def test_settings_that_make_no_sense(given, said):
    with pytest.raises(ValueError, match=said):
        Options(**given)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"layer": "layers.9.linear"}, "none of the 4 layers to cut behind .*near: layers"),
        ({"for_set": "Turnd"}, "no transfer set of that name .did you mean Turned"),
        ({"for_set": "Signs"}, "the network's own set"),
    ],
)
def test_what_is_not_there(tmp_path, light, trimming, options, said):
    with pytest.raises(ValueError, match=said):
        trimming(tmp_path / "trim", ood=[toys_trim.Signs(turned=True)], **options)
    assert not (tmp_path / "trim").exists()


def test_a_place_with_something_else(tmp_path, trimming):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than a trim"):
        trimming(tmp_path / "mine")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="is a file"):
        trimming(tmp_path / "file")


def test_the_run_itself_is_no_place(run):
    with pytest.raises(ValueError, match="is a run folder"):
        command([str(run), f"--out={run}"])


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["nowhere"], "nowhere"),
        ([], "give either a run folder"),
        (["--model=toys_trim:trained"], "needs the images"),
        (["nowhere", "--keep=2"], "keep"),
        (["nowhere", "--keep=much"], "keep"),
        (["nowhere", "--nonsense=1"], "nonsense"),
    ],
)
def test_arguments_that_cannot_be(argv, said):
    with pytest.raises((ValueError, FileNotFoundError), match=said):
        command(argv)


def test_a_set_that_cannot_be_divided():
    class Loader(list):
        def fixed(self, *_, **__):
            return self

    batches = Loader([toys_trim.images(4, 0).tensors])
    images = ImageSet("Mine", 4, list("abcd"), {"train": lambda: batches, "test": lambda: batches})
    with pytest.raises(ValueError, match="a Loader can't be divided: give its datamodule a val_dataloader"):
        with_validation(images)
