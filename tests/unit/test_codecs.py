"""Codecs: what they read and write, whole columns, and what they refuse."""

from decimal import Decimal
from typing import Any

import faust
import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import streamproc.records.codecs as codecs
from streamproc.errors import ConfigurationError, DecodeError, EncodeError
from streamproc.records import (
    Codec,
    Record,
    batch_decoder,
    find_codec,
    get_codec,
    register_codec,
    validator,
)

JSON = get_codec("json")


class Reading(Record):
    sensor_id: str
    value: float
    note: str = ""


class FaustReading(faust.Record):
    sensor_id: str
    value: float
    note: str = ""


class Picky(Record):
    value: int

    @validator("value")
    def _check(self, value):
        if value == 1:
            raise StopIteration
        if value == 2:
            raise ZeroDivisionError("by zero")
        if value == 3:
            raise ValueError("is three")


@pytest.mark.parametrize(
    ("name", "declared", "payload", "value"),
    [
        ("json", None, b'{"a": [1, 2.5, null]}', {"a": [1, 2.5, None]}),
        ("json", Any, b"5", 5),
        ("json", dict, b'{"a": 1}', {"a": 1}),
        ("json", list[int], b"[1, 2]", [1, 2]),
        ("json", str, b'"a"', "a"),
        ("json", str, b"5", "5"),
        ("json", int, b'"5"', 5),
        ("json", float, b"5", 5.0),
        ("json", Decimal, b'"1.10"', Decimal("1.10")),
        ("json", bytes, b"\xff", b"\xff"),
        ("json", Reading, b'{"sensor_id": "a", "value": 1}', Reading("a", 1.0)),
        ("raw", None, b"\xff", b"\xff"),
        ("raw", bytes, b"\xff", b"\xff"),
        ("raw", str, "ü".encode(), "ü"),
        ("raw", int, b"5", 5),
        ("raw", float, b"1.5", 1.5),
        ("raw", Decimal, b"1.10", Decimal("1.10")),
        ("raw", Reading, b'{"sensor_id": "a", "value": 1}', Reading("a", 1.0)),
        ("text", None, b"a", "a"),
        ("text", int, b"5", 5),
        ("binary", None, b"YQ==", b"a"),
        ("binary", str, b"YQ==", "a"),
    ],
)
def test_reading(name, declared, payload, value):
    codec = get_codec(name)
    decoded = codec.decoder(declared)(payload)
    assert decoded == value
    assert type(decoded) is type(value)
    assert codec.decoder(declared)(None) is None
    assert batch_decoder(codec, declared)([payload, None, payload]) == ([value, None, value], [])


@pytest.mark.parametrize(
    ("name", "declared", "payload"),
    [
        ("json", None, b"NaN"),
        ("json", None, b""),
        ("json", None, b"\xff"),
        ("json", None, b"[" * 100_000),
        ("json", dict, b"[" * 100_000),
        ("json", dict, b"[]"),
        ("json", list[list[Any]], b"[" * 100_000),
        ("json", str, b"abc"),
        ("json", int, b"1.5"),
        ("json", float, b"Infinity"),
        ("json", Decimal, b'"x"'),
        ("raw", str, b"\xff"),
        ("raw", int, b"x"),
        ("raw", int, b"9" * 5000),
        ("raw", float, b"nan"),
        ("raw", Decimal, b"x"),
        ("text", None, b"\xff"),
        ("binary", None, b"a"),
        ("json", FaustReading, b"[]"),
        ("json", FaustReading, b"5"),
        ("json", FaustReading, b"{}"),
        ("json", FaustReading, b"[" * 100_000),
    ],
)
def test_what_does_not_fit(name, declared, payload):
    codec = get_codec(name)
    with pytest.raises(DecodeError) as raised:
        codec.decoder(declared)(payload)
    decoded, errors = batch_decoder(codec, declared)([payload])
    assert decoded == [None]
    assert [(row, str(error)) for row, error in errors] == [(0, str(raised.value))]
    assert 0 < len(str(raised.value)) <= 500


@pytest.mark.parametrize("declared", [Reading, FaustReading, None, str])
@pytest.mark.parametrize(
    "column",
    [
        [b"1],[2"],
        [b'{"a":1},{"a":2}'],
        [b'{"sensor_id":"a","value":1},{"sensor_id":"b","value":2}', b""],
        [b"1,2", b" "],
        [b'{"sensor_id":"a"', b'"value":1}'],
        [b'{"sensor_id":"a","value":1}\n{"sensor_id":"b","value":2}', b""],
        [b'"a', b'b"'],
        [b"[", b"]"],
    ],
)
def test_a_payload_is_never_more_or_less_than_one_record(declared, column):
    decoded, errors = batch_decoder(JSON, declared)(column)
    assert decoded == [None] * len(column)
    assert [row for row, _ in errors] == list(range(len(column)))


