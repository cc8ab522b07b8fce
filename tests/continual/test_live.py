"""What TensorBoard is told of a run over tasks, from figures at hand."""

import pytest
import sequences
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from tunnel_lightning.continual.live import Live
from tunnel_lightning.runs.continual import load_continual


def shown(folder, out):
    run = load_continual(folder)
    writer = SummaryWriter(out)
    live = Live(writer, run.tasks, run.rows)
    live([row for row in run.rows if row.experience == run.done - 1])
    live.pictures(folder)
    writer.close()
    events = EventAccumulator(str(out))
    events.Reload()
    return events


@pytest.mark.parametrize(
    ("make", "pictures"),
    [
        (sequences.two_tasks, {"swaps_1", "rewinds", "frozen"}),
        (sequences.naive, {"time_drift", "exits", "exit_costs"}),
    ],
)
def test_sweeps_and_exits_have_their_pictures(make, pictures, tmp_path):
    events = shown(make(tmp_path / "run" / "version_0"), tmp_path / "events")
    both = {"task_accuracy", "forgetting_by_depth", "time_all"}
    assert {tag.removeprefix("tasks/") for tag in events.Tags()["images"]} == both | pictures


def test_each_exit_has_a_line(tmp_path):
    events = shown(sequences.naive(tmp_path / "run" / "version_0"), tmp_path / "events")
    (third,) = events.Scalars("layers/exit_accuracy_exit/03_layers.2.linear")
    assert third.value == pytest.approx((4 * (0.45 - 0.12) + 0.94) / 5)
