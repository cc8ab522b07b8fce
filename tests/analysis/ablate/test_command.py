"""The command line: interruption, going on, swaps the other way round, and what is refused in words."""

import shutil
from pathlib import Path

import pytest
import torch

from tunnel_lightning.analysis.ablate.command import command
from tunnel_lightning.analysis.ablate.evaluate import Bench
from tunnel_lightning.analysis.ablate.retrain import Retraining
from tunnel_lightning.analysis.ablate.where import probed
from tunnel_lightning.analysis.places import alone
from tunnel_lightning.report import write_report
from tunnel_lightning.runs.ablation import load_ablation
from tunnel_lightning.surgery import snapshot

FEW = ("--device=cpu", "--images=60", "--fit_images=200")


@pytest.fixture
def looks(monkeypatch):
    """How many passes over the test images were made, and how many may be."""
    counted = {"made": 0, "most": 10**6}
    look = Bench.look

    def counting(self, *args, **kwargs):
        if counted["made"] >= counted["most"]:
            raise KeyboardInterrupt
        counted["made"] += 1
        return look(self, *args, **kwargs)

    monkeypatch.setattr(Bench, "look", counting)
    return counted


def test_an_interrupted_one_goes_on_and_repeats_nothing(run, tmp_path, looks):
    asked = [str(run), *FEW, "--only=reset,rewind", "--tunnel=3"]
    command([*asked, f"--out={tmp_path / 'at_once'}"])
    everything = looks["made"]
    looks |= {"made": 0, "most": 12}
    with pytest.raises(KeyboardInterrupt, match="the same command goes on with them"):
        command([*asked, f"--out={tmp_path / 'twice'}"])
    first = looks["made"]
    assert not (tmp_path / "twice" / "ablation.json").exists()
    looks |= {"made": 0, "most": 10**6}
    command([*asked, f"--out={tmp_path / 'twice'}"])
    # 8 passes of the first reset were whole, and the intact network is looked at again
    assert looks["made"] == everything - 8
    assert first == 12
    tables = [(tmp_path / name / "table.csv").read_bytes() for name in ("at_once", "twice")]
    assert tables[0] == tables[1]
    looks["made"] = 0
    command([*asked, f"--out={tmp_path / 'twice'}"])
    assert looks["made"] == 0  # everything is kept
    command([*asked, f"--out={tmp_path / 'twice'}", "--bn_images=0", "--images=61"])
    assert looks["made"] == everything


def test_swaps_are_the_same_from_the_other_side(trained, other, tmp_path):
    first, second = (tmp_path / name / "version_0" for name in ("first", "second"))
    for source, place in ((trained, first), (other, second)):
        shutil.copytree(source, place)
    for one, two in ((first, second), (second, first)):
        command([str(one), *FEW, "--only=swap", f"--swap={two}", "--tunnel=2"])
    here, there = (load_ablation(place).pick("nll", kind="swap", scope="cut") for place in (first, second))
    crossed = {"E1T2": "E2T1", "E2T1": "E1T2"}
    assert {(row.variant, row.first): row.value for row in here} == {
        (crossed[row.variant], row.first): row.value for row in there
    }


