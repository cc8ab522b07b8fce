"""Two gloo processes equal one: similarity and first components, also where one process has no batch."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from tunnel_lightning.measures.components import FirstComponents
from tunnel_lightning.measures.similarity import LayerSimilarity


def batches(count: int) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        x = torch.randn(40, 12, generator=generator) + 100
        found.append({"a": x, "b": x[:, :5] + torch.randn(40, 5, generator=generator), "c": x**2})
        if i == 2:
            del found[-1]["b"]
    return found


def run(rank: int, world: int) -> dict:
    results = {}
    for kind in (LayerSimilarity, FirstComponents):
        for name, given in (("many", batches(2)), ("lost", batches(7)), ("few", batches(1)), ("none", [])):
            state = kind()
            for batch in given[rank::world]:
                state.update(batch)
            if world > 1:
                state.all_reduce()
            results[kind.__name__, name] = state.compute()
    return results


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(run(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def results(tmp_path_factory) -> tuple[dict, list[dict]]:
    folder = tmp_path_factory.mktemp("gloo")
    # A script of its own: a spawned process could not import this module by name.
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(folder)]) for rank in (0, 1)]
    assert [process.wait(120) for process in processes] == [0, 0]
    return run(0, 1), [torch.load(Path(folder, f"{rank}.pt"), weights_only=False) for rank in (0, 1)]


def flat(result: tuple) -> list:
    return [part for item in result for part in (flat(item) if isinstance(item, tuple) else [item])]


@pytest.mark.parametrize("kind", ["LayerSimilarity", "FirstComponents"])
@pytest.mark.parametrize("name", ["many", "lost", "few", "none"])
def test_two_processes_are_one(results, kind: str, name: str) -> None:
    one, two = results
    for found in two:
        for mine, expected in zip(flat(found[kind, name]), flat(one[kind, name]), strict=True):
            if isinstance(expected, torch.Tensor):
                np.testing.assert_allclose(mine, expected, rtol=1e-6, atol=1e-9)
            else:
                assert mine == expected
    for mine, other in zip(flat(two[0][kind, name]), flat(two[1][kind, name]), strict=True):
        assert (
            mine == other if not isinstance(mine, torch.Tensor) else mine.equal(other) or mine.isnan().any()
        )


def test_they_are_of_all_batches(results) -> None:
    one, _ = results
    assert one["LayerSimilarity", "many"].batches == 2
    assert one["LayerSimilarity", "few"].batches == 1
    assert one["LayerSimilarity", "none"].names == []
    lost = one["LayerSimilarity", "lost"]
    assert lost.batches == 7
    assert lost.value[1].isnan().all()
    assert lost.value[::2, ::2].isfinite().all()


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
