"""What operators of all kinds of windows share: the order of steps in a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import TYPE_CHECKING, Any, TypeVar

from streamproc.errors import AggregateError
from streamproc.windows.state import Accumulator, Output, Program
from streamproc.windows.watermark import ClockWatermark, Watermark

if TYPE_CHECKING:
    from streamproc.windows.spec import WindowSpec


T = TypeVar("T")


def pick(column: Sequence[T], rows: Sequence[int]) -> Sequence[T]:
    """Return some rows of a column."""
    if isinstance(rows, range):
        return column[rows.start : rows.stop]
    if len(rows) == 1:
        return [column[rows[0]]]
    picked: Sequence[T] = itemgetter(*rows)(column)
    return picked


class WindowOperator(ABC):
    """Computes the windows of one partition, batch by batch.

    How records are split into batches changes neither windows nor which records are late:
    each record is judged by the watermark of those before it.

    What it knows is in its state and its watermark: an operator made of the same two
    (``spec.watermark(plain=old.watermark.to_plain())``) goes on where another ended.
    """

    def __init__(self, spec: WindowSpec, program: Program, watermark: Watermark) -> None:
        self.watermark = watermark
        self._program = program
        self._grace = spec.grace
        self._updates = spec.emit == "updates"

    def process(
        self,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        now: float,
        input: int = 0,
    ) -> Output:
        """Add a batch of records, and close the windows that the watermark then passed.

        Args:
            keys: Keys of the records, parallel to ``values``.
            values: What the program aggregates.
            timestamps: Event times in ms, parallel to ``values``. Not used in processing
                time.
            now: Seconds: of any clock that never goes back in event time, since 1970 in
                processing time.
            input: Which of the watermark's inputs the batch is from.

        A record that can't be aggregated (AggregateError) doesn't hold up the others: it is
        in ``failed``. Any other error leaves the state half changed: go back to a checkpoint.
        """
        output = Output()
        if not timestamps:
            return output
        if isinstance(self.watermark, ClockWatermark):
            timestamps = [self.watermark.timestamp(now)] * len(timestamps)
        lowest, highest = min(timestamps), max(timestamps)
        self._add(keys, values, timestamps, lowest, highest, input, output)
        self.watermark.observe(input, highest, now)
        self._close(output)
        return output

    def tick(self, now: float) -> Output:
        """Let time pass without records, and close the windows that are over.

        Call it when nothing is left to process (see :class:`Watermark`).
        """
        output = Output()
        if self.watermark.tick(now):
            self._close(output)
        return output

    def _aggregate(
        self,
        states: dict[Any, Accumulator],
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        stored: Callable[[Any], Accumulator | None],
        output: Output,
        rows: Sequence[int] | None = None,
    ) -> bool:
        """Add records to the accumulators of their keys, without those that can't be added.

        Args:
            states: Accumulators by key.
            keys: Keys of the records.
            values: Their values.
            timestamps: Their event times.
            stored: Returns the accumulator of a key that isn't in ``states``, if any.
            output: Where records that can't be added are noted.
            rows: Which rows of the batch the records are; None: all.

        Returns:
            Whether there were any. A key that has no other record isn't in ``states`` then.
        """
        fresh: set[Any] = set()

        def missing(key: Any) -> Accumulator:
            acc = stored(key)
            if acc is None:
                fresh.add(key)
                return self._program.new()
            return acc

        added: set[Any] = set()
        done = 0
        while True:
            try:
                if done:
                    columns = keys[done:], values[done:], timestamps[done:]
                else:
                    columns = keys, values, timestamps
                self._program.update(states, *columns, missing)
                return done > 0
            except AggregateError as error:
                failed = done + error.row
                output.failed.setdefault(failed if rows is None else rows[failed], error)
            added.update(keys[done:failed])
            if keys[failed] in fresh and keys[failed] not in added:
                states.pop(keys[failed], None)
            done = failed + 1

    @abstractmethod
    def _add(
        self,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        lowest: int,
        highest: int,
        input: int,
        output: Output,
    ) -> None:
        """Add the rows that aren't late; note late rows and updates in the output."""

    @abstractmethod
    def _close(self, output: Output) -> None:
        """Close what the watermark passed, into the output's finals, and free it."""
