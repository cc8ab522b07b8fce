"""Avalanche comes in late, leaves no traces, and every repair is still needed.

A test of a repair that fails because the library works without it means: take the repair out.
"""

import doctest
import importlib
import json
import subprocess
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from continual.toys import mlp, sgd, stream
from torch import nn
from torch.utils.data import ConcatDataset, Dataset, TensorDataset

from tunnel_lightning.continual import compat
from tunnel_lightning.continual.models import prepare_model

ROOT = Path(__file__).parents[2]

IMPORT = """
import json, pkgutil, random, sys, warnings
import numpy, torch
from torch.utils.data import Dataset
import tunnel_lightning.continual as room

for module in pkgutil.iter_modules(room.__path__):
    __import__(f"{room.__name__}.{module.name}")
early = "avalanche" in sys.modules
from tunnel_lightning.continual.compat import avalanche

def states():
    return [repr(random.getstate()), repr(numpy.random.get_state()), repr(torch.get_rng_state().tolist())]

before, add = states(), Dataset.__add__
with warnings.catch_warnings(record=True) as heard:
    warnings.simplefilter("always")
    filters = list(warnings.filters)
    module = avalanche()
    kept = warnings.filters == filters
print(json.dumps({
    "early": early,
    "states": states() == before,
    "add": Dataset.__add__ is add,
    "filters": kept,
    "heard": [str(each.message) for each in heard],
    "same": module is sys.modules["avalanche"] and avalanche() is module,
}))
"""


@pytest.fixture(scope="module")
def fresh():
    """A process of its own: here some test may have imported the library before."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORT], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {**json.loads(done.stdout.splitlines()[-1]), "stderr": done.stderr, "stdout": done.stdout}


def test_the_room_itself_does_not_import_avalanche(fresh):
    assert not fresh["early"]
    assert fresh["same"]


def test_the_import_leaves_random_states_dataset_addition_and_warning_filters_alone(fresh):
    assert fresh["states"]
    assert fresh["add"]
    assert fresh["filters"]


def test_the_import_is_silent(fresh):
    assert fresh["heard"] == []
    assert fresh["stderr"] == ""
    assert len(fresh["stdout"].splitlines()) == 1


def test_an_import_by_someone_else_is_cleaned_up_too(monkeypatch):
    library = compat.avalanche()
    monkeypatch.setattr(Dataset, "__add__", library._avdataset_radd)
    compat.avalanche.cache_clear()
    compat.avalanche()
    assert Dataset.__add__ is library._dataset_add


def test_the_addition_that_avalanche_installs_is_of_no_use_to_it(monkeypatch):
    """Why it may be taken back: with it, plain plus Avalanche's fails; without, torch joins them."""
    library = compat.avalanche()
    plain = TensorDataset(torch.arange(3), torch.arange(3))
    theirs = stream().benchmark.train_stream[0].dataset
    joined = plain + theirs
    assert isinstance(joined, ConcatDataset)
    assert len(joined) == 3 + len(theirs)
    monkeypatch.setattr(Dataset, "__add__", library._avdataset_radd)
    with pytest.raises(AttributeError, match="concat"):
        plain + theirs


def test_the_library_adds_its_own_data_sets_without_the_installed_addition():
    compat.avalanche()
    first, second = (experience.dataset for experience in stream().benchmark.train_stream[:2])
    both = first + second
    assert type(both) is type(first)
    assert len(both) == len(first) + len(second)


def test_without_avalanche_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "avalanche", None)
    compat.avalanche.cache_clear()
    with pytest.raises(ImportError, match=r"needs the library Avalanche.*pip install avalanche-lib"):
        compat.avalanche()


def test_a_missing_part_of_avalanche_is_named(monkeypatch):
    def fail(name):
        raise ModuleNotFoundError("No module named 'qpsolvers'", name="qpsolvers")

    monkeypatch.setattr(importlib, "import_module", fail)
    compat.avalanche.cache_clear()
    with pytest.raises(ImportError, match="not qpsolvers"):
        compat.avalanche()


# Repairs --------------------------------------------------------------------------------------------------


@contextmanager
def without(name):
    """The library as it comes, for a while."""
    compat.avalanche()
    shim = next(each for each in compat.shims() if each.name == name)
    undo = compat._applied.pop(name, None)
    assert undo is not None, f"the repair {name!r} was not applied: not needed any more?"
    undo()
    try:
        yield shim
    finally:
        compat._applied[name] = shim.apply()


@pytest.mark.parametrize("name", [shim.name for shim in compat.shims()])
def test_a_repair_is_needed_and_asked_for_once(name):
    with without(name) as shim:
        assert shim.needed()
    assert not shim.needed()


