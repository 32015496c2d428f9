"""Tumbling and hopping windows: the same for all keys, so kept and closed as wholes."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from streamproc.windows.operator import WindowOperator, pick
from streamproc.windows.state import Output, Program, WindowState
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
        if min(groups) + self._reach <= bound and not self._is_in_order(groups):
            groups = self._without_late(groups, timestamps, bound, input, output)
        for start, rows in groups.items():
            self._update(
                start, pick(keys, rows), pick(values, rows), pick(timestamps, rows), output, rows
            )

    def _is_in_order(self, groups: Mapping[int, Sequence[int]]) -> bool:
        """True when no row is late, because each window's come before those of later ones."""
        start = min(groups)
        watermark = self.watermark.current
        is_open = watermark is None or start + self._reach > watermark
        return is_open and isinstance(groups[start], range)

    def _without_late(
        self,
        groups: Mapping[int, Sequence[int]],
        timestamps: Sequence[int],
        bound: float,
        input: int,
        output: Output,
    ) -> dict[int, Sequence[int]]:
        """Return the rows of each window, without those that came when it was closed."""
        running = self.watermark.running(timestamps, input)
        refused: set[int] = set()
        remaining: dict[int, Sequence[int]] = {}
        for start, rows in groups.items():
            closes: float = start + self._reach
            if closes <= bound and running[rows[-1]] >= closes:
                # The watermark never goes back: the late ones are the last ones.
                late = bisect_left(rows, closes, key=running.__getitem__)
                refused.update(rows[late:])
                rows = rows[:late]
            if rows:
                remaining[start] = rows
        latest_end, grace = self._spec.latest_end, self._grace
        for row in sorted(refused):
            wholly = latest_end(timestamps[row]) + grace <= running[row]
            (output.late if wholly else output.partly_late).append(row)
        return remaining

    def _update(
        self,
        start: int,
        keys: Sequence[Any],
        values: Sequence[Any],
        timestamps: Sequence[int],
        output: Output,
        rows: Sequence[int] | None = None,
    ) -> None:
        state = self._state
        window = state.window(start)
        if self._aggregate(
            window, keys, values, timestamps, partial(state.missing, start), output, rows
        ):
            keys = [key for key in keys if key in window]
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
