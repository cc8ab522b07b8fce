"""Streams made by hand and what the meter's tests read from rows: `from continual.toys_meter import blobs, table`."""

import torch
from torch import Tensor, nn

from tunnel_lightning.backbones import MLP
from tunnel_lightning.continual.meter import LayerMeter
from tunnel_lightning.continual.stream import Images, Stream, Task
from tunnel_lightning.runs import Row

SHAPE = (1, 4, 4)


def images(classes: tuple[int, ...], outputs: tuple[int, ...], count: int, seed: int) -> Images:
    """Noisy blobs, one for each class of the stream."""
    generator = torch.Generator().manual_seed(seed)
    at = torch.arange(count) % len(classes)
    y = torch.tensor(classes)[at]
    centres = torch.randn(20, *SHAPE, generator=torch.Generator().manual_seed(99))
    x = 0.6 * centres[y] + torch.randn(count, *SHAPE, generator=generator)
    return Images(x, torch.tensor(outputs)[at], y)


def blobs(kind: str = "class_incremental", tasks: int = 3, train: int = 60, test: int = 40) -> Stream:
    """Two classes a task; no benchmark, so nothing of Avalanche is needed."""
    made = []
    for index in range(tasks):
        classes = (2 * index, 2 * index + 1)
        outputs = classes if kind == "class_incremental" else (0, 1)
        label = index if kind == "task_incremental" else 0
        parts = (images(classes, outputs, count, 10 * index + i) for i, count in enumerate((train, test)))
        made.append(Task(index, f"task {index + 1}", label, classes, outputs, ("a", "b"), *parts))
    heads = kind == "task_incremental"
    several = 2 * tasks if kind == "class_incremental" else 2
    return Stream("blobs", kind, None, tuple(made), 2 * tasks, several, SHAPE, heads)  # type: ignore[arg-type]


def network(stream: Stream, width: int = 12, depth: int = 2, seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(depth=depth, width=width, num_classes=stream.outputs, input_shape=stream.input_shape)


def train(model: nn.Module, task: Task, steps: int = 30) -> None:
    """Some steps on a task, by hand."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(task.train.x), task.train.y).backward()
        optimizer.step()


def hidden(model: MLP, x: Tensor) -> dict[str, Tensor]:
    """What the taps of an MLP read, by hand: each layer before its activation."""
    found, x = {}, x.flatten(1)
    with torch.no_grad():
        for i, layer in enumerate(model.layers):
            found[f"layers.{i}.linear"] = layer.linear(x)
            x = layer(x)
    return found


def run(stream: Stream, model: MLP, meter: LayerMeter, upto: int | None = None) -> list[Row]:
    """Measure, learn each task, measure after each."""
    meter.start(model)
    rows = meter.measure(model, after=-1)
    for task in stream.tasks[:upto]:
        train(model, task)
        rows += meter.measure(model, after=task.index, step=30 * (task.index + 1), epoch=task.index + 1)
    return rows


def table(rows: list[Row]) -> dict[tuple[int, str, str, str, str], Row]:
    """Rows by experience, data set, layer, measure and variant; there is one of each."""
    found = {(row.experience, row.dataset, row.layer, row.measure, row.variant): row for row in rows}
    assert len(found) == len(rows)
    return found
