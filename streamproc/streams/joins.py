"""Joins with tables, and joins of the latest values of two flows of updates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import msgspec

from streamproc.errors import ConfigurationError
from streamproc.streams.intervals import TwoInputs, one_of
from streamproc.streams.rows import Rows
from streamproc.streams.steps import Step, Task, applied
from streamproc.streams.timing import TimedStep
from streamproc.tables.keyed import MISSING
from streamproc.tables.pack import value_codec
from streamproc.tables.table import Table
from streamproc.tables.timedstate import Form, TimedTable
from streamproc.tables.windowtable import AccumulatorTable, WindowTable

#: From the keys of a batch, and its partition, to their values; MISSING where there is none.
LookUp = Callable[[Sequence[Any], int], list[Any]]


def look_up_in(table: Any) -> LookUp:
    """Return how values of a table, or of two tables joined, are looked up.

    Raises:
        ConfigurationError: It isn't one that has a value by key.
    """
    if isinstance(table, JoinedTables):
        return table.values_of
    has_windows = isinstance(table, WindowTable) or getattr(table, "windows", None) is not None
    if has_windows or not isinstance(table, Table):
        raise ConfigurationError(
            f"{table!r} can't be joined: use a Table without windows, a GlobalTable, "
            "join_tables(...), or interval_join() and asof_join() for another flow"
        )
    if table.is_replicated:
        return _in_all_partitions(table)
    if isinstance(table, AccumulatorTable):
        return _results(table)

    def find(keys: Sequence[Any], partition: int) -> list[Any]:
        found: list[Any] = table.states[partition].get_many(keys, MISSING)
        return found

    return find


def _results(table: AccumulatorTable) -> LookUp:
    result = table.program.result

    def find(keys: Sequence[Any], partition: int) -> list[Any]:
        found = table.states[partition].get_many(keys, None)
        return [MISSING if acc is None else result(acc) for acc in found]

    return find


def _in_all_partitions(table: Table) -> LookUp:
    def find_one(key: Any) -> Any:
        if key is None:
            return MISSING
        states = table.states
        likely = states.get(table.partition_of(key))
        value = MISSING if likely is None else likely.get(key)
        if value is not MISSING:
            return value
        # Who wrote it may have another partitioner.
        others = (state.get(key) for state in states.values() if state is not likely)
        return next((value for value in others if value is not MISSING), MISSING)

    def find(keys: Sequence[Any], partition: int) -> list[Any]:
        found = {key: find_one(key) for key in set(keys)}
        return [found[key] for key in keys]

    return find


class TableJoin(Step):
    """Gives ``(value, what a table has of its key)``."""

    def __init__(
        self, name: str, look_up: LookUp, how: str, on: Callable[[Any], Any] | None
    ) -> None:
        one_of(how, ("inner", "left"))
        self.name = name
        self._look_up = look_up
        self._keeps_all = how == "left"
        self._on = on

    def process(self, rows: Rows, task: Task) -> Rows:
        keys = rows.keys
        if self._on is not None:
            rows, keys = applied(self.name, rows, task, self._on)
        found = self._look_up(keys, task.partition)
        if self._keeps_all:
            return rows.with_values(
                [
                    (value, None if other is MISSING else other)
                    for value, other in zip(rows.values, found, strict=True)
                ]
            )
        there = [other is not MISSING for other in found]
        if not all(there):
            rows = rows.keep(there)
            found = [other for other in found if other is not MISSING]
        return rows.with_values(list(zip(rows.values, found, strict=True)))


class JoinedTables:
    """Two tables as one, by key: ``(left, right)``, or what ``function`` makes of both.

    Nothing is copied: it shows what the tables have when it is read. Both must have their
    keys in the same partitions.

    Args:
        left: A table.
        right: Another one.
        how: "inner": keys that both have; "left": those of the left one; "outer": those of
            either. What isn't there is None.
        function: Makes a value of both.

    Raises:
        ConfigurationError: They can't be joined.
    """

    def __init__(
        self,
        left: Any,
        right: Any,
        how: str = "inner",
        function: Callable[[Any, Any], Any] | None = None,
    ) -> None:
        one_of(how, ("inner", "left", "outer"))
        self._look_ups = look_up_in(left), look_up_in(right)
        self.tables = left, right
        self._how = how
        self._function = function

    @property
    def leaves(self) -> list[Table]:
        """The tables that it is made of, those of joined ones too."""
        leaves: list[Table] = []
        for table in self.tables:
            leaves += table.leaves if isinstance(table, JoinedTables) else [table]
        return leaves

    def values_of(self, keys: Sequence[Any], partition: int) -> list[Any]:
        """Return the values of keys of a partition; MISSING where there is none."""
        left, right = (look_up(keys, partition) for look_up in self._look_ups)
        return [self._pair(*pair) for pair in zip(left, right, strict=True)]

    def _pair(self, left: Any, right: Any) -> Any:
        needs_left, needs_right = self._how != "outer", self._how == "inner"
        if (needs_left and left is MISSING) or (needs_right and right is MISSING):
            return MISSING
        if left is MISSING and right is MISSING:
            return MISSING
        pair = (None if each is MISSING else each for each in (left, right))
        return self._function(*pair) if self._function else tuple(pair)

    # -- reading

    def get(self, key: Any, default: Any = None) -> Any:
        """Return the value of a key, or ``default``."""
        value = self._pair(*(_read(table, key) for table in self.tables))
        return default if value is MISSING else value

    def __getitem__(self, key: Any) -> Any:
        value = self.get(key, MISSING)
        if value is MISSING:
            raise KeyError(key)
        return value

    def __contains__(self, key: Any) -> bool:
        return self.get(key, MISSING) is not MISSING

    def items(self) -> Iterator[tuple[Any, Any]]:
        """Iterate over keys and values of the partitions that can be reached."""
        left, right = self.tables
        for key, value in left.items():
            pair = self._pair(value, _read(right, key))
            if pair is not MISSING:
                yield key, pair
        if self._how == "outer":
            for key, value in right.items():
                if key not in left:
                    yield key, self._pair(MISSING, value)

    def keys(self) -> Iterator[Any]:
        """Iterate over keys."""
        return (key for key, _ in self.items())

    __iter__ = keys


def _read(table: Any, key: Any) -> Any:
    return table.get(key, MISSING)


def join_tables(
    left: Any,
    right: Any,
    how: str = "inner",
    fn: Callable[[Any, Any], Any] | None = None,
) -> JoinedTables:
    """Return two tables as one; see :class:`JoinedTables`."""
    return JoinedTables(left, right, how, fn)


def latest_form(left: Any, right: Any) -> Form:
    """Return how the latest values of both sides are kept.

    Args:
        left: Type of the left side's values; None where it isn't known.
        right: As ``left``.
    """
    codecs = value_codec(left), value_codec(right)

    def encode(pair: Sequence[Any]) -> bytes:
        return msgspec.msgpack.encode(
            [
                None if value is MISSING else encode_value(value)
                for value, (encode_value, _) in zip(pair, codecs, strict=True)
            ]
        )

    def decode(raw: bytes) -> list[Any]:
        return [
            MISSING if part is None else decode_value(part)
            for part, (_, decode_value) in zip(msgspec.msgpack.decode(raw), codecs, strict=True)
        ]

    def view(pair: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(None if value is MISSING else value for value in pair)

    return Form("latest", encode, decode, view, dues=0)


class LatestJoin(TimedStep):
    """Gives ``(left, right)`` for each update of either, with the latest of the other."""

    def __init__(self, name: str, table: TimedTable, inputs: TwoInputs, how: str) -> None:
        super().__init__(name, table)
        one_of(how, ("inner", "left", "outer"))
        self._inputs = inputs
        self._needs = how != "outer", how == "inner"

    def process(self, rows: Rows, task: Task) -> Rows:
        state = self.state(task)
        side = int(self._inputs.is_right(rows))
        needs_left, needs_right = self._needs
        kept: list[int] = []
        pairs: list[Any] = []
        for row, (key, value) in enumerate(zip(rows.keys, rows.values, strict=True)):
            pair = state.load(key) or [MISSING, MISSING]
            pair[side] = value
            state.put(key, pair)
            left, right = pair
            if (needs_left and left is MISSING) or (needs_right and right is MISSING):
                continue
            kept.append(row)
            pairs.append((None if left is MISSING else left, None if right is MISSING else right))
        out = rows.pick(kept).with_values(pairs)
        out.input = 0
        return out
