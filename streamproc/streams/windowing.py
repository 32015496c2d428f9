"""Operators that aggregate: in windows, or from the beginning on."""

from __future__ import annotations

from datetime import datetime, timedelta, timezone
from functools import lru_cache
from typing import Any

from streamproc.aggregates import Program
from streamproc.errors import AggregateError, ConfigurationError
from streamproc.records.record import Record
from streamproc.streams.rows import Rows
from streamproc.streams.steps import Step, Task, reject_failed
from streamproc.streams.timing import Inputs
from streamproc.tables.windowtable import AccumulatorTable, WindowTable
from streamproc.windows.state import Output

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
#: What a result has beside the aggregations.
_RESERVED = ("key", "window_start", "window_end")


class WindowResult(Record):
    """What an aggregation gives for a key: ``key`` and a field for each aggregation.

    Those of windows have ``window_start`` and ``window_end`` too, in UTC.
    """


def result_type(program: Program, windowed: bool) -> type[Any]:
    """Return the class of results of a program.

    Raises:
        ConfigurationError: An aggregation has the name of a field that is there already.
    """
    taken = sorted(set(program.names) & set(_RESERVED))
    if taken:
        raise ConfigurationError(
            f"An aggregation can't be named {taken[0]!r}: results have a field of that name"
        )
    fields: dict[str, Any] = {"key": Any}
    if windowed:
        fields |= {"window_start": datetime, "window_end": datetime}
    fields |= dict.fromkeys(program.names, Any)
    namespace = {"__annotations__": fields, "__module__": __name__}
    return type("WindowResult", (WindowResult,), namespace)


@lru_cache(maxsize=4096)
def _as_datetime(milliseconds: int) -> datetime:
    return _EPOCH + timedelta(milliseconds=milliseconds)


class WindowStep(Step):
    """Aggregates in windows and gives results as they close, or as they change."""

    ticks = True

    def __init__(self, name: str, table: WindowTable, inputs: Inputs) -> None:
        self.name = name
        self.table = table
        self.ticks_busy = bool(inputs.sources)
        self._inputs = inputs
        self._program = table.program
        self._by_clock = table.spec.time == "processing"
        self.result_type = result_type(table.program, windowed=True)
        #: Records too late for all their windows, since the start.
        self.late_total = 0

    def process(self, rows: Rows, task: Task) -> Rows:
        state = self.table.states[task.partition]
        output = state.operator.process(
            rows.keys, rows.values, rows.times, self._now(task), rows.input
        )
        if output.failed:
            reject_failed(self.name, output.failed, rows, task)
        if output.late:
            self.late_total += len(output.late)
            task.late.append((self.table.spec.late, rows.pick(output.late)))
        return self._results(output)

    def tick(self, task: Task) -> Rows | None:
        state = self.table.states.get(task.partition)
        if state is None:
            return None
        now = self._now(task)
        for input in self._inputs.awake(task):
            state.operator.watermark.touch(input, now)
        return self._results(state.tick(now))

    def _now(self, task: Task) -> float:
        return task.wall if self._by_clock else task.now

    def _results(self, output: Output) -> Rows:
        found = output.updates or output.finals
        make, result = self.result_type, self._program.result
        return Rows(
            [key for key, *_ in found],
            [
                make(
                    key, _as_datetime(start), _as_datetime(end), *result(acc, (start, end)).values()
                )
                for key, start, end, acc in found
            ],
            [end - 1 for _, _, end, _ in found],
        )


class AggregateStep(Step):
    """Aggregates each key from its first record on, and gives each changed result."""

    def __init__(self, name: str, table: AccumulatorTable) -> None:
        self.name = name
        self.table = table
        self._program = table.program
        self.result_type = result_type(table.program, windowed=False)

    def process(self, rows: Rows, task: Task) -> Rows:
        state = self.table.states[task.partition]
        program, cache, dirty = self._program, state.cache, state.dirty
        fresh: set[Any] = set()

        def missing(key: Any) -> Any:
            acc = state.get(key, None)
            if acc is None:
                fresh.add(key)
                acc = program.new()
            dirty[key] = None
            return acc

        # What changes must not be evicted when another key of the batch is read.
        dirty.update(dict.fromkeys(key for key in dict.fromkeys(rows.keys) if key in cache))
        begin, failed = 0, {}
        while begin < len(rows):
            try:
                program.update(
                    cache,
                    rows.keys[begin:],
                    rows.values[begin:],
                    rows.times[begin:],
                    missing,
                )
                break
            except AggregateError as error:
                failed[begin + error.row] = error
                begin += error.row + 1
        if failed:
            reject_failed(self.name, failed, rows, task)
            rows = rows.pick([row for row in range(len(rows)) if row not in failed])
            for key in fresh.difference(rows.keys):
                cache.pop(key, None)
        last = dict(zip(rows.keys, range(len(rows)), strict=True))
        changed = rows.pick(list(last.values()))
        make, result = self.result_type, program.result
        return changed.with_values([make(key, *result(cache[key]).values()) for key in last])
