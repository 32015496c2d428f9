"""Keys in addresses, parameters, pages of rows and who is asked for them."""

from __future__ import annotations

import datetime
import json
import uuid
from decimal import Decimal
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc import Record
from streamproc.errors import DecodeError
from streamproc.kafka.producer import partition_of
from streamproc.records.codecs import get_codec
from streamproc.tables.keyed import EntryCodec, KeyedState
from streamproc.tables.stores import MemoryStore
from streamproc.tables.timedstate import Form, TimedState
from streamproc.web.accept import wants_html
from streamproc.web.keys import encoded_prefix, key_json, key_path, key_text, parse_key, parse_keys
from streamproc.web.query import Place, read_query
from streamproc.web.reading import read_page


class Spot(Record, frozen=True):
    city: str
    number: int = 0


def table_of(key_type: Any = str, partitions: int = 4, serializer: str = "json") -> Any:
    codec = get_codec(serializer)
    entries = EntryCodec(
        "counts",
        codec.encoder(key_type),
        codec.decoder(key_type),
        get_codec("json").encoder(int),
        get_codec("json").decoder(int),
    )

    def source_key(key: Any) -> bytes:
        return key.encode() if isinstance(key, str) else entries.encode_key(key)

    return SimpleNamespace(
        name="counts",
        key_type=key_type,
        key_serializer=serializer,
        codec=entries,
        partition_count=partitions,
        partition_of=lambda key: partition_of(source_key(key), partitions),
        states={
            part: KeyedState(part, MemoryStore(), entries, 10**6) for part in range(partitions)
        },
    )


@pytest.mark.parametrize(
    ("key_type", "key", "text"),
    [
        (str, "a/b", "a/b"),
        (str, "12", "12"),
        (str, '"q"', '"q"'),
        (int, -12, "-12"),
        (int, 10**30, str(10**30)),
        (float, 1.5, "1.5"),
        (Decimal, Decimal("1.50"), "1.50"),
        (bytes, b"\x00abc", "00616263"),
        (bool, True, "true"),
        (Spot, Spot("Oslo", 1), '{"city":"Oslo","number":1}'),
        (tuple[str, int], ("a", 1), '["a",1]'),
        (datetime.date, datetime.date(2024, 2, 3), '"2024-02-03"'),
        (uuid.UUID, uuid.UUID(int=5), '"00000000-0000-0000-0000-000000000005"'),
        (None, "abc", "abc"),
        (None, "12", '"12"'),
        (None, 12, "12"),
        (None, ("a", ("b", 1)), '["a",["b",1]]'),
        (None, None, "null"),
        (Any, '{"a":1}', '{"a":1}'),
    ],
)
def test_keys_as_text_and_back(key_type, key, text):
    table = table_of(key_type)
    assert key_text(table, key) == text
    assert parse_key(table, text) == key
    assert type(parse_key(table, text)) is type(key)


@given(st.text())
def test_any_text_is_a_key(text):
    assert parse_key(table_of(str), text) == text
    untyped = table_of(None)
    assert parse_key(untyped, key_text(untyped, text)) == text


def test_text_that_may_be_two_keys():
    assert parse_keys(table_of(None), "12") == [12, "12"]
    assert parse_keys(table_of(None), "abc") == ["abc"]
    assert parse_keys(table_of(str), "12") == ["12"]
    query = read_query(table_of(None), {"key": "12"})
    readings = query.readings(table_of(None))
    assert [(each.key, each.parameters["key"]) for each in readings] == [(12, "12"), ("12", '"12"')]


def test_what_needs_no_quotes_in_an_address():
    assert parse_key(table_of(datetime.date), "2024-02-03") == datetime.date(2024, 2, 3)
    assert parse_key(table_of(uuid.UUID), str(uuid.UUID(int=5))) == uuid.UUID(int=5)


@pytest.mark.parametrize(
    ("key_type", "text"),
    [
        (int, "x"),
        (int, ""),
        (float, "nan"),
        (bytes, "xyz"),
        (Spot, "{}"),
        (Spot, "x"),
        (list, "[1]"),
    ],
)
def test_text_that_is_no_key(key_type, text):
    with pytest.raises(DecodeError):
        parse_key(table_of(key_type), text)


def test_paths_of_keys():
    table = table_of(str)
    assert key_path(table, "a b/ä%") == "/tables/counts/a%20b%2F%C3%A4%25/"
    # A client would take these out of a path.
    for text in ("", ".", ".."):
        assert key_path(table, text) == f"/tables/counts/?key={text}"
    assert key_json(b"\xff") == b'"ff"'


@pytest.mark.parametrize("serializer", ["json", "raw"])
@pytest.mark.parametrize(
    ("key_type", "keys", "prefix", "found"),
    [
        (str, ["a", "ab", "abc", "b", 'a"'], "ab", ["ab", "abc"]),
        (str, ["a", "ab", 'a"', 'a"b'], 'a"', ['a"', 'a"b']),
        (bytes, [b"\x01", b"\x01\xff", b"\x02"], "01", [b"\x01", b"\x01\xff"]),
        (bytes, [b"\xff", b"\xff\xff", b"\x02"], "ff", [b"\xff", b"\xff\xff"]),
        (int, [1, 12, 2, 120], "12", [12, 120]),
    ],
)
def test_prefixes(serializer, key_type, keys, prefix, found):
    table = table_of(key_type, partitions=1, serializer=serializer)
    for key in keys:
        table.states[0].set(key, 1)
    page = read_page(table, read_query(table, {"prefix": prefix}), [0])
    shown = [json.loads(key_json(key)) for key in found]
    assert sorted(msgspec.json.decode(row.entry)["key"] for row in page.rows) == sorted(shown)


