"""One inversion of the small run with everything in it, shared by the tests of this room."""

import shutil

import pytest

from tunnel_lightning import __main__ as entry

FEW = [
    "--device=cpu", "--recipe=adam", "--steps=20", "--images=3", "--starts=2", "--most_layers=2",
    "--neighbour_images=60",
]  # fmt: skip
EXTRAS = [
    "--others=true", "--generate=true", "--noise_network=true", "--noise_images=60", "--noise_classes=5",
    "--noise_epochs=40", "--noise_lr=0.01",
]  # fmt: skip


@pytest.fixture(scope="session")
def inverted(trained, tmp_path_factory):
    """A copy of the run with a finished inversion; not to be changed."""
    run = tmp_path_factory.mktemp("inverted") / "tiny" / "version_0"
    shutil.copytree(trained, run)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(entry.COMMANDS, "invert", ("", "tunnel_lightning.analysis.invert.command:command"))
        assert entry.main(["invert", str(run), *FEW, *EXTRAS]) == 0
    return run


@pytest.fixture
def invert(monkeypatch):
    """The command."""
    monkeypatch.setitem(entry.COMMANDS, "invert", ("", "tunnel_lightning.analysis.invert.command:command"))
    return lambda *arguments: entry.main(["invert", *map(str, arguments)])