garbage = (
    st.none()
    | st.binary(max_size=30)
    | st.sampled_from(
        [
            b"{}",
            b"null",
            b'{"sensor_id":"a","value":1},{}',
            b'{"sensor_id":"a","value":NaN}',
            b'{"sensor_id":"a","value":1}',
            b'{"sensor_id":"a","value":1,"note":null}',
            b'{"value":"1","sensor_id":5}',
            b'{"__faust":{"ns":"nobody"},"sensor_id":"a","value":1}',
        ]
    )
)
payloads = garbage | st.builds(
    Reading,
    st.text(st.characters(exclude_categories=["Cs"]), max_size=5),
    st.floats(allow_nan=False, allow_infinity=False),
).map(Record.dumps)


@pytest.mark.parametrize("declared", [Reading, FaustReading, None, dict, str, bytes, float])
@pytest.mark.parametrize("name", ["json", "raw", "text", "binary"])
@settings(deadline=None)  # the machine may be busy
@given(column=st.lists(payloads, max_size=20))
def test_a_column_is_its_records_one_by_one(name, declared, column):
    codec = get_codec(name)
    decode = codec.decoder(declared)
    expected, failures = [], []
    for row, payload in enumerate(column):
        value = None
        try:
            value = decode(payload)
        except DecodeError as exc:
            failures.append((row, str(exc)))
        expected.append(value)
    decoded, errors = batch_decoder(codec, declared)(column)
    assert decoded == expected
    assert [(row, str(error)) for row, error in errors] == failures


def test_whatever_a_validator_raises_fails_one_record():
    column = [b'{"value": %d}' % number for number in (0, 1, 2, 3, 4)]
    decoded, errors = batch_decoder(JSON, Picky)(column)
    assert decoded == [Picky(0), None, None, None, Picky(4)]
    assert [(row, str(error)) for row, error in errors] == [
        (1, "StopIteration"),
        (2, "by zero"),
        (3, "value is three"),
    ]


def test_out_of_memory_is_not_a_bad_record():
    class Hungry(Record):
        def __post_init__(self):
            raise MemoryError

    with pytest.raises(MemoryError):
        batch_decoder(JSON, Hungry)([b"{}"])


@pytest.mark.parametrize(
    ("name", "value", "payload"),
    [
        ("json", {"a": 1}, b'{"a":1}'),
        ("json", "a", b'"a"'),
        ("json", b"\xff", b"\xff"),
        ("json", None, None),
        ("json", Decimal("1.10"), b'"1.10"'),
        ("json", Reading("a", 1.0), b'{"sensor_id":"a","value":1.0,"note":""}'),
        ("raw", "ü", "ü".encode()),
        ("raw", 5, b"5"),
        ("raw", b"a", b"a"),
        ("raw", None, None),
        ("text", 1.5, b"1.5"),
        ("binary", b"a", b"YQ=="),
        ("binary", None, None),
    ],
)
def test_writing(name, value, payload):
    assert get_codec(name).encoder(None)(value) == payload


def test_writing_faust_models_and_nested_ones():
    encode = JSON.encoder(None)
    plain = {"sensor_id": "a", "value": 1.0, "note": ""}
    written = msgspec.json.decode(encode(FaustReading("a", 1.0)))
    assert written.pop("__faust")["ns"].endswith("FaustReading")
    assert written == plain
    assert msgspec.json.decode(encode({"all": [Reading("a", 1.0)]})) == {"all": [plain]}


def test_what_cannot_be_written():
    with pytest.raises(EncodeError, match="can't be encoded as JSON"):
        JSON.encoder(None)(object())
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(EncodeError, match="can't be encoded"):
        JSON.encoder(None)(endless)


@pytest.mark.parametrize("name", ["pickle", "json|pickle", "pickle|binary"])
def test_pickle_is_refused(name):
    with pytest.raises(ConfigurationError, match="runs code found in messages"):
        find_codec(name)
    with pytest.raises(ConfigurationError, match="runs code found in messages"):
        Reading("a", 1.0).dumps(serializer=name)
    with pytest.raises(ConfigurationError, match="runs code found in messages"):
        Reading.loads(b"", serializer=name)


def test_names(monkeypatch):
    with pytest.raises(ConfigurationError, match="no codec 'jsn'; there are binary, json, raw"):
        get_codec("jsn")
    assert find_codec("yaml") is None

    class Upper(Codec):
        def decoder(self, declared):
            return lambda payload: payload.decode().upper()

        def encoder(self, declared):
            return lambda value: value.encode()

    monkeypatch.setattr(codecs, "_codecs", dict(codecs._codecs))
    register_codec("upper", Upper())
    assert batch_decoder(get_codec("upper"), str)([b"a", None, b"\xff"])[0] == ["A", None, None]


def test_codecs_come_from_entry_points(monkeypatch):
    class EntryPoint:
        def load(self):
            return codecs.RawCodec

    monkeypatch.setattr(codecs, "_codecs", dict(codecs._codecs))
    monkeypatch.setattr(
        codecs, "entry_points", lambda group, name: [EntryPoint()] if name == "mine" else []
    )
    assert type(get_codec("mine")) is codecs.RawCodec


def test_a_type_that_json_cannot_be():
    with pytest.raises(ConfigurationError, match="can't be decoded as"):
        JSON.decoder(dict[int, str] | dict[str, int])
