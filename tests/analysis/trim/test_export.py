"""A cut network as files: every one of them gives the answers that the network gives, for any number of images."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from torch import nn

from tunnel_lightning.__main__ import main
from tunnel_lightning.analysis.subject import load_run_subject, read_config
from tunnel_lightning.analysis.trim import export
from tunnel_lightning.analysis.trim.card import Card, card_text
from tunnel_lightning.analysis.trim.export import Difference, between, config_of, difference, write_network
from tunnel_lightning.backbones import MLP, Cut, ResNet
from tunnel_lightning.backbones.cut import Shifted
from tunnel_lightning.module import Classifier
from tunnel_lightning.surgery import cut

LAYER = "layers.1.linear"
ONNX = ("onnx", "onnxscript", "onnxruntime")


@pytest.fixture(scope="module")
def written(trained, tmp_path_factory):
    """A run, its network cut at a layer with a head of some weights, and what was written."""
    run = shutil.copytree(trained, tmp_path_factory.mktemp("trim") / "runs" / "tiny" / "version_0")
    subject = load_run_subject(run)
    own, _ = subject.sets()
    x, _ = next(iter(own.batches("test", 300)))
    weight = torch.randn(10, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    network = cut(subject.network, LAYER, weight, torch.arange(10.0).double(), x)
    card = card_of(subject)
    done = write_network(run / "trim", network, x, card, read_config(run), subject.step, subject.epoch)
    return run / "trim", network, x, done


def card_of(subject) -> Card:
    figures = [{"": "whole", "accuracy": "97 %"}, {"": "cut", "accuracy": "96 | 95 %"}]
    return Card(
        *(subject.title, LAYER, 2, 3, "It was asked for.", "Digits", [str(n) for n in range(10)]),
        run_id=subject.run_id,
        checkpoint=subject.checkpoint,
        figures=figures,
        mean=subject.data.mean,
        std=subject.data.std,
        notes=["Made for a test."],
    )


def test_all_files_are_there_and_nothing_else(written):
    folder, _, _, done = written
    pytest.importorskip("onnxruntime")
    names = [str(path.relative_to(folder)) for path in done.files]
    assert names == [
        *("checkpoints/last.ckpt", "cut.pt2", "cut.onnx", "config.yaml", "manifest.json", "MODEL_CARD.md")
    ]
    assert sorted(names) == sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())
    assert done.notes == []
    assert all(found.within for found in done.differences.values())
    assert set(done.differences) == {"cut.pt2", "cut.onnx"}


def test_every_way_of_loading_on_the_card_runs(written, monkeypatch):
    """The code is taken from the card and run in its folder, with five images: no number that was exported with."""
    folder, network, x, _ = written
    pytest.importorskip("onnxruntime")
    monkeypatch.chdir(folder)
    blocks = re.findall(r"```python\n(.*?)```", (folder / "MODEL_CARD.md").read_text(), re.S)
    assert len(blocks) == 4
    wanted = network(x[:5])
    for block in blocks:
        room = {"images": x[:5]}
        exec(block, room)
        found = torch.as_tensor(room["scores"]).detach()
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
        assert torch.equal(found.argmax(1), wanted.argmax(1))


def test_the_checkpoint_is_plain_and_gives_the_same_bits(written):
    folder, network, x, _ = written
    path = folder / "checkpoints" / "last.ckpt"
    assert torch.load(path, weights_only=True)["classifier"]["backbone"]["class_path"].endswith(
        "backbones.cut.Cut"
    )
    loaded = Classifier.load_from_checkpoint(path).eval()
    assert torch.equal(loaded(x), network(x))


def test_graphs_take_any_number_of_images(written):
    folder, network, x, _ = written
    onnx, onnxruntime = (pytest.importorskip(name) for name in ONNX[::2])
    graph = torch.export.load(folder / "cut.pt2").module()
    session = onnxruntime.InferenceSession(folder / "cut.onnx")
    for size in (1, 7, 250):
        wanted = network(x[:size])
        torch.testing.assert_close(graph(x[:size]), wanted, atol=1e-5, rtol=0)
        found = torch.from_numpy(session.run(["scores"], {"images": x[:size].numpy()})[0])
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)
    shapes = [
        [size.dim_param or size.dim_value for size in value.type.tensor_type.shape.dim]
        for value in (
            *onnx.load(folder / "cut.onnx").graph.input,
            *onnx.load(folder / "cut.onnx").graph.output,
        )
    ]
    assert shapes == [["batch", 1, 8, 8], ["batch", 10]]


def test_it_is_a_run_folder(written, tmp_path):
    folder, network, *_ = written
    subject = load_run_subject(folder)
    assert subject.title == f"Cut (layer {LAYER}, pool 2x2)"
    assert subject.epoch == 5
    answers = predicted(folder, tmp_path / "p.csv")
    with torch.no_grad():
        wanted = torch.cat([network(x).argmax(1) for x, _ in subject.data.test_dataloader()])
    assert answers == [str(int(answer)) for answer in wanted]


def given(folder):
    """What a command of Lightning's is given, to run the network of a folder."""
    common = [
        "--config",
        str(folder / "config.yaml"),
        "--ckpt_path",
        str(folder / "checkpoints" / "last.ckpt"),
    ]
    return [*common, "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def predicted(folder, out):
    assert main(["predict", *given(folder), "--out", str(out)]) == 0
    return [line.split(",")[1] for line in out.read_text().splitlines()[1:]]


def test_the_card_says_what_it_is(written):
    folder, *_ = written
    text = (folder / "MODEL_CARD.md").read_text()
    assert text.startswith("# MLP (depth 3, width 16), cut at layers.1.linear\n")
    for said in (
        *(
            "layer 2 of 3",
            "`checkpoints/last.ckpt` of `tiny/version_0`",
            "It was asked for.",
            "| whole | 97 % |",
        ),
        *(
            "| cut | 96 / 95 % |",
            "float32 `[N, 1, 8, 8]`",
            "(pixels - mean) / std",
            "Made for a test.",
            "torch ",
        ),
    ):
        assert said in text, said
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["cut_of"] == {
        "run_id": "tiny/version_0", "checkpoint": "checkpoints/last.ckpt", "layer": LAYER, "index": 2,
    }  # fmt: skip


@pytest.mark.slow
def test_all_commands_on_the_folder(written, tmp_path):
    folder, *_ = written
    again = shutil.copytree(folder, tmp_path / "trim")
    assert main(["test", *given(again)]) == 0
    assert main(["analyze", str(again), "--device=cpu"]) == 0
    assert (
        main(["compare", str(folder.parent), str(again), "--device=cpu", "--out", str(tmp_path / "c")]) == 0
    )


@pytest.mark.slow
def test_the_checkpoint_needs_no_import_but_the_classifier(written):
    folder, *_ = written
    code = "import sys; from tunnel_lightning.module import Classifier; Classifier.load_from_checkpoint(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(folder / "checkpoints" / "last.ckpt")], check=True)


# Small networks, without ONNX unless said ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def small():
    torch.manual_seed(0)
    network = MLP(2, 8, num_classes=3, input_shape=(1, 4, 4)).eval()
    x = torch.randn(6, 1, 4, 4)
    return cut(network, "layers.0.linear", torch.randn(3, 8), torch.zeros(3), x), x


CARD = Card("MLP", "layers.0.linear", 1, 2, "Because.", "Mine", ["a", "b", "c"], mean=[0.5], std=[0.25])


def test_graphs_that_normalise_take_pixels(small, tmp_path):
    network, x = small
    write_network(tmp_path, network, x, CARD, normalise=True, onnx=False)
    graph = torch.export.load(tmp_path / "cut.pt2").module()
    torch.testing.assert_close(graph(x * 0.25 + 0.5), network(x), atol=1e-5, rtol=0)
    assert "they take pixels in 0..1" in (tmp_path / "MODEL_CARD.md").read_text()
    with pytest.raises(ValueError, match="needs the mean"):
        write_network(tmp_path, network, x, Card(*["MLP", "l"], 1, 2, "", "Mine", ["a"]), normalise=True)


def test_a_network_that_no_file_can_make_again(tmp_path):
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Linear(8, 3))
    x = torch.randn(4, 1, 4, 4)
    made = cut(network, "1", torch.randn(3, 8), torch.zeros(3), x)
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").write_text("of an earlier cut")
    (tmp_path / "cut.onnx").write_text("of an earlier cut")
    done = write_network(tmp_path, made, x, CARD, onnx=False)
    assert [path.name for path in done.files] == ["weights.pt", "cut.pt2", "MODEL_CARD.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["MODEL_CARD.md", "cut.pt2", "weights.pt"]
    assert torch.load(tmp_path / "weights.pt", weights_only=True).keys() == made.state_dict().keys()
    assert (
        "no file can say how to make a network that is no Backbone"
        in (tmp_path / "MODEL_CARD.md").read_text()
    )


def test_without_the_extra_everything_else_is_written(small, tmp_path, monkeypatch):
    network, x = small
    monkeypatch.setattr(export, "_version", lambda name: None if name == "onnxruntime" else "1")
    done = write_network(tmp_path, network, x, CARD)
    assert done.notes == [
        "cut.onnx is not written: onnxruntime missing; run `pip install 'tunnel-lightning[export]'`."
    ]
    assert (tmp_path / "cut.pt2").is_file()
    assert done.notes[0] in (tmp_path / "MODEL_CARD.md").read_text()


def test_a_graph_that_answers_otherwise_is_not_written(small, tmp_path, monkeypatch):
    network, x = small

    def wrong(program, path):
        path.write_text("a graph")
        return lambda x: network(x).detach() + 1e-3 * torch.tensor([0.0, 1.0, 0.0])

    monkeypatch.setattr(export, "_version", lambda name: "1")
    monkeypatch.setattr(export, "_onnx", wrong)
    done = write_network(tmp_path, network, x, CARD)
    assert not (tmp_path / "cut.onnx").exists()
    assert "cut.onnx is not written: its scores differ from PyTorch's by " in done.notes[0]
    assert list(done.differences) == ["cut.pt2"]


def test_a_failure_leaves_the_former_files(small, tmp_path, monkeypatch):
    network, x = small
    (tmp_path / "MODEL_CARD.md").write_text("former")
    monkeypatch.setattr(export, "card_text", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        write_network(tmp_path, network, x, CARD, onnx=False)
    assert [path.name for path in tmp_path.iterdir()] == ["MODEL_CARD.md"]
    assert (tmp_path / "MODEL_CARD.md").read_text() == "former"
    with pytest.raises(ValueError, match="at least one"):
        write_network(tmp_path, network, x[:0], CARD)


def test_a_network_that_torch_export_cannot_follow(tmp_path, monkeypatch, small):
    network, x = small
    monkeypatch.setattr(export, "_program", lambda *_: (_ for _ in ()).throw(RuntimeError("no\nreally")))
    done = write_network(tmp_path, network, x, CARD)
    assert done.notes == ["cut.pt2 and cut.onnx are not written: torch.export can't follow it (no)."]
    assert (tmp_path / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.slow
def test_a_network_with_uneven_pooling_and_a_centred_head(tmp_path):
    torch.manual_seed(0)
    network = ResNet(8, 4, num_classes=5, input_shape=(3, 9, 9)).eval()
    with torch.no_grad():
        network.stages[0][0].norm2.bias += 100
    x, weight = torch.randn(16, 3, 9, 9), torch.randn(5, 16).double()
    made = cut(network, "stages.0.0.norm2", weight, -100 * weight.sum(1), x)
    assert made.init_args["centred"]
    done = write_network(tmp_path, made, x, CARD)
    assert set(done.differences) == {"cut.pt2", "cut.onnx"}


# Parts ------------------------------------------------------------------------------------------------------


def test_what_a_difference_is():
    wanted = torch.tensor([[3.0, 1.0], [0.0, 5.0]])
    assert difference(wanted, wanted) == Difference(0.0, 0.0, 0)
    assert difference(wanted + 1e-3, wanted).scores == pytest.approx(
        2e-4, rel=1e-3
    )  # of the largest score, 5
    assert difference(wanted.flip(1), wanted).labels == 2
    tie = torch.tensor([[1.0, 1.0 + 1e-6]])
    assert difference(tie.flip(1), tie).within
    assert not difference(wanted * torch.nan, wanted).within


def test_between_two_normalisations():
    pixels = torch.rand(2, 1, 4, 4)
    mean, std = between([0.4], [0.3], [0.1], [0.2])
    torch.testing.assert_close(Shifted(mean, std)((pixels - 0.1) / 0.2), (pixels - 0.4) / 0.3)


def test_a_config_with_the_cut_network(small):
    network, _ = small
    assert isinstance(network, Cut)
    given = {
        "trainer": {"precision": "bf16-mixed", "max_epochs": 3},
        "model": {"backbone": {"class_path": "MLP"}, "label_smoothing": 0.1},
        "monitor": {"taps": {"layers": ["layers.*"]}},
        "data": {"class_path": "Digits"},
        "name": "mlp",
        "ckpt_path": "old.ckpt",
    }
    made = config_of(network, given)
    assert made["trainer"] == {"precision": "32-true", "max_epochs": 3}
    assert made["model"]["label_smoothing"] == 0.1
    assert made["model"]["backbone"]["init_args"]["layer"] == "layers.0.linear"
    assert "num_classes" not in made["model"]["backbone"]["init_args"]
    assert made["monitor"]["taps"]["layers"] == "default"
    assert (made["name"], made["ckpt_path"], made["data"]) == ("mlp-cut", None, {"class_path": "Digits"})
    assert given["monitor"]["taps"]["layers"] == ["layers.*"]


def test_a_card_of_many_classes():
    text = card_text(Card("N", "l", 1, 2, "W.", "Many", [f"c{n}" for n in range(50)]), (1, 2, 2), {}, [], {})
    assert "`[N, 50]`, one for each class of Many (c0, " in text
    assert "c11, ...)" in text
    assert "## Figures" not in text
