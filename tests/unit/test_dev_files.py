"""Reading records out of files to replay."""

from __future__ import annotations

import gzip

import orjson
import pytest

from streamproc.dev.files import RecordFile, to_milliseconds
from streamproc.errors import ReplayError


def read(path, text, **options):
    data = text.encode() if isinstance(text, str) else text
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    with RecordFile(path, **options) as file:
        return list(file)


def test_csv_cells_become_typed(tmp_path):
    text = "id,n,x,ok,code,note\ns1,-3,2.50,true,007,\ns2,0,1e3,False,a1,nan\n"
    rows = read(tmp_path / "a.csv", text, key="id")
    assert [row.key for row in rows] == [b"s1", b"s2"]
    assert [orjson.loads(row.value) for row in rows] == [
        {"id": "s1", "n": -3, "x": 2.5, "ok": True, "code": "007", "note": None},
        {"id": "s2", "n": 0, "x": 1000.0, "ok": False, "code": "a1", "note": "nan"},
    ]


def test_quotes_line_ends_bom_and_empty_lines(tmp_path):
    rows = read(tmp_path / "a.csv", '\ufeffa,b\r\n"x, ""y""\nz",1\r\n\r\nq,2\r\n'.encode())
    assert [orjson.loads(row.value) for row in rows] == [
        {"a": 'x, "y"\nz', "b": 1},
        {"a": "q", "b": 2},
    ]


@pytest.mark.parametrize("name", ["a.ndjson", "a.jsonl.gz", "a.json"])
def test_json_lines_are_sent_as_they_stand(tmp_path, name):
    rows = read(tmp_path / name, '{"k": "é", "v": 1.50}\n\n{"k": 7}', key="k")
    assert [(row.key, row.value) for row in rows] == [
        ("é".encode(), '{"k": "é", "v": 1.50}'.encode()),
        (b"7", b'{"k": 7}'),
    ]


def test_a_file_can_be_read_twice(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a\n1\n2\n"))
    with RecordFile(path) as file:
        assert list(file) == list(file)
        assert file.position == file.size


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("2024-01-01T00:00:00Z", 1704067200000),
        ("2024-01-01 01:00:00.250+01:00", 1704067200250),
        ("2024-01-01", 1704067200000),
        (1704067200, 1704067200000),
        (1704067200.5, 1704067200500),
        (1704067200123, 1704067200123),
    ],
)
def test_times(value, expected):
    assert to_milliseconds(value) == expected


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "a,b\n1,2\n3\n", r"a\.csv, line 3: 1 cells, but the header has 2"),
        ("a.csv", "x,y\n1,2\n", r"a\.csv, line 1: no column 'a'; there are x, y"),
        ("a.csv", "a,t\n1,soon\n", r"a\.csv, line 2: t is no time: 'soon'"),
        ("a.csv", "a,t\n1,\n", r"a\.csv, line 2: t is no time: None"),
        ("a.ndjson", '{"a": 1, "t": 1}\n{"a": ', r"a\.ndjson, line 2: not JSON"),
        ("a.ndjson", '{"b": 1}', r"a\.ndjson, line 1: no field 'a'"),
        ("a.ndjson", "[1]", r"a\.ndjson, line 1: no field 'a'"),
        ("a.csv", b"a,t\n\xff,1\n", r"a\.csv, line 2: not UTF-8"),
        ("a.txt", "", r"a\.txt: its name should end in \.csv"),
    ],
)
def test_errors_name_the_file_and_the_line(tmp_path, name, text, message):
    with pytest.raises(ReplayError, match=message):
        read(tmp_path / name, text, key="a", timestamp="t" if "t" in str(text) else None)


def test_broken_gzip_and_missing_file(tmp_path):
    path = tmp_path / "a.csv.gz"
    path.write_bytes(gzip.compress(b"a\n" + b"1\n" * 1000)[:-20])
    with RecordFile(path) as file, pytest.raises(ReplayError, match="no complete gzip"):
        list(file)
    with pytest.raises(ReplayError, match=r"Cannot open .*missing\.csv: No such file"):
        RecordFile(tmp_path / "missing.csv")
