"""Windowed tables: which windows a write goes to, the watermark, and closing.

A table's windows close by event time, partition by partition: when the watermark has
passed a window's end and how long it is kept (``expires``), ``on_window_close`` gets each
of its keys, and the window is freed. That happens at the end of each batch, and by a timer
where nothing comes any more. A write to a window that is over is dropped and counted, no
matter whether it is closed yet: so results don't depend on how records come in batches.

Closing follows from what is kept, entries and watermark. A worker that dies before the
closing is in a checkpoint leaves both to its successor, which closes once more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from inspect import isawaitable
from math import inf
from typing import Any

from streamproc.errors import TableError
from streamproc.tables.clocks import RECORD_CLOCK, Clock
from streamproc.tables.place import Place, current_place
from streamproc.tables.stores import Store
from streamproc.tables.windowvalues import WindowValues
from streamproc.windows.ranges import window_of

logger = logging.getLogger(__name__)

#: Seconds between two looks at whether time alone closes a window.
TICK_INTERVAL = 0.5
#: At most one log line about late records a table in this many seconds.
LOG_INTERVAL = 30.0
#: Keys of a closing window after which other tasks get their turn.
CLOSING_BATCH = 500
#: How much longer than its windows a changelog keeps records, in ms: a worker may be away.
RETENTION_MARGIN = 7 * 24 * 3600 * 1000
#: Seconds before ``on_window_close`` is called again after it raised; doubled each time.
FIRST_BACKOFF = 0.1


class Cursor:
    """Where the writes of an agent are: the times of its batch, and the watermarks before.

    A watermark before each record, and not one a batch, makes what is late the same however
    records are split into batches.
    """

    __slots__ = ("batch", "marks", "state", "times")

    def __init__(
        self, batch: Any, state: WindowValues, times: Sequence[int | None], marks: Sequence[float]
    ) -> None:
        self.batch = batch
        self.state = state
        self.times = times
        self.marks = marks


class TableWindows:
    """The windows of a table.

    Attributes:
        table: The table.
        window: What windows it has.
        clock: Whose time moves the watermark: that of the first write. None: not known yet.
        late_total: Writes that came too late for all their windows, since the start.
    """

    def __init__(self, table: Any, window: Any) -> None:
        self.table = table
        self.window = window_of(window)
        self.clock: Clock | None = RECORD_CLOCK
        self.late_total = 0
        self._logged_at = -inf
        self._logged_total = 0
        self._retained = None if self.window.grace is None else self._span
        if not self.closes and table._on_window_close is not None:
            logger.warning(
                "Table %s: on_window_close is never called, since its windows are kept for ever; "
                "give them expires=",
                table.name,
            )

    @property
    def _span(self) -> int:
        return self.window.length + (self.window.grace or 0)

    @property
    def changelog_options(self) -> dict[str, Any]:
        """How long the changelog keeps records: longer than windows are open."""
        if not self.closes:
            return {"compacting": True, "deleting": False, "retention": 0}
        retention = (self._span + RETENTION_MARGIN) / 1000
        return {"compacting": True, "deleting": True, "retention": retention}

    @property
    def closes(self) -> bool:
        """False when windows are kept for ever, so that nothing depends on the watermark."""
        return self.window.grace is not None

    def new_state(self, partition: int, store: Store) -> WindowValues:
        """Make the state of one partition."""
        table = self.table
        return WindowValues(
            partition,
            store,
            table.codec,
            self.window,
            None if self.clock is None else self.clock.is_wall,
            table.app.table_cache_bytes,
        )

    # -- writes

    def settle(self, clock: Clock) -> None:
        """A write by ``clock`` is the first: that clock moves the watermark from now on."""
        self.clock = clock
        for state in self.table.states.values():
            state.follow(clock.is_wall)

    def cursor(self, clock: Clock, place: Place) -> Cursor | None:
        """Return where the writes of an agent are, by a clock; None if it has no record."""
        batch = place.batch()
        if place.partition < 0:
            return None  # records of several partitions
        times = None if batch is None else clock.times(place, batch)
        if times is None:
            return None
        if self.clock is None:
            self.settle(clock)
        state = self.state_at(place.partition)
        if not self.closes:
            return Cursor(batch, state, times, [-inf] * len(times))
        number = state.add_input(batch.progress.tp.topic)
        if clock is self.clock:
            known = _known_times(times)
            return Cursor(batch, state, times, state.watermark.running(known, number))
        return Cursor(batch, state, times, [state.now] * len(times))

    def state_at(self, partition: int) -> WindowValues:
        """Return the state of a partition.

        Raises:
            TableError: This worker doesn't have it.
        """
        state: WindowValues | None = self.table.states.get(partition)
        if state is None:
            raise TableError(
                f"Table {self.table.name!r} has no partition {partition} on this worker (it has "
                f"{sorted(self.table.states) or 'none'}). Give it as many partitions as the "
                "topic of the agent that writes to it."
            )
        return state

    def open_starts(self, state: WindowValues, key: Any, time: int, mark: float) -> Sequence[int]:
        """Return the starts of the windows that a write goes to: those that aren't over."""
        starts: Sequence[int] = self.window.starts(time)
        if self._retained is None:
            return starts
        over = max(mark, state.closed_to) - self._retained
        if starts[0] > over:
            return starts
        left = [start for start in starts if start > over]
        if not left:
            self._note_late(state, key, over + self._retained - time)
        return left

    def _note_late(self, state: WindowValues, key: Any, behind: float) -> None:
        self.late_total += 1
        state.late_total += 1
        now = time.monotonic()
        if now - self._logged_at < LOG_INTERVAL:
            return
        logger.warning(
            "Table %s: %s records came when their windows were closed, and are left out of them; "
            "the last one: key %.100r, %.3f s before the watermark of partition %s. A longer "
            "expires= takes such records.",
            self.table.name,
            self.late_total - self._logged_total,
            key,
            behind / 1000,
            state.partition,
        )
        self._logged_at, self._logged_total = now, self.late_total

    # -- the watermark

    def observe(self, place: Place, batch: Any, start: int, end: int) -> None:
        """Take in the times of records of a batch, whether the agent wrote for them or not."""
        clock = self.clock
        if clock is None or not clock.follows_records:
            return
        tp = batch.progress.tp
        state = self.table.states.get(tp.partition)
        number = None if state is None else state.inputs.get(tp.topic)
        if number is None:
            return
        times = clock.times(place, batch) or ()
        highest = max((one for one in times[start:end] if one is not None), default=None)
        if highest is not None:
            state.watermark.observe(number, highest, asyncio.get_running_loop().time())

    def observe_write(self, state: WindowValues, moment: int, topic: str | None) -> None:
        """Take in the time of a write for a record of a topic, or for none."""
        clock = self.clock
        if clock is None or clock.is_wall:
            return
        if not clock.follows_records:
            number = state.add_input("")
            state.watermark.observe(number, moment, asyncio.get_running_loop().time())
        elif topic is not None:
            # Its records move the watermark as their batches end.
            state.add_input(topic)

    # -- closing

    async def close_due(self, partition: int) -> None:
        """Close the windows of a partition that are over: the earliest first."""
        state: WindowValues | None = self.table.states.get(partition)
        if state is None or state.is_closing:
            return
        state.is_closing = True
        try:
            while self._is_here(state) and state.has_due:
                state.closed_to = state.now
                await self._close(state, int(state.windows.first()))
        finally:
            state.is_closing = False

    async def _close(self, state: WindowValues, start: int) -> None:
        table = self.table
        windows = state.windows
        callback = table._on_window_close
        if callback is not None:
            bounds = self.window.range_of(start)
            for number, (key, value) in enumerate(list(windows.entries(start)), 1):
                if not self._is_here(state):
                    return
                await self._call(callback, state.partition, (key, bounds), value)
                if not number % CLOSING_BATCH:
                    await asyncio.sleep(0)
        # While the callback waited, a rebalance may have begun the state anew or closed it.
        if windows is state.windows and self._is_here(state):
            windows.drop(start)

    def _is_here(self, state: WindowValues) -> bool:
        return self.table.states.get(state.partition) is state

    async def _call(self, callback: Any, partition: int, key: Any, value: Any) -> None:
        table = self.table
        retries = table.app.max_retries
        for attempt in range(retries + 1):
            try:
                result = callback(key, value)
                if isawaitable(result):
                    await result
                return
            except Exception as exc:
                logger.error(
                    "on_window_close of table %s raised for %r: %r",
                    table.name,
                    key,
                    exc,
                    exc_info=exc,
                )
                if attempt < retries:
                    await asyncio.sleep(FIRST_BACKOFF * 2**attempt)
                    continue
                await table.app.dead_letters.send_result(
                    table.name, partition, key, value, f"{table.name} on_window_close", exc
                )

    # -- time without records

    async def run(self) -> None:
        """Close windows where nothing comes any more, until the table stops."""
        if not self.closes:
            return
        app, table, clock = self.table.app, self.table, asyncio.get_running_loop().time
        ticked_at = -inf
        while not table.should_stop:
            await table.sleep(TICK_INTERVAL)
            if app.rebalancing or not app.tables.recovery.completed.is_set():
                continue
            # Time in which the worker stood still is no silence.
            was_still = clock() - ticked_at > 2 * TICK_INTERVAL
            ticked_at = clock()
            for partition in list(table.states):
                await self._tick(partition, was_still)

    async def _tick(self, partition: int, was_still: bool) -> None:
        app = self.table.app
        state = self.table.states.get(partition)
        if state is None or state.is_closing:
            return
        self._let_time_pass(state, was_still)
        if not state.has_due:
            return
        gate = app.checkpoint.gate
        place = Place()
        place.partition = partition
        token = current_place.set(place)
        await gate.enter(place)
        try:
            await self.close_due(partition)
        finally:
            gate.leave(place)
            current_place.reset(token)

    def _let_time_pass(self, state: WindowValues, was_still: bool) -> None:
        watermark = state.watermark
        if state.by_wall:
            watermark.tick(time.time())
            return
        topics = self.table.app.topics
        now = asyncio.get_running_loop().time()
        read = {progress.tp.topic for progress in topics.progress()}
        for topic, number in state.inputs.items():
            # What waits there decides, not the clock.
            waits = topic in read and state.partition not in topics.quiet_partitions(topic)
            if waits or was_still:
                watermark.touch(number, now)
        watermark.tick(now)


