"""`invert` from the command line: what is in its files, and that it goes on where it stopped."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tunnel_lightning.analysis.invert import tasks
from tunnel_lightning.analysis.invert.command import tunnel_layers
from tunnel_lightning.analysis.invert.targets import Pixels, pixels_of, set_targets, spread
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.data import Digits
from tunnel_lightning.data.images import fit
from tunnel_lightning.runs.inversion import load_inversion
from tunnel_lightning.taps import Tap

PLAIN = [
    "--device=cpu", "--recipe=adam", "--steps=10", "--images=2", "--starts=1", "--most_layers=2", "--neighbours=0",
    "--untrained=false",
]  # fmt: skip


def test_figures_are_those_of_the_pictures(inverted):
    found = load_inversion(inverted)
    assert [layer["name"] for layer in found.summary["layers"]] == ["layers.0.linear", "layers.2.linear"]
    assert found.networks == ["trained", "untrained", "noise"]
    assert found.sets == ["Digits", "Glyphs", "noise"]
    assert len({image["class"] for image in found.summary["images"]["Digits"]}) == 3, (
        "as many classes as images"
    )
    for dataset in found.sets:
        original = found.pictures[f"original/{dataset}"] / 255
        for network in found.networks:
            made = found.pictures[f"recovered/{dataset}/{network}"] / 255
            assert made.shape == (2, 3, 2, 8, 8, 1)
            square = ((made - original[None, :, None]) ** 2).sum((3, 4, 5))
            told = found.curves[f"input_distance/{dataset}/{network}"]
            np.testing.assert_allclose(np.sqrt(square), told, atol=0.02)
            psnr = -10 * np.log10(square / 64)
            np.testing.assert_allclose(psnr, found.curves[f"psnr/{dataset}/{network}"], atol=0.1)
            curve = found.curves[f"input_curve/{dataset}/{network}"]
            share = found.curves[f"input_share/{dataset}/{network}"]
            np.testing.assert_allclose(curve[..., -1], share, rtol=1e-5)
            assert (curve[0, ..., -1] < curve[0, ..., 0]).all(), "the descents get nearer"


def test_rows_are_means_over_images(inverted):
    found = load_inversion(inverted)
    rows = {(r.dataset, r.layer, r.measure, r.variant): r for r in found.rows}
    assert len(rows) == len(found.rows)
    row = rows["Glyphs", "layers.2.linear", "inversion_psnr", "adam@untrained"]
    values = found.curves["psnr/Glyphs/untrained"][1].mean(1)
    assert (row.value, row.n, row.index) == (pytest.approx(values.mean()), 3, 3)
    assert row.se == pytest.approx(values.std(ddof=1) / 3**0.5)
    mean, deviation = found.values("psnr", "Glyphs", "untrained")
    assert (mean[1], deviation[1]) == (pytest.approx(values.mean()), pytest.approx(values.std(ddof=1)))


def test_the_summary_says_what_was_done(inverted):
    summary = load_inversion(inverted).summary
    assert summary["networks"]["untrained"] == "initial weights of tiny/version_0"
    assert "60 images of noise in 5 classes" in summary["networks"]["noise"]
    assert summary["recipe"] == "adam (steps 20)"
    assert summary["settings"]["recipe"]["steps"] == 20
    assert {*summary["verdicts"]["Glyphs"]} == {"trained", "untrained", "noise"}
    assert any(title.startswith("layers.0.linear, trained") for title in summary["seconds"])


def test_it_is_on_the_page_and_in_tensorboard(inverted, trained):
    assert (inverted / "report.html").exists() or (inverted / "invert" / "report.html").exists()
    events = EventAccumulator(str(inverted / "invert"), size_guidance={"images": 0})
    events.Reload()
    assert {"inversion/inversion_Digits", "inversion/inversion_made"} <= {*events.Tags()["images"]}
    found = load_inversion(inverted)
    told = {e.step: e.value for e in events.Scalars("by_depth/psnr_Digits/trained")}
    mean, _ = found.values("psnr", "Digits", "trained")
    assert told == {1: pytest.approx(mean[0], rel=1e-5), 3: pytest.approx(mean[1], rel=1e-5)}
    assert [e.step for e in events.Scalars("by_step/embedding_trained/01_layers.0.linear")] == [*range(21)]
    own = [path for path in trained.iterdir() if path.name.startswith("events")]
    assert own, "the run has event files of its own"
    for path in own:
        assert (inverted / path.name).read_bytes() == path.read_bytes(), "which stay as they are"


def test_it_goes_on_where_it_stopped(invert, run, monkeypatch, capsys):
    done, real = [], tasks.invert

    def stopped(network, layers, *rest, **options):
        if len(done) == 1:
            raise KeyboardInterrupt
        done.append(layers[0].name)
        return real(network, layers, *rest, **options)

    monkeypatch.setattr(tasks, "invert", stopped)
    assert invert(run, *PLAIN) == 130
    assert f"finished parts are kept in {run / 'invert' / 'parts'}, and the same" in " ".join(
        capsys.readouterr().err.split()
    )
    assert not (run / "invert" / "inversion.json").exists()

    monkeypatch.setattr(tasks, "invert", lambda *a, **o: done.append(a[1][0].name) or real(*a, **o))
    assert invert(run, *PLAIN) == 0
    assert done == ["layers.0.linear", "layers.2.linear"], "none twice"
    resumed = load_inversion(run).pictures["recovered/Digits/trained"]
    shutil.rmtree(run / "invert")
    assert invert(run, *PLAIN) == 0
    np.testing.assert_array_equal(load_inversion(run).pictures["recovered/Digits/trained"], resumed)

    assert invert(run, *PLAIN, "--steps=11") == 0
    assert len(done) == 6, "other settings, other parts"


def test_files_are_fitted_to_the_network(invert, run, tmp_path):
    draw = np.random.default_rng(0)
    colour, grey = draw.integers(0, 256, (20, 30, 3), np.uint8), draw.integers(0, 256, (8, 8), np.uint8)
    Image.fromarray(colour).save(tmp_path / "colour.png")
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert invert(run, *PLAIN, f"--files={tmp_path / 'colour.png'},{tmp_path / 'grey.png'}") == 0
    found = load_inversion(run)
    assert [each["name"] for each in found.summary["images"]["files"]] == ["colour.png", "grey.png"]
    shown = found.pictures["original/files"]
    wanted = fit(torch.from_numpy(colour).permute(2, 0, 1), (1, 8, 8)).permute(1, 2, 0)
    np.testing.assert_array_equal(shown[0], wanted)
    np.testing.assert_array_equal(shown[1, ..., 0], grey)


def test_a_network_without_a_run(invert, module, tmp_path):
    assert invert(f"--model={module}:network", "--data=Digits", *PLAIN, "--layers=1") == 0
    folder = tmp_path / "runs" / f"{module}-network" / "version_0" / "invert"
    found = load_inversion(folder)
    assert found.summary["networks"] == {"trained": f"{module}:network"}
    assert found.summary["layers"][0]["name"] == "1"


# -- layers and images ------------------------------------------------------------------------------------


def taps(count):
    return [Tap(f"l{k}", f"l{k}", 1, k, "Linear", (4,), 4, 20) for k in range(1, count + 1)]


@pytest.mark.parametrize(
    ("count", "most", "wanted", "indices"),
    [
        (3, 8, [], [1, 2, 3]),
        (12, 2, ["l5"], [1, 12]),
        (12, 4, ["l5"], [1, 5, 8, 12]),
        (33, 5, ["l2", "l32", "nowhere"], [1, 2, 17, 32, 33]),
        (33, 3, ["l9", "l20"], [1, 9, 33]),
    ],
)
def test_layers_are_spread_over_the_depth(count, most, wanted, indices):
    assert [tap.index for tap in spread(taps(count), most, wanted)] == indices


def test_the_tunnels_start_is_known_of_an_analysed_run_only(run):
    assert tunnel_layers(str(run)) == {}
    assert tunnel_layers(None) == {}


def test_images_are_of_all_classes_before_any_twice():
    digits = Digits()
    images = ImageSet.of(digits)
    pixels = pixels_of(digits, images)
    targets = set_targets(images, 13, 3, pixels)
    assert sorted(targets.classes[:10]) == [*range(10)]
    assert len(set(targets.names)) == 13
    again = set_targets(images, 13, 3, pixels)
    assert torch.equal(again.pixels, targets.pixels)
    assert not torch.equal(set_targets(images, 13, 4, pixels).pixels, targets.pixels)
    number = int(targets.names[0].split("test image ")[1].rstrip(")"))
    np.testing.assert_allclose(targets.pixels[0], digits._pool("test").images[number] / 255, atol=1e-6)


def test_pixels_of_a_set_that_does_not_say_how_it_is_normalised():
    x = torch.linspace(-3, 5, 2 * 4 * 4).reshape(2, 1, 4, 4)
    data = torch.utils.data.TensorDataset(x, torch.tensor([0, 1]))
    pixels = pixels_of(None, ImageSet.from_loaders("Mine", data, data))
    assert "Mine says no mean and std" in pixels.note
    shown = pixels.of(x)
    assert (shown.min(), shown.max()) == (pytest.approx(0, abs=1e-6), pytest.approx(1))
    assert torch.allclose(pixels.shown(shown), x, atol=1e-5)
    unit = torch.utils.data.TensorDataset(x.abs() / 5, torch.tensor([0, 1]))
    assert pixels_of(None, ImageSet.from_loaders("Mine", unit, unit)) == Pixels((0.0,), (1.0,))


def test_the_networks_are_left_as_they_were(invert, run, monkeypatch):
    seen = {}
    real = tasks.recovered

    def look(work, net, targets):
        before = {name: value.clone() for name, value in net.network.state_dict().items()}
        flags = [module.training for module in net.network.modules()]
        found = real(work, net, targets)
        seen[net.name] = all(
            torch.equal(value, before[name]) for name, value in net.network.state_dict().items()
        )
        assert flags == [module.training for module in net.network.modules()]
        assert not any(p.grad is not None for p in net.network.parameters())
        assert all(p.requires_grad for p in net.network.parameters())
        return found

    monkeypatch.setattr("tunnel_lightning.analysis.invert.command.recovered", look)
    assert invert(run, *PLAIN) == 0
    assert seen == {"trained": True}
