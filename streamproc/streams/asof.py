"""As-of joins: each left record with the latest right one at or before its event time.

A left record waits until the watermark of the right side has passed its time, so that its
result depends on event times alone. Two watermarks do that: that of the right side says
when a left record can be given; that of both says what right records are still needed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from streamproc.streams.intervals import TwoInputs, one_of
from streamproc.streams.rows import Rows
from streamproc.streams.steps import Task
from streamproc.streams.timing import Lateness, TimedStep, Timing
from streamproc.tables.joinstate import Sides
from streamproc.tables.timedstate import NEVER, TimedState, TimedTable, Watermarks

#: Places of the due times of a key: when a left record can be given, when a right one freed.
GIVE, FREE = 0, 1


def asof_watermarks(timing: Timing, inputs: TwoInputs) -> Callable[[Mapping[str, Any]], Watermarks]:
    """Return a maker of the watermarks of an as-of join: of both sides, and of the right."""

    def make(plain: Mapping[str, Any]) -> Watermarks:
        right = Timing(timing.out_of_orderness, None)
        return {
            "watermark": timing.watermark(plain.get("watermark"), inputs.count()),
            "right": right.watermark(plain.get("right"), inputs.right()),
        }

    return make


class AsofJoin(TimedStep):
    """Gives ``(left, right)`` for each left record, in the order of their times."""

    ticks = True
    ticks_busy = True

    def __init__(
        self,
        name: str,
        table: TimedTable,
        inputs: TwoInputs,
        *,
        tolerance: int,
        how: str,
        grace: int,
        late: Any,
    ) -> None:
        super().__init__(name, table)
        one_of(how, ("inner", "left"))
        self.inputs = inputs
        self._tolerance = tolerance
        self._keeps_left = how == "left"
        self._grace = grace
        self._lateness = Lateness(grace)
        self._late = late

    def process(self, rows: Rows, task: Task) -> Rows:
        state = self.state(task)
        both, own = state.watermark, state.watermarks["right"]
        highest = max(rows.times)
        if self.inputs.is_right(rows):
            input = rows.input - self.inputs.left()
            on_time = self._right_on_time(rows, task, state, input)
            for key, value, time in zip(on_time.keys, on_time.values, on_time.times, strict=True):
                sides = state.load(key) or Sides()
                sides.right.add(time, value)
                self._put(state, key, sides)
            own.observe(input, highest, task.now)
        else:
            on_time = self.without_late(rows, task, both, self._lateness, self._late)
            for key, value, time in zip(on_time.keys, on_time.values, on_time.times, strict=True):
                sides = state.load(key) or Sides()
                sides.left.add(time, value)
                self._put(state, key, sides)
        both.observe(rows.input, highest, task.now)
        return self._advance(state)

    def tick(self, task: Task) -> Rows | None:
        state = self.table.states.get(task.partition)
        if state is None:
            return None
        self.inputs.touch(state.watermark, task)
        return self._advance(state) if state.watermark.tick(task.now) else None

    def _right_on_time(self, rows: Rows, task: Task, state: TimedState, input: int) -> Rows:
        """Return the right rows that no left record was given without."""
        both, own = state.watermark, state.watermarks["right"]
        grace = self._grace
        passed = max(own.bound(max(rows.times), input), both.bound(max(rows.times), rows.input))
        if min(rows.times) + grace >= passed:
            return rows
        marks = map(max, own.running(rows.times, input), both.running(rows.times, rows.input))
        late = [
            row
            for row, (time, mark) in enumerate(zip(rows.times, marks, strict=True))
            if time + grace < mark
        ]
        return self.leave_out(late, rows, task, self._late)

    def _advance(self, state: TimedState) -> Rows:
        both = state.watermark.current
        marks = [each for each in (both, state.watermarks["right"].current) if each is not None]
        given = self._give(state, max(marks)) if marks else []
        if both is not None:
            self._free(state, both)
        given.sort(key=lambda each: each[0])
        return Rows(
            [key for _, key, _ in given],
            [pair for _, _, pair in given],
            [time for time, _, _ in given],
        )

    def _give(self, state: TimedState, mark: int) -> list[tuple[int, Any, Any]]:
        """Give the left records whose right ones have all come."""
        given: list[tuple[int, Any, Any]] = []
        for key in state.due(mark, GIVE):
            sides: Sides = state.load(key)
            right = sides.right
            for time, value, _ in sides.left.drop_before(mark - self._grace):
                place = right.latest(time)
                if place >= 0 and time - right.times[place] <= self._tolerance:
                    given.append((time, key, (value, right.values[place])))
                elif self._keeps_left:
                    given.append((time, key, (value, None)))
            self._put(state, key, sides)
        return given

    def _free(self, state: TimedState, mark: int) -> None:
        """Forget right records that no left one will want: too old, or not the latest."""
        horizon = mark - self._grace
        for key in state.due(mark, FREE):
            sides: Sides = state.load(key)
            right = sides.right
            right.drop(max(right.latest(horizon), 0))
            right.drop_before(horizon - self._tolerance)
            self._put(state, key, sides)

    def _put(self, state: TimedState, key: Any, sides: Sides) -> None:
        if not sides:
            state.remove(key)
            return
        left, right, grace = sides.left.times, sides.right.times, self._grace
        give = left[0] + grace + 1 if left else NEVER
        free = right[0] + self._tolerance + grace + 1 if right else NEVER
        if len(right) > 1:
            free = min(free, right[1] + grace)
        state.put(key, sides, give, free)
