"""What `run(rank, world)` of a test file gives on one process, and on two that share the work over gloo."""

import inspect
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist


def one_and_two(run: Callable[[int, int], Any], folder: Path) -> tuple[Any, list[Any]]:
    """`run(0, 1)` here, and `run(rank, 2)` of each of two processes.

    Args:
        run: a function of the test file that is called in both ways; what it returns is pickled.
        folder: an empty one.
    """
    # A script of its own: a spawned process could not import a test file by name.
    command = [sys.executable, __file__, inspect.getfile(run), str(folder)]
    processes = [subprocess.Popen([*command, str(rank)]) for rank in (0, 1)]
    assert [process.wait(120) for process in processes] == [0, 0]
    return run(0, 1), [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in (0, 1)]


def worker(file: str, folder: str, rank: int) -> None:
    torch.set_num_threads(1)
    run = runpy.run_path(file)["run"]
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(run(rank, 2), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    worker(sys.argv[1], sys.argv[2], int(sys.argv[3]))
