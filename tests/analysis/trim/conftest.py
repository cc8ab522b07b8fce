"""A network with a tunnel, trimmed once for all tests of this room."""

import json
from pathlib import Path

import pytest
import toys_trim

from tunnel_lightning.analysis.asked import Asked
from tunnel_lightning.analysis.trim import command
from tunnel_lightning.analysis.trim.options import Options


@pytest.fixture
def light(monkeypatch):
    """No files of the network are written: exporting takes seconds."""
    monkeypatch.setattr(command, "write_taken", lambda *_: ({}, []))


@pytest.fixture(scope="session")
def trimming():
    """Trim the toy network into a folder and return its summary."""

    def run(out, model="trained", data=None, ood=(), **options):
        asked = Asked(
            model=f"toys_trim:{model}",
            data=data or toys_trim.Signs(),
            ood=list(ood),
            device="cpu",
            out=str(out),
        )
        command.trim(asked, Options(**{"latency": False, "probe": "ridge", **options}))
        return json.loads((Path(out) / "trim.json").read_text())

    return run


@pytest.fixture(scope="session")
def trimmed(trimming, tmp_path_factory):
    """A finished trim with all its files; not to be changed."""
    out = tmp_path_factory.mktemp("trimmed") / "trim"
    trimming(out, ood=[toys_trim.Signs(turned=True)], keep=0.9)
    return out
