"""Which part of the package may import which: the table of docs/architecture.md, held."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = "tunnel_lightning"
ROOT = Path(__file__).parents[1] / PACKAGE

EVERYTHING = {
    "runs", "data", "backbones", "module", "taps", "measures", "surgery", "callbacks", "analysis",
    "continual", "report", "cli",
}  # fmt: skip

# Room: rooms it may import. "report.figures" allows that module alone.
ALLOWED = {
    "runs": set(),
    "data": set(),
    "backbones": set(),
    "module": {"backbones"},
    "taps": set(),
    "measures": {"taps"},
    "surgery": {"backbones", "taps"},
    "callbacks": {"taps", "measures", "runs", "report.figures"},
    "analysis": EVERYTHING - {"continual", "cli"},
    "continual": EVERYTHING - {"analysis", "cli"},
    "report": {"runs"},
    "cli": EVERYTHING,
    "__main__": EVERYTHING,
    "__init__": EVERYTHING,
}
HEAVY = {"torch", "torchvision", "torchmetrics", "lightning", "sklearn", "avalanche"}
FILES = sorted(ROOT.rglob("*.py"))


def room_of(path):
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def imported(path):
    """Full dotted names a file imports anywhere, functions included, with the line of each."""
    package = [PACKAGE, *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*base, *([node.module] if node.module else [])])
            yield from ((f"{start}.{alias.name}", node.lineno) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield str(node.args[0].value), node.lineno


def breaches(path):
    room = room_of(path)
    for name, line in imported(path):
        where = f"{path.relative_to(ROOT.parent)}:{line} imports {name}"
        top, *rest = name.split(".")
        if top == PACKAGE:
            if not rest or rest[0] == room:
                continue
            allowed = ALLOWED[room]
            if rest[0] not in EVERYTHING:  # a name of the package itself, whose __init__ reaches everywhere
                if room not in ("cli", "__main__", "__init__"):
                    yield f"{where}: say which room it is from"
            elif rest[0] not in allowed and not any(
                f"{name}.".startswith(f"{PACKAGE}.{a}.") for a in allowed
            ):
                yield f"{where}: {room} may import {sorted(allowed) or 'no other room'}"
        elif top == "pytorch_lightning" or (top == "lightning" and rest[:1] not in (["pytorch"], ["fabric"])):
            yield f"{where}: use lightning.pytorch or lightning.fabric"
        elif top == "avalanche" and room != "continual":
            yield f"{where}: only continual/ knows Avalanche"
        elif top in HEAVY and room in ("runs", "report"):
            yield f"{where}: {room}/ works without torch"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_the_table_is_held(path):
    assert room_of(path) in ALLOWED, "a new room: add it to the table here and in docs/architecture.md"
    assert list(breaches(path)) == []


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("runs", "import torch"),
        ("report", "def f():\n    from torch import nn"),
        ("report", "from lightning.pytorch import Trainer"),
        ("taps", "from tunnel_lightning.measures import Moments"),
        ("taps", "from tunnel_lightning import measures"),
        ("taps", "from ..measures import Moments"),
        ("taps", "from tunnel_lightning import LayerMonitor"),
        ("callbacks", "from tunnel_lightning.report import depth_profile"),
        ("callbacks", "from tunnel_lightning.report.table import print_profile"),
        ("callbacks", "import avalanche.training"),
        ("module", "import pytorch_lightning as pl"),
        ("module", "import lightning as L"),
        ("module", "from lightning import Trainer"),
        ("module", "from importlib import import_module\nimport_module('pytorch_lightning')"),
        ("analysis", "from tunnel_lightning.continual import Meter"),
    ],
)
def test_breaches_are_found(room, code, monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / room / "a.py"
    path.parent.mkdir()
    path.write_text(code)
    assert list(breaches(path))


@pytest.mark.parametrize(
    ("room", "code"),
    [
        ("callbacks", "from tunnel_lightning.report.figures import depth_profile"),
        ("callbacks", "from tunnel_lightning.report import figures"),
        ("callbacks", "from .base import Monitor"),
        ("measures", "from tunnel_lightning.taps import Taps"),
        ("module", "from lightning.pytorch import LightningModule"),
        ("continual", "import avalanche"),
    ],
)
def test_what_is_allowed_is_no_breach(room, code, monkeypatch, tmp_path):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    path = tmp_path / room / "a.py"
    path.parent.mkdir()
    path.write_text(code)
    assert list(breaches(path)) == []


@pytest.mark.parametrize("name", ["", ".runs", ".report"])
def test_light_parts_load_nothing_heavy(name):
    code = f"import sys, {PACKAGE}{name}; print(*{{m.split('.')[0] for m in sys.modules}})"
    out = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, cwd=ROOT.parent
    )
    assert not set(out.stdout.split()) & {*HEAVY, "matplotlib", "pandas", "pytorch_lightning"}
