"""The figures of an ablation, each made again by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.subject import load_run_subject, read_config
from tunnel_lightning.analysis.weights import read_weights
from tunnel_lightning.runs.ablation import load_ablation

IMAGES = 120


def test_images(run):
    subject = load_run_subject(run)
    x, y = zip(*ImageSet.of(subject.data).batches("test", IMAGES), strict=True)
    return torch.cat(x), torch.cat(y)


test_images.__test__ = False


def accuracy(network, images):
    x, y = images
    with torch.no_grad():
        return float((network(x).argmax(1) == y).double().mean())


def only(rows):
    (row,) = rows
    return row


@pytest.fixture(scope="module")
def images(whole):
    return test_images(whole[1])


def put(run, keys, path="initial.pt"):
    """The run's network with some of its tensors from another file."""
    network = load_run_subject(run).network
    then = {key.removeprefix("backbone."): value for key, value in read_weights(run / path).items()}
    now = network.state_dict()
    network.load_state_dict({k: then[k] if k.startswith(keys) else v for k, v in now.items()})
    return network


def test_the_intact_network(whole, images):
    found, run = whole
    row = found.intact()
    assert row.value == accuracy(load_run_subject(run).network, images)
    assert row.se == pytest.approx(np.sqrt(row.value * (1 - row.value) / IMAGES))
    assert row.n == IMAGES
    assert found.intact("agreement").value == 1
    assert found.intact("cka").value == pytest.approx(1)


@pytest.mark.parametrize("index", [1, 2, 3])
def test_a_layer_reset_by_hand(whole, images, index):
    found, run = whole
    row = only(found.pick(kind="reset", scope="layer", variant="initial", first=index))
    assert row.layers == f"layers.{index - 1}.linear"
    assert row.value == accuracy(put(run, f"layers.{index - 1}."), images)
    behind = only(found.pick(kind="reset", scope="from", variant="initial", first=index))
    keys = tuple(f"layers.{k}." for k in range(index - 1, 3))
    assert behind.value == accuracy(put(run, keys), images)


def test_weights_drawn_anew_are_others_than_the_first(whole):
    found, _ = whole
    drawn = [row.value for row in found.pick("nll", kind="reset", scope="layer", variant="drawn anew")]
    first = [row.value for row in found.pick("nll", kind="reset", scope="layer", variant="initial")]
    assert len(drawn) == len(first) == 3
    assert not set(drawn) & set(first)


def test_a_layer_rewound_by_hand(whole, images):
    found, run = whole
    assert {row.variant for row in found.pick(kind="rewind", scope="layer")} == {"epoch 2", "epoch 4"}
    row = only(found.pick(kind="rewind", scope="layer", variant="epoch 2", first=2))
    assert row.value == accuracy(put(run, "layers.1.", "checkpoints/epoch=2.ckpt"), images)


def test_a_tunnel_is_all_behind_its_start(whole):
    found, _ = whole
    starts = found.summary["tunnel"]["starts"]
    assert starts == {"id95": 2, "id98": 3}, found.summary["tunnel"]["notes"]
    assert found.summary["tunnel"]["whence"].startswith("the analysis (step ")
    for row in found.pick(kind="reset", scope="tunnel"):
        variant, _, rules = row.variant.partition("; ")
        assert {starts[rule] for rule in rules.split(",")} == {row.first}
        same = only(found.pick(kind="reset", scope="from", variant=variant, first=row.first))
        assert row.value == same.value
        before = only(found.pick(kind="reset", scope="extractor", variant=row.variant))
        assert (before.first, before.last) == (1, row.first - 1)


def test_swaps_by_hand(whole, other, images):
    found, run = whole
    first, second = (load_run_subject(each).network for each in (run, other))
    mixed = copy.deepcopy(first)
    mixed.layers[2], mixed.head = second.layers[2], second.head
    row = only(found.pick(kind="swap", scope="cut", variant="E1T2", first=2))
    assert row.value == accuracy(mixed, images)
    crossed = copy.deepcopy(second)
    crossed.layers[2], crossed.head = first.layers[2], first.head
    row = only(found.pick(kind="swap", scope="cut", variant="E2T1", first=2))
    assert row.value == accuracy(crossed, images)
    alone = copy.deepcopy(first)
    alone.layers[0] = second.layers[0]
    row = only(found.pick(kind="swap", scope="layer", first=1))
    assert row.value == accuracy(alone, images)


def test_trainings(whole):
    found, _ = whole
    rows = {row.variant.partition("; ")[0]: row for row in found.pick(kind="retrain")}
    assert list(rows) == list(found.summary["retrained"])
    start = rows["tunnel and head anew"].first
    assert rows["extractor anew"].last == start - 1
    assert (rows["all anew"].first, rows["all anew"].last) == (1, 3)
    assert rows["head alone"].layers == "head"
    assert rows["tunnel and head anew"].value > 0.3  # one epoch on a trained extractor


def test_the_run_is_left_as_it_was(whole, trained):
    _, run = whole
    for path in trained.rglob("*.*t"):  # initial.pt and checkpoints
        assert (run / path.relative_to(trained)).read_bytes() == path.read_bytes()
    assert read_config(run) == read_config(trained)


def test_a_block_deleted_by_hand(deleted, residual):
    images = test_images(residual)
    for stage, place in ((0, 1), (1, 0), (2, 1)):
        network = load_run_subject(residual).network
        block = network.stages[stage][place]
        if block.shortcut is None:
            network.stages[stage][place] = nn.Identity()
        else:
            network.stages[stage][place] = nn.Sequential(block.shortcut, nn.ReLU())
        row = only(deleted.pick(kind="delete", scope="block", layers=f"stages.{stage}.{place}"))
        assert row.value == accuracy(network, images)


def test_stages_are_deleted_from_their_ends(deleted):
    rows = deleted.pick(kind="delete", scope="stage")
    assert [(row.variant, row.first, row.last) for row in rows] == [
        ("stage 1", 2, 2), ("stage 1", 1, 2), ("stage 2", 4, 4), ("stage 2", 3, 4), ("stage 3", 6, 6),
        ("stage 3", 5, 6),
    ]  # fmt: skip
    alone = {row.first: row.value for row in deleted.pick(kind="delete", scope="block")}
    assert rows[0].value == alone[2]


def test_everything_is_said_twice_where_statistics_are_estimated(deleted):
    kept, again = (deleted.pick(kind="delete", scope="block", statistics=s) for s in ("kept", "estimated"))
    assert [row[:6] for row in kept] == [row[:6] for row in again]
    assert [row.value for row in kept] != [row.value for row in again]


def test_what_is_known_of_the_blocks(deleted):
    blocks = deleted.summary["blocks"]
    assert [block["projected"] for block in blocks] == [False, False, True, False, True, False]
    assert all(0 < block["cka"] <= 1 for block in blocks)
    structure = deleted.summary["structure"]
    assert -1 <= structure["spearman"] <= 1
    assert "no map of every output" in structure["sentence"]


def test_the_table_is_read_back(whole):
    found, run = whole
    assert str(load_ablation(run).rows) == str(found.rows)  # NaN is not equal to itself
    assert {row.kind for row in found.rows} == {"intact", "reset", "rewind", "swap", "retrain"}
    assert any("MLP has no residual blocks" in note for note in found.summary["notes"])
