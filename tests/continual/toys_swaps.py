"""Two tasks learnt one after the other, for swap tests: `from continual.toys_swaps import learnt`."""

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from tunnel_lightning.backbones import MLP, Backbone
from tunnel_lightning.continual.stream import Images, Task
from tunnel_lightning.continual.swaps import TwoTasks
from tunnel_lightning.surgery import sections, snapshot

CLASSES = 5


class Multi(nn.Module):
    """As Avalanche's multi-task decorator: the head is taken out of the backbone, one for each task is outside."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        width = backbone.head.in_features
        self.model = backbone
        self.model.head = nn.Sequential()
        self.head = nn.ModuleDict({str(label): nn.Linear(width, CLASSES) for label in range(2)})

    def forward(self, x: Tensor, label: int) -> Tensor:
        return self.head[str(label)](self.model(x))


class View(nn.Module):
    """The network asked about one task."""

    def __init__(self, model: nn.Module, label: int) -> None:
        super().__init__()
        self.model, self.label = model, label

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x, self.label)


def halves(train: int = 1437, test: int = 360, seed: int = 0) -> tuple[Task, Task]:
    """Digits 0 to 4, then 5 to 9, with a head of five outputs each; 720 and 180 images of each half at most."""
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x / 16, dtype=torch.float32).reshape(-1, 1, 8, 8), torch.tensor(y)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))

    def images(rows: Tensor, half: int) -> Images:
        rows = rows[y[rows] // CLASSES == half]
        return Images(x[rows], y[rows] - CLASSES * half, y[rows])

    return tuple(
        Task(
            half,
            f"task {half + 1}",
            half,
            tuple(range(CLASSES * half, CLASSES * half + CLASSES)),
            tuple(range(CLASSES)),
            tuple(str(digit) for digit in range(CLASSES * half, CLASSES * half + CLASSES)),
            images(order[360 : 360 + train], half),
            images(order[:test], half),
        )
        for half in range(2)
    )


def learn(model: nn.Module, task: Task, epochs: int, seed: int = 0) -> None:
    """Plain SGD at rate .05 in batches of 32."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        model.train()
        for rows in torch.randperm(len(task.train.y), generator=generator).split(32):
            optimizer.zero_grad()
            cross_entropy(model(task.train.x[rows], task.label), task.train.y[rows]).backward()
            optimizer.step()


def learnt(backbone: Backbone, tasks: tuple[Task, Task], epochs: int, layers: str = "default") -> TwoTasks:
    """The states after both tasks."""
    model = Multi(backbone)
    states = []
    for task in tasks:
        learn(model, task, epochs)
        states.append(snapshot(model))
    parts = sections(model, tasks[0].test.x, layers, lambda x: model(x, 0))
    return TwoTasks(
        model, lambda task: View(model, task.label), *states, tasks, parts, "run/version_0", 90, 3
    )


def mlp(depth: int = 3, width: int = 16, seed: int = 0) -> MLP:
    torch.manual_seed(seed)
    return MLP(depth=depth, width=width, num_classes=CLASSES, input_shape=(1, 8, 8))


def accuracy(two: TwoTasks, task: Task) -> float:
    """Of the network as it is."""
    view = two.view(task).eval()
    with torch.no_grad():
        return float((view(task.test.x).argmax(1) == task.test.y).double().mean())
