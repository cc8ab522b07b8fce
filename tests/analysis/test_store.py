"""Parts that are kept: whole and of the same settings, or not there."""

import doctest
import errno
import math

import numpy as np
import pytest
import torch
from toys import Images

from tunnel_lightning.analysis import store as module
from tunnel_lightning.analysis.sets import ImageSet
from tunnel_lightning.analysis.store import Part, Store, fingerprint, images_key, tensors_key
from tunnel_lightning.runs import Row

ROW = Row(
    "a/version_0", 3, 1, -1, "test", "Digits", "l1", 1, "rank_cov", "rtol=1e-3", 0.1 + 0.2, math.nan, 9, 4
)


def part():
    return Part(
        [ROW, ROW._replace(value=np.float64(1e-300), n=np.int64(3), index=torch.tensor(2))],
        {
            "cka/names": np.array(["ä", "b"]),
            "cka/value": np.array([[1.0, np.nan], [np.nan, 1.0]]),
            "D|t|l": np.ones(0),
        },
        {"penalty": {"a": 1e-3}, "notes": ["x"]},
        {"Digits: ridge": 1.5},
    )


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "parts")


def test_a_part_comes_back_exactly(store):
    store.save("held-Digits", "key", part())
    found = store.load("held-Digits", "key")
    first, second = found.rows
    assert str(first) == str(ROW)
    assert second[:-4] == (*ROW[:7], 2, *ROW[8:10])
    assert (second.value, second.n, type(second.n)) == (1e-300, 3, int)
    assert list(found.arrays) == ["cka/names", "cka/value", "D|t|l"]
    for key, array in part().arrays.items():
        assert np.array_equal(found.arrays[key], array, equal_nan=array.dtype.kind == "f")
    assert (found.extra, found.seconds) == (part().extra, part().seconds)


def test_another_key_or_name_is_not_there(store):
    assert store.load("a", "key") is None
    store.save("a", "key", part())
    assert store.load("a", "other") is None
    assert store.load("b", "key") is None


def test_a_torn_or_damaged_file_is_not_there(store):
    store.save("a", "key", part())
    (file,) = store.folder.iterdir()
    whole = file.read_bytes()
    for length in range(0, len(whole), 37):
        file.write_bytes(whole[:length])
        assert store.load("a", "key") is None, length
    for place in range(0, len(whole), 11):
        torn = bytearray(whole)
        torn[place] ^= 0x40
        file.write_bytes(bytes(torn))
        found = store.load("a", "key")
        assert found is None or (found.rows and len(found.arrays) == 3 and str(found.rows[0]) == str(ROW)), (
            place
        )
    file.write_bytes(b"")
    assert store.load("a", "key") is None
    file.unlink()
    file.mkdir()
    assert store.load("a", "key") is None


def test_something_pickled_is_not_opened(store, tmp_path):
    class Evil:
        def __reduce__(self):
            return (tmp_path.joinpath("made").touch, ())

    store.folder.mkdir()
    np.savez(store.folder / "a.npz", note=np.array([Evil()], dtype=object))
    assert store.load("a", "key") is None
    assert not (tmp_path / "made").exists()


def test_a_full_disk_leaves_nothing_and_says_where(store, monkeypatch):
    store.save("a", "key", part())

    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(np, "savez_compressed", full)
    with pytest.raises(OSError, match=r"No space left on device: .*b\.npz") as caught:
        store.save("b", "key", part())
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in store.folder.iterdir()] == ["a.npz"]
    assert store.load("a", "key")


def test_keys_change_with_what_they_are_of():
    assert fingerprint(1, {"a": [1, 2]}) == fingerprint(1, {"a": (1, 2)})
    assert fingerprint("ab", "c") != fingerprint("a", "bc")
    x = torch.ones(3)
    keys = [
        tensors_key({"a": x}),
        tensors_key({"b": x}),
        tensors_key({"a": x.double()}),
        tensors_key({"a": x[None]}),
        tensors_key({"a": x, "b": torch.tensor(1)}),
        tensors_key({"a": torch.tensor([1.0, 1.0, 1 + 1e-7])}),
        tensors_key({"a": x.bfloat16()}),
    ]
    assert len(set(keys)) == len(keys)
    assert tensors_key({"a": torch.ones(2, 3).T}) == tensors_key({"a": torch.ones(3, 2)})


def key(train, test, name="A", **options):
    return images_key(ImageSet.from_loaders(name, train, test, **options))


def test_the_key_of_images():
    train, test = Images(60, 0), Images(30, 1)
    first = key(train, test)
    assert key(Images(60, 0), Images(30, 1)) == first
    brighter = Images(30, 1)
    brighter.x = brighter.x + 0.01
    relabelled = Images(60, 0)
    relabelled.y = relabelled.y.roll(1)
    others = [
        key(Images(61, 0), test),
        key(Images(60, 7), test),
        key(train, brighter),
        key(relabelled, test),
        key(train, test, "B"),
        key(train, test, num_classes=6),
        key(train, test, batch_size=32),
    ]
    assert len({first, *others}) == 8


def test_images_that_are_drawn_on_reading_have_one_key():
    sets = Images(60, 0, jitter=True), Images(30, 1, jitter=True)
    before = torch.get_rng_state()
    first = key(*sets)
    assert torch.equal(before, torch.get_rng_state())
    torch.rand(5)
    assert key(*sets) == first


def test_docstrings():
    assert doctest.testmod(module).attempted > 0
    assert doctest.testmod(module).failed == 0
