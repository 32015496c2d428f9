"""Rows of a table, read from the partitions that this worker has.

What a row is depends on the kind of state: each registers with :func:`rows_of` how it is
read, and with :func:`some_keys` how a few of its keys are found.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterable, Iterator
from functools import singledispatch
from heapq import nsmallest
from itertools import islice
from typing import Any, Protocol

import msgspec

from streamproc.errors import TableError
from streamproc.tables.keyed import MISSING, EntryCodec, KeyedState
from streamproc.tables.timedstate import TimedState
from streamproc.tables.windowstate import WindowedState
from streamproc.tables.windowtable import AccumulatorTable
from streamproc.web.keys import encode_json, key_json, key_path
from streamproc.web.query import Place, Query

#: Keys looked at to see whether a table's keys are those of the records.
SAMPLED_KEYS = 32


class Row(msgspec.Struct):
    """A row as workers tell it each other.

    Attributes:
        order: Encoded key (and window): the order of rows.
        partition: The partition that it is in.
        entry: What a client gets, as JSON.
    """

    order: bytes
    partition: int
    entry: msgspec.Raw

    @property
    def place(self) -> Place:
        return Place(self.order, self.partition)


class Page(msgspec.Struct):
    """The first rows of what a query asks, in order.

    Attributes:
        rows: The rows.
        more: True when there are more.
        scattered: True when keys of the table are not where their records' keys would be.
    """

    rows: list[Row]
    more: bool = False
    scattered: bool = False


def read_page(table: Any, query: Query, partitions: Iterable[int]) -> Page:
    """Return rows of some partitions that this worker has."""
    states = [table.states[partition] for partition in partitions]
    found = [row for state in states for row in rows_of(state, table, query)]
    rows = nsmallest(query.limit, found, key=lambda row: row.place)
    return Page(rows, len(found) > len(rows), any(is_scattered(table, each) for each in states))


def is_scattered(table: Any, state: Any) -> bool:
    """True when some of a state's keys would, as keys of records, be in another partition.

    That is so where an agent writes under other keys than those of its records, or the
    records' producer chose partitions in another way.
    """
    if table.partition_count == 1:
        return False
    return any(home_of(table, key) != state.partition for key in some_keys(state))


def home_of(table: Any, key: Any) -> int | None:
    """Return the partition that a record of this key would be in; None: it may be in any."""
    return None if key is None else int(table.partition_of(key))


@singledispatch
def rows_of(state: Any, table: Any, query: Query) -> Collection[Row]:
    """Return what a query asks of a state: more rows than its limit if there are more."""
    raise TableError(f"The state of table {table.name!r} ({type(state).__name__}) can't be read")


@singledispatch
def some_keys(state: Any) -> Iterable[Any]:
    """Return a few keys of a state, at little cost."""
    return ()


@singledispatch
def shown(table: Any, value: Any) -> Any:
    """Return what a client is to see of a value as the state has it."""
    return value


@shown.register
def _(table: AccumulatorTable, value: Any) -> Any:
    return table.program.result(value)


def new_row(table: Any, state: Any, key: Any, order: bytes, value: Any, **bounds: int) -> Row:
    """Make the row of a key, with what a client is to see of it."""
    entry = {
        "key": msgspec.Raw(key_json(key)),
        **bounds,
        "value": msgspec.Raw(_as_json(value)),
        "partition": state.partition,
        "path": key_path(table, key),
    }
    return Row(order, state.partition, msgspec.Raw(encode_json(entry)))


class Entries(Protocol):
    """What is read of a state with a value for each key."""

    partition: int

    def get(self, key: Any) -> Any:
        """Return the value of a key, or MISSING."""

    def scan(self, start: bytes, end: bytes | None) -> Iterator[tuple[Any, Any]]:
        """Iterate over entries in the order of encoded keys."""


def _as_json(value: Any) -> bytes:
    try:
        return encode_json(value)
    except (TypeError, ValueError, RecursionError):
        # State of a user's own operator may be any object.
        return encode_json(repr(value))


@rows_of.register(KeyedState)
@rows_of.register(TimedState)
def _(state: Entries, table: Any, query: Query) -> Collection[Row]:
    return [
        new_row(table, state, key, table.codec.raw_key(key), value=shown(table, value))
        for key, value in islice(_entries(state, query), query.limit + 1)
    ]


def _entries(state: Entries, query: Query) -> Iterator[tuple[Any, Any]]:
    if not query.has_key:
        return state.scan(query.begin(state.partition), query.end)
    value = state.get(query.key)
    return iter(() if value is MISSING else ((query.key, value),))


@some_keys.register
def _(state: KeyedState) -> Iterable[Any]:
    keys = list(islice(state.cache, SAMPLED_KEYS))
    if not keys:
        stored = islice(state.store.items(), SAMPLED_KEYS)
        keys = [state.codec.key(raw) for raw, _ in stored]
    return keys


#: Bounds of a window in the order of rows; those before 1970 too.
_BOUNDS = struct.Struct(">QQ")
_SHIFT = 1 << 63


@some_keys.register
def _(state: TimedState) -> Iterable[Any]:
    return some_keys(state.entries)


class Windows(Protocol):
    """What is read of a state of windows."""

    partition: int
    codec: EntryCodec

    def windows_of(self, key: Any) -> Iterable[tuple[int, int, Any]]:
        """Iterate over ``(start, end, result)`` of the windows of a key."""

    def scan_windows(self) -> Iterable[tuple[Any, int, int, Any]]:
        """Iterate over ``(key, start, end, result)`` of all windows."""


@rows_of.register(WindowedState)
def _(state: Windows, table: Any, query: Query) -> Collection[Row]:
    found = nsmallest(query.limit + 1, _windows(state, query), key=lambda each: each[0])
    return [
        new_row(table, state, key, place.order, start=start, end=end, value=value)
        for place, key, start, end, value in found
    ]


def _windows(state: Windows, query: Query) -> Iterator[tuple[Place, Any, int, int, Any]]:
    encode = state.codec.raw_key
    after, partition = query.after, state.partition
    for key, start, end, value in _all_windows(state, query):
        raw = encode(key)
        if raw < query.start or (query.end is not None and raw >= query.end):
            continue
        place = Place(raw + _BOUNDS.pack(start + _SHIFT, end + _SHIFT), partition)
        if query.wants(start, end) and (after is None or place > after):
            yield place, key, start, end, value


def _all_windows(state: Windows, query: Query) -> Iterable[tuple[Any, int, int, Any]]:
    if query.has_key:
        return ((query.key, *window) for window in state.windows_of(query.key))
    return state.scan_windows()


@some_keys.register(WindowedState)
def _(state: Windows) -> Iterable[Any]:
    return [key for key, *_ in islice(state.scan_windows(), SAMPLED_KEYS)]
