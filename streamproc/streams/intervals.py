"""Interval joins: records of a key in two streams whose event times are near each other.

A left record matches a right one from ``before`` ahead of it to ``after`` behind it, both
included. What can match is decided by times alone, and each record is judged late or not
by the watermark of those before it, so batches and restarts change no result.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from streamproc.errors import ConfigurationError
from streamproc.streams.rows import Rows
from streamproc.streams.steps import Task
from streamproc.streams.timing import Inputs, Lateness, TimedStep
from streamproc.tables.joinstate import Sides
from streamproc.tables.timedstate import NEVER, TimedState, TimedTable
from streamproc.windows import Watermark

How = Literal["inner", "left", "outer"]


def one_of(how: str, valid: tuple[str, ...]) -> None:
    """Check how a join treats records without a match.

    Raises:
        ConfigurationError: It isn't one of ``valid``.
    """
    if how not in valid:
        raise ConfigurationError(f"how={how!r}: there are {', '.join(map(repr, valid))}")


@dataclass(frozen=True)
class TwoInputs:
    """The sides of a step, each with one or more inputs of its watermark.

    Attributes:
        left: Number of inputs of the left side; those of the right side follow.
        right: Number of inputs of the right side.
        left_sources: Where the left side's records come from.
        right_sources: As ``left_sources``.
    """

    left: Inputs
    right: Inputs
    left_sources: frozenset[Any]
    right_sources: frozenset[Any]

    def count(self) -> int:
        """Return the number of inputs of both."""
        return self.left() + self.right()

    def is_right(self, rows: Rows) -> bool:
        """Return whether rows come from the right side."""
        return rows.input >= self.left()

    def touch(self, watermark: Watermark, task: Task) -> None:
        """Keep inputs from becoming idle that have records waiting."""
        first = self.left()
        sides = (self.left, self.left_sources, 0), (self.right, self.right_sources, first)
        for inputs, sources, begin in sides:
            is_quiet = sources <= task.quiet
            for input in inputs.awake(task) if is_quiet else range(inputs()):
                watermark.touch(begin + input, task.now)


class IntervalJoin(TimedStep):
    """Gives ``(left, right)`` for each match, and with None what has no match."""

    ticks = True
    ticks_busy = True

    def __init__(
        self,
        name: str,
        table: TimedTable,
        inputs: TwoInputs,
        *,
        before: int,
        after: int,
        how: str,
        grace: int,
        late: Any,
    ) -> None:
        super().__init__(name, table)
        one_of(how, ("inner", "left", "outer"))
        self.inputs = inputs
        self._before = before
        self._after = after
        self._keeps_left = how in ("left", "outer")
        self._keeps_right = how == "outer"
        self._lateness = Lateness(grace)
        #: How far the watermark must be past a record's time until nothing can match it.
        self._left_wait = after + grace
        self._right_wait = before + grace
        self._late = late

    def process(self, rows: Rows, task: Task) -> Rows:
        state = self.state(task)
        watermark = state.watermark
        highest = max(rows.times)
        on_time = self.without_late(rows, task, watermark, self._lateness, self._late)
        results = _Results()
        match = self._match_right if self.inputs.is_right(rows) else self._match_left
        for row, (key, value, time) in enumerate(
            zip(on_time.keys, on_time.values, on_time.times, strict=True)
        ):
            sides = state.load(key) or Sides()
            match(sides, key, value, time, on_time.origin(row), results)
            self._put(state, key, sides)
        watermark.observe(rows.input, highest, task.now)
        self._free(state, results)
        return results.rows()

    def tick(self, task: Task) -> Rows | None:
        state = self.table.states.get(task.partition)
        if state is None:
            return None
        self.inputs.touch(state.watermark, task)
        results = _Results()
        if state.watermark.tick(task.now):
            self._free(state, results)
        return results.rows()

    def _match_left(
        self, sides: Sides, key: Any, value: Any, time: int, origin: int | None, out: _Results
    ) -> None:
        right = sides.right
        found = right.between(time - self._before, time + self._after)
        for place in found:
            out.add(key, (value, right.values[place]), max(time, right.times[place]), origin)
            right.matched[place] = True
        sides.left.add(time, value, bool(found))

    def _match_right(
        self, sides: Sides, key: Any, value: Any, time: int, origin: int | None, out: _Results
    ) -> None:
        left = sides.left
        found = left.between(time - self._after, time + self._before)
        for place in found:
            out.add(key, (left.values[place], value), max(time, left.times[place]), origin)
            left.matched[place] = True
        sides.right.add(time, value, bool(found))

    def _put(self, state: TimedState, key: Any, sides: Sides) -> None:
        if not sides:
            state.remove(key)
            return
        left, right = sides.left.times, sides.right.times
        state.put(
            key,
            sides,
            min(
                left[0] + self._left_wait + 1 if left else NEVER,
                right[0] + self._right_wait + 1 if right else NEVER,
            ),
        )

    def _free(self, state: TimedState, results: _Results) -> None:
        """Forget what nothing can match any more, and give what had no match."""
        current = state.watermark.current
        unmatched: list[tuple[int, Any, Any]] = []
        for key in state.due(current):
            assert current is not None
            sides: Sides = state.load(key)
            gone = sides.left.drop_before(current - self._left_wait)
            if self._keeps_left:
                unmatched += [(time, key, (value, None)) for time, value, hit in gone if not hit]
            gone = sides.right.drop_before(current - self._right_wait)
            if self._keeps_right:
                unmatched += [(time, key, (None, value)) for time, value, hit in gone if not hit]
            self._put(state, key, sides)
        unmatched.sort(key=lambda each: each[0])
        for time, key, pair in unmatched:
            results.add(key, pair, time, None)


class _Results:
    """Columns of what comes out."""

    def __init__(self) -> None:
        self._keys: list[Any] = []
        self._pairs: list[Any] = []
        self._times: list[int] = []
        self._origins: list[int | None] = []

    def add(self, key: Any, pair: Any, time: int, origin: int | None) -> None:
        self._keys.append(key)
        self._pairs.append(pair)
        self._times.append(time)
        self._origins.append(origin)

    def rows(self) -> Rows:
        return Rows(self._keys, self._pairs, self._times, self._origins)
