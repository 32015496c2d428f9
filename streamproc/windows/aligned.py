"""Tumbling and hopping windows: the same for all keys, so kept and closed as wholes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from streamproc.windows.operator import WindowOperator
from streamproc.windows.state import Accumulator, Output, Program, WindowState
from streamproc.windows.watermark import Watermark

if TYPE_CHECKING:
    from streamproc.windows.spec import AlignedSpec


class AlignedOperator(WindowOperator):
    """Computes tumbling or hopping windows."""

    def __init__(
        self, spec: AlignedSpec, program: Program, state: WindowState, watermark: Watermark
    ) -> None:
        super().__init__(spec, program, watermark)
        self._spec = spec
        self._state = state
        self._size = spec.size
        # From the start of a window to the watermark at which it closes.
        self._reach = spec.size + spec.grace
        starts = state.open_starts()
        self._earliest: int | None = starts[0] if starts else None

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
        starts = self._spec.single(lowest, highest)
        bound = self.watermark.bound(highest, input)
        if starts is not None and starts[0] + self._reach > bound:
            for start in starts:
                self._update(start, keys, values, timestamps, output)
            return
        groups = self._spec.group(timestamps)
        if min(groups) + self._reach <= bound:
            self._take_late(groups, timestamps, bound, input, output)
        for start, rows in groups.items():
            self._update(
                start,
                [keys[row] for row in rows],
                [values[row] for row in rows],
                [timestamps[row] for row in rows],
                output,
            )

    def _take_late(
        self,
        groups: dict[int, list[int]],
        timestamps: Sequence[int],
        bound: float,
        input: int,
        output: Output,
    ) -> None:
        """Take rows out of windows that were closed before them."""
        running = self.watermark.running(timestamps, input)
        refused: set[int] = set()
        for start in [start for start in groups if start + self._reach <= bound]:
            closes = start + self._reach
            rows = groups[start]
            late = [row for row in rows if running[row] >= closes]
            if not late:
                continue
            refused.update(late)
            groups[start] = [row for row in rows if running[row] < closes]
            if not groups[start]:
                del groups[start]
        latest_end, grace = self._spec.latest_end, self._grace
        for row in sorted(refused):
            wholly = latest_end(timestamps[row]) + grace <= running[row]
            (output.late if wholly else output.partly_late).append(row)

    def _update(
        self,
        start: int,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        output: Output,
    ) -> None:
        state, new = self._state, self._program.new

        def missing(key: Any) -> Accumulator:
            stored = state.missing(start, key)
            return new() if stored is None else stored

        window = state.window(start)
        self._program.update(window, keys, values, timestamps, missing)
        state.mark(start, keys)
        if self._earliest is None or start < self._earliest:
            self._earliest = start
        if self._updates:
            end = start + self._size
            output.updates.extend((key, start, end, window[key]) for key in dict.fromkeys(keys))

    def _close(self, output: Output) -> None:
        watermark = self.watermark.current
        if watermark is None or self._earliest is None:
            return
        if self._earliest + self._reach > watermark:
            return
        self._earliest = None
        for start in self._state.open_starts():
            if start + self._reach > watermark:
                self._earliest = start
                return
            if self._updates:
                self._state.drop(start)
                continue
            end = start + self._size
            output.finals.extend((key, start, end, acc) for key, acc in self._state.close(start))
