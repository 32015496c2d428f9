"""What ``table.tumbling()`` and ``hopping()`` return: a table by windows, as Faust has it."""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from datetime import datetime
from typing import Any, NoReturn

from faust.tables.wrappers import WindowedItemsView, WindowedKeysView, WindowedValuesView
from faust.types import EventT
from faust.utils.terminal.tables import dict_as_ansitable

from streamproc.errors import DecodeError
from streamproc.records.durations import Duration, duration
from streamproc.tables.clocks import RECORD_CLOCK, WALL_CLOCK, Clock, clock_of
from streamproc.tables.keyed import MISSING, UNCHANGEABLE
from streamproc.tables.place import Place, current_place, note_write
from streamproc.tables.windowed import Cursor, TableWindows
from streamproc.tables.windowvalues import WindowValues

#: More than there are streams that write to a table at a time.
MOST_CURSORS = 100


class WindowWrapper:
    """A table by key, each key with a value for each window.

    ``windowed[key] += 1`` changes every window that the record in hand belongs to;
    ``windowed[key].value()`` is the value of its last window. ``items()``, ``keys()`` and
    ``values()`` are of that window too, and have ``.now()``, ``.current()`` and ``.delta(d)``.

    Args:
        windows: The table's windows.
        clock: What tells the time of reads and writes.
        key_index: ``items()`` and the others give every key that has some window, with the
            table's default if it isn't in the window asked for.
    """

    def __init__(self, windows: TableWindows, clock: Clock, *, key_index: bool = False) -> None:
        self.windows = windows
        self.table = windows.table
        self.key_index = key_index
        self._clock = clock
        self._cursors: dict[Place, Cursor] = {}
        self._relatives: dict[Any, WindowWrapper] = {}

    # -- whose time

    def relative_to(self, ts: Any) -> WindowWrapper:
        """Return the same table by another time: a field, a time, or a function of the event."""
        try:
            return self._relatives[ts]
        except (KeyError, TypeError):
            pass
        if not self.table.started:
            # Whether this or the other is written to will be seen.
            self.windows.clock = None
        relative = type(self)(self.windows, clock_of(ts), key_index=self.key_index)
        if isinstance(ts, Hashable) and not isinstance(ts, float | datetime):
            # What is asked for with each record.
            self._relatives[ts] = relative
        return relative

    def relative_to_now(self) -> WindowWrapper:
        """Return the same table by the clock on the wall."""
        return self.relative_to(WALL_CLOCK)

    def relative_to_field(self, field: Any) -> WindowWrapper:
        """Return the same table by a field of the record, ``Model.field``."""
        return self.relative_to(field)

    def relative_to_stream(self) -> WindowWrapper:
        """Return the same table by the record's event time, which is the default."""
        return self.relative_to(RECORD_CLOCK)

    clone = relative_to

    def get_timestamp(self, event: Any = None) -> float:
        """Return the time that reads and writes have now, in seconds."""
        return self._time(event) / 1000

    def _time(self, event: Any = None) -> int:
        if event is None:
            place = current_place.get()
            cursor = None if place is None else self._cursors.get(place)
            if cursor is not None and place is not None and cursor.batch is place.batch():
                return _valid(cursor.times[place.row()])
        return self._clock.time(event)

    # -- writes

    def _cursor(self, place: Place) -> Cursor | None:
        cursor = self.windows.cursor(self._clock, place)
        if cursor is not None:
            if len(self._cursors) >= MOST_CURSORS:
                self._cursors.clear()  # of streams that are gone, too
            self._cursors[place] = cursor
        return cursor

    def apply(
        self, key: Any, change: Callable[[Any, Any], Any], value: Any, event: Any = None
    ) -> None:
        """Set ``change(old, value)`` in each window of the record in hand, or of an event.

        Raises:
            TableError: No record is in hand, or the worker doesn't have its partition.
            KeyError: The key isn't there, and the table has no default.
        """
        state, starts = self._targets(key, event)
        windows = state.windows
        for start in starts:
            old = windows.get(start, key)
            if old is MISSING:
                old = self.table.__missing__((key, self.windows.window.range_of(start)))
            windows.set(start, key, change(old, value))

    def _targets(self, key: Any, event: Any) -> tuple[WindowValues, Iterable[int]]:
        windows = self.windows
        place = current_place.get()
        if place is not None:
            place.wrote = True
        if place is not None and event is None:
            cursor = self._cursors.get(place)
            if cursor is None or cursor.batch is not place.batch():
                cursor = self._cursor(place)
            if cursor is not None:
                row = place.row()
                moment = _valid(cursor.times[row])
                state = cursor.state
                return state, windows.open_starts(state, key, moment, cursor.marks[row])
        moment = self._clock.time(event)
        message = getattr(event, "message", None)
        if message is not None:
            state = windows.state_at(message.partition)
        elif place is not None and place.partition >= 0:
            state = windows.state_at(place.partition)
        else:
            state = self.table._state_of((key, windows.window.range_of(moment)))
        if windows.clock is None:
            windows.settle(self._clock)
        starts = windows.open_starts(state, key, moment, state.now)
        if self._clock is windows.clock:
            batch = None if place is None else place.batch()
            topic = message.topic if message else batch and batch.progress.tp.topic
            windows.observe_write(state, moment, topic)
        return state, starts

    def __getitem__(self, key: Any) -> WindowSet:
        return WindowSet(key, self)

    def __setitem__(self, key: Any, value: Any) -> None:
        if type(value) is WindowSet:
            return  # the end of an update in place
        state, starts = self._targets(key, None)
        for start in starts:
            state.windows.set(start, key, value)

    def __delitem__(self, key: Any) -> None:
        state, starts = self._targets(key, None)
        for start in starts:
            state.windows.set(start, key, MISSING)

    def update(
        self,
        batch: Any,
        fold: Callable[[Any, Any], Any],
        key: Callable[[Any], Any] | None = None,
    ) -> None:
        """For a batch: set ``fold(value, record)`` in each window of each record.

        Args:
            batch: What ``stream.batches()`` gave.
            fold: From a value (the table's default at first) and a record to the new value.
            key: From a record to its key; the record's own key if None.
        """
        place = current_place.get()
        cursor = None
        if place is not None:
            place.wrote = True
            cursor = self._cursor(place)
        if cursor is None:
            for name, record in zip(_keys(batch, key), batch.values, strict=True):
                self.apply(name, fold, record)
            return
        rows = _rows_of(cursor.batch, batch)
        open_starts, state, default = self.windows.open_starts, cursor.state, self.table.__missing__
        get, put = state.windows.get, state.windows.set
        for row, name, record in zip(rows, _keys(batch, key), batch.values, strict=True):
            moment = _valid(cursor.times[row])
            for start in open_starts(state, name, moment, cursor.marks[row]):
                old = get(start, name)
                if old is MISSING:
                    old = default(name)
                put(start, name, fold(old, record))

    # -- reads

    def _value(self, key: Any, start: int) -> Any:
        place = current_place.get()
        state = None if place is None else self.table.states.get(place.partition)
        states = self.table.readable() if state is None else (state,)
        for each in states:
            value = each.windows.get(start, key)
            if value is not MISSING:
                if place is not None and type(value) not in UNCHANGEABLE:
                    place.wrote = True
                return value
        return self.table.__missing__((key, self.windows.window.range_of(start)))

    def _start_at(self, moment: int) -> int:
        """Return the start of the last window of a time."""
        return self.windows.window.starts(moment)[-1]

    def _start_now(self) -> int:
        return self.windows.window.starts(int(time.time() * 1000))[0]

    def _start_before(self, d: Duration, event: Any) -> int:
        return self._start_at(RECORD_CLOCK.time(event) - duration(d))

    def __contains__(self, key: Any) -> bool:
        start = self._start_at(self._time())
        return any(each.windows.get(start, key) is not MISSING for each in self.table._reach())

    def __len__(self) -> int:
        """Count the keys that have a window."""
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return True

    def __iter__(self) -> Iterator[Any]:
        """Iterate over the keys that have a window."""
        seen: set[Any] = set()
        for state in self.table._reach():
            for key, *_ in state.scan_windows():
                if key not in seen:
                    seen.add(key)
                    yield key

    def keys(self) -> Any:
        """Return the keys that have a value in the window that it is time for."""
        return WindowedKeysView(self)

    def items(self, event: Any = None) -> Any:
        """Return keys and values of the window that it is time for."""
        return WindowedItemsView(self, event)

    def values(self, event: Any = None) -> Any:
        """Return the values of the window that it is time for."""
        return WindowedValuesView(self, event)

    def _items(self, event: Any = None) -> Iterator[tuple[Any, Any]]:
        return self._entries(self._start_at(self._time(event)))

    def _items_now(self) -> Iterator[tuple[Any, Any]]:
        return self._entries(self._start_now())

    def _items_current(self, event: Any = None) -> Iterator[tuple[Any, Any]]:
        return self._entries(self._start_at(RECORD_CLOCK.time(event)))

    def _items_delta(self, d: Duration, event: Any = None) -> Iterator[tuple[Any, Any]]:
        return self._entries(self._start_before(d, event))

    def _entries(self, start: int) -> Iterator[tuple[Any, Any]]:
        note_write()  # values may be changed in place
        if not self.key_index:
            for state in self.table._reach():
                yield from state.windows.entries(start)
            return
        for key in self:
            try:
                yield key, self._value(key, start)
            except KeyError:
                continue  # not in this window, and the table has no default

    # -- the rest of Faust's

    @property
    def name(self) -> str:
        """Name of the table."""
        return str(self.table.name)

    def on_recover(self, fun: Any) -> Any:
        """Call ``fun`` when the table is recovered."""
        return self.table.on_recover(fun)

    def as_ansitable(self, title: str = "{table.name}", **kwargs: Any) -> str:
        """Draw the window that it is time for as a table for a terminal."""
        text: str = dict_as_ansitable(self, title=title.format(table=self.table), **kwargs)
        return text

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.table!r} {self.windows.window!r}>"


