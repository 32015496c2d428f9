"""What operators of all kinds of windows share: the order of steps in a batch."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamproc.windows.state import Output, Program
from streamproc.windows.watermark import ClockWatermark, Watermark

if TYPE_CHECKING:
    from streamproc.windows.spec import WindowSpec


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