def _known_times(times: Sequence[int | None]) -> Sequence[int]:
    if None not in times:
        return times  # type: ignore[return-value]
    # A record without a valid time is rejected when a write asks for it; until then it
    # must not move the watermark.
    lowest = min((one for one in times if one is not None), default=0)
    return [lowest if one is None else one for one in times]


class Follower:
    """What a stream tells windowed tables of its progress.

    Args:
        tables: The windowed tables of the App.
        place: The stream's.
    """

    def __init__(self, tables: list[TableWindows], place: Place) -> None:
        self._tables = tables
        self._place = place
        self._batch: Any = None
        self._seen = 0

    @classmethod
    def of(cls, tables: Iterable[Any], place: Place) -> Follower | None:
        """Return one for those of the tables that have windows; None if none has."""
        found = [getattr(table, "windows", None) for table in tables]
        closing = [windows for windows in found if windows is not None and windows.closes]
        return cls(closing, place) if closing else None

    def observe(self, batch: Any, end: int) -> None:
        """The records of a batch before ``end`` are processed."""
        start = self._seen if batch is self._batch else 0
        self._batch, self._seen = batch, max(start, end)
        if end > start:
            for windows in self._tables:
                windows.observe(self._place, batch, start, end)

    async def finish(self, batch: Any, end: int) -> None:
        """The same, and now windows may be closed."""
        self.observe(batch, end)
        for windows in self._tables:
            await windows.close_due(batch.progress.tp.partition)


__all__ = ["Cursor", "Follower", "TableWindows"]