def _valid(moment: int | None) -> int:
    if moment is None:
        raise DecodeError("the record has no valid event time, so it belongs to no window")
    return moment


def _keys(batch: Any, key: Callable[[Any], Any] | None) -> Iterable[Any]:
    return batch.keys if key is None else map(key, batch.values)


def _rows_of(delivery: Any, batch: Any) -> Iterable[int]:
    """Return which records of a delivery those of a batch are: processors may skip some."""
    if len(batch) == len(delivery):
        return range(len(batch))
    row_of = {offset: row for row, offset in enumerate(delivery.offsets)}
    return [row_of[offset] for offset in batch.offsets]


class WindowSet:
    """The windows of one key: ``windowed[key]``."""

    __slots__ = ("event", "key", "wrapper")

    def __init__(self, key: Any, wrapper: WindowWrapper, event: Any = None) -> None:
        self.key = key
        self.wrapper = wrapper
        self.event = event

    @property
    def table(self) -> Any:
        """The table."""
        return self.wrapper.table

    def apply(self, op: Callable[[Any, Any], Any], value: Any, event: Any = None) -> WindowSet:
        """Set ``op(old, value)`` in all windows of the record in hand, or of ``event``."""
        self.wrapper.apply(self.key, op, value, event or self.event)
        return self

    def value(self, event: Any = None) -> Any:
        """Return the value in the window that it is time for, by the table's relativity."""
        wrapper = self.wrapper
        return wrapper._value(self.key, wrapper._start_at(wrapper._time(event or self.event)))

    def current(self, event: Any = None) -> Any:
        """Return the value in the window of the record in hand, or of ``event``."""
        wrapper = self.wrapper
        moment = RECORD_CLOCK.time(event or self.event)
        return wrapper._value(self.key, wrapper._start_at(moment))

    def now(self) -> Any:
        """Return the value in the window of the clock on the wall."""
        return self.wrapper._value(self.key, self.wrapper._start_now())

    def delta(self, d: Duration, event: Any = None) -> Any:
        """Return the value in the window ``d`` before the record in hand, or ``event``."""
        start = self.wrapper._start_before(d, event or self.event)
        return self.wrapper._value(self.key, start)

    def _no_dict(self) -> NoReturn:
        raise NotImplementedError(
            "The windows of a key are no dict: use .value(), .current(), .now() or .delta()"
        )

    def keys(self) -> NoReturn:
        """Raise: the windows of a key are no dict."""
        self._no_dict()

    def items(self) -> NoReturn:
        """Raise: the windows of a key are no dict."""
        self._no_dict()

    def values(self) -> NoReturn:
        """Raise: the windows of a key are no dict."""
        self._no_dict()

    def __getitem__(self, window: Any) -> Any:
        if isinstance(window, EventT):
            return WindowSet(self.key, self.wrapper, window)
        return self.table[self.key, window]

    def __setitem__(self, window: Any, value: Any) -> None:
        self.table[self.key, _range(window)] = value

    def __delitem__(self, window: Any) -> None:
        del self.table[self.key, _range(window)]

    def __iadd__(self, other: Any) -> WindowSet:
        self.wrapper.apply(self.key, operator.add, other, self.event)
        return self

    def __isub__(self, other: Any) -> WindowSet:
        return self.apply(operator.sub, other)

    def __imul__(self, other: Any) -> WindowSet:
        return self.apply(operator.mul, other)

    def __itruediv__(self, other: Any) -> WindowSet:
        return self.apply(operator.truediv, other)

    def __ifloordiv__(self, other: Any) -> WindowSet:
        return self.apply(operator.floordiv, other)

    def __imod__(self, other: Any) -> WindowSet:
        return self.apply(operator.mod, other)

    def __ipow__(self, other: Any) -> WindowSet:
        return self.apply(operator.pow, other)

    def __ilshift__(self, other: Any) -> WindowSet:
        return self.apply(operator.lshift, other)

    def __irshift__(self, other: Any) -> WindowSet:
        return self.apply(operator.rshift, other)

    def __iand__(self, other: Any) -> WindowSet:
        return self.apply(operator.and_, other)

    def __ixor__(self, other: Any) -> WindowSet:
        return self.apply(operator.xor, other)

    def __ior__(self, other: Any) -> WindowSet:
        return self.apply(operator.or_, other)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.key!r} of {self.table!r}>"


def _range(window: Any) -> Any:
    if isinstance(window, EventT):
        raise NotImplementedError("Set or delete a window by its (start, end), not by an event")
    return window