def test_no_prefix_of_keys_without_order():
    with pytest.raises(DecodeError, match="order"):
        encoded_prefix(table_of(str, serializer="binary"), "a")


@pytest.mark.parametrize(
    "given_",
    [
        {"limit": "0"},
        {"limit": "1001"},
        {"limit": "-1"},
        {"limit": "٣"},
        {"limit": "9" * 5000},
        {"partition": "4"},
        {"after": "!"},
        {"after": "AA"},
        {"from": "yesterday"},
        {"to": "9" * 5000 + "x"},
    ],
)
def test_parameters_that_cannot_be(given_):
    (name,) = given_
    with pytest.raises(DecodeError, match="next" if name == "after" else name):
        read_query(table_of(), given_)


def test_times():
    second = 1_700_000_000_000
    for text in (
        str(second),
        "2023-11-14T22:13:20Z",
        "2023-11-14T22:13:20",
        "2023-11-14T23:13:20+01:00",
    ):
        assert read_query(table_of(), {"from": text}).from_ms == second
    query = read_query(table_of(), {"from": "1000", "to": "2000"})
    assert [
        query.wants(*window) for window in ((0, 1000), (0, 1001), (1999, 5000), (2000, 3000))
    ] == [
        False,
        True,
        True,
        False,
    ]


@given(st.binary(), st.integers(0, 2**32 - 1))
def test_cursors(order, partition):
    assert Place.of_cursor(Place(order, partition).cursor()) == (order, partition)


@given(
    st.lists(st.tuples(st.integers(0, 3), st.text('ab"é', max_size=3)), max_size=30),
    st.integers(1, 7),
    st.text("ab", max_size=1),
)
def test_pages_give_each_entry_once_in_order(written, limit, prefix):
    """Any keys in any partitions, the same key in several, by pages of any size."""
    table = table_of(str)
    for part, key in written:
        table.states[part].set(key, part)
    rows: list[Any] = []
    given_ = {"limit": str(limit), "prefix": prefix}
    while True:
        page = read_page(table, read_query(table, given_), range(4))
        assert len(page.rows) <= limit
        rows += page.rows
        if not page.more:
            break
        given_["after"] = page.rows[-1].place.cursor()
    found = [(msgspec.json.decode(row.entry)["key"], row.partition) for row in rows]
    assert sorted(found) == sorted({(k, p) for p, k in written if k.startswith(prefix)})
    assert [row.place for row in rows] == sorted(row.place for row in rows)


def test_keys_that_are_elsewhere_are_noticed():
    table = table_of(str)
    key = "abc"
    home = table.partition_of(key)
    table.states[home].set(key, 1)
    query = read_query(table, {"key": key})
    assert not read_page(table, query, [home]).scattered
    table.states[(home + 1) % 4].set(key, 1)
    assert read_page(table, query, [(home + 1) % 4]).scattered


@pytest.mark.parametrize(
    ("accept", "query", "html"),
    [
        ("", {}, False),
        ("*/*", {}, False),
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", {}, True),
        ("application/json", {}, False),
        ("application/json, text/html;q=0.5", {}, False),
        ("text/html, application/json;q=0.5", {}, True),
        ("text/html;q=0", {}, False),
        ("text/html;q=x", {}, False),
        ("text/html", {"format": "json"}, False),
        ("", {"format": "html"}, True),
    ],
)
def test_which_form_is_preferred(accept, query, html):
    assert wants_html(SimpleNamespace(headers={"Accept": accept}, query=query)) is html


def test_what_json_cannot_say_is_shown_as_python_writes_it():
    table = table_of(str, partitions=1)
    values = {
        "a": {1, 2},
        "b": 1 + 2j,
        "c": Spot("Oslo", 1),
        "d": b"abc",
        "e": None,
        "f": Decimal("1.5"),
    }
    for key, value in values.items():
        table.states[0].set(key, value)
    rows = read_page(table, read_query(table, {}), [0]).rows
    assert [msgspec.json.decode(row.entry)["value"] for row in rows] == [
        [1, 2],
        "(1+2j)",
        {"city": "Oslo", "number": 1},
        "YWJj",
        None,
        "1.5",
    ]


def test_state_that_time_frees_is_shown_without_its_times():
    table = table_of(str, partitions=2)
    form = Form("counted", msgspec.json.encode, msgspec.json.decode, lambda entry: entry["seen"])
    state = table.states[1] = TimedState(1, MemoryStore(), table.codec, form, 10**6, lambda _: {})
    for key in ("a", "b"):
        state.put(key, {"seen": key * 2, "hidden": 1}, 1000)
    rows = read_page(table, read_query(table, {}), [1]).rows
    assert [msgspec.json.decode(row.entry)["value"] for row in rows] == ["aa", "bb"]
    (row,) = read_page(table, read_query(table, {"key": "b"}), [1]).rows
    assert msgspec.json.decode(row.entry)["value"] == "bb"
    assert not read_page(table, read_query(table, {"key": "c"}), [1]).rows


def test_what_workers_tell_each_other():
    table = table_of(str, partitions=1)
    for key in ("a", "b", "c"):
        table.states[0].set(key, 10**30)
    page = read_page(table, read_query(table, {"limit": "2"}), [0])
    from streamproc.web.cluster import decode_page

    again = decode_page(msgspec.json.encode(page))
    assert [(row.order, row.partition) for row in again.rows] == [(b'"a"', 0), (b'"b"', 0)]
    assert again.more
    assert msgspec.json.decode(again.rows[0].entry)["value"] == 10**30
