"""What operators with timed state share: their watermarks, and inputs from several flows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from streamproc.records.durations import Duration, duration
from streamproc.streams.rows import Rows
from streamproc.streams.steps import Step, Task
from streamproc.tables.timedstate import TimedState, TimedTable, Watermarks
from streamproc.windows import Watermark


@dataclass(frozen=True)
class Inputs:
    """The inputs of a watermark, by which rows of a flow are told apart.

    Attributes:
        source: Where the rows come from.
        fixed: How many inputs there are; None: those of the source.
        sources: Where the rows of each come from, if that isn't the same for all.
    """

    source: Any
    fixed: int | None = None
    sources: tuple[frozenset[Any], ...] = ()

    def __call__(self) -> int:
        """Return how many there are; known once the app has started."""
        return int(self.source.inputs) if self.fixed is None else self.fixed

    def awake(self, task: Task) -> Iterable[int]:
        """Return those that aren't idle although nothing comes from them."""
        if task.is_delayed:
            return range(self())
        if self.sources:
            return [
                input for input, sources in enumerate(self.sources) if not sources <= task.quiet
            ]
        return task.behind if self.fixed is None and task.source is self.source else ()


@dataclass(frozen=True)
class Timing:
    """How event time goes on for an operator, in ms.

    Attributes:
        out_of_orderness: How far behind the highest event time records are expected.
        idle_timeout: After how much silence time goes on without records; None: never.
    """

    out_of_orderness: int
    idle_timeout: int | None

    @classmethod
    def of(cls, out_of_orderness: Duration, idle_timeout: Duration | None) -> Timing:
        """Make one of durations as people write them."""
        silence = None if idle_timeout is None else duration(idle_timeout)
        return cls(duration(out_of_orderness), silence)

    def watermark(self, plain: dict[str, Any] | None, inputs: int) -> Watermark:
        """Return a watermark, going on where an earlier one was."""
        if plain is None:
            return Watermark(self.out_of_orderness, self.idle_timeout, inputs)
        return Watermark.from_plain(plain, self.out_of_orderness, self.idle_timeout, inputs)

    def watermarks(self, inputs: Callable[[], int]) -> Callable[[Mapping[str, Any]], Watermarks]:
        """Return a maker of a state's only watermark."""

        def make(plain: Mapping[str, Any]) -> Watermarks:
            return {"watermark": self.watermark(plain.get("watermark"), inputs())}

        return make


@dataclass(frozen=True)
class Lateness:
    """When a record is late that belongs to no window but its own time."""

    grace: int

    def latest_end(self, timestamp: int) -> int:
        """Return the end of the millisecond that a time is."""
        return timestamp + 1


class TimedStep(Step):
    """An operator with a table of timed state."""

    def __init__(self, name: str, table: TimedTable) -> None:
        self.name = name
        self.table = table
        #: Records too late to be taken, since the start.
        self.late_total = 0

    def state(self, task: Task) -> TimedState:
        """Return the state of the partition in hand."""
        state: TimedState = self.table.states[task.partition]
        return state

    def without_late(
        self, rows: Rows, task: Task, watermark: Watermark, lateness: Lateness, policy: Any
    ) -> Rows:
        """Return the rows that aren't late; the others go where ``policy`` says."""
        late = watermark.late_rows(lateness, rows.times, rows.input)
        return self.leave_out(late, rows, task, policy)

    def leave_out(self, late: list[int], rows: Rows, task: Task, policy: Any) -> Rows:
        """Return the rows without late ones, which go where ``policy`` says."""
        if not late:
            return rows
        self.late_total += len(late)
        task.late.append((policy, rows.pick(late)))
        gone = set(late)
        return rows.pick([row for row in range(len(rows)) if row not in gone])


class Inlet(Step):
    """Numbers the inputs of one side of an operator that several flows come to."""

    def __init__(self, name: str, before: Callable[[], int]) -> None:
        self.name = name
        self._before = before

    def process(self, rows: Rows, task: Task) -> Rows:
        return Rows(rows.keys, rows.values, rows.times, rows.origins, rows.input + self._before())