def test_a_run_without_a_profile_has_probes_fitted(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command([str(run), *FEW, "--only=reset"])
    found = load_ablation(run)
    assert found.summary["tunnel"]["whence"] == "ridge probes fitted for this"
    assert set(found.summary["tunnel"]["notes"]) == {"id95", "id98", "ood"}
    said = capsys.readouterr().out
    assert max(len(line) for line in said.splitlines() if not line.startswith("report")) <= 80
    (page,) = (line.split()[1] for line in said.splitlines() if line.startswith("report"))
    assert Path(page) == run / "report.html"  # that of the run
    (run / "profile.csv").unlink()
    (run / "report.html").unlink()
    assert write_report(run / "ablate") == run / "report.html"  # nothing else to show
    assert "What a layer is needed for" in (run / "report.html").read_text()


def test_probes_fitted_for_other_features_or_sets_are_fitted_again(run, monkeypatch):
    fitted = []

    def counting(*args):
        fitted.append(args)
        return probed(*args)

    monkeypatch.setattr("tunnel_lightning.analysis.ablate.work.probed", counting)
    for more in ([], [], ["--taps.pool=avg"], ["--ood=[Digits]"]):
        command([str(run), *FEW, "--only=reset", *more])
    assert len(fitted) == 3


def test_a_torn_checkpoint_is_left_out_and_named(run):
    torn = next(path for path in (run / "checkpoints").glob("epoch=*.ckpt"))
    torn.write_bytes(torn.read_bytes()[:200])
    command([str(run), *FEW, "--only=reset,rewind", "--tunnel=3"])
    assert f"{torn.name} can't be read, so nothing is rewound to it" in load_ablation(run).summary["notes"]


def test_a_run_without_its_first_weights_says_so(run):
    (run / "initial.pt").unlink()
    command([str(run), *FEW, "--only=reset", "--tunnel=2"])
    found = load_ablation(run)
    assert {row.variant.partition(";")[0] for row in found.pick(kind="reset")} == {"drawn anew"}
    assert any("re-randomisation" in note for note in found.summary["notes"])


def test_training_leaves_what_is_frozen(run, monkeypatch, tmp_path):
    ends = {}
    under = Bench.under

    def look(self, state=None, model=None):
        if model is not None:
            ends[len(ends)] = snapshot(model)
        return under(self, state, model)

    monkeypatch.setattr(Bench, "under", look)
    asked = [str(run), *FEW, "--only=retrain", "--retrain_epochs=1", "--tunnel=3"]
    before = torch.get_rng_state()
    command(asked)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.are_deterministic_algorithms_enabled()
    load = lambda name: {  # noqa: E731
        key.removeprefix("backbone."): value
        for key, value in torch.load(run / name, weights_only=True)["state_dict"].items()
    }
    trained, first = load("checkpoints/last.ckpt"), load("initial.pt")
    same = {
        0: [("layers.0.", trained), ("layers.1.", trained)],
        1: [("layers.2.", trained), ("head.", trained)],
        2: [("layers.0.", trained), ("layers.1.", trained), ("layers.2.", first)],
        3: [("layers.2.", first)],
        4: [],
    }
    for number, state in ends.items():
        still = {name for name, _ in same[number]}
        for key, value in state.items():
            whence = next((source for name, source in same[number] if key.startswith(name)), None)
            if whence is not None:
                assert torch.equal(value, whence[key]), (number, key)
            else:
                assert not torch.equal(value, trained[key]), (number, key)
                assert not torch.equal(value, first[key]), (number, key)
        assert len(still) == len(same[number])
    rows = load_ablation(run).pick(kind="retrain")
    command([*asked, f"--out={tmp_path / 'again'}"])
    assert [row.value for row in load_ablation(tmp_path / "again").pick(kind="retrain")] == [
        r.value for r in rows
    ]


def test_an_interrupted_training_is_an_interruption(run, monkeypatch):
    done = []
    trained = Retraining.trained

    def second_stops(self, part):
        done.append(part.name)
        if len(done) == 2:
            from tunnel_lightning.analysis.ablate import retrain

            def stop(*_):
                raise KeyboardInterrupt

            monkeypatch.setattr(retrain._Tell, "on_train_batch_end", stop)
        return trained(self, part)

    monkeypatch.setattr(Retraining, "trained", second_stops)
    asked = [str(run), *FEW, "--only=retrain", "--retrain_epochs=1", "--tunnel=3"]
    with pytest.raises(KeyboardInterrupt, match="finished parts are kept"):
        command(asked)
    assert (run / "ablate" / "parts" / "retrain_tunnel_and_head_anew.npz").is_file()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--only=delete"], "delete: MLP has no residual blocks"),
        (["--only=melt"], "only: no intervention 'melt': choose among delete, reset, rewind, swap, retrain"),
        (["--images=0"], "images must be at least 8, got 0"),
        (["--only=swap"], "only: swap needs to be told more: give --swap RUN2"),
        (["--only=retrain"], "only: retrain needs to be told more: give --retrain_epochs N"),
        (["--only=reset", "--retrain_epochs=2"], "retrain is asked for and left out of --only"),
        (["--retrain_epochs=-1"], "retrain_epochs must be at least 0, got -1"),
        (["--tunnel=1"], "tunnel must be at least 2, got 1"),
        (["--tunnel=4"], "tunnel must be from 2 to 3, the number of layers, got 4"),
        (["--taps.layers=addition"], "the taps of kind 'addition' are no modules"),
        (["--swap=nowhere"], "nowhere is no run folder"),
    ],
)
def test_mistakes_in_words(run, options, said):
    with pytest.raises((ValueError, OSError), match=said):
        command([str(run), *FEW, *options])
    assert not (run / "ablate").exists()


def test_more_mistakes_in_words(run, residual, tmp_path):
    with pytest.raises(ValueError, match=r"can't be swapped \(one is ResNet and one MLP\)"):
        command([str(run), *FEW, f"--swap={residual}"])
    with pytest.raises(ValueError, match="is this run itself: give another"):
        command([str(run), *FEW, f"--swap={run}"])
    for path in (run / "checkpoints").glob("*.ckpt"):
        if path.name != "last.ckpt":
            path.unlink()
    with pytest.raises(ValueError, match=r"rewind: .* has no checkpoint before step .*--keep_every N"):
        command([str(run), *FEW, "--only=rewind"])
    with pytest.raises(ValueError, match="is a run folder: choose another place for the ablation"):
        command([str(run), *FEW, f"--out={run}"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match="holds something else than an ablation"):
        command([str(run), *FEW, f"--out={tmp_path / 'notes'}"])
    with (
        alone(tmp_path / "busy", "an ablation"),
        pytest.raises(ValueError, match="another ablation is writing to"),
    ):
        command([str(run), *FEW, f"--out={tmp_path / 'busy'}"])


def test_a_network_that_is_no_run(tmp_path):
    asked = [
        "--model=torchvision:resnet18",
        "--data=Digits",
        "--data.channels=3",
        "--device=cpu",
        "--images=20",
    ]
    asked += [f"--out={tmp_path / 'out'}"]
    with pytest.raises(ValueError, match=r"retrain: .* is no run, so no optimizer and schedule"):
        command([*asked, "--retrain_epochs=1"])
    command([*asked, "--only=delete"])
    found = load_ablation(tmp_path / "out")
    assert found.main == "agreement"  # it is untrained
    assert len(found.pick("agreement", kind="delete", scope="block")) == 8
