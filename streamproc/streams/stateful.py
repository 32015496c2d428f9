"""Own logic with state by key and event-time timers.

One call a record is the price; state, timers and what is emitted cost nothing else until
the batch ends. A timer fires between two records when the watermark of those before it has
passed the timer's time, so batches and restarts change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from heapq import heapify, heappop, heappush
from typing import Any, get_origin

import msgspec

from streamproc.errors import ConfigurationError
from streamproc.streams.rows import Rows
from streamproc.streams.steps import Task
from streamproc.streams.timing import Inputs, TimedStep
from streamproc.tables.keyed import MISSING
from streamproc.tables.pack import pack, unpack, value_codec
from streamproc.tables.timedstate import NEVER, Form, TimedState, TimedTable

#: Types that can't be changed in place: reading one changes nothing.
_FIXED = (type(None), bool, int, float, str, bytes, tuple, frozenset)
#: Types that say what they are in the store.
_PLAIN_STATES = (bool, int, float, str, bytes, list, dict, set, tuple)

Timer = tuple[int, Any]
Entry = tuple[Any, dict[Timer, None]]
"""The state of a key (MISSING if it has none), and its timers in the order they were set."""


class Context:
    """What a function of :meth:`~streamproc.streams.flow.Flow.stateful` works with.

    It is good for the call it is given to. If that raises, its timers, what it emitted and
    a state that it set count for nothing; what it changed inside of the state stays.

    Attributes:
        key: The key in hand.
        time: Event time of the record, or the time of the timer, in ms.
        watermark: The event time up to which all has come, as far as is known; None before
            the second record.
        partition: The partition in hand.
    """

    __slots__ = (
        "_before",
        "_emitted",
        "_make",
        "_state",
        "_timers",
        "key",
        "partition",
        "time",
        "watermark",
    )

    def __init__(self, make: Callable[[], Any] | None, partition: int) -> None:
        self._make = make
        self.partition = partition
        self.key: Any = None
        self.time = 0
        self.watermark: int | None = None
        self._before: Entry = (MISSING, {})
        self._state: Any = MISSING
        self._timers: dict[Timer, None] | None = None
        self._emitted: list[tuple[Any, Any, int]] = []

    @property
    def state(self) -> Any:
        """The state of the key: a new one if it has none, or None without ``state=``.

        Set it, or change it in place; set it to None to free it.
        """
        if self._state is MISSING:
            kept = self._before[0]
            self._state = kept if kept is not MISSING else (self._make() if self._make else None)
        return self._state

    @state.setter
    def state(self, value: Any) -> None:
        self._state = value

    def emit(self, value: Any, key: Any = MISSING, time: int | None = None) -> None:
        """Give a value to what follows.

        Args:
            value: The value.
            key: Its key; the one in hand if it isn't given. The partition stays.
            time: Its event time in ms; :attr:`time` if None.
        """
        self._emitted.append(
            (self.key if key is MISSING else key, value, self.time if time is None else time)
        )

    def set_timer(self, time: int, tag: Any = None) -> None:
        """Have ``on_timer`` called for this key when the watermark has passed ``time``.

        A time and tag are one timer, however often they are set. One that is due already
        fires before the next record.

        Args:
            time: Event time in ms.
            tag: Plain data that the call is given, to tell timers apart.
        """
        self._own_timers()[(time, tag)] = None

    def cancel_timer(self, time: int | None = None, tag: Any = None) -> bool:
        """Drop a timer, or with no time all timers of a tag; True if there was one."""
        timers = self._own_timers()
        found = [each for each in timers if each[1] == tag and time in (None, each[0])]
        for each in found:
            del timers[each]
        return bool(found)

    def _own_timers(self) -> dict[Timer, None]:
        if self._timers is None:
            self._timers = dict(self._before[1])
        return self._timers

    # -- for the operator

    def _enter(self, key: Any, time: int, watermark: float, entry: Entry | None) -> None:
        self.key, self.time = key, time
        self.watermark = None if watermark == float("-inf") else int(watermark)
        self._before = entry or (MISSING, {})
        self._state, self._timers = MISSING, None
        self._emitted.clear()

    def _after(self) -> Entry | None:
        """Return the entry as the call left it; None if it is the same."""
        before, timers = self._before
        state = self._state
        if state is MISSING or (state is before and isinstance(state, _FIXED)):
            if self._timers is None:
                return None
            state = before
        elif state is None:
            state = MISSING
        return state, timers if self._timers is None else self._timers


class _Output:
    """Columns of what comes out."""

    def __init__(self) -> None:
        self.keys: list[Any] = []
        self.values: list[Any] = []
        self.times: list[int] = []
        self.origins: list[int | None] = []

    def take(self, emitted: list[tuple[Any, Any, int]], origin: int | None) -> None:
        for key, value, time in emitted:
            self.keys.append(key)
            self.values.append(value)
            self.times.append(time)
            self.origins.append(origin)

    def rows(self) -> Rows:
        return Rows(self.keys, self.values, self.times, self.origins)


class Stateful(TimedStep):
    """Calls ``function(key, value, context)``, and ``on_timer(key, tag, context)``."""

    ticks = True

    def __init__(
        self,
        name: str,
        table: TimedTable,
        inputs: Inputs,
        function: Callable[[Any, Any, Context], Any],
        on_timer: Callable[[Any, Any, Context], Any] | None,
        make: Callable[[], Any] | None,
    ) -> None:
        super().__init__(name, table)
        self.ticks_busy = bool(inputs.sources)
        self._inputs = inputs
        self._function = function
        self._on_timer = on_timer
        self._make = make

    def process(self, rows: Rows, task: Task) -> Rows:
        state = self.state(task)
        context = Context(self._make, task.partition)
        output = _Output()
        function = self._function
        marks = state.watermark.running(rows.times, rows.input)
        for row, (key, value, time, mark) in enumerate(
            zip(rows.keys, rows.values, rows.times, marks, strict=True)
        ):
            if state.next_due < mark:
                self._fire(state, mark, context, output, task)
            context._enter(key, time, mark, state.load(key))
            try:
                function(key, value, context)
            except Exception as exc:  # noqa: BLE001 - user code may raise anything
                task.reject(self.name, exc, rows, row)
                continue
            self._settle(state, context, output, rows.origin(row))
        state.watermark.observe(rows.input, max(rows.times), task.now)
        self._fire_due(state, context, output, task)
        return output.rows()

    def tick(self, task: Task) -> Rows | None:
        state = self.table.states.get(task.partition)
        if state is None:
            return None
        for input in self._inputs.awake(task):
            state.watermark.touch(input, task.now)
        if not state.watermark.tick(task.now):
            return None
        output = _Output()
        self._fire_due(state, Context(self._make, task.partition), output, task)
        return output.rows()

    def _fire_due(self, state: TimedState, context: Context, output: _Output, task: Task) -> None:
        current = state.watermark.current
        if current is not None and state.next_due < current:
            self._fire(state, current, context, output, task)

    def _fire(
        self, state: TimedState, mark: float, context: Context, output: _Output, task: Task
    ) -> None:
        """Call ``on_timer`` for the timers before ``mark``, in the order of their times."""
        waiting = [
            (min(time for time, _ in state.load(key)[1]), number, key)
            for number, key in enumerate(state.due(int(mark) - 1))
        ]
        heapify(waiting)
        while waiting:
            time, number, key = heappop(waiting)
            entry = state.load(key)
            timer = next((each for each in entry[1] if each[0] == time), None) if entry else None
            if timer is not None:
                left = {each: None for each in entry[1] if each != timer}
                self._call_timer(state, key, timer, (entry[0], left), mark, context, output, task)
                entry = state.load(key)
            upcoming = min((each for each, _ in entry[1]), default=mark) if entry else mark
            if upcoming < mark:
                heappush(waiting, (upcoming, number, key))

    def _call_timer(
        self,
        state: TimedState,
        key: Any,
        timer: Timer,
        entry: Entry,
        mark: float,
        context: Context,
        output: _Output,
        task: Task,
    ) -> None:
        # Gone before the call, so that it is called once whatever becomes of it.
        self._put(state, key, entry)
        time, tag = timer
        context._enter(key, time, mark, entry)
        if self._on_timer is None:
            return
        try:
            self._on_timer(key, tag, context)
        except Exception as exc:  # noqa: BLE001 - user code may raise anything
            task.reject(self.name, exc, Rows([key], [{"timer": time, "tag": tag}], [time]), 0)
            return
        self._settle(state, context, output, None)

    def _settle(
        self, state: TimedState, context: Context, output: _Output, origin: int | None
    ) -> None:
        output.take(context._emitted, origin)
        entry = context._after()
        if entry is not None:
            self._put(state, context.key, entry)

    def _put(self, state: TimedState, key: Any, entry: Entry) -> None:
        kept, timers = entry
        if timers:
            state.put(key, entry, min(time for time, _ in timers))
        elif kept is not MISSING:
            state.put(key, entry, NEVER)
        elif state.load(key) is not None:
            state.remove(key)


def state_form(of: Any) -> tuple[Form, Callable[[], Any] | None]:
    """Return how the state of keys is kept, and what makes a new one.

    Args:
        of: A type (also ``dict[str, int]`` and the like), a function that makes one, or
            None.

    Raises:
        ConfigurationError: It is none of these.
    """
    if of is not None and not callable(of):
        raise ConfigurationError(f"state={of!r} is neither a type nor a function that makes one")
    declared = None
    if get_origin(of) is not None or (isinstance(of, type) and of not in _PLAIN_STATES):
        declared = of
    encode_state, decode_state = value_codec(declared)

    def encode(entry: Entry) -> bytes:
        state, timers = entry
        raw = None if state is MISSING else encode_state(state)
        return msgspec.msgpack.encode((raw, pack(list(timers))))

    def decode(data: bytes) -> Entry:
        raw, timers = msgspec.msgpack.decode(data)
        state = MISSING if raw is None else decode_state(raw)
        return state, dict.fromkeys(unpack(timers))

    return Form("stateful", encode, decode, lambda entry: _seen(entry[0])), of


def _seen(state: Any) -> Any:
    return None if state is MISSING else state
