"""Held features: in memory, in files, and gathered over two gloo processes."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from tunnel_lightning.measures.sample import FeatureSample, groups

DIMS = {"input": 5, "a": 3}
# The third batch, moved past the second, lands partly on itself.
SIZES = [4, 1, 5, 4, 2]


def batches() -> list[tuple[dict[str, torch.Tensor], torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (
            {name: torch.randn(size, dim, generator=generator) for name, dim in DIMS.items()},
            torch.randint(9, (size,), generator=generator),
        )
        for size in SIZES
    ]


def expected() -> dict[str, torch.Tensor]:
    layers = {name: torch.cat([features[name] for features, _ in batches()]) for name in DIMS}
    return {**layers, "target": torch.cat([target for _, target in batches()])}


def filled(share: slice = slice(None), **options) -> FeatureSample:
    sample = FeatureSample(sum(SIZES), **options)
    for features, target in batches()[share]:
        sample.update(features, target, None)
    return sample


def content(sample: FeatureSample) -> dict[str, torch.Tensor]:
    return {
        **{name: layer.clone() for name, layer in sample.features.items()},
        "target": sample.target.clone(),
    }


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[name], wanted[name]) for name in wanted)


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    for name, options in (("memory", {}), ("disk", {"budget": 0, "folder": folder})):
        sample = filled(slice(rank, None, 2), **options)
        assert sample.on_disk == (name == "disk")
        sample.all_reduce()
        torch.save(content(sample), f"{folder}/{name}{rank}.pt")
        sample.close()
    # The second process is shown nothing.
    lone = filled(slice(0, 0) if rank else slice(0, 1))
    lone.all_reduce()
    torch.save(content(lone), f"{folder}/lone{rank}.pt")
    dist.destroy_process_group()


def test_keeps_what_it_is_shown() -> None:
    assert same(content(filled()), expected())
    part = filled(slice(0, 2))
    assert part.target.shape == (5,)
    assert part.features["a"].shape == (5, 3)


def test_features_are_copied_to_float32_on_the_cpu() -> None:
    sample = FeatureSample(2)
    layer = torch.ones(2, 3, dtype=torch.bfloat16, requires_grad=True)
    sample.update({"a": layer}, torch.tensor([1, 2]))
    assert sample.features["a"].dtype == torch.float32
    assert not sample.features["a"].requires_grad


def test_above_the_budget_it_lies_in_files_that_close_removes(tmp_path: Path) -> None:
    needed = FeatureSample.nbytes(DIMS, sum(SIZES))
    assert needed == 4 * 16 * 8 + 8 * 16
    assert not filled(budget=needed, folder=tmp_path).on_disk
    sample = filled(budget=needed - 1, folder=tmp_path)
    assert sample.on_disk
    assert same(content(sample), expected())
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) == 4 * 16 * 8
    sample.close()
    assert list(tmp_path.iterdir()) == []
    assert sample.features == {}


def test_files_are_removed_with_the_sample(tmp_path: Path) -> None:
    sample = filled(budget=0, folder=tmp_path)
    assert list(tmp_path.iterdir())
    del sample
    assert list(tmp_path.iterdir()) == []


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    sample = filled()
    with pytest.raises(ValueError, match="a sample of 16 images was shown 20"):
        sample.update(*batches()[0])
    huge = FeatureSample(2**40, budget=0, folder=tmp_path)
    with pytest.raises(ValueError, match="take fewer images or layers, or another folder"):
        huge.update(*batches()[0])
    assert list(tmp_path.iterdir()) == []


def test_two_processes_hold_what_one_holds(tmp_path: Path) -> None:
    # A script of its own: a spawned process could not import this module by name.
    processes = [subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)]) for rank in (0, 1)]
    assert [process.wait(120) for process in processes] == [0, 0]
    first = {name: layer[:4] for name, layer in expected().items()}
    for rank in (0, 1):
        for name, wanted in (("memory", expected()), ("disk", expected()), ("lone", first)):
            assert same(torch.load(tmp_path / f"{name}{rank}.pt"), wanted), (name, rank)
    assert not list(tmp_path.glob("features-*"))


def test_groups_fill_the_limit_in_order() -> None:
    dims = {"a": 10, "b": 40, "c": 50, "d": 1, "e": 100, "f": 1}
    assert groups(dims, lambda dim: dim, 100) == [["a", "b", "c"], ["d"], ["e"], ["f"]]
    assert groups({}, lambda dim: dim, 100) == []
    assert groups({"a": 0}, lambda dim: dim, 0) == [["a"]]


def test_groups_leave_room_for_the_work_on_one_layer_at_a_time() -> None:
    dims = {"a": 10, "b": 10, "c": 30, "d": 10}
    assert groups(dims, lambda dim: dim, 60) == [["a", "b", "c", "d"]]
    assert groups(dims, lambda dim: dim, 60, working=lambda dim: dim) == [["a", "b"], ["c"], ["d"]]
    assert groups(dims, lambda dim: dim, 90, working=lambda dim: dim) == [["a", "b", "c", "d"]]
    with pytest.raises(ValueError, match=r"'c' with 30 features needs .* GiB: take a nap"):
        groups(dims, lambda dim: dim, 59, working=lambda dim: dim, cure="take a nap")


def test_a_layer_above_the_limit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"layer 'b' with 40 features needs .* taps.max_features"):
        groups({"a": 1, "b": 40}, lambda dim: dim * 2**30, 2**33)


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