def test_all_repairs_can_be_applied_again():
    applied = dict(compat._applied)
    compat.avalanche.cache_clear()
    compat.avalanche()
    assert compat._applied == applied


def trained_by_bic():
    from avalanche.training import BiC

    two = stream(tasks=[[0, 1], [2, 3]])
    model = mlp(two)
    strategy = BiC(
        model=model, optimizer=sgd(model.parameters()), criterion=nn.CrossEntropyLoss(), mem_size=8,
        val_percentage=0.3, stage_2_epochs=1, train_mb_size=8, train_epochs=1, evaluator=None,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for experience in two.benchmark.train_stream:
            strategy.train(experience)
    return model


def test_bic_fails_without_its_repair():
    with without("BiC"), pytest.raises(TypeError, match="verbose"):
        trained_by_bic()


def test_bic_trains_with_its_repair():
    assert all(each.isfinite().all() for each in trained_by_bic().parameters())


@pytest.fixture
def heads():
    """A network with two heads, both trained a little."""
    from avalanche.training import Naive

    two = stream("task_incremental", tasks=[[0, 1], [2, 3]])
    model = prepare_model(mlp(two), two)
    strategy = Naive(
        model=model, optimizer=sgd(model.parameters()), criterion=nn.CrossEntropyLoss(), train_mb_size=8,
        train_epochs=1, evaluator=None,
    )  # fmt: skip
    for experience in two.benchmark.train_stream:
        strategy.train(experience)
    return model, two.tasks[0].test.x[:6], torch.tensor([0, 0, 1, 1, 0, 1])


def test_several_heads_fail_under_autocast_without_their_repair(heads):
    model, x, labels = heads
    fails = pytest.raises(RuntimeError, match="Index put requires")
    with without("several heads under autocast"), torch.autocast("cpu", torch.bfloat16), fails:
        model(x, labels)


def test_several_heads_give_their_bfloat16_scores_under_autocast(heads):
    model, x, labels = heads
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = model(x, labels)
        with without("several heads under autocast"):
            alone = torch.stack([model(x[at : at + 1], int(label))[0] for at, label in enumerate(labels)])
    assert scores.dtype == torch.float32
    assert alone.dtype == torch.bfloat16
    torch.testing.assert_close(scores, alone.float(), rtol=0, atol=1e-2)


def test_outside_autocast_the_repair_of_heads_changes_nothing(heads):
    model, x, labels = heads
    mended = model(x, labels)
    doubled = model.double()(x.double(), 0)
    model.float()
    with without("several heads under autocast"):
        assert torch.equal(model(x, labels), mended)
        assert doubled.dtype == torch.float64


def saved(path):
    from avalanche.checkpointing import maybe_load_checkpoint, save_checkpoint
    from avalanche.training import Naive

    def make():
        model = mlp(two)
        return Naive(
            model=model, optimizer=sgd(model.parameters()), criterion=nn.CrossEntropyLoss(), train_mb_size=8,
            train_epochs=1, evaluator=None,
        )  # fmt: skip

    two = stream(tasks=[[0, 1], [2, 3]])
    strategy = make()
    strategy.train(two.benchmark.train_stream[0])
    save_checkpoint(strategy, path)
    loaded, experience = maybe_load_checkpoint(make(), path)
    assert experience == 1
    return strategy, loaded


def test_saving_a_checkpoint_fails_without_its_repair(tmp_path):
    import pickle

    with without("save_checkpoint"), pytest.raises((pickle.PicklingError, TypeError), match="pickle"):
        saved(tmp_path / "run.pt")


def test_a_saved_checkpoint_is_read_back(tmp_path):
    strategy, loaded = saved(tmp_path / "run.pt")
    mine, theirs = strategy.model.state_dict(), loaded.model.state_dict()
    assert all(torch.equal(mine[name], theirs[name]) for name in mine)
    assert type(loaded.optimizer) is torch.optim.SGD
    state = loaded.optimizer.state_dict()["state"]
    for at, each in strategy.optimizer.state_dict()["state"].items():
        assert torch.equal(each["momentum_buffer"], state[at]["momentum_buffer"])


@pytest.mark.parametrize("module", ["compat"])
def test_examples_of_the_docstrings_run(module):
    done = doctest.testmod(importlib.import_module(f"tunnel_lightning.continual.{module}"))
    assert done.attempted > 0
    assert done.failed == 0


def test_its_deprecated_functions_leave_the_filters_of_warnings_alone():
    compat.avalanche()
    from avalanche.training.plugins import ReplayPlugin

    replay, before = ReplayPlugin(mem_size=4), list(warnings.filters)

    class Strategy:
        experience = stream(tasks=2).benchmark.train_stream[0]

    with pytest.warns(DeprecationWarning, match="deprecated"):
        replay.storage_policy.update(Strategy())
    assert list(warnings.filters) == before
