"""Operators that let a part of the records pass, by what came before: by key, in event time.

Each record is judged by the watermark of those before it, so that neither batches nor
restarts change what passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from streamproc.streams.rows import Rows
from streamproc.streams.steps import Task, applied
from streamproc.streams.timing import Inputs, TimedStep
from streamproc.tables.pack import pack, unpack
from streamproc.tables.timedstate import Form, TimedState, TimedTable

#: Event times at which a key passed.
PASSED = Form("deduplicate", pack, unpack)
#: How many records of a key passed, by the start of the period.
COUNTED = Form("throttle", pack, unpack)


class _Limit(TimedStep):
    """What both have: time passes for their state with records, not with the clock."""

    def __init__(self, name: str, table: TimedTable, inputs: Inputs) -> None:
        super().__init__(name, table)
        self._inputs = inputs

    @property
    def ticks(self) -> bool:  # type: ignore[override]
        """True where an input that is silent would hold the others' time back."""
        return self._inputs() > 1

    @property
    def ticks_busy(self) -> bool:  # type: ignore[override]
        """True where inputs come from several sources."""
        return bool(self._inputs.sources)

    def tick(self, task: Task) -> Rows | None:
        state = self.table.states.get(task.partition)
        if state is None:
            return None
        for input in self._inputs.awake(task):
            state.watermark.touch(input, task.now)
        if state.watermark.tick(task.now):
            self._free(state)
        return None

    def _observe(self, rows: Rows, task: Task, state: TimedState) -> None:
        if state.watermark.observe(rows.input, max(rows.times), task.now):
            self._free(state)

    def _free(self, state: TimedState) -> None:
        raise NotImplementedError


class Deduplicate(_Limit):
    """The first record of a key passes, and others not within a time of one that passed."""

    def __init__(
        self,
        name: str,
        table: TimedTable,
        inputs: Inputs,
        within: int,
        pick: Callable[[Any], Any] | None,
    ) -> None:
        super().__init__(name, table, inputs)
        self._within = within
        self._pick = pick

    def process(self, rows: Rows, task: Task) -> Rows:
        state, within = self.state(task), self._within
        keys = rows.keys
        if self._pick is not None:
            rows, keys = applied(self.name, rows, task, self._pick)
        if not len(rows):
            return rows
        passing = []
        marks = state.watermark.running(rows.times, rows.input)
        for row, (key, time, mark) in enumerate(zip(keys, rows.times, marks, strict=True)):
            passed = state.load(key)
            if passed is None:
                state.put(key, [time], time + within)
            else:
                alive = [each for each in passed if each + within > mark]
                if any(abs(time - each) < within for each in alive):
                    continue
                alive.append(time)
                state.put(key, alive, min(alive) + within)
            passing.append(row)
        self._observe(rows, task, state)
        return rows if len(passing) == len(rows) else rows.pick(passing)

    def _free(self, state: TimedState) -> None:
        current, within = state.watermark.current, self._within
        assert current is not None
        for key in state.due(current):
            alive = [each for each in state.load(key) if each + within > current]
            if alive:
                state.put(key, alive, min(alive) + within)
            else:
                state.remove(key)


class Throttle(_Limit):
    """At most so many records of a key pass in each period of event time."""

    def __init__(
        self,
        name: str,
        table: TimedTable,
        inputs: Inputs,
        limit: int,
        per: int,
        by_key: bool,
    ) -> None:
        super().__init__(name, table, inputs)
        self._limit = limit
        self._per = per
        self._by_key = by_key

    def process(self, rows: Rows, task: Task) -> Rows:
        state, limit, per = self.state(task), self._limit, self._per
        passing = []
        marks = state.watermark.running(rows.times, rows.input)
        for row, (key, time, mark) in enumerate(zip(rows.keys, rows.times, marks, strict=True)):
            if not self._by_key:
                key = None
            start = time - time % per
            if start + per <= mark:
                self.late_total += 1
                continue
            counts = state.load(key)
            if counts is None:
                counts = {}
            count = counts.get(start, 0)
            if count >= limit:
                continue
            counts[start] = count + 1
            state.put(key, counts, min(counts) + per)
            passing.append(row)
        self._observe(rows, task, state)
        return rows if len(passing) == len(rows) else rows.pick(passing)

    def _free(self, state: TimedState) -> None:
        current, per = state.watermark.current, self._per
        assert current is not None
        for key in state.due(current):
            counts = {
                start: count for start, count in state.load(key).items() if start + per > current
            }
            if counts:
                state.put(key, counts, min(counts) + per)
            else:
                state.remove(key)
