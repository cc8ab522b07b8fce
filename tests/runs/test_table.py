import math
import os
import random
import struct

import numpy as np
import pytest

from tunnel_lightning.runs import LayerInfo, ProfileTable, Row, RunError, read_layers, write_layers

ROW = Row(
    "mlp/version_0", 7, 1, -1, "val", "Glyphs", "layers.0", 1, "rank_cov", "rtol=1e-3", 12.0, 0.1, 9, 64
)


@pytest.fixture
def table(tmp_path):
    return ProfileTable(tmp_path / "run" / "profile.csv")


def test_first_lines(table):
    table.append([ROW])
    assert table.path.read_text().splitlines() == [
        "# tunnel_lightning profile schema 1",
        "run_id,step,epoch,experience,split,dataset,layer,index,measure,variant,value,se,n,dim",
        "mlp/version_0,7,1,-1,val,Glyphs,layers.0,1,rank_cov,rtol=1e-3,12.0,0.1,9,64",
    ]


def test_floats_round_trip_exactly(table):
    bits = random.Random(0)
    values = [struct.unpack("d", struct.pack("Q", bits.getrandbits(64)))[0] for _ in range(2000)]
    values += [0.1, -0.0, 5e-324, 1.7976931348623157e308, math.inf, -math.inf, math.nan]
    table.append(ROW._replace(value=v, se=v) for v in values)
    for row, v in zip(table.rows, values, strict=True):
        assert (math.isnan(v) and math.isnan(row.value)) or struct.pack("d", row.value) == struct.pack("d", v)


def test_nan_is_written_as_nan(table):
    table.append([ROW._replace(se=float("nan"))])
    assert ",12.0,nan,9,64" in table.path.read_text()


def test_numpy_scalars_become_plain_numbers(table):
    table.append([ROW._replace(value=np.float32(0.1), n=np.int64(5), step=np.int32(3))])
    assert table.rows == [ROW._replace(value=float(np.float32(0.1)), n=5, step=3)]
    assert all(type(v) in (int, float, str) for v in table.rows[0])


@pytest.mark.parametrize("name", ["a,b", 'say "x"', "ü ∅", "net#2", " spaced ", ""])
def test_odd_names_survive(table, name):
    table.append([ROW._replace(layer=name)] * 2)
    assert [r.layer for r in table.rows] == [name] * 2


def test_append_goes_on(table):
    assert table.rows == []
    table.append([ROW])
    table.append([])
    table.append([ROW._replace(step=8), ROW._replace(step=9)])
    assert [r.step for r in table.rows] == [7, 8, 9]
    assert os.listdir(table.path.parent) == ["profile.csv"]


def test_truncate(table):
    table.append(ROW._replace(step=s) for s in (0, 5, 5, 9, 3))
    assert table.truncate(5) == 1
    assert [r.step for r in table.rows] == [0, 5, 5, 3]
    assert table.truncate(5) == 0
    assert table.truncate(-1) == 4
    assert table.rows == []
    table.append([ROW])
    assert table.rows == [ROW]


def test_cut_off_last_line_is_left_out_and_told(table):
    table.append([ROW, ROW._replace(step=8)])
    whole = table.path.read_bytes()
    # Cut inside the last number the line still has 14 fields, but dim 6 for 64: not whole either.
    for cut in (2, 20, 60):
        table.path.write_bytes(whole[:-cut])
        with pytest.warns(UserWarning, match=r"last line of .*profile\.csv has no end"):
            assert table.rows == [ROW]
    with pytest.warns(UserWarning, match="has no end"):
        table.append([ROW._replace(step=10)])
    assert [r.step for r in table.rows] == [7, 10]


def test_leftover_of_a_killed_write_is_told_and_replaced(table):
    table.append([ROW])
    (table.path.parent / "profile.csv.tmp").write_text("half a li")
    with pytest.warns(UserWarning, match=r"profile\.csv\.tmp is left over"):
        assert table.rows == [ROW]
    table.append([ROW])
    assert len(table.rows) == 2
    assert os.listdir(table.path.parent) == ["profile.csv"]


def test_failing_rows_leave_the_table_as_it_was(table):
    table.append([ROW])
    with pytest.raises(ValueError, match="zip"):
        table.append([ROW, ROW[:5]])
    assert table.rows == [ROW]
    assert os.listdir(table.path.parent) == ["profile.csv"]


def test_other_schema(table):
    table.append([ROW])
    table.path.write_text(table.path.read_text().replace("schema 1", "schema 2"))
    for use in (lambda: table.rows, lambda: table.append([ROW]), lambda: table.truncate(0)):
        with pytest.raises(RunError, match=r"profile\.csv has schema 2, this .* reads schema 1: open it"):
            use()


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "\n", "# tunnel_lightning profile schema 1\na,b\n"])
def test_no_profile_table(table, text):
    table.path.parent.mkdir()
    table.path.write_text(text)
    with pytest.raises(RunError, match=r"profile\.csv (does not begin with|has the columns)"):
        _ = table.rows


def test_binary_file(table):
    table.path.parent.mkdir()
    table.path.write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(RunError, match="not a text file"):
        _ = table.rows


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (",9,64\n", ",9\n", r"profile\.csv line 3 has 13 fields instead of 14: repair or delete"),
        (",9,64\n", ",9,64,1\n", r"line 3 has 15 fields"),
        (",12.0,", ",twelve,", r"line 3 is no row \(could not convert string to float: 'twelve'\)"),
        (",7,1,-1,", ",7.5,1,-1,", r"line 3 is no row .*'7.5'"),
    ],
)
def test_malformed_row(table, old, new, message):
    table.append([ROW, ROW])
    table.path.write_text(table.path.read_text().replace(old, new, 1))
    with pytest.raises(RunError, match=message):
        _ = table.rows


def test_blank_and_windows_lines_are_read(table):
    table.append([ROW, ROW])
    table.path.write_bytes(table.path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert table.rows == [ROW, ROW]


def test_layers(tmp_path):
    layers = [
        LayerInfo(0, "input", "", "3x32x32", 3072, 0, 0, "input"),
        LayerInfo(1, "stem.conv", "Conv2d", "64x32x32", 256, 1728, 3538944, "layer"),
    ]
    assert read_layers(tmp_path) == []
    write_layers(tmp_path, layers)
    assert read_layers(tmp_path) == layers
    assert os.listdir(tmp_path) == ["layers.csv"]
    path = tmp_path / "layers.csv"
    path.write_text(path.read_text().replace(",256,", ",many,"))
    with pytest.raises(RunError, match=r"layers\.csv line 3 is no row .*'many'"):
        read_layers(tmp_path)
